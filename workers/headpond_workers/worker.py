"""One worker process: binds one model, loads it, then serves its queue until it is told to leave.

    python -m headpond_workers.worker --config headpond.toml --model chat --instance chat-0

SIGTERM drains: no job is claimed any more, running ones may end within drain_timeout_s, the rest are parked with
their tokens. SIGHUP reads the configuration again, for what needs no restart: settings of the queue, secret files.
Exit codes: 0 drained; 78 (EX_CONFIG) the configuration or the model cannot be loaded, another deployment means another
model by this name, or a worker of this instance name runs already: starting again would not help.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

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
)
from headpond.operations import QueuePolicy
from headpond.queue import JobQueue, Server
from headpond.settings import Settings, load_settings
from headpond.submission import GENERATE
from headpond.tables import ModelTable
from headpond.workers import WorkerRow, WorkerState, pack_worker
from headpond_workers.engines.protocol import DeviceUse, Engine
from headpond_workers.generation import Generation
from headpond_workers.loading import device_use_of, load_engine, renew_secrets_of, workers_of
from headpond_workers.naming.identity import Identity, identity_or_passing, named_identity
from headpond_workers.naming.instance_lock import instance_lock
from headpond_workers.naming.name_keeper import NameKeeper, Started
from headpond_workers.persistence.storage_settings import has_storage
from headpond_workers.redaction import Secrets
from headpond_workers.secret_filter import learn_references, start_logging
from headpond_workers.token_writer import TokenWriter
from headpond_workers.totals import Totals

logger = logging.getLogger(__name__)

EX_CONFIG = 78
RECONNECT_S = 1.0
WATCH_INTERVAL_S = 1.0
HOLD_INTERVAL_S = 10.0
"""How often a worker sees to it that its deployment holds its name still."""
PARK_GRACE_S = 5.0
"""How long an engine may take to hear that its sequences are to be parked."""


SUPERVISED = "HEADPOND_SETTINGS_DIGEST"
"""In the environment of each worker that `headpond up` starts."""
DEPLOYMENT = "HEADPOND_DEPLOYMENT"
"""The id of the deployment to which a worker belongs that something else starts: of all containers of one service."""


class WorkerProcess:
    """The composition root: wires settings, engine, broker and signals."""

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
        self._generation: Generation | None = None
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
            engine = load_engine(self._model_settings, workers_on_host=workers_of(self._settings))
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

    def _serve(self, engine: Engine, queue: JobQueue) -> int:
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
            storage=self._storage,
            row=lambda: pack_worker(self._row()),
        )
        writer = TokenWriter(queue, full_version=lambda: broker.full_version(self._model))
        writer.start()
        generation = self._generation = Generation(
            engine, queue, writer, self._version, settings.stall_timeout_s, on_broken=broker.drain,
            preempt=broker.preempt, totals=self._totals, redact=self._secrets.redact,
        )  # fmt: skip

        def generate(request: dict[str, Any]) -> None:
            message = CurrentMessage.get_current_message()
            if not isinstance(message, LeasedMessage):
                raise TypeError("generate runs under a lease only")
            generation.run(request, message.held)

        # Of dramatiq's middleware only CurrentMessage is there: no retries and no time limit but the queue's own.
        dramatiq.actor(actor_name=GENERATE, queue_name=self._model, broker=broker)(generate)
        pool = dramatiq.Worker(broker, queues={self._model}, worker_threads=info.slots)
        pool.queue_prefetch = info.slots
        self._announce(queue, WorkerState.READY, fingerprint=info.fingerprint)
        pool.start()
        # dramatiq's own command line would say this; but it forks, and a loaded model must not be forked.
        broker.emit_after("process_boot")
        logger.info("ready model=%s version=%s slots=%d", self._model, self._version, info.slots)
        looked = time.monotonic()
        lost: NameTaken | None = None
        while not self._leave.wait(WATCH_INTERVAL_S):
            if not (writer.is_alive() and broker.keeps_leases()):
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
        logger.error("name_lost model=%s error=%s", self._model, _one_line(lost))
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
        except HeadpondError as error:
            logger.error("reload_failed model=%s error=%s", self._model, error)
        else:
            logger.info("reloaded model=%s", self._model)

    def _drain(self, broker: HeadpondBroker, generation: Generation, queue: JobQueue) -> None:
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
        return WorkerRow(
            boot=self._boot,
            model=self._model,
            version=self._version,
            host=socket.gethostname(),
            pid=os.getpid(),
            instance=self._instance,
            slots=self._model_settings.slots,
            busy=len(self._broker.held()) if self._broker else 0,
            state=self._state,
            last_error=(self._generation.last_error if self._generation else "") or self._last_error,
            started_ms=self._started_ms,
            tokens=self._totals.tokens,
            jobs=self._totals.jobs,
            tokens_per_s=self._totals.tokens_per_s(),
            device=self._device.device,
            memory_bytes=self._device.memory_bytes,
            deployment=self._identity.id,
        )


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _wait_until(condition: Any, timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= until:
            return False
        time.sleep(0.02)
    return True


def leave(code: int) -> NoReturn:
    """Flush and end at once: an engine's library may hang in its destructors."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(argv: list[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(prog="headpond-worker", description="Serve one model's queue in this process.")
    parser.add_argument("--config", type=Path, required=True, help="headpond.toml")
    parser.add_argument("--model", required=True, help="a table [models.NAME] of it")
    parser.add_argument("--instance", default=None, help="this worker's name, such as chat-0")
    options = parser.parse_args(argv)
    secrets = Secrets()
    start_logging(secrets)
    logging.getLogger("dramatiq").setLevel(logging.WARNING)
    try:
        read = partial(load_settings, options.config, environment=os.environ, needed=[options.model])
        settings = read()
        instance = options.instance or f"{options.model}-{os.getpid()}"
        started = Started.BY_SUPERVISOR if SUPERVISED in os.environ else Started.BY_HAND
        named = os.environ.get(DEPLOYMENT) if started is Started.BY_HAND else None
        with instance_lock(settings.state_folder, instance):
            identity = named_identity(named) if named else identity_or_passing(settings.state_folder)
            code = WorkerProcess(
                settings,
                options.model,
                instance,
                identity=identity,
                started=started,
                secrets=secrets,
                read_again=read,
            ).run()
    except HeadpondError as error:
        logger.error("worker_failed error=%s", _one_line(error))
        code = EX_CONFIG if isinstance(error, ConfigError) else 1
    except Exception:
        logger.exception("worker_crashed")
        code = 1
    leave(code)


if __name__ == "__main__":
    main()
