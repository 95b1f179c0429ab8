"""The commands: options, output and exit codes. What they do is in the modules beside this one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tumen as api

from .exits import EXIT_HELP, Code, Failed, code_of, finish, text_of
from .session import NodeOptions, is_failure, mapper_names, mapper_serve, session
from .session import ping as session_ping
from .syntax import TermSyntaxError, format_term, parse_name, parse_term, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    ParamType = click.ParamType[Any]
else:
    # Generic for type checkers only: click 8.1 knows no parameter there.
    ParamType = click.ParamType

# Where `tumen bench` finds its runner: only in a checkout, never in an installed package.
BENCH = Path("bench/run.py")


class Term(ParamType):
    """An argument in Erlang's syntax."""

    name = "term"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return parse_term(value)
        except TermSyntaxError as error:
            return self.fail(str(error), param, ctx)


class ArgumentList(Term):
    """The arguments of a function: a list, and written as one."""

    name = "args"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        term = super().convert(value, param, ctx)
        if not isinstance(term, list) or not value.lstrip().startswith("["):
            self.fail(f"a list is expected, [Arg, …], not {value!r}", param, ctx)
        return term


class Name(ParamType):
    """An atom given as a bare word."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return parse_name(value)
        except TermSyntaxError as error:
            return self.fail(str(error), param, ctx)


class NodeName(ParamType):
    """The full name of a node."""

    name = "node"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        alive, at, host = value.partition("@")
        if not (alive and at and host) or "@" in host:
            self.fail(f"a node is written name@host, not {value!r}", param, ctx)
        return value


def node_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that starts a node, gathered into a `NodeOptions`."""
    declared = [
        click.option("--name", "own_name", type=NodeName(),
                     help="Our own name; made up when left out."),
        click.option("--cookie-file", type=click.Path(path_type=Path, dir_okay=False),
                     help="File with the cookie; ~/.erlang.cookie when left out."),
        click.option("--cookie-env", metavar="VARIABLE",
                     help="Variable with the cookie; TUMEN_COOKIE is looked at anyway."),
        click.option("--hidden/--visible", default=True, show_default=True,
                     help="Whether nodes() lists us."),
        click.option("--backend", type=click.Choice(["auto", "uring", "epoll"]), default=None,
                     help="How the core talks to the kernel.  [default: TUMEN_BACKEND, else auto]"),
        click.option("--epmd-port", type=click.IntRange(1, 65535),
                     help="Port of the port mappers.  [default: ERL_EPMD_PORT, else 4369]"),
    ]  # fmt: skip

    @functools.wraps(command)
    def gathered(**values: Any) -> Any:
        hidden = values.pop("hidden")
        names = ("cookie_file", "cookie_env", "backend", "epmd_port")
        own = {name: values.pop(name) for name in names}
        own |= {"name": values.pop("own_name"), "visible": not hidden}
        return command(node_options=NodeOptions(**own), **values)

    for option in reversed(declared):
        gathered = option(gathered)
    return gathered


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--json and --timeout."""
    timeout = click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=5.0,
        show_default=True,
        metavar="SECONDS",
        help="For the whole exchange.",
    )
    return timeout(json_option(command))


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on a line.")


class Commands(click.Group):
    """Every command ends by the same table of exit codes, which its help shows."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.epilog = EXIT_HELP
        super().add_command(cmd, name)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]},
             epilog=EXIT_HELP)  # fmt: skip
@click.version_option(package_name="tumen", prog_name="tumen")
def tumen() -> None:
    """A Python process as a node of an Erlang or Elixir cluster.

    Terms are written in Erlang's syntax. The cookie comes from a file or from the environment,
    never from the command line, where every user of the machine could read it.
    """


def run(main: Coroutine[Any, Any, None], *, as_json: bool) -> None:
    """Runs a command's coroutine and turns what it raises into an exit code."""
    try:
        asyncio.run(main)
    except Failed as failure:
        finish(failure, as_json=as_json)
    except KeyboardInterrupt:
        finish(Failed(Code.INTERRUPTED, "interrupted"), as_json=as_json)
    except (api.TumenError, OSError) as error:
        finish(Failed(code_of(error), text_of(error)), as_json=as_json)


def answer(term: Any, node: str, *, as_json: bool) -> None:
    """Prints a reply; a reply that says error exits as a failure does."""
    failed = is_failure(term)
    if as_json:
        reply = {"ok": not failed, "node": node, "term": format_term(term), "value": plain(term)}
        click.echo(json.dumps(reply))
    else:
        click.echo(format_term(term))
    if failed:
        raise SystemExit(int(Code.FAILED))


@tumen.command()
@click.argument("node", type=NodeName())
@node_options
@common_options
def ping(node: str, node_options: NodeOptions, timeout: float, as_json: bool) -> None:
    """Says pong when NODE answers, else pang and why."""

    async def main() -> None:
        async with session(node_options, node) as own:
            elapsed = await session_ping(own, node, timeout)
        if as_json:
            report = {"ok": True, "answer": "pong", "node": node, "seconds": round(elapsed, 6)}
            click.echo(json.dumps(report))
        else:
            click.echo("pong")

    run(main(), as_json=as_json)


@tumen.command()
@click.argument("node", type=NodeName())
@click.argument("name", type=Name())
@click.argument("term", type=Term())
@node_options
@common_options
def call(
    node: str, name: str, term: Any, node_options: NodeOptions, timeout: float, as_json: bool
) -> None:
    """gen_server:call({NAME, NODE}, TERM).

    Example: tumen call app@127.0.0.1 counter '{add, 5}'
    """

    async def main() -> None:
        async with session(node_options, node) as own:
            reply = await own.call((name, node), term, timeout=timeout)
        answer(reply, node, as_json=as_json)

    run(main(), as_json=as_json)


