"""Conversations with real workers: each turn goes on from those before it, once, whatever is killed."""

from __future__ import annotations

import asyncio

import pytest

from conftest import Deployment, eventually
from headpond import AsyncClient, Client, JobState, Policy
from headpond.commits import MAX_CONVERSATION_BYTES, pack_commit
from headpond.errors import (
    CommitGone,
    IdConflict,
    InvalidRequest,
    JobFailed,
    SessionBusy,
    SessionConflict,
    SessionGone,
)
from headpond.jobs import JobId
from headpond.keys import queue_keys
from headpond.models import ModelRow
from headpond.turns import ROOT
from session_flow import ask, configure, serve, serve_salted
from worker_flow import Reading, assert_read_once, await_tokens


def test_a_turn_is_answered_as_the_whole_conversation_would_be(deployment: Deployment, client: Client) -> None:
    serve(deployment)
    first, second = ask(client, "Who are you?"), ask(client, "And why?")
    assert first.commit
    assert second.turn is not None
    assert (second.turn.session, second.turn.parent, second.turn.skipped) == ("s", first.commit, ())
    whole = [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And why?"},
    ]
    alone = client.submit("chat", messages=whole, temperature=0.0).result(timeout=30)
    assert second.token_ids == alone.token_ids
    assert second.token_ids != client.submit("chat", "And why?", temperature=0.0).result(timeout=30).token_ids
    assert alone.turn is None
    session = client.session("chat/s")
    assert session.messages() == [*whole, {"role": "assistant", "content": second.text}]
    commits = session.commits()
    assert [commit.id for commit in commits] == [first.commit, second.commit]
    assert [pack_commit(commit)[0] for commit in commits] == [first.commit, second.commit]
    assert commits[1].usage == second.usage
    assert commits[1].fingerprint == (second.provenance and second.provenance.fingerprint)
    # The stored request is the new turn alone.
    data = client._queue("chat").data(second.id)
    assert data is not None
    assert b"Who are you?" not in data


def test_turns_that_are_submitted_at_once_run_in_their_order(deployment: Deployment, client: Client) -> None:
    prompts = [f"Question {n}." for n in range(8)]
    configure(deployment)
    client_queue = deployment.server()
    client_queue.configure_model("chat", ModelRow("scripted", 0, False, 4096))
    jobs = client.submit_many("chat", [{"prompt": prompt} for prompt in prompts], session="s")
    assert client.session("s").waiting() == [job.id for job in jobs]
    serve(deployment)
    deployment.start("chat", "chat-1")
    results = [job.result(timeout=30) for job in jobs]
    messages = client.session("s", model="chat").messages()
    assert [m["content"] for m in messages if m["role"] == "user"] == prompts
    assert [m["content"] for m in messages if m["role"] == "assistant"] == [result.text for result in results]


def test_a_killed_worker_leaves_one_commit_of_the_turn_that_it_ran(deployment: Deployment, client: Client) -> None:
    worker = serve(deployment, speed=40)
    before = ask(client, "The first question.")
    job = client.submit("chat", "The second question.", session="s", temperature=0.0)
    after = client.submit("chat", "The third question.", session="s", temperature=0.0)
    reading = Reading(job)
    await_tokens(deployment.queue("chat"), job, 8)
    worker.kill()
    deployment.start("chat", "chat-1")
    result, last = job.result(timeout=60), after.result(timeout=60)
    assert_read_once(reading, result)
    assert result.attempts == 2
    commits = client.session("chat/s").commits()
    assert [commit.id for commit in commits] == [before.commit, result.commit, last.commit]
    assert [commit.job for commit in commits] == [before.id, job.id, after.id]


def test_a_failed_turn_leaves_the_last_good_commit_and_the_next_result_says_so(
    deployment: Deployment, client: Client
) -> None:
    serve(deployment)
    first = ask(client, "Who are you?")
    with pytest.raises(JobFailed) as failed:
        ask(client, "word " * 1000, id="chat/too-long")
    turn = failed.value.result.turn
    assert turn is not None
    assert (turn.session, turn.commit, turn.parent) == ("s", None, first.commit)
    assert failed.value.result.commit is None
    third = ask(client, "And why?")
    assert third.turn is not None
    assert (third.turn.parent, third.turn.skipped) == (first.commit, ("chat/too-long",))
    fourth = ask(client, "Is that so?")
    assert fourth.turn is not None
    assert fourth.turn.skipped == ()
    assert [commit.skipped for commit in client.session("chat/s").commits()] == [(), ("chat/too-long",), ()]


