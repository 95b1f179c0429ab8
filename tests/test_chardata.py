"""Text as Erlang hands it around, and what is plain in its format strings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tumen import Atom, ImproperList
from tumen.chardata import chardata_text, plain_format, shown


def pieces(text: str) -> st.SearchStrategy[Any]:
    """Chardata of a text: characters, binaries and lists of such, cut anywhere."""

    def build(cuts: list[tuple[int, int]]) -> Any:
        data, parts, at = text.encode(), [], 0
        for length, kind in cuts:
            chunk = data[at : at + length]
            at += length
            try:
                chars = chunk.decode()
            except UnicodeDecodeError:
                parts.append(chunk)  # a character cut in two
                continue
            parts.append(
                [chunk, [ord(char) for char in chars], [[chunk], []], ImproperList([[]], chunk)][
                    kind
                ]
            )
        return [*parts, data[at:]]

    cut = st.tuples(st.integers(0, 5), st.integers(0, 3))
    return st.lists(cut, max_size=20).map(build)


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30).flatmap(
        lambda text: st.tuples(st.just(text), pieces(text))
    )
)
def test_chardata_is_the_text_however_it_is_cut(example: tuple[str, Any]) -> None:
    text, chars = example
    assert chardata_text(chars) == text


def test_latin1_data_is_bytes_as_characters() -> None:
    assert chardata_text(b"\xe4\xff", latin1=True) == "äÿ"
    assert chardata_text([0xE4, [b"\xff"]], latin1=True) == "äÿ"
    with pytest.raises(ValueError, match="latin-1"):
        chardata_text([0x100], latin1=True)


@pytest.mark.parametrize(
    "chars",
    [
        Atom("x"),
        (1, 2),
        None,
        1,
        [-1],
        [0xD800],
        [0x110000],
        [10**30],
        [1.0],
        [True],
        [Atom("x")],
        [(1,)],
        b"\xff",
        [b"\xc3"],
        [b"\xc3", 65],
        ImproperList([65], 66),
        ImproperList([65], Atom("x")),
    ],
)
def test_what_is_no_chardata_is_refused(chars: Any) -> None:
    with pytest.raises(ValueError):
        chardata_text(chars)


def test_depth_of_a_list_is_no_matter() -> None:
    chars: Any = b"x"
    for _ in range(100_000):
        chars = [chars]
    assert chardata_text(chars) == "x"
    while type(chars) is list:
        chars = chars[0]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([b"a~n~~b", []], "a\n~b"),
        ([list(b"a~n"), []], "a\n"),
        ([Atom("a~n"), []], "a\n"),
        ([[], []], ""),
        ([b"~p", []], None),
        ([b"~5n", []], None),
        ([b"~", []], None),
        ([b"a", [1]], None),
        ([b"a"], None),
        ([1, []], None),
        ([b"\xff", []], None),
        (Atom("x"), None),
    ],
)
def test_only_formats_without_arguments_are_plain(args: Any, text: str | None) -> None:
    assert plain_format(args) == text


def test_terms_are_shown_in_bounds() -> None:
    assert shown(list(b"text")) == "text"
    assert shown((1, Atom("x"))) == "(1, Atom('x'))"
    assert len(shown(b"x" * 1_000_000)) < 20_000
