"""Grammars: what the parser takes and refuses, and what a text has left of one. Without llama.cpp."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from grammar_texts import LETTERS, Node, grammar_of, grammars, random_text
from headpond_workers.engines.grammar.gbnf import ANY, GrammarError, matches, normalised
from headpond_workers.engines.grammar.gbnf_ambiguity import refuse_explosive
from headpond_workers.engines.grammar.gbnf_parser import parse
from headpond_workers.engines.grammar.gbnf_state import GrammarState, TooAmbiguous, program_of
from headpond_workers.engines.grammar.gbnf_writable import restricted, unwritable

relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)


def state_of(grammar: str) -> GrammarState:
    return GrammarState(program_of(parse(grammar)))


def accepts(grammar: str, text: str) -> bool:
    state = state_of(grammar)
    return state.advance(text) and state.may_end


# What a grammar says


@pytest.mark.parametrize(
    ("grammar", "yes", "no"),
    [
        ('root ::= "yes" | "no"', ["yes", "no"], ["", "y", "yesno"]),
        ("root ::= [a-c]+", ["a", "abcabc"], ["", "d"]),
        ("root ::= [^a-c]{2}", ["dd", "\u65e5z"], ["d", "da", "ddd"]),
        ("root ::= . [-a] [a-] [a\\-z] []a]?", [], []),
        ("root ::= [-a]", ["-", "a"], ["b"]),
        ("root ::= [a-]", ["-", "a"], ["b"]),
        ("root ::= [a\\-z]", ["-", "a", "z"], ["b"]),
        ("root ::= [\\]]", ["]"], ["\\"]),
        ('root ::= "\\x41\\u00e9\\U0001F600\\t\\n\\r\\\\\\""', ['A\u00e9\U0001f600\t\n\r\\"'], ["A"]),
        ("root ::= . .", ["ab", "\n\U0010ffff"], ["a", "abc"]),
        ('root ::= "a"{2,3} "b"{1,} "c"{0,1} "d"{ 2 }', ["aabdd", "aaabbbcdd"], ["abdd", "aaaabdd", "aadd", "aabd"]),
        ('root ::= "ab"*', ["", "abab"], ["a", "aba"]),
        ('root ::= "a" # remark "b"\n # another\n  "c"', [], []),
        ('root ::= (\n "a" # remark\n | # and one more\n "b"\n)', ["a", "b"], ["ab"]),
        ('root ::=\n "a" |\n "b"\r\nother ::= "x"', ["a", "b"], ["x"]),
        ('root ::= item ("," item)*\nitem ::= "(" root ")" | [0-9]', ["1", "1,2", "(1,(2)),3"], ["", "1,", "(1"]),
        ('root ::= "" | "a"', ["", "a"], ["aa"]),
        ('root ::= ("a" | )', ["", "a"], ["aa"]),
        ('root ::= "a"? "a"? "b"', ["b", "ab", "aab"], ["aaab"]),
        ('root ::= ("a"*)"b"', ["b", "aab"], ["a"]),
        ("root-2 ::= [x]\nroot ::= root-2", ["x"], ["y"]),
    ],
)
def test_a_grammar_admits_what_it_says(grammar: str, yes: list[str], no: list[str]) -> None:
    if not yes:  # llama.cpp ends a rule at its line, and a class at its first bracket
        with pytest.raises(GrammarError):
            parse(grammar)
    for text in yes:
        assert accepts(grammar, text), text
    for text in no:
        assert not accepts(grammar, text), text


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("", "no rule 'root'"),
        ('other ::= "a"', "no rule 'root'"),
        ("root ::= other", "'other', which it does not define"),
        ('root ::= "a"\nroot ::= "b"', "defined twice"),
        ('root = "a"', "line 1, column 6: '::=' is expected"),
        ('root ::= "a', "ends amid a literal"),
        ("root ::= [a", "ends amid a literal or a class"),
        ("root ::= []", "no character can stand here"),
        ('root ::= "\\x00"', "no character can stand here"),
        ("root ::= [\\uD800-\\uDFFF]", "no character can stand here"),
        ("root ::= [z-a]", "ends before it begins"),
        ('root ::= "a"{3,2}', "ends before it begins"),
        ('root ::= "a"{,2}', "a number"),
        ('root ::= "a"{2', "'}' is expected"),
        ('root ::= "a"{5000}', "the limit is 4096"),
        ('root ::= "a"{99999999999}', "at most 9 digits"),
        ('root ::= "a"{4000}{4000}', "more than 32768 elements"),
        ("root ::= " + "(" * 100 + '"a"' + ")" * 100, "nested deeper than 64"),
        ("root ::= (" * 30_000, "is expected"),
        ('root ::= ("a"', "'\\)' is expected"),
        ('root ::= "a")', "end of the line is expected"),
        ("root ::= *", "nothing before '\\*'"),
        ('root ::= "\\q"', "no escape of GBNF"),
        ('root ::= "\\u00"', "4 hex digits"),
        ('root ::= "\\UFFFFFFFF"', "no character FFFFFFFF"),
        ("root ::= <[12]>", "tokens"),
        ("root ::= !<think>", "tokens"),
        ("%llguidance {}\nstart: /a/", "name of a rule"),
        ('root ::= root "a" | "b"', "'root' can begin with itself"),
        ('root ::= a\na ::= b? c\nb ::= "x"\nc ::= root', "can begin with itself"),
        ('root ::= ("a"?)* "b"', "can begin with itself"),
        ("root ::= empty root\nempty ::= other\nother ::= ", "can begin with itself"),
        ("\n".join(f'r{n} ::= "a"' for n in range(17_000)), "more than 16384 rules"),
    ],
)
def test_what_is_no_grammar_is_refused_with_its_place(grammar: str, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason):
        parse(grammar)


def test_characters_are_kept_in_order_without_overlaps_surrogates_and_nul() -> None:
    assert normalised([(5, 9), (0, 2), (3, 4), (8, 12)]) == ((1, 12),)
    assert normalised([(0xD000, 0xE000)]) == ((0xD000, 0xD7FF), (0xE000, 0xE000))
    assert normalised([(1, 0x10FFFF)], negated=True) == ()
    assert ANY == ((1, 0xD7FF), (0xE000, 0x10FFFF))
    assert [matches(((5, 9), (20, 20)), at) for at in (4, 5, 9, 10, 20, 21)] == [False, True, True, False, True, False]


# What a text has left


@pytest.mark.slow
@relaxed
@given(grammars, st.text(st.sampled_from(LETTERS + "()"), max_size=8))
def test_a_state_says_what_a_recogniser_of_another_kind_says(node: Node, text: str) -> None:
    try:
        refuse_explosive(parse(grammar_of(node)))
    except GrammarError as error:
        assume("begin with itself" not in str(error) and not isinstance(error, TooAmbiguous))
        raise
    state = state_of(grammar_of(node))
    assert (state.advance(text) and state.may_end) == node.accepts(text)


@pytest.mark.slow
@settings(relaxed, max_examples=40)
@given(grammars, st.integers(0, 1000), st.text(st.sampled_from(LETTERS + "()"), max_size=4))
def test_a_text_fits_what_is_left_if_it_fits_the_whole_behind_the_text_so_far(
    node: Node, seed: int, other: str
) -> None:
    try:
        grammar = parse(grammar_of(node))
        refuse_explosive(grammar)
        program = program_of(grammar)
    except GrammarError:
        assume(False)
    text = random_text(GrammarState(program), seed, most=15)
    for cut in range(len(text) + 1):
        state = GrammarState(program)
        assert state.advance(text[:cut])
        left = program_of(parse(state.residual()))
        for rest in (text[cut:], other, text[cut:] + other):
            again = GrammarState(left)
            assert (again.advance(rest) and again.may_end) == node.accepts(text[:cut] + rest)


def test_a_residual_has_a_residual() -> None:
    grammar = 'root ::= "[" (item ("," item)*)? "]"\nitem ::= [0-9]{1,3} | root'
    text = "[1,[22,[]],333,[4]]"
    state = state_of(grammar)
    for character in text:
        assert not state.may_end
        assert state.advance(character)
        state = state_of(state.residual())
    assert state.is_complete


def test_a_text_that_does_not_fit_changes_nothing() -> None:
    state = state_of('root ::= "ab" "c"?')
    assert state.advance("a")
    assert not state.advance("bd")
    assert state.advance("b")
    assert (state.may_end, state.is_complete) == (True, False)
    assert state.advance("c")
    assert state.is_complete
    assert not state.advance("c")


# Too many ways


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= (" " | " ")*',
        'root ::= "a" root "b" | "a" root "c" | "d"',
        'root ::= ("a" | "aa")* "b"',
        'root ::= "deep in it" other\nother ::= "x" (other "y" | other "z" | "w")',
        "root ::= " + " ".join('("a" | "a")' for _ in range(40)),
    ],
)
def test_a_grammar_whose_ways_double_is_refused(grammar: str) -> None:
    with pytest.raises(TooAmbiguous):
        refuse_explosive(parse(grammar))


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= " "* " "* "a"',
        "root ::= " + " | ".join(f'"{n}"' for n in range(900)),
        "root ::= [a-z]{0,4000}",
        'root ::= "[" (root ("," root)*)? "]"',
    ],
)
def test_a_grammar_with_some_ways_is_not(grammar: str) -> None:
    refuse_explosive(parse(grammar))
    assert state_of(grammar) is not None


def test_more_ways_than_a_state_may_hold_are_refused_when_a_text_comes_there() -> None:
    with pytest.raises(TooAmbiguous, match="1024 ways"):
        state_of("root ::= " + " | ".join(f'"{n}"' for n in range(1100)))
    state = state_of('root ::= "x" root "y" | "x" root "z" | "w"')
    with pytest.raises(TooAmbiguous):
        state.advance("x" * 12)


def test_a_deep_text_is_followed_without_recursion() -> None:
    state = state_of('root ::= "[" root? "]"')
    assert state.advance("[" * 20_000)
    assert len(state.residual()) > 20_000
    assert state.advance("]" * 20_000)
    assert state.is_complete


# Characters that a vocabulary cannot write


def test_a_grammar_asks_for_no_character_that_the_vocabulary_lacks() -> None:
    every = [bytes([byte]) for byte in range(256)]
    assert unwritable([*every, b"ab", b""]) == ()
    lacks = [piece for piece in every if piece not in (b"\x04", b"\xc3", b"\xe0", b"\xf1")]
    assert unwritable(every[:0x80]) == normalised([(0x80, 0x10FFFF)])
    without = unwritable(lacks)
    assert [matches(without, ord(c)) for c in "\x04\x05\u00e9\u0080\u0905\u1000\U00040000\U0001f600"] == [
        True, False, True, False, True, False, True, False,
    ]  # fmt: skip
    grammar = restricted(parse("root ::= . [^a] [\u00e8-\u0101]"), without)
    for classes in grammar.rules[0][0]:
        assert isinstance(classes, tuple)
        assert not any(matches(classes, ord(c)) for c in "\x04\u00e9\u0905\U00040000\ud800\x00")
    with pytest.raises(GrammarError, match=r"no tokens that write the character U\+0004"):
        restricted(parse('root ::= "a\\x04"'), without)