def test_a_turn_on_a_parent_that_is_the_head_no_more_fails(deployment: Deployment, client: Client) -> None:
    serve(deployment, speed=100)
    first = ask(client, "Who are you?", parent=ROOT)
    with pytest.raises(SessionConflict):
        ask(client, "And why?", parent=ROOT)
    # Two producers answer to the same head: the second one is told.
    one = client.submit("chat", "And why?", session="s", parent=first.commit)
    other = client.submit("chat", "And how?", session="s", parent=first.commit)
    assert one.result(timeout=30).commit == client.session("chat/s").head()
    with pytest.raises(JobFailed, match="another turn came before it"):
        other.result(timeout=30)


def test_a_conversation_migrates_to_another_version_and_says_so(deployment: Deployment, client: Client) -> None:
    worker = serve_salted(deployment, "chat-0", "old")
    first = ask(client, "Who are you?")
    worker.kill()
    serve_salted(deployment, "chat-1", "new")
    second, third = ask(client, "And why?"), ask(client, "Is that so?")
    assert second.version != first.version
    assert second.turn is not None
    assert second.turn.migrated_from == first.version
    assert third.turn is not None
    assert third.turn.migrated_from is None
    one, two, _ = client.session("chat/s").commits()
    assert two.migrated_from is not None
    assert (two.migrated_from.version, two.migrated_from.fingerprint) == (one.version, one.fingerprint)
    assert two.fingerprint != one.fingerprint
    assert two.policy is Policy.MIGRATE


def test_a_pinned_conversation_fails_where_its_version_is_gone_and_goes_on_once_it_may_migrate(
    deployment: Deployment, client: Client
) -> None:
    worker = serve_salted(deployment, "chat-0", "old")
    first = ask(client, "Who are you?", policy="pin")
    worker.kill()
    serve_salted(deployment, "chat-1", "new")
    with pytest.raises(JobFailed, match=f"no worker serves version {first.version} any more"):
        ask(client, "And why?")
    second = ask(client, "And why?", policy="migrate")
    assert second.turn is not None
    assert (second.turn.parent, second.turn.migrated_from) == (first.commit, first.version)
    assert ask(client, "Is that so?").turn is not None


def test_a_fork_and_a_rollback_go_other_ways_from_a_commit(deployment: Deployment, client: Client) -> None:
    serve(deployment)
    first, second = ask(client, "Who are you?"), ask(client, "And why?")
    assert first.commit
    assert second.commit
    session = client.session("chat/s")
    fork = session.fork(at=first.commit[:12], name="other")
    assert fork.id == "chat/other"
    third = fork.submit("And how?", temperature=0.0).result(timeout=30)
    assert third.turn is not None
    assert third.turn.parent == first.commit
    session.rollback(to=first.commit)
    assert session.head() == first.commit
    session.rollback(to=second.commit[:8])
    assert session.head() == second.commit
    with pytest.raises(SessionConflict):
        session.fork(name="other")
    with pytest.raises(CommitGone):
        session.rollback(to=str(third.commit))
    with pytest.raises(CommitGone):
        session.fork(at="ab" * 32, name="more")
    with pytest.raises(InvalidRequest):
        session.rollback(to="yesterday")
    session.delete()
    with pytest.raises(SessionGone):
        session.commits()
    assert [commit.id for commit in fork.commits()] == [first.commit, third.commit]
    assert [row.name for row in client.sessions("chat")] == ["other"]


def test_nothing_of_a_session_moves_under_a_turn_that_runs(deployment: Deployment, client: Client) -> None:
    serve(deployment, speed=20)
    first = ask(client, "Who are you?", max_tokens=2)
    job = client.submit("chat", "And why?", session="s")
    session = client.session("chat/s")
    for move in (lambda: session.rollback(to=ROOT), session.delete, lambda: session.fork(name="f")):
        with pytest.raises(SessionBusy):
            move()
    session.fork(name="f", at=first.commit)
    assert job.cancel() is JobState.CANCELLED
    eventually(lambda: session.waiting() == [], what="the end of the turn")
    session.rollback(to=ROOT)


def test_a_session_of_what_cannot_be_a_turn_is_refused_at_submit(deployment: Deployment, client: Client) -> None:
    serve(deployment)
    for options in (
        {"session": "no name"}, {"session": "s", "delay": 3.0}, {"parent": "ab" * 32}, {"policy": "pin"},
        {"session": "s", "policy": "stay"}, {"session": "s", "parent": "head"},
    ):  # fmt: skip
        with pytest.raises(InvalidRequest):
            client.submit("chat", "Who are you?", **options)  # type: ignore[arg-type]
    client.submit("chat", "Who are you?", id="chat/one", session="s").result(timeout=30)
    for other in ({}, {"session": "t"}, {"session": "s", "policy": "pin"}):
        with pytest.raises(IdConflict):
            client.submit("chat", "Who are you?", id="chat/one", **other)  # type: ignore[arg-type]
    assert client.submit("chat", "Who are you?", id="chat/one", session="s").result().attempts == 1
    with pytest.raises(InvalidRequest):
        client.session("other/s", model="chat")


