"""headpond: durable LLM inference behind one queue a model. This package is the producer's side.

from headpond import Client
with Client() as hp:
    for chunk in hp.submit("chat", "Why is the sky blue?").stream():
        print(chunk.text, end="")
"""

from headpond.aio import AsyncClient, AsyncJob
from headpond.client import Client, Job
from headpond.errors import HeadpondError
from headpond.jobs import Chunk, FinishReason, JobState, Priority, Result, Timings, Usage

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Chunk",
    "Client",
    "FinishReason",
    "HeadpondError",
    "Job",
    "JobState",
    "Priority",
    "Result",
    "Timings",
    "Usage",
]
