"""`headpond up` as it stays: workers awaited, changes shown until Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

import typer

from headpond.cli.exits import INTERRUPTED
from headpond.counts import counted
from headpond.errors import DeploymentError, HeadpondError, RedisUnavailable
from headpond.terminal import escape_controls
from headpond.workers import WorkerState
from headpond_workers.cli.config_option import say
from headpond_workers.supervision.deployment import Deployment
from headpond_workers.supervision.readiness import describe
from headpond_workers.supervision.run_file import read_run_file
from headpond_workers.supervision.status import DeploymentStatus, WorkerStatus
from headpond_workers.supervision.supervisor import SupervisorGone

WATCH_INTERVAL_S = 1.0
LEFT_RUNNING = "Interrupted. What was not stopped goes on; stop it with: headpond down"


def await_workers(deployment: Deployment, models: Collection[str] | None = None) -> list[WorkerStatus]:
    """Wait until every worker of this deployment, or of some models, is ready.

    Returns them. Raises DeploymentError if some have failed: the others serve.
    """
    wanted = deployment.instances(models)
    found = deployment.readiness.wait(wanted)
    workers = [worker for worker in found.workers if worker.here and worker.instance in wanted]
    failed = [worker for worker in workers if worker.state is WorkerState.FAILED]
    if failed:
        names = "; ".join(describe(worker) for worker in failed)
        raise DeploymentError(
            f"{len(failed)} of {counted(len(workers), 'worker')} failed: {escape_controls(names)}. The others serve. "
            f"See headpond logs {failed[0].model}; then headpond up starts it again."
        )
    return workers


def up_detached(deployment: Deployment) -> None:
    """Start, and return once every worker is ready."""
    try:
        with _telling_what_goes_on(deployment):
            deployment.up()
            workers = await_workers(deployment)
    except KeyboardInterrupt:
        say("Interrupted. What was started goes on; stop it with: headpond down")
        raise typer.Exit(INTERRUPTED) from None
    say(f"{counted(len(workers), 'worker')} ready")


def up_and_watch(deployment: Deployment) -> None:
    """Start, and show changes until Ctrl-C, which stops everything."""
    # SIGTERM, from a service manager, asks for the same as Ctrl-C.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        try:
            with _telling_what_goes_on(deployment):
                deployment.up()
                _watch(deployment, deployment.wait_ready())
        except KeyboardInterrupt:
            say("Stopping; workers may finish what they run. Once more to stop waiting.")
            deployment.down()
    except KeyboardInterrupt:
        say(LEFT_RUNNING)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _telling_what_goes_on(deployment: Deployment) -> Iterator[None]:
    """Of whatever error the body ends with: that it has stopped nothing, where something runs."""
    try:
        yield
    except Exception:
        # What stands in the way of looking says less than the error itself.
        with suppress(HeadpondError):
            if deployment.supervisor() is not None:
                say("What was started goes on in the background; stop it with: headpond down")
        raise


def _watch(deployment: Deployment, found: DeploymentStatus) -> None:
    """Tell changes of workers until interrupted, or until the deployment is taken down elsewhere."""
    shown = {worker.instance: describe(worker) for worker in found.workers}
    ready = sum(worker.state is WorkerState.READY for worker in found.workers)
    say(f"{ready} of {counted(len(shown), 'worker')} ready; Ctrl-C stops")
    reachable = True
    while True:
        time.sleep(WATCH_INTERVAL_S)
        try:
            now = {worker.instance: describe(worker) for worker in deployment.status().workers}
        except RedisUnavailable as error:
            if reachable:
                say(str(error))
            reachable = False
            continue
        except SupervisorGone as error:
            if read_run_file(deployment.folder) is None:
                say("The deployment was stopped by another command.")
                return
            raise DeploymentError(
                "supervisord ended, and with it all that it ran. Start again with: headpond up. Its last words:\n"
                f"{escape_controls(deployment.logs.of_supervisor(1))}"
            ) from error
        if not reachable:
            say("Redis answers again")
        reachable = True
        for instance in sorted(now.keys() | shown.keys()):
            if now.get(instance) != shown.get(instance):
                say(now.get(instance, f"{instance} retired"))
        shown = now
