"""One worker process from its first word to its last: it meets its queue, loads, serves, drains."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import dramatiq
from dramatiq.middleware import CurrentMessage
from ulid import ULID

from headpond.broker import HeadpondBroker
from headpond.connections import redis_of
from headpond.consumer import LeasedMessage
from headpond.errors import (
    ConfigError,
    EngineBroken,
    EngineError,
    HeadpondError,
    ModelFileError,
    NameTaken,
    RedisUnavailable,
    UpstreamClosed,
)
from headpond.operations import QueuePolicy
from headpond.queue import JobQueue, Server
from headpond.settings import Settings
from headpond.submission import GENERATE
from headpond.tables import ModelTable
from headpond.workers import WorkerRow, WorkerState, pack_worker
from headpond_workers.engines.protocol import DeviceUse, Engine, RelayEngine
from headpond_workers.generation import Generation, JobRuns
from headpond_workers.loading import device_use_of, load_any, renew_secrets_of, workers_of
from headpond_workers.naming.identity import Identity
from headpond_workers.naming.name_keeper import NameKeeper, Started
from headpond_workers.persistence.storage_settings import has_storage
from headpond_workers.redaction import Secrets
from headpond_workers.relaying import Relaying
from headpond_workers.secret_filter import learn_references
from headpond_workers.token_writer import TokenWriter
from headpond_workers.totals import Totals
from headpond_workers.upstream_gate import UpstreamGate

logger = logging.getLogger(__name__)

EX_CONFIG = 78
RECONNECT_S = 1.0
WATCH_INTERVAL_S = 1.0
HOLD_INTERVAL_S = 10.0
"""How often a worker sees to it that its deployment holds its name still."""
FIRST_PROBE_WAIT_S = 15.0
"""How long a proxy's worker waits to hear whether its server serves, before it says that it is ready itself."""
PARK_GRACE_S = 5.0
"""How long an engine may take to hear that its sequences are to be parked."""


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
    ) -> None:
        """secrets: learns those of this model, and keeps them out of what is stored. read_again: the settings as they
        are now, after a SIGHUP. Raises ConfigError."""
        self._settings, self._read_again = settings, read_again
        self._model_settings = settings.model(model)
        self._secrets = secrets
        learn_references(secrets, self._model_settings)
        self._model, self._instance = model, instance
        self._boot = str(ULID())
        self._started_ms = int(time.time() * 1000)
        self._state, self._last_error, self._version = WorkerState.STARTING, "", ""
        self._leave, self._hang_up = threading.Event(), threading.Event()
        self._started = started
        self._identity = identity
        self._device = DeviceUse()
        self._storage = has_storage(settings)
        self._server = Server(redis_of(settings, learn=secrets.learn))
        self._name = NameKeeper(
            self._server, settings, model, identity=identity, started=started, storage=self._storage
        )
        self._broker: HeadpondBroker | None = None
        self._generation: JobRuns | None = None
        self._gate: UpstreamGate | None = None
        self._totals = Totals()

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT. Returns the exit code. Raises NameTaken."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: self._leave.set())
        # The end of the terminal in which it was started ends a worker; any other SIGHUP means a new configuration.
        at_terminal = self._started is Started.BY_HAND and sys.stdin is not None and sys.stdin.isatty()
        hung_up = self._leave if at_terminal else self._hang_up
        signal.signal(signal.SIGHUP, lambda *_: hung_up.set())
        queue = self._meet()
        if queue is None:
            return 0
        self._announce(queue, WorkerState.LOADING)
        try:
            engine = load_any(self._model_settings, workers_on_host=workers_of(self._settings))
        except (EngineError, ModelFileError, ConfigError) as error:
            logger.error("load_failed model=%s error=%s", self._model, error)
            self._last_error = self._secrets.redact(str(error))
            self._announce(queue, WorkerState.FAILED)
            return EX_CONFIG
        return self._serve(engine, queue)

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

    def _serve(self, engine: Engine | RelayEngine, queue: JobQueue) -> int:
        """Until told to leave. Returns the exit code."""
        settings, info = self._model_settings, engine.info
        self._device = device_use_of(engine)
        self._version = f"local-{info.fingerprint[:12]}"
        broker = self._broker = HeadpondBroker(
            self._server,
            middleware=[CurrentMessage()],
            slots=info.slots,
            lease_s=settings.lease_s,
            boot=self._boot,
            version=self._version,
            fingerprint=info.fingerprint,
            anew=engine.anew if isinstance(engine, RelayEngine) else "",
            storage=self._storage,
            row=lambda: pack_worker(self._row()),
        )
        writer = TokenWriter(queue, full_version=lambda: broker.full_version(self._model))
        writer.start()
        generation = self._generation = self._runs_of(engine, queue, writer, broker)

        def generate(request: dict[str, Any]) -> None:
            message = CurrentMessage.get_current_message()
            if not isinstance(message, LeasedMessage):
                raise TypeError("generate runs under a lease only")
            generation.run(request, message.held)

        # Of dramatiq's middleware only CurrentMessage is there: no retries and no time limit but the queue's own.
        dramatiq.actor(actor_name=GENERATE, queue_name=self._model, broker=broker)(generate)
        pool = dramatiq.Worker(broker, queues={self._model}, worker_threads=info.slots)
        pool.queue_prefetch = info.slots
        gate = self._gate
        if gate is not None:
            gate.start()
            _wait_until(lambda: gate.asked or self._leave.is_set(), FIRST_PROBE_WAIT_S)
        closed = gate.closed if gate is not None else None
        self._announce(queue, WorkerState.READY, fingerprint=info.fingerprint)
        pool.start()
        # dramatiq's own command line would say this; but it forks, and a loaded model must not be forked.
        broker.emit_after("process_boot")
        logger.info("ready model=%s version=%s slots=%d", self._model, self._version, info.slots)
        looked = time.monotonic()
        lost: NameTaken | None = None
        while not self._leave.wait(WATCH_INTERVAL_S):
            if gate is not None and gate.closed is not closed:
                closed = gate.closed
                self._announce(queue, WorkerState.READY, fingerprint=info.fingerprint)
            if not (writer.is_alive() and broker.keeps_leases() and (gate is None or gate.is_alive())):
                # Without them jobs would be claimed and never end. A new process begins with a clean slate.
                raise RuntimeError("a thread of this worker has died; its traceback is above")
            if generation.broken.is_set():
                raise EngineBroken(f"{generation.last_error} A new process takes over.")
            if self._hang_up.is_set():
                self._hang_up.clear()
                self._take_over(engine, queue)
                looked = -HOLD_INTERVAL_S
            if time.monotonic() - looked >= HOLD_INTERVAL_S:
                looked, self._device = time.monotonic(), device_use_of(engine)
                if (lost := self._name.lost()) is not None:
                    break
        self._drain(broker, generation, queue)
        if lost is None:
            return 0
        # Last, where `headpond status` looks for it.
        logger.error("name_lost model=%s error=%s", self._model, one_line(lost))
        return EX_CONFIG

    def _take_over(self, engine: object, queue: JobQueue) -> None:
        """After SIGHUP: what the configuration says now of the queue, and the secret files of the model's table.

        All else of it waits for a restart. A configuration that is wrong changes nothing.
        """
        try:
            table = self._read_again().model(self._model)
            if type(table) is type(self._model_settings):
                live = table.all_live_keys() - {"workers"}
                self._model_settings = self._model_settings.model_copy(
                    update={key: getattr(table, key) for key in live if key in type(table).model_fields}
                )
                self._name.mean(self._model_settings)
                self._announce(queue, self._state)
            # A new key is masked before anything can show it.
            learn_references(self._secrets, self._model_settings)
            renew_secrets_of(engine, self._model_settings, where=f"[models.{self._model}]")
            if self._gate is not None:
                self._gate.ask_anew()
        except HeadpondError as error:
            logger.error("reload_failed model=%s error=%s", self._model, error)
        else:
            logger.info("reloaded model=%s", self._model)

    def _runs_of(
        self, engine: Engine | RelayEngine, queue: JobQueue, writer: TokenWriter, broker: HeadpondBroker
    ) -> JobRuns:
        stall_timeout_s = self._model_settings.stall_timeout_s
        if not isinstance(engine, RelayEngine):
            return Generation(
                queue, writer, self._version, stall_timeout_s, on_broken=broker.drain, preempt=broker.preempt,
                totals=self._totals, redact=self._secrets.redact, engine=engine,
            )  # fmt: skip
        gate = self._gate = UpstreamGate(engine, pause=broker.pause, resume=broker.resume)
        return Relaying(
            queue, writer, self._version, stall_timeout_s, on_broken=broker.drain, preempt=broker.preempt,
            totals=self._totals, redact=self._secrets.redact, engine=engine, on_closed=gate.shut,
        )  # fmt: skip

    def _drain(self, broker: HeadpondBroker, generation: JobRuns, queue: JobQueue) -> None:
        timeout_s = self._model_settings.drain_timeout_s
        logger.info("draining model=%s running=%d timeout_s=%g", self._model, len(broker.held()), timeout_s)
        self._state = WorkerState.DRAINING
        broker.drain()
        self._announce(queue, WorkerState.DRAINING)
        if not _wait_until(lambda: not broker.held(), timeout_s):
            generation.parking.set()
            _wait_until(lambda: not broker.held(), PARK_GRACE_S)
        try:
            # What an engine would not let go comes back here, without a strike.
            queue.unregister(self._boot)
            self._name.leave(queue)
        except HeadpondError as error:
            logger.warning("unregister_failed error=%s", error)

    def _announce(self, queue: JobQueue, state: WorkerState, *, fingerprint: str = "") -> None:
        """Write this worker's row, if the server can be reached; each renewal writes it again."""
        self._state = state
        settings = self._model_settings
        try:
            queue.register(self._row(), policy_of(settings), fingerprint=fingerprint)
        except HeadpondError as error:
            logger.warning("announce_failed state=%s error=%s", state.value, error)

    def _row(self) -> WorkerRow:
        closed = self._gate.closed if self._gate is not None else None
        return WorkerRow(
            boot=self._boot,
            model=self._model,
            version=self._version,
            host=socket.gethostname(),
            pid=os.getpid(),
            instance=self._instance,
            slots=self._model_settings.slots,
            busy=len(self._broker.held()) if self._broker else 0,
            state=self._shown_state(closed),
            last_error=self._secrets.redact(f"claims nothing: {closed}") if closed else self._engine_error(),
            started_ms=self._started_ms,
            tokens=self._totals.tokens,
            jobs=self._totals.jobs,
            tokens_per_s=self._totals.tokens_per_s(),
            device=self._device.device,
            memory_bytes=self._device.memory_bytes,
            deployment=self._identity.id,
        )

    def _shown_state(self, closed: UpstreamClosed | None) -> WorkerState:
        if self._state is WorkerState.READY and closed is not None and closed.needs_operator:
            return WorkerState.FAILED
        return self._state

    def _engine_error(self) -> str:
        return (self._generation.last_error if self._generation else "") or self._last_error


def policy_of(settings: ModelTable) -> QueuePolicy:
    """What a model's table says of its queue."""
    return QueuePolicy(
        lease_s=settings.lease_s,
        retention_s=settings.retention_s,
        stream_retention_s=min(settings.stream_retention_s, settings.retention_s),
        suspect_wait_s=settings.suspect_wait_s,
        version_wait_s=settings.version_wait_s,
        weights=settings.tenant_weights,
    )


def one_line(error: Exception) -> str:
    """What an error says, for a line of a log."""
    return " ".join(str(error).split())


def _wait_until(condition: Any, timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= until:
            return False
        time.sleep(0.02)
    return True
