%% The BEAM's side of bench/wire.py, for both roles: it drives a test, and it answers one.
%%
%% One command a line on standard input, one JSON object a line on standard output. The same words
%% drive bench/wire_peer.py, so that either can stand at either end.
-module(tumen_bench).
-behaviour(gen_server).

-export([main/0, add/2]).
-export([init/1, handle_call/3, handle_cast/2]).

%% Milliseconds for an answer that ends a test; a fault ends the run instead of hanging it.
-define(ANSWER_MS, 60000).
%% Callers look at the clock once in so many rounds.
-define(CLOCK_STRIDE, 16).

main() ->
    register(bench_sink, spawn_link(fun sink/0)),
    register(bench_echo, spawn_link(fun echo/0)),
    {ok, _} = gen_server:start_link({local, bench_server}, ?MODULE, [], []),
    answer([{ready, atom_to_list(node())}, {otp, erlang:system_info(otp_release)},
            {erts, erlang:system_info(version)}]),
    loop().

loop() ->
    case io:get_line("") of
        Line when is_list(Line) ->
            try command(string:lexemes(Line, " \n")) of
                Result -> answer(Result)
            catch
                Class:Reason:Stack ->
                    Text = lists:flatten(io_lib:format("~0p", [{Class, Reason, Stack}])),
                    answer([{error, Text}])
            end,
            loop();
        _ ->
            halt(0)
    end.

answer(Pairs) ->
    Fields = [[$", atom_to_list(Key), $", $:, value(Value)] || {Key, Value} <- Pairs],
    io:put_chars([${, lists:join($,, Fields), $}, $\n]).

value(Value) when is_integer(Value) -> integer_to_list(Value);
value(Value) when is_float(Value) -> io_lib:format("~.3f", [Value]);
value(Text) -> [$", [escaped(Char) || Char <- Text], $"].

