"""docs/benchmarks.md says what its samples say, and the statistics behind it say what they should."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
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

from benchmark_modules import importable
from conftest import eventually
from headpond.errors import MalformedDocument
from headpond.jobs import FinishReason
from headpond.sampling import Sampling
from headpond_workers.engines.protocol import Sequence

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs" / "benchmarks.md"
SAMPLES = REPO / "docs" / "benchmarks"
FLAT = ("document", "machine", "pairs", "peer_rows", "queue_rows", "report", "rows", "stepwise_batch")
"""Modules of scripts/benchmarks, which import each other by file name."""


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    with importable(monkeypatch):
        yield {name: importlib.import_module(name) for name in FLAT}


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
        assert not found.only, again
        assert not report.missing(found), again
        assert found.machine["commit"], again
        for measurement in found.measurements:
            assert len(measurement.pairs) >= 10, again
            if not any(pair.peer for pair in measurement.pairs):
                continue
            first = [pair.first for pair in measurement.pairs]
            if measurement.kind.startswith("outage_"):
                # An outage has a time before it; nobody can begin with the outage.
                assert set(first) == {"peer"}, again
                continue
            assert first[0] != first[1], again
            assert first[::2] == first[:1] * len(first[::2]), again


def test_a_page_without_its_markers_is_refused(report: ModuleType) -> None:
    page = f"intro\n{report.BEGIN}\nold\n{report.END}\nrest\n"
    assert report.replace_generated(page, "new") == f"intro\n{report.BEGIN}\n\nnew\n{report.END}\nrest\n"
    for broken in ("no markers", report.BEGIN, report.END + report.BEGIN, page + page):
        with pytest.raises(ValueError, match=r"benchmarks\.md must hold"):
            report.replace_generated(broken, "new")


# ---- from samples to a table


_MACHINE = {
    "commit": "0123456789abcdef", "dirty": False, "system": "Linux", "cpu": "a cpu", "cores": 2, "memory_gib": 4.0,
    "load_before": 0.1, "python": "3.11.0", "versions": {"dramatiq": "2.2.1"},
}  # fmt: skip


def _pickup(modules: dict[str, ModuleType], ours_ms: list[float], theirs_ms: list[float]) -> Any:
    """A document with one run of queue: in each pair each side has one sample thrice."""
    pairs, document = modules["pairs"], modules["document"]
    runs = [
        pairs.Pair(pairs.order_of(n), {"pickup_ms": [a] * 3}, {"pickup_ms": [b] * 3})
        for n, (a, b) in enumerate(zip(ours_ms, theirs_ms, strict=True))
    ]
    measurement = document.Measurement(document.Kind.PICKUP, "pick-up", "jobs", "ours", "theirs", runs)
    return document.Document("queue", False, 1, "2026-01-02T03:04:05Z", 12.0, _MACHINE, [measurement])


def test_a_table_shows_medians_ratio_interval_and_verdict(modules: dict[str, ModuleType]) -> None:
    found = _pickup(modules, [2.0] * 10, [50.0] * 10)
    text = modules["report"].render([("queue", found)])
    assert "| p50 | 2.00 ms | 50.0 ms | 0.0400 (0.0400 to 0.0400) of it | at most 0.05 | met |" in text
    assert "2.00 (2.00 to 2.00) ms | at most 2 | met |" in text
    assert "`0123456789ab`" in text
    assert "dramatiq 2.2.1" in text
    assert "no commit" not in text


def test_two_pairs_resolve_nothing(modules: dict[str, ModuleType]) -> None:
    text = modules["report"].render([("queue", _pickup(modules, [2.0] * 2, [50.0] * 2))])
    assert "not resolved (2 pairs; 10 are needed)" in text
    assert "| met |" not in text


def test_a_missed_goal_is_said(modules: dict[str, ModuleType]) -> None:
    report = modules["report"]
    (row, own, own_p99, p99) = report.rows_of(_pickup(modules, [11.0] * 10, [50.0] * 10).measurements[0])
    assert (row.verdict, own.verdict, own_p99.verdict, p99.verdict) == ("missed", "missed", "missed", None)
    assert (row.estimate.median, own.estimate.median) == (0.22, 11.0)


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
    (loop,) = report.rows_of(
        document.Measurement(document.Kind.THROUGHPUT, "SmolLM2-135M on exllamav2, 1 job", "", "", "", runs)
    )
    (companion,) = report.rows_of(
        document.Measurement(document.Kind.THROUGHPUT, "a tiny checkpoint on exllamav2", "", "", "", runs)
    )
    assert loop.goal == pairs.Goal(pairs.Direction.AT_LEAST, 0.97)
    assert (companion.goal, companion.verdict) == (None, None)
    waits = [
        pairs.Pair(pairs.order_of(n), {"first_token_ms": [s + 4.0]}, {"first_token_ms": [s]})
        for n, s in enumerate([12.0, 24.0] * 5)
    ]
    first, _ = report.rows_of(document.Measurement(document.Kind.FIRST_TOKEN, "first", "", "", "", waits))
    assert first.estimate.median == pytest.approx(4.0)
    assert first.verdict == "met"


def test_the_goal_of_the_step_gap_is_on_the_p99_of_a_run(modules: dict[str, ModuleType]) -> None:
    document, pairs, report = modules["document"], modules["pairs"], modules["report"]

    def samples(usual_ms: float, worst_ms: float) -> dict[str, list[float]]:
        gaps = [usual_ms] * 97 + [worst_ms] * 3
        return {"gap_ms": gaps, "turn_ms": [gap + 10.0 for gap in gaps]}

    runs = [pairs.Pair(pairs.order_of(n), samples(0.4, 0.8), samples(0.004, 0.05)) for n in range(9)]
    # One run of a machine that did something else does not carry the median.
    runs.append(pairs.Pair(pairs.order_of(9), samples(0.4, 7.0), samples(0.004, 0.05)))
    measurement = document.Measurement(document.Kind.STEP_GAP, "delay between two steps", "", "", "", runs)
    p99, p50, turn = report.rows_of(measurement)
    assert (p99.headpond, p99.peer, p99.estimate.median) == (0.8, 0.05, 0.8)
    assert p99.goal == pairs.Goal(pairs.Direction.AT_MOST, 1.0)
    assert p99.verdict == "met"
    assert p50.estimate.median == pytest.approx(0.396)
    assert turn.estimate.median == pytest.approx(0.75)
    assert (p50.goal, turn.goal) == (None, None)
    text = report.render([("engine", document.Document("engine", False, 1, "", 1.0, _MACHINE, [measurement]))])
    assert "| p50 | 0.400 ms | 0.0040 ms | 0.396 (0.396 to 0.396) ms added |" in text


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
    calls.clear()
    pairs.run_pairs(2, side("h"), side("p"), done=lambda number, _pair: seen.append(number), begin=3)
    assert calls == ["p3", "h3", "h4", "p4"]
    assert seen == [0, 1, 2, 3, 3, 4]


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


# ---- the step gap


def test_gaps_are_counted_between_steps_of_all_sequences_only(modules: dict[str, ModuleType]) -> None:
    stepwise = modules["stepwise_batch"]
    ended: list[Any] = []
    batch = stepwise.TimedBatch(stepwise.StepwiseBatch(step_s=0.002), sequences=2, most=100, ended=ended.append)

    def admit(prompt: str, max_tokens: int) -> object:
        return batch.admit(Sequence(stepwise.prompt_ids(prompt), (), max_tokens, Sampling(temperature=0.0), seed=0))

    for _ in range(2):
        first = admit("one", 5)
        steps = [batch.step()]
        second = admit("two", 5)
        steps += [batch.step() for _ in range(4)]
        assert ended == []
        steps.append(batch.step())
        assert [len(step) for step in steps] == [1, 2, 2, 2, 2, 1]
        ids = {
            handle: [i for step in steps for s in step if s.handle is handle for i in s.ids]
            for handle in (first, second)
        }
        assert {len(made) for made in ids.values()} == {5}
        assert ids[first] != ids[second]
        assert [(s.handle, s.finish) for step in steps for s in step if s.finish] == [
            (first, FinishReason.LENGTH), (second, FinishReason.LENGTH),
        ]  # fmt: skip
        (times,) = ended
        # Four steps of both, so three gaps between them.
        assert (len(times.gap_ms), len(times.turn_ms)) == (3, 3)
        assert all(0 < gap < turn and turn >= 2.0 for gap, turn in zip(times.gap_ms, times.turn_ms, strict=True))
        ended.clear()


def test_no_more_gaps_are_kept_than_were_asked_for(modules: dict[str, ModuleType]) -> None:
    stepwise = modules["stepwise_batch"]
    ended: list[Any] = []
    batch = stepwise.TimedBatch(stepwise.StepwiseBatch(step_s=0.0), sequences=1, most=4, ended=ended.append)
    batch.admit(Sequence((1,), (), 20, Sampling(temperature=0.0), seed=0))
    while not ended:
        batch.step()
    assert len(ended[0].gap_ms) == 4


# ---- the wrapper


@pytest.mark.parametrize(
    ("arguments", "extras"),
    [
        (["queue"], "worker,llama,embedded"),
        (["generate", "--quick"], "worker,llama,embedded"),
        (["render"], "worker,llama,embedded"),
        ([], "worker,llama,embedded"),
        (["--help"], "worker,llama,embedded"),
        (["queue", "--only", "append"], "worker,llama,embedded"),
        (["queue", "--out", "engine"], "worker,llama,embedded"),
        (["engine", "--help"], "worker,llama,embedded"),
        (["engine"], "worker,llama,embedded,test-exllamav2"),
        (["engine", "--quick", "--out", "a folder"], "worker,llama,embedded,test-exllamav2"),
    ],
)
def test_torch_is_set_up_for_the_benchmark_of_the_engine_alone(
    tmp_path: Path, arguments: list[str], extras: str
) -> None:
    shutil.copy2(REPO / "scripts" / "bench", tmp_path / "bench")
    (tmp_path / "_run").write_text("printf '%s\\n' \"$@\"\n")
    done = subprocess.run([str(tmp_path / "bench"), *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["_bootstrap.py", extras, f"{tmp_path}/benchmarks", *arguments]


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
    arguments = ["--only", "pickup", "--pairs", "1", "--seed", "5", "--json", "--out", str(tmp_path)]
    with bench("queue", "--quick", *arguments) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "pickup: pair 1/1" in err
    document = modules["document"]
    found = document.load_document(tmp_path / "queue.json")
    assert (found.benchmark, found.quick, found.only, found.seed) == ("queue", True, ["pickup"], 5)
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


STEP_GAP = """\
import json, sys
from dataclasses import asdict
from pathlib import Path
from step_gap import measure_step_gap
made = measure_step_gap(pairs=1, quick=True, folder=Path(sys.argv[1]), progress=lambda line: None)
print(json.dumps(asdict(made)))
"""


@pytest.mark.slow
def test_the_step_gap_is_measured_in_a_worker_and_in_a_bare_loop(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPO / "scripts" / "benchmarks")}
    with subprocess.Popen(
        [sys.executable, "-c", STEP_GAP, str(tmp_path / "private")], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True, env=environment,
    ) as process:  # fmt: skip
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    made = json.loads(out)
    (pair,) = made["pairs"]
    for side in ("headpond", "peer"):
        gaps, turns = pair[side]["gap_ms"], pair[side]["turn_ms"]
        assert (len(gaps), len(turns)) == (100, 100)
        assert min(gaps) > 0
        assert min(turns) >= 10.0, "a step waits 10 ms"
    assert statistics.median(pair["peer"]["gap_ms"]) < statistics.median(pair["headpond"]["gap_ms"])
    eventually(lambda: group_is_gone(process.pid), what="the end of every process of the run")
