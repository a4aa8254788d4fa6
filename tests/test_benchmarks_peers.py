"""`scripts/bench peers`: what is reported of its samples, and that a quick run asks, kills and counts as it says."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmark_modules import FOLDER, modules
from conftest import eventually
from headpond.errors import HeadpondError
from test_benchmarks_docs import bench, group_is_gone

__all__ = ["modules"]
PROGRAMS = sorted((FOLDER / "peer_code").glob("*.py"))


def measured(modules: Any, kind: str, peer: str, headpond: list[dict[str, Any]], theirs: dict[str, Any]) -> Any:
    pairs = [modules.pairs.Pair(modules.pairs.order_of(n), ours, theirs) for n, ours in enumerate(headpond)]
    name = f"{kind}, beside {peer}"
    return modules.document.Measurement(modules.document.Kind(kind), name, "work", "ours", "theirs", pairs)


def speed(tokens_per_s: float) -> dict[str, Any]:
    return {"tokens": tokens_per_s * 4, "seconds": 4.0, "first_token_ms": [100.0, 200.0, 300.0]}


def crash(*, jobs_lost: int = 0, again: int = 0, missing: int = 0, lines: int = 12) -> dict[str, Any]:
    return {
        "jobs_lost": jobs_lost, "tokens_again": again, "tokens_missing": missing, "recovered_s": 5.0,
        "code_lines": lines,
    }  # fmt: skip


# ---- from samples to rows


@pytest.mark.parametrize(
    ("kind", "peer", "ours", "verdict"),
    [
        ("jobs_8", "the bare HTTP server", 100.0, "met"),
        ("jobs_8", "the bare HTTP server", 99.0, "missed"),
        ("jobs_8", "DB-GPT", 150.0, "met"),
        ("jobs_8", "DB-GPT", 149.0, "missed"),
        ("jobs_8", "DB-GPT with portable kernels", 150.0, "met"),
        ("jobs_8", "the server behind dramatiq", 10.0, None),
        ("jobs_4", "the bare HTTP server", 10.0, None),
    ],
)
def test_speed_has_a_goal_for_eight_jobs_alone(modules: Any, kind: str, peer: str, ours: float, verdict: str) -> None:
    throughput, first, p99 = modules.report.rows_of(measured(modules, kind, peer, [speed(ours)] * 10, speed(100.0)))
    assert (throughput.headpond, throughput.peer, throughput.verdict) == (ours, 100.0, verdict)
    assert throughput.estimate.median == pytest.approx(ours / 100.0)
    assert (first.headpond, first.estimate.median) == (200.0, 1.0)
    assert p99.estimate is None


def test_one_lost_job_in_ten_runs_misses_the_goal(modules: Any) -> None:
    peer = crash(jobs_lost=8, again=120, lines=40)
    clean = modules.report.rows_of(measured(modules, "crash", "DB-GPT", [crash()] * 10, peer))
    assert [row.verdict for row in clean] == ["met", "met", "met", None, None]
    assert [(row.headpond, row.peer) for row in clean[:2]] == [(0.0, 8.0), (0.0, 120.0)]
    assert (clean[4].headpond, clean[4].peer, clean[4].unit) == (12.0, 40.0, "lines")
    one_bad = [crash()] * 9 + [crash(jobs_lost=1, again=7, missing=3)]
    rows = modules.report.rows_of(measured(modules, "crash", "DB-GPT", one_bad, peer))
    assert [row.verdict for row in rows[:3]] == ["missed"] * 3
    few = modules.report.rows_of(measured(modules, "crash", "DB-GPT", [crash()] * 9, peer))
    assert [row.verdict for row in few[:3]] == ["not resolved"] * 3


def test_the_page_names_a_peer_that_was_left_out_and_why(modules: Any) -> None:
    machine = {
        "commit": "0123456789abcdef", "dirty": False, "system": "Linux", "cpu": "a cpu", "cores": 2,
        "memory_gib": 4.0, "load_before": 0.1, "python": "3.11.0", "versions": {},
    }  # fmt: skip
    made = [measured(modules, "jobs_8", "DB-GPT", [speed(100.0)] * 10, speed(50.0))]
    document = modules.document.Document(
        "peers", False, 1, "2026-01-02", 1.0, machine, made, not_run={"a peer": "It would\nnot start."}
    )
    assert modules.document.from_json(modules.document.to_json(document), where="a test") == document
    text = modules.report.render([("peers", document)])
    assert "Not run: a peer. It would not start.\n" in text
    assert "Not run yet: jobs_1, jobs_4, crash." in text
    assert "### Jobs_8, beside DB-GPT" in text


# ---- what is asked, and in which order


def test_all_sides_of_a_pair_are_asked_the_same_and_no_two_pairs_are(modules: Any) -> None:
    prompts = modules.peer_prompts

    def drawn(seed: int) -> Any:
        return prompts.draw_asks(prompts.MIX, random.Random(f"1:{seed}"), jobs=8, name=f"jobs_8-{seed}")

    assert drawn(3) == drawn(3)
    assert sorted(ask.max_tokens for ask in drawn(3)) == sorted(prompts.MIX.tokens)
    beginnings = {ask.prompt[:10] for seed in range(4) for ask in drawn(seed)}
    assert len(beginnings) == 32
    lengths = sorted(len(ask.prompt.split()) for ask in drawn(3))
    assert lengths[-1] - lengths[0] > 100


class FakeSide:
    """A side that runs nothing."""

    about = "a side"
    program = "none"

    def __init__(self, name: str) -> None:
        self.name = name


def suite_of(modules: Any, tmp_path: Path, pairs: int, *names: str) -> Any:
    suite = modules.peer_suite.PeerSuite(
        pairs=pairs, seed=1, quick=False, only=[], without=[], folder=tmp_path, progress=lambda line: None
    )
    suite._sides += [FakeSide(name) for name in names]
    return suite


def test_which_side_runs_first_alternates_for_every_two_sides(modules: Any, tmp_path: Path) -> None:
    suite = suite_of(modules, tmp_path, 4, "headpond", "the bare HTTP server", "DB-GPT")
    order: list[tuple[int, str]] = []

    def one(side: Any, number: int) -> dict[str, Any]:
        order.append((number, side.name))
        return {"round": number}

    plan = suite._plan(modules.document.Kind.PEERS_8)
    made = suite._rounds(plan, "8 jobs", "work", one, str, list(suite._sides))
    assert [m.name for m in made] == ["8 jobs, beside the bare HTTP server", "8 jobs, beside DB-GPT"]
    for measurement in made:
        peer = measurement.name.rpartition("beside ")[2]
        for number, pair in enumerate(measurement.pairs):
            ours, theirs = order.index((number, "headpond")), order.index((number, peer))
            assert (pair.first == "headpond") == (ours < theirs)
            assert pair.first == modules.pairs.order_of(number)
            assert pair.headpond == pair.peer == {"round": number}


def test_a_peer_that_fails_is_left_out_and_the_others_go_on(modules: Any, tmp_path: Path) -> None:
    suite = suite_of(modules, tmp_path, 3, "headpond", "the bare HTTP server", "DB-GPT")

    def one(side: Any, number: int) -> dict[str, Any]:
        if side.name == "DB-GPT" and number == 1:
            raise HeadpondError("it broke")
        return {}

    plan = suite._plan(modules.document.Kind.PEERS_4)
    (made,) = suite._rounds(plan, "4 jobs", "work", one, str, list(suite._sides))
    assert made.name == "4 jobs, beside the bare HTTP server"
    assert len(made.pairs) == 3
    assert suite.not_run == {"DB-GPT": "it broke"}

    def fail(side: Any, number: int) -> dict[str, Any]:
        raise HeadpondError("headpond itself broke")

    with pytest.raises(HeadpondError, match="headpond itself"):
        suite._rounds(plan, "4 jobs", "work", fail, str, list(suite._sides))


def test_why_a_peer_was_left_out_names_no_place_of_this_machine(modules: Any) -> None:
    told = "ERROR: /tmp/pip-install-x/a.cpp:3: no such file, see https://index.example/simple/ and '/root/.cache'. 1/2"
    assert modules.peer_suite.without_places(told) == "ERROR: PATH:3: no such file, see ADDRESS and 'PATH'. 1/2"


# ---- the programs


def test_blank_lines_comments_and_docstrings_are_no_code(modules: Any) -> None:
    source = '''"""A module.

