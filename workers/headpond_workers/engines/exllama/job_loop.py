"""One thread that drives a batch generator for many blocking callers.

A generator steps all of its sequences together and is used from one thread; callers each want one sequence and
block. Between two steps the loop hands on what the last one made, cancels what was told to stop, and admits what
waits:

    run() --> waiting --admit--> admitted --finish, cancel, error--> run() returns
                 ^                   |
                 '---- recover <-----'   a step raised: all but the guilty go on from the tokens they emitted

Who is admitted next: `admission`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from headpond.errors import EngineBroken, EngineError, EngineOutOfMemory, PromptTooLong, SequenceFailed
from headpond.jobs import FinishReason
from headpond_workers.engines.exllama.admission import Entry, Line
from headpond_workers.engines.exllama.batch_generator import BatchGenerator, SequenceCrashed, Step
from headpond_workers.engines.protocol import Emit, Finish, Sequence, Verdict

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 0.25
"""A sequence without new tokens is asked this often whether it should stop."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of call()."""

    function: Callable[[], Any]
    future: Future[Any]

    def make(self) -> None:
        try:
            self.future.set_result(self.function())
        except BaseException as error:  # noqa: BLE001 - raised where call() waits
            self.future.set_exception(error)


class JobLoop:
    """See the module. Thread-safe; `emit`, and functions given to `call`, run in its thread and must not call it."""

    def __init__(
        self,
        generator: BatchGenerator,
        *,
        slots: int,
        name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """slots: how many sequences are admitted together. name: of the engine, for the thread and the log."""
        self._generator = generator
        self._slots = slots
        self._name = name
        self._clock = clock
        self._changed = threading.Condition()
        # Guarded by _changed. _present: every entry whose caller waits.
        self._present: set[Entry] = set()
        self._arrivals: list[Entry] = []
        self._calls: list[_Call] = []
        self._closed = False
        self._broken: BaseException | None = None
        # Of the loop's thread alone. _admitted: by handle, in the order of admission.
        self._line = Line()
        self._admitted: dict[object, Entry] = {}
        self._adapter: str | None = None
        self._adapter_known = False
        self._close_error: Exception | None = None
        self._thread = threading.Thread(target=self._main, name=f"{name}-loop", daemon=True)
        self._thread.start()

    def run(self, sequence: Sequence, emit: Emit) -> Finish:
        """Run one sequence to its end; block until then.

        Raises what `admit` or a Step refused it with, SequenceFailed if it made a step fail, EngineOutOfMemory if
        it does not fit, EngineBroken, EngineError once closed, and the error of the engine itself if the sequence
        took part in two failed steps without a token in between.
        """
        entry = Entry(sequence, emit, polled_at=self._clock())
        with self._changed:
            self._check_open()
            self._present.add(entry)
            self._arrivals.append(entry)
            self._changed.notify()
        return entry.future.result()

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the loop's thread between two steps; return or raise what it does."""
        future: Future[T] = Future()
        with self._changed:
            self._check_open()
            self._calls.append(_Call(function, future))
            self._changed.notify()
        return future.result()

    def close(self) -> None:
        """Wait for the step that runs, refuse every caller, free the device. The second time: nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        error, self._close_error = self._close_error, None
        if error is not None:
            raise error

    @property
    def sequences(self) -> int:
        """How many callers of run() wait at this moment."""
        with self._changed:
            return len(self._present)

    def _check_open(self) -> None:
        if self._closed or self._broken is not None:
            raise self._refusal()

    def _refusal(self) -> EngineError:
        if self._closed:
            return EngineError("The engine is closed.")
        refusal = EngineBroken(
            f"The engine failed and could not be cleared ({_in_words(self._broken)}). It needs a new process."
        )
        refusal.__cause__ = self._broken
        return refusal

    def _main(self) -> None:
        try:
            while self._take_arrivals():
                self._poll_waiting()
                self._admit()
                if self._admitted:
                    self._step()
        except BaseException as error:
            log.critical("loop_crashed engine=%s", self._name, exc_info=error)
            self._break(error)
        with self._changed:
            entries, calls = list(self._present), list(self._calls)
            self._present.clear()
            self._calls.clear()
        for future in [*(entry.future for entry in entries), *(call.future for call in calls)]:
            future.set_exception(self._refusal())
        with self._changed:
            self._changed.wait_for(lambda: self._closed)
        try:
            self._generator.close()
        except Exception as error:  # noqa: BLE001 - raised by close(), in the thread that asked for it
            self._close_error = error

    def _break(self, cause: BaseException) -> None:
        with self._changed:
            self._broken = cause

    def _take_arrivals(self) -> bool:
        """Wait until there is work, and make the calls that came. False once closed or broken."""
        with self._changed:
            if not self._admitted and not self._line:
                self._changed.wait_for(lambda: self._arrivals or self._calls or self._closed or self._broken)
            if self._closed or self._broken is not None:
                return False
            self._line.join(self._arrivals)
            self._arrivals.clear()
            calls = self._calls
            if calls:
                self._calls = []
        for call in calls:
            call.make()
        return True

    def _poll_waiting(self) -> None:
        if not self._line:
            return
        now = self._clock()
        for entry in self._line:
            if now - entry.polled_at >= POLL_S and not self._tell(entry, (), now):
                self._line.leave(entry)

    def _admit(self) -> None:
        while (entry := self._next()) is not None:
            adapter = entry.sequence.adapter
            try:
                if not (self._adapter_known and self._adapter == adapter):
                    self._adapter_known = False
                    self._generator.use_adapter(adapter)
                    self._adapter, self._adapter_known = adapter, True
                handle = self._generator.admit(entry.rest())
            except (PromptTooLong, SequenceFailed, EngineOutOfMemory) as error:
                self._line.leave(entry)
                self._settle(entry, error)
            except Exception as error:  # noqa: BLE001 - goes to the caller, if it happens again
                self._line.leave(entry)
                self._recover(error, admitting=entry)
                return
            else:
                self._line.leave(entry)
                self._admitted[handle] = entry

    def _next(self) -> Entry | None:
        if not self._line:
            return None
        admitted = self._admitted.values()
        return self._line.next(admitted, slots=self._slots, adapter=self._adapter, now=self._clock())

    def _step(self) -> None:
        try:
            steps = self._generator.step()
        except Exception as error:  # noqa: BLE001 - goes to the callers that it is not kept from
            self._recover(error)
            return
        now = self._clock()
        stopped = [step.handle for step in steps if self._hand_on(step, now)]
        for handle, entry in list(self._admitted.items()):
            if now - entry.polled_at >= POLL_S and not self._tell(entry, (), now):
                del self._admitted[handle]
                stopped.append(handle)
        if stopped:
            over = {step.handle for step in steps if step.finish is not None or step.error is not None}
            self._cancel([handle for handle in stopped if handle not in over])

    def _hand_on(self, step: Step, now: float) -> bool:
        """Give a step to its caller. True if the caller wants no more."""
        entry = self._admitted.get(step.handle)
        if entry is None:
            return False  # It was told to stop by an earlier part of the same step.
        if step.ids:
            entry.emitted.extend(step.ids)
            entry.suspect = False
            if not self._tell(entry, step.ids, now):
                del self._admitted[step.handle]
                return True
        if step.error is not None:
            del self._admitted[step.handle]
            self._settle(entry, step.error)
        elif step.finish is not None:
            del self._admitted[step.handle]
            self._settle(entry, Finish(step.finish, dict(step.details)))
        return False

    def _tell(self, entry: Entry, ids: tuple[int, ...], now: float) -> bool:
        """Call emit. True if the sequence goes on; else its caller returns."""
        entry.polled_at = now
        try:
            verdict = entry.emit(ids)
        except Exception as error:  # noqa: BLE001 - the caller's own error goes back to it
            self._settle(entry, error)
            return False
        if verdict is Verdict.STOP:
            self._settle(entry, Finish(FinishReason.CANCELLED))
            return False
        return True

    def _cancel(self, handles: list[object]) -> None:
        try:
            for handle in handles:
                self._generator.cancel(handle)
        except Exception as error:  # noqa: BLE001 - goes to the callers that it is not kept from
            self._recover(error)

    def _settle(self, entry: Entry, outcome: Finish | Exception) -> None:
        with self._changed:
            self._present.discard(entry)
        if isinstance(outcome, Finish):
            entry.future.set_result(outcome)
        else:
            entry.future.set_exception(outcome)

    def _recover(self, error: Exception, *, admitting: Entry | None = None) -> None:
        """Clear the generator after an error that it did not expect, fail the guilty, line up the others again."""
        admitted, self._admitted = self._admitted, {}
        self._adapter_known = False
        try:
            if isinstance(error, EngineBroken):
                raise error
            self._generator.recover()
        except Exception as failure:
            log.critical("engine_broken engine=%s", self._name, exc_info=failure)
            self._break(failure)
            return
        batch = [*admitted.values()]
        guilty: Entry | None = None
        if isinstance(error, SequenceCrashed):
            guilty, error = admitted.get(error.handle), error.cause
        elif isinstance(error, EngineOutOfMemory) and batch:
            guilty = batch[-1]
        took_part = batch if admitting is None else [admitting]
        if admitting is not None:
            batch.append(admitting)
        log.warning(
            "step_failed engine=%s sequences=%d attributed=%s",
            self._name,
            len(batch),
            guilty is not None,
            exc_info=error,
        )
        again: list[Entry] = []
        for entry in batch:
            if entry is guilty:
                self._settle(entry, error if isinstance(error, EngineOutOfMemory) else _sequence_failed(error))
            elif guilty is None and entry.suspect and entry in took_part:
                self._settle(entry, error)
            elif entry.tokens_left <= 0:
                self._settle(entry, Finish(FinishReason.LENGTH))
            else:
                entry.suspect |= guilty is None and entry in took_part
                again.append(entry)
        self._line.rejoin(again)


def _in_words(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _sequence_failed(cause: Exception) -> SequenceFailed:
    failure = SequenceFailed(f"The engine gave up on this sequence ({_in_words(cause)}). Others were not affected.")
    failure.__cause__ = cause
    return failure
