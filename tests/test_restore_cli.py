"""`headpond restore` as an operator sees it: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import eventually
from deployment_town import Place, Town, town_of
from headpond.errors import InvalidRequest
from headpond.models import ModelRow
from headpond.queue import JobQueue
from headpond.settings import load_settings
from headpond_workers.cli.restore import parse_time
from headpond_workers.persistence.gate import open_queue
from headpond_workers.persistence.journal import Journal, drain
from headpond_workers.persistence.segments import StateStore
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import storage_of
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from headpond_workers.supervision.embedded_valkey import ValkeyProcess, running_valkey
from queue_bench import entry

CONFIG = '[models.chat]\nengine = "scripted"\n'


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2026-11-26T14:00:00Z", 1_795_701_600_000),
        ("2026-11-26T16:00:00+02:00", 1_795_701_600_000),
        ("1795701600", 1_795_701_600_000),
        ("1795701600.25", 1_795_701_600_250),
    ],
)
def test_a_time_is_read_with_its_zone_or_in_seconds(text: str, ms: int) -> None:
    assert parse_time(text) == ms


@pytest.mark.parametrize("text", ["yesterday", "2026-11-26T14:00:00", "", "nan", "inf", "-5", "0", "1e300"])
def test_a_time_without_a_zone_or_sense_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--at"):
        parse_time(text)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ValkeyProcess, SeaweedProcess]]:
    folder = tmp_path_factory.mktemp("servers")
    with running_valkey(folder / "redis") as valkey, running_seaweed(folder / "s3") as seaweed:
        yield valkey, seaweed


@pytest.fixture
def place(servers: tuple[ValkeyProcess, SeaweedProcess], tmp_path: Path) -> Iterator[Place]:
    """A configuration whose model `chat` Redis lists, with one job in storage and nothing in Redis."""
    valkey, seaweed = servers
    with town_of(valkey, seaweed, tmp_path) as town:
        place = town.place("here", CONFIG)
        queue = _queue(town)
        store = _store(place)
        assert open_queue(queue, store, writer="w")
        queue.submit([entry("chat/a"), entry("chat/b"), entry("chat/never")])
        queue.cancel("chat/never")
        while drain(Journal(queue), store, writer="w"):
            pass
        eventually(lambda: queue.journal_length() == 0, what="the commit")
        _lose_all(queue)
        yield place


def _queue(town: Town) -> JobQueue:
    server = town.server()
    server.redis.flushall()
    server.configure_model("chat", ModelRow("scripted", 0, storage=True, context_tokens=8192))
    return server.queue("chat", storage=True)


def _store(place: Place) -> StateStore:
    address = storage_of(load_settings(place.config))
    assert address is not None
    blobs = S3Blobs(address)
    blobs.ensure_bucket()
    return StateStore(blobs, "chat")


def _lose_all(queue: JobQueue) -> None:
    redis = queue.server.redis
    redis.delete(*redis.keys("headpond:{chat}:*"))  # type: ignore[misc]
    queue.server.hello("chat")


@pytest.mark.slow
def test_a_restore_says_what_came_back_and_what_is_lost(place: Place) -> None:
    queue = place.town.server().queue("chat", storage=True)
    queue.submit([entry("chat/a"), entry("chat/b", digest="another"), entry("chat/new")])
    dry = place.command("restore", "--dry-run")
    assert dry.returncode == 0
    assert "chat: would be restored as of " in dry.stdout
    assert queue.meta()["state"] == "closed"
    done = place.command("restore")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("chat: restored as of ")
    assert lines[1:3] == ["  waiting: 2 queued, 0 delayed", "  ended: 1 cancelled"]
    assert "  submitted meanwhile, and in storage too: 1" in lines
    (conflict,) = [line for line in lines if "another request" in line]
    assert "chat/b" in conflict
    assert any("is lost (" in line for line in lines)
    assert queue.depths().ready == 3


@pytest.mark.slow
def test_a_restore_for_programs_is_one_document(place: Place) -> None:
    said = place.command("restore", "--model", "chat", "--json")
    assert said.returncode == 0, said.stderr
    told = json.loads(said.stdout)
    (chat,) = told["models"]
    assert (told["dry_run"], chat["model"], chat["queued"], chat["ended"], chat["fork"]) == (
        False, "chat", 2, {"cancelled": 1}, False,
    )  # fmt: skip
    assert chat["lost_ms"] >= 0
    assert chat["conflict_ids"] == []


@pytest.mark.slow
def test_what_cannot_be_restored_is_refused_with_a_reason(place: Place) -> None:
    assert place.command("restore", "--at", "noon").returncode == 2
    unknown = place.command("restore", "--model", "nobody")
    assert (unknown.returncode, "storage holds no state of it" in unknown.stderr) == (2, True)
    early = place.command("restore", "--at", "2020-01-01T00:00:00Z")
    assert (early.returncode, "nothing of it was committed by then" in early.stderr) == (2, True)
    assert place.command("restore").returncode == 0
    again = place.command("restore")
    assert (again.returncode, "has not lost it" in again.stderr) == (2, True)
    place.town.server().redis.flushall()
    nothing = place.command("restore")
    assert (nothing.returncode, "--model" in nothing.stderr) == (2, True)
    unlisted = place.command("restore", "--model", "chat")
    assert unlisted.returncode == 0, unlisted.stderr
    assert place.town.server().queue("chat").depths().ready == 2


@pytest.mark.slow
def test_a_server_that_is_away_is_named(place: Place, tmp_path: Path) -> None:
    text = place.config.read_text()
    place.config.write_text(text.replace(f":{place.town.valkey.port}/", ":1/"))
    said = place.command("restore")
    assert (said.returncode, "Redis" in said.stderr) == (3, True)
