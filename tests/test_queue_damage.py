"""Rows that cannot be read count as absent: one of them stops neither a script nor another job."""

from __future__ import annotations

import pytest

from headpond import JobState
from headpond.operations import Submitted
from queue_bench import Bench, entry

NO_VALUES = [b"", b"\xc1", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", b"\x90", b"\x01", b"\xc0", b"\x81\xa1v\x01"]
no_values = pytest.mark.parametrize("damaged", NO_VALUES, ids=lambda data: data[:8].hex() or "empty")


@no_values
def test_a_lease_ends_whatever_the_log_of_its_jobs_attempts_is(bench: Bench, damaged: bytes) -> None:
    bench.submit("m/a")
    bench.lease("A")
    bench.raw.hset(bench.keys.named("attempts"), "m/a", damaged)
    bench.let_leases_end()
    assert bench.row("m/a").state is JobState.QUEUED
    assert [attempt.how for attempt in bench.queue.attempts("m/a")] == ["expired"]
    assert bench.lease("A").id == "m/a"


@no_values
def test_a_data_entry_that_cannot_be_read_refuses_its_own_id_alone(bench: Bench, damaged: bytes) -> None:
    bench.submit("m/a")
    bench.raw.hset(bench.keys.named("data"), "m/a", damaged)
    assert bench.queue.submit([entry("m/a"), entry("m/b")]) == [Submitted.CONFLICT, Submitted.NEW]
    assert bench.row("m/b").state is JobState.QUEUED


@no_values
def test_a_run_row_that_cannot_be_read_stops_no_other_job(bench: Bench, damaged: bytes) -> None:
    bench.submit("m/a", "m/b")
    bench.raw.hset(bench.keys.named("run"), "m/a", damaged)
    assert [lease.id for lease in bench.claim("A", slots=2).leases] == ["m/b"]
    assert bench.queue.cancel("m/a") is None
