"""Deployments of `headpond up` on one Redis and one storage, each in a folder of its own, as if on its own machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from typer.testing import CliRunner

from headpond import Client
from headpond.cli.app import build_app
from headpond.cli.exits import exit_code
from headpond.connections import RedisAddress
from headpond.errors import HeadpondError
from headpond.queue import Server
from headpond.settings import load_settings
from headpond.workers import WorkerRow, WorkerState
from headpond_workers.supervision.deployment import Deployment
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess
from headpond_workers.supervision.embedded_valkey import ValkeyProcess
from headpond_workers.supervision.supervisord_process import process_runs

HEADPOND = [sys.executable, "-c", "from headpond.cli import main; main()"]
READY_S = 60.0


@dataclass(frozen=True)
class Said:
    """What a command said."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Place:
    """One folder with a configuration, and what runs there."""

    town: Town
    folder: Path
    lines: list[str] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "headpond.toml"

    @property
    def deployment(self) -> Deployment:
        """With the configuration as it is now. What it tells is in `lines`."""
        return Deployment(load_settings(self.config), progress=self.lines.append)

    def configure(self, models: str) -> None:
        self.config.write_text(self.town.servers + models)

    def up(self) -> None:
        self.deployment.up()
        self.deployment.wait_ready(timeout_s=READY_S)

    def pids(self) -> dict[str, int]:
        """Of the workers that this place's supervisord runs."""
        return {worker.instance: worker.pid for worker in self.deployment.status().workers if worker.here}

    def command(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Said:
        """A command as in `headpond`, in this process: sooner, and it cannot be interrupted."""
        done = CliRunner().invoke(build_app(), [*arguments, "--config", str(self.config)], env=environment)
        if isinstance(done.exception, HeadpondError):
            return Said(exit_code(done.exception), done.stdout, f"{done.stderr}{done.exception}")
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return Said(done.exit_code, done.stdout, done.stderr)

    def headpond(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command, as at a shell in this folder."""
        return subprocess.run(
            [*HEADPOND, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "COLUMNS": "200", **(environment or {})},
        )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.pid != os.getpid() and process_runs(process.pid):
                    words = " ".join(process.cmdline())
                    if f"{self.folder}/" in words or process.cwd() == str(self.folder / ".headpond"):
                        found.append(process)
        return found

    def close(self) -> None:
        with contextlib.suppress(HeadpondError):
            self.deployment.down()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.kill()


@dataclass
class Town:
    """What the places share."""

    valkey: ValkeyProcess
    servers: str
    folder: Path
    places: list[Place] = field(default_factory=list)
    _servers: list[Server] = field(default_factory=list)

    def place(self, name: str, models: str) -> Place:
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        place = Place(self, folder)
        place.configure(models)
        self.places.append(place)
        return place

    def client(self) -> Client:
        return Client(self.valkey.url)

    def server(self) -> Server:
        server = Server(RedisAddress(self.valkey.url, "the test"))
        self._servers.append(server)
        return server

    def ready(self, model: str) -> list[WorkerRow]:
        return [row for row in self.server().queue(model).workers() if row.state is WorkerState.READY]

    def holders(self, model: str) -> set[str]:
        return {holder.deployment for holder in self.server().models()[model].holders}

    def close(self) -> None:
        for place in self.places:
            place.close()
        for server in self._servers:
            server.close()


@contextlib.contextmanager
def town_of(valkey: ValkeyProcess, seaweed: SeaweedProcess, folder: Path) -> Iterator[Town]:
    """A bucket of its own on a storage that may be shared: a Redis has one history."""
    secrets = {
        "redis": urlsplit(valkey.url).password or "",
        "access": seaweed.access_key,
        "secret": seaweed.secret_key,
    }
    for name, value in secrets.items():
        path = folder / f"{name}-secret"
        path.touch(mode=0o600)
        path.write_text(value)
    servers = f"""
[redis]
url = "redis://127.0.0.1:{valkey.port}/0"
password = {{file = "{folder}/redis-secret"}}
[storage]
endpoint_url = "{seaweed.url}"
bucket = "town-{uuid.uuid4().hex[:12]}"
region = "{seaweed.region}"
access_key = {{file = "{folder}/access-secret"}}
secret_key = {{file = "{folder}/secret-secret"}}
"""
    town = Town(valkey, servers, folder)
    try:
        yield town
    finally:
        town.close()
