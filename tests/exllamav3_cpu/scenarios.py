"""`python -m exllamav3_cpu.scenarios CHECKPOINT DIGEST_CACHE`: run the engine, print what came out as JSON."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exllamav3_cpu import modules

modules.install()

import exllamav3  # noqa: E402
import torch  # noqa: E402

from exllamav3_cpu import model  # noqa: E402
from exllamav3_cpu.calls import Calls  # noqa: E402
from headpond.errors import EngineUnavailable  # noqa: E402
from headpond.requests import Message, Sampling  # noqa: E402
from headpond.tables import ExLlamaV3Model  # noqa: E402
from headpond_workers.engines.exllamav3 import ExLlamaV3Engine  # noqa: E402
from headpond_workers.engines.formats.hf_vocabulary import read_hf_vocabulary  # noqa: E402
from headpond_workers.engines.protocol import Finish, Sequence, Verdict  # noqa: E402

GREEDY = Sampling(temperature=0.0)
DRAWN = Sampling(temperature=1.0, top_p=0.95)
MARK = 300
"""A token that a prompt holds so that a fault finds it."""
VOCABULARY = 352
CONTEXT_TOKENS = 1024
DEADLINE_S = 120.0


def prompt(seed: int, tokens: int) -> tuple[int, ...]:
    """Ids of plain tokens, none of them MARK."""
    return tuple(3 + (seed * 7919 + position * 31) % 290 for position in range(tokens))


@dataclass(eq=False, repr=False)
class Caller(threading.Thread):
    """One sequence, run to its end. stop_after: says STOP from so many ids on."""

    engine: ExLlamaV3Engine
    sequence: Sequence
    stop_after: int | None = None
    on_first: Callable[[], None] | None = None
    ids: list[int] = field(default_factory=list)
    outcome: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def run(self) -> None:
        try:
            finish: Finish = self.engine.generate(self.sequence, self.take)
            self.outcome = {"finish": finish.reason.value, "details": sorted(finish.details)}
        except Exception as error:  # noqa: BLE001 - what the test looks at
            cause = error.__cause__
            self.outcome = {"error": type(error).__name__, "message": str(error), "cause": type(cause).__name__}

    def take(self, ids: Any) -> Verdict:
        if ids and not self.ids and self.on_first is not None:
            self.on_first()
        self.ids.extend(ids)
        return Verdict.GO if self.stop_after is None or len(self.ids) < self.stop_after else Verdict.STOP

    def report(self) -> dict[str, Any]:
        self.join(DEADLINE_S)
        if not self.outcome:
            raise RuntimeError("a caller did not return")
        return {**self.outcome, "ids": self.ids}


class Bench:
    def __init__(self, engine: ExLlamaV3Engine, end_ids: frozenset[int]) -> None:
        self.engine = engine
        self.end_ids = end_ids

    def run(self, *sequences: Sequence, stop_after: int | None = None) -> list[dict[str, Any]]:
        """Run them together; stop_after is for the last of them."""
        callers = [Caller(self.engine, sequence) for sequence in sequences]
        callers[-1].stop_after = stop_after
        for caller in callers:
            caller.start()
        return [caller.report() for caller in callers]

    def greedy(self, ids: tuple[int, ...], wanted: int) -> list[int]:
        return model.greedy(list(ids), wanted, end_ids=self.end_ids, vocab_size=VOCABULARY)


def ask(
    ids: tuple[int, ...], wanted: int, sampling: Sampling = GREEDY, *, made: tuple[int, ...] = (), seed: int = 7
) -> Sequence:
    return Sequence(ids, made, wanted, sampling, seed)


def together(bench: Bench) -> Any:
    """Five sequences over three slots; two share their first pages, and one spans several chunks of prefill."""
    prompts = [prompt(1, 300), (*prompt(1, 290), 9, 9), prompt(2, 5), prompt(3, 800), prompt(4, 257)]
    ran = bench.run(*(ask(ids, 40) for ids in prompts))
    return [{**each, "expected": bench.greedy(ids, 40)} for each, ids in zip(ran, prompts, strict=True)]


def ends_by_itself(bench: Bench) -> Any:
    """A prompt whose answer meets an end token early."""
    ids = next(ids for ids in _short_prompts() if 8 < len(bench.greedy(ids, 60)) < 60)
    (ran,) = bench.run(ask(ids, 60))
    return {**ran, "expected": bench.greedy(ids, 60), "end_ids": sorted(bench.end_ids)}


def resumed(bench: Bench) -> Any:
    (whole,) = bench.run(ask(prompt(11, 280), 48, DRAWN))
    made = tuple(whole["ids"])
    again = {str(k): bench.run(ask(prompt(11, 280), len(made) - k, DRAWN, made=made[:k]))[0]["ids"] for k in (1, 7, 23)}
    (other,) = bench.run(ask(prompt(11, 280), 48, DRAWN, seed=8))
    return {"whole": list(made), "resumed": again, "other_seed": other["ids"]}


def sampled(bench: Bench) -> Any:
    """Settings whose answers are known, and a resume under all of them."""
    ids = prompt(12, 30)

    def answer(made: tuple[int, ...] = (), wanted: int = 30, **options: Any) -> dict[str, Any]:
        return bench.run(ask(ids, wanted, Sampling(**options), made=made))[0]

    endless = {str(token): -100.0 for token in bench.end_ids}
    together: dict[str, Any] = {"temperature": 2.0, "top_k": 9, "min_p": 0.01, "top_p": 0.9, "logit_bias": endless}
    whole = answer(**together)["ids"]
    return {
        "greedy": bench.greedy(ids, 30),
        "top_k 1": answer(top_k=1)["ids"],
        "min_p 1": answer(min_p=1.0)["ids"],
        "forced": answer(logit_bias={"77": 100.0}, temperature=0.0)["ids"],
        "forced and drawn": answer(logit_bias={"77": 100.0})["ids"],
        "whole": whole,
        "resumed": [[*whole[:k], *answer(made=tuple(whole[:k]), wanted=30 - k, **together)["ids"]] for k in (1, 7)],
        "no token": answer(logit_bias={str(VOCABULARY): 1.0}),
        "refused": [answer(**{name: 0.5}) for name in ("xtc_probability", "typical_p", "presence_penalty")],
    }


def cancelled(bench: Bench) -> Any:
    neighbour, stopped = bench.run(ask(prompt(21, 40), 60), ask(prompt(22, 40), 60), stop_after=5)
    after = bench.run(ask(prompt(22, 40), 60))[0]
    return {
        "neighbour": neighbour["ids"] == bench.greedy(prompt(21, 40), 60),
        "stopped": stopped,
        "expected": bench.greedy(prompt(22, 40), 60),
        "after": after["ids"],
    }


def faults(bench: Bench) -> Any:
    """For each fault: a marked sequence with two neighbours, all of whose passes go through `fault`."""
    return {
        "prefill": _with_fault(bench, _raising(lambda: ValueError("a bad chunk"), stage="prefill")),
        "prefill_memory": _with_fault(bench, _raising(_no_memory, stage="prefill")),
        "decode_once": _with_fault(bench, _raising(lambda: ValueError("a bad step"), stage="decode", times=1)),
        "decode_always": _with_fault(bench, _raising(lambda: ValueError("a bad step"), stage="decode")),
        "decode_memory": _with_fault(bench, _raising(_no_memory, stage="decode", times=1)),
        "not_finite": _with_fault(bench, None),
    }


def recorded(bench: Bench) -> Any:
    """Every result of the generator, as JSON.

    Of an answer that ends amid a character, of one that is cut at its length, and of a prompt that fails.
    """
    ends_amid = next(
        ids for ids in map(lambda seed: prompt(seed, 6), range(9999)) if _ends_amid_a_character(bench, ids)
    )
    results: list[dict[str, Any]] = []
    original = exllamav3.Generator.iterate

    def iterate(self: Any) -> Any:
        made = original(self)
        results.extend(as_json(result) for result in made)
        return made

    exllamav3.Generator.iterate = iterate
    try:
        (ended,) = bench.run(ask(ends_amid, 60))
        (cut,) = bench.run(ask(prompt(42, 6), 3))
        fault = _raising(lambda: ValueError("a bad chunk"), stage="prefill")
        model.before_pass.append(fault)
        bench.run(ask((*prompt(43, 6), MARK, 5), 3))
    finally:
        model.before_pass.clear()
        exllamav3.Generator.iterate = original
    return {"results": results, "ended": ended, "cut": cut}


def _short_prompts() -> Iterator[tuple[int, ...]]:
    return (prompt(seed, 6) for seed in range(9999))


def as_json(result: dict[str, Any]) -> dict[str, Any]:
    """A result without its job; an error by its type and text."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items() if key != "job"}
        if isinstance(value, torch.Tensor):
            return value.tolist()
        if isinstance(value, Exception):
            return {"type": type(value).__name__, "message": str(value)}
        return value

    kept: dict[str, Any] = plain(result)
    return kept