@tumen.command()
@click.argument("node", type=NodeName())
@click.argument("module", type=Name())
@click.argument("function", type=Name())
@click.argument("args", type=ArgumentList(), default="[]")
@node_options
@common_options
def rpc(
    node: str,
    module: str,
    function: str,
    args: list[Any],
    node_options: NodeOptions,
    timeout: float,
    as_json: bool,
) -> None:
    """erpc:call(NODE, MODULE, FUNCTION, ARGS); ARGS is a list, [] when left out.

    Example: tumen rpc app@127.0.0.1 lists seq '[1, 5]'
    """

    async def main() -> None:
        async with session(node_options, node) as own:
            result = await own.rpc(node, module, function, args, timeout=timeout)
        answer(result, node, as_json=as_json)

    run(main(), as_json=as_json)


@tumen.command()
@click.argument("host", default="127.0.0.1")
@click.option("--epmd-port", type=click.IntRange(1, 65535), help="Port of the port mapper.")
@common_options
def names(host: str, epmd_port: int | None, timeout: float, as_json: bool) -> None:
    """Lists the nodes that the port mapper of HOST knows, with their ports."""

    async def main() -> None:
        found = await mapper_names(host, epmd_port, timeout)
        if as_json:
            listed = [{"name": name, "port": port} for name, port in found]
            click.echo(json.dumps({"ok": True, "host": host, "names": listed}))
        else:
            for name, port in found:
                click.echo(f"{name}\t{port}")

    run(main(), as_json=as_json)


@tumen.command()
@click.option("--address", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--epmd-port", type=click.IntRange(1, 65535), help="[default: ERL_EPMD_PORT, else 4369]"
)
@json_option
def epmd(address: str, epmd_port: int | None, as_json: bool) -> None:
    """Serves the port mapper in the foreground, for OTP's nodes too, until a signal comes."""

    def ready(address: str, port: int, backend: str) -> None:
        if as_json:
            report = {"ready": True, "address": address, "port": port, "backend": backend}
            click.echo(json.dumps(report))
        else:
            click.echo(f"port mapper on {address} port {port}, {backend}")
        sys.stdout.flush()

    run(mapper_serve(address, epmd_port, ready), as_json=as_json)


@tumen.command()
@click.argument("app", metavar="MODULE_OR_FILE[:APP]")
@node_options
@click.option("--drain-seconds", type=click.FloatRange(0), default=20.0, show_default=True,
              help="For what is under way when a signal comes.")  # fmt: skip
@json_option
def serve(app: str, node_options: NodeOptions, drain_seconds: float, as_json: bool) -> None:
    """Runs an App until SIGINT or SIGTERM.

    The App is the object of that name in a module or a file of Python: tumen serve counter.py:app.
    Without a name it is `app`, or the only one there is. The node is named after the module, on
    127.0.0.1, unless --name says otherwise. At the first signal the node leaves its process groups,
    finishes what it was asked for, stops the servers (their terminate runs) and hands over what is
    queued; the second one ends the process at once.
    """
    from .serve import serve_app  # noqa: PLC0415 - starts faster without

    def ready(report: dict[str, Any]) -> None:
        if as_json:
            click.echo(json.dumps({"ready": True, **report}))
        else:
            click.echo(
                "ready {node} port {port}, {visibility}, backend {backend} ({why})".format(**report)
            )
        sys.stdout.flush()

    run(serve_app(app, node_options, ready, drain_seconds), as_json=as_json)


@tumen.command()
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True,
              help="Of mixed traffic.")  # fmt: skip
@click.option("--require-beam", is_flag=True, help="Fail unless a BEAM joined.")
@click.option("--no-beam", is_flag=True, help="Python nodes alone, even where erl is installed.")
@click.option("--backend", type=click.Choice(["auto", "uring", "epoll"]), default=None,
              help="I/O of all Python nodes.  [default: TUMEN_BACKEND, else auto]")  # fmt: skip
@json_option
def demo(
    seconds: float, require_beam: bool, no_beam: bool, backend: str | None, as_json: bool
) -> None:
    """Shows a cluster at work, and checks every answer.

    Two Python processes, and a BEAM where erl is on the path (another one in TUMEN_OTP28_ROOT):
    pings, calls both ways, a crash seen from outside, a connection cut and restored, then mixed
    traffic with a ledger. It uses a port mapper and a cookie of its own and meets no other cluster.
    """
    if require_beam and no_beam:
        raise click.UsageError("--require-beam and --no-beam exclude each other")
    from .demo import Plan, run_demo  # noqa: PLC0415 - starts faster without
    from .screen import screen_for  # noqa: PLC0415

    plan = Plan(seconds=seconds, beam=not no_beam, require_beam=require_beam, backend=backend)

    async def main() -> None:
        with screen_for(as_json=as_json) as screen:
            succeeded = await run_demo(plan, screen)
        if not succeeded:
            raise SystemExit(int(Code.FAILED))

    run(main(), as_json=as_json)


if BENCH.is_file() and Path("src/tumen").is_dir():

    @tumen.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
    @click.argument("args", nargs=-1, type=click.UNPROCESSED)
    def bench(args: tuple[str, ...]) -> None:
        """Runs bench/run.py of this checkout with ARGS: every figure beside its opponents."""
        with contextlib.suppress(KeyboardInterrupt):
            done = subprocess.run([sys.executable, os.fspath(BENCH), *args], check=False)
            raise SystemExit(done.returncode)
        raise SystemExit(int(Code.INTERRUPTED))
