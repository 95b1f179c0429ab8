# Talks to examples/counter.py:
#
#     tumen serve examples/counter.py --name py@127.0.0.1
#     elixir --name b@127.0.0.1 --cookie "$COOKIE" examples/counter.exs py@127.0.0.1
[name] = System.argv()
node = String.to_atom(name)

:pong = Node.ping(node)
counter = {:counter, node}

total = GenServer.call(counter, :get)
^total = GenServer.call(counter, {:add, 5}) - 5

%{score: 2.0, model: "mean"} = :erpc.call(node, ML, :predict, [[1.0, 2.0, 3.0]])

# Strings, structs and maps come back as they went.
range = %{text: "grüß dich", range: 1..3, list: [nil, true, :atom, 1.5]}
^range = GenServer.call(counter, {:echo, range})

IO.puts("counter at #{name}: #{total + 5}")
