"""Names on one Redis: taken, kept, given up and forgotten by the scripts, on a real server."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace

import pytest

from conftest import Deployment
from headpond.errors import InvalidRequest, NameInUse, NameTaken, UnknownModel
from headpond.models import Holder, ModelRow, unpack_model
from headpond.names import Hold
from headpond.operations import Entry, QueuePolicy
from headpond.queue import JobQueue, Server
from headpond.wire import Call, pack_data
from headpond.workers import WorkerRow, WorkerState
from headpond_workers.naming.forgetting import Waiting, forget_holder, forget_name

A, B = (Holder(letter * 16, f"host-{letter}", f"/srv/{letter}") for letter in "ab")
ONE = ModelRow("scripted", 5, False, 8192, '{"engine":"scripted","storage":false}')
OTHER = replace(ONE, engine="llamacpp", spec='{"engine":"llamacpp","storage":false}')


@pytest.fixture
def server(deployment: Deployment) -> Server:
    return deployment.server()


def hold(server: Server, holder: Holder, how: Hold = Hold.TAKE, **rows: ModelRow) -> None:
    server.hold(holder, rows, where=f"{holder.folder}/headpond.toml", how=how)


def holders(server: Server, name: str = "chat") -> list[str]:
    return [holder.deployment for holder in server.models()[name].holders]


def test_deployments_that_mean_the_same_share_a_name(server: Server) -> None:
    hold(server, A, chat=ONE)
    hold(server, B, chat=ONE)
    row = server.models()["chat"]
    assert (row.engine, row.max_queued, row.storage, row.context_tokens) == ("scripted", 5, False, 8192)
    assert {(h.deployment, h.host, h.folder) for h in row.holders} == {(h.deployment, h.host, h.folder) for h in (A, B)}
    assert all(holder.since_ms > 1_700_000_000_000 for holder in row.holders)


def test_another_spec_is_refused_with_each_key_and_what_to_do(server: Server) -> None:
    hold(server, A, chat=ONE)
    before = server.raw_model("chat")
    with pytest.raises(NameTaken) as refused:
        hold(server, B, chat=OTHER)
    said = str(refused.value)
    assert "/srv/b/headpond.toml" in said
    assert f"deployment {A.deployment} (host-a, /srv/a)" in said
    assert 'engine: "llamacpp" here, "scripted" there' in said
    assert "headpond models stop chat" in said
    assert f"headpond models forget chat --deployment {A.deployment}" in said
    assert "storage" not in said
    assert server.raw_model("chat") == before


def test_of_several_names_all_are_taken_or_none(server: Server) -> None:
    hold(server, A, chat=ONE)
    with pytest.raises(NameTaken) as refused:
        hold(server, B, early=ONE, chat=OTHER, late=ONE)
    assert [conflict.name for conflict in refused.value.conflicts] == ["chat"]
    assert list(server.models()) == ["chat"]


def test_a_deployment_changes_its_own_spec_unless_another_holds_the_name(server: Server) -> None:
    hold(server, A, chat=ONE)
    hold(server, A, chat=OTHER)
    assert server.models()["chat"].spec == OTHER.spec
    hold(server, B, chat=OTHER)
    for holder in (A, B):
        with pytest.raises(NameTaken):
            hold(server, holder, chat=ONE)
    server.release(B.deployment, ["chat"])
    hold(server, A, chat=ONE)
    assert server.models()["chat"].spec == ONE.spec


def test_a_name_that_nobody_holds_may_be_taken_and_stays_known_until_then(server: Server) -> None:
    hold(server, A, chat=ONE)
    for _ in range(2):
        server.release(A.deployment, ["chat", "unknown"])
    assert list(server.models()) == ["chat"]
    row = server.models()["chat"]
    assert (row.spec, row.holders, row.max_queued) == (ONE.spec, (), 5)
    hold(server, B, chat=OTHER)
    assert holders(server) == [B.deployment]


def test_a_row_of_nobody_is_taken_over(server: Server) -> None:
    server.configure_model("chat", ModelRow("scripted", 0, False, 0))
    hold(server, A, chat=ONE)
    assert server.models()["chat"].spec == ONE.spec


def test_a_repeated_call_changes_nothing(server: Server) -> None:
    for holder in (A, B):
        hold(server, holder, chat=ONE)
    first = unpack_model(server.raw_model("chat") or b"")
    for holder in (A, B):
        hold(server, holder, chat=ONE)
    again = unpack_model(server.raw_model("chat") or b"")
    assert replace(again, holders=()) == replace(first, holders=())
    assert set(again.holders) == set(first.holders)


def test_a_running_worker_keeps_a_name_without_bringing_its_old_spec_back(server: Server) -> None:
    hold(server, A, chat=ONE)
    hold(server, A, chat=OTHER)  # a reload: the worker still has the old one
    hold(server, A, Hold.KEEP, chat=ONE)
    assert server.models()["chat"].spec == OTHER.spec
    # A server that lost its data has lost the name too.
    server.read("DEL", "headpond:models")
    hold(server, A, Hold.KEEP, chat=OTHER)
    assert holders(server) == [A.deployment]
    # It lost the name to others.
    server.release(A.deployment, ["chat"])
    hold(server, B, chat=ONE)
    with pytest.raises(NameTaken):
        hold(server, A, Hold.KEEP, chat=OTHER)


def test_looking_writes_nothing(server: Server) -> None:
    hold(server, A, Hold.LOOK, chat=ONE)
    assert server.models() == {}
    hold(server, A, chat=ONE)
    with pytest.raises(NameTaken):
        hold(server, B, Hold.LOOK, chat=OTHER)


def test_of_many_who_ask_at_once_those_of_one_spec_alone_succeed(deployment: Deployment) -> None:
    askers = [Holder(f"{n:016x}", "host", "/srv") for n in range(24)]
    outcome: dict[str, bool] = {}

    def ask(holder: Holder, row: ModelRow) -> None:
        server = deployment.server()
        try:
            hold(server, holder, chat=row)
        except NameTaken:
            outcome[holder.deployment] = False
        else:
            outcome[holder.deployment] = True

    rows = list(itertools.islice(itertools.cycle([ONE, OTHER]), len(askers)))
    threads = [threading.Thread(target=ask, args=pair) for pair in zip(askers, rows, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    row = deployment.server().models()["chat"]
    winners = {holder.deployment for holder, asked in zip(askers, rows, strict=True) if asked.spec == row.spec}
    assert {name for name, held in outcome.items() if held} == winners == {h.deployment for h in row.holders}
    assert len(outcome) == len(askers)


def test_a_damaged_row_blocks_nobody(server: Server) -> None:
    server.read("HSET", "headpond:models", "chat", b"\xc1 no document")
    hold(server, A, chat=ONE)
    assert holders(server) == [A.deployment]


# ---- forgetting


def worker(server: Server, holder: Holder, *, state: WorkerState = WorkerState.READY) -> JobQueue:
    queue = server.queue("chat")
    row = WorkerRow(
        boot=f"BOOT{holder.deployment}", model="chat", version="v", host=holder.host, pid=1, instance="chat-0", slots=1,
        busy=0, state=state, last_error="", started_ms=0, deployment=holder.deployment,
    )  # fmt: skip
    queue.register(row, QueuePolicy(lease_s=10, retention_s=60))
    return queue


def submit(queue: JobQueue) -> None:
    data = pack_data(Call("generate", (), {"request": {"prompt": "p"}}, {}, 0), digest="d")
    queue.submit([Entry("chat/a", data, "d")])


def test_a_name_without_worker_and_jobs_is_forgotten_whoever_holds_it(server: Server) -> None:
    hold(server, A, chat=ONE, code=ONE)
    forget_name(server, "chat", waiting=Waiting.KEEP)
    assert list(server.models()) == ["code"]
    hold(server, B, chat=OTHER)
    with pytest.raises(UnknownModel, match="chat, code"):
        forget_name(server, "chap", waiting=Waiting.KEEP)


def test_a_name_with_a_living_worker_is_never_forgotten(server: Server) -> None:
    hold(server, A, chat=ONE)
    queue = worker(server, A)
    for waiting in Waiting:
        with pytest.raises(NameInUse, match=r"chat-0 on host-a \(pid 1\).*headpond models stop chat"):
            forget_name(server, "chat", waiting=waiting)
    with pytest.raises(NameInUse, match="chat-0 on host-a"):
        forget_holder(server, "chat", A.deployment)
    queue.unregister(f"BOOT{A.deployment}")
    forget_name(server, "chat", waiting=Waiting.KEEP)
    assert server.models() == {}


def test_a_worker_that_failed_or_fell_silent_keeps_no_name(server: Server) -> None:
    hold(server, A, chat=ONE)
    worker(server, A, state=WorkerState.FAILED)
    silent = worker(server, B)
    server.read("HSET", "headpond:{chat}:workers", f"BOOT{B.deployment}:seen", 1)
    assert len(silent.workers()) == 2
    forget_name(server, "chat", waiting=Waiting.KEEP)
    assert server.models() == {}


def test_a_name_for_which_jobs_wait_is_forgotten_by_force_alone_and_the_jobs_stay(server: Server) -> None:
    hold(server, A, chat=ONE)
    queue = server.queue("chat")
    submit(queue)
    with pytest.raises(NameInUse, match="1 job waits"):
        forget_name(server, "chat", waiting=Waiting.KEEP)
    forget_name(server, "chat", waiting=Waiting.LEAVE)
    assert server.models() == {}
    assert queue.depths().ready == 1


def test_one_deployment_that_is_gone_loses_its_hold_while_others_serve(server: Server) -> None:
    for holder in (A, B):
        hold(server, holder, chat=ONE)
    worker(server, A)
    forget_holder(server, "chat", B.deployment)
    assert holders(server) == [A.deployment]
    hold(server, A, chat=OTHER)  # nothing is in its way now
    with pytest.raises(
        InvalidRequest, match=f"{B.deployment}' does not hold the name 'chat'; these do: {A.deployment}"
    ):
        forget_holder(server, "chat", B.deployment)


def test_forgetting_loses_against_one_who_takes_the_name_meanwhile(server: Server) -> None:
    hold(server, A, chat=ONE)
    seen = server.raw_model("chat")
    assert seen is not None
    hold(server, B, chat=ONE)
    assert server.forget_name("chat", seen) is False
    assert set(holders(server)) == {A.deployment, B.deployment}
    assert server.forget_name("gone", b"x") is True


def test_two_deployments_on_one_host_have_workers_of_one_instance_name(server: Server) -> None:
    queue = worker(server, A)
    worker(server, replace(B, host=A.host))
    assert sorted(row.deployment for row in queue.workers()) == [A.deployment, B.deployment]
    # The row of the process that a worker replaces goes: one of its own deployment.
    row = next(row for row in queue.workers() if row.deployment == A.deployment)
    queue.register(replace(row, boot="NEWBOOT", pid=2), QueuePolicy(lease_s=10, retention_s=60))
    assert sorted((row.deployment, row.pid) for row in queue.workers()) == [(A.deployment, 2), (B.deployment, 1)]
