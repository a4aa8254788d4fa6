"""Text from tokens: nothing is lost, nothing leaks, and a resumed sequence reads as an undisturbed one."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headpond_workers.detokenizer import Detokenizer, Released

characters = st.sampled_from("ab\N{LATIN SMALL LETTER E WITH ACUTE}\N{EURO SIGN}\N{WATER WAVE}\n<>")
texts = st.text(characters, max_size=40)
stops = st.lists(st.text(characters, min_size=1, max_size=5), max_size=3).map(tuple)


@dataclass
class Vocabulary:
    """Tokens of any bytes: an id is a place in the list."""

    tokens: list[bytes] = field(default_factory=list)

    def __call__(self, token_id: int) -> bytes:
        return self.tokens[token_id]

    @property
    def ids(self) -> list[int]:
        return list(range(len(self.tokens)))


@st.composite
def tokenized(draw: st.DrawFn) -> Vocabulary:
    """A text cut into tokens anywhere, also amid characters, with empty tokens between."""
    data = draw(texts).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=30)))
    return Vocabulary([data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)])


@st.composite
def with_stops(draw: st.DrawFn) -> tuple[Vocabulary, tuple[str, ...]]:
    """Stop strings that are often part of the text."""
    vocabulary = draw(tokenized())
    text = b"".join(vocabulary.tokens).decode()
    parts: list[str] = []
    for _ in range(draw(st.integers(0, 2)) if text else 0):
        start = draw(st.integers(0, len(text) - 1))
        parts.append(text[start : start + draw(st.integers(1, 6))])
    return vocabulary, (*parts, *draw(stops))


def cut_at_first_stop(vocabulary: Vocabulary, stop: Sequence[str]) -> tuple[str, bool]:
    """The answer as it must read: up to the stop string that the first possible token completed."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    for token in vocabulary.tokens:
        text += decoder.decode(token)
        found = [at for at in (text.find(s) for s in stop) if at >= 0]
        if found:
            return text[: min(found)], True
    return text, False


@dataclass
class Run:
    """What a sequence released, and what each feed released."""

    ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    stopped: bool = False

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def run(
    vocabulary: Vocabulary,
    stop: Sequence[str],
    *,
    steps: Sequence[int] = (),
    prior: Sequence[int] = (),
    until: int | None = None,
) -> Run:
    """Feed ids after `prior` in steps of the given sizes, then one by one; until: leave before the end."""
    detokenizer = Detokenizer(vocabulary, stop=stop, prior=prior)
    done = Run()
    ids = vocabulary.ids[len(prior) : until]
    sizes = iter(steps)
    while ids and not detokenizer.stopped:
        size = next(sizes, 1)
        released = detokenizer.feed(ids[:size])
        assert len(released.ids) == len(released.pieces)
        done.ids += released.ids
        done.pieces += released.pieces
        del ids[:size]
    if until is None:
        released = detokenizer.flush()
        assert len(released.ids) == len(released.pieces)
        done.ids += released.ids
        done.pieces += released.pieces
    done.stopped = detokenizer.stopped
    return done


@given(with_stops())
def test_the_text_is_what_stands_before_the_first_stop(case: tuple[Vocabulary, tuple[str, ...]]) -> None:
    vocabulary, stop = case
    done = run(vocabulary, stop)
    assert (done.text, done.stopped) == cut_at_first_stop(vocabulary, stop)
    assert done.ids == vocabulary.ids[: len(done.ids)]
    assert not any(s in done.text for s in stop)


@given(tokenized())
def test_without_stops_every_token_is_released_at_once(vocabulary: Vocabulary) -> None:
    detokenizer = Detokenizer(vocabulary)
    text = ""
    for token_id in vocabulary.ids:
        released = detokenizer.feed([token_id])
        assert released.ids == (token_id,)
        text += "".join(released.pieces)
    assert text.encode() == b"".join(vocabulary.tokens)
    assert detokenizer.flush().ids == ()


@given(with_stops(), st.lists(st.integers(1, 5), max_size=10))
def test_held_text_never_leaks(case: tuple[Vocabulary, tuple[str, ...]], steps: list[int]) -> None:
    vocabulary, stop = case
    whole, _ = cut_at_first_stop(vocabulary, stop)
    detokenizer, shown, ids = Detokenizer(vocabulary, stop=stop), "", vocabulary.ids
    while ids and not detokenizer.stopped:
        released = detokenizer.feed(ids[: (size := steps.pop() if steps else 1)])
        del ids[:size]
        shown += "".join(released.pieces)
        # What was shown stands: no later stop string reaches back into it.
        assert whole.startswith(shown)


