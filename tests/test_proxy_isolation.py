"""Two proxies with two keys, over a server that fails in many ways and repeats keys: none goes where it should not."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
import redis

from conftest import eventually
from headpond import Client
from headpond.errors import DeploymentError, JobEnded
from headpond.settings import load_settings
from headpond.workers import WorkerState
from headpond_workers.supervision.deployment import Deployment
from headpond_workers.supervision.run_file import RunFile, read_run_file
from key_search import KeySearch, Place, command_lines, environments, files, redis_values, s3, s3_objects
from misbehaving_server import MisbehavingServer, misbehaving_server

pytestmark = pytest.mark.slow

KEYS = {
    "one": r"""sk-one-%41%(here)s"q'x#y;z\n\\end-0a1b2c3d4e5f""",
    "two": r"""sk-two-%%25 ;'#"$HOME`id`\u0041\-f5e4d3c2b1a0""",
}
FAULTS = [
    "bad_request", "wrong_key", "forbidden", "error_500", "cut", "html", "redirect", "not_json", "endless_line", "mute",
]  # fmt: skip
VARIABLE = "HP_TEST_KEY_ONE"


def config(server: MisbehavingServer, key_file: Path) -> str:
    common = f"""\
engine = "openai"
base_url = "{server.url}"
upstream_model = "m"
max_retries = 1
backoff_s = 0.05
first_token_timeout_s = 0.5
max_response_bytes = 1000000
lease_s = 1
drain_timeout_s = 1
"""
    return f"""\
[models.one]
{common}api_key = {{env = "{VARIABLE}"}}
headers = {{X-Secret = {{env = "{VARIABLE}"}}}}
[models.two]
{common}api_key = {{file = "{key_file}"}}
headers = {{X-Secret = {{file = "{key_file}"}}}}
"""


