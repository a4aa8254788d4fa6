"""The reference engine: what it makes follows from prompt and seed alone, and goes on from anywhere.

What holds of every engine is in test_engine_conformance.py.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headpond.jobs import FinishReason
from headpond.requests import Message
from headpond.sampling import Sampling
from headpond.tables import ScriptedModel
from headpond_workers.detokenizer import Detokenizer
from headpond_workers.engines.protocol import Sequence, Verdict
from headpond_workers.engines.scripted import ScriptedEngine

FAST = 100_000.0
PROMPT = "Tell me of the river."


def engine_with(**options: Any) -> ScriptedEngine:
    return ScriptedEngine(ScriptedModel(engine="scripted", **({"tokens_per_s": FAST} | options)))


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedEngine]:
    engine = engine_with(answer_tokens=60)
    yield engine
    engine.close()


def sequence(
    engine: ScriptedEngine,
    prompt: str = PROMPT,
    *,
    generated: tuple[int, ...] = (),
    max_tokens: int = 1000,
    temperature: float = 1.0,
    seed: int = 7,
) -> Sequence:
    ids = tuple(engine.render([Message(role="user", content=prompt)]))
    return Sequence(ids, generated, max_tokens, Sampling(temperature=temperature), seed)


def generated(engine: ScriptedEngine, asked: Sequence) -> tuple[tuple[int, ...], FinishReason]:
    ids: list[int] = []

    def emit(new: Any) -> Verdict:
        ids.extend(new)
        return Verdict.GO

    finish = engine.generate(asked, emit)
    return tuple(ids), finish.reason


def test_the_same_prompt_and_seed_make_the_same_tokens_in_any_engine(engine: ScriptedEngine) -> None:
    first = generated(engine, sequence(engine))
    assert first == generated(engine, sequence(engine))
    assert len(first[0]) == 60
    assert first[1] is FinishReason.STOP
    other = engine_with(answer_tokens=60, slots=2)
    try:
        assert generated(other, sequence(other)) == first
        assert other.info.fingerprint == engine.info.fingerprint
    finally:
        other.close()


def test_another_prompt_or_seed_makes_other_tokens(engine: ScriptedEngine) -> None:
    answers = [
        generated(engine, sequence(engine, prompt, seed=seed))[0]
        for prompt in (PROMPT, PROMPT + " ")
        for seed in (1, 2)
    ]
    assert len(set(answers)) == 4


def test_what_decides_the_answer_decides_the_fingerprint(engine: ScriptedEngine) -> None:
    for options in ({"answer_tokens": 61}, {"answer_tokens": 60, "context_tokens": 64}, {}):
        other = engine_with(**options)
        try:
            assert other.info.fingerprint != engine.info.fingerprint
        finally:
            other.close()


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=30), st.integers(0, (1 << 32) - 1), st.data())
def test_a_sequence_resumed_anywhere_makes_the_identical_rest(
    engine: ScriptedEngine, prompt: str, seed: int, data: st.DataObject
) -> None:
    whole, reason = generated(engine, sequence(engine, prompt, seed=seed))
    k = data.draw(st.integers(0, len(whole)))
    rest = generated(engine, sequence(engine, prompt, seed=seed, generated=whole[:k]))
    assert rest == (whole[k:], reason)


def test_an_answer_reads_as_text_with_characters_over_two_tokens(engine: ScriptedEngine) -> None:
    ids = [i for seed in range(20) for i in generated(engine, sequence(engine, seed=seed))[0]]
    text = Detokenizer(engine.token_bytes).feed(ids)
    assert "\N{WATER WAVE}" in "".join(text.pieces)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(text.pieces)
    assert "" in text.pieces


def test_a_conversation_is_rendered_with_its_roles(engine: ScriptedEngine) -> None:
    one = engine.render([Message(role="system", content="Be brief."), Message(role="user", content="Hi")])
    other = engine.render([Message(role="user", content="Be brief."), Message(role="user", content="Hi")])
    assert one != other


def test_slots_run_together_at_the_speed_of_each() -> None:
    engine = engine_with(answer_tokens=20, tokens_per_s=50, slots=4)
    order: list[str] = []
    lock = threading.Lock()

    def run(name: str) -> None:
        def emit(new: Any) -> Verdict:
            with lock:
                order.extend(name for _ in new)
            return Verdict.GO

        engine.generate(sequence(engine, name), emit)

    try:
        began = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, "abcd"))
        took_s = time.monotonic() - began
    finally:
        engine.close()
    # One after the other would take 1.6 s; together they take 0.4.
    assert 0.35 < took_s < 1.2
    assert all(order.count(name) == 20 for name in "abcd")
    # Each has its first token before any has its last but a few.
    assert max(order.index(name) for name in "abcd") < min(
        len(order) - 1 - order[::-1].index(name) for name in "abcd"
    )  # fmt: skip


def test_a_prefill_asks_without_tokens_before_the_first_one() -> None:
    engine = engine_with(answer_tokens=3, tokens_per_s=1000, prefill_tokens_per_s=2000)
    calls: list[tuple[int, ...]] = []

    def emit(new: Any) -> Verdict:
        calls.append(tuple(new))
        return Verdict.GO

    try:
        asked = sequence(engine)
        engine.generate(asked, emit)
        steps = -(-len(asked.prompt) // 2)
        assert calls[:steps] == [()] * steps
        assert [len(call) for call in calls[steps:]] == [1, 1, 1]
        # What an earlier attempt made is prefilled too.
        whole = tuple(i for call in calls for i in call)
        calls.clear()
        engine.generate(sequence(engine, generated=whole[:2]), emit)
        assert calls.count(()) == -(-(len(asked.prompt) + 2) // 2)
        assert calls[-1] == whole[2:]
    finally:
        engine.close()


CHILD = """
import sys
from headpond.requests import Message
from headpond.sampling import Sampling
from headpond.tables import ScriptedModel
from headpond_workers.engines.protocol import Sequence, Verdict
from headpond_workers.engines.scripted import ScriptedEngine

