%% A supervisor of a BEAM, and a driver that does the same to it and to one of tumen.
-module(tumen_tree).
-behaviour(supervisor).
-export([start/2, init/1, run/2]).

%% Started by nobody's child: its end does not take the caller along.
start(Flags, Specs) ->
    Me = self(),
    {Starter, Mon} = spawn_monitor(fun() ->
        {ok, Sup} = supervisor:start_link(?MODULE, {Flags, Specs}),
        unlink(Sup),
        Me ! {started, self(), Sup}
    end),
    receive
        {started, Starter, Sup} -> demonitor(Mon, [flush]), Sup;
        {'DOWN', Mon, process, Starter, Reason} -> error(Reason)
    end.

init({Flags, Specs}) -> {ok, {Flags, Specs}}.

%% What each operation gave, with every pid replaced by `pid`; up to the one by which the
%% supervisor has ended, which gave {ended, Reason}.
run(Sup, Ops) ->
    Mon = monitor(process, Sup),
    Results = run(Sup, Mon, Ops),
    demonitor(Mon, [flush]),
    Results.

run(_Sup, _Mon, []) ->
    [];
run(Sup, Mon, [Op | Ops]) ->
    try plain(op(Sup, Op)) of
        Result -> [{Op, Result} | run(Sup, Mon, Ops)]
    catch
        exit:_ ->
            receive {'DOWN', Mon, process, _, Reason} -> [{Op, {ended, Reason}}] end
    end.

op(Sup, {start, Spec}) -> supervisor:start_child(Sup, Spec);
op(Sup, {terminate, Id}) -> supervisor:terminate_child(Sup, Id);
op(Sup, {restart, Id}) -> supervisor:restart_child(Sup, Id);
op(Sup, {delete, Id}) -> supervisor:delete_child(Sup, Id);
op(Sup, {spec, Id}) -> supervisor:get_childspec(Sup, Id);
op(Sup, which) -> supervisor:which_children(Sup);
op(Sup, count) -> supervisor:count_children(Sup);
op(Sup, {stop, Id, Reason}) ->
    case lists:keyfind(Id, 1, supervisor:which_children(Sup)) of
        {_, Pid, _, _} when is_pid(Pid) ->
            stop(Pid, Reason),
            settled(Sup, Pid);
        _ ->
            nobody
    end.

stop(Pid, kill) ->
    Mon = monitor(process, Pid),
    exit(Pid, kill),
    receive {'DOWN', Mon, process, Pid, killed} -> ok end;
stop(Pid, Reason) ->
    ok = gen_server:stop(Pid, Reason, 5000).

%% The rows once the end of that child has been handled, its siblings' too.
settled(Sup, Pid) ->
    Rows = supervisor:which_children(Sup),
    case lists:keymember(Pid, 2, Rows) orelse lists:keymember(restarting, 2, Rows) of
        true -> receive after 1 -> settled(Sup, Pid) end;
        false -> Rows
    end.

plain(Pid) when is_pid(Pid) -> pid;
plain(Tuple) when is_tuple(Tuple) -> list_to_tuple(plain(tuple_to_list(Tuple)));
plain([Head | Tail]) -> [plain(Head) | plain(Tail)];
plain(Map) when is_map(Map) -> maps:map(fun(_, Value) -> plain(Value) end, Map);
plain(Other) -> Other.