def _ends_amid_a_character(bench: Bench, ids: tuple[int, ...]) -> bool:
    answer = bench.greedy(ids, 60)
    return 4 < len(answer) < 16 and bench.engine.token_bytes(answer[-1])[:1] >= b"\xc2"


def refused(bench: Bench) -> Any:
    long = tuple([5] * (CONTEXT_TOKENS - 3))
    return {
        "no_token": bench.run(ask((3, VOCABULARY), 4))[0],
        "too_long": bench.run(ask(tuple([5] * CONTEXT_TOKENS), 4))[0],
        "cut_at_the_context": bench.run(ask(long, 50))[0],
        "adapter": bench.run(Sequence((3,), (), 4, GREEDY, 1, adapter="french"))[0],
    }


def texts(bench: Bench) -> Any:
    """What the vocabulary and the template give."""
    rendered = bench.engine.render([Message(role="user", content="hi")])
    return {"rendered": len(rendered) > 2, "encoded": bench.engine.encode("hello"), "bytes": _bytes(bench, "héllo")}


def broken(bench: Bench, *, stage: str) -> Any:
    """The device fails, and stays failed. The engine is of no use afterwards."""
    fault = _raising(lambda: RuntimeError("CUDA error: an illegal memory access was encountered"), stage=stage)
    return _with_fault(bench, fault, everywhere_after=True)


