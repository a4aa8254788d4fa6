"""One call of the machine: sent, compared with what must be true, and sent again where its reply was lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from hypothesis.stateful import RuleBasedStateMachine, precondition

from headpond import operations as ops
from headpond import upkeep
from headpond.operations import Operation
from headpond.workers import WorkerRow, WorkerState, pack_worker
from queue_machine import answers, invariants
from queue_machine.fairness import WEIGHTS
from queue_machine.model import (
    LEASE_MS,
    QUEUE,
    RETENTION_MS,
    STREAM_RETENTION_MS,
    SUSPECT_WAIT_MS,
    VERSION_WAIT_MS,
    Model,
)
from queue_machine.snapshot import Snapshot
from queue_machine.workers import Process
from queue_machine.world import World

T = TypeVar("T")

NAMES = [f"{QUEUE}/{letter}" for letter in "abcdefghijklmn"]
SEATS: list[list[tuple[str, str, int]]] = [
    # What the processes of one seat serve, one after the other: version, fingerprint, slots.
    [("1", "f1", 2)],
    [("1", "f1", 3), ("1", "f1 rebuilt", 2)],
    [("2", "f2", 2)],
    [("", "", 2), ("1", "f1", 1)],
]
POLICY = ops.QueuePolicy(
    lease_s=LEASE_MS / 1000,
    retention_s=RETENTION_MS / 1000,
    stream_retention_s=STREAM_RETENTION_MS / 1000,
    suspect_wait_s=SUSPECT_WAIT_MS / 1000,
    version_wait_s=VERSION_WAIT_MS / 1000,
    weights=WEIGHTS,
)
LINEAGE = "one"
CLOSED_STEPS = 5
"""Then the persister opens a queue that it closed."""


def seldom(name: str, steps: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A rule that is taken at most once in so many steps: else jobs get nowhere between two disasters."""
    return precondition(lambda self: self.taken - self.last_taken[name] >= steps)


class Calls(RuleBasedStateMachine):
    """The state of one machine. Rules are in the classes that build on this one."""

    world: ClassVar[World]
    steps: ClassVar[int] = 0
    reached: ClassVar[Counter[str]] = Counter()
    """Of all examples; see Model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(reached=type(self).reached)
        self.seats: list[Process] = []
        self.boots = 0
        self.taken = 0
        self.last_taken: Counter[str] = Counter()
        self.now: Snapshot = Snapshot(b"")

    def begin(self, *, storage: bool) -> None:
        """An empty server with one open queue, and a worker process in each seat."""
        world, model = self.world, self.model
        world.begin(storage=storage)
        model.storage = storage
        self.now = world.look([])
        model.server.inc = model.highest_inc = int(self.now.number("inc"))
        model.server.open = not storage
        if storage:
            self.open()
        for seat in range(len(SEATS)):
            self.seats.append(self.start_process(seat))

    def open(self) -> None:
        world, model = self.world, self.model
        world.send(upkeep.open_queue("claim", lineage=LINEAGE), seen=[], again=False)
        model.server.open, model.server.mending, model.server.rolled_to = True, False, ""
        # `open` wakes all lanes that have jobs.
        self.call(upkeep.open_queue("open", lineage=LINEAGE), lambda told, _: told == (LINEAGE, "open"), again=True)

    @property
    def now_ms(self) -> int:
        return self.world.clock.now_ms

    def move_clock(self, ms: int) -> None:
        self.world.clock.now_ms += ms

    def call(
        self,
        operation: Operation[T],
        expect: Callable[[T, Snapshot], bool],
        *,
        again: bool,
        other: Operation[T] | None = None,
        repeated: Callable[[T], T] = lambda answer: answer,
    ) -> T:
        """Send one call, and check all that can be checked after it.

        expect: brings the model up to date, given the answer and the moment after it; False where the answer is
        wrong. again: the reply is lost, and the call repeated; `other` is how its client words it then. repeated: what
        the repeat answers, given the first answer.
        """
        self.await_storage(operation)
        sent = self.world.send(operation, seen=self.model.seen(), again=again, other=other)
        said = f"{operation.script}{tuple(operation.args)!r} was answered {sent.answer!r}"
        assert expect(sent.answer, sent.after), said
        self.model.settle_ends(self.now_ms)
        self.check(sent.after)
        if sent.after_again is not None:
            assert sent.again == repeated(sent.answer), f"{said}, and when repeated {sent.again!r}"
            assert sent.after_again.same(sent.after), (
                f"{said}; its repeat changed {sent.after.differences(sent.after_again)}"
            )
        return sent.answer

    def await_storage(self, operation: Operation[Any]) -> None:
        """What ends a job is refused, and changes nothing, until the persister has looked at what the server forgot."""
        if self.model.server.mending and answers.waits_for_storage(self.model, operation):
            before = self.world.look(self.model.seen())
            self.world.send_in_vain(operation)
            after = self.world.look(self.model.seen())
            assert after.same(before), f"{operation.script} was refused, and changed {before.differences(after)}"
            self.model.reached[f"{operation.script} has to wait"] += 1
            self.open()

    def check(self, after: Snapshot) -> None:
        invariants.check(self.model, after)
        self.now = after

    def changes_nothing(self, operation: Operation[T], expect: Callable[[T], bool]) -> None:
        """A call that must leave all as it is."""
        self.await_storage(operation)
        before = self.world.look(self.model.seen())
        sent = self.world.send(operation, seen=self.model.seen(), again=False)
        said = f"{operation.script}{tuple(operation.args)!r} was answered {sent.answer!r}"
        assert expect(sent.answer), said
        assert sent.after.same(before), f"{said}, and changed {before.differences(sent.after)}"

    def start_process(self, seat: int, *, loads: bool = False, version: str | None = None) -> Process:
        """A new process in a seat: it replaces the one that was there. loads: it says so until it renews. version: what
        it was told to serve; None for what is served there."""
        lives = SEATS[seat]
        served, fingerprint, slots = lives[self.boots % len(lives)]
        if version is not None:
            served, fingerprint = version, f"f{version}"
        self.boots += 1
        process = Process(f"{seat}-{self.boots}", seat, served, fingerprint, slots, loads=loads)
        replaced = [boot for boot in self.now.hash("workers") if ":" not in boot and boot.startswith(f"{seat}-")]

        def expect(told: str, _: Snapshot) -> bool:
            for boot in replaced:
                self.model.server.seqs.pop(boot, None)
            return told == "ok"

        self.call(self.registration(process), expect, again=False)
        return process

    def registration(self, process: Process) -> Operation[str]:
        return ops.register(
            process.boot, host="host", instance=f"{QUEUE}-{process.seat}", row=self.row(process),
            version=process.version, fingerprint=process.fingerprint, policy=POLICY,
        )  # fmt: skip

    def row(self, process: Process) -> bytes:
        return pack_worker(
            WorkerRow(
                process.boot, QUEUE, process.version, "host", 1, f"{QUEUE}-{process.seat}", process.slots,
                len(process.held), WorkerState.LOADING if process.loads else WorkerState.READY, "", 1,
            )
        )  # fmt: skip

    def step(self, rare: str = "") -> None:
        """Count one step. rare: the name of a step that may not follow itself too soon; see `seldom`."""
        type(self).steps += 1
        self.taken += 1
        if rare:
            self.last_taken[rare] = self.taken
        if not self.model.server.open and self.taken - self.last_taken["close"] >= CLOSED_STEPS:
            self.open()