escaped($") -> "\\\"";
escaped($\\) -> "\\\\";
escaped(Char) when Char < 32; Char > 126 -> $?;
escaped(Char) -> Char.

command(["connect", Node]) ->
    pong = net_adm:ping(list_to_atom(Node)),
    [{ok, 1}];
command(["send", Node, Bytes, Ms]) ->
    send(list_to_atom(Node), list_to_integer(Bytes), list_to_integer(Ms));
command(["pingpong", Node, Bytes, Ms]) ->
    pingpong(list_to_atom(Node), list_to_integer(Bytes), list_to_integer(Ms));
command(["call", Node, Callers, Ms]) ->
    Server = {bench_server, list_to_atom(Node)},
    Call = fun(N) -> N1 = N + 1, N1 = gen_server:call(Server, {add, N, 1}, ?ANSWER_MS) end,
    callers(Call, list_to_integer(Callers), list_to_integer(Ms));
command(["erpc", Node, Callers, Ms]) ->
    Peer = list_to_atom(Node),
    Call = fun(N) -> N1 = N + 1, N1 = erpc:call(Peer, ?MODULE, add, [N, 1], ?ANSWER_MS) end,
    callers(Call, list_to_integer(Callers), list_to_integer(Ms)).

%% -- one way -----------------------------------------------------------------------------------

send(Node, Bytes, Ms) ->
    Payload = binary:copy(<<"x">>, Bytes),
    Sink = sink_begin(Node),
    Start = now_ns(),
    Count = send_until(Sink, Payload, 0, stride(Bytes), Start + Ms * 1000000),
    Sink ! {finish, self()},
    receive
        {report, Received, ReceivedBytes, Wrong} ->
            Elapsed = now_ns() - Start,
            {Count, 0} = {Received, Wrong},
            ReceivedBytes = Count * Bytes,
            [{count, Count}, {elapsed_ns, Elapsed}]
    after ?ANSWER_MS -> error(no_report)
    end.

sink_begin(Node) ->
    {bench_sink, Node} ! {start, self()},
    receive {started, Sink} -> Sink
    after ?ANSWER_MS -> error(no_sink)
    end.

stride(Bytes) when Bytes >= 65536 -> 1;
stride(_) -> 64.

send_until(Sink, Payload, N, Stride, Deadline) ->
    case now_ns() >= Deadline of
        true -> N;
        false -> send_until(Sink, Payload, send_some(Sink, Payload, N, Stride), Stride, Deadline)
    end.

send_some(_, _, N, 0) -> N;
send_some(Sink, Payload, N, Left) ->
    Sink ! {msg, N, Payload},
    send_some(Sink, Payload, N + 1, Left - 1).

sink() ->
    receive
        {start, From} ->
            From ! {started, self()},
            sink(0, 0, 0)
    end.

%% Counts, sums, and holds every message against its place in the order.
sink(N, Bytes, Wrong) ->
    receive
        {msg, N, Payload} -> sink(N + 1, Bytes + byte_size(Payload), Wrong);
        {msg, Other, Payload} -> sink(Other + 1, Bytes + byte_size(Payload), Wrong + 1);
        {finish, From} ->
            From ! {report, N, Bytes, Wrong},
            sink()
    end.

%% -- there and back ----------------------------------------------------------------------------

pingpong(Node, Bytes, Ms) ->
    Payload = binary:copy(<<"x">>, Bytes),
    {bench_echo, Node} ! {echo, self(), start, Payload},
    Echo = receive {echoed, Pid, start, Payload} -> Pid
           after ?ANSWER_MS -> error(no_echo)
           end,
    Start = now_ns(),
    Times = pingpong(Echo, Payload, 0, Start + Ms * 1000000, []),
    Elapsed = now_ns() - Start,
    Sorted = list_to_tuple(lists:sort(Times)),
    [{count, tuple_size(Sorted)}, {elapsed_ns, Elapsed},
     {p50_ns, rank(Sorted, 50)}, {p99_ns, rank(Sorted, 99)}].

pingpong(Echo, Payload, N, Deadline, Times) ->
    Sent = now_ns(),
    Echo ! {echo, self(), N, Payload},
    receive
        {echoed, _, N, Payload} ->
            Now = now_ns(),
            case Now >= Deadline of
                true -> [Now - Sent | Times];
                false -> pingpong(Echo, Payload, N + 1, Deadline, [Now - Sent | Times])
            end
    after ?ANSWER_MS -> error(no_echo)
    end.

rank(Sorted, Percent) ->
    element(max(1, (tuple_size(Sorted) * Percent + 99) div 100), Sorted).

echo() ->
    receive {echo, From, N, Payload} -> From ! {echoed, self(), N, Payload} end,
    echo().

%% -- calls -------------------------------------------------------------------------------------

callers(Call, Callers, Ms) ->
    Start = now_ns(),
    Deadline = Start + Ms * 1000000,
    Running = [spawn_monitor(fun() -> exit({calls, calls(Call, 0, Deadline)}) end)
               || _ <- lists:seq(1, Callers)],
    Counts = [receive {'DOWN', Ref, process, Pid, {calls, Count}} -> Count;
                      {'DOWN', Ref, process, Pid, Reason} -> error(Reason)
              after ?ANSWER_MS -> error(no_end)
              end || {Pid, Ref} <- Running],
    [{count, lists:sum(Counts)}, {elapsed_ns, now_ns() - Start}].

calls(Call, N, Deadline) ->
    Call(N),
    case (N rem ?CLOCK_STRIDE =:= 0) andalso now_ns() >= Deadline of
        true -> N + 1;
        false -> calls(Call, N + 1, Deadline)
    end.

%% The function that is called from afar.
add(A, B) -> A + B.

init([]) -> {ok, []}.

handle_call({add, A, B}, _From, State) -> {reply, A + B, State}.

handle_cast(_, State) -> {noreply, State}.

now_ns() -> erlang:monotonic_time(nanosecond).
