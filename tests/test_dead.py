"""Quarantined jobs from their crash to an operator's decision: real workers that die, real commands."""

from __future__ import annotations

import json
import os
import pty
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Deployment, eventually
from headpond import Client, JobState
from headpond.bundle import parse_bundle, read_bundle
from headpond.dead import retry_id
from headpond.errors import IdConflict, NotCommitted, NotQuarantined, QueueFull
from headpond.jobs import JOB_SLUG, JobId
from headpond.keys import queue_keys
from headpond.models import ModelRow
from headpond.operations import hello
from headpond.operators import Operator
from headpond.queue import JobQueue
from headpond.requests import JobRequest
from headpond.upkeep import open_queue
from headpond_workers.supervision.embedded_valkey import running_valkey

pytestmark = pytest.mark.slow  # each starts worker processes, and some die of their job

HEADPOND = Path(sys.executable).with_name("headpond")
CRASH_TOKEN = 3
MODEL = f"""
[models.chat]
engine = "scripted"
tokens_per_s = 20
answer_tokens = 40
lease_s = 0.5
suspect_wait_s = 0
crash_at = "token"
crash_token = {CRASH_TOKEN}
crash_prompt = "poison"
"""
REPAIRED = MODEL.replace('crash_prompt = "poison"', 'crash_prompt = "something else"').replace("= 20\n", "= 500\n")
POISON = "Drink the poison\x1b[2J, or\nleave it.\n" + "Line upon line.\n" * 40
DEAD = ("chat/one", "chat/two", "chat/three")


