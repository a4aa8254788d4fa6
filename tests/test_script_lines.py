"""Connections for calls of scripts: they survive whatever the server does to them, and stay as few as the calls."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from headpond.connections import RedisAddress
from headpond.errors import RedisUnavailable
from headpond.queue import JobQueue, Server
from headpond_workers.supervision.embedded_valkey import ValkeyProcess, running_valkey
from queue_bench import entry


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    with running_valkey(tmp_path / "server") as process:
        yield process


@pytest.fixture
def queue(valkey: ValkeyProcess) -> Iterator[JobQueue]:
    server = Server(RedisAddress(valkey.url, "the test"))
    yield server.queue("chat")
    server.close()


def clients(other: redis.Redis) -> int:
    return int(other.info("clients")["connected_clients"])


@pytest.mark.slow
def test_a_server_that_ends_connections_again_and_again_is_called_all_the_same(
    queue: JobQueue, valkey: ValkeyProcess
) -> None:
    with redis.Redis.from_url(valkey.url) as other:
        queue.tick()
        before = clients(other)
        # More often than redis-py's own pool has room for.
        for _ in range(250):
            other.client_kill_filter(_type="normal", skipme=True)
            queue.tick()
        assert clients(other) <= before + 1


@pytest.mark.slow
def test_an_outage_of_many_calls_leaves_a_client_that_works(queue: JobQueue, valkey: ValkeyProcess) -> None:
    queue.tick()
    valkey.kill()
    for _ in range(130):
        with pytest.raises(RedisUnavailable):
            queue.tick()
    valkey.start()
    queue.submit([entry("chat/a")])
    assert queue.depths().ready == 1


def test_threads_have_a_connection_each_and_leave_it_to_those_who_come_after(
    queue: JobQueue, valkey: ValkeyProcess
) -> None:
    with redis.Redis.from_url(valkey.url) as other:
        before = clients(other)
        for _ in range(5):
            threads = [threading.Thread(target=queue.tick) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
                assert not thread.is_alive()
        assert clients(other) <= before + 8


def test_a_forked_child_opens_connections_of_its_own(queue: JobQueue) -> None:
    queue.tick()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        queue.submit([entry("chat/child")])
        os.write(writing, b"done")
        os._exit(0)
    os.close(writing)
    said = os.read(reading, 4)
    os.close(reading)
    os.waitpid(child, 0)
    assert said == b"done"
    queue.submit([entry("chat/parent")])
    assert sorted(queue.ids()) == ["chat/child", "chat/parent"]