crash_at, crash_token, crash_prompt, prompt = sys.argv[1:]
engine = ScriptedEngine(ScriptedModel(engine="scripted", tokens_per_s=5000, answer_tokens=9, prefill_tokens_per_s=5000,
                                      crash_at=crash_at or None, crash_token=int(crash_token),
                                      crash_prompt=crash_prompt))
print("loaded", flush=True)

def emit(ids):
    print(len(ids), flush=True)
    return Verdict.GO

ids = tuple(engine.render([Message(role="user", content=prompt)]))
engine.generate(Sequence(ids, (), 100, Sampling(), 1), emit)
print("ended", flush=True)
"""


def crash(crash_at: str, *, crash_token: int = 0, crash_prompt: str = "", prompt: str = "p") -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, crash_at, str(crash_token), crash_prompt, prompt],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout.split()


def test_a_crash_point_kills_the_process_right_there() -> None:
    with ThreadPoolExecutor(2) as pool:
        load, prefill, early, late, end, never = pool.map(
            lambda point: crash(point[0], crash_token=point[1]),
            [("load", 0), ("prefill", 0), ("token", 0), ("token", 4), ("end", 0), ("", 0)],
        )
    killed = -signal.SIGKILL
    assert load == (killed, [])
    assert prefill == (killed, ["loaded"])
    assert early[0] == late[0] == end[0] == killed
    tokens = [[line for line in run[1] if line == "1"] for run in (early, late, end)]
    assert [len(made) for made in tokens] == [1, 5, 9]
    assert "ended" not in end[1]
    assert never[0] == 0
    assert never[1][-1] == "ended"


def test_a_crash_prompt_spares_all_others() -> None:
    assert crash("prefill", crash_prompt="poison", prompt="a poisonous one")[0] == -signal.SIGKILL
    assert crash("prefill", crash_prompt="poison", prompt="a harmless one")[0] == 0
