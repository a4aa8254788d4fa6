"""The embedded Valkey, as a real server: who may enter, what survives, what it says when it cannot start."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from headpond.errors import DeploymentError
from headpond_workers.supervision import embedded_valkey
from headpond_workers.supervision.embedded_valkey import ValkeyProcess, running_valkey
from headpond_workers.supervision.private_files import private_folder

ONCE = Retry(NoBackoff(), 0)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    with running_valkey(tmp_path / "state") as process:
        yield process


def client_of(valkey: ValkeyProcess) -> redis.Redis:
    return redis.Redis.from_url(valkey.url, retry=ONCE)


def wait_until(condition, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def test_a_client_without_the_password_is_refused(valkey: ValkeyProcess) -> None:
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(port=valkey.port, retry=ONCE).ping()
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(port=valkey.port, password="guess", retry=ONCE).ping()  # noqa: S106
    assert client_of(valkey).ping() is True


def test_the_server_listens_on_loopback_alone(valkey: ValkeyProcess) -> None:
    listening = [c for c in psutil.Process(valkey.pid).net_connections("all") if c.status == psutil.CONN_LISTEN]
    assert [(c.laddr.ip, c.laddr.port) for c in listening] == [("127.0.0.1", valkey.port)]


def test_the_password_is_in_no_command_line_and_no_environment(valkey: ValkeyProcess) -> None:
    password = json.loads((valkey.folder / "access.json").read_text())["password"]
    process = psutil.Process(valkey.pid)
    assert password in valkey.url
    assert all(password not in word for word in process.cmdline())
    assert all(password not in value for value in process.environ().values())


def test_everything_on_disk_is_for_its_owner_alone(valkey: ValkeyProcess) -> None:
    client_of(valkey).set("written", "yes")
    paths = [valkey.folder.parent, valkey.folder, *valkey.folder.rglob("*")]
    assert len(paths) > 5
    open_to_others = [path for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert open_to_others == []


def test_the_server_refuses_writes_rather_than_forget_a_job(valkey: ValkeyProcess) -> None:
    settings = client_of(valkey).config_get("maxmemory-policy", "appendonly", "appendfsync", "save")
    assert settings == {
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "no",
        "save": "",
    }


def test_a_killed_server_loses_no_acknowledged_write(valkey: ValkeyProcess) -> None:
    acknowledged: list[list[int]] = [[], []]

    def write(lane: int) -> None:
        client = client_of(valkey)
        for number in range(1_000_000):
            try:
                client.set(f"{lane}:{number}", number)
            except redis.exceptions.ConnectionError:
                return
            acknowledged[lane].append(number)

    writers = [threading.Thread(target=write, args=(lane,)) for lane in range(2)]
    for writer in writers:
        writer.start()
    wait_until(lambda: min(map(len, acknowledged)) > 1000)
    valkey.kill()  # amid the writes
    for writer in writers:
        writer.join()
    valkey.start()
    client = client_of(valkey)
    for lane, numbers in enumerate(acknowledged):
        found = client.mget([f"{lane}:{number}" for number in numbers])
        assert [int(value) for value in found if value is not None] == numbers


def test_a_restart_keeps_port_password_and_data(valkey: ValkeyProcess) -> None:
    client_of(valkey).set("kept", "yes")
    before = (valkey.url, valkey.port, valkey.pid)
    valkey.restart()
    assert (valkey.url, valkey.port) == before[:2]
    assert valkey.pid != before[2]
    assert client_of(valkey).get("kept") == b"yes"


def test_two_servers_share_neither_port_nor_password(tmp_path: Path, valkey: ValkeyProcess) -> None:
    with running_valkey(tmp_path / "other") as other:
        assert other.port != valkey.port
        client_of(other).set("mine", "1")
        assert client_of(valkey).get("mine") is None
        with pytest.raises(redis.exceptions.AuthenticationError):
            redis.Redis.from_url(other.url.replace(str(other.port), str(valkey.port)), retry=ONCE).ping()


def test_a_folder_with_an_odd_name_works(tmp_path: Path) -> None:
    with running_valkey(tmp_path / 'it\'s a "folder" # with 100 % \\ ünïcode') as valkey:
        assert client_of(valkey).set("a", 1) is True
        assert (valkey.folder / "appendonlydir").is_dir()


def test_a_taken_port_is_refused_with_its_number(tmp_path: Path) -> None:
    valkey = ValkeyProcess(tmp_path)
    with socket.create_server(("127.0.0.1", valkey.port)), pytest.raises(DeploymentError, match=str(valkey.port)):
        valkey.start()
    valkey.start()
    valkey.stop()


def test_a_stranger_on_the_port_is_told_from_our_server(tmp_path: Path, valkey: ValkeyProcess) -> None:
    ours = tmp_path / "ours"
    embedded_valkey.prepare(ours)
    access = ours / "valkey" / "access.json"
    document = json.loads(access.read_text())
    access.write_text(json.dumps({**document, "port": valkey.port}))
    with pytest.raises(DeploymentError, match="refuses our password"):
        embedded_valkey.answers(embedded_valkey.prepare(ours))


def test_a_damaged_access_file_says_what_to_do(tmp_path: Path) -> None:
    embedded_valkey.prepare(tmp_path)
    (tmp_path / "valkey" / "access.json").write_text('{"port": 1')
    with pytest.raises(DeploymentError, match=r"access\.json is damaged.*remove it"):
        embedded_valkey.prepare(tmp_path)


def test_a_server_that_cannot_start_shows_the_end_of_its_log(valkey: ValkeyProcess) -> None:
    client_of(valkey).set("a", 1)
    valkey.stop()
    (valkey.folder / "appendonlydir" / "appendonly.aof.manifest").write_text("this is no manifest\n")
    with pytest.raises(DeploymentError, match=r"ended with status 1[\s\S]*manifest"):
        valkey.start()
    with pytest.raises(DeploymentError, match="does not run"):
        _ = valkey.pid


def test_a_state_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    foreign = Path("/etc")
    if os.geteuid() == 0:
        foreign = tmp_path / "foreign"
        foreign.mkdir()
        os.chown(foreign, 12345, 12345)
    with pytest.raises(DeploymentError, match="belongs to user id"):
        private_folder(foreign)
