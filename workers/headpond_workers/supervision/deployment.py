"""One deployment on this machine: brought up, looked at, scaled, taken down.

Its state is all below `.headpond/` beside the configuration. Each step can be repeated: a command that was
killed half-way is put right by the next one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from headpond.connections import redis_of
from headpond.errors import ConfigError, DeploymentError, RedisUnavailable
from headpond.queue import JobQueue, Server
from headpond.settings import Settings
from headpond.up_file import UP_FILE
from headpond.workers import WorkerState
from headpond_workers.supervision import embedded_seaweed, programs
from headpond_workers.supervision.convergence import converge, stop_timeout_s, write_files
from headpond_workers.supervision.launcher import HELD_BACK, STARTS
from headpond_workers.supervision.private_files import (
    FILE_MODE,
    cannot_write,
    last_lines,
    private_folder,
    write_private,
)
from headpond_workers.supervision.programs import Program, split_worker_name
from headpond_workers.supervision.run_file import read_run_file, remove_run_file, write_run_file
from headpond_workers.supervision.runtime_folder import (
    make_runtime_folder,
    remove_runtime_folder,
    socket_candidates,
)
from headpond_workers.supervision.scaling import remember, worker_counts
from headpond_workers.supervision.servers import (
    CRASHES_BEFORE_FAILED,
    Servers,
    prepare_servers,
    run_file,
    wait_for_free_ports,
    wait_for_servers,
)
from headpond_workers.supervision.status import DeploymentStatus, QueueStatus, WorkerStatus, closed_reason, join
from headpond_workers.supervision.supervisor import (
    CONF_NAME,
    Supervisor,
    SupervisorGone,
    find_supervisor,
    start_supervisord,
)

Progress = Callable[[str], None]
"""Takes one line about what was done, for people."""

LOCK_FILE = "deployment.lock"
LOCK_TIMEOUT_S = 60.0
SHUTDOWN_TIMEOUT_S = 90.0
REDIS_OUTAGE_S = 30.0
"""How long Redis may be away while workers are waited for."""
POLL_INTERVAL_S = 0.2
LEAST_FREE_BYTES = 64 << 20


def _say_nothing(_: str) -> None:
    pass


class Deployment:
    """The deployment of one configuration. environment: decides where the supervisor's socket stands."""

    def __init__(
        self,
        settings: Settings,
        *,
        progress: Progress = _say_nothing,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        if settings.file is None:
            raise DeploymentError("A deployment needs a configuration file: write a headpond.toml first.")
        self.settings = settings
        self.folder: Path = settings.state_folder
        self._progress = progress
        self._sockets = socket_candidates(self.folder, environment)

    @property
    def log_folder(self) -> Path:
        return self.folder / programs.LOG_FOLDER

    def supervisor(self) -> Supervisor | None:
        """The running supervisord of this deployment. A run.json that outlived its processes is not believed."""
        run = read_run_file(self.folder)
        known = [Path(run.supervisor_socket)] if run is not None else []
        return find_supervisor([*known, *self._sockets])

    def up(self) -> None:
        """Start what does not run, and bring what runs in line with the configuration.

        Returns once the servers answer and every worker's process is started; `wait_ready` waits for models.
        Raises DeploymentError saying what stood in the way.
        """
        if not self.settings.models:
            raise ConfigError("names no model: add a table such as [models.chat]", where=str(self.settings.file))
        self._prepare_folders()
        with self._locked():
            servers = prepare_servers(self.settings)
            supervisor = self.supervisor()
            if supervisor is None:
                supervisor = self._start(servers)
            else:
                self._progress(f"supervisord runs already (pid {supervisor.pid()})")
                present = set(supervisor.processes())
                self._converge(supervisor, servers.programs(), keep=present)
            wait_for_servers(supervisor, servers, log_folder=self.log_folder, progress=self._progress)
            # Before the workers, which look into it.
            write_run_file(self.folder, run_file(self.settings, servers, supervisor))
            self._check_redis()
            # Before the workers, which read the same settings.
            write_private(self.folder / UP_FILE, self.settings.told.document())
            self._converge(supervisor, [*servers.programs(), *self._own_programs()])
            for name, process in sorted(supervisor.processes().items()):
                if process.state.ended and process.started_s:
                    self._progress(f"{name} had ended; it is started again")
                    supervisor.start(name)

    def wait_ready(self, *, timeout_s: float | None = None) -> DeploymentStatus:
        """Return once every worker is ready or has failed, telling progress of each change.

        A worker whose process ends again and again counts as failed. timeout_s: None waits as long as models
        take to load. Raises DeploymentError if it passes, or if the deployment is stopped meanwhile.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        lives: dict[str, set[int]] = {}
        shown: dict[str, WorkerState] = {}
        while True:
            status = self._status_despite_outage()
            wanted = self.instances()
            pending = set(wanted)
            workers = []
            for worker in status.workers:
                if worker.instance in wanted:
                    pids = lives.setdefault(worker.instance, set())
                    pids |= {worker.pid} - {0}
                    if len(pids) > CRASHES_BEFORE_FAILED and worker.state is not WorkerState.READY:
                        worker = self._crashing(worker)
                    if worker.state in (WorkerState.READY, WorkerState.FAILED):
                        pending.discard(worker.instance)
                    if shown.get(worker.instance) is not worker.state:
                        shown[worker.instance] = worker.state
                        self._progress(describe(worker))
                workers.append(worker)
            if not pending:
                return replace(status, workers=tuple(workers))
            if deadline is not None and time.monotonic() >= deadline:
                raise DeploymentError(
                    f"Not ready after {timeout_s:g} s: {', '.join(sorted(pending))}. They go on loading; see "
                    "headpond status, and headpond logs."
                )
            time.sleep(POLL_INTERVAL_S)

    def scale(self, counts: Mapping[str, int]) -> None:
        """Set how many workers some models have, now and at each later `up`.

        New ones are started; those of the highest index leave, each after its drain. All others keep running as
        they are, with their pids. Raises DeploymentError if nothing runs here.
        """
        self._running()
        with self._locked():
            supervisor = self._running()
            remember(self.settings, dict(counts))
            present = set(supervisor.processes())
            wanted = {program.name: program for program in self._own_programs()}
            added = [wanted[name] for name in wanted if name not in present and _model_of(name) in counts]
            keep = {name for name in present if name in wanted or _model_of(name) not in counts}
            self._converge(supervisor, added, keep=keep)

    def down(self) -> bool:
        """Stop everything: workers drain, then the persister, then the servers, then supervisord.

        Returns whether anything ran. Nothing runs afterwards; the data stay.
        """
        if not self.folder.is_dir():
            return False
        with self._locked():
            supervisor = self.supervisor()
            if supervisor is None:
                remove_run_file(self.folder)
                (self.folder / UP_FILE).unlink(missing_ok=True)
                return False
            run = read_run_file(self.folder)
            try:
                names = set(supervisor.processes())
                workers = sorted(name for name in names if split_worker_name(name))
                for batch in (workers, [programs.PERSISTER], list(programs.SERVERS)):
                    present = [name for name in batch if name in names]
                    timeout_s = stop_timeout_s(self.settings, present)
                    supervisor.stop(present, timeout_s=timeout_s, progress=self._progress)
                supervisor.shutdown(timeout_s=SHUTDOWN_TIMEOUT_S)
            except SupervisorGone as error:
                raise DeploymentError(
                    "supervisord ended while it was asked to stop; what it ran ends with it. Its last words:\n"
                    f"{self.supervisor_log()}"
                ) from error
            if run is not None and run.storage is not None:
                embedded_seaweed.remove_sockets(
                    embedded_seaweed.prepare(self.folder, bucket=self.settings.storage.bucket)
                )
            remove_runtime_folder(supervisor.socket)
            remove_run_file(self.folder)
            (self.folder / UP_FILE).unlink(missing_ok=True)
            self._progress("supervisord stopped")
            return True

    def status(self) -> DeploymentStatus:
        """Queues and workers as they are now.

        Raises SupervisorGone if the deployment embeds its Redis and does not run, RedisUnavailable if Redis
        does not answer.
        """
        supervisor = self.supervisor() if self.settings.redis.url is not None else self._running()
        processes = supervisor.processes() if supervisor is not None else {}
        server = Server(redis_of(self.settings))
        try:
            seconds, microseconds = server.read("TIME")
            queues, rows = [], []
            for model in sorted({*self.settings.models, *server.models()}):
                # Read, never opened: looking at a queue must not change what it is.
                queue = JobQueue(server, model)
                queues.append(QueueStatus(model, queue.depths(), closed_reason(queue.meta())))
                rows += queue.workers()
        finally:
            server.close()
        workers = join(
            processes,
            rows,
            host=socket.gethostname(),
            now_ms=int(seconds) * 1000 + int(microseconds) // 1000,
            lease_s={name: model.lease_s for name, model in self.settings.models.items()},
            last_log_line=self._last_log_line,
        )
        return DeploymentStatus(tuple(queues), tuple(workers))

    def instances(self) -> set[str]:
        """The names of the workers that should run here."""
        return {
            programs.worker_name(model, index)
            for model, count in worker_counts(self.settings).items()
            for index in range(count)
        }

    def supervisor_log(self, lines: int = 5) -> str:
        """The end of supervisord's own log."""
        return last_lines(self.log_folder / "supervisord.log", lines)

    def _prepare_folders(self) -> None:
        private_folder(self.folder)
        for name in (programs.LOG_FOLDER, programs.CONF_FOLDER, programs.STARTS_FOLDER):
            private_folder(self.folder / name)
        free = shutil.disk_usage(self.folder).free
        if free < LEAST_FREE_BYTES:
            raise DeploymentError(
                f"Only {free >> 20} MiB are free on the disk of {self.folder}. Free some space, then try again."
            )

    def _start(self, servers: Servers) -> Supervisor:
        """Start supervisord with the servers alone: workers come once those answer."""
        remove_run_file(self.folder)  # what it says is of a deployment that is gone
        wait_for_free_ports(servers)
        place = self._sockets[0]
        make_runtime_folder(place)
        write_private(self.folder / CONF_NAME, programs.supervisord_conf(socket=place, state_folder=self.folder))
        write_files(self.folder, servers.programs(), keep=())
        supervisor = start_supervisord(self.folder, place, log_folder=self.log_folder)
        self._progress(f"supervisord started (pid {supervisor.pid()})")
        return supervisor

    def _check_redis(self) -> None:
        """Raises RedisUnavailable before any worker is started."""
        server = Server(redis_of(self.settings))
        try:
            server.read("PING")
        finally:
            server.close()

    def _own_programs(self) -> list[Program]:
        """The persister, and every worker."""
        return [
            programs.persister(self.settings),
            *(
                programs.worker(self.settings, model, index)
                for model, count in worker_counts(self.settings).items()
                for index in range(count)
            ),
        ]

    def _converge(self, supervisor: Supervisor, wanted: list[Program], *, keep: set[str] | None = None) -> None:
        converge(supervisor, wanted, keep=keep or (), settings=self.settings, progress=self._progress)

    def _status_despite_outage(self) -> DeploymentStatus:
        """`status`, patient with a server that is being restarted."""
        deadline = time.monotonic() + REDIS_OUTAGE_S
        while True:
            try:
                return self.status()
            except SupervisorGone as error:
                raise DeploymentError("The deployment was stopped before its workers were ready.") from error
            except RedisUnavailable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(POLL_INTERVAL_S)

    def _crashing(self, worker: WorkerStatus) -> WorkerStatus:
        line = self._last_log_line(worker.instance)
        reason = f"its process ends again and again ({self._last_exit(worker.instance)})"
        return replace(worker, state=WorkerState.FAILED, last_error=f"{reason}: {line}" if line else reason)

    def _last_log_line(self, name: str) -> str:
        """What the program said last in its present or last life; empty if nothing."""
        for line in reversed(last_lines(self.log_folder / f"{name}.log", 20).split("\n")):
            if line.startswith(STARTS):
                return ""
            if not line.startswith(HELD_BACK):
                return line
        return ""

    def _last_exit(self, name: str) -> str:
        """How the program ended last, in supervisord's words, such as 'terminated by SIGKILL'."""
        for line in reversed(self.supervisor_log(500).split("\n")):
            _, found, reason = line.partition(f"exited: {name} (")
            if found:
                return reason.partition(";")[0]
        return "see headpond logs supervisord"

    def _running(self) -> Supervisor:
        supervisor = self.supervisor()
        if supervisor is None:
            raise SupervisorGone(f"No deployment of {self.settings.file} runs here. Start it with: headpond up")
        return supervisor

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One command at a time changes a deployment."""
        path = self.folder / LOCK_FILE
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        except OSError as error:
            raise cannot_write(path, error) from error
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise DeploymentError(
                            f"Another headpond command has been changing this deployment for {LOCK_TIMEOUT_S:.0f} "
                            f"s: it holds {path}. Wait for it, or end it, then try again."
                        ) from None
                    time.sleep(POLL_INTERVAL_S)
                else:
                    break
            yield
        finally:
            os.close(handle)


def describe(worker: WorkerStatus) -> str:
    """One worker in one line."""
    error = f": {worker.last_error}" if worker.last_error else ""
    return f"{worker.instance} {worker.state.value}{error}"


def _model_of(name: str) -> str:
    split = split_worker_name(name)
    return split[0] if split is not None else ""
