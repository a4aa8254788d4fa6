"""The processes of a run: a Valkey, a SeaweedFS behind a proxy, persisters, and workers on the scripted engine."""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from engines import SCRIPTED_CONTEXT
from evidence import WorkerEvidence
from faults import Cut
from forge import Child, Forge
from process_rules import judge_process
from programs import PERSISTER, WORKER
from proxies import CutOrder, WorkerProxy
from town import MODEL, ChaosError, on_its_last_chance

from headpond.connections import RedisAddress
from headpond.errors import RedisUnavailable
from headpond.jobs import JobState
from headpond.keys import queue_keys
from headpond.queue import JobQueue, Server
from headpond.wire import RunRow, unpack_run
from headpond.workers import WorkerState
from headpond_workers.persistence.segments import StateStore
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess
from headpond_workers.supervision.embedded_valkey import ValkeyProcess
from headpond_workers.supervision.private_files import last_lines, write_private

SLOTS = 3
LEASE_S = 3.0
TOKENS_PER_S = 120.0
DRAIN_S = 0.5
RETENTION_S = 86_400
SPOOL_AFTER = 60
"""Entries of the journal that stay in Redis while storage is away: so few that most outages come to a spool."""
READY_TIMEOUT_S = 120.0
LEAVE_TIMEOUT_S = 60.0
WHO = "scripts/chaos state"
DATA = "appendonlydir"
"""Of the Valkey, below its folder."""


@dataclass(slots=True)
class Process:
    """One place for a process. killed: it was ended by this run, and so may be gone."""

    program: str
    number: int
    arguments: tuple[str, ...]
    log: Path
    process: Child | None = None
    killed: bool = False
    left: list[str] = field(default_factory=list)
    """How processes ended that were not killed."""

    @property
    def lives(self) -> bool:
        return self.process is not None and not self.process.ended

    @property
    def pid(self) -> int:
        """0 without a process."""
        return 0 if self.process is None else self.process.pid

    def kill(self) -> None:
        """SIGKILL, and wait."""
        if self.process is not None:
            self.killed = True
            self.process.kill()
            self.process.wait()

    def reap(self) -> int | None:
        """The status with which its process has ended, and no process from now on; None while it lives."""
        if self.process is None or not self.process.ended:
            return None
        status = self.process.status()
        self.process.close()
        self.process = None
        return status


