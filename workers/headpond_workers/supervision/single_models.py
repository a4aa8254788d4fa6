"""Single models of a deployment that runs: scaled, started, stopped, restarted. The others are not touched."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from headpond.errors import DeploymentError, RedisUnavailable
from headpond_workers.supervision import convergence
from headpond_workers.supervision.applied import read_applied
from headpond_workers.supervision.changes import changes_between
from headpond_workers.supervision.convergence import write_files
from headpond_workers.supervision.lock import deployment_lock
from headpond_workers.supervision.programs import model_of
from headpond_workers.supervision.scaling import remember
from headpond_workers.supervision.site import Site
from headpond_workers.supervision.start import prepare_folders
from headpond_workers.supervision.stopped import read_stopped, write_stopped


class SingleModels:
    """Those of one deployment. Every method waits for another command that changes it."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._settings, self._folder = site.settings, site.folder

    def scale(self, counts: Mapping[str, int]) -> None:
        """Set how many workers some models have, now and at each later `up`.

        New ones are started; those of the highest index leave, each after its drain. All others keep running as
        they are, with their pids. Raises DeploymentError if nothing runs here, or if a model is stopped or its
        settings have changed since they were applied.
        """
        self._site.running()
        with deployment_lock(self._folder):
            supervisor = self._site.running()
            self._refuse_stopped(counts)
            self._refuse_changed(counts)
            self._site.names().take(counts)
            remember(self._settings, dict(counts))
            present = set(supervisor.processes())
            wanted = {program.name: program for program in self._site.workers(counts)}
            added = [wanted[name] for name in wanted if name not in present]
            self._site.converge(
                supervisor, added, keep={n for n in present if n in wanted or model_of(n) not in counts}
            )

    def start(self, models: Sequence[str]) -> None:
        """Start models that were stopped or are new in the configuration; others, and workers that run, are left alone.

        Returns once their processes are started. Raises SupervisorGone, ConfigError, NameTaken.
        """
        self._site.running()
        self._site.refuse_wrong(models)
        with deployment_lock(self._folder):
            supervisor = self._site.running()
            present = supervisor.processes()
            fresh = [model for model in models if not any(model_of(name) == model for name in present)]
            self._refuse_changed(set(models) - set(fresh))
            self._site.names().take(models)
            write_stopped(self._folder, read_stopped(self._folder) - set(models))
            added = [program for program in self._site.workers(models) if program.name not in present]
            self._site.converge(supervisor, added, keep=set(present))
            self._site.start_ended(supervisor, models)
            self._site.note_applied(fresh)

    def stop(self, models: Sequence[str]) -> None:
        """Stop models, each worker after its drain; they stay stopped until `start`, and give up their names.

        Where nothing runs they are stopped for the next `up`. Raises DeploymentError, and then has stopped none, while
        the servers are not ready.
        """
        prepare_folders(self._folder)
        with deployment_lock(self._folder):
            supervisor = None if self._site.supervisor() is None else self._site.running()
            known = read_stopped(self._folder) & self._settings.models.keys()
            write_stopped(self._folder, known | set(models))
            if supervisor is not None:
                present = set(supervisor.processes())
                self._site.converge(supervisor, [], keep={name for name in present if model_of(name) not in models})
                try:
                    self._site.names().release(models)
                except RedisUnavailable as error:
                    self._site.progress(f"Stopped, but their names stay held: {error} Then call: headpond reload")

    def restart(self, models: Sequence[str]) -> None:
        """Restart the workers of models one by one, with the settings that the configuration has now.

        Each drains first; a model with several workers goes on being served. Returns once the last process is started.
        Raises SupervisorGone, ConfigError, NameTaken; DeploymentError for a stopped model, or if a restarted worker
        fails.
        """
        self._site.running()
        self._site.refuse_wrong(models)
        with deployment_lock(self._folder):
            supervisor = self._site.running()
            self._refuse_stopped(models)
            self._site.names().take(models)
            wanted = self._site.workers(models)
            present = set(supervisor.processes())
            write_files(self._folder, wanted, keep={name for name in present if model_of(name) not in models})
            changes = supervisor.reload()
            names = [program.name for program in wanted if program.name in present]
            convergence.restart(
                supervisor, names, "was asked to restart", settings=self._settings, progress=self._site.progress,
                settle=self._site.readiness.settle,
            )  # fmt: skip
            for name in changes.added:
                supervisor.add(name)
                self._site.progress(f"{name} started")
            convergence.retire(supervisor, changes.removed, settings=self._settings, progress=self._site.progress)
            self._site.note_applied(models)

    def _refuse_stopped(self, models: Collection[str]) -> None:
        for model in sorted(read_stopped(self._folder) & set(models)):
            raise DeploymentError(f"{model} is stopped. Start it with: headpond models start {model}")

    def _refuse_changed(self, models: Collection[str]) -> None:
        """A worker more would have other settings than its siblings."""
        for change in changes_between(read_applied(self._folder), self._settings).changed:
            model = change.table.removeprefix("models.")
            if model in models and not change.live:
                raise DeploymentError(
                    f"{change.table}.{change.key} has changed in the configuration, from {change.old or 'none'} to "
                    f"{change.new or 'none'}, and does not hold yet. Apply it first: headpond reload"
                )