@given(with_stops(), st.lists(st.integers(1, 5), max_size=10))
def test_the_size_of_steps_does_not_matter(case: tuple[Vocabulary, tuple[str, ...]], steps: list[int]) -> None:
    vocabulary, stop = case
    one_by_one, stepped = run(vocabulary, stop), run(vocabulary, stop, steps=steps)
    assert (stepped.ids, stepped.pieces, stepped.stopped) == (one_by_one.ids, one_by_one.pieces, one_by_one.stopped)


@given(with_stops())
def test_a_sequence_resumed_wherever_it_broke_off_reads_the_same(case: tuple[Vocabulary, tuple[str, ...]]) -> None:
    vocabulary, stop = case
    whole = run(vocabulary, stop)
    for broke_off in range(len(vocabulary.ids) + 1):
        first = run(vocabulary, stop, until=broke_off)
        if first.stopped:
            continue
        second = run(vocabulary, stop, prior=first.ids)
        assert first.ids + second.ids == whole.ids
        assert first.pieces + second.pieces == whole.pieces
        assert second.stopped == whole.stopped


@given(tokenized(), st.data())
def test_a_character_that_an_earlier_attempt_began_is_completed(vocabulary: Vocabulary, data: st.DataObject) -> None:
    split = data.draw(st.integers(0, len(vocabulary.ids)))
    first = run(vocabulary, (), until=split)
    second = run(vocabulary, (), prior=vocabulary.ids[:split])
    assert (first.text + second.text).encode() == b"".join(vocabulary.tokens)


@given(st.lists(st.binary(max_size=4), max_size=20), stops)
def test_bytes_that_are_no_text_are_replaced_and_counted(tokens: list[bytes], stop: tuple[str, ...]) -> None:
    vocabulary = Vocabulary(tokens)
    done = run(vocabulary, stop)
    assert (done.text, done.stopped) == cut_at_first_stop(vocabulary, stop)
    assert len(done.ids) == len(done.pieces)
    done.text.encode()


def test_a_stop_over_three_tokens_keeps_what_stands_before_it() -> None:
    vocabulary = Vocabulary([b"The en", b"d", b" is ne", b"ar", b" unseen"])
    detokenizer = Detokenizer(vocabulary, stop=["end is near"])
    assert detokenizer.feed([0]).ids == ()
    assert detokenizer.feed([1, 2]).ids == ()
    released = detokenizer.feed([3, 4])
    assert (released.ids, released.pieces) == ((0,), ("The ",))
    assert detokenizer.stopped
    assert detokenizer.feed([4]).ids == ()
    assert detokenizer.flush().ids == ()


def test_text_that_only_began_like_a_stop_is_given_once_that_is_known() -> None:
    vocabulary = Vocabulary([b"a", b"ab", b"c", b"aab"])
    detokenizer = Detokenizer(vocabulary, stop=["aabx"])
    assert detokenizer.feed([0]).pieces == ()
    assert detokenizer.feed([1]).pieces == ()
    assert detokenizer.feed([2]).pieces == ("a", "ab", "c")
    assert detokenizer.feed([3]).pieces == ()
    assert detokenizer.flush().pieces == ("aab",)


def test_a_character_over_two_tokens_belongs_to_the_second() -> None:
    wave = "\N{WATER WAVE}".encode()
    detokenizer = Detokenizer(Vocabulary([wave[:2], wave[2:], b"!"]))
    assert detokenizer.feed([0]).pieces == ("",)
    assert detokenizer.feed([1, 2]).pieces == ("\N{WATER WAVE}", "!")


@pytest.mark.parametrize("stop", ["x", "xy", "yx"])
def test_a_stop_at_the_very_beginning_leaves_nothing(stop: str) -> None:
    vocabulary = Vocabulary([stop.encode(), b"more"])
    assert run(vocabulary, [stop]) == Run([], [], stopped=True)


@given(with_stops(), st.data())
def test_a_stop_token_ends_the_text_before_it_and_loses_nothing(
    case: tuple[Vocabulary, tuple[str, ...]], data: st.DataObject
) -> None:
    vocabulary, stop = case
    ids = vocabulary.ids
    at = data.draw(st.integers(0, len(ids)))
    before = Vocabulary(vocabulary.tokens[:at])
    steps = data.draw(st.lists(st.integers(1, 5), max_size=10))

    detokenizer = Detokenizer(vocabulary, stop=stop, stop_ids=ids[at : at + 1])
    text, released_ids = "", []
    while ids and not detokenizer.stopped:
        released = detokenizer.feed(ids[: (size := steps.pop() if steps else 1)])
        del ids[:size]
        text += "".join(released.pieces)
        released_ids += released.ids
    if not detokenizer.stopped:
        text += "".join(detokenizer.flush().pieces)

    cut, met = cut_at_first_stop(before, stop)
    assert text == cut
    assert detokenizer.stopped == (met or at < len(vocabulary.ids))
    if detokenizer.stopped:
        assert detokenizer.feed(vocabulary.ids) == detokenizer.flush() == Released()
    assert set(released_ids) <= set(before.ids)
