%% The server inside a BEAM that a test drives: it evaluates what the test sends and answers.
%%
%% One TCP connection to the test, {packet, 4}. Erlang's own standard output stays free for logs, and
%% when the test goes away the connection closes and the node halts.
%%
%%   request: <<Id:32, Kind:8, Size:32, Source:Size/binary, Bindings/binary>>
%%            Kind 0: Erlang expressions, 1: Elixir; Bindings: an external term, [{Name, Value}]
%%   reply:   <<Id:32, 0:8, Result/binary>> with the external term, or <<Id:32, 1:8, Text/binary>>
-module(tumen_peer).
-export([start/0]).

start() ->
    [Port, Token] = init:get_plain_arguments(),
    spawn(fun() -> serve(list_to_integer(Port), Token) end).

serve(Port, Token) ->
    register(tumen_peer, self()),
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, Port,
                                   [binary, {packet, 4}, {active, true}, {nodelay, true}]),
    ok = gen_tcp:send(Socket, Token),
    loop(Socket).

loop(Socket) ->
    receive
        {tcp, Socket, <<Id:32, Kind:8, Size:32, Source:Size/binary, Bindings/binary>>} ->
            spawn(fun() -> answer(Socket, Id, Kind, Source, Bindings) end),
            loop(Socket);
        {tcp_closed, Socket} ->
            erlang:halt(0, [{flush, false}]);
        {tcp_error, Socket, _} ->
            erlang:halt(1, [{flush, false}]);
        _ ->
            loop(Socket)
    end.

answer(Socket, Id, Kind, Source, Bindings) ->
    Reply =
        try
            Value = eval(Kind, Source, binary_to_term(Bindings)),
            <<Id:32, 0:8, (term_to_binary(Value))/binary>>
        catch
            Class:Reason:Stack ->
                Text = io_lib:format("~tp:~tp~n~tp", [Class, Reason, Stack]),
                <<Id:32, 1:8, (unicode:characters_to_binary(Text))/binary>>
        end,
    gen_tcp:send(Socket, Reply).

eval(0, Source, Bindings) ->
    Text = unicode:characters_to_list(Source),
    {ok, Tokens, _} = erl_scan:string(Text ++ " ."),
    {ok, Expressions} = erl_parse:parse_exprs(Tokens),
    {value, Value, _} = erl_eval:exprs(Expressions, orddict:from_list(Bindings)),
    Value;
eval(1, Source, Bindings) ->
    {Value, _} = 'Elixir.Code':eval_string(Source, Bindings),
    Value.