def test_a_conversation_has_a_bound_and_says_which(deployment: Deployment, client: Client) -> None:
    serve(deployment)
    first = ask(client, "Who are you?")
    queue = client._queue("chat")
    (commit,) = client.session("chat/s").commits()
    # A commit as a longer conversation would have it, in the place of the real one.
    fields = {name: getattr(commit, name) for name in type(commit).__slots__}
    long_id, document = pack_commit(type(commit)(**fields | {"size": MAX_CONVERSATION_BYTES}))
    row = queue.session_row("s")
    assert row is not None
    assert first.commit
    keys = queue_keys("chat")
    queue.server.read("HSET", keys.named("turns"), long_id, document)
    queue.server.read("HSET", keys.named("links"), long_id, "1:")
    queue.server.read("HSET", keys.named("sessions"), "s", row.replace(first.commit.encode(), long_id.encode()))
    with pytest.raises(JobFailed, match="Begin another one"):
        ask(client, "And why?")


def test_a_damaged_conversation_fails_its_turns_and_a_rollback_ends_that(
    deployment: Deployment, client: Client
) -> None:
    serve(deployment)
    first, second = ask(client, "Who are you?"), ask(client, "And why?")
    assert first.commit
    queue, turns = client._queue("chat"), queue_keys("chat").named("turns")
    document = queue.turn(first.commit)
    assert document is not None
    queue.server.read("HSET", turns, first.commit, document.replace(b"Who are", b"Who art"))
    with pytest.raises(JobFailed, match="is not what"):
        ask(client, "Is that so?")
    queue.server.read("HDEL", turns, first.commit)
    with pytest.raises(JobFailed, match="is not there"):
        ask(client, "Is that so?")
    assert client.session("chat/s").head() == second.commit
    client.session("chat/s").rollback(to=ROOT)
    assert ask(client, "Who are you?").token_ids == first.token_ids


def test_a_restored_turn_whose_end_was_lost_takes_the_place_of_its_commit(
    deployment: Deployment, client: Client
) -> None:
    """The head is the commit of a job that has not ended: what a restore may find."""
    worker = serve(deployment)
    first = ask(client, "Who are you?")
    worker.kill()
    job = client.submit("chat", "And why?", id="chat/again", session="s", temperature=0.0)
    queue, keys = client._queue("chat"), queue_keys("chat")
    (commit,) = client.session("chat/s").commits()
    fields = {name: getattr(commit, name) for name in type(commit).__slots__}
    made = type(commit)(**fields | {"parent": first.commit, "job": str(JobId.parse(job.id)), "turns": 2})
    lost_id, document = pack_commit(made)
    row = queue.session_row("s")
    assert row is not None
    assert first.commit
    queue.server.read("HSET", keys.named("turns"), lost_id, document)
    queue.server.read("HSET", keys.named("links"), lost_id, f"1:{first.commit}")
    queue.server.read("HSET", keys.named("sessions"), "s", row.replace(first.commit.encode(), lost_id.encode()))
    deployment.start("chat", "chat-1")
    result = job.result(timeout=30)
    assert [commit.id for commit in client.session("chat/s").commits()] == [first.commit, result.commit]
    assert queue.turn(lost_id) is None


def test_sessions_are_the_same_for_asyncio(deployment: Deployment, client: Client) -> None:
    serve(deployment)

    async def converse() -> list[dict[str, str]]:
        async with AsyncClient(deployment.url) as producer:
            session = producer.session("s", model="chat")
            for prompt in ("Who are you?", "And why?"):
                result = await (await session.submit(prompt, temperature=0.0)).result(timeout=30)
            assert await session.head() == result.commit
            first = (await session.commits())[0]
            fork = await session.fork(at=first.id, name="f")
            assert (await fork.status()).turns == 1
            assert await (producer.session("f")).messages() == [
                {"role": "user", "content": "Who are you?"},
                {"role": "assistant", "content": first.messages[-1].content},
            ]
            await fork.rollback(to=ROOT)
            await fork.delete()
            with pytest.raises(SessionGone):
                await fork.commits()
            assert [row.name for row in await producer.sessions("chat")] == ["s"]
            assert await session.waiting() == []
            return await session.messages()

    assert asyncio.run(converse()) == client.session("s").messages()


def test_a_name_that_two_models_have_is_asked_for_with_its_model(deployment: Deployment, client: Client) -> None:
    serve(deployment, more='[models.other]\nengine = "scripted"\ntokens_per_s = 2000\n')
    deployment.start("other", "other-0")
    ask(client, "Who are you?")
    assert client.session("s").model == "chat"
    client.submit("other", "Who are you?", session="s").result(timeout=30)
    with pytest.raises(InvalidRequest, match="chat/s"):
        client.session("s").commits()
    with pytest.raises(SessionGone):
        client.session("nobody").commits()
    with pytest.raises(SessionGone):
        client.session("chat/nobody").commits()
