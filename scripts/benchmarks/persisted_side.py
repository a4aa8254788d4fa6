"""One model of a deployment as `headpond up` makes it, which keeps its state in storage: what `storage` asks of it."""

from __future__ import annotations

import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from both_sides import MODEL, READY_TIMEOUT_S, ask_for, start_producer
from child import BenchmarkError, Child
from runs import Run

from headpond.connections import redis_of
from headpond.queue import JobQueue, Server
from headpond.settings import Settings, load_settings
from headpond.workers import WorkerState
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.supervision.deployment import Deployment
from headpond_workers.supervision.ports import LOOPBACK, free_ports
from headpond_workers.supervision.private_files import private_folder, write_private
from headpond_workers.supervision.programs import PERSISTER, SEAWEED

ABOUT = (
    "a deployment as `headpond up` makes it: Valkey, the persister, SeaweedFS, one worker, supervisord; changes are "
    "journaled, and committed to storage each second"
)
COMMITTED_TIMEOUT_S = 120.0
METRICS_TIMEOUT_S = 10.0
_LOOK_EVERY_S = 0.02
_PUTS = re.compile(r'^SeaweedFS_s3_request_total\{[^}]*type="(?:PUT|POST)"[^}]*\} (\S+)$', re.MULTILINE)


class PersistedModel:
    """Its persister and its storage can be stopped (SIGSTOP) and go on: they do nothing at all meanwhile."""

    def __init__(self, deployment: Deployment, server: Server, producer: Child, metrics_port: int) -> None:
        self.settings: Settings = deployment.settings
        self.url = redis_of(deployment.settings).url
        self.queue: JobQueue = server.queue(MODEL, storage=True)
        self.producer = producer
        self._metrics = f"http://{LOOPBACK}:{metrics_port}/metrics"
        self._processes = _processes(deployment) | {"producer": psutil.Process(producer.pid)}

    def run(self, prompts: list[str], *, max_tokens: int) -> Run:
        """Submit all prompts at once and read their streams to the end."""
        return ask_for(self.producer, prompts, max_tokens)

    def cpu_s(self) -> dict[str, float]:
        """Seconds of processor time so far, of each process by name."""
        times = {name: process.cpu_times() for name, process in self._processes.items()}
        return {name: of.user + of.system for name, of in times.items()}

    def stop(self, *names: str) -> None:
        """Raises BenchmarkError if one has ended."""
        self._signal(signal.SIGSTOP, names)

    def go_on(self, *names: str) -> None:
        """Raises BenchmarkError if one has ended."""
        self._signal(signal.SIGCONT, names)

    def rest(self) -> None:
        """Stop what keeps the state, once all that was acknowledged is in storage."""
        self.await_committed()
        self.stop(PERSISTER, SEAWEED)

    def wake(self) -> None:
        """Let it go on after `rest`. Returns once a job that was submitted since is in storage."""
        self.go_on(SEAWEED, PERSISTER)
        self.run(["Are you there?"], max_tokens=1)
        self.await_committed()

    def await_committed(self) -> None:
        """Until all that is acknowledged by now is in storage. Raises BenchmarkError."""
        end = journal_end(self.queue)

        def committed() -> bool:
            oldest = oldest_waiting(self.queue)
            return oldest is None or oldest > end

        await_that(committed, COMMITTED_TIMEOUT_S, "the journal was committed")

    def puts(self) -> int:
        """Requests to the storage so far that write an object, or a part of one, as it counts them itself."""
        try:
            with urllib.request.urlopen(self._metrics, timeout=METRICS_TIMEOUT_S) as reply:  # noqa: S310 - this machine
                counters = reply.read().decode()
        except OSError as error:
            raise BenchmarkError(f"SeaweedFS does not tell its counters: {error}") from error
        return int(sum(float(count) for count in _PUTS.findall(counters)))

    def _signal(self, signum: signal.Signals, names: Sequence[str]) -> None:
        for name in names:
            try:
                self._processes[name].send_signal(signum)
            except psutil.NoSuchProcess as error:
                raise BenchmarkError(f"{name} has ended.") from error


def journal_end(queue: JobQueue) -> JournalId:
    """The newest entry of a queue's journal so far, trimmed or not."""
    meta = queue.meta()
    return JournalId(int(meta.get("inc", "0")), int(meta.get("journal_seq", "0")))


def oldest_waiting(queue: JobQueue) -> JournalId | None:
    """The oldest entry that was not trimmed; None if there is none."""
    found = queue.journal(limit=1)
    return JournalId.parse(found[0].journal_id) if found else None


@contextmanager
def persisted_model(table: str, folder: Path) -> Iterator[PersistedModel]:
    """Serve `table`, the lines of a [models.NAME] table. folder: private, for this alone. Raises HeadpondError."""
    config = private_folder(folder) / "headpond.toml"
    write_private(config, f"[models.{MODEL}]\n{table}")
    settings = load_settings(config)
    (port,) = free_ports(1)
    _count_requests(settings, port)
    deployment = Deployment(settings)
    try:
        deployment.up()
        status = deployment.wait_ready(timeout_s=READY_TIMEOUT_S)
        if any(worker.state is not WorkerState.READY for worker in status.workers):
            raise BenchmarkError(f"The worker did not come: {status.workers[0].last_error}")
        server = Server(redis_of(settings))
        try:
            with start_producer(redis_of(settings).url, folder) as producer:
                model = PersistedModel(deployment, server, producer, port)
                try:
                    yield model
                finally:
                    # What is stopped does not hear that it is to end.
                    model.go_on(SEAWEED, PERSISTER)
        finally:
            server.close()
    finally:
        deployment.down()


def await_that(holds: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Raises BenchmarkError if it does not hold in time. what: "the journal was committed"."""
    until = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() >= until:
            raise BenchmarkError(f"Not within {timeout_s:g} s: {what}.")
        time.sleep(_LOOK_EVERY_S)


def _processes(deployment: Deployment) -> dict[str, psutil.Process]:
    supervisor = deployment.supervisor()
    if supervisor is None:
        raise BenchmarkError("supervisord has ended.")
    return {name: psutil.Process(process.pid) for name, process in supervisor.processes().items() if process.pid}


def _count_requests(settings: Settings, port: int) -> None:
    """Have the embedded SeaweedFS tell its counters at a port: in the file of options that it reads besides argv."""
    folder = settings.state_folder
    for name in ("seaweedfs", "data"):
        folder = private_folder(private_folder(folder) / name)
    descriptor = os.open(folder / "mini.options", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(f"metricsPort={port}\n")
