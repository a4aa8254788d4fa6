"""Each hole that a rule of the queue closes: closed in this build, and open in one without the rule.

The scenarios run on a real server. A build without a rule is this one with some text replaced; the text must be
there exactly once, so that a cut that no longer cuts is noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from queue_holes import actors, claims, leases, order, server, streams, strikes
from queue_holes.hole import Ground, Hole, build_without

HOLES = [
    *server.HOLES, *order.HOLES, *claims.HOLES, *leases.HOLES, *streams.HOLES, *strikes.HOLES, *actors.HOLES,
]  # fmt: skip


@pytest.fixture
def ground(shared_url: str, tmp_path: Path) -> Iterator[Ground]:
    with ExitStack() as ends:
        yield Ground(shared_url, tmp_path, ends)


@pytest.mark.parametrize("hole", HOLES, ids=lambda hole: hole.name)
def test_a_hole_is_closed(hole: Hole, ground: Ground) -> None:
    assert hole.scenario(ground) == hole.kept


@pytest.mark.parametrize("hole", HOLES, ids=lambda hole: hole.name)
def test_a_hole_is_open_without_its_rule(hole: Hole, ground: Ground, tmp_path: Path) -> None:
    with build_without(hole.cuts, tmp_path / "lua"):
        outcome = hole.scenario(ground)
    assert outcome == hole.broken
    assert outcome != hole.kept


def test_every_rule_with_a_hole_is_here() -> None:
    # Q5 tells of no hole; sessions, clusters and replicas have their tests where they are built.
    assert {hole.rule for hole in HOLES} == {f"Q{n}" for n in (1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 15)}
    assert len({hole.name for hole in HOLES}) == len(HOLES)
