"""Which version of its model one worker serves: chosen at the start, asked about while it serves.

A source `s3:chat@3` is version 3 for ever. A source `s3:chat@prod` follows an alias: the queue, which has a copy of it,
says which version this worker takes, so that workers change one at a time, and also while storage is away.
"""

from __future__ import annotations

import logging
import threading

from headpond.errors import HeadpondError, RedisUnavailable, StorageUnavailable, VersionMissing, VersionUnusable
from headpond.queue import JobQueue
from headpond.settings import Settings
from headpond.switching import Assignment
from headpond.tables import VersionSource
from headpond.workers import WorkerState
from headpond_workers.checkpoints.pulls.cache import HeldVersion, VersionCache
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.resolving import open_storage
from headpond_workers.own_row import OwnRow
from headpond_workers.rollover.alias_copy import copy_alias, version_name
from headpond_workers.rollover.alias_store import AliasStore
from headpond_workers.rollover.failed_load import refuse_version
from headpond_workers.rollover.version_store import FetchLeft, VersionStore
from headpond_workers.storage.settings import Learn

logger = logging.getLogger(__name__)

RETRY_S = 1.0
SIGN_OF_LIFE_S = 60.0
"""How often a worker that fetches a version says so: a loading one counts as gone after 15 minutes of silence."""


class ServingVersion:
    """Of one process. version: its name, the number as text; '' until it is chosen."""

    def __init__(
        self, source: VersionSource, alias: AliasStore, store: VersionStore, queue: JobQueue, row: OwnRow, *,
        leave: threading.Event,
    ) -> None:  # fmt: skip
        """row: is kept up to date. leave: set once the process is told to leave."""
        self._source, self._alias, self._store, self._queue, self._row = source, alias, store, queue, row
        self._leave = leave
        self._who = f"{row.deployment}/{row.host}/{row.instance}"
        self.version = ""

    @classmethod
    def of(
        cls, settings: Settings, queue: JobQueue, row: OwnRow, *, leave: threading.Event, learn: Learn
    ) -> ServingVersion | None:
        """None for a model that is no version in storage. learn: is told the secrets of the storage.

        Contacts nobody. Raises ConfigError, also if there is no storage.
        """
        source = row.table.version_source
        if source is None:
            return None
        who = f"{row.instance} on {row.host}"
        registry = Registry(open_storage(settings, learn=learn), source.name, writer=who)
        alias, store = AliasStore(source, registry, who=who), VersionStore(registry, VersionCache.of(settings))
        return cls(source, alias, store, queue, row, leave=leave)

    @property
    def follows(self) -> bool:
        """Whether the version may change while it is served."""
        return self._source.alias is not None

    def begin(self) -> HeldVersion | None:
        """Choose the version, and hold its files on this machine. None if told to leave first.

        Waits for servers that are away, and for an alias that names no version yet. Raises what keeps the chosen
        version from being loaded: VersionMissing, VersionUnusable, ModelFileError.
        """
        while not self._leave.is_set():
            try:
                self.version = self._chosen()
                if self.version:
                    self._row.version, self._row.last_error = self.version, ""
                    self._row.announce(self._queue, WorkerState.LOADING)
                    return self.fetch(self.version)
            except (RedisUnavailable, StorageUnavailable) as error:
                self._await(WorkerState.LOADING, str(error))
            except FetchLeft:
                break
        return None

    def fetch(self, version: str) -> HeldVersion:
        """Hold a version on this machine: see `VersionStore.hold`, also for what it raises. One that somebody has begun
        to delete, although the alias names it, is put back first."""
        done = threading.Event()
        threading.Thread(target=self._say_alive, args=(done,), name="fetch-alive", daemon=True).start()
        try:
            try:
                return self._store.hold(int(version), leave=self._leave)
            except VersionUnusable:
                if not self._alias.put_back(int(version)):
                    raise
                return self._store.hold(int(version), leave=self._leave)
        finally:
            done.set()

    def ask(self, busy: int) -> Assignment:
        """What is to be served now, by this worker. busy: leases that it holds.

        Raises RedisUnavailable; VersionMissing and StorageUnavailable if the queue does not know the alias (any more).
        """

        def asked() -> Assignment:
            return self._queue.assign(boot=self._row.boot, who=self._who, version=self.version, busy=busy)

        found = asked()
        if found.seq:
            return found
        # A new queue, or one whose server lost its data.
        copy_alias(self._queue, self._alias.get())
        return asked()

    def give_up(self, version: str, reason: str) -> str:
        """Refuse a version that did not load. Returns what is served instead, '' if nothing is; see `refuse_version`.

        Waits for Redis, until told to leave.
        """
        while self.follows and not self._leave.is_set():
            try:
                return refuse_version(self._queue, self._alias, version, who=self._who, reason=reason)
            except RedisUnavailable as error:
                logger.warning("refusal_delayed version=%s error=%s", version, error)
                self._leave.wait(RETRY_S)
        return ""

    def _chosen(self) -> str:
        """'' while there is none; told, and waited for a moment."""
        if not self.follows:
            return version_name(self._source.number or 0)
        # An earlier choice of this boot is asked for anew: nothing was loaded yet.
        self.version = ""
        try:
            version = self.ask(busy=0).version
        except VersionMissing as error:
            version = self._await(WorkerState.FAILED, f"{error} It is loaded as soon as there is one.")
        else:
            if not version:
                self._await(WorkerState.FAILED, "The alias names no version yet. One is loaded as soon as it does.")
        if version:
            self._tell_refusal(version)
        return version

    def _tell_refusal(self, version: str) -> None:
        switch = self._queue.read_switch()
        if switch is not None and switch.target in switch.refused and version != switch.target:
            logger.error(
                "version_passed_over model=%s version=%s serves=%s reason=%s",
                self._queue.name, switch.target, version, " ".join(switch.refused[switch.target].split()),
            )  # fmt: skip

    def _await(self, state: WorkerState, error: str) -> str:
        """Tell what is waited for, once, and wait a moment. Returns no version."""
        if self._row.last_error != error or self._row.state is not state:
            logger.warning("version_awaited model=%s error=%s", self._queue.name, " ".join(error.split()))
            self._row.last_error = error
            self._row.announce(self._queue, state)
        self._leave.wait(RETRY_S)
        return ""

    def _say_alive(self, done: threading.Event) -> None:
        while not done.wait(SIGN_OF_LIFE_S):
            self._row.announce(self._queue, self._row.state)
            if not self.follows or self._row.state is not WorkerState.LOADING:
                continue
            try:
                # So that its turn does not end while it fetches.
                self._queue.assign(boot=self._row.boot, who=self._who, version="", loading=self.version)
            except HeadpondError as error:
                logger.warning("version_not_asked version=%s error=%s", self.version, error)
