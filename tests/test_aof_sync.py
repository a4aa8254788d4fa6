"""The append-only file of an embedded Valkey, brought to the disk from outside of the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from conftest import eventually
from headpond_workers.persistence.aof_sync import AOF_FOLDER, AofSync
from headpond_workers.supervision.embedded_valkey import ValkeyProcess


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    process = ValkeyProcess(tmp_path / "state")
    process.start()
    yield process
    process.stop()


@pytest.fixture
def client(valkey: ValkeyProcess) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url) as client:
        yield client


def written(valkey: ValkeyProcess) -> int:
    return sum(path.stat().st_size for path in (valkey.folder / AOF_FOLDER).iterdir())


def test_what_was_written_is_synced_once(valkey: ValkeyProcess, client: redis.Redis) -> None:
    sync = AofSync(valkey.folder)
    client.set("a", "x" * 10_000)
    assert sync.sync() == written(valkey) > 10_000
    assert sync.sync() == 0
    client.set("b", "y" * 500)
    assert 500 < sync.sync() < 1000


def test_a_rewritten_file_is_synced_as_well(valkey: ValkeyProcess, client: redis.Redis) -> None:
    sync = AofSync(valkey.folder)
    client.set("a", "x" * 1000)
    sync.sync()
    names = {path.name for path in (valkey.folder / AOF_FOLDER).iterdir()}
    client.bgrewriteaof()
    eventually(
        lambda: (
            not client.info("persistence")["aof_rewrite_in_progress"]
            and names != {path.name for path in (valkey.folder / AOF_FOLDER).iterdir()}
        ),
        what="the rewrite",
    )
    assert sync.sync() > 0
    assert sync.sync() == 0


def test_a_server_that_has_written_nothing_yet_is_no_error(tmp_path: Path) -> None:
    assert AofSync(tmp_path / "nowhere").sync() == 0


def test_the_thread_syncs_by_itself_and_stops(valkey: ValkeyProcess, client: redis.Redis) -> None:
    sync = AofSync(valkey.folder)
    sync.start()
    client.set("a", "x" * 1000)
    eventually(lambda: sync.is_alive() and sum(sync._synced.values()) == written(valkey), what="a sync")
    sync.stop()
    sync.join(10)
    assert not sync.is_alive()


def test_the_server_writes_before_it_replies_and_leaves_syncing_to_others(client: redis.Redis) -> None:
    # With everysec it puts off writing, up to 2 s, while its own sync runs.
    assert client.config_get("appendfsync")["appendfsync"] == "no"
