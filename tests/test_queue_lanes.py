"""Q5: who may run a job: the version that it is pinned to, the one that made its tokens, or any."""

from __future__ import annotations

import pytest

from headpond import Client, JobState
from headpond.errors import IdConflict
from headpond.operations import LeaseStatus
from headpond.wire import Rewound
from queue_bench import LEASE_S, Bench, lease_key, tokens

VERSION_WAIT_S = 40.0


def ids(bench: Bench, boot: str, version: str, *, fingerprint: str = "f") -> list[str]:
    return [lease.id for lease in bench.claim(boot, slots=9, version=version, fingerprint=fingerprint).leases]


def pass_time(bench: Bench, seconds: float, *alive: str) -> None:
    """Time passes in steps that nobody is forgiven for; workers that are alive renew, holding nothing."""
    for _ in range(round(seconds / 4)):
        bench.clock.move(4)
        bench.queue.tick()
        for boot in alive:
            bench.renew(boot)


def park_with_tokens(bench: Bench, job_id: str, *, version: str = "v1", made: int = 5, **options: object) -> None:
    bench.submit(job_id, **options)
    lease = bench.lease("A", version=version)
    assert lease.id == job_id
    bench.append(lease, tokens(0, made))
    bench.queue.park([lease_key(lease)])


def test_a_pinned_job_is_claimed_by_its_version_alone(bench: Bench) -> None:
    bench.submit("chat/pinned", pinned="v2")
    assert (bench.wake_tokens("v2"), bench.wake_tokens("any")) == (1, 0)
    assert ids(bench, "A", "v1") == []
    assert ids(bench, "anybody", "") == []
    assert ids(bench, "B", "v2") == ["chat/pinned"]
    assert bench.wake_tokens("v2") == 0


def test_a_worker_takes_the_best_over_its_lanes(bench: Bench) -> None:
    bench.submit("chat/1")
    bench.submit("chat/2", pinned="v1")
    bench.submit("chat/3")
    bench.submit("chat/4", pinned="v1")
    assert [bench.lease().id for _ in range(4)] == ["chat/1", "chat/2", "chat/3", "chat/4"]


def test_a_job_with_tokens_waits_for_the_version_that_made_them(bench: Bench) -> None:
    bench.register("B", version="v2")
    park_with_tokens(bench, "chat/a")
    assert ids(bench, "B", "v2", fingerprint="g") == []
    lease = bench.lease("A")
    assert (lease.id, lease.offset) == ("chat/a", 5)


def test_one_without_tokens_is_for_anybody_again(bench: Bench) -> None:
    bench.submit("chat/a")
    bench.queue.park([lease_key(bench.lease("A"))])
    assert ids(bench, "B", "v2", fingerprint="g") == ["chat/a"]


@pytest.fixture
def waiting(bench: Bench) -> Bench:
    """A worker of v2 serves; the one of v1 has parked a job with tokens and is gone, and one is pinned to v1."""
    bench.register("B", version="v2", version_wait_s=VERSION_WAIT_S)
    park_with_tokens(bench, "chat/bound")
    bench.submit("chat/pinned", pinned="v1")
    bench.queue.unregister("A")
    return bench


def test_after_the_wait_a_pinned_job_fails_and_a_bound_one_goes_to_anybody(waiting: Bench) -> None:
    pass_time(waiting, VERSION_WAIT_S, "B")
    assert waiting.row("chat/pinned").state is JobState.QUEUED
    assert ids(waiting, "B", "v2", fingerprint="g") == []
    pass_time(waiting, LEASE_S + 4, "B")
    row = waiting.row("chat/pinned")
    assert (row.state, row.reason) == (JobState.FAILED, "no worker serves version v1 any more")
    assert waiting.wake_tokens("any") == 1
    (lease,) = waiting.claim("B", version="v2", fingerprint="g").leases
    assert (lease.id, lease.offset) == ("chat/bound", 0)
    assert waiting.events("chat/bound")[-1][1] == Rewound(0, "another version of the model goes on")


def test_its_tokens_are_still_good_for_the_same_fingerprint_under_another_name(waiting: Bench) -> None:
    pass_time(waiting, VERSION_WAIT_S + LEASE_S + 4, "B")
    (lease,) = waiting.claim("B", version="v2", fingerprint="f").leases
    assert (lease.id, lease.offset) == ("chat/bound", 5)
    assert not any(isinstance(event, Rewound) for _, event in waiting.events("chat/bound"))
    assert waiting.append(lease, tokens(5, 6)).status is LeaseStatus.APPENDED


def test_a_version_that_is_served_is_not_given_up(waiting: Bench) -> None:
    waiting.register("C", version="v1", version_wait_s=VERSION_WAIT_S)
    pass_time(waiting, 5 * VERSION_WAIT_S, "B", "C")
    assert waiting.row("chat/pinned").state is JobState.QUEUED
    assert ids(waiting, "B", "v2") == []
    assert ids(waiting, "C", "v1") == ["chat/bound", "chat/pinned"]


def test_a_version_that_comes_back_in_time_goes_on(waiting: Bench) -> None:
    pass_time(waiting, VERSION_WAIT_S - 8, "B")
    waiting.register("C", version="v1", version_wait_s=VERSION_WAIT_S)
    pass_time(waiting, 24, "B", "C")
    assert ids(waiting, "C", "v1") == ["chat/bound", "chat/pinned"]


def test_a_worker_that_was_killed_serves_its_version_no_longer(bench: Bench) -> None:
    bench.register("B", version="v2", version_wait_s=VERSION_WAIT_S)
    bench.submit("chat/pinned", pinned="v1")
    # A leaves its row behind, and says nothing any more.
    pass_time(bench, VERSION_WAIT_S + 4 * LEASE_S, "B")
    assert bench.row("chat/pinned").state is JobState.FAILED


def test_many_jobs_of_a_version_that_is_gone_are_moved_in_small_steps(bench: Bench) -> None:
    bench.register("B", version="v2", version_wait_s=VERSION_WAIT_S)
    bench.queue.unregister("A")
    for start in range(0, 250, 50):
        bench.submit(*(f"chat/{n}" for n in range(start, start + 50)), pinned="v1")
    failed = []
    for _ in range(40):
        pass_time(bench, 4, "B")
        failed.append(int(bench.queue.meta().get("count:failed", 0)))
    assert failed[-1] == 250
    assert max(after - before for before, after in zip([0, *failed], failed, strict=False)) <= 200
    assert bench.raw.smembers(bench.keys.named("lanes")) == set()


def test_a_producer_pins_with_an_at_sign_and_another_version_is_another_request(bench: Bench, shared_url: str) -> None:
    name = bench.queue.name
    with Client(shared_url) as client:
        job = client.submit(f"{name}@v2", "hello", id=f"{name}/one")
        assert client.submit(f"{name}@v2", "hello", id=f"{name}/one").id == job.id
        for model in (name, f"{name}@v3"):
            with pytest.raises(IdConflict):
                client.submit(model, "hello", id=f"{name}/one")
    assert bench.row(f"{name}/one").pinned == "v2"
    assert ids(bench, "A", "v1") == []
    assert ids(bench, "B", "v2") == [f"{name}/one"]
