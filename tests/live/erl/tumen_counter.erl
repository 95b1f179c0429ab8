%% A gen_server of a BEAM, to be compared with one of tumen: the Counter of tests/nodes.py.
-module(tumen_counter).
-behaviour(gen_server).
-export([start_link/0, start_link/1, init/1, handle_call/3, handle_cast/2, handle_info/2]).

start_link() -> start_link(0).

start_link(Start) -> gen_server:start_link(?MODULE, Start, []).

init(fail) -> {stop, not_today};
init(N) -> {ok, N}.

handle_call({add, X}, _From, N) -> {reply, N + X, N + X};
handle_call(get, _From, N) -> {reply, N, N}.

handle_cast(_Request, N) -> {noreply, N}.

handle_info(_Message, N) -> {noreply, N}.
