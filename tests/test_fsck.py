"""fsck on queues that were damaged on purpose, and what `headpond status` shows of a queue."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Deployment, eventually
from headpond import Client, JobState
from headpond.keys import queue_keys
from headpond.models import ModelRow
from headpond.queue import JobQueue

HEADPOND = Path(sys.executable).with_name("headpond")
MODEL = '[models.chat]\nengine = "scripted"\ntokens_per_s = 2000\nanswer_tokens = 5\n'
KEYS = queue_keys("chat")


def run(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HEADPOND_")}
    done = subprocess.run(
        [str(HEADPOND), *arguments], cwd=cwd, capture_output=True, timeout=60, env=clean, check=False, text=True
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def chat(deployment: Deployment) -> JobQueue:
    deployment.configure(MODEL)
    deployment.server().configure_model("chat", ModelRow("scripted", 0, False, 8192))
    return deployment.queue("chat")


def submit(client: Client, *names: str, **options: Any) -> None:
    for name in names:
        client.submit("chat", "x", id=f"chat/{name}", **options)


def lose_the_place(chat: JobQueue) -> None:
    chat.server.read("ZREM", KEYS.ready("any", "normal"), "chat/a")


def lose_the_time(chat: JobQueue) -> None:
    chat.server.read("ZREM", KEYS.named("delayed"), "chat/later")


def lose_the_lease(chat: JobQueue) -> None:
    (lease,) = chat.claim("boot", seq=1, nonce="n", slots=1).leases
    assert lease.id == "chat/a"
    chat.server.read("ZREM", KEYS.named("leases"), "chat/a")


def lose_the_retention(chat: JobQueue) -> None:
    assert chat.cancel("chat/a") is JobState.CANCELLED
    chat.server.read("ZREM", KEYS.named("ended"), "chat/a")


@pytest.mark.parametrize(
    ("damage", "job_id", "what", "remedy", "after"),
    [
        (lose_the_place, "chat/a", "queued, and in no lane", "queued", JobState.QUEUED),
        (lose_the_time, "chat/later", "delayed, and due at no time", "queued", JobState.QUEUED),
        (lose_the_lease, "chat/a", "running, and without a lease", "queued", JobState.QUEUED),
        (lose_the_retention, "chat/a", "ended, and never dropped", "kept for its retention", JobState.CANCELLED),
    ],
)
def test_a_job_out_of_place_is_found_left_alone_and_put_back_when_asked(
    deployment: Deployment,
    client: Client,
    chat: JobQueue,
    damage: Callable[[JobQueue], None],
    job_id: str,
    what: str,
    remedy: str,
    after: JobState,
) -> None:
    submit(client, "a", "b")
    submit(client, "later", delay=1000)
    assert run("fsck", cwd=deployment.folder) == (0, "chat: 3 jobs, 0 faults\n", "")
    damage(chat)
    before = chat.run_row(job_id)

    code, out, err = run("fsck", "chat", cwd=deployment.folder)
    assert (code, out) == (7, f"{job_id}: {what}; left\nchat: 3 jobs, 1 fault\n")
    assert "--repair" in err
    assert chat.run_row(job_id) == before

    code, out, _ = run("fsck", "--repair", "--json", cwd=deployment.folder)
    assert code == 0
    assert json.loads(out) == {
        "models": [{"model": "chat", "jobs": 3, "faults": [{"id": job_id, "what": what, "remedy": remedy}]}],
        "left": 0,
    }
    row = chat.run_row(job_id)
    assert row is not None
    assert row.state is after
    assert run("fsck", cwd=deployment.folder) == (0, "chat: 3 jobs, 0 faults\n", "")


def test_repaired_jobs_are_served_and_what_cannot_be_repaired_stays_told(
    deployment: Deployment, client: Client, chat: JobQueue
) -> None:
    names = [f"n{n}" for n in range(450)]
    client.submit_many("chat", [{"prompt": "x", "id": f"chat/{name}", "max_tokens": 1} for name in names])
    for name in names[::3]:
        chat.server.read("ZREM", KEYS.ready("any", "normal"), f"chat/{name}")
    chat.server.read("HSET", KEYS.named("run"), "chat/n1\x1b[2J", b"\xc1")
    chat.server.read("HDEL", KEYS.named("data"), "chat/n2")

    code, out, _ = run("fsck", "--repair", cwd=deployment.folder)
    lines = out.splitlines()
    assert code == 7
    assert lines[-1] == "chat: 451 jobs, 152 faults"
    assert "chat/n1\\x1b[2J: its run row cannot be read; left" in lines
    assert "chat/n2: its request is gone; failed" in lines
    assert sum("queued, and in no lane; queued" in line for line in lines) == 150
    code, out, _ = run("fsck", "--repair", "--json", cwd=deployment.folder)
    assert (code, json.loads(out)["left"]) == (7, 1)

    chat.server.read("HDEL", KEYS.named("run"), "chat/n1\x1b[2J")
    deployment.start("chat", "chat-0")
    eventually(lambda: chat.depths().ready + chat.depths().running == 0, what="all jobs served")
    served = [row for job_id in chat.ids() if (row := chat.run_row(job_id)) is not None]
    assert [row.state for row in served].count(JobState.FINISHED) == 449


def test_fsck_shows_progress_on_a_terminal_alone(deployment: Deployment, client: Client, chat: JobQueue) -> None:
    submit(client, "a", "b")
    assert run("fsck", cwd=deployment.folder)[2] == ""
    master, slave = pty.openpty()
    try:
        done = subprocess.run(
            [str(HEADPOND), "fsck"], cwd=deployment.folder, stdout=subprocess.PIPE, stderr=slave, timeout=60, check=True
        )
        shown = os.read(master, 4096)
    finally:
        os.close(slave)
        os.close(master)
    assert done.stdout == b"chat: 2 jobs, 0 faults\n"
    assert b"chat: 2 of 2" in shown
    assert shown.endswith(b"\r\x1b[K")


@pytest.mark.slow
def test_status_shows_ready_jobs_by_priority_suspects_what_is_due_and_rates(
    deployment: Deployment, client: Client, chat: JobQueue
) -> None:
    submit(client, "s", priority="interactive")
    for seq in (1, 2):
        (lease,) = chat.claim("boot", seq=seq, nonce=f"n{seq}", slots=1).leases
        chat.park([(lease.id, lease.fence)], strike=True, reason="no")
    submit(client, "n1", "n2")
    submit(client, "b1", priority="batch")
    submit(client, "soon", delay=0.01)
    submit(client, "late", delay=1000)

    def due() -> dict[str, Any] | None:
        code, out, _ = run("status", "--json", cwd=deployment.folder)
        assert code == 0
        (queue,) = json.loads(out)["queues"]
        return queue if queue["due"] else None

    assert eventually(due, what="the delayed job being due") == {
        "model": "chat", "ready": 4, "interactive": 1, "normal": 2, "batch": 1, "suspects": 1, "delayed": 2, "due": 1,
        "running": 0, "lapsed": 0, "dead": 0, "waiting": 0, "storage": None, "alias": None,
    }  # fmt: skip
    _, table, _ = run("status", cwd=deployment.folder)
    head, line = (text.split() for text in table.splitlines()[:2])
    assert dict(zip(head, line, strict=True)) == {
        "model": "chat", "ready": "4", "interactive": "1", "normal": "2", "batch": "1", "suspects": "1",
        "waiting": "0", "delayed": "2", "due": "1", "running": "0", "dead": "0",
    }  # fmt: skip

    deployment.configure(MODEL.replace("answer_tokens = 5", "answer_tokens = 100000").replace("2000", "100"))
    deployment.start("chat", "chat-0")

    def rate() -> float:
        (worker,) = json.loads(run("status", "--json", cwd=deployment.folder)[1])["workers"]
        return float(worker["tokens_per_s"])

    assert eventually(rate, what="a rate of tokens") > 0
    assert "tokens/s" in run("status", cwd=deployment.folder)[1]