def not_loaded(folder: Path, digest_cache: Path) -> Any:
    """What people read when loading fails, and how often the model was unloaded meanwhile."""
    told: dict[str, Any] = {}
    errors: dict[str, Exception] = {
        "memory": _no_memory(),
        "split": RuntimeError("Insufficient VRAM in split for model and cache"),
        "checkpoint": AssertionError("Unknown architecture"),
    }
    loading, unloading = exllamav3.Model.load_gen, exllamav3.Model.unload
    unloads: list[object] = []

    def unload(self: Any) -> None:
        unloads.append(self)
        unloading(self)

    exllamav3.Model.unload = unload
    for name, error in errors.items():

        def load_gen(self: Any, error: Exception = error, **options: Any) -> Iterator[tuple[int, int]]:
            yield 1, 2
            raise error

        exllamav3.Model.load_gen = load_gen
        try:
            ExLlamaV3Engine(table(folder), digest_cache=digest_cache)
        except EngineUnavailable as unavailable:
            told[name] = str(unavailable)
    exllamav3.Model.load_gen, exllamav3.Model.unload = loading, unloading
    return {"told": told, "unloads": len(unloads)}


def _bytes(bench: Bench, text: str) -> str:
    return b"".join(bench.engine.token_bytes(token) for token in bench.engine.encode(text)).decode()


def _no_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _raising(make: Callable[[], Exception], *, stage: str, times: int = 1 << 30) -> model.PassListener:
    """Raises in passes of that stage over a row with MARK."""
    left = times

    def listener(at: str, ids: list[int]) -> None:
        nonlocal left
        if at == stage and MARK in ids and left:
            left -= 1
            raise make()

    return listener


def _with_fault(bench: Bench, fault: model.PassListener | None, *, everywhere_after: bool = False) -> Any:
    neighbours = [prompt(31, 30), prompt(32, 300)]
    marked = (*prompt(33, 30), MARK, *prompt(34, 10))
    expected = [bench.greedy(ids, 30) for ids in neighbours]
    failing = False

    def listener(at: str, ids: list[int]) -> None:
        nonlocal failing
        if failing and everywhere_after:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if fault is not None:
            try:
                fault(at, ids)
            except Exception:
                failing = True
                raise

    if fault is None:
        model.spoiled.append(MARK)
    else:
        model.before_pass.append(listener)
    running = threading.Event()
    # Where all of them are to break, none may be at its end before.
    tokens = 600 if everywhere_after else 30
    first = Caller(bench.engine, ask(neighbours[0], tokens), on_first=running.set)
    first.start()
    running.wait(DEADLINE_S)
    others = [Caller(bench.engine, ask(neighbours[1], tokens)), Caller(bench.engine, ask(marked, 30))]
    for other in others:
        other.start()
    reports = [caller.report() for caller in (first, *others)]
    model.before_pass.clear()
    model.spoiled.clear()
    return {
        "neighbours": [{**each, "expected": ids} for each, ids in zip(reports[:2], expected, strict=True)],
        "marked": reports[2],
        "expected": bench.greedy(marked, 30),
    }


def table(folder: Path, **changes: Any) -> ExLlamaV3Model:
    values = {"slots": 3, "context_tokens": CONTEXT_TOKENS, "chunk_tokens": 256, **changes}
    return ExLlamaV3Model(engine="exllamav3", path=folder, **values)


def main(folder: Path, digest_cache: Path) -> None:
    calls = Calls()
    calls.watch(exllamav3)
    model.install(exllamav3, calls)
    end_ids = read_hf_vocabulary(folder).end_ids
    engine = ExLlamaV3Engine(table(folder), digest_cache=digest_cache)
    bench = Bench(engine, end_ids)
    results = {
        scenario.__name__: scenario(bench)
        for scenario in (together, ends_by_itself, resumed, sampled, cancelled, faults, recorded, refused, texts)
    }
    results["broken_decode"] = broken(bench, stage="decode")
    engine.close()
    info = engine.info
    other = ExLlamaV3Engine(table(folder, cache_bits=4, gpu_split=(1.5,)), digest_cache=digest_cache)
    results["info"] = {
        "capabilities": sorted(info.capabilities),
        "context_tokens": info.context_tokens,
        "other_cache_other_fingerprint": info.fingerprint != other.info.fingerprint,
    }
    results["broken_prefill"] = broken(Bench(other, end_ids), stage="prefill")
    other.close()
    results["not_loaded"] = not_loaded(folder, digest_cache)
    results["calls"] = {name: sorted(names) for name, names in calls.named.items()}
    results["unknown"] = sorted(calls.unknown)
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
