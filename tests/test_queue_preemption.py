"""Q12: a batch job gives its slot to a more urgent one after a quantum of tokens, and goes on later."""

from __future__ import annotations

import pytest

from headpond.jobs import Priority
from headpond.operations import Lease, LeaseStatus, Settle, Settlement
from queue_bench import Bench, lease_key, tokens

QUANTUM = 60


def begin(bench: Bench, *ids: str, made: int, band: Priority = Priority.BATCH) -> list[Lease]:
    """Submit jobs, claim them and make tokens of each."""
    bench.submit(*ids, band=band)
    leases = list(bench.claim(slots=len(ids)).leases)
    assert [lease.id for lease in leases] == list(ids)
    for lease in leases:
        assert bench.append(lease, tokens(0, made)).status is LeaseStatus.APPENDED
    return leases


def next_token(bench: Bench, lease: Lease, *, full_version: str = "v1") -> LeaseStatus:
    offset = bench.row(lease.id).offset
    return bench.append(lease, tokens(offset, offset + 1), full_version=full_version).status


def give_way(bench: Bench, lease: Lease, **more: object) -> list[str]:
    claimed = bench.claim(settle=[Settlement(*lease_key(lease), Settle.PREEMPTED)], **more)
    assert claimed.settled == (LeaseStatus.PARKED,)
    return [lease.id for lease in claimed.leases]


def test_a_batch_job_is_told_to_park_for_a_waiting_interactive_one_after_its_quantum(bench: Bench) -> None:
    (lease,) = begin(bench, "chat/batch", made=QUANTUM - 2)
    bench.submit("chat/urgent", band=Priority.INTERACTIVE)
    assert next_token(bench, lease) is LeaseStatus.APPENDED
    assert next_token(bench, lease) is LeaseStatus.PREEMPT
    assert bench.renew("A", lease, full_version="v1") == [LeaseStatus.PREEMPT]
    assert give_way(bench, lease) == ["chat/urgent"]
    row = bench.row("chat/batch")
    assert (row.offset, row.strikes, row.attempt) == (QUANTUM, 0, 1)
    assert [(a.how, a.to_offset) for a in bench.queue.attempts("chat/batch")] == [("preempted", QUANTUM)]


@pytest.mark.parametrize("waiting", ["normal", "batch", "delayed", "of another version"])
def test_a_batch_job_gives_way_to_nothing_else(bench: Bench, waiting: str) -> None:
    (lease,) = begin(bench, "chat/batch", made=QUANTUM)
    if waiting in ("normal", "batch"):
        bench.submit("chat/other", band=Priority(waiting))
    elif waiting == "delayed":
        bench.submit("chat/other", band=Priority.INTERACTIVE, delay_s=60)
    else:
        bench.submit("chat/other", band=Priority.INTERACTIVE, pinned="v2")
    assert next_token(bench, lease) is LeaseStatus.APPENDED
    assert bench.renew("A", lease, full_version="v1") == [LeaseStatus.OK]


@pytest.mark.parametrize("band", [Priority.NORMAL, Priority.INTERACTIVE])
def test_only_batch_jobs_give_way(bench: Bench, band: Priority) -> None:
    (lease,) = begin(bench, "chat/a", made=QUANTUM, band=band)
    bench.submit("chat/urgent", band=Priority.INTERACTIVE)
    assert next_token(bench, lease) is LeaseStatus.APPENDED
    assert bench.renew("A", lease, full_version="v1") == [LeaseStatus.OK]


def test_a_worker_with_a_free_slot_parks_nothing(bench: Bench) -> None:
    (lease,) = begin(bench, "chat/batch", made=QUANTUM)
    bench.submit("chat/urgent", band=Priority.INTERACTIVE)
    assert next_token(bench, lease, full_version="") is LeaseStatus.APPENDED
    assert bench.renew("A", lease) == [LeaseStatus.OK]


def test_as_many_batch_jobs_are_told_as_interactive_ones_wait(bench: Bench) -> None:
    leases = begin(bench, "chat/a", "chat/b", "chat/c", made=QUANTUM)
    bench.submit("chat/urgent1", "chat/urgent2", band=Priority.INTERACTIVE)
    assert [next_token(bench, lease) for lease in leases] == [
        LeaseStatus.PREEMPT, LeaseStatus.PREEMPT, LeaseStatus.APPENDED,
    ]  # fmt: skip
    # Who was told is told again; another is told only when one of them has parked.
    assert [next_token(bench, lease) for lease in leases[::-1]] == [
        LeaseStatus.APPENDED, LeaseStatus.PREEMPT, LeaseStatus.PREEMPT,
    ]  # fmt: skip
    assert give_way(bench, leases[0]) == ["chat/urgent1"]
    assert next_token(bench, leases[2]) is LeaseStatus.APPENDED


def test_a_worker_that_does_not_do_as_told_is_replaced_by_another(bench: Bench) -> None:
    one, other = begin(bench, "chat/a", "chat/b", made=QUANTUM)
    bench.submit("chat/urgent", band=Priority.INTERACTIVE)
    assert next_token(bench, one) is LeaseStatus.PREEMPT
    assert next_token(bench, other) is LeaseStatus.APPENDED
    bench.clock.move(5.001)
    assert next_token(bench, other) is LeaseStatus.PREEMPT


def test_nobody_is_told_any_more_once_the_interactive_job_runs_elsewhere(bench: Bench) -> None:
    (lease,) = begin(bench, "chat/batch", made=QUANTUM)
    bench.submit("chat/urgent", band=Priority.INTERACTIVE)
    assert next_token(bench, lease) is LeaseStatus.PREEMPT
    assert bench.lease("B").id == "chat/urgent"
    assert next_token(bench, lease) is LeaseStatus.APPENDED
    assert bench.renew("A", lease, full_version="v1") == [LeaseStatus.OK]


def test_a_slot_that_was_given_up_is_no_turn_of_the_batch_band(bench: Bench) -> None:
    bench.submit(*(f"chat/before{n}" for n in range(6)))
    for _ in range(6):
        bench.finish(bench.lease(), offset=0)
    (lease,) = begin(bench, "chat/batch", made=QUANTUM)
    bench.submit("chat/urgent", "chat/next", band=Priority.INTERACTIVE)
    assert next_token(bench, lease) is LeaseStatus.PREEMPT
    # The eighth claim is the batch band's, but not this one: the same job would begin again at once.
    assert give_way(bench, lease) == ["chat/urgent"]
    assert bench.lease().id == "chat/batch"


def test_a_quantum_is_of_one_lease(bench: Bench) -> None:
    (lease,) = begin(bench, "chat/batch", made=QUANTUM)
    bench.submit("chat/urgent", band=Priority.INTERACTIVE)
    assert next_token(bench, lease) is LeaseStatus.PREEMPT
    assert give_way(bench, lease) == ["chat/urgent"]
    again = bench.lease()
    assert (again.id, again.offset) == ("chat/batch", QUANTUM + 1)
    bench.submit("chat/most", band=Priority.INTERACTIVE)
    for _ in range(QUANTUM - 1):
        assert next_token(bench, again) is LeaseStatus.APPENDED
    assert next_token(bench, again) is LeaseStatus.PREEMPT
