"""A worker whose engine shows its key in errors and logs: the key reaches no log, no row and no byte of the server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conftest import Deployment, eventually
from headpond import Client
from headpond.errors import JobFailed
from headpond.operators import Operator
from headpond.workers import WorkerState

KEY = "sk-live/9b1d+70ce=44a2"
ENGINE = """
import logging
import threading
from typing import Literal

from headpond.engine_kinds import EngineTable
from headpond.errors import EngineUnavailable, SequenceFailed
from headpond.tables import SecretRef

log = logging.getLogger("leaky")


class LeakyModel(EngineTable):
    engine: Literal["leaky"]
    headers: dict[str, str | SecretRef]
    loads: bool = True

    def load_engine(self, *, workers_on_host):
        from headpond.tables import ScriptedModel
        from headpond_workers.engines.scripted import ScriptedEngine

        key = self.headers["X-Key"].resolve(where="test")
        log.info("connecting key=%s", key)
        log.info("first=%s second=%s", key[:10], key[10:])
        log.info("number=%d", key)
        if not self.loads:
            raise EngineUnavailable(f"the server refuses {key}")

        def die():
            raise ValueError(f"thread with {key!r}")

        threading.Thread(target=die).start()

        class LeakyEngine(ScriptedEngine):
            def generate(self, sequence, emit):
                if sequence.max_tokens == 7:
                    raise SequenceFailed(f"upstream said: bad key {key}")
                raise RuntimeError(f"upstream said: Authorization: Bearer {key}")

        return LeakyEngine(ScriptedModel(engine="scripted", tokens_per_s=2000, answer_tokens=30, slots=self.slots))
"""
ENTRY_POINTS = "[headpond.engines]\nleaky = leaky_engine:LeakyModel\n"
MODEL = """
[models.chat]
engine = "leaky"
headers = {X-Key = {env = "KEY_OF_THE_TEST"}, X-Plain = "text"}
lease_s = 2
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a process that finds the engine's package, and its key."""
    folder = tmp_path / "packages"
    metadata = folder / "leaky-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "leaky_engine.py").write_text(ENGINE)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path, "KEY_OF_THE_TEST": KEY}


def assert_no_part(text: str) -> None:
    for at in range(len(KEY) - 5):
        assert KEY[at : at + 6] not in text


def written_by(deployment: Deployment) -> bytes:
    """Every byte that the server has kept."""
    folder = deployment.valkey.folder
    files = [path for path in folder.rglob("*") if path.is_file() and "appendonly" in path.name]
    assert files
    return b"".join(path.read_bytes() for path in files)


def test_a_key_in_an_engines_errors_reaches_no_log_and_no_server(
    deployment: Deployment, client: Client, environment: dict[str, str]
) -> None:
    deployment.configure(MODEL)
    worker = deployment.start("chat", "chat-0", environment=environment)
    with pytest.raises(JobFailed) as failed:
        client.submit("chat", "a question", max_tokens=7).result(timeout=30)
    assert failed.value.result.error == "upstream said: bad key ****"

    crashing = client.submit("chat", "another", id="chat/crashing", max_tokens=9)
    queue = deployment.queue("chat")
    eventually(lambda: any(row.last_error for row in queue.workers()), what="the engine's failure in the row")
    (row,) = queue.workers()
    assert row.last_error == "upstream said: Authorization: Bearer ****"
    eventually(lambda: crashing.state().value == "dead", what="the quarantine")
    with Operator(deployment.url) as operator:
        bundle = operator.dead("chat").show("chat/crashing")
    assert all("Bearer ****" in attempt.reason for attempt in bundle.attempts)

    log = worker.log.read_text()
    assert "connecting key=****" in log
    assert "first=**** second=****" in log
    assert "log_line_failed" in log
    assert "thread_died" in log
    assert "RuntimeError: upstream said: Authorization: Bearer ****" in log
    assert_no_part(log)
    assert_no_part(written_by(deployment).decode("latin-1"))


def test_a_key_in_the_reason_of_a_failed_load_reaches_no_row(
    deployment: Deployment, environment: dict[str, str]
) -> None:
    deployment.configure(MODEL + "loads = false\n")
    worker = deployment.start("chat", "chat-0", ready=False, environment=environment)
    assert worker.wait() == 78
    (row,) = deployment.queue("chat").workers()
    assert (row.state, row.last_error) == (WorkerState.FAILED, "the server refuses ****")
    assert_no_part(worker.log.read_text())
    assert_no_part(written_by(deployment).decode("latin-1"))
