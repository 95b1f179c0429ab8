%% Large messages and what passes them: a collector that notes what comes and when, and a pinger.
%% Times are microseconds of this node's monotonic clock.
-module(tumen_bulk).
-export([collector/0, take/2, pinger/1, stop/1, load/2]).

%% A process that notes messages, and on {watch, Pid} monitors Pid, links to it
%% and tells it.
collector() ->
    spawn(fun() -> process_flag(trap_exit, true), collect([]) end).

collect(Notes) ->
    receive
        {take, Count, From} when length(Notes) >= Count ->
            From ! {self(), lists:reverse(Notes)},
            collect([]);
        {watch, Pid} ->
            erlang:monitor(process, Pid),
            link(Pid),
            Pid ! watching,
            collect(Notes);
        Message when not (is_tuple(Message) andalso element(1, Message) =:= take) ->
            collect([{note(Message), erlang:monotonic_time(microsecond)} | Notes])
    end.

note({'DOWN', _, process, _, Reason}) ->
    {down, size_of(Reason)};
note({'EXIT', _, Reason}) ->
    {exit, size_of(Reason)};
note({Who, Number, Bytes}) when is_binary(Bytes) ->
    {Who, Number, byte_size(Bytes), erlang:crc32(Bytes)};
note(Bytes) when is_binary(Bytes) ->
    {byte_size(Bytes), erlang:crc32(Bytes)};
note(Other) ->
    Other.

size_of(Bytes) when is_binary(Bytes) -> {byte_size(Bytes), erlang:crc32(Bytes)};
size_of(Other) -> Other.

%% [{Note, Time}] once there are Count of them.
take(Collector, Count) ->
    Collector ! {take, Count, self()},
    receive {Collector, Notes} -> Notes end.

%% Sends {self(), Time} to an echo every millisecond, whatever comes back.
pinger(To) ->
    spawn(fun() -> ping(To, erlang:monotonic_time(microsecond), []) end).

ping(To, Next, Rounds) ->
    Wait = max(0, (Next - erlang:monotonic_time(microsecond)) div 1000),
    receive
        {stop, From} ->
            From ! {self(), lists:reverse(Rounds)};
        {_Echo, Sent} ->
            Now = erlang:monotonic_time(microsecond),
            ping(To, Next, [{Now, Now - Sent} | Rounds])
    after Wait ->
        To ! {self(), erlang:monotonic_time(microsecond)},
        ping(To, Next + 1000, Rounds)
    end.

%% [{Time of the answer, Round trip}]
stop(Pinger) ->
    Pinger ! {stop, self()},
    receive {Pinger, Rounds} -> Rounds end.

%% A process that sends {large, N, Bytes} of Size bytes for each N of the list, then its own end.
load(To, {Size, Numbers}) ->
    spawn(fun() ->
        Bytes = binary:copy(<<"0123456789abcdef">>, Size div 16),
        [To ! {large, N, Bytes} || N <- Numbers]
    end).
