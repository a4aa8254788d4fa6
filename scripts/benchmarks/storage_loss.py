"""`storage`, loss_window: how long a change that was acknowledged is in Redis alone, beside what one commit takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from both_sides import MODEL
from document import Measurement, Samples
from pairs import Pair, percentile, run_pairs
from persisted_side import (
    ABOUT,
    COMMITTED_TIMEOUT_S,
    PersistedModel,
    await_that,
    journal_end,
    oldest_waiting,
    persisted_model,
)
from plan import Plan
from steady_load import steady_load
from throughput import SUBJECTS, Load

from headpond import Client
from headpond.queue import JobQueue
from headpond.settings import EMBEDDED_SEAWEED_DATA, EMBEDDED_SEAWEED_FOLDER
from headpond_workers.checkpoints.resolving import open_storage
from headpond_workers.persistence.journal import Journal, drain
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.segments import StateStore
from headpond_workers.persistence.storage_sync import StorageSync
from headpond_workers.supervision.programs import PERSISTER

WHO = "the benchmark"
SLOTS, TOKENS_PER_S, TOKENS, JOBS = 16, 80, 40, 8
TABLE = f"""\
engine = "scripted"
slots = {SLOTS}
tokens_per_s = {TOKENS_PER_S}
answer_tokens = 1000000
"""
CHANGES, QUICK_CHANGES = 100, 20
COMMITS, QUICK_COMMITS = 5, 2
SHORTEST_GAP_S, LONGEST_GAP_S = 0.02, 0.08
INTERVAL_S = 1.0
LOOK_EVERY_S = 0.002


def measure_loss_window(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    changes, commits = (QUICK_CHANGES, QUICK_COMMITS) if plan.quick else (CHANGES, COMMITS)
    prompts = [f"Write about {subject}." for subject in SUBJECTS[:JOBS]]
    load = Load("jobs that come and go", "", prompts, TOKENS, same_tokens=True)
    with (
        persisted_model(TABLE, plan.folder / "deployment") as model,
        Client(model.url) as client,
        steady_load(model, load, plan.folder, settle_s=1.0),
    ):
        committer = _Committer(model)

        def headpond(number: int) -> Samples:
            with _watching(model.queue) as watch:
                draw = plan.draw(number)
                for _ in range(changes):
                    time.sleep(draw.uniform(SHORTEST_GAP_S, LONGEST_GAP_S))
                    client.submit(MODEL, "One change.", max_tokens=1)
                    watch.acknowledged()
                return {"window_s": watch.windows_s()}

        def peer(_number: int) -> Samples:
            model.stop(PERSISTER)
            try:
                committer.commit()  # what the persister left, and the part of a second until then
                return {"commit_s": [committer.commit_after(INTERVAL_S) for _ in range(commits)]}
            finally:
                model.go_on(PERSISTER)

        def done(number: int, pair: Pair[Samples]) -> None:
            windows, took = pair.headpond["window_s"], pair.peer["commit_s"]
            plan.say_pair(
                number,
                f"p99 {percentile(windows, 0.99):.3f} s until stored; one commit at most {max(took):.3f} s",
            )

        pairs = run_pairs(plan.pairs, headpond, peer, done=done)
    return Measurement(
        plan.kind, "until a change is in storage",
        f"{JOBS} jobs of {TOKENS} tokens at once, at {TOKENS_PER_S} tokens/s each; as one ends the next is submitted. "
        f"Beside them {changes} submits a run, {SHORTEST_GAP_S * 1000:g} to {LONGEST_GAP_S * 1000:g} ms apart "
        "(uniform, seeded); from the acknowledgement of each until the journal is trimmed up to it, which comes after "
        "the commit",
        ABOUT,
        f"one commit by itself: the persister is stopped (SIGSTOP), and the benchmark commits what {INTERVAL_S:g} s of "
        f"the same load has left in the journal, {commits} times a run; from the first read to the trim",
        pairs,
    )  # fmt: skip


class _Committer:
    """Commits as the persister does, in this process."""

    def __init__(self, model: PersistedModel) -> None:
        self._journal = Journal(model.queue)
        self._store = StateStore(open_storage(model.settings), MODEL)
        self._sync = StorageSync(model.settings.state_folder / EMBEDDED_SEAWEED_FOLDER / EMBEDDED_SEAWEED_DATA)

    def commit(self) -> None:
        while drain(self._journal, self._store, writer=WHO, sync=self._sync):
            pass

    def commit_after(self, seconds: float) -> float:
        """How long one takes, in seconds."""
        time.sleep(seconds)
        began = time.monotonic()
        self.commit()
        return round(time.monotonic() - began, 4)


@dataclass(slots=True)
class _Watch:
    """Notes when each change was acknowledged, and when the journal had been trimmed up to it."""

    queue: JobQueue
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: list[tuple[JournalId, float]] = field(default_factory=list)
    _windows_s: list[float] = field(default_factory=list)

    def acknowledged(self) -> None:
        """Now. What others have changed since then may be taken for part of it, which makes it later, not sooner."""
        now = time.monotonic()
        end = journal_end(self.queue)
        with self._lock:
            self._waiting.append((end, now))

    def look(self) -> None:
        # First these: what is journaled after the next line is not known to be stored by it.
        with self._lock:
            known = len(self._waiting)
        oldest = oldest_waiting(self.queue)
        now = time.monotonic()
        with self._lock:
            left = self._waiting[known:]
            for change, at in self._waiting[:known]:
                if oldest is not None and change >= oldest:
                    left.append((change, at))
                else:
                    self._windows_s.append(round(now - at, 4))
            self._waiting = left

    def windows_s(self) -> list[float]:
        """Of all changes, once the last of them is stored. Raises BenchmarkError."""
        await_that(lambda: not self._waiting, COMMITTED_TIMEOUT_S, "the last change was committed")
        return self._windows_s


@contextmanager
def _watching(queue: JobQueue) -> Iterator[_Watch]:
    watch, ending = _Watch(queue), threading.Event()

    def look() -> None:
        while not ending.wait(LOOK_EVERY_S):
            watch.look()

    thread = threading.Thread(target=look, name="watch", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ending.set()
        thread.join()
