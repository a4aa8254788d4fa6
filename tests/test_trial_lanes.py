"""Q5: the share of the jobs that a trial has, workers that claim for their own lane, and how jobs end meanwhile."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import dramatiq
import pytest

from conftest import eventually
from fleet import Fleet
from headpond import JobState, upkeep
from headpond.broker import HeadpondBroker
from headpond.connections import RedisAddress
from headpond.jobs import Priority
from headpond.keys import queue_keys
from headpond.operations import OWN_LANE, Entry, LeaseStatus, Settle, Settlement
from headpond.queue import JobQueue, Server
from headpond.switching import Outcome
from headpond.wire import Call, pack_data
from headpond_workers.supervision.embedded_valkey import ValkeyProcess
from queue_bench import Bench, lease_key, tokens

BANDS = ("interactive", "normal", "batch")


def in_share(job_id: str, permille: int) -> bool:
    return int(hashlib.sha1(job_id.encode(), usedforsecurity=False).hexdigest()[:8], 16) % 1000 < permille


def names(inside: bool, many: int, permille: int = 100) -> list[str]:
    """Ids that are of a share, or not."""
    found: list[str] = []
    n = 0
    while len(found) < many:
        if in_share(f"chat/{n}", permille) == inside:
            found.append(f"chat/{n}")
        n += 1
    return found


def lane(bench: Bench, name: str) -> set[str]:
    return {raw.decode() for band in BANDS for raw in bench.server.read("ZRANGE", bench.keys.ready(name, band), 0, -1)}


def share(bench: Bench) -> str:
    return bench.queue.meta().get("trial", "")


@pytest.fixture
def tried(fleet: Fleet) -> Fleet:
    """Version 3 is served by a; version 4 is tried with a tenth of the jobs by b, and has its share."""
    fleet.serving("3", "a")
    (trial,) = fleet.serving("4", "b")
    fleet.alias("3", "2", trial="4", permille=100)
    trial.ask()
    assert share(fleet.bench) == "4:100"
    return fleet


def test_a_trial_has_its_share_of_ten_thousand_jobs_and_a_retry_goes_where_the_first_went(tried: Fleet) -> None:
    bench = tried.bench
    ids = [f"chat/job-{n}" for n in range(10_000)]
    for at in range(0, len(ids), 1000):
        bench.submit(*ids[at : at + 1000])
    expected = {job_id for job_id in ids if in_share(job_id, 100)}
    assert lane(bench, "4") == expected
    assert lane(bench, "any") == set(ids) - expected
    assert 850 <= len(expected) <= 1150
    assert bench.queue.depths().ready == 10_000
    for worker in tried.workers.values():
        worker.ask()
        claimed = bench.claim(worker.boot, slots=50, version=worker.version, own_lane=worker.own_lane).leases
        assert len(claimed) == 50
        bench.queue.park([lease_key(lease) for lease in claimed])
    assert lane(bench, "4") == expected
    for job_id in sorted(expected)[:3]:
        assert bench.row(job_id).lane == "4"


def test_no_job_waits_for_a_version_that_nobody_serves_yet(fleet: Fleet) -> None:
    fleet.serving("3", "a")
    fleet.alias("3", trial="4", permille=999)
    fleet.bench.submit("chat/one")
    second = fleet.add("b")
    assert second.starts("one") == "4"
    fleet.bench.submit("chat/two")
    assert lane(fleet.bench, "any") == {"chat/one", "chat/two"}
    second.serves()
    fleet.bench.submit("chat/three")
    assert lane(fleet.bench, "4") == {"chat/three"}


def test_delayed_jobs_and_those_with_a_deadline_have_their_share_and_pinned_ones_do_not(tried: Fleet) -> None:
    bench = tried.bench
    late, soon, pinned, other = names(True, 4)
    bench.submit(late, delay_s=3)
    bench.submit(soon, deadline_s=60)
    bench.submit(pinned, pinned="3")
    bench.submit(other, band=Priority.BATCH)
    assert (bench.row(late).lane, lane(bench, "4"), lane(bench, "3")) == ("4", {soon, other}, {pinned})
    bench.clock.move(3)
    bench.queue.tick()
    assert lane(bench, "4") == {late, soon, other}
    assert bench.wake_tokens("4") == 1
    assert bench.wake_tokens("any") == 0


def test_a_changed_share_counts_from_the_next_job_on(tried: Fleet) -> None:
    tried.alias("3", trial="4", permille=999)
    assert share(tried.bench) == "4:999"
    (outside,) = [job_id for job_id in names(False, 1) if in_share(job_id, 999)]
    tried.bench.submit(outside)
    assert lane(tried.bench, "4") == {outside}


# Its end


def test_a_withdrawn_trial_moves_its_jobs_a_hundred_at_a_time_and_loses_none(tried: Fleet) -> None:
    bench = tried.bench
    ids = names(True, 250)
    bound, pinned, *rest = ids
    bench.submit(bound)
    lease = bench.lease("b", version="4")
    bench.append(lease, tokens(0, 3))
    bench.queue.park([lease_key(lease)])
    bench.submit(pinned, pinned="4")
    for at in range(0, len(rest), 50):
        bench.submit(*rest[at : at + 50])
    left = [tried.alias("3")]
    while left[-1]:
        left.append(bench.queue.switch(seq=tried.seq, target="3").left)
    assert left == [148, 48, 0]
    assert lane(bench, "any") == set(rest)
    assert lane(bench, "4") == {bound, pinned}
    assert all(bench.row(job_id).lane == "any" for job_id in rest)
    assert bench.wake_tokens("any") == 1
    assert not bench.queue.run(upkeep.fsck("0", repair=True)).faults


def test_what_a_killed_caller_left_is_moved_by_sweeps(tried: Fleet) -> None:
    bench = tried.bench
    ids = names(True, 250)
    for at in range(0, len(ids), 50):
        bench.submit(*ids[at : at + 50])
    assert tried.alias("3") > 0
    for _ in range(2):
        assert lane(bench, "4")
        bench.clock.move(0.5)
        bench.queue.tick()
    assert lane(bench, "any") == set(ids)


def test_a_job_that_comes_back_after_its_trial_is_for_anybody(tried: Fleet) -> None:
    bench = tried.bench
    (job_id,) = names(True, 1)
    bench.submit(job_id)
    lease = bench.lease("b", version="4")
    tried.alias("3")
    bench.queue.park([lease_key(lease)])
    assert lane(bench, "any") == {job_id}


def test_jobs_of_a_promoted_trial_are_claimed_where_they_wait(tried: Fleet) -> None:
    bench = tried.bench
    inside, outside = names(True, 1)[0], names(False, 1)[0]
    bench.submit(inside, outside)
    assert tried.alias("4", "3") == 0
    assert (lane(bench, "4"), lane(bench, "any"), share(bench)) == ({inside}, {outside}, "")
    worker = tried.workers["b"]
    worker.ask()
    assert set(worker.claim()) == {inside, outside}
    bench.submit(names(True, 2)[1])
    assert lane(bench, "4") == set()


def test_another_trial_takes_its_own_share_of_what_the_last_one_leaves(tried: Fleet) -> None:
    bench = tried.bench
    ids = names(True, 20)
    bench.submit(*ids)
    tried.alias("3", trial="5", permille=50)
    assert lane(bench, "any") == set(ids)
    (trial,) = tried.serving("5", "c")
    trial.ask()
    bench.submit("chat/more")
    assert share(bench) == "5:50"


def test_the_lane_of_a_trial_that_nobody_serves_is_given_up_and_gets_no_more(tried: Fleet) -> None:
    bench = tried.bench
    first, second, third = names(True, 3)
    bench.submit(first)
    tried.pass_time(100, silent=("b",))
    assert (lane(bench, "4"), lane(bench, "any"), share(bench)) == (set(), {first}, "")
    bench.submit(second)
    assert lane(bench, "any") == {first, second}
    tried.workers["b"].register()
    tried.workers["b"].ask()
    bench.submit(third)
    assert lane(bench, "4") == {third}


def test_a_refused_trial_gives_back_its_jobs_at_once(tried: Fleet) -> None:
    bench = tried.bench
    ids = names(True, 7)
    bench.submit(*ids)
    bench.queue.refuse(who="site/host/z", version="4", reason="out of memory")
    assert (lane(bench, "any"), share(bench)) == (set(ids), "")


def test_the_last_worker_that_leaves_a_trial_ends_its_share(tried: Fleet) -> None:
    bench = tried.bench
    ids = names(True, 3)
    bench.submit(*ids)
    # Nobody serves the target any more, so the one that is left must.
    tried.pass_time(100, silent=("a",))
    assert tried.workers["b"].ask().move
    assert (lane(bench, "any"), share(bench)) == (set(ids), "")


# Suspects, preemption, claims for one lane


def test_a_suspect_is_no_trials_any_more(tried: Fleet) -> None:
    bench = tried.bench
    (job_id,) = names(True, 1)
    bench.submit(job_id)
    trial = tried.workers["b"]
    trial.ask()
    for lane_name in ("4", "suspect"):
        (lease,) = bench.claim(trial.boot, version="4", own_lane=True).leases
        bench.queue.park([lease_key(lease)], strike=True)
        assert bench.row(job_id).lane == lane_name
    assert trial.claim() == []
    assert bench.wake_tokens("suspect") == 1
    assert tried.workers["a"].claim() == [job_id]


def test_a_suspect_that_has_tokens_of_the_trial_waits_for_it(tried: Fleet) -> None:
    bench = tried.bench
    (job_id,) = names(True, 1)
    bench.submit(job_id)
    trial = tried.workers["b"]
    trial.ask()
    for _ in range(2):
        (lease,) = bench.claim(trial.boot, version="4", own_lane=True).leases
        bench.append(lease, tokens(lease.offset, lease.offset + 1))
        bench.queue.park([lease_key(lease)], strike=True)
    assert bench.row(job_id).lane == "suspect@4"
    assert tried.workers["a"].claim() == []
    assert trial.claim() == [job_id]


def test_a_worker_of_one_lane_leaves_all_others_alone_and_wakes_who_reads_them(bench: Bench) -> None:
    bench.submit("chat/any")
    bench.submit("chat/pinned", pinned="v1")
    bench.submit("chat/other", pinned="v2")
    # It was woken by a lane that it no longer reads, and took the token.
    bench.server.read("DEL", bench.keys.wake("any"))
    claimed = bench.claim(slots=9, own_lane=True)
    assert [lease.id for lease in claimed.leases] == ["chat/pinned"]
    assert [bench.wake_tokens(name) for name in ("any", "v1", "v2", "suspect")] == [1, 0, 1, 0]
    assert bench.claim(slots=9, own_lane=True).leases == ()
    assert [lease.id for lease in bench.claim(slots=9).leases] == ["chat/any"]


def test_a_full_worker_of_one_lane_makes_room_for_what_waits_there_alone(bench: Bench) -> None:
    bench.submit("chat/batch", band=Priority.BATCH)
    lease = bench.lease()
    bench.submit("chat/urgent", band=Priority.INTERACTIVE)
    assert bench.append(lease, tokens(0, 60), full_version=OWN_LANE + "v1").status is LeaseStatus.APPENDED
    assert bench.renew("A", lease, full_version=OWN_LANE + "v1") == [LeaseStatus.OK]
    bench.submit("chat/urgent here", band=Priority.INTERACTIVE, pinned="v1")
    assert bench.append(lease, tokens(60, 61), full_version=OWN_LANE + "v1").status is LeaseStatus.PREEMPT
    claimed = bench.claim(
        own_lane=True, settle=[Settlement(lease.id, lease.fence, Settle.PREEMPTED, 61, "more urgent")]
    )
    assert [lease.id for lease in claimed.leases] == ["chat/urgent here"]


def test_a_full_worker_of_the_trial_makes_room_for_its_share(tried: Fleet) -> None:
    bench = tried.bench
    slow, urgent = names(True, 2)
    bench.submit(slow, band=Priority.BATCH)
    (lease,) = bench.claim("b", version="4", own_lane=True).leases
    bench.submit(urgent, band=Priority.INTERACTIVE)
    assert bench.append(lease, tokens(0, 60), full_version=OWN_LANE + "4").status is LeaseStatus.PREEMPT


# How jobs end


def outcomes(bench: Bench) -> dict[str, Outcome]:
    return {outcome.id: outcome for outcome in bench.queue.read_outcomes()}


def test_each_end_under_a_lease_is_noted_once_while_a_trial_has_its_share(tried: Fleet) -> None:
    bench = tried.bench
    here, bad = names(True, 2)
    there, cancelled, settled, deadly = names(False, 4)
    bench.submit(here, bad)
    one, two = bench.claim("b", slots=2, version="4", own_lane=True).leases
    bench.append(one, tokens(0, 4))
    bench.clock.move(2)
    for _ in range(2):
        bench.queue.finish(one.id, one.fence, offset=4, state=JobState.FINISHED, result=b"", first_token_s=0.25)
        bench.queue.finish(two.id, two.fence, offset=0, state=JobState.FAILED, result=b"", reason="no")
    bench.submit(there)
    lease = bench.lease("a", version="3")
    bench.append(lease, tokens(0, 2))
    bench.queue.park([lease_key(lease)])
    lease = bench.lease("a", version="3")
    bench.append(lease, tokens(2, 3))
    bench.finish(lease, offset=3)
    bench.submit(cancelled)
    bench.lease("a", version="3")
    bench.queue.cancel(cancelled)
    bench.submit(settled)
    lease = bench.lease("a", version="3")
    bench.claim("a", slots=0, version="3", settle=[Settlement(lease.id, lease.fence, Settle.FAILED, 0, "no")])
    bench.submit(deadly)
    for _ in range(3):
        bench.queue.park([lease_key(bench.lease("a", version="3"))], strike=True)
    assert outcomes(bench) == {
        here: Outcome(here, "4", JobState.FINISHED, 250, 4, 4, 2000),
        bad: Outcome(bad, "4", JobState.FAILED, None, 0, 0, 2000),
        there: Outcome(there, "3", JobState.FINISHED, None, 3, 1, 0),
        settled: Outcome(settled, "3", JobState.FAILED, None, 0, 0, 0),
        deadly: Outcome(deadly, "3", JobState.DEAD, None, 0, 0, 0),
    }


def end_one(bench: Bench, job_id: str, version: str) -> None:
    bench.submit(job_id, pinned=version)
    bench.finish(bench.lease(version, version=version), offset=0)


def test_ends_are_noted_only_while_a_trial_is_on_and_a_new_one_begins_anew(tried: Fleet) -> None:
    bench = tried.bench
    end_one(bench, "chat/during", "3")
    tried.alias("3", "2", trial="4", permille=200)
    assert outcomes(bench).keys() == {"chat/during"}, "its share was changed, and it is the same trial"
    tried.alias("3")
    end_one(bench, "chat/after", "3")
    assert outcomes(bench).keys() == {"chat/during"}
    tried.alias("3", trial="4", permille=100)
    assert outcomes(bench) == {}


def test_the_oldest_ends_of_a_version_make_room(tried: Fleet) -> None:
    bench = tried.bench
    end_one(bench, "chat/other", "4")
    for at in range(0, 2100, 100):
        bench.submit(*(f"chat/{n:04}" for n in range(at, at + 100)), pinned="3")
        leases = bench.claim("a", slots=100, version="3").leases
        over = [Settlement(lease.id, lease.fence, Settle.FINISHED, 0, "") for lease in leases]
        bench.claim("a", slots=0, version="3", settle=over)
    assert outcomes(bench).keys() == {"chat/other", *(f"chat/{n:04}" for n in range(100, 2100))}


# Consumers


@dataclass
class Site:
    """A dramatiq Worker that serves version 1 of a queue, and what its one actor was given."""

    server: Server
    queue: JobQueue
    broker: HeadpondBroker
    ran: list[str] = field(default_factory=list)

    def send(self, what: str, *, pinned: str = "") -> None:
        data = pack_data(Call("note", (what,), {}, {}, 0), digest="", pinned=pinned)
        self.queue.submit([Entry(f"{what}#0", data, "", pinned=pinned)])

    def blocks_on(self, *lanes: str) -> bool:
        """Whether somebody blocks, and on the wake lists of these lanes."""
        client: Any = self.server.redis
        if not any(c["cmd"] == "blpop" and "b" in c["flags"] for c in client.client_list()):
            return False
        (waiter,) = (consumer._waiter for consumer in self.broker._consumers)
        return set(waiter._keys) == {queue_keys(self.queue.name).wake(lane) for lane in lanes}

    def tokens(self, lane_name: str) -> int:
        return int(self.server.read("LLEN", queue_keys(self.queue.name).wake(lane_name)))


@pytest.fixture
def site(valkey: ValkeyProcess) -> Iterator[Site]:
    server = Server(RedisAddress(valkey.url, "the test"))
    broker = HeadpondBroker(server, version="1", fingerprint="f1", slots=2)
    site = Site(server, server.queue("tasks"), broker)

    def note(what: str) -> None:
        site.ran.append(what)

    dramatiq.actor(note, queue_name="tasks", broker=broker)
    worker = dramatiq.Worker(broker, queues={"tasks"}, worker_threads=2, worker_timeout=50)
    worker.start()
    try:
        yield site
    finally:
        worker.stop(timeout=10_000)
        broker.close()
        server.close()


def test_an_idle_worker_heeds_at_once_which_lanes_it_reads(site: Site) -> None:
    every, own = ("any", "1", "suspect", "suspect@1"), ("1", "suspect@1")
    eventually(lambda: site.blocks_on(*every), what="a worker that waits")
    site.broker.own_lane = True
    eventually(lambda: site.blocks_on(*own), what="a worker that waits for its own lane", deadline_s=1.5)
    site.send("anybodys")
    site.send("its own", pinned="1")
    eventually(lambda: site.ran == ["its own"], what="its own lane")
    assert (site.queue.depths().ready, site.tokens("any")) == (1, 1), "whoever else may claim it is woken"
    eventually(lambda: site.blocks_on(*own), what="a worker that waits for its own lane")
    site.broker.own_lane = False
    eventually(lambda: site.ran == ["its own", "anybodys"], what="all lanes", deadline_s=1.5)


def test_a_broker_without_a_version_has_no_lane_of_its_own(site: Site) -> None:
    broker = HeadpondBroker(site.server)
    with pytest.raises(ValueError, match="no lane of its own"):
        broker.own_lane = True
