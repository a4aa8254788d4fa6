"""HeadpondBroker under ordinary dramatiq actors, on a real server."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.errors import ConnectionClosed, QueueJoinTimeout, QueueNotFound

from conftest import eventually
from headpond import JobState
from headpond.broker import HeadpondBroker
from headpond.connections import RedisAddress
from headpond.errors import HeadpondError
from headpond.held import Renewals
from headpond.operations import Entry
from headpond.queue import Server
from headpond.wire import Call, RunRow, pack, pack_data
from headpond_workers.supervision.embedded_valkey import ValkeyProcess, running_valkey

_names = count()


@dataclass
class Seen:
    """What actors did, in order. Thread-safe."""

    what: list[Any] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, value: Any) -> None:
        with self.lock:
            self.what.append(value)

    def __len__(self) -> int:
        return len(self.what)


@dataclass
class Site:
    """Brokers and Workers of one test, which end with it."""

    url: str
    queue: str
    _ends: list[Callable[[], Any]] = field(default_factory=list)

    def broker(self, **options: Any) -> HeadpondBroker:
        server = Server(RedisAddress(self.url, "the test"))
        broker = HeadpondBroker(server, **options)
        self._ends += [server.close, broker.close]
        return broker

    def actor(self, broker: HeadpondBroker, run: Callable[..., Any], **options: Any) -> Any:
        name = options.pop("actor_name", run.__name__)
        return dramatiq.actor(actor_name=name, queue_name=self.queue, broker=broker, **options)(run)

    def work(self, broker: HeadpondBroker, *, threads: int = 2) -> dramatiq.Worker:
        worker = dramatiq.Worker(broker, queues={self.queue}, worker_threads=threads, worker_timeout=50)
        worker.start()
        self._ends.append(lambda: worker.stop(timeout=10_000))
        return worker

    def row(self, broker: HeadpondBroker, entry_id: str) -> RunRow:
        row = broker.job_queue(self.queue).run_row(entry_id)
        assert row is not None
        return row

    def states(self, broker: HeadpondBroker) -> dict[str, JobState]:
        return {i: self.row(broker, i).state for i in broker.job_queue(self.queue).ids()}

    def close(self) -> None:
        for end in reversed(self._ends):
            end()


@pytest.fixture(scope="module")
def shared_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_valkey(tmp_path_factory.mktemp("broker")) as valkey:
        yield valkey.url


@pytest.fixture
def site(shared_url: str) -> Iterator[Site]:
    site = Site(shared_url, f"tasks{next(_names)}")
    try:
        yield site
    finally:
        site.close()


@pytest.fixture
def own(valkey: ValkeyProcess) -> Iterator[Site]:
    """On a server that the test may kill."""
    site = Site(valkey.url, "tasks")
    try:
        yield site
    finally:
        site.close()


def test_a_message_runs_once_with_its_arguments(site: Site) -> None:
    seen = Seen()
    broker = site.broker()

    def note(*args: Any, **kwargs: Any) -> None:
        seen((args, kwargs))

    actor = site.actor(broker, note)
    worker = site.work(broker)
    message = actor.send(1, "two", [3.5, None, {"four": b"\x00"}], key=True)
    broker.join(site.queue, timeout=5000)
    worker.join()
    assert seen.what == [((1, "two", [3.5, None, {"four": b"\x00"}]), {"key": True})]
    assert site.states(broker) == {f"{message.message_id}#0": JobState.FINISHED}


def test_many_messages_run_once_each(site: Site) -> None:
    seen = Seen()
    broker = site.broker()
    actor = site.actor(broker, lambda n: seen(n), actor_name="note")
    site.work(broker, threads=4)
    for n in range(300):
        actor.send(n)
    broker.join(site.queue, timeout=20_000)
    assert sorted(seen.what) == list(range(300))
    assert set(site.states(broker).values()) == {JobState.FINISHED}


def test_messages_of_one_consumer_run_in_their_order(site: Site) -> None:
    seen = Seen()
    broker = site.broker(slots=1)
    actor = site.actor(broker, lambda n: seen(n), actor_name="note")
    for n in range(20):
        actor.send(n)
    site.work(broker, threads=1)
    broker.join(site.queue, timeout=5000)
    assert seen.what == list(range(20))


def test_a_delayed_message_runs_when_it_is_due_with_nobody_submitting(site: Site) -> None:
    seen = Seen()
    broker = site.broker()
    actor = site.actor(broker, lambda: seen(time.monotonic()), actor_name="note")
    site.work(broker)
    eventually(lambda: broker._consumers, what="a consumer")
    sent = time.monotonic()
    message = actor.send_with_options(delay=600)
    assert site.row(broker, f"{message.message_id}#0").state is JobState.DELAYED
    eventually(lambda: len(seen), deadline_s=5)
    assert 0.58 <= seen.what[0] - sent < 1.6


def test_a_retried_message_is_an_entry_of_its_own(site: Site) -> None:
    seen = Seen()
    broker = site.broker()

    def stumble(times: int) -> None:
        seen(times)
        if len(seen) <= times:
            raise RuntimeError("not yet")

    actor = site.actor(broker, stumble, max_retries=5, min_backoff=20, max_backoff=40)
    site.work(broker)
    message = actor.send(2)
    broker.join(site.queue, timeout=5000)
    assert len(seen) == 3
    assert site.states(broker) == {f"{message.message_id}#{n}": JobState.FINISHED for n in range(3)}


def test_an_actor_that_keeps_failing_ends_as_failed_and_its_siblings_go_on(site: Site) -> None:
    seen = Seen()
    broker = site.broker()

    def fail() -> None:
        seen("failed")
        raise RuntimeError("never")

    failing = site.actor(broker, fail, max_retries=1, min_backoff=10, max_backoff=10)
    fine = site.actor(broker, lambda: seen("fine"), actor_name="fine")
    site.work(broker)
    message = failing.send()
    eventually(lambda: seen.what.count("failed") == 2, what="the last retry")
    fine.send()
    broker.join(site.queue, timeout=5000)
    assert seen.what == ["failed", "failed", "fine"]
    first, last = (site.row(broker, f"{message.message_id}#{n}") for n in range(2))
    assert (first.state, last.state) == (JobState.FINISHED, JobState.FAILED)
    assert last.reason == "fail failed"


def test_a_retry_that_is_enqueued_twice_runs_once(site: Site) -> None:
    # A crash between the retry's enqueue and the acknowledgement repeats the enqueue.
    seen = Seen()
    broker = site.broker()
    actor = site.actor(broker, lambda: seen(1), actor_name="note")
    message = actor.message_with_options(retries=1)
    broker.enqueue(message)
    broker.enqueue(message)
    site.work(broker)
    broker.join(site.queue, timeout=5000)
    broker.enqueue(message)
    broker.join(site.queue, timeout=5000)
    assert seen.what == [1]


def test_a_pipeline_hands_each_result_on(site: Site) -> None:
    seen = Seen()
    broker = site.broker()

    def plus(n: int, more: int) -> int:
        return n + more

    add = site.actor(broker, plus)
    note = site.actor(broker, lambda n: seen(n), actor_name="note")
    site.work(broker)
    dramatiq.pipeline([add.message(1, 2), add.message(3), add.message(10), note.message()], broker=broker).run()  # type: ignore[no-untyped-call]
    eventually(lambda: len(seen), deadline_s=5, what="the end of the pipeline")
    broker.join(site.queue, timeout=5000)
    assert seen.what == [16]
    assert set(site.states(broker).values()) == {JobState.FINISHED}


def test_a_pipeline_with_a_delay_keeps_its_order(site: Site) -> None:
    seen = Seen()
    broker = site.broker()

    def say(text: str, before: str = "") -> str:
        seen(before + text)
        return text

    actor = site.actor(broker, say)
    site.work(broker)
    second = actor.message_with_options(args=("b",), delay=100)
    dramatiq.pipeline([actor.message("a"), second], broker=broker).run()  # type: ignore[no-untyped-call]
    eventually(lambda: len(seen) == 2, deadline_s=5, what="both")
    assert seen.what == ["a", "ab"]


def test_an_actor_may_send_to_others(site: Site) -> None:
    seen = Seen()
    broker = site.broker()
    inner = site.actor(broker, lambda n: seen(n), actor_name="inner")

    def fan_out(n: int) -> None:
        for i in range(n):
            inner.send(i)

    outer = site.actor(broker, fan_out)
    site.work(broker)
    outer.send(5)
    eventually(lambda: len(seen) == 5, deadline_s=5, what="five messages")
    broker.join(site.queue, timeout=5000)
    assert sorted(seen.what) == [0, 1, 2, 3, 4]


def test_two_workers_share_a_queue(site: Site) -> None:
    # Each message waits for another one: one consumer with one slot could never end them.
    seen, meeting = Seen(), threading.Barrier(2)
    for name in ("first", "second"):
        broker = site.broker(slots=1)

        def meet(n: int, name: str = name) -> None:
            meeting.wait(10)
            seen((name, n))

        actor = site.actor(broker, meet)
        site.work(broker, threads=1)
    for n in range(10):
        actor.send(n)
    broker.join(site.queue, timeout=10_000)
    assert sorted(n for _, n in seen.what) == list(range(10))
    assert [name for name, _ in seen.what].count("first") == 5


def test_two_workers_on_one_broker_run_no_message_twice(site: Site) -> None:
    seen = Seen()
    broker = site.broker()
    actor = site.actor(broker, lambda n: seen(n), actor_name="note")
    for _ in range(2):
        site.work(broker)
    for n in range(60):
        actor.send(n)
    broker.join(site.queue, timeout=10_000)
    assert sorted(seen.what) == list(range(60))
    assert all(site.row(broker, i).attempt == 1 for i in site.states(broker))


def test_a_consumer_holds_no_more_than_its_slots(site: Site) -> None:
    release, running = threading.Event(), Seen()
    broker = site.broker(slots=2)

    def hold(n: int) -> None:
        running(n)
        release.wait(10)

    actor = site.actor(broker, hold)
    for n in range(5):
        actor.send(n)
    site.work(broker, threads=4)
    queue = broker.job_queue(site.queue)
    eventually(lambda: len(running) == 2, what="two running")
    assert (queue.depths().running, queue.depths().ready) == (2, 3)
    release.set()
    broker.join(site.queue, timeout=5000)
    assert sorted(running.what) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("slots", [1, 8])
def test_an_entry_that_cannot_be_read_is_failed_and_its_siblings_go_on(site: Site, slots: int) -> None:
    seen = Seen()
    broker = site.broker(slots=slots)
    actor = site.actor(broker, lambda n: seen(n), actor_name="note")
    queue = broker.job_queue(site.queue)
    actor.send(1)
    bad = [b"\xc1", b"", pack([1, "d", "", "normal", "any"]), pack([1]) + pack([2, "note", [], {}, {}, 1])]
    queue.submit([Entry(f"bad{i}#0", data, "") for i, data in enumerate(bad)])
    actor.send(2)
    site.work(broker)
    eventually(lambda: len(seen) == 2, deadline_s=5, what="the siblings")
    broker.join(site.queue, timeout=5000)
    for i in range(len(bad)):
        row = site.row(broker, f"bad{i}#0")
        assert row.state is JobState.FAILED
        assert row.reason
    eventually(lambda: not broker.held(), what="nothing being held")


def test_a_message_for_an_actor_that_nobody_knows_is_failed(site: Site) -> None:
    broker, other = site.broker(), site.broker()
    site.actor(broker, lambda: None, actor_name="known")
    unknown = site.actor(other, lambda: None, actor_name="unknown")
    message = unknown.send()
    site.work(broker)
    broker.join(site.queue, timeout=5000)
    assert site.row(broker, f"{message.message_id}#0").state is JobState.FAILED


@pytest.mark.parametrize(
    "argument",
    [object(), {1: "int key"}, {"deep": [{2: None}]}, 1 << 70, "\ud800"],
    ids=["object", "int key", "deep", "large", "surrogate"],
)
def test_an_argument_that_would_not_arrive_is_refused_when_it_is_sent(site: Site, argument: object) -> None:
    broker = site.broker()
    actor = site.actor(broker, lambda x: None, actor_name="note")
    with pytest.raises((TypeError, ValueError, OverflowError, HeadpondError)):
        actor.send(argument)
    assert broker.job_queue(site.queue).ids() == []


def test_an_idle_worker_stops_at_once(site: Site) -> None:
    broker = site.broker()
    site.actor(broker, lambda: None, actor_name="note")
    worker = site.work(broker)
    raw = broker.server.redis
    name = broker.job_queue(site.queue)
    eventually(lambda: any("b" in c["flags"] for c in raw.client_list()), what="a consumer that blocks")
    began = time.monotonic()
    worker.stop()
    assert time.monotonic() - began < 1.5
    assert name.depths().running == 0


def test_a_stopping_worker_ends_what_runs_and_returns_what_waits(site: Site) -> None:
    release, running = threading.Event(), Seen()
    broker = site.broker(slots=4)

    def hold(n: int) -> None:
        running(n)
        release.wait(10)

    actor = site.actor(broker, hold)
    for n in range(4):
        actor.send(n)
    worker = site.work(broker, threads=1)
    queue = broker.job_queue(site.queue)
    eventually(lambda: len(running) == 1 and queue.depths().running == 4, what="one running, four leased")
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    eventually(lambda: broker.draining, what="the drain")
    release.set()
    stopping.join(10)
    states = sorted(state.value for state in site.states(broker).values())
    assert states == ["finished", "queued", "queued", "queued"]
    assert all(site.row(broker, i).strikes == 0 for i in queue.ids())
    assert broker.held() == []


def test_a_broker_serves_again_with_its_next_worker(site: Site) -> None:
    seen = Seen()
    broker = site.broker()
    actor = site.actor(broker, lambda n: seen(n), actor_name="note")
    for n in range(2):
        worker = site.work(broker)
        actor.send(n)
        eventually(lambda: len(seen) > n, deadline_s=5, what=f"message {n}")  # noqa: B023
        worker.stop()
    assert seen.what == [0, 1]


@pytest.mark.parametrize("lease_s", [0.5, 60.0])
def test_the_brokers_lease_is_the_servers(site: Site, lease_s: float) -> None:
    # Renewals come three times in the broker's lease: a shorter one on the server would end amid the work.
    release, running = threading.Event(), Seen()
    broker = site.broker(lease_s=lease_s)

    def hold() -> None:
        running(1)
        release.wait(10)

    actor = site.actor(broker, hold)
    actor.send()
    site.work(broker)
    eventually(lambda: len(running), what="the message running")
    due_s = broker.job_queue(site.queue).tick()
    release.set()
    assert due_s is not None
    assert lease_s / 3 < due_s <= lease_s


def test_long_work_keeps_its_lease(site: Site) -> None:
    seen, ran = Seen(), Seen()
    broker, other = site.broker(lease_s=0.4), site.broker(lease_s=0.4)

    def hold(name: str) -> None:
        ran(name)
        time.sleep(1.5)
        seen(name)

    for b in (broker, other):
        actor = site.actor(b, hold)
        site.work(b, threads=1)
    actor.send("long")
    broker.join(site.queue, timeout=10_000)
    assert (seen.what, ran.what) == (["long"], ["long"])


CHILD = """
import sys, threading, dramatiq
from headpond.broker import HeadpondBroker
from headpond.connections import RedisAddress
from headpond.queue import Server

