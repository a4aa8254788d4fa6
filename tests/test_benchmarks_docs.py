"""docs/benchmarks.md says what its samples say, and the statistics behind it say what they should."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conftest import eventually
from headpond.errors import MalformedDocument

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs" / "benchmarks.md"
SAMPLES = REPO / "docs" / "benchmarks"
FLAT = ("document", "machine", "pairs", "report")
"""Modules of scripts/benchmarks, which import each other by file name."""


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(REPO / "scripts" / "benchmarks"))
    for name in FLAT:
        assert name not in sys.modules, f"another module is called {name}"
    yield {name: importlib.import_module(name) for name in FLAT}
    for name in FLAT:
        sys.modules.pop(name, None)


@pytest.fixture
def pairs(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["pairs"]


@pytest.fixture
def report(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["report"]


@pytest.fixture
def document(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["document"]


# ---- the page


def test_the_page_is_what_its_samples_render_to(report: ModuleType, document: ModuleType) -> None:
    documents = [(name, document.load_document(SAMPLES / f"{name}.json")) for name in report.BENCHMARKS]
    page = PAGE.read_text(encoding="utf-8")
    assert page == report.replace_generated(page, report.render(documents)), (
        "docs/benchmarks.md and docs/benchmarks/*.json disagree. Run: scripts/bench render"
    )


def test_a_benchmark_without_samples_says_that_it_was_not_run(report: ModuleType) -> None:
    text = report.render([("queue", None)])
    assert "Not run yet" in text
    assert "scripts/bench queue" in text
    assert "| " not in text


def test_committed_samples_are_of_a_whole_run_of_a_known_commit(report: ModuleType, document: ModuleType) -> None:
    for path in sorted(SAMPLES.glob("*.json")):
        found = document.load_document(path)
        again = f"{path.name}: run scripts/bench {found.benchmark} again"
        assert path.stem == found.benchmark, again
        assert found.benchmark in report.BENCHMARKS, again
        assert not found.quick, again
        assert found.machine["commit"], again
        for measurement in found.measurements:
            assert len(measurement.pairs) >= 10, again
            first = [pair.first for pair in measurement.pairs]
            assert first[0] != first[1], again
            assert first[::2] == first[:1] * len(first[::2]), again


def test_a_page_without_its_markers_is_refused(report: ModuleType) -> None:
    page = f"intro\n{report.BEGIN}\nold\n{report.END}\nrest\n"
    assert report.replace_generated(page, "new") == f"intro\n{report.BEGIN}\n\nnew\n{report.END}\nrest\n"
    for broken in ("no markers", report.BEGIN, report.END + report.BEGIN, page + page):
        with pytest.raises(ValueError, match=r"benchmarks\.md must hold"):
            report.replace_generated(broken, "new")


# ---- from samples to a table


def _pickup(modules: dict[str, ModuleType], ours_ms: list[float], theirs_ms: list[float]) -> Any:
    """A document with one run of queue: in each pair each side has one sample thrice."""
    pairs, document = modules["pairs"], modules["document"]
    runs = [
        pairs.Pair(pairs.order_of(n), {"pickup_ms": [a] * 3}, {"pickup_ms": [b] * 3})
        for n, (a, b) in enumerate(zip(ours_ms, theirs_ms, strict=True))
    ]
    measurement = document.Measurement(document.Kind.PICKUP, "pick-up", "jobs", "ours", "theirs", runs)
    machine = {
        "commit": "0123456789abcdef", "dirty": False, "system": "Linux", "cpu": "a cpu", "cores": 2, "memory_gib": 4.0,
        "load_before": 0.1, "python": "3.11.0", "versions": {"dramatiq": "2.2.1"},
    }  # fmt: skip
    return document.Document("queue", False, 1, "2026-01-02T03:04:05Z", 12.0, machine, [measurement])


def test_a_table_shows_medians_ratio_interval_and_verdict(modules: dict[str, ModuleType]) -> None:
    found = _pickup(modules, [2.0] * 10, [50.0] * 10)
    text = modules["report"].render([("queue", found)])
    assert "| p50 | 2.00 ms | 50.0 ms | 25.0 (25.0 to 25.0) times quicker | at least 15 | met |" in text
    assert "2.00 (2.00 to 2.00) ms | at most 3 | met |" in text
    assert "`0123456789ab`" in text
    assert "dramatiq 2.2.1" in text
    assert "no commit" not in text


def test_two_pairs_resolve_nothing(modules: dict[str, ModuleType]) -> None:
    text = modules["report"].render([("queue", _pickup(modules, [2.0] * 2, [50.0] * 2))])
    assert "not resolved (2 pairs; 10 are needed)" in text
    assert "| met |" not in text


def test_a_missed_goal_is_said(modules: dict[str, ModuleType]) -> None:
    report = modules["report"]
    (row, own, p99) = report.rows_of(_pickup(modules, [10.0] * 10, [50.0] * 10).measurements[0])
    assert (row.verdict, own.verdict, p99.verdict) == ("missed", "missed", None)
    assert (row.estimate.median, own.estimate.median) == (5.0, 10.0)


def test_throughput_and_first_token_compare_within_each_pair(modules: dict[str, ModuleType]) -> None:
    document, pairs, report = modules["document"], modules["pairs"], modules["report"]
    # The machine is twice as slow in every other pair; the ratio within a pair is not.
    runs = [
        pairs.Pair(pairs.order_of(n), {"tokens": 96, "seconds": s * 1.25}, {"tokens": 96, "seconds": s})
        for n, s in enumerate([1.0, 2.0] * 5)
    ]
    (row,) = report.rows_of(document.Measurement(document.Kind.THROUGHPUT, "llama.cpp", "", "", "", runs))
    assert row.estimate.median == pytest.approx(0.8)
    assert row.estimate.low == pytest.approx(row.estimate.high)
    assert row.verdict == "missed"
    (scripted,) = report.rows_of(document.Measurement(document.Kind.THROUGHPUT, "scripted engine", "", "", "", runs))
    assert (row.goal.bound, scripted.goal.bound) == (0.95, 0.97)
    waits = [
        pairs.Pair(pairs.order_of(n), {"first_token_ms": [s + 4.0]}, {"first_token_ms": [s]})
        for n, s in enumerate([12.0, 24.0] * 5)
    ]
    first, _ = report.rows_of(document.Measurement(document.Kind.FIRST_TOKEN, "first", "", "", "", waits))
    assert first.estimate.median == pytest.approx(4.0)
    assert first.verdict == "met"


def test_a_document_survives_its_file(modules: dict[str, ModuleType]) -> None:
    found = _pickup(modules, [2.0, 3.5], [50.0, 61.25])
    document = modules["document"]
    text = document.to_json(found)
    assert document.from_json(text, where="a test") == found
    assert '"pickup_ms": [ 2.0, 2.0, 2.0 ]' in text


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": "headpond/benchmark", "v": 2}', '{"schema": "x", "v": 1}']
)
def test_a_file_that_is_not_a_benchmark_is_refused_by_name(document: ModuleType, text: str) -> None:
    with pytest.raises(MalformedDocument, match=r"queue\.json"):
        document.from_json(text, where="queue.json")


def test_a_benchmark_that_was_never_run_has_no_document(document: ModuleType, tmp_path: Path) -> None:
    assert document.load_document(tmp_path / "queue.json") is None


# ---- the statistics


def test_sides_take_turns_at_being_first(pairs: ModuleType) -> None:
    calls: list[str] = []
    seen: list[int] = []

    def side(name: str) -> Any:
        def run(number: int) -> int:
            calls.append(f"{name}{number}")
            return number

        return run

    made = pairs.run_pairs(4, side("h"), side("p"), done=lambda number, _pair: seen.append(number))
    assert calls == ["h0", "p0", "p1", "h1", "h2", "p2", "p3", "h3"]
    assert [(pair.first, pair.headpond, pair.peer) for pair in made] == [
        ("headpond", 0, 0), ("peer", 1, 1), ("headpond", 2, 2), ("peer", 3, 3),
    ]  # fmt: skip
    assert seen == [0, 1, 2, 3]


def test_percentiles_agree_with_the_standard_library(pairs: ModuleType) -> None:
    samples = [random.Random(7).expovariate(1.0) for _ in range(101)]
    expected = statistics.quantiles(samples, n=100, method="inclusive")
    for percent in (1, 25, 50, 75, 99):
        assert pairs.percentile(samples, percent / 100) == pytest.approx(expected[percent - 1])
    assert pairs.percentile([5.0], 0.99) == 5.0
    assert pairs.percentile([1.0, 2.0], 0.5) == 1.5
    with pytest.raises(ValueError, match="no samples"):
        pairs.percentile([], 0.5)


def test_an_interval_is_the_same_each_time_and_holds_its_median(pairs: ModuleType) -> None:
    values = [0.95, 0.96, 0.97, 0.98, 0.99, 1.0, 1.01, 1.02, 1.03, 1.2]
    first, second = pairs.estimate_median(values), pairs.estimate_median(values)
    assert first == second
    assert first.low < first.median == statistics.median(values) < first.high
    assert first.high < 1.2, "one outlier does not carry a median"
    with pytest.raises(ValueError, match="no pairs"):
        pairs.estimate_median([])


def test_intervals_hold_the_true_median_about_as_often_as_they_say(pairs: ModuleType) -> None:
    draw = random.Random(11)
    held = 0
    for _ in range(20):
        estimate = pairs.estimate_median([draw.gauss(1.0, 0.1) for _ in range(10)])
        held += estimate.low <= 1.0 <= estimate.high
    assert held >= 16, f"{held} of 20 intervals held the true median; 95 % is promised"


@pytest.mark.parametrize(
    ("low", "high", "count", "at_least", "at_most"),
    [
        (1.1, 1.2, 10, "met", "missed"),
        (0.8, 0.9, 10, "missed", "met"),
        (0.9, 1.1, 10, "not resolved", "not resolved"),
        (1.0, 1.1, 10, "met", "not resolved"),
        (1.1, 1.2, 9, "not resolved", "not resolved"),
    ],
)
def test_a_goal_is_judged_by_the_whole_interval(
    pairs: ModuleType, low: float, high: float, count: int, at_least: str, at_most: str
) -> None:
    estimate = pairs.Estimate((low + high) / 2, low, high, count)
    assert pairs.Goal(pairs.Direction.AT_LEAST, 1.0).judge(estimate) == at_least
    assert pairs.Goal(pairs.Direction.AT_MOST, 1.0).judge(estimate) == at_most


# ---- real runs


def bench(*arguments: str) -> subprocess.Popen[str]:
    """scripts/bench as the wrapper starts it, in a process group of its own."""
    command = [sys.executable, str(REPO / "scripts" / "benchmarks"), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=REPO
    )


def group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
def test_a_quick_run_writes_its_samples_and_leaves_no_process(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    with bench("queue", "--quick", "--pairs", "1", "--seed", "5", "--json", "--out", str(tmp_path)) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "pair 1/1" in err
    document = modules["document"]
    found = document.load_document(tmp_path / "queue.json")
    assert (found.benchmark, found.quick, found.seed) == ("queue", True, 5)
    assert found.machine["versions"]["dramatiq"].startswith("2.")
    assert socket.gethostname() not in found.machine.values()
    (pair,) = found.measurements[0].pairs
    for side in (pair.headpond, pair.peer):
        assert len(side["pickup_ms"]) == 8
        assert min(side["pickup_ms"]) > 0
    printed = json.loads(out)
    assert printed["summary"] == modules["report"].summary(found)
    assert {row["verdict"] for row in printed["summary"]} == {"not resolved", None}
    eventually(lambda: group_is_gone(process.pid), what="the end of every process of the run")
    assert PAGE.read_text(encoding="utf-8") == page


@pytest.mark.slow
def test_an_interrupted_run_writes_nothing_and_leaves_no_process(tmp_path: Path) -> None:
    with bench("queue", "--quick", "--pairs", "50", "--out", str(tmp_path)) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "pair 1/50" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "nothing was written" in err
    eventually(lambda: group_is_gone(process.pid), what="the end of every process of the run")
    assert list(tmp_path.iterdir()) == []
