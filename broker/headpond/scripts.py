"""Loads the Lua scripts. Parts that they share are put before each. Those of a queue, all but `hello`, demand one that
was met; those of names have a part of their own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_ALL_PARTS = ("head", "rows", "journal", "streams", "lanes", "versions", "ends", "sweep", "preemption")
"""lua/parts, in the order of what builds on what."""
_FEW_PARTS = {
    "append": ("head", "rows", "streams", "lanes", "preemption"),
    "submit": ("head", "rows", "journal", "lanes"),
    "claim": ("head", "rows", "journal", "streams", "lanes", "versions", "ends", "sweep"),
    "finish": ("head", "rows", "journal", "streams", "lanes", "ends"),
    "switch": ("head", "rows", "lanes", "versions", "switching"),
    "assign": ("head", "rows", "lanes", "versions", "switching"),
    "refuse": ("head", "rows", "lanes", "versions", "switching"),
    "sample": ("head",),
    "hold": ("names",),
    "release": ("names",),
    "forget": ("names",),
}
"""Of the scripts on the hot path, since a server runs the whole head of a script at each call, of those that switch
versions, and of those that are given `headpond:models` and no queue."""

NOT_MET = "NOHELLO"
"""Begins the error reply of a script that ran before `hello`."""
WAITS = "WAITS "
"""Begins the error reply of a script that has to wait; the state of the queue follows."""


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    source: str
    sha: str


@cache
def load_script(name: str) -> Script:
    """Script `lua/<name>.lua`, ready to send."""
    folder = files("headpond.lua")
    parts = [f"{part}.lua" for part in _FEW_PARTS.get(name, _ALL_PARTS)]
    if name != "hello" and "head.lua" in parts:
        parts.insert(1, "guard.lua")
    source = "".join((folder / "parts" / part).read_text() for part in parts) + (folder / f"{name}.lua").read_text()
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
