"""Who may give a name to which model: the operations on `headpond:models`, and the refusal in words. No I/O.

A deployment holds the names of the models that it serves or means to serve. All who hold a name mean the same by it.
`headpond.queue.Server` sends these operations; each is atomic over all the names that it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any

from headpond.errors import NameConflict, NameTaken
from headpond.models import Holder, ModelRow, pack_model, unpack_model
from headpond.operations import Operation
from headpond.spec import differences


class Hold(StrEnum):
    """How a name is asked for."""

    TAKE = "take"
    """The deployment may change its own spec where no other holds the name."""
    KEEP = "keep"
    """Of a running worker: nothing is changed where its deployment holds the name still."""
    LOOK = "look"
    """Nothing is written."""


def hold(holder: Holder, rows: Mapping[str, ModelRow], how: Hold) -> Operation[dict[str, ModelRow]]:
    """Take all names or none. Replies with the rows that stand in the way, by name."""
    args: list[str | bytes | int] = [how.value, holder.deployment, holder.host, holder.folder]
    for name, row in rows.items():
        args += (name, pack_model(replace(row, holders=())))
    return Operation("hold", args, _parse_refused)


def _parse_refused(reply: list[bytes]) -> dict[str, ModelRow]:
    return {reply[i].decode(): unpack_model(reply[i + 1]) for i in range(0, len(reply), 2)}


def release(deployment: str, names: Iterable[str]) -> Operation[str]:
    """Give up names, held or not."""
    return Operation("release", (deployment, *names), _word)


def forget(name: str, seen: bytes) -> Operation[bool]:
    """Remove a name whose document is still `seen`; False if it is not."""
    return Operation("forget", (name, seen), lambda reply: _word(reply) == "ok")


def refusal(holder: Holder, rows: Mapping[str, ModelRow], refused: Mapping[str, ModelRow], *, where: str) -> NameTaken:
    """The error for names that others hold. where: the configuration that wanted them."""
    conflicts = [
        NameConflict(
            name,
            tuple((other.deployment, str(other)) for other in row.holders if other.deployment != holder.deployment),
            tuple((d.key, d.here, d.there) for d in differences(rows[name].spec, row.spec or "{}")),
        )
        for name, row in refused.items()
    ]
    return NameTaken(conflicts, where=where)


def _word(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)