url = sys.stdin.readline().strip()
broker = HeadpondBroker(Server(RedisAddress(url, "stdin")), lease_s=0.6)

def note(n):
    print("running", flush=True)
    threading.Event().wait()

dramatiq.actor(actor_name="note", queue_name=sys.argv[1], broker=broker)(note)
dramatiq.Worker(broker, queues={sys.argv[1]}, worker_threads=1).start()
threading.Event().wait()
"""


def test_the_message_of_a_killed_process_is_run_by_another(site: Site) -> None:
    seen = Seen()
    broker = site.broker(lease_s=0.6)
    actor = site.actor(broker, lambda n: seen(n), actor_name="note")
    message = actor.send(7)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, site.queue], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(site.url + "\n")
        child.stdin.flush()
        assert child.stdout.readline() == "running\n"
    finally:
        child.kill()
        child.communicate(timeout=10)
    site.work(broker)
    eventually(lambda: len(seen), deadline_s=8, what="the message being run again")
    broker.join(site.queue, timeout=5000)
    row = site.row(broker, f"{message.message_id}#0")
    assert (row.state, row.attempt, seen.what) == (JobState.FINISHED, 2, [7])


def test_a_worker_goes_on_when_its_server_was_killed_and_restarted(own: Site, valkey: ValkeyProcess) -> None:
    seen, release = Seen(), threading.Event()
    broker = own.broker(slots=2)

    def note(n: int) -> None:
        if n == 0:
            seen("began")
            release.wait(20)
        seen(n)

    actor = own.actor(broker, note)
    own.work(broker)
    actor.send(0)
    eventually(lambda: len(seen), what="a message that runs")
    valkey.kill()
    with pytest.raises(ConnectionClosed):
        actor.send(99)
    valkey.start()
    release.set()
    actor.send(1)
    broker.join(own.queue, timeout=15_000)
    assert sorted(seen.what[1:]) == [0, 1]
    assert set(own.states(broker).values()) == {JobState.FINISHED}
    assert all(own.row(broker, i).attempt == 1 for i in own.states(broker))


def test_a_full_server_refuses_messages_and_lets_those_that_run_end(own: Site) -> None:
    seen, release = Seen(), threading.Event()
    broker = own.broker(slots=1, lease_s=0.6)

    def note(n: int) -> None:
        seen(n)
        release.wait(20)

    actor = own.actor(broker, note)
    own.work(broker, threads=1)
    first = actor.send(1)
    eventually(lambda: len(seen), what="a message that runs")
    before = own.states(broker)
    broker.server.read("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(HeadpondError, match="maxmemory"):
        actor.send(2)
    release.set()
    eventually(lambda: not broker.held(), what="the end of what ran")
    assert own.row(broker, f"{first.message_id}#0").state is JobState.FINISHED
    assert own.states(broker).keys() == before.keys()
    broker.server.read("CONFIG", "SET", "maxmemory", "0")
    actor.send(3)
    broker.join(own.queue, timeout=15_000)
    assert seen.what == [1, 3]


def test_a_send_to_a_server_that_never_was_there_is_dramatiqs_own_error(own: Site, valkey: ValkeyProcess) -> None:
    valkey.kill()
    broker = own.broker()
    actor = own.actor(broker, lambda: None, actor_name="note")
    with pytest.raises(ConnectionClosed) as refused:
        actor.send()
    assert str(valkey.port) in str(refused.value)
    password = valkey.url.partition("@")[0].rpartition(":")[2]
    assert password not in str(refused.value)


def test_join_gives_up_in_time_and_flush_cancels(site: Site) -> None:
    broker = site.broker()
    actor = site.actor(broker, lambda: None, actor_name="note")
    actor.send()
    actor.send_with_options(delay=60_000)
    began = time.monotonic()
    with pytest.raises(QueueJoinTimeout):
        broker.join(site.queue, timeout=100)
    assert time.monotonic() - began < 2
    broker.flush_all()
    assert set(site.states(broker).values()) == {JobState.CANCELLED}
    broker.join(site.queue, timeout=100)


def test_a_queue_that_was_not_declared_is_refused(site: Site) -> None:
    broker = site.broker()
    site.actor(broker, lambda: None, actor_name="note")
    assert broker.get_declared_queues() == {site.queue}
    for call in (broker.consume, broker.flush, broker.join, broker.job_queue):
        with pytest.raises(QueueNotFound):
            call("no-such-queue")


def test_a_call_is_packed_without_dramatiqs_encoder(site: Site, tmp_path: Path) -> None:
    encoder = dramatiq.get_encoder()
    broker = site.broker()
    actor = site.actor(broker, lambda *a: None, actor_name="note")
    message = actor.send(b"\x00\xff")
    data = broker.job_queue(site.queue).data(f"{message.message_id}#0")
    call = Call("note", (b"\x00\xff",), {}, {}, message.message_timestamp)
    assert data == pack_data(call, digest="")
    assert dramatiq.get_encoder() is encoder


def test_leases_that_are_about_to_be_kept_are_not_taken_for_lost(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker looks while its consumers start, and would leave."""
    broker = site.broker()
    seen = []
    start = Renewals.start

    def start_late(renewals: Renewals) -> None:
        seen.append(broker.keeps_leases())
        start(renewals)

    monkeypatch.setattr(Renewals, "start", start_late)
    broker.declare_queue(site.queue)
    broker.consume(site.queue, prefetch=1, timeout=50).close()
    assert seen == [True]
    assert broker.keeps_leases()
