"""Q4: each id is taken once."""

from __future__ import annotations

import asyncio

import pytest

from headpond import AsyncClient, Client
from headpond.errors import IdConflict, InvalidRequest, ManyRefused, QueueFull
from headpond.models import ModelRow
from headpond.operations import Submitted
from headpond.wire import unpack_entry
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


def serve(bench: Bench, job_id: str, *, seconds: float) -> None:
    bench.submit(job_id)
    lease = bench.lease()
    bench.clock.move(seconds)
    bench.finish(lease, offset=0)


def test_a_refused_producer_is_told_the_usual_time_between_two_ends(bench: Bench) -> None:
    unknown = bench.queue.retry_after_s()
    assert unknown > 0
    serve(bench, "chat/first", seconds=2)
    assert bench.queue.retry_after_s() == 2.0
    for n in range(40):
        serve(bench, f"chat/{n}", seconds=6)
    assert 5.5 < bench.queue.retry_after_s() <= 6.0


def test_an_idle_night_is_no_slow_service(bench: Bench) -> None:
    for n in range(5):
        serve(bench, f"chat/evening{n}", seconds=2)
    bench.clock.move(8 * 3600)
    serve(bench, "chat/morning", seconds=2)
    assert bench.queue.retry_after_s() == 2.0


def test_many_submits_give_jobs_in_their_order_and_each_once(bench: Bench, shared_url: str) -> None:
    name = bench.queue.name
    requests = [{"prompt": f"prompt {n}", "id": f"{name}/order-{n}"} for n in range(450)]
    with Client(shared_url) as client:
        jobs = client.submit_many(name, requests, max_tokens=7, tenant="t", priority="batch")
        assert [job.id for job in jobs] == [request["id"] for request in requests]
        # Their order in the queue is that of the list too.
        claimed = [lease for _ in range(9) for lease in bench.claim(slots=50).leases]
        assert [lease.id for lease in claimed] == [job.id for job in jobs]
        header, call = unpack_entry(claimed[17].data)
        assert (header.tenant, header.band) == ("t", "batch")
        assert call.kwargs["request"]["max_tokens"] == 7
        again = client.submit_many(name, requests, max_tokens=7, tenant="t", priority="batch")
        assert [job.id for job in again] == [job.id for job in jobs]
        assert len(bench.queue.ids()) == 450
        assert client.submit_many(name, []) == []


def test_many_submits_without_ids_are_many_jobs(bench: Bench, shared_url: str) -> None:
    with Client(shared_url) as client:
        jobs = client.submit_many(bench.queue.name, [{"prompt": "the same"}] * 250)
    assert len({job.id for job in jobs}) == 250
    assert [lease.id for _ in range(5) for lease in bench.claim(slots=50).leases] == [job.id for job in jobs]


def test_conflicts_among_many_are_told_by_their_place_and_the_others_are_taken(bench: Bench, shared_url: str) -> None:
    name = bench.queue.name
    with Client(shared_url) as client:
        client.submit(name, "the first secret", id=f"{name}/taken", max_tokens=8)
        requests = [{"prompt": f"p{n}", "id": f"{name}/{'taken' if n == 120 else n}"} for n in range(200)]
        with pytest.raises(ManyRefused) as refused:
            client.submit_many(name, requests, max_tokens=8)
    error = refused.value
    assert [(place, type(why)) for place, why in error.refused] == [(120, IdConflict)]
    assert list(error.accepted) == [request["id"] for n, request in enumerate(requests) if n != 120]
    assert "secret" not in str(error)
    assert len(bench.queue.ids()) == 200


def test_a_queue_that_fills_up_among_many_says_which_were_taken_and_when_to_come_again(
    bench: Bench, shared_url: str
) -> None:
    name = bench.queue.name
    serve(bench, f"{name}/before", seconds=3)
    bench.server.configure_model(name, ModelRow("scripted", 130, storage=False, context_tokens=64))
    requests = [{"prompt": f"p{n}", "id": f"{name}/{n}"} for n in range(200)]
    with Client(shared_url) as client:
        with pytest.raises(ManyRefused) as refused:
            client.submit_many(name, requests)
        error = refused.value
        assert list(error.accepted) == [request["id"] for request in requests[:130]]
        assert [place for place, _ in error.refused] == list(range(130, 200))
        assert {(type(why), why.limit, why.retry_after_s) for _, why in error.refused} == {(QueueFull, 130, 3.0)}
        # What was taken is known, so the same list may be sent again.
        with pytest.raises(ManyRefused) as refused:
            client.submit_many(name, requests)
        assert refused.value.accepted == error.accepted
        assert bench.queue.depths().ready == 130


def test_a_bad_request_among_many_is_named_and_none_is_sent(bench: Bench, shared_url: str) -> None:
    name = bench.queue.name
    with Client(shared_url) as client, pytest.raises(InvalidRequest, match=r"requests\[1\]: .*max_tokens"):
        client.submit_many(name, [{"prompt": "fine"}, {"prompt": "bad", "max_tokens": 0}])
    assert bench.queue.ids() == []


def test_the_asynchronous_client_submits_many_alike(bench: Bench, shared_url: str) -> None:
    name = bench.queue.name
    bench.server.configure_model(name, ModelRow("scripted", 220, storage=False, context_tokens=64))
    requests = [{"prompt": f"p{n}", "id": f"{name}/{n}"} for n in range(250)]

    async def submit() -> tuple[list[str], ManyRefused]:
        async with AsyncClient(shared_url) as client:
            jobs = await client.submit_many(name, requests[:150], tenant="t")
            with pytest.raises(ManyRefused) as refused:
                await client.submit_many(name, requests, tenant="t")
            return [job.id for job in jobs], refused.value

    ids, error = asyncio.run(submit())
    assert ids == [request["id"] for request in requests[:150]]
    assert list(error.accepted) == [request["id"] for request in requests[:220]]
    assert [place for place, _ in error.refused] == list(range(220, 250))
    assert [lease.id for _ in range(5) for lease in bench.claim(slots=50).leases] == list(error.accepted)
