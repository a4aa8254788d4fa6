"""A worker that was killed is found dead by the lock that the kernel gave back, and what it held goes on at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ulid import ULID

from conftest import Deployment, eventually
from headpond import Client, Job, JobState
from headpond.errors import QueueError
from headpond_workers.naming.boot_locks import BOOTS_FOLDER, BootLocks
from test_crash import assert_contiguous

HOLDER = """\
import sys, time
from pathlib import Path
from headpond_workers.naming.boot_locks import BootLocks
BootLocks(Path(sys.argv[1]), "chat").hold(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""
CONFIG = """
[models.chat]
engine = "scripted"
tokens_per_s = 40
answer_tokens = 200
slots = 4
lease_s = 300
drain_timeout_s = 1
"""
"""With a lease that no test lives to see the end of."""


class Holder:
    """A process of its own that holds the lock of one boot."""

    def __init__(self, folder: Path) -> None:
        self.boot = str(ULID())
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), self.boot], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"held\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    holder = Holder(tmp_path)
    yield holder
    holder.kill()


def test_a_process_is_dead_once_it_was_killed_and_not_before(tmp_path: Path, holder: Holder) -> None:
    locks, found = BootLocks(tmp_path, "chat"), list[str]()
    locks.hold(str(ULID()))
    assert locks.each_dead(found.append) == 0
    os.kill(holder.process.pid, signal.SIGSTOP)
    assert locks.each_dead(found.append) == 0
    holder.kill()
    assert locks.each_dead(found.append) == 1
    assert locks.each_dead(found.append) == 0
    assert found == [holder.boot]
    locks.release()
    assert list((tmp_path / BOOTS_FOLDER / "chat").iterdir()) == []


def test_one_that_left_by_itself_is_nobody(tmp_path: Path) -> None:
    locks, other = BootLocks(tmp_path, "chat"), BootLocks(tmp_path, "chat")
    other.hold(str(ULID()))
    other.release()
    assert locks.each_dead(pytest.fail) == 0


def test_one_that_could_not_be_told_of_is_told_of_at_the_next_look(tmp_path: Path, holder: Holder) -> None:
    holder.kill()
    locks, found = BootLocks(tmp_path, "chat"), list[str]()

    def away(boot: str) -> None:
        raise QueueError(f"{boot} cannot be told of")

    with pytest.raises(QueueError):
        locks.each_dead(away)
    assert locks.each_dead(found.append) == 1
    assert found == [holder.boot]


def test_other_models_other_files_and_links_are_left_alone(tmp_path: Path, holder: Holder) -> None:
    holder.kill()
    folder = tmp_path / BOOTS_FOLDER / "chat"
    (folder / "readme").write_text("not a boot")
    (folder / str(ULID())).symlink_to(folder / "readme")
    assert BootLocks(tmp_path, "code").each_dead(pytest.fail) == 0
    found: list[str] = []
    assert BootLocks(tmp_path, "chat").each_dead(found.append) == 1
    assert found == [holder.boot]
    assert (folder / "readme").read_text() == "not a boot"


def test_where_nothing_can_be_kept_nobody_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / BOOTS_FOLDER).write_text("no folder")
    locks = BootLocks(tmp_path, "chat")
    locks.hold(str(ULID()))
    assert locks.each_dead(pytest.fail) == 0
    locks.release()
    assert [record.message.split()[0] for record in caplog.records] == ["boots_not_locked"]


def begun(deployment: Deployment, client: Client, *, max_tokens: int) -> Job:
    job = client.submit("chat", "Tell me of the river.", max_tokens=max_tokens)
    queue = deployment.queue("chat")
    eventually(lambda: (row := queue.run_row(job.id)) and row.offset > 8, what="its first tokens")
    return job


def test_a_sibling_goes_on_with_the_job_of_a_killed_worker_long_before_its_lease_ends(
    deployment: Deployment, client: Client
) -> None:
    deployment.configure(CONFIG)
    first = deployment.start("chat", "chat-0")
    job = begun(deployment, client, max_tokens=200)
    deployment.start("chat", "chat-1")
    first.kill()
    killed = time.monotonic()
    chunks = list(job.stream())
    assert_contiguous(chunks)
    result = job.result(timeout=1)
    assert (result.state, result.attempts, len(result.token_ids)) == (JobState.FINISHED, 2, 200)
    assert time.monotonic() - killed < 60
    queue = deployment.queue("chat")
    (attempt,) = queue.attempts(job.id)
    assert (attempt.how, attempt.reason) == ("killed", "its worker died")
    assert [row.instance for row in queue.workers()] == ["chat-1"]


def test_the_next_process_of_its_name_goes_on_with_what_a_killed_worker_held(
    deployment: Deployment, client: Client
) -> None:
    deployment.configure(CONFIG)
    first = deployment.start("chat", "chat-0")
    job = begun(deployment, client, max_tokens=120)
    first.kill()
    deployment.start("chat", "chat-0")
    result = job.result(timeout=60)
    assert (result.state, result.attempts, len(result.token_ids)) == (JobState.FINISHED, 2, 120)


def test_a_job_that_kills_each_worker_is_quarantined_and_the_next_worker_lives(
    deployment: Deployment, client: Client
) -> None:
    deployment.configure(CONFIG + 'crash_at = "prefill"\ncrash_prompt = "poison"\n')
    first = deployment.start("chat", "chat-0")
    job = client.submit("chat", "poison", max_tokens=10)
    assert first.wait() == -signal.SIGKILL
    for _ in range(2):
        assert deployment.start("chat", "chat-0", ready=False).wait() == -signal.SIGKILL
    deployment.start("chat", "chat-0")
    assert client.submit("chat", "a calm one", max_tokens=10).result(timeout=30).state is JobState.FINISHED
    row = deployment.queue("chat").run_row(job.id)
    assert row is not None
    assert (row.state, row.strikes, row.attempt) == (JobState.DEAD, 3, 3)


def test_a_worker_that_leaves_in_order_leaves_no_lock(deployment: Deployment, client: Client) -> None:
    deployment.configure(CONFIG)
    worker = deployment.start("chat", "chat-0")
    assert client.submit("chat", "hello", max_tokens=5).result(timeout=30).state is JobState.FINISHED
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert list((deployment.folder / ".headpond" / BOOTS_FOLDER / "chat").iterdir()) == []
