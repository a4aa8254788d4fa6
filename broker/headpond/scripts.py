"""Loads the Lua scripts, each linked with what it needs of lua/parts. Those of a queue, all but `hello`, demand one
that was met; those of names have a part of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from headpond.linking import Parts, link

PARTS = (
    "head", "rows", "journal", "streams", "lanes", "sessions", "versions", "ends", "sweep", "preemption", "switching",
)  # fmt: skip
"""lua/parts, in the order of what builds on what."""
NAMES_PARTS = ("names",)
OF_NAMES = frozenset({"hold", "release", "forget"})
"""Scripts that are given `headpond:models` and no queue."""
GUARD = "guard"
"""The part that stands before the own text of a script."""
UNGUARDED = OF_NAMES | {"hello"}
SELDOM = frozenset({
    "commit_turn", "end_job", "end_wait", "finish_lease", "lapse", "leave_session", "make_ready", "move_back",
    "park_lease", "put_session", "sweep", "take_back", "to_preempt",
})  # fmt: skip
"""Functions of the parts that many calls of a script do not reach, and that bring others with them."""

NOT_MET = "NOHELLO"
"""Begins the error reply of a script that ran before `hello`."""
WAITS = "WAITS "
"""Begins the error reply of a script that has to wait; the state of the queue follows."""


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    source: str
    sha: str


class Library:
    """All scripts, of files that `read` gives by their paths below broker/headpond/lua."""

    def __init__(self, read: Callable[[str], str]) -> None:
        self._read = read
        self._parts = {names: self._parts_of(names) for names in (PARTS, NAMES_PARTS)}
        self._scripts: dict[str, Script] = {}

    def script(self, name: str) -> Script:
        """Script `<name>.lua`, ready to send."""
        if name not in self._scripts:
            own = self._read(f"{name}.lua")
            if name not in UNGUARDED:
                own = self._read(f"parts/{GUARD}.lua") + own
            source = link(own, self._parts[NAMES_PARTS if name in OF_NAMES else PARTS], seldom=SELDOM)
            sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
            self._scripts[name] = Script(name, source, sha)
        return self._scripts[name]

    def _parts_of(self, names: tuple[str, ...]) -> Parts:
        return Parts((name, self._read(f"parts/{name}.lua")) for name in names)


def read_lua(path: str) -> str:
    """A file of this package by its path below broker/headpond/lua."""
    return (files("headpond.lua") / path).read_text(encoding="utf-8")


@cache
def library() -> Library:
    """The scripts of this package."""
    return Library(read_lua)


def load_script(name: str) -> Script:
    """Script `lua/<name>.lua`, ready to send."""
    return library().script(name)