class StateTown:
    """Not thread-safe: one thread does what goes wrong, and what mends it."""

    def __init__(
        self,
        valkey: ValkeyProcess,
        seaweed: SeaweedProcess,
        forge: Forge,
        folder: Path,
        *,
        workers: int,
        persisters: int,
    ) -> None:
        """forge: makes processes with `programs.perform`. Writes the configuration, and starts nothing but the proxy
        before storage."""
        self.valkey, self.seaweed, self._forge, self._folder = valkey, seaweed, forge, folder
        self.server = Server(RedisAddress(valkey.url, WHO))
        self.queue: JobQueue = self.server.queue(MODEL, storage=True)
        self.proxy = WorkerProxy(int(seaweed.url.rpartition(":")[2]))
        self.proxy.start()
        self.started = 0
        self.workers_wanted = True
        """Whether `tend` starts them."""
        self.config = folder / "headpond.toml"
        self.workers = [self._place(WORKER, number) for number in range(workers)]
        self.persisters = [self._place(PERSISTER, number) for number in range(persisters)]
        secrets = {
            "redis": urlsplit(valkey.url).password or "", "access": seaweed.access_key, "secret": seaweed.secret_key,
        }  # fmt: skip
        for name, secret in secrets.items():
            write_private(folder / name, secret)
        write_private(
            self.config,
            f'[redis]\nurl = "redis://127.0.0.1:{valkey.port}/0"\npassword = {{file = "{folder / "redis"}"}}\n\n'
            f'[storage]\nendpoint_url = "http://127.0.0.1:{self.proxy.port}"\nbucket = "{seaweed.bucket}"\n'
            f'region = "{seaweed.region}"\naccess_key = {{file = "{folder / "access"}"}}\n'
            f'secret_key = {{file = "{folder / "secret"}"}}\nspool_after_entries = {SPOOL_AFTER}\n\n'
            f'[models.{MODEL}]\nengine = "scripted"\nslots = {SLOTS}\nlease_s = {LEASE_S}\n'
            f"drain_timeout_s = {DRAIN_S}\ntokens_per_s = {TOKENS_PER_S}\nretention_s = {RETENTION_S}\n"
            f"context_tokens = {SCRIPTED_CONTEXT}\n",
        )
        # Past the proxy: what is looked at is storage, and not the way there.
        address = StorageAddress(
            seaweed.url, seaweed.bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, WHO
        )
        self.store = StateStore(S3Blobs(address), MODEL)

    def _place(self, program: str, number: int) -> Process:
        arguments: tuple[str, ...] = ("--config", str(self._folder / "headpond.toml"))
        if program == WORKER:
            arguments += ("--model", MODEL, "--instance", f"{MODEL}-{number}")
        return Process(program, number, arguments, self._folder / f"{program}-{number}.log")

    # ---- what mends

    def tend(self) -> None:
        """Start who is not there."""
        for place in (*self.persisters, *(self.workers if self.workers_wanted else ())):
            killed = place.killed
            if (status := place.reap()) is not None and not killed:
                place.left.append(f"left by itself with {status}: {last_lines(place.log)}")
            if place.process is None:
                self._start(place)

    def _start(self, place: Process) -> None:
        place.process = self.run(place.program, place.arguments, place.log)
        place.killed = False
        self.started += 1

    def run(self, program: str, arguments: tuple[str, ...], log: Path) -> Child:
        """A process of that program; what it says on either stream goes to the log."""
        return self._forge.start(
            {"program": program, "arguments": arguments, "folder": str(self._folder), "log": str(log)}
        )

    def ready_workers(self) -> int:
        """Workers that serve, each of a process of now."""
        pids = {place.pid for place in self.workers if place.lives}
        return sum(row.state is WorkerState.READY and row.pid in pids for row in self.queue.workers())

    def all_ready(self) -> None:
        """Wait until all workers serve an open queue. Raises ChaosError."""
        until = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < until:
            self.tend()
            with suppress(RedisUnavailable):  # it may be starting
                if self.ready_workers() == len(self.workers) and self.queue.meta().get("state") == "open":
                    return
            time.sleep(0.05)
        ends = [how for place in (*self.workers, *self.persisters) for how in place.left]
        raise ChaosError(f"The deployment was not ready within {READY_TIMEOUT_S:g} s. {' '.join(ends[:1])}")

    def drain(self, places: list[Process]) -> None:
        """SIGTERM, as an operator would; who does not leave with 0 is noted in its `left`."""
        alive = [place for place in places if place.process is not None and place.lives]
        for place in alive:
            if place.process is not None:
                place.process.signal(signal.SIGTERM)
        until = time.monotonic() + LEAVE_TIMEOUT_S
        for place in alive:
            while (status := place.reap()) is None and time.monotonic() < until:
                time.sleep(0.02)
            if status is None:
                place.left.append(f"did not leave within {LEAVE_TIMEOUT_S:g} s of SIGTERM")
                place.kill()
            elif status != 0:
                place.left.append(f"was told to leave and left with {status}: {last_lines(place.log)}")

    def evidence(self) -> list[WorkerEvidence]:
        return [
            WorkerEvidence(p.number, tuple(p.left), p.log.read_text(encoding="utf-8", errors="replace"))
            for p in self.workers
        ]

    def told_by_persisters(self) -> list[str]:
        """How persisters left by themselves, and what they logged of defects."""
        told: list[str] = []
        for place in self.persisters:
            log = place.log.read_text(encoding="utf-8", errors="replace") if place.log.exists() else ""
            told += judge_process(f"persister {place.number}", place.left, log)
        return told

    def close(self) -> None:
        """End all that still runs, but for the servers."""
        for place in (*self.workers, *self.persisters):
            place.kill()
        self.proxy.close()
        self.server.close()

    # ---- what is there

    def journal_length(self) -> int:
        """Entries that no commit has taken yet; 0 where nobody can be asked."""
        try:
            return self.queue.journal_length()
        except RedisUnavailable:
            return 0

    def running(self) -> list[RunRow]:
        """Rows of running jobs; none where nobody can be asked."""
        keys = queue_keys(MODEL)
        try:
            ids = self.queue.leased()
            raws = self.server.read("HMGET", keys.named("run"), *ids) if ids else []
        except RedisUnavailable:
            return []
        rows = [unpack_run(raw) for raw in raws if raw is not None]
        return [row for row in rows if row.state is JobState.RUNNING]

    def worker_to_hit(self, draw: float) -> tuple[Process | None, int]:
        """A worker that runs a job, and how many; none of whose jobs would be quarantined by the rule: see
        `town.on_its_last_chance`. None if no worker may be hit."""
        rows = self.running()
        try:
            boots = {row.pid: row.boot for row in self.queue.workers()}
        except RedisUnavailable:
            return None, 0
        turn = int(draw * len(self.workers))
        for place in (*self.workers[turn:], *self.workers[:turn]):
            if not place.lives:
                continue
            its = [row for row in rows if row.worker == boots.get(place.pid)]
            if its and not any(map(on_its_last_chance, its)):
                return place, len(its)
        return None, 0

    # ---- what goes wrong

    def cut(self, mark: str, *, reply: bool) -> CutOrder:
        """Of the next put of an object of this kind."""
        key = f"PUT /{self.seaweed.bucket}/state/{MODEL}/{mark}".encode()
        return self.proxy.cut(Cut.LOSE_REPLY if reply else Cut.LOSE_REQUEST, mark=key)

    def stop_storage(self) -> None:
        os.kill(self.seaweed.pid, signal.SIGSTOP)

    def go_on_storage(self) -> None:
        os.kill(self.seaweed.pid, signal.SIGCONT)

    def close_storage(self, lasts_s: float) -> None:
        self.proxy.cut(Cut.PARTITION, lasts_s=lasts_s)

    def open_storage(self) -> None:
        """At once, however long it was to be closed."""
        self.proxy.cut(Cut.PARTITION, lasts_s=0.0).done.wait(10)

    def kill_valkey(self, away_s: float) -> None:
        self.valkey.kill()
        time.sleep(away_s)
        self.valkey.start()

    def kill_seaweed(self, away_s: float) -> None:
        self.seaweed.kill()
        time.sleep(away_s)
        self.seaweed.start()

    def kill_all(self) -> None:
        """SIGKILL of all persisters, workers, and the Valkey."""
        for place in (*self.persisters, *self.workers):
            if place.process is not None:
                place.killed = True
                place.process.kill()
        self.valkey.kill()
        for place in (*self.persisters, *self.workers):
            if place.process is not None:
                place.process.wait()

    def keep_data(self, folder: Path) -> None:
        """A copy of the dead Valkey's data, as those of a server below `folder`."""
        kept = folder / self.valkey.folder.name
        shutil.rmtree(kept / DATA, ignore_errors=True)
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copytree(self.valkey.folder / DATA, kept / DATA)

    def lose_data(self) -> None:
        """Delete all data of the dead Valkey."""
        shutil.rmtree(self.valkey.folder / DATA)
