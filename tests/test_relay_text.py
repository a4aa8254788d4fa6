"""Text in pieces: stop strings over several of them, stop tokens, and ids that repeat."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from headpond.jobs import UNNAMED_TOKEN
from headpond_workers.engines.openai.upstream_ids import is_cut
from headpond_workers.relay_text import RelayText


def fed(text: RelayText, ids: Sequence[int], pieces: Sequence[str]) -> tuple[list[int], list[str]]:
    """All that is shown of pieces which come one by one."""
    shown_ids: list[int] = []
    shown: list[str] = []
    for token_id, piece in zip(ids, pieces, strict=True):
        released = text.feed([token_id], [piece])
        shown_ids += released.ids
        shown += released.pieces
    if not text.stopped:
        rest = text.flush()
        shown_ids += rest.ids
        shown += rest.pieces
    return shown_ids, shown


def test_pieces_pass_as_they_are_with_their_ids() -> None:
    text = RelayText()
    released = text.feed([UNNAMED_TOKEN, 5, UNNAMED_TOKEN], ["a", "", "\u65e5\U0001f389"])
    assert (released.ids, released.pieces) == ((UNNAMED_TOKEN, 5, UNNAMED_TOKEN), ("a", "", "\u65e5\U0001f389"))
    assert not text.stopped


@pytest.mark.parametrize("pieces", [["one ", "two ", "three"], ["one t", "wo t", "hree"], list("one two three")])
def test_a_stop_string_is_found_over_any_pieces_and_is_no_part_of_the_text(pieces: list[str]) -> None:
    text = RelayText(stop=["two"])
    ids, shown = fed(text, [UNNAMED_TOKEN] * len(pieces), pieces)
    assert "".join(shown) == "one "
    assert text.stopped
    assert len(ids) == len(shown)
    assert text.feed([UNNAMED_TOKEN], ["more"]).ids == ()


def test_what_might_have_become_a_stop_string_is_text_at_the_end() -> None:
    assert "".join(fed(RelayText(stop=["two"]), [1, 2], ["one ", "tw"])[1]) == "one tw"


def test_a_stop_token_ends_the_text_before_it_and_frees_what_was_held() -> None:
    text = RelayText(stop=["two"], stop_ids=[9])
    released = text.feed([1, 2, 9, 4], ["one ", "tw", "x", "y"])
    assert (released.ids, released.pieces) == ((1, 2), ("one ", "tw"))
    assert text.stopped


@pytest.mark.parametrize(
    ("shown", "whole", "cut"),
    [
        ("one t", "one two", True),
        ("one two", "one two", False),
        (" one t", "one two", True),
        ("one two", " one two", False),
        ("one x", "one two", False),
        ("", "two", True),
    ],
)
def test_text_that_stops_short_of_its_tokens_was_cut_at_a_stop_string(shown: str, whole: str, *, cut: bool) -> None:
    assert is_cut(shown, whole) is cut
