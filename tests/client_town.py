"""A server with workers of scripted models, for tests of the producer's API; and what its readers see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pytest

from conftest import Deployment, eventually
from headpond import Chunk, Client
from headpond.models import ModelRow
from headpond.queue import JobQueue
from headpond.workers import WorkerState
from headpond_workers.supervision.embedded_valkey import running_valkey

PROMPT = "Tell me of the river."
MODELS = """
[models.chat]
engine = "scripted"
tokens_per_s = 4000
slots = 4
lease_s = 2.0
answer_tokens = 60
context_tokens = 256

[models.slow]
engine = "scripted"
tokens_per_s = 40
slots = 4
lease_s = 2.0
answer_tokens = 400

[models.idle]
engine = "scripted"
"""


@dataclass
class Town:
    """One server, with a worker for `chat`, one for `slow`, and none for `idle`."""

    deployment: Deployment
    client: Client

    def queue(self, model: str) -> JobQueue:
        return self.deployment.queue(model)


@pytest.fixture(scope="module")
def served_town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    with running_valkey(folder / "server") as valkey:
        deployment = Deployment(valkey, folder)
        try:
            deployment.configure(MODELS)
            for model in ("chat", "slow"):
                deployment.start(model, f"{model}-0", ready=False)
            with Client(valkey.url) as client:
                server = deployment.server()
                server.configure_model("idle", client_row())
                for model in ("chat", "slow"):
                    queue = server.queue(model)
                    eventually(partial(is_served, queue), what=f"a worker of {model}")
                yield Town(deployment, client)
        finally:
            deployment.close()


def is_served(queue: JobQueue) -> bool:
    return any(row.state is WorkerState.READY for row in queue.workers())


def client_row() -> ModelRow:
    """What a worker of `idle` would say that it serves."""
    return ModelRow("scripted", 0, storage=False, context_tokens=8192)


def text_of(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def ids_of(chunks: Sequence[Chunk]) -> tuple[int, ...]:
    return tuple(i for chunk in chunks for i in chunk.token_ids)


def assert_one_after_another(chunks: Sequence[Chunk], *, after: int = 0) -> None:
    for chunk in chunks:
        assert chunk.offset == after
        assert chunk.token_ids
        assert not chunk.restarted
        after += len(chunk.token_ids)
