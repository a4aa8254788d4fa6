"""The processes of a run: one server, M workers, and a proxy between each worker and the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from evidence import WorkerEvidence
from faults import Cut, Hit
from proxies import CutOrder, WorkerProxy

from headpond.connections import RedisAddress
from headpond.errors import HeadpondError
from headpond.jobs import JobState
from headpond.keys import queue_keys
from headpond.queue import JobQueue, Server
from headpond.wire import RunRow, unpack_run
from headpond.workers import WorkerState
from headpond_workers.supervision.embedded_valkey import ValkeyProcess, running_valkey
from headpond_workers.supervision.private_files import last_lines, write_private

MODEL = "chat"
READY_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 30.0
LOOK_INTERVAL_S = 0.05
PROGRESS_TOKENS = 8
"""That clear a strike. This and the next are the queue's own constants."""
SUSPECT_STRIKES = 2
"""One more quarantines."""


class ChaosError(HeadpondError):
    """The run itself could not go on: nothing is said about the queue."""


@dataclass(slots=True)
class TownWorker:
    """One place for a worker process. boot: of the process that stands there, once it is ready. stopped_until: on
    time.monotonic(), while it is stopped."""

    number: int
    proxy: WorkerProxy
    config: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None
    boot: str | None = None
    stopped_until: float | None = None
    killed: bool = False
    """Ended by this run, and so expected."""
    left: list[str] = field(default_factory=list)
    """How processes ended that were not killed by this run."""

    @property
    def within_reach(self) -> bool:
        """Whether a fault can hit it now."""
        return self.boot is not None and self.stopped_until is None and not self.killed


