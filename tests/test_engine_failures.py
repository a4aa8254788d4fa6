"""An engine that fails in a real worker process: the job is tried again, and a broken engine ends its process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conftest import Deployment, eventually
from headpond import Client
from headpond.workers import WorkerState

ENGINE = """
from pathlib import Path
from typing import Literal

from headpond.engine_kinds import EngineTable
from headpond.errors import EngineBroken


class FragileModel(EngineTable):
    engine: Literal["fragile"]
    breaks: bool
    once: Path

    def load_engine(self, *, workers_on_host):
        from headpond.tables import ScriptedModel
        from headpond_workers.engines.scripted import ScriptedEngine

        settings = self

        class FragileEngine(ScriptedEngine):
            def generate(self, sequence, emit):
                def failing(ids):
                    nonlocal made
                    made += len(ids)
                    return emit(ids)

                made = 0
                if settings.once.exists():
                    return super().generate(sequence, emit)
                from dataclasses import replace

                super().generate(replace(sequence, max_tokens=12), failing)
                settings.once.touch()
                raise EngineBroken("The device fell off the bus.") if settings.breaks else RuntimeError("a cold joint")

        return FragileEngine(ScriptedModel(engine="scripted", tokens_per_s=2000, answer_tokens=30, slots=self.slots))
"""
ENTRY_POINTS = "[headpond.engines]\nfragile = fragile_engine:FragileModel\n"


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that finds the engine's package."""
    folder = tmp_path / "packages"
    metadata = folder / "fragile-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "fragile_engine.py").write_text(ENGINE)
    return {**os.environ, "PYTHONPATH": str(folder)}


def configure(deployment: Deployment, *, breaks: bool) -> None:
    once = deployment.folder / "failed-once"
    deployment.configure(
        f'[models.chat]\nengine = "fragile"\nbreaks = {str(breaks).lower()}\nonce = "{once}"\nlease_s = 1.0\n'
    )


def test_a_failure_of_the_engine_parks_the_job_and_the_worker_says_why(
    deployment: Deployment, client: Client, installed: dict[str, str]
) -> None:
    configure(deployment, breaks=False)
    worker = deployment.start("chat", "chat-0", environment=installed)
    result = client.submit("chat", "go", max_tokens=100).result(timeout=30)

    assert (result.attempts, len(result.token_ids)) == (2, 30)
    assert worker.process.poll() is None
    queue = deployment.queue("chat")
    # The row is written with each renewal.
    eventually(lambda: [row.last_error for row in queue.workers()] == ["a cold joint"], what="the error in the row")
    assert [row.state for row in queue.workers()] == [WorkerState.READY]


def test_a_broken_engine_ends_its_process_and_the_next_one_goes_on(
    deployment: Deployment, client: Client, installed: dict[str, str]
) -> None:
    configure(deployment, breaks=True)
    worker = deployment.start("chat", "chat-0", environment=installed)
    job = client.submit("chat", "go", max_tokens=100)
    assert worker.wait() == 1
    assert "fell off the bus" in worker.log.read_text()
    # Under the same name, as supervisord starts it again: it takes over the row.
    deployment.start("chat", "chat-0", environment=installed)
    result = job.result(timeout=30)

    assert len(result.token_ids) == 30
    offsets = [chunk.offset for chunk in job.stream()]
    assert offsets == sorted(set(offsets))
    eventually(lambda: len(deployment.queue("chat").workers()) == 1, what="the row of the broken worker being gone")
