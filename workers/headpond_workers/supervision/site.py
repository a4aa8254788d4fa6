"""One configuration's place on this machine: what runs there, and the steps that every change of it takes.

All of its state is below `.headpond/` beside the configuration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from headpond.config_check import Variables
from headpond.errors import DeploymentError
from headpond.settings import Settings
from headpond_workers.naming.identity import Identity, identity_of
from headpond_workers.supervision import programs
from headpond_workers.supervision.applied import Applied, read_applied, write_applied
from headpond_workers.supervision.convergence import converge, stop_timeout_s
from headpond_workers.supervision.held_names import HeldNames
from headpond_workers.supervision.observation import observe
from headpond_workers.supervision.preflight import refuse_wrong
from headpond_workers.supervision.program_logs import ProgramLogs
from headpond_workers.supervision.programs import Program, model_of, worker_name
from headpond_workers.supervision.readiness import Readiness
from headpond_workers.supervision.run_file import read_run_file
from headpond_workers.supervision.runtime_folder import socket_candidates
from headpond_workers.supervision.scaling import worker_counts
from headpond_workers.supervision.status import DeploymentStatus
from headpond_workers.supervision.stopped import read_stopped
from headpond_workers.supervision.supervisor import (
    ProcessState,
    Supervisor,
    SupervisorGone,
    SupervisorLeaving,
    find_supervisor,
)
from headpond_workers.supervision.supervisord_process import noted_socket, supervisord_pid, wait_for_end

SHUTDOWN_TIMEOUT_S = 90.0

Progress = Callable[[str], None]
"""Takes one line about what was done, for people."""


def _say_nothing(_: str) -> None:
    pass


class Site:
    """environment: decides where the supervisor's socket stands, and which secrets supervisord is started with."""

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
        self.logs = ProgramLogs(self.folder / programs.LOG_FOLDER)
        self.progress, self.environment = progress, environment
        self._said: set[str] = set()
        self.sockets = socket_candidates(self.folder, environment)
        self.readiness = Readiness(self.status, self.logs, progress)

    def supervisor(self) -> Supervisor | None:
        """The running supervisord of this deployment, whatever files a command that was killed has left.

        Waits for one that is about to end, and does not return it.
        """
        try:
            return find_supervisor([*noted_socket(self.folder), *self.sockets])
        except SupervisorLeaving:
            if (pid := supervisord_pid(self.folder)) is not None:
                wait_for_end(pid, timeout_s=SHUTDOWN_TIMEOUT_S)
            return None

    def running(self) -> Supervisor:
        """As `supervisor`. Raises SupervisorGone if nothing runs here, DeploymentError until its servers are ready."""
        supervisor = self.supervisor()
        if supervisor is None:
            raise SupervisorGone(f"No deployment of {self.settings.file} runs here. Start it with: headpond up")
        if self.settings.redis.url is None and read_run_file(self.folder) is None:
            raise DeploymentError(
                f"The servers of {self.settings.file} are not ready: headpond up is at work, or was interrupted. Go on "
                "with: headpond up. Or stop what was started: headpond down"
            )
        return supervisor

    def refuse_wrong(self, models: Collection[str] | None = None) -> None:
        """See `preflight.refuse_wrong`."""
        # What supervisord was started with is what its programs get, whatever the shell of now has.
        variables = Variables.OWN if self.supervisor() is None else Variables.OTHERS
        refuse_wrong(self.settings, models, variables=variables)

    def identity(self) -> Identity:
        """Who this deployment is, on any Redis. Made at the first call."""
        return identity_of(self.folder)

    def instances(self, models: Collection[str] | None = None) -> set[str]:
        """The names of the workers that should run here. models: of these alone."""
        counts = worker_counts(self.settings)
        return {
            worker_name(model, index)
            for model in (counts if models is None else models)
            for index in range(counts[model])
        }

    def status(self) -> DeploymentStatus:
        """Queues and workers as they are now.

        Raises SupervisorGone if the deployment embeds its Redis and does not run, RedisUnavailable if Redis
        does not answer.
        """
        supervisor = self.supervisor() if self.settings.redis.url is not None else self.running()
        own = self.identity().id if self.folder.is_dir() else ""
        return observe(self.settings, supervisor, deployment=own, last_log_line=self.logs.last_line)

    def names(self) -> HeldNames:
        """Those of this deployment on its Redis."""
        return HeldNames(self.settings, self.identity(), progress=self._say_once)

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.progress(line)

    def started(self) -> set[str]:
        """Models that are not stopped, with workers or without."""
        return self.settings.models.keys() - read_stopped(self.folder)

    def workers(self, models: Collection[str]) -> list[Program]:
        """The programs that these models should have."""
        counts = worker_counts(self.settings)
        return [programs.worker(self.settings, model, index) for model in models for index in range(counts[model])]

    def converge(self, supervisor: Supervisor, wanted: list[Program], *, keep: Collection[str] = ()) -> None:
        """Make supervisord run these programs and those of `keep`; see `convergence.converge`."""
        converge(
            supervisor, wanted, keep=keep, settings=self.settings, progress=self.progress,
            settle=self.readiness.settle,
        )  # fmt: skip

    def start_ended(self, supervisor: Supervisor, models: Collection[str] | None = None) -> None:
        """Start again what had ended for good. models: the workers of these alone."""
        known = supervisor.processes()
        self.start_stopped(supervisor, [name for name in known if models is None or model_of(name) in models])

    def start_stopped(self, supervisor: Supervisor, names: Collection[str]) -> None:
        """Start again what of these had ended for good, or was told to by a command that was interrupted."""
        known = supervisor.processes()
        stopping = [name for name in names if name in known and known[name].state is ProcessState.STOPPING]
        if stopping:
            self.progress(f"waiting for {', '.join(sorted(stopping))} to stop, as asked before")
            timeout_s = stop_timeout_s(self.settings, stopping)
            supervisor.stop(stopping, timeout_s=timeout_s, progress=self.progress)
            known = supervisor.processes()
        for name in sorted(known.keys() & names):
            if known[name].state.ended and known[name].started_s:
                self.progress(f"{name} had ended; it is started again")
                supervisor.start(name)

    def note_applied(self, models: Collection[str]) -> None:
        """Write down that some models run with their settings of now."""
        before = read_applied(self.folder)
        write_applied(self.folder, before.with_models_of(Applied.of(self.settings), models))
