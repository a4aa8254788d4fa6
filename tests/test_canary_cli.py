"""`headpond models canary`, on a real queue and storage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from typer.testing import CliRunner

from conftest import Deployment
from fleet import Fleet
from headpond.cli.app import build_app
from headpond.errors import ConfigError
from headpond.jobs import JobState
from headpond.settings import load_settings
from headpond_workers.checkpoints.alias_document import Trial, TrialBounds
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.resolving import open_storage
from headpond_workers.checkpoints.trial_watch import bring
from headpond_workers.supervision.embedded_seaweed import running_seaweed
from headpond_workers.supervision.embedded_valkey import running_valkey
from queue_bench import Bench, Clock, bench_on, tokens
from stored_deployment import storage_table
from stored_versions import put_version

pytestmark = pytest.mark.slow

MODELS = """
[models.chat]
engine = "scripted"
source = "s3:chat@prod"
[models.local]
engine = "scripted"
"""
HEADPOND = [sys.executable, "-c", "from headpond.cli import main; main()"]


@dataclass(frozen=True)
class Canary:
    deployment: Deployment
    aliases: Aliases
    fleet: Fleet

    @property
    def bench(self) -> Bench:
        return self.fleet.bench

    def begin(self, bounds: TrialBounds | None) -> None:
        document = self.aliases.begin_trial("prod", Trial(4, 125, 1_700_000_000_000, bounds), who="the test")
        bring(self.bench.queue, document)
        # Its share begins, and outcomes are noted, once a worker serves it.
        for worker in self.fleet.workers.values():
            worker.register()
        self.fleet.workers["b"].ask()

    def end(self) -> None:
        document = self.aliases.end_trial("prod", version=4, who="the test", note="seen enough")
        bring(self.bench.queue, document)

    def end_jobs(self, version: str, count: int) -> None:
        for n in range(count):
            self.bench.submit(f"chat/{version}-{self.bench.clock.now_ms}-{n}", pinned=version)
            lease = self.bench.lease(f"boot-{version}", version=version, fingerprint=version)
            self.bench.append(lease, tokens(0, 11))
            self.bench.clock.move(0.6)
            self.bench.queue.finish(
                lease.id, lease.fence, offset=11, state=JobState.FINISHED, result=b"", first_token_s=0.1
            )

    def said(self, *options: str) -> str:
        done = CliRunner().invoke(
            build_app(), ["models", "canary", "chat", "--config", str(self.deployment.config), *options]
        )
        assert done.exception is None, done.exception
        return done.stdout

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.said("--json"))
        return found


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canary]:
    folder = tmp_path_factory.mktemp("canary")
    with running_valkey(folder / "server") as valkey, running_seaweed(folder / "storage") as seaweed:
        deployment = Deployment(valkey, folder)
        config = deployment.configure(MODELS, extra=storage_table(seaweed, folder))
        blobs = open_storage(load_settings(config))
        blobs.ensure_bucket()
        for number in (3, 4):
            put_version(blobs, "chat", {"scripted.json": b"{}"}, number=number)
        aliases = Aliases(Registry(blobs, "chat", writer="the test"))
        aliases.move("prod", to=3, left=None, who="the test")
        bench = bench_on(valkey.url, Clock(), name="chat")
        fleet = Fleet(bench)
        fleet.serving("3", "a")
        fleet.serving("4", "b")
        try:
            yield Canary(deployment, aliases, fleet)
        finally:
            bench.server.close()
            bench.raw.close()
            deployment.close()


def test_both_sides_are_shown_with_intervals_and_what_the_bounds_say(canary: Canary) -> None:
    canary.begin(TrialBounds(least_jobs=5, jobs_to_promote=8))
    canary.end_jobs("3", 12)
    canary.end_jobs("4", 7)
    found = canary.document()
    assert (found["model"], found["alias"], found["to"]) == ("chat", "prod", 3)
    assert found["trial"]["share_permille"] == 125
    trial, other = found["figures"]["trial"], found["figures"]["other"]
    assert (trial["version"], trial["jobs"], trial["failed"]) == ("4", 7, 0)
    assert (other["version"], other["jobs"]) == ("3", 12)
    assert trial["failed_share"]["low"] == 0
    assert 0.3 < trial["failed_share"]["high"] < 0.4
    assert trial["tokens_per_s"] == {"value": 20.0, "low": 20.0, "high": 20.0, "count": 7}
    assert trial["first_token_ms"]["value"] == 100
    assert trial["answer_tokens"]["value"] == 11
    assert found["decision"]["ruling"] == "go on"
    assert "7 of 8" in found["decision"]["reason"]
    shown = canary.said()
    assert "version 4 gets 12.5 % of unpinned jobs" in shown
    assert "20.0 (20.0 to 20.0)" in shown
    assert "0.0 (0.0 to" in shown
    assert "go on; version 4 is within its bounds" in shown
    canary.end()


def test_a_trial_without_bounds_and_with_few_jobs_says_what_it_knows(canary: Canary) -> None:
    canary.begin(None)
    found = canary.document()
    assert found["decision"] is None
    assert found["figures"]["trial"]["tokens_per_s"] is None
    canary.end_jobs("4", 2)
    assert canary.document()["figures"]["trial"]["first_token_ms"] == {
        "value": 100, "low": None, "high": None, "count": 2,
    }  # fmt: skip
    shown = canary.said()
    assert "100.0 (?)" in shown
    assert "headpond models promote chat 4" in shown
    canary.end()


def test_without_a_trial_it_says_so_and_how_to_begin_one(canary: Canary) -> None:
    assert canary.document()["trial"] is None
    shown = canary.said()
    assert "chat has no canary" in shown
    assert "--share" in shown


def test_watching_ends_with_the_trial(canary: Canary) -> None:
    canary.begin(None)
    with subprocess.Popen(
        [*HEADPOND, "models", "canary", "chat", "--watch", "--json", "--config", str(canary.deployment.config)],
        stdout=subprocess.PIPE, env=os.environ, cwd=canary.deployment.folder,
    ) as watching:  # fmt: skip
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["trial"]["version"] == 4
        canary.end()
        *_, last = [json.loads(line) for line in watching.stdout]
        assert last["trial"] is None
        assert watching.wait(30) == 0


def test_a_model_that_follows_no_alias_has_no_canary(canary: Canary) -> None:
    done = CliRunner().invoke(build_app(), ["models", "canary", "local", "--config", str(canary.deployment.config)])
    assert isinstance(done.exception, ConfigError)
    assert "follows no alias" in str(done.exception)
