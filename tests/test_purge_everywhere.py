"""A purged job is nowhere: not in Redis, in its files, in storage, in its files, in logs, or in the state folder."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from child_environment import with_test_modules
from conftest import eventually
from headpond import Client
from headpond.codec import pack
from headpond.errors import JobGone
from headpond.queue import JobQueue
from headpond_workers.supervision.deployment import Deployment
from test_deployment import deployment_of, processes_of

pytestmark = pytest.mark.slow

CONFIG = """\
[defaults]
lease_s = 2
drain_timeout_s = 2
[models.chat]
engine = "scripted"
tokens_per_s = 20
answer_tokens = 30
[models.other]
engine = "scripted"
tokens_per_s = 500
answer_tokens = 5
"""
PROMPT = "Xylophonzwetschge"
ASKED = PROMPT.encode()
"""Stands in the prompts of what is purged, and nowhere else."""
COMMAND = "from headpond.cli import main; main()"


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployment]:
    (tmp_path / "headpond.toml").write_text(CONFIG)
    deployment = deployment_of(tmp_path)
    try:
        deployment.up()
        deployment.wait_ready(timeout_s=60)
        yield deployment
    finally:
        with contextlib.suppress(Exception):
            deployment.down()
        for process in processes_of(tmp_path):
            process.kill()


def purge(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND, "purge", *words]
    return subprocess.run(
        command,
        cwd=folder,
        env=with_test_modules(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )


def files_with(folder: Path, *texts: bytes) -> list[str]:
    """Names of all files that hold any of the texts."""
    found = []
    for path in folder.rglob("*"):
        # Servers replace their files meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and any(text in path.read_bytes() for text in texts):
                found.append(str(path.relative_to(folder)))
    return found


def await_no_file(folder: Path, *texts: bytes) -> None:
    """The servers write their files anew beside their work."""
    left: list[str] = []

    def clean() -> bool:
        left[:] = files_with(folder, *texts)
        return not left

    try:
        eventually(clean, what="the files being clean")
    except pytest.fail.Exception:
        pytest.fail(f"files that hold what was purged: {left}")


def stored(client: Client, queue: JobQueue, job_id: str) -> None:
    def durable() -> bool:
        row = queue.run_row(job_id)
        return row is not None and row.durable

    eventually(durable, what=f"the commit of {job_id}")


def test_what_was_purged_is_in_no_file_and_the_rest_goes_on(deployed: Deployment, tmp_path: Path) -> None:
    url = json.loads((tmp_path / ".headpond" / "run.json").read_text())["redis_url"]
    with Client(url) as client:
        ended = client.submit("chat", f"{PROMPT} eins", id="chat/ended", tenant="acme")
        answer = ended.result(timeout=60)
        kept = client.submit("chat", "Apfelmus", id="chat/kept", tenant="other")
        kept.result(timeout=60)
        elsewhere = client.submit("other", f"{PROMPT} zwei", id="other/ended", tenant="acme")
        elsewhere.result(timeout=60)
        running = client.submit("chat", f"{PROMPT} drei", id="chat/running", tenant="acme", max_tokens=1000)
        next(iter(running.stream()))
        queue = client._server.queue("chat")
        stored(client, queue, "chat/ended")
        # Five tokens, as results, segments and parts have them.
        answered = b"".join(map(pack, answer.pieces[:5]))
        for text in (ASKED, answered):
            assert {Path(name).parts[1] for name in files_with(tmp_path, text)} == {"valkey", "seaweedfs"}

        listed = purge(tmp_path, "--tenant", "acme", "--dry-run", "--json")
        found = {each["model"]: each["jobs"] for each in json.loads(listed.stdout)["models"]}
        assert found == {"chat": ["chat/ended", "chat/running"], "other": ["other/ended"]}
        assert purge(tmp_path, "--tenant", "acme").returncode == 2
        assert client.job("chat/ended").result(timeout=5).text == answer.text

        done = purge(tmp_path, "--tenant", "acme", "--yes", "--json")
        assert done.returncode == 0, done.stderr
        assert {each["model"]: each["storage"] for each in json.loads(done.stdout)["models"]} == {
            "chat": "clean", "other": "clean"
        }  # fmt: skip
        await_no_file(tmp_path, ASKED, answered)
        for job in ("chat/ended", "chat/running", "other/ended"):
            with pytest.raises(JobGone):
                client.job(job).result(timeout=5)
        assert client.job("chat/kept").result(timeout=5).text
        assert client.submit("chat", "again", id="chat/later").result(timeout=60).text
        assert purge(tmp_path, "chat/ended", "--yes").returncode == 0


def test_a_purged_session_is_nowhere_with_its_jobs_and_turns(deployed: Deployment, tmp_path: Path) -> None:
    url = json.loads((tmp_path / ".headpond" / "run.json").read_text())["redis_url"]
    with Client(url) as client:
        for n in range(2):
            client.submit("other", f"{PROMPT} {n}", id=f"other/turn-{n}", session="s1").result(timeout=60)
        client.submit("other", "Apfelmus", id="other/kept", session="s2").result(timeout=60)
        stored(client, client._server.queue("other"), "other/kept")
        assert {Path(name).parts[1] for name in files_with(tmp_path, ASKED)} == {"valkey", "seaweedfs"}
        done = purge(tmp_path, "--session", "other/s1", "--yes", "--json")
        assert done.returncode == 0, done.stderr
        (other,) = json.loads(done.stdout)["models"]
        assert (other["jobs"], other["sessions"]) == (["other/turn-0", "other/turn-1"], ["s1"])
        await_no_file(tmp_path, ASKED)
        assert client._server.queue("other").session_names(limit=9) == ["s2"]


def test_a_purge_that_cannot_be_carried_out_in_storage_says_so_and_is_taken_up_again(
    deployed: Deployment, tmp_path: Path
) -> None:
    url = json.loads((tmp_path / ".headpond" / "run.json").read_text())["redis_url"]
    with Client(url) as client:
        client.submit("other", f"{PROMPT} eins", id="other/a").result(timeout=60)
        stored(client, client._server.queue("other"), "other/a")
        (persister,) = [each for each in processes_of(tmp_path) if "headpond_workers.persister" in each.cmdline()]
        persister.suspend()
        try:
            waits = purge(tmp_path, "other/a", "--yes", "--timeout", "1")
        finally:
            persister.resume()
        assert waits.returncode == 6
        assert "not clean yet" in waits.stderr
        again = purge(tmp_path, "other/a", "--yes")
        assert again.returncode == 0, again.stderr
        assert "storage is clean" in again.stdout
        await_no_file(tmp_path, ASKED)
