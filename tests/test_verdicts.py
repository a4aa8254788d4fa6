"""What the checks of a verification say, alone and together."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headpond.bundle import Bundle, new_bundle
from headpond.jobs import FinishReason, JobState, Priority, Result
from headpond.provenance import AdapterDigest, Provenance
from headpond.requests import JobRequest
from headpond.wire import Header
from headpond_workers.made_by import applied
from headpond_workers.replay.events import Traced
from headpond_workers.replay.run import How, Replay, While
from headpond_workers.verification.rerun import rerun_check
from headpond_workers.verification.stored_checks import request_check, request_checks
from headpond_workers.verification.traced_checks import traced_checks
from headpond_workers.verification.verdicts import Check, Verdict, compare, together

REQUEST = JobRequest(prompt="x")
HEADER = Header(REQUEST.digest(), "", "normal", "", 1)
MADE_BY = Provenance(
    engine="llamacpp", fingerprint="f", weights_digest="w", request_digest=REQUEST.digest(), prompt_digest="p",
    sampling=applied(REQUEST.sampling), seed=REQUEST.seed_for("chat/a"),
)  # fmt: skip
RESULT = Result("chat/a", JobState.FINISHED, "abc", (1, 2, 3), FinishReason.STOP)
BUNDLE: Bundle = new_bundle(
    headpond="0", exported_ms=0, id="chat/a", state=JobState.FINISHED, tenant="", priority=Priority.NORMAL, pinned="",
    request=REQUEST, seed=REQUEST.seed_for("chat/a"), token_ids=(1, 2, 3), text="abc", fingerprint="f", version="",
    submitted_ms=0, ended_ms=0, leases=1, strikes=0, faults=0, attempts=(), last_error="",
)  # fmt: skip
EXACT, SEEDED = ["exact_resume", "seeded"], ["seeded"]


def replayed(ids: list[int], *, can: list[str] = EXACT, made_by: Provenance = MADE_BY, reason: str = "stop") -> Replay:
    traced = Traced(made_by.fields(), can, text_alike=True)
    return Replay(
        0, How.FINISHED, While.GENERATING, "llamacpp", "f", made=len(ids), token_ids=ids, reason=reason, traced=traced
    )


@given(st.lists(st.sampled_from(Verdict)))
def test_one_difference_is_a_difference_and_nothing_compared_is_nothing_known(verdicts: list[Verdict]) -> None:
    found = together(Check("x", verdict) for verdict in verdicts)
    if Verdict.DIFFERS in verdicts:
        assert found is Verdict.DIFFERS
    elif Verdict.UNKNOWN in verdicts or Verdict.SAME not in verdicts:
        assert found is Verdict.UNKNOWN
    else:
        assert found is Verdict.SAME
    assert {together(Check("x", v) for v in some) for some in permutations(verdicts[:4])} <= set(Verdict)


def test_what_is_not_known_is_never_the_same() -> None:
    assert compare("x", "a", "a").verdict is Verdict.SAME
    assert compare("x", "a", "b").verdict is Verdict.DIFFERS
    assert compare("x", None, "b").verdict is Verdict.UNKNOWN
    told = compare("x", "a", None, reason="it is away")
    assert (told.verdict, told.reason) == (Verdict.UNKNOWN, "it is away")
    assert compare("x", None, None).verdict is Verdict.UNKNOWN


def test_a_request_is_held_against_its_submit_and_against_the_result() -> None:
    assert request_check(HEADER, REQUEST, None).verdict is Verdict.SAME
    assert request_check(replace(HEADER, digest="0" * 32), REQUEST, MADE_BY).verdict is Verdict.DIFFERS
    assert request_check(replace(HEADER, pinned="3"), REQUEST, MADE_BY).verdict is Verdict.DIFFERS
    assert request_check(HEADER, REQUEST, replace(MADE_BY, request_digest="0" * 32)).verdict is Verdict.DIFFERS
    assert request_check(HEADER, REQUEST, replace(MADE_BY, request_digest=None)).verdict is Verdict.SAME
    assert {c.verdict for c in request_checks("chat/a", HEADER, REQUEST, MADE_BY)} == {Verdict.SAME}
    other = {c.name: c.verdict for c in request_checks("chat/b", HEADER, REQUEST, MADE_BY)}
    assert other == {"request": Verdict.SAME, "sampling": Verdict.SAME, "seed": Verdict.DIFFERS}


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        ({}, Verdict.SAME),
        ({"adapters": (AdapterDigest("pirate", "b"),)}, Verdict.DIFFERS),
        ({"adapters": (AdapterDigest("pirate", None),)}, Verdict.DIFFERS),
    ],
    ids=["same", "changed", "gone"],
)
def test_the_adapter_that_was_applied_is_compared(now: dict[str, object], verdict: Verdict) -> None:
    stored = replace(MADE_BY, adapters=(AdapterDigest("pirate", "a"),))
    found = replayed([], made_by=replace(stored, **now))  # type: ignore[arg-type]
    checks = {check.name: check.verdict for check in traced_checks(stored, found, embeds=False)}
    assert checks["adapters"] is verdict


def test_an_engine_without_digests_leaves_them_untold() -> None:
    silent = replace(MADE_BY, weights_digest=None)
    checks = {check.name: check.verdict for check in traced_checks(silent, replayed([], made_by=silent), embeds=False)}
    assert checks["weights"] is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("ids", "reason", "can", "verdict"),
    [
        ([1, 2, 3], "stop", EXACT, Verdict.SAME),
        ([1, 2, 3], "stop", SEEDED, Verdict.SAME),
        ([1, 2, 4], "stop", EXACT, Verdict.DIFFERS),
        ([1, 2, 4], "stop", SEEDED, Verdict.UNKNOWN),
        ([1, 2], "stop", EXACT, Verdict.DIFFERS),
        ([1, 2, 3, 4], "stop", EXACT, Verdict.DIFFERS),
        ([1, 2, 3], "length", EXACT, Verdict.DIFFERS),
        ([], "stop", [], Verdict.LEFT_OUT),
    ],
)
def test_only_an_exact_engine_proves_a_difference(
    ids: list[int], reason: str, can: list[str], verdict: Verdict
) -> None:
    assert rerun_check(RESULT, replayed(ids, can=can, reason=reason), BUNDLE).verdict is verdict


def test_what_came_to_no_end_proves_nothing() -> None:
    found = replayed([1], can=EXACT)
    for changes, told in (
        ({"how": How.DIED, "signal": "SIGKILL"}, "died of SIGKILL after 1 tokens"),
        ({"how": How.STALLED}, "stall_timeout_s"),
        ({"how": How.LEFT, "status": 3}, "status 3"),
        ({"how": How.FAILED, "error": "no memory"}, "no memory"),
    ):
        check = rerun_check(RESULT, replace(found, **changes), BUNDLE)  # type: ignore[arg-type]
        assert (check.verdict, told in check.reason) == (Verdict.UNKNOWN, True), check
    assert rerun_check(RESULT, replace(found, how=How.REFUSED), BUNDLE).verdict is Verdict.LEFT_OUT
    assert rerun_check(replace(RESULT, state=JobState.FAILED), found, BUNDLE).verdict is Verdict.LEFT_OUT
    assert rerun_check(RESULT, replace(found, traced=None), BUNDLE).verdict is Verdict.UNKNOWN
