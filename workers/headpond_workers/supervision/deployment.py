"""One deployment on this machine: brought up, changed as a whole, taken down.

Each step can be repeated: a command that was killed half-way is put right by the next one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress

from headpond.connections import redis_of
from headpond.errors import DeploymentError, HeadpondError, RedisUnavailable
from headpond.queue import Server
from headpond.settings import RUN_FILE
from headpond.tables import secrets_of
from headpond.up_file import UP_FILE
from headpond_workers.supervision import embedded_seaweed, programs
from headpond_workers.supervision.applied import Applied, read_applied, write_applied
from headpond_workers.supervision.changes import Changes, changes_between
from headpond_workers.supervision.convergence import forget_settings, stop_timeout_s
from headpond_workers.supervision.lock import deployment_lock
from headpond_workers.supervision.private_files import write_private
from headpond_workers.supervision.programs import model_of, worker_name
from headpond_workers.supervision.run_file import remove_run_file, write_run_file
from headpond_workers.supervision.runtime_folder import remove_runtime_folder
from headpond_workers.supervision.servers import prepare_servers, run_file, wait_for_servers
from headpond_workers.supervision.shell_secrets import note_shell_secrets, stale_shell_secrets
from headpond_workers.supervision.single_models import SingleModels
from headpond_workers.supervision.site import SHUTDOWN_TIMEOUT_S, Site
from headpond_workers.supervision.start import prepare_folders, start_with_servers
from headpond_workers.supervision.status import DeploymentStatus
from headpond_workers.supervision.supervisor import Supervisor, SupervisorGone
from headpond_workers.supervision.supervisord_process import supervisord_pid, wait_for_end


class Deployment(Site):
    """The deployment of one configuration."""

    def up(self) -> None:
        """Start what does not run, and bring what runs in line with the configuration.

        Returns once the servers answer and every worker's process is started; `wait_ready` waits for models.
        Raises ConfigError, NameTaken, DeploymentError saying what stood in the way.
        """
        self.refuse_wrong()
        prepare_folders(self.folder)
        with deployment_lock(self.folder) as lock:
            supervisor = self.supervisor()
            if supervisor is not None:
                self.progress(f"supervisord runs already (pid {supervisor.pid()})")
            elif (pid := supervisord_pid(self.folder)) is not None:
                raise DeploymentError(
                    f"supervisord runs (pid {pid}), but its socket is gone. End it with: headpond down; then try again."
                )
            self._bring_in_line(supervisor, lock=lock)

    def reload(self) -> Changes:
        """Bring what runs in line with the configuration, and say what differed. Unchanged models keep their pids.

        Raises SupervisorGone if nothing runs here; ConfigError or NameTaken, and then nothing is changed.
        """
        self.running()
        self.refuse_wrong()
        prepare_folders(self.folder)
        with deployment_lock(self.folder) as lock:
            supervisor = self.running()
            changes = changes_between(read_applied(self.folder), self.settings)
            self._bring_in_line(supervisor, lock=lock)
        return changes

    def pending(self) -> Changes:
        """What `reload` would change. Raises SupervisorGone; ConfigError or NameTaken if it would be refused."""
        self.running()
        self.refuse_wrong()
        self.names().look(self.started())
        return changes_between(read_applied(self.folder), self.settings)

    def stale_secrets(self) -> list[str]:
        """One line for each secret variable whose value here is not the one that workers get."""
        return stale_shell_secrets(self.settings, self.identity(), self.environment)

    def wait_ready(self, *, timeout_s: float | None = None) -> DeploymentStatus:
        """Return once every worker is ready or has failed; see `Readiness.wait`."""
        return self.readiness.wait(self.instances(), timeout_s=timeout_s)

    def scale(self, counts: Mapping[str, int]) -> None:
        """Set how many workers some models have; see `SingleModels.scale`."""
        SingleModels(self).scale(counts)

    def down(self) -> bool:
        """Stop everything: workers drain, then the persister, then the servers, then supervisord.

        Returns whether anything ran. Nothing runs afterwards, and no name is held; the data stay. Where names cannot be
        given up, progress tells why, and all is stopped nevertheless.
        """
        if not self.folder.is_dir():
            return False
        with deployment_lock(self.folder):
            supervisor = self.supervisor()
            if supervisor is None:
                pid = supervisord_pid(self.folder)
                if pid is not None:
                    self._end(pid)
                # After a crash or a reboot the names are held still.
                if self.settings.redis.url is not None:
                    self._release_all()
                remove_run_file(self.folder)
                (self.folder / UP_FILE).unlink(missing_ok=True)
                return pid is not None
            try:
                known = supervisor.processes()
                names = set(known)
                self._stop(supervisor, sorted(name for name in names if model_of(name)))
                # An embedded server that a command before this one has stopped, or not started yet, holds none.
                embedded = known.get(programs.VALKEY)
                if self.settings.redis.url is not None or (
                    embedded is not None and embedded.state.alive and (self.folder / RUN_FILE).exists()
                ):
                    self._release_all()
                for batch in ([programs.PERSISTER], list(programs.SERVERS)):
                    self._stop(supervisor, [name for name in batch if name in names])
                supervisor.shutdown(timeout_s=SHUTDOWN_TIMEOUT_S)
            except SupervisorGone as error:
                raise DeploymentError(
                    "supervisord ended while it was asked to stop; what it ran ends with it. Its last words:\n"
                    f"{self.logs.of_supervisor()}"
                ) from error
            if programs.SEAWEED in names:
                # Where its access.json is damaged nobody knows which they are.
                with suppress(DeploymentError):
                    embedded_seaweed.remove_sockets(
                        embedded_seaweed.prepare(self.folder, bucket=self.settings.storage.bucket)
                    )
            remove_runtime_folder(supervisor.socket)
            remove_run_file(self.folder)
            (self.folder / UP_FILE).unlink(missing_ok=True)
            self.progress("supervisord stopped")
            return True

    def _bring_in_line(self, supervisor: Supervisor | None, *, lock: int) -> None:
        names, started, before = self.names(), self.started(), read_applied(self.folder)
        changes = changes_between(before, self.settings)
        # Before anything is touched, where the server is there already.
        if self.settings.redis.url is not None:
            names.look(started)
        elif supervisor is not None and _embeds_redis(before) and (self.folder / RUN_FILE).exists():
            try:
                names.look(started)
            except RedisUnavailable as error:
                # It is about to be started again, and they are taken before any worker is.
                self.progress(str(error))
        servers = prepare_servers(self.settings)
        if supervisor is None:
            note_shell_secrets(self.settings, self.identity(), self.environment)
            supervisor = start_with_servers(
                self.folder, servers, socket=self.sockets[0], lock=lock, progress=self.progress
            )
        else:
            self.converge(supervisor, servers.programs(), keep=set(supervisor.processes()))
            self.start_stopped(supervisor, programs.SERVERS)
        wait_for_servers(supervisor, servers, log_folder=self.logs.folder, progress=self.progress)
        # Before the workers, which look into it.
        write_run_file(self.folder, run_file(self.settings, servers, supervisor))
        self._check_redis()
        names.take(started)
        # Before the workers, which read the same settings.
        write_private(self.folder / UP_FILE, self.settings.told.document())
        for model in sorted(self.settings.models.keys() - started):
            self.progress(f"{model} is stopped; start it with: headpond models start {model}")
        ran = {name: process.pid for name, process in supervisor.processes().items()}
        own = [programs.persister(self.settings), *self.workers(self.settings.models)]
        self.converge(supervisor, [*servers.programs(), *own])
        names.release_others(started)
        write_applied(self.folder, Applied.of(self.settings))
        forget_settings(self.folder, own)
        self.start_ended(supervisor)
        self._hang_up(supervisor, ran, changes)

    def _hang_up(self, supervisor: Supervisor, ran: Mapping[str, int], changes: Changes) -> None:
        """Have workers that went on running read again what may have changed without a restart."""
        reading = set(changes.changed_live)
        for model, table in self.settings.models.items():
            if any(secret.file is not None for secret in secrets_of(table)):
                reading.add(model)
        if not reading:
            return
        for worker in self.status().workers:
            # One without a row of its own has read nothing yet.
            if worker.here and worker.slots and worker.model in reading and ran.get(worker.instance) == worker.pid:
                supervisor.hang_up(worker.instance)
                self.progress(f"{worker.instance} reads its configuration again")

    def _stop(self, supervisor: Supervisor, names: list[str]) -> None:
        supervisor.stop(names, timeout_s=stop_timeout_s(self.settings, names), progress=self.progress)

    def _end(self, pid: int) -> None:
        """supervisord ends in order what it runs, when its socket is gone and only a signal reaches it."""
        self.progress(f"supervisord (pid {pid}) has lost its socket; it is told to end")
        os.kill(pid, signal.SIGTERM)
        workers = [worker_name(model, 0) for model in self.settings.models]
        wait_for_end(pid, timeout_s=stop_timeout_s(self.settings, workers) + SHUTDOWN_TIMEOUT_S)
        self.progress("supervisord stopped")

    def _release_all(self) -> None:
        try:
            self.names().release_others(())
        except HeadpondError as error:
            self.progress(
                f"The names of this deployment stay held: {error} Free one with: headpond models forget NAME "
                f"--deployment {self._shown_id()}"
            )

    def _shown_id(self) -> str:
        try:
            return self.identity().id
        except HeadpondError:
            return "ID"

    def _check_redis(self) -> None:
        """Raises RedisUnavailable before any worker is started."""
        server = Server(redis_of(self.settings))
        try:
            server.read("PING")
        finally:
            server.close()


def _embeds_redis(applied: Applied) -> bool:
    return "redis" in applied.servers and applied.servers["redis"].get("url") is None