def run(*arguments: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HEADPOND_")}
    done = subprocess.run(
        [str(HEADPOND), *arguments], cwd=cwd, input=stdin, capture_output=True, timeout=120, env=clean, check=False
    )
    assert b"Traceback" not in done.stderr + done.stdout
    return done


def told(done: subprocess.CompletedProcess[bytes], code: int) -> str:
    """stdout and stderr of a command that left with this code."""
    text = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == code, text
    return text


def document(done: subprocess.CompletedProcess[bytes], code: int = 0) -> dict[str, Any]:
    told(done, code)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def quarantine_by_crashes(deployment: Deployment, ids: tuple[str, ...]) -> None:
    """Let real workers die of these jobs until nobody runs them any more."""
    queue = deployment.queue("chat")

    def state(job_id: str) -> JobState:
        queue.tick()  # no worker is alive to keep time moving
        row = queue.run_row(job_id)
        assert row is not None
        return row.state

    for n in range(3 * len(ids)):
        worker = deployment.start("chat", f"chat-{n}", ready=False)
        assert worker.wait() == -9, worker.log.read_text()
        eventually(lambda: JobState.RUNNING not in map(state, ids), what="the end of the dead worker's leases")
        if all(state(job_id) is JobState.DEAD for job_id in ids):
            return
    pytest.fail("the jobs were not quarantined")


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment whose worker died of three jobs until they were quarantined. chat/one stays as it is."""
    folder = tmp_path_factory.mktemp("poisoned")
    with running_valkey(folder / "server") as valkey:
        deployment = Deployment(valkey, folder)
        try:
            deployment.configure(MODEL)
            for name, text in (("poison", MODEL), ("repaired", REPAIRED)):
                (folder / f"{name}.toml").write_text(text)
            deployment.server().configure_model("chat", ModelRow("scripted", 0, False, 8192))
            with Client(valkey.url) as client:
                for job_id in DEAD:
                    client.submit("chat", POISON, id=job_id, max_tokens=100, tenant="acme", priority="batch")
            quarantine_by_crashes(deployment, DEAD)
            yield deployment
        finally:
            deployment.close()


@pytest.fixture
def bundle_file(poisoned: Deployment, tmp_path: Path) -> Path:
    file = tmp_path / "one.json"
    told(run("dead", "export", "chat/one", str(file), cwd=poisoned.folder), 0)
    return file


def test_the_list_shows_what_killed_its_workers(poisoned: Deployment) -> None:
    (job,) = [
        job
        for job in document(run("dead", "list", "--json", cwd=poisoned.folder))["jobs"]
        if job["id"] == "chat/one"
    ]  # fmt: skip
    assert (job["attempts"], job["strikes"], job["faults"], job["tenant"]) == (3, 3, 3, "acme")
    assert "silent for a whole lease" in job["last_error"]
    assert "3 leases in a row" in job["reason"]
    assert job["ended_ms"] > 1_600_000_000_000

    table = told(run("dead", "list", "chat", cwd=poisoned.folder), 0)
    (line,) = [line for line in table.splitlines() if line.startswith("chat/one ")]
    assert re.search(r" 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\S* +3 +3/3 +acme +its worker was silent", line)
    assert "\x1b" not in table
    limited = document(run("dead", "list", "--limit", "1", "--json", cwd=poisoned.folder))["jobs"]
    assert len(limited) == 1


def test_show_tells_request_seed_tokens_and_each_attempt(poisoned: Deployment) -> None:
    row = poisoned.queue("chat").run_row("chat/one")
    assert row is not None
    shown = document(run("dead", "show", "chat/one", "--json", cwd=poisoned.folder))
    assert shown["request"]["prompt"] == POISON
    assert shown["seed"] == JobRequest(prompt=POISON).seed_for("chat/one")
    assert len(shown["token_ids"]) == row.offset
    assert 0 < row.offset <= 3 * (CRASH_TOKEN + 1)
    assert shown["fingerprint"] == row.fingerprint != ""
    assert shown["version"].startswith("local-")
    assert [a["attempt"] for a in shown["attempts"]] == [1, 2, 3]
    assert len({a["worker"] for a in shown["attempts"]}) == 3
    assert all(a["how"] == "expired" and a["host"] for a in shown["attempts"])
    assert [a["to_offset"] for a in shown["attempts"][:2]] == [a["from_offset"] for a in shown["attempts"][1:]]
    assert shown["attempts"][-1]["to_offset"] == row.offset

    text = told(run("dead", "show", "chat/one", cwd=poisoned.folder), 0)
    assert "Drink the poison\\x1b[2J, or\n" in text
    assert "\x1b" not in text
    assert "characters more; --full shows them" in text
    assert f"{row.offset} tokens so far" in text
    assert "(from the id)" in text
    assert text.count("  expired: ") + text.count("; expired: ") == 3
    full = told(run("dead", "show", "chat/one", "--full", cwd=poisoned.folder), 0)
    assert full.count("Line upon line.") == 40


def test_a_terminal_gets_styles_and_no_control_character_of_a_prompt(poisoned: Deployment) -> None:
    master, slave = pty.openpty()
    try:
        with subprocess.Popen(
            [str(HEADPOND), "dead", "show", "chat/one"], cwd=poisoned.folder, stdout=slave, stderr=slave
        ) as shown:
            os.close(slave)
            output = b""
            while True:
                try:
                    chunk = os.read(master, 65536)
                except OSError:  # the other end is closed
                    break
                if not chunk:
                    break
                output += chunk
        assert shown.returncode == 0
    finally:
        os.close(master)
    text = output.decode()
    assert "\x1b[1mjob" in text
    assert "poison\\x1b[2J" in text
    assert re.sub(r"\x1b\[[0-9;]*m", "", text).count("\x1b") == 0


def test_export_writes_a_bundle_once_for_its_owner_alone(poisoned: Deployment, bundle_file: Path) -> None:
    assert stat.S_IMODE(bundle_file.stat().st_mode) == 0o600
    bundle = read_bundle(bundle_file)
    assert (bundle.id, bundle.state, bundle.tenant, bundle.leases) == ("chat/one", JobState.DEAD, "acme", 3)
    again = told(run("dead", "export", "chat/one", str(bundle_file), cwd=poisoned.folder), 2)
    assert "--force" in again
    written = document(run("dead", "export", "chat/one", str(bundle_file), "--force", "--json", cwd=poisoned.folder))
    assert written == {"id": "chat/one", "file": str(bundle_file), "tokens": len(bundle.token_ids), "attempts": 3}
    piped = run("dead", "export", "chat/one", "-", cwd=poisoned.folder)
    assert piped.stderr == b""
    assert parse_bundle(piped.stdout).token_ids == bundle.token_ids


def test_a_replay_dies_as_the_worker_did_and_names_signal_and_token(poisoned: Deployment, bundle_file: Path) -> None:
    bundle = read_bundle(bundle_file)
    made, had = CRASH_TOKEN + 1, len(bundle.token_ids)
    config = str(poisoned.folder / "poison.toml")
    died = document(run("replay", str(bundle_file), "--config", config, "--json", cwd=poisoned.folder), 9)
    assert (died["how"], died["signal"], died["while"]) == ("died", "SIGKILL", "generating")
    assert (died["from_offset"], died["offset"], len(died["token_ids"])) == (had, had + made, made)
    assert died["same_fingerprint"] is True
    assert "poison" not in " ".join(died["log"])

    anew = document(run("replay", str(bundle_file), "-c", config, "--from-start", "--json", cwd=poisoned.folder), 9)
    assert (anew["from_offset"], anew["offset"]) == (0, made)
    assert (anew["same_tokens"], anew["compared_tokens"]) == (True, min(made, had))
    assert tuple(anew["token_ids"]) == bundle.token_ids[:made]

    text = told(run("replay", "-", "-c", config, cwd=poisoned.folder, stdin=bundle_file.read_bytes()), 9)
    assert f"Died of SIGKILL after token {had + made}, {made} of them its own" in text


@pytest.mark.parametrize(
    ("change", "flags", "code", "expected"),
    [
        (("", ""), [], 0, {"how": "finished", "reason": "stop", "offset": 40}),
        (("", ""), ["--from-start"], 0, {"how": "finished", "offset": 40, "same_tokens": True, "from_offset": 0}),
        (("answer_tokens = 40", "answer_tokens = 41"), [], 8, {"how": "refused", "same_fingerprint": False}),
        (
            ("answer_tokens = 40", "answer_tokens = 41"),
            ["--any-fingerprint"],
            0,
            {"how": "finished", "offset": 41, "same_fingerprint": False},
        ),
        (('crash_at = "token"', 'crash_at = "load"'), [], 9, {"how": "died", "signal": "SIGKILL", "while": "loading"}),
        (
            ('crash_at = "token"\ncrash_token = 3\ncrash_prompt = "something else"', 'crash_at = "prefill"'),
            ["--from-start"],
            9,
            {"how": "died", "signal": "SIGKILL", "while": "prefill", "offset": 0},
        ),
        (
            ("tokens_per_s = 500", "tokens_per_s = 0.02\nstall_timeout_s = 1.0"),
            ["--from-start"],
            9,
            {"how": "stalled", "while": "prefill", "signal": ""},
        ),
        (
            ("answer_tokens = 40", "context_tokens = 16"),
            ["--any-fingerprint", "--from-start"],
            5,
            {"how": "failed", "while": "prefill"},
        ),
    ],
)
def test_a_replay_says_how_it_ended(
    poisoned: Deployment,
    bundle_file: Path,
    tmp_path: Path,
    change: tuple[str, str],
    flags: list[str],
    code: int,
    expected: dict[str, Any],
) -> None:
    config = tmp_path / "headpond.toml"
    assert change[0] in REPAIRED
    config.write_text(REPAIRED.replace(*change))
    for shown in (["--json"], []):
        done = run("replay", str(bundle_file), "-c", str(config), *flags, *shown, cwd=tmp_path)
        text = told(done, code)
        if shown:
            found = json.loads(done.stdout)
            assert {key: found[key] for key in expected} == expected
        elif code == 8:
            assert "WARNING: the bundle's tokens are of the fingerprint" in text
            assert "--any-fingerprint" in text
        else:
            assert {"finished": "Finished (", "died": "Died of", "stalled": "Stalled", "failed": "Failed"}[
                expected["how"]
            ] in text


def test_a_replay_on_another_model_names_the_first_token_that_differs(
    poisoned: Deployment, bundle_file: Path, tmp_path: Path
) -> None:
    bundle = json.loads(bundle_file.read_text())
    bundle["token_ids"][1] = bundle["token_ids"][1] % 700 + 1
    altered = tmp_path / "altered.json"
    altered.write_text(json.dumps(bundle))
    config = str(poisoned.folder / "repaired.toml")
    found = document(run("replay", str(altered), "-c", config, "--from-start", "--json", cwd=tmp_path))
    assert (found["same_tokens"], found["first_difference"]) == (False, 1)
    text = told(run("replay", str(altered), "-c", config, "--from-start", cwd=tmp_path), 0)
    assert "Token 1 is not the bundle's" in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["replay", "none.json"], 2, ["none.json", "No such file"]),
        (["replay", "broken.json"], 2, ["broken.json", "JSON"]),
        (["replay", "newer.json"], 2, ["newer.json", "schema version 2", "Upgrade headpond"]),
        (["replay", "ONE", "--model", "chatt"], 2, ["models.chatt", "did you mean 'chat'"]),
        (["replay", "ONE", "-c", "none.toml"], 2, ["none.toml", "no such file"]),
        (["dead", "show", "chat/none"], 4, ["chat/none"]),
        (["dead", "show", "no-id"], 2, ["is not a job id"]),
        (["dead", "show", "other/one"], 2, ["other"]),
        (["dead", "list", "other"], 2, ["other"]),
        (["dead", "retry", "chat/none"], 4, ["chat/none"]),
        (["dead", "drop", "chat/none"], 4, ["chat/none"]),
        (["dead", "export", "chat/none", "x.json"], 4, ["chat/none"]),
        (["dead", "export", "chat/one", "no/such/folder.json"], 2, ["no/such/folder.json", "No such file"]),
        (["dead", "list", "--redis", "redis://127.0.0.1:1/0"], 3, ["127.0.0.1:1"]),
        (["fsck", "other"], 2, ["other"]),
        (["fsck", "--redis", "redis://127.0.0.1:1/0"], 3, ["127.0.0.1:1"]),
    ],
)
def test_a_mistake_is_told_in_words(
    poisoned: Deployment, bundle_file: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    (poisoned.folder / "broken.json").write_bytes(bundle_file.read_bytes()[:100])
    (poisoned.folder / "newer.json").write_bytes(bundle_file.read_bytes().replace(b'"v": 1,', b'"v": 2,', 1))
    done = run(*[str(bundle_file) if word == "ONE" else word for word in arguments], cwd=poisoned.folder)
    text = told(done, code)
    for word in words:
        assert word in text


def test_drop_removes_all_of_a_job(poisoned: Deployment) -> None:
    queue = poisoned.queue("chat")
    assert document(run("dead", "drop", "chat/three", "--json", cwd=poisoned.folder)) == {
        "id": "chat/three",
        "dropped": True,
    }
    assert "chat/three" not in {job_id for job_id, _ in queue.dead()}
    assert queue.data("chat/three") is queue.run_row("chat/three") is None
    assert queue.attempts("chat/three") == ()
    assert queue.events("chat/three") == []
    told(run("dead", "drop", "chat/three", cwd=poisoned.folder), 4)


def test_retry_finishes_on_a_repaired_model_with_the_same_seed(poisoned: Deployment, tmp_path: Path) -> None:
    file = tmp_path / "two.json"
    told(run("dead", "export", "chat/two", str(file), cwd=poisoned.folder), 0)
    old = read_bundle(file)

    first = document(run("dead", "retry", "chat/two", "--json", cwd=poisoned.folder))
    repeat = document(run("dead", "retry", "chat/two", "--json", cwd=poisoned.folder))
    assert first == {"id": "chat/two", "retried_as": "chat/two.retry1", "new": True}
    assert repeat == {**first, "new": False}
    queue = poisoned.queue("chat")
    assert "chat/two" not in {job_id for job_id, _ in queue.dead()}
    assert queue.depths().ready == 1
    # It is listed no more, and stays readable.
    assert document(run("dead", "show", "chat/two", "--json", cwd=poisoned.folder))["state"] == "dead"

    poisoned.configure(REPAIRED)
    worker = poisoned.start("chat", "repaired-0")
    with Client(poisoned.url) as client:
        result = client.job("chat/two.retry1").result(timeout=30)
    worker.kill()
    bundle = document(run("dead", "show", "chat/two.retry1", "--json", cwd=poisoned.folder))
    assert len(result.token_ids) == 40
    assert result.token_ids[: len(old.token_ids)] == old.token_ids
    assert (bundle["seed"], bundle["request"]["sampling"]["seed"]) == (old.seed, old.seed)
    assert (bundle["tenant"], bundle["priority"], bundle["state"]) == ("acme", "batch", "finished")
    assert [(a["how"], a["to_offset"]) for a in bundle["attempts"]] == [("finished", 40)]
    assert tuple(bundle["token_ids"]) == result.token_ids
    # Its bundle runs to the same tokens, with no server at all.
    told(run("dead", "export", "chat/two.retry1", str(file), "--force", cwd=poisoned.folder), 0)
    config = str(poisoned.folder / "repaired.toml")
    replayed = document(run("replay", str(file), "-c", config, "--from-start", "--json", cwd=tmp_path))
    assert (replayed["same_tokens"], replayed["compared_tokens"]) == (True, 40)
    assert replayed["text"] == result.text
    # An ended job is nothing to decide about.
    assert "is finished, not quarantined" in told(run("dead", "retry", "chat/two.retry1", cwd=poisoned.folder), 2)
    assert "is finished, not quarantined" in told(run("dead", "drop", "chat/two.retry1", cwd=poisoned.folder), 2)


# -- Without workers: what the commands rest on.


@pytest.fixture
def operator(deployment: Deployment) -> Iterator[Operator]:
    with Operator(deployment.url) as operator:
        yield operator


@pytest.fixture
def chat(deployment: Deployment) -> JobQueue:
    deployment.configure(MODEL)
    deployment.server().configure_model("chat", ModelRow("scripted", 2, False, 8192))
    return deployment.queue("chat")


@pytest.fixture
def quarantine(chat: JobQueue) -> Callable[[str], None]:
    """Ends the first waiting job by three failures of an engine."""
    seq = iter(range(1, 1000))

    def quarantine(job_id: str) -> None:
        for _ in range(3):
            (lease,) = chat.claim("boot", seq=next(seq), nonce=f"n{job_id}{next(seq)}", slots=1).leases
            assert lease.id == job_id
            chat.park([(lease.id, lease.fence)], strike=True, reason="out of memory\nat layer 3")
        row = chat.run_row(job_id)
        assert row is not None
        assert row.state is JobState.DEAD

    return quarantine


def test_a_retry_of_a_retry_counts_on(
    client: Client, operator: Operator, chat: JobQueue, quarantine: Callable[[str], None]
) -> None:
    client.submit("chat", "x", id="chat/a", seed=5)
    ids = ["chat/a"]
    for _ in range(3):
        quarantine(ids[-1])
        retried = operator.dead("chat").retry(ids[-1])
        assert retried.new
        assert not operator.dead("chat").retry(ids[-1]).new
        ids.append(retried.id)
    assert ids == ["chat/a", "chat/a.retry1", "chat/a.retry2", "chat/a.retry3"]
    assert [job.id for job in operator.dead("chat").jobs()] == []
    assert chat.depths().ready == 1
    assert operator.dead("chat").show("chat/a.retry3").seed == 5


def test_a_retry_keeps_the_version_that_the_job_was_pinned_to(
    client: Client, operator: Operator, chat: JobQueue, quarantine: Callable[[str], None]
) -> None:
    job = client.submit("chat@local-abc", "x", id="chat/a")
    for seq in range(3):
        (lease,) = chat.claim("b", seq=seq + 1, nonce=f"n{seq}", slots=1, version="local-abc", fingerprint="f").leases
        chat.park([(lease.id, lease.fence)], strike=True, reason="no")
    assert job.state() is JobState.DEAD
    retried = operator.dead("chat").retry("chat/a")
    shown = operator.dead("chat").show(retried.id)
    assert (shown.pinned, shown.state) == ("local-abc", JobState.QUEUED)


def test_a_full_queue_or_a_taken_id_leaves_the_job_listed(
    client: Client, operator: Operator, chat: JobQueue, quarantine: Callable[[str], None]
) -> None:
    client.submit("chat", "x", id="chat/a")
    quarantine("chat/a")
    for name in ("b", "c"):
        client.submit("chat", "y", id=f"chat/{name}")
    with pytest.raises(QueueFull):
        operator.dead("chat").retry("chat/a")
    assert [job.id for job in operator.dead("chat").jobs()] == ["chat/a"]
    client.job("chat/b").cancel()
    client.submit("chat", "another", id="chat/a.retry1")
    with pytest.raises(IdConflict, match=r"chat/a\.retry1"):
        operator.dead("chat").retry("chat/a")
    assert [job.id for job in operator.dead("chat").jobs()] == ["chat/a"]


def test_a_damaged_job_hides_no_other_from_the_list(
    client: Client, operator: Operator, deployment: Deployment, chat: JobQueue, quarantine: Callable[[str], None]
) -> None:
    for name in ("a", "b", "c"):
        client.submit("chat", "x", id=f"chat/{name}")
        quarantine(f"chat/{name}")
    keys = queue_keys("chat")
    chat.server.read("HSET", keys.named("run"), "chat/a", b"\xc1")
    chat.server.read("HDEL", keys.named("data"), "chat/b")
    chat.server.read("HSET", keys.named("attempts"), "chat/c", b"\x92\x01\x91\x01")
    jobs = {job.id: job for job in operator.dead("chat").jobs()}
    assert "run row" in jobs["chat/a"].damage
    assert "data entry" in jobs["chat/b"].damage
    assert "attempts" in jobs["chat/c"].damage
    table = told(run("dead", "list", cwd=deployment.folder), 0)
    assert all(f"chat/{name}" in table for name in "abc")
    for name, code, words in (("a", 1, "run row"), ("b", 4, "does not hold"), ("c", 1, "attempts")):
        assert words in told(run("dead", "show", f"chat/{name}", cwd=deployment.folder), code)


def test_an_error_of_several_lines_takes_one_in_the_list(
    client: Client, deployment: Deployment, quarantine: Callable[[str], None]
) -> None:
    client.submit("chat", "x", id="chat/a")
    quarantine("chat/a")
    lines = told(run("dead", "list", cwd=deployment.folder), 0).splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("out of memory at layer 3")


@pytest.mark.parametrize("command", ["list", "show", "retry", "drop", "export"])
def test_each_command_has_help_with_an_example_and_json(tmp_path: Path, command: str) -> None:
    text = told(run("dead", command, "--help", cwd=tmp_path), 0)
    assert f"headpond dead {command}" in text
    assert "--json" in text


def test_nothing_quarantined_is_said_so(deployment: Deployment, chat: JobQueue) -> None:
    assert told(run("dead", "list", cwd=deployment.folder), 0) == "No job is quarantined.\n"
    assert document(run("dead", "list", "--json", cwd=deployment.folder)) == {"jobs": []}


def test_an_unstarted_job_has_a_bundle_too(client: Client, operator: Operator, chat: JobQueue) -> None:
    client.submit("chat", "x", id="chat/a", delay=100)
    bundle = operator.dead("chat").show("chat/a")
    assert (bundle.state, bundle.token_ids, bundle.attempts, bundle.fingerprint) == (JobState.DELAYED, (), (), "")
    with pytest.raises(NotQuarantined):
        operator.dead("chat").drop("chat/a")


def test_a_running_job_shows_its_present_lease(client: Client, operator: Operator, chat: JobQueue) -> None:
    client.submit("chat", "x", id="chat/a")
    chat.claim("boot", seq=1, nonce="n", slots=1, version="local-a", fingerprint="f", host="gpu7")
    (attempt,) = operator.dead("chat").show("chat/a").attempts
    assert (attempt.how, attempt.worker, attempt.host, attempt.ended_ms) == ("running", "boot", "gpu7", 0)


def test_with_storage_nothing_is_dropped_before_its_end_is_committed(
    client: Client, operator: Operator, deployment: Deployment, chat: JobQueue, quarantine: Callable[[str], None]
) -> None:
    client.submit("chat", "x", id="chat/a")
    quarantine("chat/a")
    chat.run(hello(chat.meta()["run_id"], storage=True))
    for step in ("claim", "open"):
        chat.run(open_queue(step, lineage="L"))
    with pytest.raises(NotCommitted):
        operator.dead("chat").drop("chat/a")
    assert "not in storage yet" in told(run("dead", "drop", "chat/a", cwd=deployment.folder), 6)
    assert [job.id for job in operator.dead("chat").jobs()] == ["chat/a"]


slugs = st.from_regex(JOB_SLUG, fullmatch=True).filter(str.isascii)


@given(slug=slugs, other=slugs)
def test_retry_ids_are_ids_that_follow_from_the_old_one_and_never_meet(slug: str, other: str) -> None:
    first = retry_id(JobId("chat", slug))
    second = retry_id(first)
    assert JobId.parse(str(first)) == first
    assert JobId.parse(str(second)) == second
    assert len({slug, first.slug, second.slug}) == 3
    assert retry_id(JobId("chat", slug)) == first
    if other != slug:
        assert retry_id(JobId("chat", other)) != first
