"""Limits, cookies and the other things a node starts with."""

from __future__ import annotations

from pathlib import Path

import pytest

import tumen
from tumen.options import backend_choice, cookie_find, cookie_weakness, epmd_choice


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory without a cookie, and nothing of ours in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("TUMEN_COOKIE", "RELEASE_COOKIE", "XDG_CONFIG_HOME", "TUMEN_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("ERL_EPMD_PORT", raising=False)
    monkeypatch.delenv("ERL_EPMD_ADDRESS", raising=False)
    return tmp_path


def write_cookie(path: Path, text: str, mode: int = 0o400) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def test_cookie_comes_from_argument_then_environment_then_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cookie(home / ".config" / "erlang" / ".erlang.cookie", "config\n")
    assert cookie_find(None) == "config"
    write_cookie(home / ".erlang.cookie", "home")
    assert cookie_find(None) == "home"
    monkeypatch.setenv("RELEASE_COOKIE", "release")
    assert cookie_find(None) == "release"
    monkeypatch.setenv("TUMEN_COOKIE", "tumen")
    assert cookie_find(None) == "tumen"
    assert cookie_find("argument") == "argument"


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o640, 0o666, 0o420])
def test_cookie_file_that_others_may_touch_is_refused(home: Path, mode: int) -> None:
    path = home / ".erlang.cookie"
    write_cookie(path, "secret-of-the-file", mode)
    with pytest.raises(tumen.AuthError) as caught:
        cookie_find(None)
    assert str(path) in str(caught.value)
    assert f"{mode:04o}" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_missing_or_empty_cookie_is_an_error(home: Path) -> None:
    with pytest.raises(tumen.AuthError, match="no cookie"):
        cookie_find(None)
    with pytest.raises(tumen.AuthError, match="empty"):
        cookie_find("")
    write_cookie(home / ".erlang.cookie", "\n")
    with pytest.raises(tumen.AuthError, match="empty"):
        cookie_find(None)


@pytest.mark.parametrize(
    ("cookie", "weak"),
    [
        ("short", True),
        ("long-enough-to-be-fine", False),
        ("long-enough-but-digit-7", True),
        ("KWQZJXNVBTFHRMPLSDGC", False),
    ],
)
def test_weak_cookies_are_told_apart(cookie: str, weak: bool) -> None:
    assert (cookie_weakness(cookie) is not None) == weak


def test_backend_comes_from_argument_then_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend_choice(None) == "auto"
    monkeypatch.setenv("TUMEN_BACKEND", "epoll")
    assert backend_choice(None) == "epoll"
    assert backend_choice("uring") == "uring"
    with pytest.raises(ValueError, match="kqueue"):
        backend_choice("kqueue")


def test_port_mapper_is_where_erlang_looks_for_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert epmd_choice(None, None) == (None, 0)
    monkeypatch.setenv("ERL_EPMD_PORT", "4711")
    monkeypatch.setenv("ERL_EPMD_ADDRESS", "127.0.0.2, 127.0.0.3")
    assert epmd_choice(None, None) == ("127.0.0.2", 4711)
    assert epmd_choice("127.0.0.9", 4712) == ("127.0.0.9", 4712)
    monkeypatch.setenv("ERL_EPMD_PORT", "many")
    with pytest.raises(ValueError, match="ERL_EPMD_PORT"):
        epmd_choice(None, None)
    with pytest.raises(ValueError, match="70000"):
        epmd_choice(None, 70_000)


def test_limits_are_positive_whole_numbers_with_known_names() -> None:
    assert tumen.Limits(depth_max=5).depth_max == 5
    for value in (0, -1, 1.5, True, "1"):
        with pytest.raises(ValueError, match="depth_max"):
            tumen.Limits(depth_max=value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dept_max"):
        tumen.Limits().replace(dept_max=3)


def test_options_do_not_show_the_cookie() -> None:
    node = tumen.Node("a@b", cookie="very-secret-cookie", epmd=None)
    assert "secret" not in repr(node)
    assert "secret" not in repr(node._options)


@pytest.mark.asyncio
async def test_node_cannot_promise_what_it_cannot_keep() -> None:
    async with tumen.Node("a@127.0.0.1", cookie="a-cookie-of-the-tests", epmd=None):
        pass
    node = tumen.Node("a@127.0.0.1", cookie="a-cookie-of-the-tests", epmd=None, flags=1 << 60)
    with pytest.raises(ValueError, match="starting node"):
        await node.start()
