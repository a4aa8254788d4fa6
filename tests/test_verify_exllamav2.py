"""A verification on exllamav2, which is seeded and not exact: the real package on the CPU, in this process."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exllamav2_cpu.availability import require_exllamav2
from headpond.bundle import Bundle, new_bundle
from headpond.jobs import FinishReason, JobState, Priority, Result
from headpond.provenance import Provenance
from headpond.requests import JobRequest
from headpond.sampling import Sampling
from headpond_workers.redaction import Secrets
from headpond_workers.replay.events import EventWriter, parse_event
from headpond_workers.replay.run import How, Replay, take_event
from headpond_workers.verification.rerun import rerun_check
from headpond_workers.verification.traced_checks import traced_checks
from headpond_workers.verification.verdicts import Verdict

require_exllamav2()

from exllamav2_cpu import checkpoints, harness  # noqa: E402

harness.install()

from headpond_workers.replay.child import replay  # noqa: E402

pytestmark = pytest.mark.slow

REQUEST = JobRequest(prompt="The quick brown", max_tokens=12, sampling=Sampling(temperature=3.0, seed=5))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("exllamav2") / "headpond.toml"
    file.write_text(
        f'[models.chat]\nengine = "exllamav2"\npath = "{checkpoints.tiny()}"\nslots = 2\n'
        "context_tokens = 1024\nchunk_tokens = 256\n"
    )
    return file


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADPOND_CACHE", str(tmp_path / "cache"))


def bundle(**changes: Any) -> Bundle:
    fields: dict[str, Any] = {
        "headpond": "0", "exported_ms": 0, "id": "chat/a", "state": JobState.FINISHED, "tenant": "",
        "priority": Priority.NORMAL, "pinned": "", "request": REQUEST, "seed": 5, "token_ids": (), "text": "",
        "fingerprint": "", "version": "", "submitted_ms": 0, "ended_ms": 0, "leases": 1, "strikes": 0, "faults": 0,
        "attempts": (), "last_error": "",
    }  # fmt: skip
    return new_bundle(**fields | changes)


def run(asked: Bundle, config: Path, *, trace: bool) -> Replay:
    reader, writer = os.pipe()
    options = argparse.Namespace(
        config=config, model="chat", from_start=True, any_fingerprint=True, events=writer, trace=trace
    )
    found = Replay(0)
    with os.fdopen(reader, "rb") as pipe:
        events = EventWriter(writer)
        replay(asked, options, events, Secrets())
        events._file.close()
        for line in pipe:
            take_event(found, parse_event(line))
    assert found.how is not How.FAILED, found.error
    return found


def test_the_same_draws_are_made_again_and_another_answer_cannot_be_told(config: Path) -> None:
    first = run(bundle(), config, trace=False)
    result = Result("chat/a", JobState.FINISHED, first.text, tuple(first.token_ids), FinishReason(first.reason))
    assert len(result.token_ids) == 12
    stored = bundle(token_ids=result.token_ids, text=result.text, fingerprint=first.fingerprint)
    again = run(stored, config, trace=True)
    assert again.traced is not None
    made_by = Provenance.of_fields(again.traced.provenance)
    assert (made_by.fingerprint, made_by.engine) == (first.fingerprint, "exllamav2")
    assert made_by.weights_digest is not None
    assert made_by.prompt_digest is not None
    checks = {check.name: check.verdict for check in traced_checks(made_by, again, embeds=False)}
    assert checks.pop("adapters") is Verdict.LEFT_OUT
    assert set(checks.values()) == {Verdict.SAME}
    assert rerun_check(result, again, stored).verdict is Verdict.SAME

    other = replace(result, token_ids=(*result.token_ids[:-1], result.token_ids[-1] ^ 1))
    told = rerun_check(other, again, stored)
    assert told.verdict is Verdict.UNKNOWN
    assert "token 11" in told.reason
    assert "alone" in told.reason


def test_an_engine_that_promises_nothing_is_not_run_again(config: Path) -> None:
    stored = bundle(token_ids=(1, 2), text="?", fingerprint="0" * 64)
    found = run(stored, config, trace=True)
    assert (found.how, found.made) == (How.REFUSED, 0)
    assert found.traced is not None
    silent = replace(found, traced=replace(found.traced, capabilities=[]))
    told = rerun_check(Result("chat/a", JobState.FINISHED, "?", (1, 2), FinishReason.STOP), silent, stored)
    assert told.verdict is Verdict.LEFT_OUT
    assert "does not promise the same tokens twice" in told.reason
