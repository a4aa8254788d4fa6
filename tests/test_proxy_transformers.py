"""A proxy to `transformers serve`, a server of OpenAI's protocol that is not llama.cpp's and not of these tests."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import Deployment, eventually
from exllamav2_cpu.availability import require_exllamav2
from headpond import Client, FinishReason, JobState
from headpond.jobs import UNNAMED_TOKEN
from headpond_workers.supervision.ports import free_ports
from proxy_flow import Reading, rewinds, row_of, start, table

require_exllamav2()

pytestmark = pytest.mark.slow

READY_S = 180.0
PROMPT = "What is the capital of France? Answer in one sentence."
STORY = "Write a long story about a river."


@dataclass
class Upstream:
    port: int
    model: Path

    def table(self, **settings: object) -> str:
        # transformers serve knows no stream_options, and runs one sequence after the other.
        ours = {
            "upstream_model": f'"{self.model}"', "stream_usage": "false", "slots": 2, "first_token_timeout_s": 60.0,
            "token_timeout_s": 30.0,
        }  # fmt: skip
        return table(f"http://127.0.0.1:{self.port}/v1", **ours | settings)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    from exllamav2_cpu.checkpoints import smollm2

    folder, log = smollm2(), tmp_path_factory.mktemp("serve") / "serve.log"
    (port,) = free_ports(1)
    offline = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1",
             "--port", str(port), "--device", "cpu", "--dtype", "float32"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **offline},
        )  # fmt: skip

    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    try:
        eventually(answers, deadline_s=READY_S, what="transformers serve")
        yield Upstream(port, folder)
    finally:
        process.kill()
        process.wait()


def test_answers_are_streamed_counted_stopped_cancelled_and_begun_anew_after_a_kill(
    deployment: Deployment, client: Client, upstream: Upstream
) -> None:
    deployment.configure(upstream.table())
    worker = start(deployment, "remote-0")
    queue = deployment.queue("remote")

    job = client.submit("remote", PROMPT, max_tokens=24, temperature=0.0)
    reading = Reading(job)
    result = job.result(timeout=120)
    reading.ended()
    assert "Paris" in result.text
    assert reading.text == result.text
    assert len(reading.chunks) > 1
    assert set(result.token_ids) == {UNNAMED_TOKEN}
    assert result.usage.prompt_tokens > 10
    assert 5 < result.usage.completion_tokens <= 24

    word = result.text.split()[2]
    cut = client.submit("remote", PROMPT, max_tokens=24, temperature=0.0, stop=[word]).result(timeout=120)
    assert (cut.finish_reason, word in cut.text) == (FinishReason.STOP, False)
    assert result.text.startswith(cut.text)
    short = client.submit("remote", STORY, max_tokens=5, temperature=0.0).result(timeout=120)
    assert (short.finish_reason, short.usage.completion_tokens) == (FinishReason.LENGTH, 5)

    long = client.submit("remote", STORY, max_tokens=2000)
    Reading(long).await_tokens(3)
    long.cancel()
    eventually(lambda: row_of(queue, worker).busy == 0, deadline_s=3, what="the slot to be free")
    assert long.state() is JobState.CANCELLED
    # The server has let go of it too: the next one does not wait for 2000 tokens.
    assert "Paris" in client.submit("remote", PROMPT, max_tokens=24, temperature=0.0).result(timeout=60).text

    job = client.submit("remote", STORY, max_tokens=40, temperature=0.0)
    reading = Reading(job)
    reading.await_tokens(5)
    worker.kill()
    start(deployment, "remote-1")
    result = job.result(timeout=120)
    reading.ended()
    assert (result.attempts, reading.restarts, reading.text) == (2, 1, result.text)
    assert [rewound.offset for rewound in rewinds(queue, job)] == [0]
