"""Stored keys and values behind the real queue: workers on llama.cpp that are replaced amid a conversation."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Deployment, WorkerChild, eventually
from headpond import Client
from headpond.jobs import Result
from headpond_workers.models.prepare import prepare
from headpond_workers.prefixes.folders import fingerprint_folders, kv_folder, prefixes_in
from headpond_workers.prefixes.rates import RATES_FILE
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from stored_deployment import start_persister, storage_table

pytestmark = pytest.mark.slow

SOURCE = "smollm2-135m:Q8_0"
MODEL = f"""
[models.chat]
engine = "llamacpp"
source = "{SOURCE}"
threads = 1
slots = 2
context_tokens = 1024
kv_min_tokens = 64
drain_timeout_s = 5
"""
STORY = "There was a mill by the river, and the miller counted the sacks each evening before he went home. "
ASKED = STORY * 12 + "What did the miller count?"
HEADPOND = (sys.executable, "-c", "from headpond.cli import main; main()")


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    prepare(SOURCE, progress=lambda *_: None)


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


def ask(client: Client, *turns: str) -> Result:
    """turns: user and assistant in turn."""
    messages = [{"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(turns)]
    return client.submit("chat", messages=messages, max_tokens=16, temperature=0).result(timeout=120)


def used(worker: WorkerChild) -> list[tuple[int, int]]:
    """(tokens of the prompt, tokens that were not computed) of each job that went on from stored keys and values."""
    found = re.findall(r"kv_prefix_used model=chat prompt_tokens=(\d+) cached_tokens=(\d+)", worker.log.read_text())
    return [(int(prompt), int(cached)) for prompt, cached in found]


def stored_in(folder: Path) -> list[Path]:
    kv = kv_folder(folder / ".headpond")
    return [found.path for each in fingerprint_folders(kv, "chat") for found in prefixes_in(each)]


def saved(worker: WorkerChild, count: int) -> None:
    eventually(lambda: worker.log.read_text().count("kv_prefix_saved") >= count, what=f"{count} saved prefixes")


def test_a_worker_that_takes_over_a_conversation_computes_only_the_new_turn(
    deployment: Deployment, client: Client
) -> None:
    deployment.configure(MODEL + 'kv = "local"\n')
    first = deployment.start("chat", "chat-0")
    begun = ask(client, ASKED)
    saved(first, 1)
    log = first.log.read_text()
    assert log.index("job_ended") < log.index("kv_prefix_saved"), "the end is told first"
    first.kill()
    second = deployment.start("chat", "chat-1")
    gone_on = ask(client, ASKED, begun.text, "And what did he do then?")
    ((prompt, cached),) = used(second)
    assert prompt - cached < 60
    assert cached > begun.usage.prompt_tokens - 64
    second.kill()

    # The same, computed from the start: what was asked and answered is no other.
    shutil.rmtree(kv_folder(deployment.folder / ".headpond"))
    third = deployment.start("chat", "chat-2")
    again = ask(client, ASKED, begun.text, "And what did he do then?")
    assert used(third) == []
    assert again.usage.prompt_tokens == gone_on.usage.prompt_tokens == prompt


def test_a_damaged_file_is_refused_and_the_answer_is_that_of_a_prompt_that_was_read(
    deployment: Deployment, client: Client
) -> None:
    deployment.configure(MODEL + 'kv = "local"\n')
    worker = deployment.start("chat", "chat-0")
    first = ask(client, ASKED)
    saved(worker, 1)
    (path,) = stored_in(deployment.folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    again = ask(client, ASKED)
    log = worker.log.read_text()
    assert "kv_prefix_refused" in log
    assert "damaged" in log
    assert used(worker) == []
    assert again.token_ids == first.token_ids
    # It was put anew, and is good.
    saved(worker, 2)
    ask(client, ASKED)
    assert len(used(worker)) == 1


def test_a_conversation_moves_to_another_machine_through_storage(
    deployment: Deployment, client: Client, seaweed: SeaweedProcess
) -> None:
    bucket = "kv-moves"
    extra = storage_table(seaweed, deployment.folder, bucket=bucket)
    deployment.configure(MODEL + 'kv = "storage"\n', extra=extra)
    start_persister(deployment)
    first = deployment.start("chat", "chat-0")
    begun = ask(client, ASKED)
    blobs = S3Blobs(
        StorageAddress(seaweed.url, bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, "the test")
    )
    eventually(lambda: [key for key in blobs.list_keys("kv/chat/") if "/prefixes/" in key], what="an uploaded prefix")
    first.signal(15)
    first.wait()
    # Another machine: what it measured of itself, and nothing of what this one has stored.
    for path in stored_in(deployment.folder):
        assert (path.parent / RATES_FILE).exists()
        path.unlink()
    second = deployment.start("chat", "chat-1")
    eventually(lambda: "kv_prefix_known" in second.log.read_text(), what="the worker knowing what is stored")
    ask(client, ASKED, begun.text, "And what did he do then?")
    ((prompt, cached),) = used(second)
    assert prompt - cached < 60
    assert "kv_prefix_loaded" in second.log.read_text()

    shown = subprocess.run(
        [*HEADPOND, "storage", "kv", "--json", "--config", str(deployment.config)], capture_output=True, check=True
    )
    chat = json.loads(shown.stdout)["models"]["chat"]
    assert chat["storage"]["prefixes"] >= 1
    assert chat["local"]["files"] >= 1


def test_without_storage_a_model_that_wants_it_does_not_start(deployment: Deployment) -> None:
    deployment.configure(MODEL + 'kv = "storage"\n')
    worker = deployment.start("chat", "chat-0", ready=False)
    assert worker.wait() == 78
    assert 'kv = "storage" needs object storage, and there is none' in worker.log.read_text()
