"""What was asked for and what was acknowledged, and by it: which version the next task is about. No I/O."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from found import Hashes
from judgement import Number, Promised
from task_plan import PlannedTask, TaskKind
from weights import Recipe, changed, copied, first_recipe, hashes

Fields = dict[str, Any]
ALIASES = ("prod", "next")
AGAIN_SHARE = 0.3
"""How many pushes have the files of one that was killed, if there is one: it is to be taken up where it ended."""
COPIED_SHARE = 0.4
"""How many pushes to `draft` have the files of a version of `chat`: then both put the same objects."""
MOST_LIVE, LEAST_LIVE = 14, 3
"""Versions of a model. From the first on half of its pushes are deletions; below the other nothing is deleted."""
SHORT_GRACE_SHARE, SHORT_GRACE = 0.4, 0.1
"""So many collectors have only this part of the grace, which is shorter than many pushes take."""
BY_ALIAS_SHARE = 0.5
"""How many of those that take a version from the cache ask for what an alias names."""


@dataclass(slots=True)
class Ledger:
    """recipes: of each push, by the id of its order."""

    seed: int
    recipes: dict[str, Recipe] = field(default_factory=dict)
    acknowledged: dict[Number, str] = field(default_factory=dict)
    deleted: set[Number] = field(default_factory=set)
    moves: dict[tuple[str, str], dict[int, int]] = field(default_factory=dict)
    unheard: dict[str, list[str]] = field(default_factory=dict)
    """Pushes that ended without an answer, by model, the newest last."""
    wrong: list[str] = field(default_factory=list)
    _doomed: Counter[Number] = field(default_factory=Counter)
    """Deletions that are under way, or ended without an answer."""
    _first: dict[Recipe, str] = field(default_factory=dict)
    """The first push of each content."""
    _ever_doomed: set[Number] = field(default_factory=set)
    _orders: int = 0

    def promised(self) -> Promised:
        return Promised(
            {push: hashes(recipe) for push, recipe in self.recipes.items()},
            dict(self.acknowledged),
            frozenset(number for number, count in self._doomed.items() if count > 0) - self.deleted,
            frozenset(self.deleted),
            {alias: dict(told) for alias, told in self.moves.items()},
        )

    def live(self, model: str) -> list[int]:
        """Acknowledged versions that nobody has begun to delete, rising."""
        return sorted(
            number for of, number in self.acknowledged
            if of == model and (of, number) not in self.deleted and self._doomed[of, number] <= 0
        )  # fmt: skip

    def is_live(self, model: str, number: int) -> bool:
        return number in self.live(model)

    def ever_doomed(self, order: Fields) -> bool:
        """Whether a deletion of the version that an order names was begun at some time, also one that was refused."""
        return (order["model"], order.get("number")) in self._ever_doomed

    def files_of(self, model: str, number: int) -> Hashes | None:
        """Of an acknowledged version."""
        push = self.acknowledged.get((model, number))
        return None if push is None else hashes(self.recipes[push])

    # ---- what is asked for

    def order(self, task: PlannedTask) -> Fields:
        """What a process is to do. A task that finds no version yet is a push."""
        self._orders += 1
        order: Fields = {"id": f"{self._orders:05d}", "kind": task.kind.value, "model": task.model}
        draw, pick, other = task.draws
        known = sorted(number for of, number in self.acknowledged if of == task.model)
        kind, live = task.kind, self.live(task.model)
        if kind is TaskKind.PUSH and len(live) >= MOST_LIVE and other < 0.5:
            kind = TaskKind.DELETE
        if kind is TaskKind.DELETE and len(live) < LEAST_LIVE:
            kind = TaskKind.PUSH
        if kind not in (TaskKind.PUSH, TaskKind.COLLECT, TaskKind.SCRUB) and not live:
            kind = TaskKind.PUSH
        order["kind"] = kind.value
        match kind:
            case TaskKind.COLLECT:
                order["grace"] = SHORT_GRACE if draw < SHORT_GRACE_SHARE else 1.0
            case TaskKind.PUSH:
                recipe = self._recipe(task.model, draw, other, random.Random(f"{self.seed}:{order['id']}"))  # noqa: S311
                self.recipes[order["id"]] = recipe
                order["recipe"] = recipe.told()
                # A push that was interrupted is taken up by one with the same note.
                order["note"] = self._first.setdefault(recipe, order["id"])
            case TaskKind.HOLD if draw < BY_ALIAS_SHARE:
                order["alias"] = _at(ALIASES, pick)
            case TaskKind.PULL | TaskKind.HOLD | TaskKind.VERIFY:
                order["number"] = _at(live, pick)
            case TaskKind.PROMOTE:
                # Now and then one that is deleted, or about to be.
                order["number"] = _at(known if other < 0.15 else live[-6:], pick)
                order["alias"] = _at(ALIASES, draw)
                known_to = self._names(task.model, order["alias"])
                order["left"] = known_to if other > 0.7 else None
            case TaskKind.ROLLBACK:
                order["alias"] = _at(ALIASES, pick)
            case TaskKind.DELETE:
                order["number"] = _at(known if other < 0.1 else live[:-2], pick)
                order["force"] = other > 0.8
                self._doomed[task.model, order["number"]] += 1
                self._ever_doomed.add((task.model, order["number"]))
            case _:
                pass
        return order

    def _recipe(self, model: str, draw: float, other: float, rng: random.Random) -> Recipe:
        if draw < AGAIN_SHARE and (unheard := self.unheard.get(model)):
            return self.recipes[unheard[-1]]
        if model == "draft" and other < COPIED_SHARE and (numbers := self._numbers("chat")):
            return copied(self.recipes[self.acknowledged["chat", numbers[-1]]], model)
        numbers = self._numbers(model)
        if not numbers:
            return first_recipe(model, rng)
        return changed(self.recipes[self.acknowledged[model, rng.choice(numbers[-4:])]], rng)

    def _names(self, model: str, alias: str) -> int:
        """What the alias names, as far as was told; 0 for nothing."""
        told = self.moves.get((model, alias), {})
        return told[max(told)] if told else 0

    def _numbers(self, model: str) -> list[int]:
        return sorted(number for of, number in self.acknowledged if of == model)

    # ---- what came of it

    def _acknowledge(self, number: Number, push: str) -> None:
        recipe = self.recipes[push]
        known = self.acknowledged.setdefault(number, push)
        if self.recipes[known] != recipe:
            self.wrong.append(f"{number[0]}@{number[1]}: told to the pushes {known} and {push}, which differ")
        unheard = self.unheard.get(number[0], [])
        unheard[:] = [other for other in unheard if self.recipes[other] != recipe]

    def answered(self, order: Fields, told: Fields | None) -> None:
        """told: the last word of its process on it; None if it was killed before, or got no answer from storage."""
        model, number = order["model"], order.get("number", 0)
        word = told["word"] if told else ""
        match TaskKind(order["kind"]), word:
            case TaskKind.PUSH, "done":
                assert told is not None  # noqa: S101 - for the type checker
                self._acknowledge((model, told["number"]), order["id"])
            case TaskKind.PUSH, _:
                self.unheard.setdefault(model, []).append(order["id"])
            case TaskKind.DELETE, "done":
                self.deleted.add((model, number))
            case TaskKind.DELETE, "refused":
                self._doomed[model, number] -= 1
            case ((TaskKind.PROMOTE | TaskKind.ROLLBACK), "done"):
                assert told is not None  # noqa: S101
                self.moves.setdefault((model, order["alias"]), {})[told["seq"]] = told["to"]
            case _:
                pass


def _at(choices: Iterable[Any], draw: float) -> Any:
    """One of them. draw: in [0, 1)."""
    among = list(choices)
    return among[int(draw * len(among))]