Of two lines.
"""
import os  # counted


# not counted
def f(a,
      b):
    """Not counted."""
    text = """counted

    as a statement is"""
    return (
        text
    )
'''
    assert modules.code_lines.count_code_lines(source) == 9
    assert modules.code_lines.count_code_lines("") == 0


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_each_program_can_be_asked_and_ends_in_the_same_way(modules: Any, program: Path) -> None:
    source = program.read_text(encoding="utf-8")
    assert "def ask(prompt: str, max_tokens: int, show: Callable[[str], None], lost: Callable[[], None]) -> str:" in (
        source
    )
    ending = source.partition('if __name__ == "__main__":')[2]
    assert ending == PROGRAMS[0].read_text(encoding="utf-8").partition('if __name__ == "__main__":')[2]
    assert 10 < modules.code_lines.count_code_lines(source) < 80


def test_what_was_not_shown_of_an_answer_is_missing(modules: Any) -> None:
    missing = modules.peer_suite._missing
    assert missing({"parts": ["The river"], "text": "The river"}) == ""
    assert missing({"parts": ["The r", "The river"], "text": "The river"}) == ""
    assert missing({"parts": ["The"], "text": "The river"}) == " river"
    assert missing({"parts": ["Then"], "text": "The river"}) == " river"


# ---- a real run


@pytest.mark.slow
def test_a_quick_run_kills_both_servers_and_headpond_loses_nothing(modules: Any, tmp_path: Path) -> None:
    arguments = ["--quick", "--pairs", "1", "--only", "jobs_4", "--only", "crash", "--json", "--out", str(tmp_path)]
    without = [word for name in ("dramatiq", "dbgpt", "dbgpt-portable") for word in ("--without", name)]
    with bench("peers", *arguments, *without) as process:
        out, err = process.communicate(timeout=270)
    assert process.returncode == 0, err
    found = modules.document.load_document(tmp_path / "peers.json")
    assert list(found.not_run) == ["the server behind dramatiq", "DB-GPT", "DB-GPT with portable kernels"]
    four, kill = found.measurements
    (pair,) = four.pairs
    for side in (pair.headpond, pair.peer):
        assert len(side["first_token_ms"]) == 4
        assert 0 < min(side["first_token_ms"]) <= side["seconds"] * 1000
        assert 4 < side["tokens"] <= 4 * 12
    (pair,) = kill.pairs
    assert (pair.headpond["jobs"], pair.headpond["jobs_lost"]) == (8, 0)
    assert pair.headpond["running_at_kill"] > 0
    assert (pair.headpond["tokens_again"], pair.headpond["tokens_missing"]) == (0, 0)
    assert pair.peer["jobs_lost"] == pair.peer["running_at_kill"] > 0
    assert pair.peer["errors"] == []
    assert pair.headpond["code_lines"] < pair.peer["code_lines"]
    assert json.loads(out)["summary"] == modules.report.summary(found)
    eventually(lambda: group_is_gone(process.pid), what="the end of every process of the run")
