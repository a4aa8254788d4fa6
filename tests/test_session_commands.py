"""`headpond sessions`, `headpond submit --session`, and what verify, dead and replay bundles make of a turn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conftest import Deployment
from headpond import Client, JobState
from headpond.cli.app import build_app
from headpond.cli.exits import BAD_INPUT, JOB_GONE, TRY_LATER, exit_code
from headpond.errors import HeadpondError, JobFailed
from headpond.keys import queue_keys
from headpond.operators import Operator
from session_flow import ask, serve
from verified_jobs import verified


def said(deployment: Deployment, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, and what is said to people, of a command in this process."""
    done = CliRunner().invoke(build_app(), [*arguments, "--redis", deployment.url])
    if isinstance(done.exception, HeadpondError):
        return exit_code(done.exception), done.stdout, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_a_conversation_at_a_shell(deployment: Deployment, client: Client, tmp_path: Path) -> None:
    serve(deployment)
    assert said(deployment, "sessions", "list") == (0, "There is no session.\n", "")
    code, out, _ = said(deployment, "submit", "chat", "Who are you?", "--session", "s", "--temperature", "0", "--json")
    assert code == 0
    first = json.loads(out)
    assert first["commit"] == first["turn"]["commit"]
    second = ask(client, "And\x1b[31m why?")
    code, out, _ = said(deployment, "sessions", "list", "chat", "--json")
    (row,) = json.loads(out)["sessions"]
    assert (code, row["id"], row["turns"], row["head"]) == (0, "chat/s", 2, second.commit)
    assert "chat/s" in said(deployment, "sessions", "list")[1]
    code, out, _ = said(deployment, "sessions", "show", "s")
    assert code == 0
    assert str(second.commit)[:12] in out
    assert "\x1b[31m" not in out
    shown = json.loads(said(deployment, "sessions", "show", "chat/s", "--json")[1])
    assert [commit["id"] for commit in shown["commits"]] == [first["commit"], second.commit]
    assert (shown["waiting"], shown["policy"]) == ([], "migrate")
    code, out, _ = said(deployment, "sessions", "fork", "chat/s", "--name", "f", "--at", first["commit"][:8])
    assert (code, out) == (0, "chat/f\n")
    assert said(deployment, "sessions", "fork", "chat/s", "--name", "f")[0] == BAD_INPUT
    code, out, _ = said(deployment, "sessions", "rollback", "chat/s", "--to", first["commit"], "--json")
    assert json.loads(out) == {"id": "chat/s", "head": first["commit"]}
    assert "went back from" in said(deployment, "sessions", "show", "chat/s")[1]
    file = tmp_path / "s.json"
    assert said(deployment, "sessions", "export", "chat/s", str(file))[0] == 0
    assert file.stat().st_mode & 0o777 == 0o600
    exported = json.loads(file.read_text())
    assert exported["messages"] == client.session("chat/s").messages()
    assert [commit["id"] for commit in exported["commits"]] == [first["commit"]]
    code, _, error = said(deployment, "sessions", "export", "chat/s", str(file))
    assert (code, "--force" in error) == (BAD_INPUT, True)
    assert said(deployment, "sessions", "export", "chat/s", str(file), "--force")[0] == 0
    assert json.loads(said(deployment, "sessions", "export", "chat/s", "-")[1]) == exported
    code, _, error = said(deployment, "sessions", "delete", "chat/s")
    assert (code, "--yes" in error) == (BAD_INPUT, True)
    assert said(deployment, "sessions", "delete", "chat/s", "--yes")[0] == 0
    code, _, error = said(deployment, "sessions", "show", "chat/s")
    assert (code, "headpond sessions list" in error) == (JOB_GONE, True)


def test_a_session_in_use_is_for_later(deployment: Deployment, client: Client) -> None:
    serve(deployment, speed=20)
    ask(client, "Who are you?", max_tokens=2)
    job = client.submit("chat", "And why?", session="s")
    code, _, error = said(deployment, "sessions", "rollback", "chat/s", "--to", "root")
    assert (code, "waits or runs" in error) == (TRY_LATER, True)
    assert job.id in said(deployment, "sessions", "show", "chat/s")[1]
    job.cancel()


@pytest.mark.slow
def test_a_turn_is_verified_with_the_conversation_that_it_was_made_on(deployment: Deployment, client: Client) -> None:
    serve(deployment)
    first, second, third = ask(client, "Who are you?"), ask(client, "And why?"), ask(client, "Is that so?")
    for result in (first, second, third):
        code, found = verified(deployment, result.id)
        assert (code, found[""]) == (0, "same"), found
        assert (found["request"], found["prompt"], found["tokens"]) == ("same", "same", "same")
    client._queue("chat").server.read("HDEL", queue_keys("chat").named("turns"), first.commit)
    code, found = verified(deployment, third.id)
    assert code != 0
    assert found["request"] == "same"
    assert found["prompt"] == "unknown"
    assert "session" in found["!prompt"]


def test_a_replay_bundle_of_a_turn_holds_the_conversation_as_it_was_shown(
    deployment: Deployment, client: Client
) -> None:
    serve(deployment)
    first, second = ask(client, "Who are you?"), ask(client, "And why?")
    with pytest.raises(JobFailed):
        ask(client, "word " * 1000, id="chat/too-long")
    third = ask(client, "Is that so?")
    with Operator(deployment.url) as operator:
        shown = {job: operator.dead("chat").show(job).request.chat() for job in (second.id, "chat/too-long", third.id)}
    assert [m.content for m in shown[second.id]] == ["Who are you?", first.text, "And why?"]
    # It made no commit: the turn after it tells what it came after.
    assert [m.content for m in shown["chat/too-long"]][:4] == ["Who are you?", first.text, "And why?", second.text]
    assert [m.content for m in shown[third.id]][-2:] == [second.text, "Is that so?"]


def test_a_quarantined_turn_is_retried_as_the_next_one(deployment: Deployment, client: Client) -> None:
    worker = serve(deployment)
    first = ask(client, "Who are you?")
    worker.kill()
    client.submit("chat", "And why?", id="chat/dead", session="s")
    queue = deployment.queue("chat")
    for seq in range(1, 4):
        (lease,) = queue.claim("boot", seq=seq, nonce=f"n{seq}", slots=1).leases
        queue.park([(lease.id, lease.fence)], strike=True, reason="it broke")
    assert client.job("chat/dead").state() is JobState.DEAD
    with Operator(deployment.url) as operator:
        retried = operator.dead("chat").retry("chat/dead")
    deployment.start("chat", "chat-1")
    result = client.job(retried.id).result(timeout=30)
    assert result.turn is not None
    assert (result.turn.parent, result.turn.skipped) == (first.commit, ("chat/dead",))
