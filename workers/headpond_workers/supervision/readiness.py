"""Waiting for workers: until each is ready or has failed, telling progress of each change."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from headpond.errors import DeploymentError, RedisUnavailable
from headpond.workers import WorkerState
from headpond_workers.supervision.program_logs import ProgramLogs
from headpond_workers.supervision.servers import CRASHES_BEFORE_FAILED
from headpond_workers.supervision.status import DeploymentStatus, WorkerStatus
from headpond_workers.supervision.supervisor import SupervisorGone

REDIS_OUTAGE_S = 30.0
"""How long Redis may be away while workers are waited for."""
POLL_INTERVAL_S = 0.2


def describe(worker: WorkerStatus) -> str:
    """One worker in one line."""
    error = f": {worker.last_error}" if worker.last_error else ""
    return f"{worker.instance} {worker.state.value}{error}"


@dataclass(frozen=True, slots=True)
class Readiness:
    """look: the deployment as it is now. progress: takes one line for people."""

    look: Callable[[], DeploymentStatus]
    logs: ProgramLogs
    progress: Callable[[str], None]

    def wait(self, wanted: Collection[str], *, timeout_s: float | None = None) -> DeploymentStatus:
        """Return once every worker of these names is ready or has failed.

        A worker whose process ends again and again counts as failed. timeout_s: None waits as long as models take to
        load. Raises DeploymentError if it passes, or if the deployment is stopped meanwhile.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        lives: dict[str, set[int]] = {}
        shown: dict[str, WorkerState] = {}
        while True:
            status = self._despite_outage()
            pending = set(wanted)
            workers = []
            for worker in status.workers:
                if worker.instance in wanted and worker.here:
                    pids = lives.setdefault(worker.instance, set())
                    pids |= {worker.pid} - {0}
                    if len(pids) > CRASHES_BEFORE_FAILED and worker.state is not WorkerState.READY:
                        worker = self._crashing(worker)
                    if worker.state in (WorkerState.READY, WorkerState.FAILED):
                        pending.discard(worker.instance)
                    if shown.get(worker.instance) is not worker.state:
                        shown[worker.instance] = worker.state
                        self.progress(describe(worker))
                workers.append(worker)
            if not pending:
                return replace(status, workers=tuple(workers))
            if deadline is not None and time.monotonic() >= deadline:
                raise DeploymentError(
                    f"Not ready after {timeout_s:g} s: {', '.join(sorted(pending))}. They go on loading; see "
                    "headpond status, and headpond logs."
                )
            time.sleep(POLL_INTERVAL_S)

    def settle(self, name: str) -> None:
        """Return once one worker that was restarted is ready, so that the next of its model may be.

        Raises DeploymentError if it fails: the others go on as they are.
        """
        for worker in self.wait({name}).workers:
            if worker.instance == name and worker.here and worker.state is WorkerState.FAILED:
                raise DeploymentError(
                    f"{describe(worker)}. The other workers of {worker.model} were left as they are. Correct what is "
                    "wrong, then try again."
                )

    def _despite_outage(self) -> DeploymentStatus:
        """A look, patient with a server that is being restarted."""
        deadline = time.monotonic() + REDIS_OUTAGE_S
        while True:
            try:
                return self.look()
            except SupervisorGone as error:
                raise DeploymentError("The deployment was stopped before its workers were ready.") from error
            except RedisUnavailable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(POLL_INTERVAL_S)

    def _crashing(self, worker: WorkerStatus) -> WorkerStatus:
        line = self.logs.last_line(worker.instance)
        reason = f"its process ends again and again ({self.logs.last_exit(worker.instance)})"
        return replace(worker, state=WorkerState.FAILED, last_error=f"{reason}: {line}" if line else reason)
