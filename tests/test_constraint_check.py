"""Constraints of strangers, checked in a child process: what is wrong costs one job, and no time twice."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from conftest import eventually
from headpond.constraints import Constraint, ConstraintKind
from headpond.errors import EngineError, SequenceFailed
from headpond_workers.engines.grammar import constraint_check
from headpond_workers.engines.grammar.constraint_check import ConstraintCache, ConstraintLimits
from headpond_workers.engines.grammar.gbnf_state import GrammarState
from headpond_workers.engines.protocol import Verdict

ENDLESS = "while True: pass"
GREEDY = "x = [bytearray(1 << 24) for _ in range(1 << 20)]"


def go() -> Verdict:
    return Verdict.GO


def grammar(text: str) -> Constraint:
    return Constraint(ConstraintKind.GRAMMAR, text)


def schema(value: object) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(value))


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "constraint_probe" in " ".join(p.cmdline())]


@pytest.fixture
def cache() -> ConstraintCache:
    return ConstraintCache()


def test_a_constraint_becomes_rules(cache: ConstraintCache) -> None:
    program = cache.program(grammar('root ::= "a" [b-d]{2}'), go)
    assert program is not None
    state = GrammarState(program)
    assert state.advance("acd")
    assert state.is_complete
    for constraint in (Constraint(ConstraintKind.JSON_OBJECT), schema({"type": "object"})):
        made = cache.program(constraint, go)
        assert made is not None
        state = GrammarState(made)
        assert state.advance('{"a":[1]}')
        assert state.may_end


@pytest.mark.slow
@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (grammar("root ::= ((("), "grammar of this request cannot be used: line 1, column 13"),
        (grammar('root ::= root "a" | "b"'), "left recursion"),
        (grammar('root ::= "a"{4000}{4000}'), "more than 32768"),
        (grammar("root ::= " + "(" * 60_000), "nested deeper"),
        (grammar('root ::= "a" root "b" | "a" root "c" | "d"'), "ways"),
        (grammar("\n".join(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(5000)) + '\nr5000 ::= ""\nroot ::= r0'),
         "ways|memory|time"),
        (schema({"$ref": "https://example.com/x"}), "JSON schema of this request cannot be used: .*leaves the schema"),
        (Constraint(ConstraintKind.JSON_SCHEMA, "[" * 60_000), "nested too deep|not JSON|recursion"),
        (Constraint(ConstraintKind.JSON_SCHEMA, '{"type":"integer","minimum":NaN}'), "no number of JSON"),
        (Constraint(ConstraintKind.JSON_SCHEMA, '{"type":"integer","minimum":1e999}'), "out of all bounds"),
        (Constraint(ConstraintKind.JSON_SCHEMA, '{"minLength":"' + "9" * 60_000 + '"}'), "whole number"),
        (Constraint(ConstraintKind.JSON_SCHEMA, '{"minLength":' + "9" * 60_000 + "}"), "."),
    ],
    ids=lambda part: str(part)[:40],
)  # fmt: skip
def test_a_hostile_constraint_fails_its_job_with_the_reason(
    cache: ConstraintCache, constraint: Constraint, reason: str
) -> None:
    began = time.monotonic()
    with pytest.raises(SequenceFailed, match=reason):
        cache.program(constraint, go)
    assert time.monotonic() - began < 15
    assert children() == []


@pytest.fixture
def rigged(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The child runs the program of the variable HEADPOND_TEST_PROBE instead of the probe."""
    real = constraint_check.subprocess.Popen

    def popen(command: list[str], **more: object) -> object:
        return real([command[0], "-c", os.environ["HEADPOND_TEST_PROBE"], "constraint_probe"], **more)  # type: ignore[call-overload]

    monkeypatch.setattr(constraint_check.subprocess, "Popen", popen)
    return monkeypatch


