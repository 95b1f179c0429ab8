"""Terms as text in Erlang's syntax."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies
from strategies import same
from tumen import Atom, BitString, Export, Fun, ImproperList, Pid, Port, Reference, TermMap
from tumen.cli.syntax import (
    DEPTH_MAX,
    SEGMENT_BITS_MAX,
    TermSyntaxError,
    format_term,
    parse_name,
    parse_term,
    plain,
)

# What has a text that another node can read; pids and their like have none.
leaves = st.one_of(
    st.none(),
    st.booleans(),
    strategies.integers,
    strategies.floats,
    strategies.atoms,
    st.binary(max_size=20),
    st.text(max_size=12).map(lambda text: text.encode("utf-8", "replace")),
    strategies.bit_strings,
    strategies.exports,
)


def containers(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    tails = parts.filter(lambda tail: not isinstance(tail, (list, ImproperList)))
    return st.one_of(
        st.lists(parts, max_size=5),
        st.lists(st.integers(0, 0x10FFFF), max_size=9),
        st.lists(parts, max_size=5).map(tuple),
        st.builds(ImproperList, st.lists(parts, min_size=1, max_size=3), tails),
        st.lists(st.tuples(parts, parts), max_size=4).map(strategies.unique_map),
    )


writable = st.recursive(leaves, containers, max_leaves=20)

READ = [
    ("ok", Atom("ok")),
    ("  ok . ", Atom("ok")),
    ("a@b_C1", Atom("a@b_C1")),
    ("élan", Atom("élan")),
    ("'Elixir.ML'", Atom("Elixir.ML")),
    ("''", Atom("")),
    (r"'a\'b\n\x{3bb}'", Atom("a'b\nλ")),
    ("true", True),
    ("'false'", False),
    ("nil", None),
    ("undefined", Atom("undefined")),
    ("0", 0),
    ("-42", -42),
    ("- 42", -42),
    ("+7", 7),
    ("1_000_000", 1_000_000),
    ("16#FF", 255),
    ("16#ff_00", 0xFF00),
    ("-2#101", -5),
    ("36#Zz", 35 * 36 + 35),
    ("$a", 97),
    ("$\\n", 10),
    ("$\\^A", 1),
    ("$ ", 32),
    ("$λ", 955),
    ("1.5", 1.5),
    ("-0.0", -0.0),
    ("1.0e3", 1000.0),
    ("2.5E-3", 0.0025),
    ("1_0.2_5", 10.25),
    ('""', []),
    ('"abc"', [97, 98, 99]),
    ('"a" "b"', [97, 98]),
    (r'"\x41\x{1F600}\101\s\e\""', [0x41, 0x1F600, 0o101, 32, 27, 34]),
    ("<<>>", b""),
    ('<<"abc">>', b"abc"),
    ('<<"\xe9">>', b"\xe9"),
    ('<<"grüß"/utf8>>', "grüß".encode()),
    ("<<$a/utf8, 955/utf8>>", "aλ".encode()),
    ("<<1, 2,255>>", b"\x01\x02\xff"),
    ("<<-1>>", b"\xff"),
    ('<<"ab", 0, "c">>', b"ab\0c"),
    ("<<258:16>>", b"\x01\x02"),
    ("<<1:1>>", BitString(b"\x80", 1)),
    ("<<1,2,3:4>>", BitString(b"\x01\x02\x30", 4)),
    ("<<1:4, 2:4>>", b"\x12"),
    ("<<0:0>>", b""),
    ("{}", ()),
    ("{a, 1}", (Atom("a"), 1)),
    ("[]", []),
    ("[1,[2,[]]]", [1, [2, []]]),
    ("[a|b]", ImproperList([Atom("a")], Atom("b"))),
    ("[a|[b, c]]", [Atom("a"), Atom("b"), Atom("c")]),
    ("[a|[b|c]]", ImproperList([Atom("a"), Atom("b")], Atom("c"))),
    ("#{}", {}),
    ("#{a => 1, <<>> => []}", {Atom("a"): 1, b"": []}),
    ("#{1 => a, 1.0 => b}", TermMap([(1, Atom("a")), (1.0, Atom("b"))])),
    ("#{true => a, 1 => b}", TermMap([(True, Atom("a")), (1, Atom("b"))])),
    ("#{[k] => v}", TermMap([([Atom("k")], Atom("v"))])),
    ("fun lists:seq/2", Export("lists", "seq", 2)),
    ("fun 'Elixir.Enum' : map / 2", Export("Elixir.Enum", "map", 2)),
    ("% a comment\n{a, % another\n b}", (Atom("a"), Atom("b"))),
]  # fmt: skip

REFUSED = [
    ("", 0, "a term was expected, and here is the end"),
    ("  ", 2, "a term was expected, and here is the end"),
    ("{a,", 3, "a term was expected, and here is the end"),
    ("{a", 2, "'}' was expected at the end of the tuple, and here is the end"),
    ("{a b}", 3, "'}' was expected at the end of the tuple, not 'b'"),
    ("[1,2", 4, "']' was expected"),
    ("[|a]", 1, "a term was expected, not '|'"),
    ("[a|b|c]", 4, "']' was expected after the tail"),
    ("a b", 2, "one term was expected, and here is more"),
    ("a..", 2, "one term was expected"),
    ("Var", 0, "a variable has no value here"),
    ("_", 0, "a variable has no value here"),
    ("end", 0, "end is a reserved word"),
    ("{ok, <0.1.0>}", 5, "a pid cannot be written as text"),
    ("#Pid<a@b.1.2>", 0, "a pid cannot be written as text"),
    ("#Ref<0.1.2>", 0, "a ref cannot be written as text"),
    ("#Fun<a.1.2>", 0, "a fun cannot be written as text"),
    ("#record{}", 0, "a map is written"),
    ("#{a -> 1}", 4, "'=>' was expected between key and value"),
    ("#{a => 1, a => 2}", 0, "the same key twice"),
    ("#{a => 1", 8, "'}' was expected at the end of the map"),
    ("fun() -> ok end", 3, "only external funs can be written"),
    ("fun a:b", 7, "'/' was expected"),
    ("fun a:b/256", 0, "an arity is from 0 to 255"),
    ("fun a:b/x", 8, "an arity was expected"),
    ('"abc', 0, 'the closing " is missing'),
    ("'abc", 0, "the closing ' is missing"),
    ('"\\x{110000}"', 1, "not a Unicode character"),
    ('"\\x{d800}"', 1, "not a Unicode character"),
    ('"\\xZ"', 1, "an escape was expected"),
    ("$", 1, "a character was expected after $"),
    ("-a", 1, "digits were expected"),
    ("1.5e999", 0, "too large for a float"),
    ("1#0", 0, "a base is from 2 to 36"),
    ("2#12", 0, "not a number in base 2"),
    ("9" * 5000, 0, "too long: write it as 16#"),
    ("<<300>>", 2, "300 does not fit into 8 bits"),
    ("<<8:3>>", 2, "8 does not fit into 3 bits"),
    ("<<-5:3>>", 2, "-5 does not fit into 3 bits"),
    ("<<1.5>>", 2, "floats are not written as segments"),
    ("<<a>>", 2, "a segment was expected"),
    ("<<1", 3, "'>>' was expected"),
    ("<<1,>>", 4, "a segment was expected"),
    ('<<"λ">>', 2, "characters above 255 need"),
    ("<<1/float>>", 4, "of the segment types only utf8"),
    ("<<16#110000/utf8>>", 2, "not a Unicode character"),
    ("'" + "a" * 256 + "'", 258, "an atom has at most 255 characters"),
    ("٣", 0, "a term was expected"),
    ("\0", 0, "a term was expected"),
]


@pytest.mark.parametrize(("text", "term"), READ, ids=[text for text, _ in READ])
def test_parse_reads_what_erlang_reads(text: str, term: Any) -> None:
    found = parse_term(text)
    assert same(found, term)
    assert type(found) is type(term)


@pytest.mark.parametrize(
    ("text", "position", "reason"), REFUSED, ids=[text[:20] for text, _, _ in REFUSED]
)
def test_parse_refuses_with_the_place_and_a_reason(text: str, position: int, reason: str) -> None:
    with pytest.raises(TermSyntaxError) as caught:
        parse_term(text)
    assert reason in caught.value.reason
    assert caught.value.position == position


def test_the_error_shows_line_and_caret() -> None:
    with pytest.raises(TermSyntaxError) as caught:
        parse_term("{a,\n  b c}")
    message = "line 2, column 5: '}' was expected at the end of the tuple, not 'c'"
    assert str(caught.value) == f"{message}\n    b c}}\n      ^"


def test_the_error_shows_a_part_of_a_long_line_with_the_caret_under_it() -> None:
    with pytest.raises(TermSyntaxError) as caught:
        parse_term("[" + "a," * 500 + "B" + ",c" * 500 + "]")
    _, line, caret = str(caught.value).split("\n")
    assert len(line) < 80
    assert line[caret.index("^")] == "B"


def test_nesting_is_bounded() -> None:
    parse_term("[" * DEPTH_MAX + "]" * DEPTH_MAX)
    with pytest.raises(TermSyntaxError, match="nested deeper"):
        parse_term("[" * 100_000)


def test_a_segment_cannot_ask_for_gigabytes() -> None:
    assert len(parse_term(f"<<0:{SEGMENT_BITS_MAX}>>")) * 8 == SEGMENT_BITS_MAX
    with pytest.raises(TermSyntaxError, match="a segment has from 0 to"):
        parse_term("<<0:99999999999>>")


def read_or_refuse(text: str) -> None:
    refused_at = 0
    try:
        parse_term(text)
    except TermSyntaxError as error:
        refused_at = error.position
    assert 0 <= refused_at <= len(text)


@given(st.text(max_size=40))
def test_any_text_is_a_term_or_a_syntax_error(text: str) -> None:
    read_or_refuse(text)


@given(st.text(alphabet="{}[]<>|,.#=:/'\"\\$%+-_0123456789abexfunAZ \n", max_size=30))
def test_any_text_of_erlangs_signs_is_a_term_or_a_syntax_error(text: str) -> None:
    read_or_refuse(text)


@given(writable)
def test_what_is_printed_reads_back_as_the_same_term(term: Any) -> None:
    text = format_term(term)
    assert "\n" not in text
    assert same(parse_term(text), term)


PRINTED = [
    (Atom("ok"), "ok"),
    (Atom("Ok"), "'Ok'"),
    (Atom("end"), "'end'"),
    (Atom("it's\n"), r"'it\'s\n'"),
    (Atom("a\0\x80"), r"'a\x{0}\x{80}'"),
    (True, "true"),
    (None, "nil"),
    (1.0, "1.0"),
    (1e16, "1.0e16"),
    (5e-324, "5.0e-324"),
    (-0.0, "-0.0"),
    (16**4000, "16#1" + "0" * 4000),
    (b"", "<<>>"),
    (b"abc", '<<"abc">>'),
    ("grüß".encode(), '<<"grüß"/utf8>>'),
    ("grüß", '<<"grüß"/utf8>>'),
    (b"\xff\0", "<<255,0>>"),
    (memoryview(b"ab"), '<<"ab">>'),
    (BitString(b"\x01\x30", 4), "<<1,3:4>>"),
    (BitString(b"\x01", 8), "<<1>>"),
    ([104, 105], '"hi"'),
    ([1, 2], "[1,2]"),
    ([True], "[true]"),
    ([], "[]"),
    ([-1, 104], "[-1,104]"),
    (ImproperList([1], Atom("t")), "[1|t]"),
    ({Atom("a"): (1, {})}, "#{a => {1,#{}}}"),
    (TermMap([(1, b"x"), (1.0, [])]), '#{1 => <<"x">>,1.0 => []}'),
    (Export("lists", "seq", 2), "fun lists:seq/2"),
    (Pid("a@h", 1, 2, 3), "#Pid<a@h.1.2>"),
    (Port("a@h", 7, 3), "#Port<a@h.7>"),
    (Reference("a@h", 3, [1, 2]), "#Ref<a@h.1.2>"),
]


@pytest.mark.parametrize(("term", "text"), PRINTED, ids=[text[:20] for _, text in PRINTED])
def test_print_writes_what_erlang_writes(term: Any, text: str) -> None:
    assert format_term(term) == text


def test_print_shows_a_local_fun_for_people() -> None:
    fun = Fun(
        b"\x70\x00\x00\x00\x3b\x01" + bytes(16) + b"\x00\x00\x00\x05\x00\x00\x00\x00"
        b"\x77\x01m\x61\x05\x61\x09\x58\x77\x01n" + bytes(12)
    )
    assert format_term(fun).startswith("#Fun<m.5.")


def test_print_refuses_what_is_no_term() -> None:
    with pytest.raises(TypeError, match="object is no term"):
        format_term([object()])


def test_print_follows_nesting_beyond_the_stack_of_python() -> None:
    term: Any = []
    for _ in range(20_000):
        term = (term,)
    assert format_term(term) == "{" * 20_000 + "[]" + "}" * 20_000


@pytest.mark.parametrize(
    ("text", "name"), [("lists", "lists"), ("Elixir.ML", "Elixir.ML"), ("'a b'", "a b")]
)
def test_a_name_needs_no_quotes(text: str, name: str) -> None:
    assert parse_name(text) == name


@pytest.mark.parametrize("text", ["", "'a", "'a'b"])
def test_a_name_refuses_half_quotes(text: str) -> None:
    with pytest.raises(TermSyntaxError):
        parse_name(text)


@pytest.mark.parametrize(
    ("term", "value"),
    [
        ((Atom("ok"), [1, 2.5, True, None]), ["ok", [1, 2.5, True, None]]),
        ([104, 105], "hi"),
        ("grüß".encode(), "grüß"),
        (b"\xff", "<<255>>"),
        ({Atom("a"): 1, b"b": 2, 3: 4, (5,): 6}, {"a": 1, "b": 2, "3": 4, "{5}": 6}),
        (Pid("a@h", 1, 2, 3), "#Pid<a@h.1.2>"),
        (ImproperList([1], 2), "[1|2]"),
    ],
)
def test_plain_data_for_scripts(term: Any, value: Any) -> None:
    assert plain(term) == value
