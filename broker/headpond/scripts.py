"""Loads the Lua scripts. common.lua is put before each; all but `hello` demand a queue that has been met."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

STATIC_KEYS = (
    "meta", "data", "run", "result", "delayed", "deadlines", "leases", "ended", "dead", "journal", "workers",
    "spec",
)  # fmt: skip
"""KEYS of every script, in the order that common.lua unpacks them."""

NOT_MET = "NOHELLO"
"""Begins the error reply of a script that ran before `hello`."""


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    source: str
    sha: str


@cache
def load_script(name: str) -> Script:
    """Script `lua/<name>.lua`, ready to send."""
    folder = files("headpond.lua")
    guard = "" if name == "hello" else (folder / "guard.lua").read_text()
    source = (folder / "common.lua").read_text() + guard + (folder / f"{name}.lua").read_text()
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