_LIMITED = "import resource, sys, json; t = json.load(sys.stdin.buffer); " + (
    "resource.setrlimit(resource.RLIMIT_CPU, (t['cpu_s'], t['cpu_s'] + 1)); "
    "resource.setrlimit(resource.RLIMIT_AS, (t['memory_bytes'], t['memory_bytes']))\n"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (_LIMITED + ENDLESS, "more than 1 s of processor time"),
        (_LIMITED + GREEDY, "broke the process that checked it \\('MemoryError"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGABRT)})", "SIGABRT"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", "SIGSEGV"),
        ("import time; time.sleep(60)", "more than 2 s to check"),
    ],
)
def test_a_constraint_that_breaks_its_child_costs_one_job(
    rigged: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    rigged.setenv("HEADPOND_TEST_PROBE", program)
    cache = ConstraintCache(
        limits=ConstraintLimits(cpu_s=1, wall_s=20.0 if "cpu_s" in program else 2.0, memory_bytes=1 << 28)
    )
    with pytest.raises(SequenceFailed, match=reason):
        cache.program(grammar('root ::= "a"'), go)
    assert children() == []


def test_the_real_child_has_its_limits() -> None:
    cache = ConstraintCache(limits=ConstraintLimits(memory_bytes=1 << 24))
    with pytest.raises(SequenceFailed, match=r"memory|MemoryError|broke the process"):
        cache.program(grammar("root ::= " + " | ".join(f'"{n}"{{300}}' for n in range(30))), go)


def test_a_cancel_is_heard_while_a_constraint_is_checked(rigged: pytest.MonkeyPatch) -> None:
    rigged.setenv("HEADPOND_TEST_PROBE", "import time; time.sleep(60)")
    asked: list[float] = []

    def stop() -> Verdict:
        asked.append(time.monotonic())
        return Verdict.GO if len(asked) < 3 else Verdict.STOP

    cache = ConstraintCache()
    began = time.monotonic()
    assert cache.program(grammar('root ::= "a"'), stop) is None
    assert all(later - earlier < 1 for earlier, later in zip([began, *asked], asked, strict=False))
    assert children() == []
    assert len(cache) == 0


def test_what_a_listener_raises_ends_the_child(rigged: pytest.MonkeyPatch) -> None:
    rigged.setenv("HEADPOND_TEST_PROBE", "import time; time.sleep(60)")

    def closed() -> Verdict:
        raise EngineError("The engine is closed.")

    with pytest.raises(EngineError, match="closed"):
        ConstraintCache().program(grammar('root ::= "a"'), closed)
    assert children() == []


def test_a_constraint_is_checked_once_also_if_it_is_refused(
    cache: ConstraintCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = grammar('root ::= "a"'), grammar("root ::=")
    made = cache.program(good, go)
    with pytest.raises(SequenceFailed):
        cache.program(grammar("root ::= ("), go)
    monkeypatch.setattr(constraint_check.sys, "executable", "/nowhere")
    assert cache.program(good, go) is made
    with pytest.raises(SequenceFailed, match="column"):
        cache.program(grammar("root ::= ("), go)
    with pytest.raises(EngineError, match="Cannot start a process"):
        cache.program(bad, go)


@pytest.mark.slow
def test_the_cache_is_bounded_by_entries_and_by_elements() -> None:
    cache = ConstraintCache(entries=3, elements=1000)
    for number in range(6):
        cache.program(grammar(f'root ::= "{number}"'), go)
    assert len(cache) == 3
    cache.program(grammar('root ::= "a"{900}'), go)
    cache.program(grammar('root ::= "b"{900}'), go)
    assert len(cache) == 1


def test_many_threads_check_at_once(cache: ConstraintCache) -> None:
    ready = threading.Barrier(4)

    def check(number: int) -> bool:
        ready.wait(30)
        return cache.program(grammar(f'root ::= "{number % 2}"'), go) is not None

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, range(4)))
    assert len(cache) == 2
    eventually(lambda: not children(), what="no child left")
