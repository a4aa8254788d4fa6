"""One worker process from its first word to its last: it meets its queue, loads, serves, drains.

A worker whose version changes in place drains, then begins anew (`rollover.in_place`). One that changes side by side
asks its parent for another worker, serves on meanwhile, and drains when that parent tells it to.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from ulid import ULID

from headpond.connections import redis_of
from headpond.errors import (
    BlobError,
    ConfigError,
    EngineError,
    HeadpondError,
    ModelFileError,
    NameTaken,
    RedisUnavailable,
    VersionError,
)
from headpond.queue import JobQueue, Server
from headpond.settings import Settings
from headpond.tables import ModelTable, VersionedModel
from headpond.workers import WorkerState
from headpond_workers.checkpoints.pulls.cache import HeldVersion
from headpond_workers.engines.protocol import Engine, RelayEngine
from headpond_workers.job_service import JobService
from headpond_workers.loading import device_use_of, load_any, renew_secrets_of, workers_of
from headpond_workers.naming.boot_locks import BootLocks
from headpond_workers.naming.identity import Identity
from headpond_workers.naming.name_keeper import NameKeeper, Started
from headpond_workers.own_row import OwnRow
from headpond_workers.prefixes.of_settings import prefixes_of, slot_folder_of
from headpond_workers.prefixes.stored_prefixes import StoredPrefixes
from headpond_workers.redaction import Secrets
from headpond_workers.rollover.in_place import begin_anew, hear_signals
from headpond_workers.rollover.pair_line import PairLine
from headpond_workers.rollover.serving_version import ServingVersion
from headpond_workers.rollover.version_watch import VersionWatch
from headpond_workers.secret_filter import learn_references
from headpond_workers.storage.settings import has_storage

logger = logging.getLogger(__name__)

EX_CONFIG = 78
EX_REFUSED = 1
"""Of a worker that could not load beside another one, which goes on: nothing of the configuration is wrong."""
RECONNECT_S = 1.0
WATCH_INTERVAL_S = 1.0
HOLD_INTERVAL_S = 10.0
"""How often a worker sees to it that its deployment holds its name still."""


class _Left(NamedTuple):
    """Why a worker stopped serving: for another version, or because its name is another's, or it was told to leave."""

    version: str = ""
    name_lost: NameTaken | None = None


