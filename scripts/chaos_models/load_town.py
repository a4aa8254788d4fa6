"""The processes of a run under load: a Valkey, a SeaweedFS, a persister, and workers that follow an alias."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from evidence import WorkerEvidence
from town import MODEL, ChaosError, on_its_last_chance

from headpond.connections import RedisAddress
from headpond.jobs import JobState
from headpond.keys import PERSISTENCE_QUEUE, queue_keys
from headpond.queue import JobQueue, Server
from headpond.wire import RunRow, unpack_run
from headpond.workers import WorkerRow, WorkerState
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess
from headpond_workers.supervision.embedded_valkey import ValkeyProcess
from headpond_workers.supervision.private_files import last_lines, write_private

SLOTS = 3
LEASE_S = 1.5
TOKENS_PER_S = 120.0
DRAIN_S = 2.0
VERSION_WAIT_S = 300.0
"""A pinned job is not to fail while workers are killed before they come to its version."""
READY_TIMEOUT_S = 120.0
LEAVE_TIMEOUT_S = 40.0
CHANGING = (WorkerState.STARTING, WorkerState.LOADING, WorkerState.DRAINING)


@dataclass(frozen=True, slots=True)
class WorkerHit:
    """What a kill of a worker met. jobs: that ran in its processes. changing: one started, loaded or drained."""

    jobs: int
    changing: bool


@dataclass(slots=True)
class Place:
    """One place for a worker, with side by side for a parent and up to two workers; or for the persister. program: its
    module, and what follows the configuration."""

    number: int
    log: Path
    program: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    killed: bool = False
    """Something of it was ended by this run, so that it may leave."""
    left: list[str] = field(default_factory=list)


class LoadTown:
    """Not thread-safe: one thread does what goes wrong, and what mends it."""

    def __init__(
        self, valkey: ValkeyProcess, seaweed: SeaweedProcess, folder: Path, *, workers: int, rollover: str, source: str
    ) -> None:
        """rollover: of the model. source: the alias that it follows. Starts nothing."""
        self.server = Server(RedisAddress(valkey.url, "scripts/chaos models"))
        self.queue: JobQueue = self.server.queue(MODEL, storage=True)
        self.started = 0
        self._config = folder / "headpond.toml"
        self._environment = {**os.environ, "HEADPOND_CACHE": str(folder / "cache")}
        self._persister = Place(-1, folder / "persister.log", ("headpond_workers.persister",))
        self.places = [
            Place(
                number, folder / f"worker-{number}.log",
                ("headpond_workers.worker", "--model", MODEL, "--instance", f"{MODEL}-{number}"),
            )
            for number in range(workers)
        ]  # fmt: skip
        secrets = {
            "redis": urlsplit(valkey.url).password or "", "access": seaweed.access_key, "secret": seaweed.secret_key,
        }  # fmt: skip
        for name, secret in secrets.items():
            write_private(folder / name, secret)
        write_private(
            self._config,
            f'[redis]\nurl = "redis://127.0.0.1:{valkey.port}/0"\npassword = {{file = "{folder / "redis"}"}}\n\n'
            f'[storage]\nendpoint_url = "{seaweed.url}"\nbucket = "{seaweed.bucket}"\nregion = "{seaweed.region}"\n'
            f'access_key = {{file = "{folder / "access"}"}}\nsecret_key = {{file = "{folder / "secret"}"}}\n\n'
            f'[models.{MODEL}]\nengine = "scripted"\nsource = "{source}"\nrollover = "{rollover}"\nslots = {SLOTS}\n'
            f"lease_s = {LEASE_S}\ndrain_timeout_s = {DRAIN_S}\ntokens_per_s = {TOKENS_PER_S}\n"
            f"version_wait_s = {VERSION_WAIT_S}\n",
        )

    # ---- what mends

    def start_persister(self) -> None:
        """It opens the queue, and completes moves of the alias that were cut off."""
        self._start(self._persister)

    def tend(self) -> None:
        """Start who is not there."""
        for place in (*self.places, self._persister):
            if place.process is not None and (status := place.process.poll()) is not None:
                if not place.killed:
                    place.left.append(f"left by itself with {status}: {last_lines(place.log)}")
                place.process = None
            if place.process is None:
                self._start(place)

    def serving(self) -> list[WorkerRow]:
        """Rows of workers that serve, each of a process that lives."""
        return [row for row in self.queue.workers() if row.state is WorkerState.READY and psutil.pid_exists(row.pid)]

    def all_serve(self, version: str) -> None:
        """Wait until each place serves this version, and no other does. Raises ChaosError."""
        until = time.monotonic() + READY_TIMEOUT_S
        while True:
            self.tend()
            rows = self.serving()
            if sorted(row.version for row in rows) == [version] * len(self.places):
                return
            if time.monotonic() >= until:
                told = ", ".join(f"{row.instance} {row.state} {row.version}" for row in self.queue.workers())
                raise ChaosError(f"Not all workers serve version {version} after {READY_TIMEOUT_S:g} s: {told}")
            time.sleep(0.05)

    def _start(self, place: Place) -> None:
        module, *arguments = place.program
        with open(os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
            place.process = subprocess.Popen(
                [sys.executable, "-m", module, "--config", str(self._config), *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self._config.parent, env=self._environment,
            )  # fmt: skip
        place.killed = False
        self.started += 1

    def drain(self) -> None:
        """SIGTERM to all, as an operator would; who does not leave with 0 is noted in its `left`."""
        places = [place for place in (*self.places, self._persister) if place.process is not None]
        # The persister last: it commits what the workers' ends left in the journal.
        for group in ([place for place in places if place is not self._persister], [self._persister]):
            for place in group:
                if place.process is not None:
                    place.process.terminate()
            for place in group:
                if place.process is None:
                    continue
                try:
                    status = place.process.wait(LEAVE_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    place.left.append(f"did not leave within {LEAVE_TIMEOUT_S:g} s of SIGTERM")
                    continue
                place.process = None
                if status != 0 and not place.killed:
                    place.left.append(f"was told to leave and left with {status}")

    def evidence(self) -> list[WorkerEvidence]:
        return [
            WorkerEvidence(p.number, tuple(p.left), p.log.read_text(encoding="utf-8", errors="replace"))
            for p in (*self.places, self._persister)
        ]

    def close(self) -> None:
        """End all that still runs, but for the servers."""
        for place in (*self.places, self._persister):
            if place.process is not None and place.process.poll() is None:
                family = _family(place.process.pid)
                place.process.kill()
                place.process.wait()
                psutil.wait_procs(family, LEAVE_TIMEOUT_S)
        self.server.close()

    # ---- what goes wrong

    def kill_worker(self, place: Place, draw: float) -> WorkerHit:
        """SIGKILL of one process of it. What it hit is looked up just before.

        draw: in [0, 1), which one: the parent, whose workers then end too, or a worker. Two workers of one parent have
        rows with its pid, so both are taken for hit: one of them serves, and the other loads or drains.
        """
        if place.process is None:
            return WorkerHit(0, changing=False)
        family = [psutil.Process(place.process.pid), *_family(place.process.pid)]
        victim = family[int(draw * len(family))]
        place.killed = True
        rows = {row.boot: row for row in self.queue.workers() if row.pid == place.process.pid}
        hit = WorkerHit(self._running(set(rows)), changing=any(row.state in CHANGING for row in rows.values()))
        victim.kill()
        if victim.pid == place.process.pid:
            # Else the place is held until they have ended.
            psutil.wait_procs(family, LEAVE_TIMEOUT_S)
            place.process.wait()
        return hit

    def kill_persister(self) -> int | None:
        """SIGKILL. Returns how many changes waited in the journal for it just before. None: it is not there, or only
        starts, and is spared."""
        process = self._persister.process
        rows = self.server.queue(PERSISTENCE_QUEUE).workers()
        if process is None or process.poll() is not None or process.pid not in {row.pid for row in rows}:
            return None
        self._persister.killed = True
        waiting = self.queue.journal_length()
        process.kill()
        process.wait()
        return waiting

    def may_be_hit(self, place: Place) -> bool:
        """Whether it stands, and no job of it would be quarantined by the rule: see `town.on_its_last_chance`."""
        if place.process is None or place.process.poll() is not None:
            return False
        boots = {row.boot for row in self.queue.workers() if row.pid == place.process.pid}
        return not any(row.worker in boots and on_its_last_chance(row) for row in self._rows())

    def _rows(self) -> list[RunRow]:
        """Of running jobs."""
        keys = queue_keys(MODEL)
        ids = [raw.decode() for raw in self.server.read("ZRANGE", keys.named("leases"), 0, -1)]
        raws = self.server.read("HMGET", keys.named("run"), *ids) if ids else []
        rows = [unpack_run(raw) for raw in raws if raw is not None]
        return [row for row in rows if row.state is JobState.RUNNING]

    def _running(self, boots: set[str]) -> int:
        """Jobs that run under these."""
        return sum(row.worker in boots for row in self._rows())


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
