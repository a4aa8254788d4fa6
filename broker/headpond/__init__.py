"""headpond: durable LLM inference behind one queue a model. This package is the producer's side.

from headpond import Client
with Client() as hp:
    for chunk in hp.submit("chat", "Why is the sky blue?").stream():
        print(chunk.text, end="")
"""

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