class WorkerProcess:
    """Wires settings, engine, broker and signals."""

    def __init__(
        self,
        settings: Settings,
        model: str,
        instance: str,
        *,
        identity: Identity,
        started: Started,
        secrets: Secrets,
        read_again: Callable[[], Settings],
        pair: PairLine | None = None,
    ) -> None:
        """secrets: learns those of this model, and keeps them out of what is stored. read_again: the settings as they
        are now, after a SIGHUP. pair: the line to the parent that starts another worker beside this one; None: this
        one changes its version in place. Raises ConfigError."""
        self._settings, self._read_again = settings, read_again
        self._secrets, self._pair = secrets, pair
        table = settings.model(model)
        learn_references(secrets, table)
        self._model, self._started = model, started
        self._leave, self._hang_up = threading.Event(), threading.Event()
        self._news = threading.Event()
        """Set when there is something to look at before the next look is due."""
        self._storage = has_storage(settings)
        self._server = Server(redis_of(settings, learn=secrets.learn))
        self._name = NameKeeper(
            self._server, settings, model, identity=identity, started=started, storage=self._storage
        )
        self._row = OwnRow(
            table, model, instance, boot=str(ULID()), deployment=identity.id, redact=secrets.redact,
            pid=None if pair is None else pair.parent,
        )  # fmt: skip
        self._row.beside = pair is not None and not pair.alone
        self._boots = BootLocks(settings.state_folder, model)
        self._boots.hold(self._row.boot)
        self._held: HeldVersion | None = None

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT. Returns the exit code. Raises NameTaken."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: self._hear(self._leave))
        # The end of the terminal in which it was started ends a worker; any other SIGHUP means a new configuration.
        at_terminal = self._started is Started.BY_HAND and sys.stdin is not None and sys.stdin.isatty()
        hung_up = self._leave if at_terminal else self._hang_up
        signal.signal(signal.SIGHUP, lambda *_: self._hear(hung_up))
        hear_signals()
        queue = self._meet()
        if queue is None:
            return 0
        self._row.announce(queue, WorkerState.LOADING)
        # Before it loads: others of this model may take up what a dead one held.
        self._bury_the_dead(queue)
        serving = ServingVersion.of(self._settings, queue, self._row, leave=self._leave, learn=self._secrets.learn)
        try:
            table = self._row.table if serving is None else self._table_of(serving)
            if table is None:
                self._forget(queue)
                return 0
            slots = slot_folder_of(self._settings, table, self._model, self._row.instance)
            engine = load_any(table, workers_on_host=workers_of(self._settings), slot_folder=slots)
            prefixes = prefixes_of(
                self._settings, table, engine, self._model, self._row.instance, learn=self._secrets.learn
            )
        except (EngineError, ModelFileError, VersionError, BlobError, ConfigError, MemoryError) as error:
            return self._not_loaded(error, serving, queue)
        return self._serve(engine, queue, serving, prefixes)

    def _hear(self, told: threading.Event) -> None:
        told.set()
        self._news.set()

    def _meet(self) -> JobQueue | None:
        """The model's queue, however long the server takes to come; None if told to leave first.

        Raises NameTaken.
        """
        while not self._leave.is_set():
            try:
                self._name.begin()
                return self._server.queue(self._model, storage=self._storage)
            except RedisUnavailable as error:
                logger.warning("redis_awaited error=%s", error)
                self._leave.wait(RECONNECT_S)
        return None

    def _table_of(self, serving: ServingVersion) -> ModelTable | None:
        """The table to load, with the version's files on this machine; None if told to leave first."""
        # Held as long as this process lives: what is in use is never taken out of the cache.
        held, table = serving.begin(), self._row.table
        self._held = held
        if held is None or not isinstance(table, VersionedModel):
            return None
        return table.loaded_from(held.path)

    def _not_loaded(self, error: Exception, serving: ServingVersion | None, queue: JobQueue) -> int:
        """A version that can be given up is, and this process begins anew with the other one; or it leaves, where a
        worker beside it serves that. Returns the exit code."""
        row = self._row
        logger.error("load_failed model=%s version=%s error=%s", self._model, row.version, error)
        reason = self._secrets.redact(str(error) or type(error).__name__)
        other = ""
        if serving is not None and not isinstance(error, ConfigError):
            other = serving.give_up(serving.version, f"{row.instance} on {row.host}: {reason}")
        if self._leave.is_set():
            self._forget(queue)
            return 0
        if not other:
            row.last_error = reason
            row.announce(queue, WorkerState.FAILED)
            # Its row is to stay, for people.
            self._boots.release()
            return EX_CONFIG
        if self._pair is not None and not self._pair.alone:
            self._forget(queue)
            return EX_REFUSED
        row.version = other
        row.announce(queue, WorkerState.LOADING)
        self._begin_anew()
        self._forget(queue)  # told to leave just now
        return 0

    def _serve(
        self, engine: Engine | RelayEngine, queue: JobQueue, serving: ServingVersion | None,
        prefixes: StoredPrefixes | None,
    ) -> int:  # fmt: skip
        """Until told to leave. Returns the exit code."""
        row, fingerprint = self._row, engine.info.fingerprint
        row.device = device_use_of(engine)
        row.version = f"local-{fingerprint[:12]}" if serving is None else serving.version
        service = JobService(
            engine, queue, row, storage=self._storage, redact=self._secrets.redact,
            model_digest="" if self._held is None else self._held.document.model_digest, prefixes=prefixes,
        )  # fmt: skip
        if prefixes is not None:
            prefixes.start()
        service.prepare(self._leave)
        row.announce(queue, WorkerState.READY, fingerprint=fingerprint)
        watch = None
        if serving is not None and serving.follows:
            # Beside another worker it goes on with its jobs while that loads, so none of them is a reason to wait.
            busy = service.busy if self._pair is None else _nothing
            watch = VersionWatch(serving, busy=busy, own_lane=service.claim_own_lane, on_wanted=self._news.set)
            self._look_first(watch)
        if self._pair is not None:
            # Before the first claim: a parent that has not heard it may kill this process at no cost.
            self._pair.say_ready()
        service.start()
        logger.info("ready model=%s version=%s slots=%d", self._model, row.version, engine.info.slots)
        left = self._until_left(engine, queue, service, watch)
        if watch is not None and not left.version:
            # While it drains for another version it goes on asking: else its turn to change might pass.
            watch.stop()
        self._drain(service, queue)
        if prefixes is not None:
            prefixes.stop()
        if left.version:
            row.version = left.version
            if service.busy():
                self._release(queue)
            # The row stays, so that nobody takes this worker for gone until it has begun anew.
            row.announce(queue, WorkerState.LOADING)
            self._begin_anew()
        service.end()
        self._forget(queue)
        if left.name_lost is None:
            return 0
        # Last, where `headpond status` looks for it.
        logger.error("name_lost model=%s error=%s", self._model, one_line(left.name_lost))
        return EX_CONFIG

    def _until_left(self, engine: object, queue: JobQueue, service: JobService, watch: VersionWatch | None) -> _Left:
        """What goes on beside the jobs, until this worker is to serve no more."""
        row, pair, looked = self._row, self._pair, time.monotonic()
        fingerprint = service.broker.fingerprint
        while not self._leave.is_set():
            self._news.clear()
            service.check()
            if watch is not None and not watch.is_alive():
                raise RuntimeError("the thread that asks for versions has died; its traceback is above")
            if service.opened_or_closed():
                row.announce(queue, WorkerState.READY, fingerprint=fingerprint)
            if pair is not None and row.beside and pair.alone:
                row.beside = False
                row.announce(queue, row.state, fingerprint=fingerprint)
            self._bury_the_dead(queue)
            if self._hang_up.is_set():
                self._hang_up.clear()
                self._take_over(engine, queue, service)
                looked = -HOLD_INTERVAL_S
            if time.monotonic() - looked >= HOLD_INTERVAL_S:
                looked, row.device = time.monotonic(), device_use_of(engine)
                if (lost := self._name.lost()) is not None:
                    return _Left(name_lost=lost)
            if watch is not None and (version := watch.wanted):
                if pair is None:
                    return _Left(version=version)
                if pair.alone:
                    pair.ask_for_another()
            self._news.wait(WATCH_INTERVAL_S)
        return _Left()

    def _bury_the_dead(self, queue: JobQueue) -> None:
        """Give back what processes of this model on this machine had leased when they died."""
        try:
            if found := self._boots.each_dead(queue.bury):
                logger.warning("dead_workers_found model=%s count=%d", self._model, found)
        except HeadpondError as error:
            logger.warning("dead_workers_not_told model=%s error=%s", self._model, error)

    def _look_first(self, watch: VersionWatch) -> None:
        """Before the first claim: a worker of a trial, or of an old version, is not to take any job."""
        try:
            watch.look()
        except HeadpondError as error:
            logger.warning("version_not_asked model=%s error=%s", self._model, error)
        watch.start()

    def _take_over(self, engine: object, queue: JobQueue, service: JobService) -> None:
        """After SIGHUP: what the configuration says now of the queue, and the secret files of the model's table.

        All else of it waits for a restart. A configuration that is wrong changes nothing.
        """
        row = self._row
        try:
            table = self._read_again().model(self._model)
            if type(table) is type(row.table):
                live = table.all_live_keys() - {"workers"}
                row.table = row.table.model_copy(
                    update={key: getattr(table, key) for key in live if key in type(table).model_fields}
                )
                self._name.mean(row.table)
                row.announce(queue, row.state)
            # A new key is masked before anything can show it.
            learn_references(self._secrets, row.table)
            renew_secrets_of(engine, row.table, where=f"[models.{self._model}]")
            if service.gate is not None:
                service.gate.ask_anew()
        except HeadpondError as error:
            logger.error("reload_failed model=%s error=%s", self._model, error)
        else:
            logger.info("reloaded model=%s", self._model)

    def _drain(self, service: JobService, queue: JobQueue) -> None:
        timeout_s = self._row.table.drain_timeout_s
        logger.info("draining model=%s running=%d timeout_s=%g", self._model, service.busy(), timeout_s)
        # Else a row that is written meanwhile would say that it is ready.
        self._row.state = WorkerState.DRAINING
        service.broker.drain()
        self._row.announce(queue, WorkerState.DRAINING)
        service.drain(timeout_s)

    def _release(self, queue: JobQueue) -> None:
        """Take the row away. What an engine would not let go comes back, without a strike."""
        try:
            queue.unregister(self._row.boot)
        except HeadpondError as error:
            logger.warning("unregister_failed error=%s", error)

    def _forget(self, queue: JobQueue) -> None:
        """Leave the queue for good, and the name with it if nobody else of this deployment has it."""
        try:
            queue.unregister(self._row.boot)
            self._boots.release()
            self._name.leave(queue)
        except HeadpondError as error:
            logger.warning("unregister_failed error=%s", error)

    def _begin_anew(self) -> None:
        """Returns only if told to leave."""
        # It holds no lease, and is not dead: its row tells the others that it comes back.
        self._boots.release()
        begin_anew(self._leave, keep=() if self._pair is None else (self._pair.descriptor,))


def _nothing() -> int:
    return 0


def one_line(error: Exception) -> str:
    """What an error says, for a line of a log."""
    return " ".join(str(error).split())
