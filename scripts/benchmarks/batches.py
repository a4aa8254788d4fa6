"""A hundred requests at once, on either side: what a producer with much to ask does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dramatiq
from child import BenchmarkError
from dramatiq.brokers.redis import RedisBroker

from headpond.client import Client
from headpond.connections import RedisAddress
from headpond.models import ModelRow
from headpond.operations import Entry
from headpond.queue import Server
from headpond.submission import GENERATE, prepare

MODEL = "bench"
BATCH = 100
MAX_TOKENS = 256
HOW = "dramatiq has no call for it: its broker's own script, once a message, all in one pipeline"
"""What the stock side of a batch is."""
_ROW = ModelRow(engine="scripted", max_queued=0, storage=False, context_tokens=4096)


class HeadpondProducer:
    """Submits jobs for a model that nobody serves."""

    def __init__(self, server: Server) -> None:
        """server: closed with this, if this is closed."""
        self.server = server
        server.configure_model(MODEL, _ROW)
        self.queue = server.queue(MODEL)
        self._client = Client(server.address.url)

    def submit(self, prompts: Sequence[str]) -> None:
        """One batch; every job is safe once this returns. Raises HeadpondError."""
        self._client.submit_many(MODEL, [{"prompt": prompt} for prompt in prompts], max_tokens=MAX_TOKENS)

    def close(self) -> None:
        self._client.close()
        self.server.close()


def entry_of(prompt: str) -> Entry:
    """What a submit of this prompt puts into the queue, with all its checks, under an id of its own."""
    return prepare(MODEL, prompt, None, known={MODEL: _ROW}, max_tokens=MAX_TOKENS).entry


class StockProducer:
    """Sends the same prompts to a queue of dramatiq's RedisBroker that nobody consumes.

    Only what cannot be left out: signals to middleware, the message and its own id, the encoding, the script.
    """

    def __init__(self, url: str) -> None:
        self.broker: Any = RedisBroker(url=url)  # type: ignore[no-untyped-call]
        self._actor = dramatiq.actor(actor_name=GENERATE, queue_name=MODEL, broker=self.broker)(_nobody)
        # The broker learns this much from the server once, at its first message.
        self.broker._max_unpack_size()  # type: ignore[no-untyped-call]
        self._pipe = _PipelinedBroker(self.broker)

    def submit(self, prompts: Sequence[str]) -> None:
        with self._pipe.collect():
            for prompt in prompts:
                self.broker.enqueue(self._actor.message(prompt, max_tokens=MAX_TOKENS))

    def close(self) -> None:
        self.broker.client.close()


class _PipelinedBroker:
    """Lets `enqueue` of a RedisBroker add its script to a pipeline instead of waiting for the reply."""

    def __init__(self, broker: Any) -> None:
        self._broker, self._script = broker, broker.scripts["dispatch"]
        broker.client.script_load(self._script.script)

    @contextmanager
    def collect(self) -> Iterator[None]:
        pipe = self._broker.client.pipeline(transaction=False)
        sha = self._script.sha

        def dispatch(args: Sequence[Any], keys: Sequence[Any]) -> None:
            pipe.execute_command("EVALSHA", sha, len(keys), *keys, *args)

        self._broker.scripts["dispatch"] = dispatch
        try:
            yield
        finally:
            self._broker.scripts["dispatch"] = self._script
        pipe.execute()


def _nobody(prompt: str, max_tokens: int) -> None:
    raise BenchmarkError("The sending process runs no job.")


def connect_server(url: str) -> Server:
    return Server(RedisAddress(url, "the benchmark"))


def in_batches(prompts: Sequence[str]) -> list[Sequence[str]]:
    return [prompts[at : at + BATCH] for at in range(0, len(prompts), BATCH)]


def submit_all(producer: HeadpondProducer | StockProducer, prompts: Sequence[str]) -> float:
    """All prompts, a batch at a time. Returns the seconds that it took."""
    began = time.monotonic()
    for batch in in_batches(prompts):
        producer.submit(batch)
    return time.monotonic() - began
