"""Q4: each id is taken once."""

from __future__ import annotations

import pytest

from headpond import Client
from headpond.errors import IdConflict, QueueFull
from headpond.models import ModelRow
from headpond.operations import Submitted
from queue_bench import Bench, entry


def test_another_request_under_a_known_id_is_a_conflict_that_shows_and_changes_nothing(bench: Bench) -> None:
    bench.submit("chat/a", digest="one", tenant="t")
    state = bench.dump()
    assert bench.submit("chat/a", digest="other", tenant="t") == [Submitted.CONFLICT]
    assert bench.submit("chat/a", digest="one", tenant="u") == [Submitted.CONFLICT]
    assert bench.dump() == state
    assert bench.submit("chat/b", digest="one") == [Submitted.NEW]
    twice = [entry("chat/c", digest="one"), entry("chat/c", digest="two")]
    assert bench.queue.submit(twice) == [Submitted.NEW, Submitted.CONFLICT]


def test_an_id_stays_taken_after_its_job_ended(bench: Bench) -> None:
    bench.submit("chat/a", digest="one")
    bench.finish(bench.lease(), offset=0)
    assert bench.submit("chat/a", digest="one") == [Submitted.KNOWN]
    assert bench.submit("chat/a", digest="two") == [Submitted.CONFLICT]
    assert bench.claim().leases == ()


def test_a_full_queue_still_knows_its_own_jobs(bench: Bench) -> None:
    both = [entry("chat/a"), entry("chat/b", delay_s=60)]
    assert bench.queue.submit(both, max_queued=2) == [Submitted.NEW, Submitted.NEW]
    more = [entry("chat/a"), entry("chat/c"), entry("chat/a", digest="x"), entry("chat/b", delay_s=60)]
    assert bench.queue.submit(more, max_queued=2) == [
        Submitted.KNOWN, Submitted.FULL, Submitted.CONFLICT, Submitted.KNOWN,
    ]  # fmt: skip
    assert bench.queue.run_row("chat/c") is None
    # A job that runs does not wait.
    bench.lease()
    assert bench.queue.submit([entry("chat/c")], max_queued=2) == [Submitted.NEW]


def test_a_bound_counts_the_jobs_of_one_submit(bench: Bench) -> None:
    answers = bench.queue.submit([entry(f"chat/{i}") for i in range(5)], max_queued=3)
    assert answers == [Submitted.NEW] * 3 + [Submitted.FULL] * 2


def test_a_producer_hears_of_conflicts_and_full_queues(bench: Bench, shared_url: str) -> None:
    name = bench.queue.name
    bench.server.configure_model(name, ModelRow("scripted", 2, storage=False, context_tokens=64))
    with Client(shared_url) as client:
        job = client.submit(name, "the first secret", id=f"{name}/a")
        with pytest.raises(IdConflict) as conflict:
            client.submit(name, "another", id=f"{name}/a")
        assert "secret" not in str(conflict.value)
        assert not conflict.value.retry
        client.submit(name, "second")
        with pytest.raises(QueueFull) as full:
            client.submit(name, "third")
        assert (full.value.model, full.value.limit, full.value.retry) == (name, 2, True)
        assert full.value.retry_after_s > 0
        assert client.submit(name, "the first secret", id=f"{name}/a").id == job.id
        assert len(bench.queue.ids()) == 2