class Town:
    """Not thread-safe: one thread does what goes wrong, and what mends it."""

    def __init__(self, valkey: ValkeyProcess, folder: Path, table: str, *, workers: int) -> None:
        """table: of the model, in headpond.toml. Starts the proxies; `tend` starts the workers."""
        self.valkey = valkey
        self.server = Server(RedisAddress(valkey.url, "scripts/chaos"))
        self.queue: JobQueue = self.server.queue(MODEL)
        self.started = 0
        self._looked = 0.0
        password = folder / "redis-password"
        write_private(password, urlsplit(valkey.url).password or "")
        self.workers: list[TownWorker] = []
        for number in range(workers):
            proxy = WorkerProxy(valkey.port)
            proxy.start()
            config = folder / f"worker-{number}.toml"
            address = f'[redis]\nurl = "redis://127.0.0.1:{proxy.port}/0"\npassword = {{file = "{password}"}}\n'
            write_private(config, address + table)
            self.workers.append(TownWorker(number, proxy, config, folder / f"worker-{number}.log"))

    # ---- what mends

    def tend(self) -> None:
        """Start who is not there, let go on who was stopped long enough, and learn who is ready."""
        for worker in self.workers:
            if worker.process is not None and (status := worker.process.poll()) is not None:
                if not worker.killed:
                    worker.left.append(f"left by itself with {status}: {last_lines(worker.log)}")
                worker.process = None
            if worker.process is None:
                self._start(worker)
            if worker.stopped_until is not None and time.monotonic() >= worker.stopped_until:
                self.go_on(worker)
        now = time.monotonic()
        if now - self._looked >= LOOK_INTERVAL_S and any(worker.boot is None for worker in self.workers):
            self._looked = now
            ready = {row.pid: row.boot for row in self.queue.workers() if row.state is WorkerState.READY}
            for worker in self.workers:
                if worker.boot is None and worker.process is not None:
                    worker.boot = ready.get(worker.process.pid)

    def all_ready(self) -> None:
        """Wait until each place has a worker that serves. Raises ChaosError."""
        until = time.monotonic() + READY_TIMEOUT_S
        while not all(worker.within_reach for worker in self.workers):
            self.tend()
            if time.monotonic() >= until:
                ends = [how for worker in self.workers for how in worker.left]
                raise ChaosError(f"The workers did not become ready within {READY_TIMEOUT_S:g} s. {' '.join(ends[:1])}")
            time.sleep(0.02)

    def _start(self, worker: TownWorker) -> None:
        with open(os.open(worker.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
            worker.process = subprocess.Popen(
                [sys.executable, "-m", "headpond_workers.worker", "--config", str(worker.config),
                 "--model", MODEL, "--instance", f"{MODEL}-{worker.number}"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=worker.config.parent,
            )  # fmt: skip
        worker.boot, worker.stopped_until, worker.killed = None, None, False
        self.started += 1

    def go_on(self, worker: TownWorker) -> None:
        if worker.process is not None and worker.stopped_until is not None:
            worker.process.send_signal(signal.SIGCONT)
            worker.stopped_until = None

    def drain(self) -> None:
        """SIGTERM to all, as an operator would; who does not leave with 0 is noted in its `left`."""
        for worker in self.workers:
            if worker.process is not None:
                self.go_on(worker)
                worker.process.terminate()
        for worker in self.workers:
            if worker.process is None:
                continue
            try:
                status = worker.process.wait(DRAIN_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                worker.left.append(f"did not leave within {DRAIN_TIMEOUT_S:g} s of SIGTERM")
                continue
            worker.process = None
            if status != 0:
                worker.left.append(f"was told to leave and left with {status}")

    def evidence(self) -> list[WorkerEvidence]:
        return [
            WorkerEvidence(w.number, tuple(w.left), w.log.read_text(encoding="utf-8", errors="replace"))
            for w in self.workers
        ]

    def close(self) -> None:
        """End all that still runs, but for the server."""
        for worker in self.workers:
            if worker.process is not None and worker.process.poll() is None:
                worker.process.kill()
                worker.process.wait()
            worker.proxy.close()
        self.server.close()

    # ---- what goes wrong

    def kill_worker(self, worker: TownWorker) -> Hit:
        """SIGKILL. What it hit is looked up once the process is dead: its leases still show it."""
        boot = worker.boot
        self._process(worker).kill()
        self._process(worker).wait()
        worker.killed, worker.boot = True, None
        return _hit(self.running().get(boot or "", []))

    def kill_server(self, away_s: float) -> Hit:
        """SIGKILL, and a start on the same port and data. What it hit is looked up just before."""
        hit = _hit([row for rows in self.running().values() for row in rows])
        self.valkey.kill()
        time.sleep(away_s)
        self.valkey.start()
        return hit

    def stop_worker(self, worker: TownWorker, lasts_s: float) -> Hit:
        """SIGSTOP. `tend` lets it go on."""
        self._process(worker).send_signal(signal.SIGSTOP)
        worker.stopped_until = time.monotonic() + lasts_s
        return _hit(self.running().get(worker.boot or "", []))

    def cut_off(self, worker: TownWorker, cut: Cut, script: str, lasts_s: float) -> tuple[Hit, CutOrder]:
        """What it hit is looked up just before."""
        hit = _hit(self.running().get(worker.boot or "", []))
        return hit, worker.proxy.cut(cut, script=script, lasts_s=lasts_s)

    def running(self) -> dict[str, list[RunRow]]:
        """Rows of running jobs by the boot id of their worker."""
        keys = queue_keys(MODEL)
        ids = [raw.decode() for raw in self.server.read("ZRANGE", keys.named("leases"), 0, -1)]
        if not ids:
            return {}
        found: dict[str, list[RunRow]] = {}
        for raw in self.server.read("HMGET", keys.named("run"), *ids):
            if raw is not None and (row := unpack_run(raw)).state is JobState.RUNNING:
                found.setdefault(row.worker, []).append(row)
        return found

    @staticmethod
    def _process(worker: TownWorker) -> subprocess.Popen[bytes]:
        if worker.process is None:
            raise ChaosError(f"Worker {worker.number} has no process: call tend() first.")
        return worker.process


def fresh(row: RunRow) -> bool:
    """Whether the end of this lease, now, would be a strike."""
    return row.offset - row.claimed_offset < PROGRESS_TOKENS


def on_its_last_chance(row: RunRow) -> bool:
    """Whether the end of this lease, now, would quarantine its job."""
    return row.strikes >= SUSPECT_STRIKES and fresh(row)


def _hit(rows: list[RunRow]) -> Hit:
    return Hit(len(rows), sum(map(fresh, rows)))


@contextmanager
def running_town(folder: Path, table: str, *, workers: int) -> Iterator[Town]:
    """A town whose workers are ready. All its processes have ended when this is left."""
    folder.mkdir(mode=0o700)
    with running_valkey(folder / "server") as valkey:
        town = Town(valkey, folder, table, workers=workers)
        try:
            town.all_ready()
            yield town
        finally:
            town.close()
