"""A loaded engine at work on one queue: it claims jobs, runs them, and keeps their leases, until it is drained."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import dramatiq
from dramatiq.middleware import CurrentMessage

from headpond.broker import HeadpondBroker
from headpond.consumer import LeasedMessage
from headpond.errors import EngineBroken, UpstreamClosed
from headpond.queue import JobQueue
from headpond.submission import GENERATE
from headpond_workers.engines.protocol import Engine, RelayEngine
from headpond_workers.generation import Generation
from headpond_workers.job_runs import JobRuns
from headpond_workers.own_row import OwnRow
from headpond_workers.prefix_use import PrefixUse
from headpond_workers.relaying import Relaying
from headpond_workers.token_writer import TokenWriter
from headpond_workers.upstream_gate import UpstreamGate

logger = logging.getLogger(__name__)

FIRST_PROBE_WAIT_S = 15.0
"""How long a proxy's worker waits to hear whether its server serves, before it says that it is ready itself."""
PARK_GRACE_S = 5.0
"""How long an engine may take to hear that its sequences are to be parked."""


class JobService:
    """Of one process, for one version of its model: `row` says which."""

    def __init__(
        self, engine: Engine | RelayEngine, queue: JobQueue, row: OwnRow, *, storage: bool,
        redact: Callable[[str], str], model_digest: str, prefixes: PrefixUse | None = None,
    ) -> None:  # fmt: skip
        """storage: whether the queue is journaled. redact: takes secrets out of what an engine says. model_digest: of
        the version that is served; '' if it is none. prefixes: stored keys and values, if the engine uses any."""
        info = engine.info
        self._model, self._row = queue.name, row
        broker = self.broker = HeadpondBroker(
            queue.server,
            middleware=[CurrentMessage()],
            slots=info.slots,
            lease_s=row.table.lease_s,
            boot=row.boot,
            version=row.version,
            fingerprint=info.fingerprint,
            anew=engine.anew if isinstance(engine, RelayEngine) else "",
            storage=storage,
            row=row.packed,
        )
        self._writer = TokenWriter(queue, full_version=lambda: broker.full_version(self._model))
        self.gate: UpstreamGate | None = None
        """Of a proxy."""
        self._closed_then: UpstreamClosed | None = None
        runs = self._runs = self._runs_of(engine, queue, redact, model_digest, prefixes)
        row.busy, row.engine_error, row.closed = self.busy, lambda: runs.last_error, self._closed

        def generate(request: dict[str, Any]) -> None:
            message = CurrentMessage.get_current_message()
            if not isinstance(message, LeasedMessage):
                raise TypeError("generate runs under a lease only")
            runs.run(request, message.held)

        # Of dramatiq's middleware only CurrentMessage is there: no retries and no time limit but the queue's own.
        dramatiq.actor(actor_name=GENERATE, queue_name=self._model, broker=broker)(generate)
        self._pool = dramatiq.Worker(broker, queues={self._model}, worker_threads=info.slots)
        self._pool.queue_prefetch = info.slots

    def busy(self) -> int:
        """Leases held."""
        return len(self.broker.held())

    def prepare(self, leave: threading.Event) -> None:
        """All that comes before the first claim. leave: set once the process is told to leave."""
        self._writer.start()
        if (gate := self.gate) is not None:
            gate.start()
            wait_until(lambda: gate.asked or leave.is_set(), FIRST_PROBE_WAIT_S)
        self._closed_then = self._closed()

    def start(self) -> None:
        """Claim."""
        self._pool.start()
        # dramatiq's own command line would say this; but it forks, and a loaded model must not be forked.
        self.broker.emit_after("process_boot")

    def opened_or_closed(self) -> bool:
        """Whether the server behind a proxy began to serve, or ceased to, since this was asked last."""
        before, self._closed_then = self._closed_then, self._closed()
        return self._closed_then is not before

    def claim_own_lane(self, alone: bool) -> None:  # noqa: FBT001 - a state, as the queue says it
        """Claim jobs of the own version alone, or all that this version may take."""
        self.broker.own_lane = alone

    def check(self) -> None:
        """Raises EngineBroken if the engine serves nothing more in this process, RuntimeError for a defect."""
        if not (self._writer.is_alive() and self.broker.keeps_leases() and (self.gate is None or self.gate.is_alive())):
            # Without them jobs would be claimed and never end. A new process begins with a clean slate.
            raise RuntimeError("a thread of this worker has died; its traceback is above")
        if self._runs.broken.is_set():
            raise EngineBroken(f"{self._runs.last_error} A new process takes over.")

    def drain(self, timeout_s: float) -> None:
        """Let jobs that run end within timeout_s, and park the rest. Nothing is to be claimed any more by then."""
        if not wait_until(lambda: not self.broker.held(), timeout_s):
            self._runs.parking.set()
            wait_until(lambda: not self.broker.held(), PARK_GRACE_S)

    def end(self) -> None:
        """Keep no lease and no row any more."""
        self.broker.close()

    def _closed(self) -> UpstreamClosed | None:
        return None if self.gate is None else self.gate.closed

    def _runs_of(
        self, engine: Engine | RelayEngine, queue: JobQueue, redact: Callable[[str], str], model_digest: str,
        prefixes: PrefixUse | None,
    ) -> JobRuns:  # fmt: skip
        broker, row = self.broker, self._row
        if not isinstance(engine, RelayEngine):
            return Generation(
                queue, self._writer, row.version, row.table.stall_timeout_s, on_broken=broker.drain,
                preempt=broker.preempt, totals=row.totals, redact=redact, engine=engine,
                model_digest=model_digest, prefixes=prefixes,
            )  # fmt: skip
        gate = self.gate = UpstreamGate(engine, pause=broker.pause, resume=broker.resume)
        return Relaying(
            queue, self._writer, row.version, row.table.stall_timeout_s, on_broken=broker.drain,
            preempt=broker.preempt, totals=row.totals, redact=redact, engine=engine,
            model_digest=model_digest, on_closed=gate.shut,
        )  # fmt: skip


def wait_until(condition: Callable[[], object], timeout_s: float) -> bool:
    """Whether it came about in time."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= until:
            return False
        time.sleep(0.02)
    return True