class Town:
    """A deployment, and everything of it that can be searched."""

    def __init__(self, folder: Path) -> None:
        self.deployment = Deployment(load_settings(folder / "headpond.toml"), progress=lambda line: None)
        self.shown: list[Place] = []

    @property
    def run(self) -> RunFile:
        run = read_run_file(self.deployment.folder)
        assert run is not None
        return run

    def ready_pid(self, model: str) -> int | None:
        """Of the model's worker; None while there is none that is ready."""
        ready = [w.pid for w in self.deployment.status().workers if w.model == model and w.state is WorkerState.READY]
        return ready[0] if ready else None

    def processes(self) -> list[psutil.Process]:
        supervisor = psutil.Process(self.run.supervisor_pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def places(self) -> Iterator[Place]:
        yield from environments(self.processes())
        yield from command_lines()
        yield from files(self.deployment.folder)
        yield from redis_values(self.run.redis_url)
        assert self.run.storage is not None
        yield from s3_objects(self.run.storage)
        yield "status", repr(self.deployment.status()).encode()
        yield from self.shown


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with misbehaving_server(token_s=0.001) as server:
        yield server


@pytest.fixture
def town(tmp_path: Path, server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Town]:
    folder = tmp_path / "town"
    folder.mkdir()
    key_file = tmp_path / "key-of-two"
    key_file.touch(mode=0o600)
    key_file.write_text(KEYS["two"] + "\n")
    monkeypatch.setenv(VARIABLE, KEYS["one"])
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    (folder / "headpond.toml").write_text(config(server, key_file))
    town = Town(folder)
    try:
        town.deployment.up()
        town.deployment.wait_ready(timeout_s=120)
        yield town
    finally:
        with contextlib.suppress(DeploymentError):
            town.deployment.down()


def run_jobs(town: Town, client: Client) -> None:
    """Meet every fault with both models, and keep what a producer is shown."""
    for model in KEYS:
        jobs = [client.submit(model, text) for text in ["hello", *(f"!{fault}" for fault in FAULTS)]]
        for job in jobs:
            try:
                shown = repr(job.result(timeout=90))
            except JobEnded as error:
                shown = f"{error!r} {error} {error.result!r}"
            town.shown.append((f"what {job.id} ended with", shown.encode()))


def crash(town: Town, model: str) -> None:
    """A real crash of a worker, with Python's own report of it in the log."""
    pid = eventually(lambda: town.ready_pid(model), what="a worker")
    assert pid is not None
    limits = Path(f"/proc/{pid}/limits").read_text()
    (core,) = [line.split() for line in limits.splitlines() if line.startswith("Max core file size")]
    assert core[4] == "0"
    os.kill(pid, signal.SIGSEGV)
    log = town.deployment.logs.folder / f"{model}-0.log"
    eventually(lambda: "Fatal Python error: Segmentation fault" in log.read_text(), what="the report of the crash")
    eventually(lambda: town.ready_pid(model) not in (None, pid), deadline_s=60, what="another worker")


def test_no_key_stands_where_it_should_not(town: Town, server: MisbehavingServer, tmp_path: Path) -> None:
    search = KeySearch(KEYS)
    with Client(town.run.redis_url) as client:
        run_jobs(town, client)
        server.fault = "wrong_key"
        waiting = [client.submit(model, "hello") for model in KEYS]
        eventually(
            lambda: {w.last_error for w in town.deployment.status().workers if "HTTP 401" in w.last_error},
            what="the workers to say that their keys are refused",
        )
        server.fault = None
        for job in waiting:
            town.shown.append((job.id, repr(job.result(timeout=90)).encode()))
        for model in KEYS:
            crash(town, model)
        for model in KEYS:
            client.submit(model, "hello").result(timeout=90)
    # Each key was sent by its own model's worker, and was repeated by the server.
    assert {request.key for request in server.received} == set(KEYS.values())

    with Client(town.run.redis_url) as client:
        settled = redis.Redis.from_url(town.run.redis_url)
        eventually(
            lambda: all(settled.xlen(f"headpond:{{{model}}}:journal") == 0 for model in KEYS),
            deadline_s=60, what="the journals to be committed",
        )  # fmt: skip
        settled.close()

    # A variable stands in the environment of who was given it: supervisord, and the model's own worker.
    allowed = {
        ("one", f"environment of {town.run.supervisor_pid}"),
        ("one", f"environment of {town.ready_pid('one')}"),
    }
    assert search.found(town.places()) == allowed

    assert not list(tmp_path.rglob("core*"))
    plant(town)
    found = {where for _, where in search.found(town.places())} - {where for _, where in allowed}
    missed = {place for place in PLANTED if not any(place in where for where in found)}
    assert missed == set()


PLANTED = (
    "raw.txt",
    "base64.bin",
    "url.txt",
    "json.txt",
    "redis value",
    "s3 planted",
    "command line",
    "environment",
    "ps",
)


def plant(town: Town) -> None:
    """Put keys where the search must find them, in the ways that it claims to know."""
    key = KEYS["two"]
    folder = town.deployment.folder
    (folder / "raw.txt").write_text(f"x{key}x")
    (folder / "base64.bin").write_bytes(base64.b64encode(b"Bearer: " + key.encode() + b" and more"))
    (folder / "url.txt").write_text(f"http://user:{quote(key, safe='')}@proxy")
    (folder / "json.txt").write_text(repr({"key": key}))
    client = redis.Redis.from_url(town.run.redis_url)
    client.hset("planted", "field", key)
    client.close()
    assert town.run.storage is not None
    storage = s3(town.run.storage)
    bucket = storage.list_buckets()["Buckets"][0]["Name"]
    storage.put_object(Bucket=bucket, Key="planted", Body=key.encode())
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", key], env={**os.environ, "PLANTED": key}
    )
    planted = psutil.Process(process.pid)
    town.shown += list(environments([planted]))
    town.shown += list(command_lines())
    process.kill()
    process.wait()
