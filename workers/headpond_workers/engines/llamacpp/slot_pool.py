"""The slots of a llama.cpp server: which are free, and what each holds of the last prompt that it ran."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Holding(Enum):
    """What is to be known of a free slot's keys and values."""

    NOTHING = "nothing"
    """That anyone waits for."""
    UNSAVED = "unsaved"
    """Of a sequence that ended: they are wanted in a file."""
    LOADED = "loaded"
    """Of a file: a sequence that begins alike is about to come."""


@dataclass(slots=True, eq=False)
class Slot:
    """number: what llama.cpp calls it. ids, adapter: whose keys and values it holds, by `holding`; ids has shape (n,).
    lora: of the last request that ran here, as it was sent; None before the first."""

    number: int
    holding: Holding = Holding.NOTHING
    ids: tuple[int, ...] = ()
    adapter: str | None = None
    lora: object = None

    def hold(self, holding: Holding, ids: tuple[int, ...] = (), adapter: str | None = None) -> None:
        self.holding, self.ids, self.adapter = holding, ids, adapter


Worth = Callable[[Slot], int]
"""How good a slot is for somebody: the greatest is taken, and of equal ones that which has been free for longest."""


def least_missed(slot: Slot) -> int:
    """One that nobody waits for is taken first."""
    return int(slot.holding is Holding.NOTHING)


class SlotPool:
    """Thread-safe. A slot that was taken is its taker's until it is put back."""

    def __init__(self, count: int) -> None:
        self._free = deque(Slot(number) for number in range(count))
        self._changed = threading.Condition()

    def take(self, timeout_s: float, worth: Worth = least_missed) -> Slot | None:
        """None if none came free in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._free, timeout_s):
                return None
            slot = max(self._free, key=worth)
            self._free.remove(slot)
            return slot

    def take_held(self, holding: Holding, worth: Worth) -> Slot | None:
        """The free slot that holds so and is worth most, more than nothing; None if there is none. Never waits."""
        with self._changed:
            fitting = [slot for slot in self._free if slot.holding is holding and worth(slot) > 0]
            if not fitting:
                return None
            slot = max(fitting, key=worth)
            self._free.remove(slot)
            return slot

    def put(self, slot: Slot) -> None:
        with self._changed:
            self._free.append(slot)
            self._changed.notify()
