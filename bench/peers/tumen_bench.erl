%% A BEAM of the bench, for both roles: it drives a test, and it answers one.
%%
%% One command a line on standard input, one JSON object a line on standard output. The same words
%% drive tumen_peer.py, so that either can stand at either end.
-module(tumen_bench).
-behaviour(gen_server).

-export([main/0, add/2, python_call/1]).
-nifs([python_call/1]).
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
    callers(Call, list_to_integer(Callers), list_to_integer(Ms));
command(["http", "open"]) ->
    {ok, _} = application:ensure_all_started(inets),
    ok = httpc:set_options([{max_sessions, 1024}, {max_keep_alive_length, 100000000},
                            {keep_alive_timeout, 600000}]),
    [{ok, 1}];
command(["port", "open", Name | Command]) ->
    [{os_pid, port_begin(list_to_atom(Name), Command)}];
command(["inside", "open", Path, Library, Executable, Folder]) ->
    ok = erlang:load_nif(Path, {Library, Executable, Folder}),
    [{ok, 1}];
command(["job", How, Where, Kind, Bytes, Callers, Ms]) ->
    callers(job(How, Where, Kind, list_to_integer(Bytes)), list_to_integer(Callers),
            list_to_integer(Ms)).

%% -- what a user would pick instead ------------------------------------------------------------

%% A job is a call that checks its answer: a map counted up, or a binary measured.
job("node", Node, Kind, Bytes) ->
    Server = {bench_server, list_to_atom(Node)},
    work(Kind, Bytes, fun(Request) -> gen_server:call(Server, Request, ?ANSWER_MS) end);
job("erpc", Node, Kind, Bytes) ->
    Peer = list_to_atom(Node),
    work(Kind, Bytes, fun(Request) ->
        erpc:call(Peer, ?MODULE, answer, [Request], ?ANSWER_MS)
    end);
job("port", Name, Kind, Bytes) ->
    Owner = list_to_atom(Name),
    work(Kind, Bytes, fun(Request) -> gen_call(Owner, Request) end);
job("inside", _, Kind, Bytes) ->
    work(Kind, Bytes, fun(Request) ->
        {0, Answer} = binary_to_term(python_call(term_to_binary({0, Request}))),
        Answer
    end);
job("http", Url, "map", Bytes) ->
    Map = map_of(Bytes),
    fun(N) ->
        Wanted = Map#{<<"n">> := N + 1},
        Wanted = post(Url ++ "map", Map#{<<"n">> := N}),
        ok
    end;
job("http", Url, "binary", Bytes) ->
    Data = binary:copy(<<"x">>, Bytes),
    fun(N) ->
        Asked = #{<<"n">> => N, <<"data">> => base64:encode(Data)},
        #{<<"n">> := N1, <<"size">> := Bytes} = post(Url ++ "binary", Asked),
        N1 = N + 1,
        ok
    end.

work("map", Bytes, Ask) ->
    Map = map_of(Bytes),
    fun(N) ->
        Wanted = Map#{<<"n">> := N + 1},
        Wanted = Ask({map, Map#{<<"n">> := N}}),
        ok
    end;
work("binary", Bytes, Ask) ->
    Data = binary:copy(<<"x">>, Bytes),
    fun(N) ->
        {N1, Bytes} = Ask({binary, N, Data}),
        N1 = N + 1,
        ok
    end.

post(Url, Term) ->
    Body = iolist_to_binary(json:encode(Term)),
    {ok, {{_, 200, _}, _, Answer}} =
        httpc:request(post, {Url, [], "application/json", Body}, [{timeout, ?ANSWER_MS}],
                      [{body_format, binary}]),
    json:decode(Answer).

%% About so many bytes of text, integers, floats and lists, as an event of some service has.
map_of(Bytes) ->
    Fields = [{<<"field_", (integer_to_binary(I))/binary>>, field(I rem 4, I)}
              || I <- lists:seq(1, 1000)],
    map_of(Bytes, Fields, #{<<"n">> => 0}).

map_of(Bytes, [{Key, Value} | Fields], Map) ->
    case byte_size(term_to_binary(Map)) >= Bytes of
        true -> Map;
        false -> map_of(Bytes, Fields, Map#{Key => Value})
    end.

field(0, I) -> [I, I * 1000, I * 1000000];
field(1, I) -> I / 7;
field(2, I) -> I * 1000003;
field(3, _) -> <<"some text of thirty-two letters.">>.

%% Of python_nif.c, once `inside open` has loaded it.
python_call(_) -> erlang:nif_error(not_loaded).

%% One process owns the port and gives the answers to who asked.
port_begin(Name, [Program | Args]) ->
    Self = self(),
    spawn_link(fun() ->
        register(Name, self()),
        Port = open_port({spawn_executable, os:find_executable(Program)},
                         [{packet, 4}, binary, use_stdio, exit_status, {args, Args}]),
        Self ! {os_pid, erlang:port_info(Port, os_pid)},
        port_loop(Port, 0, #{})
    end),
    receive {os_pid, {os_pid, Pid}} -> Pid end.

port_loop(Port, Next, Waiting) ->
    receive
        {ask, From, Ref, Request} ->
            port_command(Port, term_to_binary({Next, Request})),
            port_loop(Port, Next + 1, Waiting#{Next => {From, Ref}});
        {Port, {data, Data}} ->
            {Number, Answer} = binary_to_term(Data),
            {{From, Ref}, Rest} = maps:take(Number, Waiting),
            From ! {Ref, Answer},
            port_loop(Port, Next, Rest);
        {Port, {exit_status, Status}} ->
            exit({port_ended, Status})
    end.

gen_call(Owner, Request) ->
    Ref = make_ref(),
    Owner ! {ask, self(), Ref, Request},
    receive {Ref, Answer} -> Answer
    after ?ANSWER_MS -> error(no_answer)
    end.

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
