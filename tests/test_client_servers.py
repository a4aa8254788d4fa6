"""Which server a client finds, and what it says of one that is not there."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client_town import PROMPT, Town, client_row, text_of
from conftest import eventually
from headpond import Client, HeadpondError
from headpond import operations as ops
from headpond.connections import RedisAddress
from headpond.errors import (
    ConfigError,
    JobCancelled,
    RedisUnavailable,
    ResultTimeout,
)
from headpond.queue import Server
from headpond.wire import TokenRun
from headpond_workers.supervision.embedded_valkey import ValkeyProcess


@pytest.fixture
def town(served_town: Town) -> Town:
    return served_town


@pytest.fixture
def client(served_town: Town) -> Client:
    return served_town.client


# A server that is not there.


def test_a_server_that_is_away_is_named_without_its_password(valkey: ValkeyProcess) -> None:
    url, password = valkey.url, valkey.url.partition("@")[0].rpartition(":")[2]
    server = Server(RedisAddress(url, "the test"))
    server.configure_model("chat", client_row())
    server.close()
    with Client(url) as client:
        job = client.job("chat/a")
        valkey.stop()
        calls: list[Callable[[], Any]] = [
            lambda: client.submit("chat", PROMPT), client.models, lambda: client.job("slow/a"), job.state, job.cancel,
            lambda: job.result(timeout=1), lambda: list(job.stream()),
        ]  # fmt: skip
        for call in calls:
            began = time.monotonic()
            with pytest.raises(RedisUnavailable) as refused:
                call()
            assert time.monotonic() - began < 5
            error = refused.value
            assert error.url == url.replace(f":{password}@", "")
            assert (error.configured_in, error.retry) == ("the url argument", True)
            assert error.url in str(error)
            assert password not in str(error) + repr(error)


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with Client(url) as client:
            began = time.monotonic()
            with pytest.raises(RedisUnavailable):
                client.submit("chat", PROMPT)
            assert time.monotonic() - began < 5


def test_a_wrong_password_is_said_and_not_shown(town: Town) -> None:
    url = f"redis://:not-the-password@127.0.0.1:{town.deployment.valkey.port}/0"
    with Client(url) as client, pytest.raises(HeadpondError) as refused:
        client.submit("chat", PROMPT)
    assert "password" in str(refused.value)
    assert "not-the-password" not in str(refused.value)


def test_waiting_ends_in_time_while_the_server_is_away(valkey: ValkeyProcess) -> None:
    server = Server(RedisAddress(valkey.url, "the test"))
    server.configure_model("chat", client_row())
    with Client(valkey.url) as client:
        job = client.submit("chat", PROMPT)
        outcome: list[tuple[type[BaseException], float]] = []

        def wait() -> None:
            began = time.monotonic()
            try:
                job.result(timeout=1.0)
            except HeadpondError as error:
                outcome.append((type(error), time.monotonic() - began))

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        eventually(lambda: any(c["cmd"] == "xread" for c in server.redis.client_list()), what="a waiting reader")
        valkey.kill()
        thread.join(10)
    server.close()
    assert [kind for kind, _ in outcome] == [ResultTimeout]
    assert outcome[0][1] < 4


def test_readers_bear_a_restart_of_the_server(valkey: ValkeyProcess) -> None:
    server = Server(RedisAddress(valkey.url, "the test"))
    server.configure_model("chat", client_row())
    queue = server.queue("chat")
    with Client(valkey.url) as client:
        job = client.submit("chat", PROMPT)
        texts: list[str] = []
        results: list[type[BaseException]] = []

        def wait() -> None:
            try:
                job.result()
            except JobCancelled as error:
                results.append(type(error))

        read = threading.Thread(target=lambda: texts.append(text_of(list(job.stream()))))
        threads = [read, threading.Thread(target=wait)]
        for thread in threads:
            thread.start()
        eventually(
            lambda: sum(c["cmd"] == "xread" for c in server.redis.client_list()) == 2, what="two waiting readers"
        )
        (lease,) = queue.claim("A", seq=1, nonce="n", slots=1).leases
        queue.append([ops.Append(lease.id, lease.fence, TokenRun(0, (65,), ("A",)))])
        valkey.kill()
        valkey.start()
        queue.append([ops.Append(lease.id, lease.fence, TokenRun(1, (66,), ("B",)))])
        job.cancel()
        for thread in threads:
            thread.join(20)
    server.close()
    assert texts == ["AB"]
    assert results == [JobCancelled]


# Where the server is looked for.


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HEADPOND_REDIS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def known_models(client: Client) -> list[str]:
    with client:
        return sorted(client.models())


def test_a_client_finds_its_server_in_the_documented_order(
    nowhere: Path, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, away = town.deployment.url, "redis://127.0.0.1:1/0"
    models = ["chat", "idle", "slow"]
    with pytest.raises(ConfigError, match=r"headpond\.toml"):
        Client()
    (nowhere / "headpond.toml").write_text("")
    (nowhere / ".headpond").mkdir(mode=0o700)
    (nowhere / ".headpond" / "run.json").write_text(f'{{"redis_url": "{url}"}}')
    assert known_models(Client()) == models

    password = nowhere / "password"
    password.write_text(url.partition("@")[0].rpartition(":")[2])
    (nowhere / ".headpond" / "run.json").write_text(f'{{"redis_url": "{away}"}}')
    (nowhere / "headpond.toml").write_text(
        f'[redis]\nurl = "redis://127.0.0.1:{town.deployment.valkey.port}"\npassword = {{file = "password"}}\n'
    )
    deep = nowhere / "deep" / "er"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert known_models(Client()) == models

    monkeypatch.setenv("HEADPOND_REDIS_URL", away)
    with Client() as client, pytest.raises(RedisUnavailable) as refused:
        client.models()
    assert refused.value.configured_in == "HEADPOND_REDIS_URL"
    assert known_models(Client(url)) == models
