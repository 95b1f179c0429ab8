%% Talks to examples/counter.py:
%%
%%   tumen serve examples/counter.py --name py@127.0.0.1
%%   erl -name a@127.0.0.1            (with the same cookie)
%%   1> c("examples/counter"), counter:run('py@127.0.0.1').
-module(counter).
-export([run/1]).

run(Node) ->
    pong = net_adm:ping(Node),
    Counter = {counter, Node},

    Before = gen_server:call(Counter, get),
    After = gen_server:call(Counter, {add, 5}),
    After = Before + 5,
    ok = gen_server:cast(Counter, {add, 1}),
    true = gen_server:call(Counter, get) =:= After + 1,

    5 = rpc:call(Node, demo, add, [2, 3]),
    5 = erpc:call(Node, demo, add, [2, 3]),
    #{score := 2.0} = rpc:call(Node, 'Elixir.ML', predict, [[1.0, 2.0, 3.0]]),

    %% What nobody exposed does not exist.
    undef = try erpc:call(Node, os, getpid, []) catch error:{exception, R, _} -> R end,
    {badrpc, {'EXIT', {undef, _}}} = rpc:call(Node, os, getpid, []),

    %% A crash is an exit reason like any other.
    Ref = erlang:monitor(process, Counter),
    {'EXIT', {{{python_error, Type, Text}, _Stack}, _Call}} = (catch gen_server:call(Counter, crash)),
    receive
        {'DOWN', Ref, process, Counter, {{python_error, Type, Text}, _}} -> {ok, Type, Text}
    after 5000 ->
        timeout
    end.
