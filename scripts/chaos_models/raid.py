"""Does what the plan says: starts processes, kills them when their moment has come, and hears what they say.

One thread, and nothing that is waited for but processes: a moment is met to within a few milliseconds, unless the
storage server is just being started anew.
"""

from __future__ import annotations

import select
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forge import Child, Fields, Forge
from ledger import Ledger
from refusals import unfit_refusal
from storm import Limit
from task_plan import PlannedTask, TaskKind, Trigger
from weights import hashes_of_folder

from headpond_workers.supervision.embedded_seaweed import SeaweedProcess

USUAL_S = {
    TaskKind.PUSH: 0.4, TaskKind.PULL: 0.2, TaskKind.HOLD: 0.2, TaskKind.PROMOTE: 0.06, TaskKind.ROLLBACK: 0.06,
    TaskKind.DELETE: 0.08, TaskKind.COLLECT: 0.3, TaskKind.SCRUB: 0.5, TaskKind.VERIFY: 0.1,
}  # fmt: skip
"""From its beginning to its end, until the run has seen for itself how long each takes."""
USUAL_CHANGES = {TaskKind.PUSH: 6, TaskKind.PROMOTE: 1, TaskKind.ROLLBACK: 1, TaskKind.DELETE: 4, TaskKind.COLLECT: 8}
"""In storage, likewise; a task of another kind makes none."""
USUAL_WEIGHT = 0.25
"""Of the newest length in the usual one, and of the newest number of changes."""
STUCK_S = 120.0
LAST_WORDS = ("done", "refused", "unavailable", "wrong", "crashed")
PROGRESS_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class Kill:
    """One SIGKILL. moment: at which part of its usual length it was planned; 0 for the server. after_s: after it had
    begun, or after the run had. hit: processes whose work was under way, itself or, for the server, all. change: the
    last that it had made in storage, such as `new version`; empty for none."""

    at_s: float
    kind: TaskKind
    model: str
    moment: float
    after_s: float
    hit: int
    change: str = ""

    @property
    def counted(self) -> bool:
        return self.hit > 0


@dataclass(slots=True)
class Running:
    """A process, and what is to become of it. killed_at: of time.monotonic(), once it was."""

    order: Fields
    child: Child
    started: float
    moment: float | None
    trigger: Trigger
    begun: float | None = None
    killed_at: float | None = None

    @property
    def kind(self) -> TaskKind:
        return TaskKind(self.order["kind"])

    @property
    def last_word(self) -> Fields | None:
        return self.child.said(*LAST_WORDS)

    @property
    def under_way(self) -> bool:
        """It has begun, and not said how it ended."""
        return self.begun is not None and self.last_word is None


