"""`scripts/bench queue`: what is reported of its samples, and that its counts and its whole run are what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from benchmark_modules import FOLDER, judged, measured, modules
from conftest import eventually
from headpond.wire import pack_tokens, unpack_tokens
from headpond_workers.supervision.embedded_valkey import running_valkey

__all__ = ["modules"]
REPO = FOLDER.parent.parent


# ---- from samples to rows


@pytest.mark.parametrize(
    ("kind", "headpond", "peer", "expected"),
    [
        ("slot_gap", {"gap_ms": [1.0, 5.0]}, {"gap_ms": [100.0, 200.0]}, [(3.0, "met"), (0.02, None)]),
        ("slot_gap", {"gap_ms": [1.0, 5.1]}, {"gap_ms": [100.0]}, [(3.05, "missed"), (0.0305, None)]),
        ("enqueue", {"jobs": 200, "seconds": 0.1}, {"jobs": 200, "seconds": 0.1}, [(1.0, "met")]),
        ("enqueue", {"jobs": 200, "seconds": 0.2}, {"jobs": 200, "seconds": 0.1}, [(0.5, "missed")]),
        ("enqueue_many", {"jobs": 300, "seconds": 0.1}, {"jobs": 300, "seconds": 0.3}, [(3.0, "met")]),
        ("enqueue_many", {"jobs": 300, "seconds": 0.1}, {"jobs": 300, "seconds": 0.29}, [(2.9, "missed")]),
        (
            "no_op",
            {"jobs": 1000, "seconds": 0.5, "script_calls": 300},
            {"jobs": 1000, "seconds": 0.75, "script_calls": 1140},
            [(1.5, "met"), (0.3, "met")],
        ),
        (
            "no_op",
            {"jobs": 1000, "seconds": 0.5, "script_calls": 501},
            {"jobs": 1000, "seconds": 0.5, "script_calls": 1},
            [(1.0, "missed"), (0.501, "missed")],
        ),
        # Eight tokens an entry are compared with one token an entry on the other side, and with eight.
        (
            "append",
            {"tokens_1": 90, "seconds_1": 1.0, "tokens_8": 600, "seconds_8": 1.0},
            {"tokens_1": 100, "seconds_1": 1.0, "tokens_8": 750, "seconds_8": 1.0},
            [(0.9, "met"), (6.0, "met"), (0.8, None)],
        ),
        (
            "append",
            {"tokens_1": 89, "seconds_1": 1.0, "tokens_8": 499, "seconds_8": 1.0},
            {"tokens_1": 100, "seconds_1": 1.0, "tokens_8": 100, "seconds_8": 1.0},
            [(0.89, "missed"), (4.99, "missed"), (4.99, None)],
        ),
        ("reader", {"latency_ms": [1.0, 3.0, 90.0]}, {"latency_ms": [1.0]}, [(3.0, "met")]),
        ("reader", {"latency_ms": [1.0, 3.1, 90.0]}, {"latency_ms": [1.0]}, [(3.1, "missed")]),
        # The last of the jobs counts, and the bound follows the lease.
        ("recovery", {"recovered_s": [0.1, 6.0], "lease_s": 5.0}, {}, [(6.0, "met")]),
        ("recovery", {"recovered_s": [0.1, 6.1], "lease_s": 5.0}, {}, [(6.1, "missed")]),
        ("recovery", {"recovered_s": [6.1], "lease_s": 10.0}, {}, [(6.1, "met")]),
        ("idle", {"commands": 20, "seconds": 20.0}, {"commands": 50, "seconds": 20.0}, [(1.0, "met"), (0.4, None)]),
        ("idle", {"commands": 21, "seconds": 20.0}, {"commands": 21, "seconds": 20.0}, [(1.05, "missed"), (1.0, None)]),
        ("memory", {"jobs": 10, "bytes": 14000}, {"jobs": 10, "bytes": 14000}, [(1400.0, "met"), (1.0, None)]),
        ("memory", {"jobs": 10, "bytes": 14010}, {"jobs": 10, "bytes": 14010}, [(1401.0, "missed"), (1.0, None)]),
        (
            "claim",
            {"claim_1m_ms": [0.1, 0.5, 0.9], "claim_100k_ms": [0.3]},
            {"claim_1k_ms": [0.25]},
            [(2.0, "met"), (1.2, None)],
        ),
        (
            "claim",
            {"claim_1m_ms": [0.6], "claim_100k_ms": [0.3]},
            {"claim_1k_ms": [0.25]},
            [(2.4, "missed"), (1.2, None)],
        ),
    ],
)  # fmt: skip
def test_each_figure_is_compared_with_its_goal(
    modules: Any, kind: str, headpond: dict[str, Any], peer: dict[str, Any], expected: list[tuple[float, str | None]]
) -> None:
    assert judged(modules, kind, headpond, peer) == expected


def test_every_measurement_has_its_rows_and_its_name(modules: Any) -> None:
    suite, report = modules.queue_suite, modules.report
    assert tuple(kind.value for kind in suite.MEASUREMENTS) == report.QUEUE_NAMES
    assert len(report.QUEUE_NAMES) == 11


def test_a_figure_without_a_peer_leaves_its_column_empty(modules: Any) -> None:
    recovery = measured(modules, "recovery", {"recovered_s": [4.5, 5.25], "lease_s": 5.0}, {})
    document = modules.document.Document("queue", False, 1, "2026-01-02", 1.0, MACHINE, [recovery])
    text = modules.report.render([("queue", document)])
    assert "| the last job of a run | 5.25 s |  | 5.25 (5.25 to 5.25) s | at most 6 | met |" in text
    (first, _) = modules.report.summary(document)
    assert (first["peer"], first["verdict"]) == (None, "met")


MACHINE = {
    "commit": "0123456789abcdef", "dirty": False, "system": "Linux", "cpu": "a cpu", "cores": 2, "memory_gib": 4.0,
    "load_before": 0.1, "python": "3.11.0", "versions": {"dramatiq": "2.2.1"},
}  # fmt: skip


def test_the_page_names_what_was_not_run(modules: Any) -> None:
    memory = measured(modules, "memory", {"jobs": 1, "bytes": 1200}, {"jobs": 1, "bytes": 1300})
    document = modules.document.Document("queue", False, 1, "2026-01-02", 1.0, MACHINE, [memory], ["memory"])
    assert modules.document.from_json(modules.document.to_json(document), where="a test") == document
    assert modules.report.missing(document) == [name for name in modules.report.QUEUE_NAMES if name != "memory"]
    assert "Not run yet: pickup, slot_gap, " in modules.report.render([("queue", document)])
    other = modules.document.Document("engine", False, 1, "2026-01-02", 1.0, MACHINE, [])
    assert "Not run yet" not in modules.report.render([("engine", other)])


# ---- what is made of times


def test_a_gap_reaches_from_an_end_to_the_next_beginning(modules: Any) -> None:
    began = [(2, 5_000_000), (1, 0), (3, 9_500_000)]
    ended = [(1, 3_000_000), (3, 11_000_000), (2, 9_000_000)]
    assert modules.slot_gap.gaps_between(began, ended) == [2.0, 0.5]


def test_a_job_that_ran_twice_or_never_voids_the_run(modules: Any) -> None:
    sides, failure = modules.queue_sides, modules.child.BenchmarkError
    assert sides.times_of([1, 2], [(2, 20), (1, 10)]) == {1: 10, 2: 20}
    for told in ([(1, 10)], [(1, 10), (1, 11)], [(1, 10), (3, 11)], [(1, 10), (2, 11), (2, 12)]):
        with pytest.raises(failure, match="not those that were sent"):
            sides.times_of([1, 2], told)


def test_a_token_is_timed_from_its_own_append(modules: Any) -> None:
    appended_ns = [0, 10_000_000, 20_000_000]
    streams = [[(0, 9_000_000), (1, 11_000_000), (2, 22_000_000)], [(0, 1), (1, 13_000_000), (2, 24_500_000)]]
    assert modules.reader_latency.latencies(appended_ns, streams, uncounted=1) == [1.0, 2.0, 3.0, 4.5]
    for broken in ([(0, 1), (2, 2)], [(0, 1), (0, 2), (1, 3), (2, 4)], [(1, 1), (0, 2), (2, 3)], []):
        with pytest.raises(modules.child.BenchmarkError, match="once, in order"):
            modules.reader_latency.latencies(appended_ns, [broken], uncounted=1)


def test_both_sides_of_append_pack_the_same_tokens(modules: Any) -> None:
    run = modules.running_jobs.tokens_at(37, 8)
    assert (run.offset, run.end, len(run.pieces)) == (37, 45, 8)
    assert unpack_tokens(pack_tokens(run)) == run


def test_a_batch_holds_a_hundred(modules: Any) -> None:
    batches = modules.batches.in_batches([str(n) for n in range(250)])
    assert [len(batch) for batch in batches] == [100, 100, 50]
    assert [prompt for batch in batches for prompt in batch] == [str(n) for n in range(250)]


# ---- what is counted on a real server


def test_commands_of_clients_are_counted_and_those_of_scripts_are_not(modules: Any, tmp_path: Path) -> None:
    with running_valkey(tmp_path / "private") as valkey, closing(redis.Redis.from_url(valkey.url)) as client:
        counts = modules.server_counts
        other = redis.Redis.from_url(valkey.url)
        other.ping()
        before = counts.script_calls(client)
        count = counts.CommandCount(client)
        other.eval("for i = 1, 50 do redis.call('INCR', 'n') end return redis.call('GET', 'n')", 0)
        other.get("n")
        commands, seconds = count.close()
        other.close()
        assert commands == 2
        assert 0 < seconds < 10
        assert counts.script_calls(client) - before == 1


def test_a_batch_on_either_side_enqueues_every_prompt_once(modules: Any, tmp_path: Path) -> None:
    batches = modules.batches
    prompts = [f"Question {n}." for n in range(250)]
    with (
        running_valkey(tmp_path / "private") as valkey,
        closing(redis.Redis.from_url(valkey.url)) as client,
        closing(batches.connect_server(valkey.url)) as server,
    ):
        headpond, stock = batches.HeadpondProducer(server), batches.StockProducer(valkey.url)
        before = modules.server_counts.script_calls(client)
        assert batches.submit_all(stock, prompts) > 0
        assert modules.server_counts.script_calls(client) - before == len(prompts)
        assert client.llen(f"dramatiq:{batches.MODEL}") == len(prompts)
        # Outside a batch the broker is what it was.
        stock.broker.enqueue(stock.broker.get_actor("generate").message("One more.", max_tokens=1))
        assert client.llen(f"dramatiq:{batches.MODEL}") == len(prompts) + 1
        assert batches.submit_all(headpond, prompts) > 0
        assert headpond.queue.depths().ready == len(prompts)


# ---- a real run


@pytest.mark.slow
def test_a_quick_run_of_everything_has_samples_of_every_figure(modules: Any, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER), "queue", "--quick", "--pairs", "2", "--json", "--out", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=REPO
    ) as process:
        out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    found = modules.document.load_document(tmp_path / "queue.json")
    assert modules.report.missing(found) == []
    assert (found.quick, found.only) == (True, [])
    assert all(len(measurement.pairs) == 2 for measurement in found.measurements)
    printed = json.loads(out)["summary"]
    assert {row["verdict"] for row in printed} == {"not resolved", None}
    assert all(row["headpond"] > 0 for row in printed)
    by_name = {(row["measurement"], row["what"]): row for row in printed}
    recovery = by_name["recovery from kill -9, 8 jobs, lease 5 s", "the last job of a run"]
    assert recovery["headpond"] > 3.0, "a lease of 5 s, last renewed at most a third of it before the kill"

    def gone() -> bool:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    eventually(gone, what="the end of every process of the run")


@pytest.mark.parametrize("name", ["everything", "PICKUP", "throughput"])
def test_a_name_that_is_no_measurement_is_refused_with_those_that_are(name: str) -> None:
    command = [sys.executable, str(FOLDER), "queue", "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 2
    assert "slot_gap" in done.stderr
