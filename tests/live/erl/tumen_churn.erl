%% Processes of a BEAM that join and leave process groups, end, and begin, as a seed says.
-module(tumen_churn).
-export([start/2, burst/3, busy/1]).

%% Starts the scope and the process that churns in it; {ScopePid, Churner}. The latter also counts
%% the times that a process of this node had to wait for a connection.
start(Scope, Seed) ->
    {ok, Pg} = pg:start(Scope),
    Me = self(),
    Churner = spawn(fun() ->
                        erlang:system_monitor(self(), [busy_dist_port]),
                        rand:seed(exsss, Seed),
                        Me ! {ready, self()},
                        loop(Scope, [], 0)
                    end),
    receive {ready, Churner} -> {Pg, Churner} end.

%% So many steps in these groups; ok when they are done.
burst(Churner, Groups, Steps) ->
    ask(Churner, {burst, Groups, Steps}).

busy(Churner) ->
    ask(Churner, busy).

ask(Churner, Question) ->
    Ref = make_ref(),
    Churner ! {Ref, self(), Question},
    receive {Ref, Answer} -> Answer end.

loop(Scope, Pids, Busy) ->
    receive
        {monitor, _, busy_dist_port, _} ->
            loop(Scope, Pids, Busy + 1);
        {Ref, From, busy} ->
            From ! {Ref, Busy},
            loop(Scope, Pids, Busy);
        {Ref, From, {burst, Groups, Steps}} ->
            Left = lists:foldl(fun(_, Some) -> step(Scope, Groups, Some) end, Pids,
                               lists:seq(1, Steps)),
            From ! {Ref, ok},
            loop(Scope, Left, Busy)
    end.

step(_Scope, _Groups, []) ->
    [spawn(fun() -> receive stop -> ok end end)];
step(Scope, Groups, Pids) ->
    Pid = pick(Pids),
    Group = pick(Groups),
    case rand:uniform(10) of
        N when N =< 4 -> ok = pg:join(Scope, Group, Pid), Pids;
        5 -> ok = pg:join(Scope, Group, [Pid, Pid | Pids]), Pids;
        6 -> pg:leave(Scope, Group, Pid), Pids;
        7 -> pg:leave(Scope, Group, [Pid | Pids]), Pids;
        8 when length(Pids) < 8 -> [spawn(fun() -> receive stop -> ok end end) | Pids];
        _ -> exit(Pid, kill), lists:delete(Pid, Pids)
    end.

pick(List) ->
    lists:nth(rand:uniform(length(List)), List).
