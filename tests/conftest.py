"""Fixtures: a real server for each test, and worker processes that end with it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pytest
from hypothesis import settings

from headpond import Client
from headpond.connections import RedisAddress
from headpond.queue import JobQueue, Server
from headpond.workers import WorkerRow, WorkerState
from headpond_workers.supervision.embedded_valkey import ValkeyProcess, running_valkey

pytest_plugins = ["queue_bench", "fleet", "client_town"]

# Time is measured by scripts/bench alone: a busy machine fails no test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

T = TypeVar("T")
DEADLINE_S = 30.0


def pytest_collection_finish() -> None:
    """Spare the collector what the imports made and the whole run needs.

    exllamav2 engines collect garbage when they are closed, and the objects of torch and transformers take a third of a
    second to walk.
    """
    gc.collect()
    gc.freeze()


def eventually(probe: Callable[[], T], *, deadline_s: float = DEADLINE_S, what: str = "the condition") -> T:
    """Wait until probe() is true and return what it gave. Fails the test at the deadline."""
    until = time.monotonic() + deadline_s
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() >= until:
            pytest.fail(f"{what} did not come about within {deadline_s:g} s (last: {value!r})")
        time.sleep(0.01)


@dataclass
class WorkerChild:
    """A real worker process that a test started."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)


@dataclass
class Deployment:
    """One server, one configuration, and the worker processes of a test."""

    valkey: ValkeyProcess
    folder: Path
    children: list[WorkerChild] = field(default_factory=list)
    _servers: list[Server] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.valkey.url

    @property
    def config(self) -> Path:
        return self.folder / "headpond.toml"

    def configure(self, models: str, *, extra: str = "") -> Path:
        """Write headpond.toml: the server of this test, and tables of models."""
        password = self.folder / "redis-password"
        password.touch(mode=0o600)
        password.write_text(urlsplit(self.url).password or "")
        address = f"redis://127.0.0.1:{self.valkey.port}/0"
        self.config.write_text(f'[redis]\nurl = "{address}"\npassword = {{file = "{password}"}}\n{extra}\n{models}')
        return self.config

    def server(self) -> Server:
        server = Server(RedisAddress(self.url, "the test"))
        self._servers.append(server)
        return server

    def queue(self, name: str) -> JobQueue:
        return self.server().queue(name)

    def start(
        self,
        model: str,
        instance: str,
        *,
        ready: bool = True,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = ("headpond_workers.worker",),
    ) -> WorkerChild:
        """Start a worker process, and wait until it says that it is ready.

        environment: variables beside those of the test. program: the module to run, and arguments of its own that
        come before those of a worker.
        """
        log = self.folder / f"{instance}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *program, "--config", str(self.config), "--model", model,
                 "--instance", instance],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
        child = WorkerChild(process, log)
        self.children.append(child)
        if ready:
            queue = self.queue(model)
            eventually(lambda: self._ready(queue, child), what=f"{instance} being ready")
        return child

    def _ready(self, queue: JobQueue, child: WorkerChild) -> WorkerRow | None:
        if child.process.poll() is not None:
            pytest.fail(f"the worker left with {child.process.returncode}:\n{child.log.read_text()[-3000:]}")
        rows = [row for row in queue.workers() if row.pid == child.pid and row.state is WorkerState.READY]
        return rows[0] if rows else None

    def close(self) -> None:
        for child in self.children:
            if child.process.poll() is None:
                child.signal(signal.SIGCONT)
                child.kill()
        for server in self._servers:
            server.close()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A real server with its append-only file, for this test alone."""
    with running_valkey(tmp_path / "server") as process:
        yield process


@pytest.fixture
def deployment(valkey: ValkeyProcess, tmp_path: Path) -> Iterator[Deployment]:
    folder = tmp_path / "deployment"
    folder.mkdir(mode=0o700)
    deployment = Deployment(valkey, folder)
    try:
        yield deployment
    finally:
        deployment.close()


@pytest.fixture
def client(valkey: ValkeyProcess) -> Iterator[Client]:
    with Client(valkey.url) as client:
        yield client
