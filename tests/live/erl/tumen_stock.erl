%% A gen_server as anyone writes it: one call takes so many milliseconds. And callers that come at a
%% fixed rate whether or not they are served, and give up after a while.
-module(tumen_stock).
-behaviour(gen_server).
-export([start/1, closed/3, open/4]).
-export([init/1, handle_call/3, handle_cast/2]).

start(Ms) ->
    {ok, Pid} = gen_server:start(?MODULE, Ms, []),
    Pid.

init(Ms) -> {ok, {Ms, []}}.

handle_call(begun, _From, {Ms, Begun}) ->
    {reply, Begun, {Ms, []}};
handle_call({work, Number}, _From, {Ms, Begun}) ->
    timer:sleep(Ms),
    {reply, Number, {Ms, [Number | Begun]}}.

handle_cast(_, State) -> {noreply, State}.

%% Answers per second that so many callers get who wait for as long as it takes.
closed(Server, Callers, Ms) ->
    Until = erlang:monotonic_time(millisecond) + Ms,
    Self = self(),
    [spawn_link(fun() -> Self ! {done, ask(Server, Until, 0)} end) || _ <- lists:seq(1, Callers)],
    lists:sum([receive {done, Count} -> Count end || _ <- lists:seq(1, Callers)]) * 1000 / Ms.

ask(Server, Until, Count) ->
    case erlang:monotonic_time(millisecond) < Until of
        true ->
            0 = gen_server:call(Server, {work, 0}, infinity),
            ask(Server, Until, Count + 1);
        false ->
            Count
    end.

%% {numbers of the calls that were answered, numbers of those that gave up}: Rate calls a second, each
%% of a process of its own.
open(Server, Rate, Ms, Timeout) ->
    Begin = erlang:monotonic_time(microsecond),
    Total = Rate * Ms div 1000,
    arrive(Server, Begin, Rate, 1, Total, Timeout),
    Outcomes = [receive {outcome, Number, Outcome} -> {Number, Outcome} end
                || Number <- lists:seq(1, Total)],
    lists:foldl(fun({Number, ok}, {Ok, Late}) -> {[Number | Ok], Late};
                   ({Number, late}, {Ok, Late}) -> {Ok, [Number | Late]}
                end, {[], []}, Outcomes).

arrive(_, _, _, Number, Total, _) when Number > Total -> ok;
arrive(Server, Begin, Rate, Number, Total, Timeout) ->
    Due = (erlang:monotonic_time(microsecond) - Begin) * Rate div 1000000,
    Last = min(Due, Total),
    Self = self(),
    [spawn(fun() -> Self ! {outcome, N, call(Server, N, Timeout)} end)
     || N <- lists:seq(Number, Last)],
    timer:sleep(1),
    arrive(Server, Begin, Rate, max(Number, Last + 1), Total, Timeout).

call(Server, Number, Timeout) ->
    try gen_server:call(Server, {work, Number}, Timeout) of
        Number -> ok
    catch
        exit:{timeout, _} -> late
    end.
