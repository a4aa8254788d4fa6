"""`headpond models promote --timeout` and `--auto` through the command itself, on real workers and a real persister."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from conftest import Deployment, eventually
from headpond import Client, JobState
from headpond.cli.app import build_app
from headpond.cli.exits import TRY_LATER
from headpond_workers.checkpoints.alias_document import Cause, TrialBounds
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from version_flow import READY_S, SEED, Shelf
from worker_flow import await_tokens

pytestmark = pytest.mark.slow

DECIDED_S = 60.0


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@pytest.fixture
def shelf(deployment: Deployment, seaweed: SeaweedProcess) -> Shelf:
    shelf = Shelf(deployment, seaweed)
    shelf.start_persister()
    return shelf


def promote(shelf: Shelf, version: str, *words: str) -> Result:
    return CliRunner().invoke(
        build_app(), ["models", "promote", "chat", version, *words, "--config", str(shelf.deployment.config)]
    )


def test_a_promote_that_waited_long_enough_says_who_is_behind_and_the_worker_goes_on(
    shelf: Shelf, client: Client
) -> None:
    shelf.configure("drain_timeout_s = 600")
    # Its job would take two minutes, and a worker that drains waits for it.
    first, second = shelf.push(answer_tokens=6000, tokens_per_s=50), shelf.push()
    shelf.promote(first)
    shelf.start("chat-0")
    long = client.submit("chat", "A long one.", seed=SEED, max_tokens=6000)
    await_tokens(shelf.deployment.queue("chat"), long, 5)

    done = promote(shelf, second, "--timeout", "0.5", "--json")
    assert done.exit_code == TRY_LATER == 6
    (model,) = json.loads(done.stdout)["models"]
    assert (model["model"], model["ended"], model["reason"]) == ("chat", "timed out", "")
    assert [(w["instance"], w["version"]) for w in model["workers"]] == [("chat-0", first)]
    assert "chat: chat-0 on" in done.stderr
    assert f"does not serve version {second}: " in done.stderr
    assert str(shelf.alias().to) == second, "the alias is moved, whoever waited"
    assert shelf.switch().target == second
    assert long.state() is JobState.RUNNING

    # Waiting once more moves nothing, and has no other end.
    again = promote(shelf, second, "--timeout", "0.1")
    assert again.exit_code == TRY_LATER
    assert f"names version {second} already" in again.stderr
    assert f"version {second} is served" not in again.stderr

    long.cancel()
    last = promote(shelf, second, "--timeout", str(READY_S))
    assert last.exit_code == 0, last.stderr
    assert f"chat: version {second} is served" in last.stderr
    assert shelf.serving() == [second]
    short = client.submit("chat", "A short one.", seed=SEED, max_tokens=10).result(timeout=READY_S)
    assert shelf.check(short, "A short one.", max_tokens=10) == second


def test_a_trial_with_auto_is_promoted_or_given_up_by_what_its_jobs_show(shelf: Shelf, client: Client) -> None:
    shelf.configure("slots = 8")
    usual, fast, slow = (shelf.push(tokens_per_s=rate) for rate in (100, 1000, 100))
    shelf.promote(usual)
    shelf.start("chat-0", "chat-1")

    def tried(version: str, jobs: int) -> None:
        """Half of the jobs, by their ids, are of the version on trial."""
        done = promote(shelf, version, "--share", "50%", "--auto", "--note", "by its figures", "--json")
        assert done.exit_code == 0, (done.output, done.exception)
        assert json.loads(done.stdout)["trial"] == {"version": int(version), "share_permille": 500}
        trial = shelf.alias().trial
        assert trial is not None
        assert trial.bounds == TrialBounds()
        asked = [client.submit("chat", "Try.", id=f"chat/{version}-{n}", seed=SEED, max_tokens=4) for n in range(jobs)]
        for job in asked:
            shelf.check(job.result(timeout=READY_S), "Try.", max_tokens=4)
        eventually(lambda: shelf.alias().trial is None, deadline_s=DECIDED_S, what="a decision")

    bounds = TrialBounds()
    tried(fast, 2 * bounds.jobs_to_promote + 50)
    promoted = shelf.alias()
    assert str(promoted.to) == fast
    assert promoted.history[-1].cause is Cause.AUTOMATIC
    shelf.await_served(fast, workers=2)

    tried(slow, 2 * bounds.least_jobs + 50)
    given_up = shelf.alias()
    assert str(given_up.to) == fast, "it stays what the alias names"
    assert given_up.history[-1].cause is Cause.AUTOMATIC
    assert f"of version {slow} takes " in given_up.history[-1].note
    assert "more than 20 % longer" in given_up.history[-1].note
    shelf.await_served(fast, workers=2)

    # Who asks later is told all of it by the command that shows histories.
    told = CliRunner().invoke(
        build_app(), ["models", "history", "chat", "--json", "--config", str(shelf.deployment.config)]
    )
    moves = json.loads(told.stdout)["moves"]
    assert [(move["cause"], str(move["from"]), str(move["to"])) for move in moves] == [
        ("automatic", fast, fast),
        ("canary", fast, fast),
        ("automatic", usual, fast),
        ("canary", usual, usual),
        ("promote", "0", usual),
    ]
    assert [move["note"] for move in moves[1::2]] == ["by its figures"] * 2
