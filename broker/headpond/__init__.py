"""headpond: durable LLM inference behind one queue a model. This package is the producer's side.

from headpond import Client
with Client() as hp:
    for chunk in hp.submit("chat", "Why is the sky blue?").stream():
        print(chunk.text, end="")
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headpond.aio import AsyncClient, AsyncJob
    from headpond.aio_sessions import AsyncSession
    from headpond.client import Client, Job
    from headpond.commits import Commit
    from headpond.errors import HeadpondError
    from headpond.jobs import Chunk, FinishReason, JobState, Priority, Result, Timings, Usage
    from headpond.sessions import Session
    from headpond.turns import Policy, Turn

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "AsyncSession",
    "Chunk",
    "Client",
    "Commit",
    "FinishReason",
    "HeadpondError",
    "Job",
    "JobState",
    "Policy",
    "Priority",
    "Result",
    "Session",
    "Timings",
    "Turn",
    "Usage",
]

# Imported when they are first named: the command passes here before it can take a Ctrl-C, and most of its imports are
# behind these.
_MODULES = {
    "headpond.aio": ("AsyncClient", "AsyncJob"),
    "headpond.aio_sessions": ("AsyncSession",),
    "headpond.client": ("Client", "Job"),
    "headpond.commits": ("Commit",),
    "headpond.errors": ("HeadpondError",),
    "headpond.jobs": ("Chunk", "FinishReason", "JobState", "Priority", "Result", "Timings", "Usage"),
    "headpond.sessions": ("Session",),
    "headpond.turns": ("Policy", "Turn"),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # for a type checker it would be any name at all

    def __getattr__(name: str) -> object:
        if name in _PLACES:
            value = globals()[name] = getattr(import_module(_PLACES[name]), name)
            return value
        if f"headpond.{name}" in _MODULES:
            return import_module(f"headpond.{name}")
        raise AttributeError(f"module 'headpond' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_PLACES})