@dataclass(slots=True)
class Raid:
    """folder: of sources and of what is pulled. wrong: what was found wrong with what processes said and left."""

    seaweed: SeaweedProcess
    forge: Forge
    ledger: Ledger
    folder: Path
    progress: Callable[[str], None]
    kills: list[Kill] = field(default_factory=list)
    outcomes: Counter[tuple[TaskKind, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    usual_s: dict[TaskKind, float] = field(default_factory=lambda: dict(USUAL_S))
    usual_changes: dict[TaskKind, float] = field(default_factory=lambda: dict(USUAL_CHANGES))
    _running: list[Running] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _outage: tuple[float, float] = (0.0, 0.0)
    """When the server was away last: from, to, of time.monotonic()."""
    _said: float = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def counted(self) -> int:
        return sum(kill.counted for kill in self.kills)

    def rage(self, plan: Iterator[PlannedTask], limit: Limit) -> None:
        """Until there were enough kills or the time is over; then until all processes have ended."""
        while not limit.reached(self.counted, self.seconds):
            task = next(plan)
            while len(self._running) >= task.width:
                self.tend()
            if task.kind is TaskKind.SERVER:
                self.kill_server(task.away_s)
            else:
                self.start(self.ledger.order(task), task.killed_at, task.trigger)
        self.settle()

    def settle(self) -> None:
        """Wait until all processes have ended, each as it was planned."""
        while self._running:
            self.tend()

    def do(self, order: Fields) -> Fields | None:
        """One more, alone and to its end. Returns its last word."""
        self.settle()
        running = self.start(order, None)
        self.settle()
        return running.last_word

    def close(self) -> None:
        for running in self._running:
            running.child.kill()
            running.child.wait()
            running.child.close()
        self._running.clear()

    # ---- processes

    def start(self, order: Fields, moment: float | None, trigger: Trigger = Trigger.TIME) -> Running:
        """moment, trigger: see `PlannedTask`."""
        order["folder"] = str(self.folder / order["id"])
        if order["kind"] not in self.usual_changes:
            trigger = Trigger.TIME
        running = Running(order, self.forge.start(order), time.monotonic(), moment, trigger)
        self._running.append(running)
        return running

    def tend(self, *, at_most_s: float = 1.0) -> None:
        """Wait for the next thing to happen or to be done, and do it."""
        due = [self._due(running) for running in self._running]
        poll = select.poll()
        for running in self._running:
            poll.register(running.child.pidfd, select.POLLIN)
            poll.register(running.child.pipe, select.POLLIN)
        left_s = min([at_most_s, *(at - time.monotonic() for at in due if at is not None)])
        poll.poll(max(0.0, left_s) * 1000)
        for running in list(self._running):
            # In this order: what it has said before its end is heard before it is taken for ended.
            ended = running.child.ended
            running.child.listen()
            if running.begun is None and (told := running.child.said("begun")) is not None:
                running.begun = told["at"]
            if ended:
                self._finish(running)
                continue
            at = self._due(running)
            if at is not None and time.monotonic() >= at:
                running.child.kill()
                running.killed_at = time.monotonic()
        if self.seconds - self._said >= PROGRESS_INTERVAL_S:
            self._said = self.seconds
            self.progress(self.told())

    def _due(self, running: Running) -> float | None:
        """When it is to be killed; 0 until that is drawn."""
        if running.killed_at is not None:
            return None
        if running.moment is None or running.begun is None:
            return running.started + STUCK_S
        if running.trigger is Trigger.CHANGE:
            wanted = 1 + int(running.moment * self.usual_changes[running.kind])
            return 0.0 if running.child.count("changed") >= wanted else running.started + STUCK_S
        return running.begun + running.moment * self.usual_s[running.kind]

    def _finish(self, running: Running) -> None:
        """It has ended: by itself, or killed."""
        self._running.remove(running)
        word = running.last_word
        what = f"{running.kind} {running.order['id']} of {running.order['model']}"
        if running.killed_at is not None:
            stuck = running.killed_at - running.started >= STUCK_S
            if stuck and word is None:
                self.wrong.append(f"{what} had not ended after {STUCK_S:g} s")
            if not stuck:
                self._note_kill(running)
        elif word is None:
            self.wrong.append(f"{what} ended by itself, without a word")
        self.outcomes[running.kind, "killed" if word is None else word["word"]] += 1
        self._look_at(running, word, what)
        self.ledger.answered(running.order, word)
        running.child.close()
        shutil.rmtree(running.order["folder"], ignore_errors=True)

    def _note_kill(self, running: Running) -> None:
        assert running.begun is not None and running.killed_at is not None and running.moment is not None  # noqa: S101, PT018
        self.kills.append(
            Kill(
                running.killed_at - self._began, running.kind, running.order["model"], running.moment,
                running.killed_at - running.begun, int(running.under_way), running.child.last("changed", "what"),
            )
        )  # fmt: skip

    def _look_at(self, running: Running, word: Fields | None, what: str) -> None:
        """What it said and what it left, beside what it was asked for."""
        order, kind = running.order, running.kind
        disturbed = self._outage[1] > running.started
        match word:
            case {"word": "crashed" | "wrong", "why": why}:
                self.wrong.append(f"{what}: {why}")
            case {"word": "unavailable", "why": why} if not disturbed:
                self.wrong.append(f"{what}: storage was there all the time: {why}")
            case {"word": "refused", "error": error, "why": why}:
                if (unfit := unfit_refusal(order, error, doomed=self.ledger.ever_doomed(order))) is not None:
                    self.wrong.append(f"{what} was refused, {unfit}: {why}")
            case {"word": "done", "at": at} if running.begun is not None and not disturbed:
                length_s = at - running.begun
                self.usual_s[kind] += USUAL_WEIGHT * (length_s - self.usual_s[kind])
                if kind in self.usual_changes and (changes := running.child.count("changed")):
                    self.usual_changes[kind] += USUAL_WEIGHT * (changes - self.usual_changes[kind])
            case _:
                pass
        if word is not None and word["word"] == "done" and (files := word.get("files")) is not None:
            self._compare(f"{what} gave", order["model"], word["number"], tuple(tuple(file) for file in files))
        if kind is TaskKind.PULL:
            self._look_at_pulled(order, word, what)

    def _look_at_pulled(self, order: Fields, word: Fields | None, what: str) -> None:
        """A folder stands under its name once it is whole, whoever was killed."""
        folder = Path(order["folder"]) / "pulled"
        if folder.exists():
            self._compare(f"{what} left", order["model"], order["number"], hashes_of_folder(folder))
        elif word is not None and word["word"] == "done":
            self.wrong.append(f"{what} said that it is done, and left no folder")

    def _compare(self, what: str, model: str, number: int, files: tuple[tuple[Any, ...], ...]) -> None:
        wanted = self.ledger.files_of(model, number)
        if wanted is None:
            self.wrong.append(f"{what} version {number}, which nobody was told of")
        elif files != wanted:
            self.wrong.append(f"{what} other bytes than those of version {number}")

    def await_begun(self, running: Running) -> None:
        """Until its work is under way, or over."""
        while running.begun is None and running in self._running:
            self.tend()

    # ---- the server

    def kill_server(self, away_s: float) -> None:
        """SIGKILL, and a start on the same ports and data. What it hit is counted just before."""
        hit = sum(running.under_way for running in self._running)
        began = time.monotonic()
        self.kills.append(Kill(began - self._began, TaskKind.SERVER, "", 0.0, began - self._began, hit))
        self.seaweed.kill()
        time.sleep(away_s)
        self.seaweed.start()
        self._outage = (began, time.monotonic())

    def told(self) -> str:
        """Counted kills by kind, and versions."""
        counted = Counter(kill.kind for kill in self.kills if kill.counted)
        each = ", ".join(f"{kind} {counted[kind]}" for kind in TaskKind if counted[kind])
        return f"{self.counted} counted kills ({each}), {len(self.ledger.acknowledged)} versions acknowledged"
