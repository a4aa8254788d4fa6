"""`storage`, rollover: three workers change to another version under load. There is no peer: what is compared is the
throughput before, and the time that one worker takes to load."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from child import BenchmarkError
from document import Measurement, Samples
from pairs import Order, Pair
from plan import Plan

from headpond import Client
from headpond.connections import redis_of
from headpond.queue import JobQueue, Server
from headpond.settings import Settings, load_settings
from headpond.workers import WorkerState
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.description import Description
from headpond_workers.checkpoints.pushes.pushing import push
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.resolving import open_storage
from headpond_workers.rollover.alias_copy import copy_alias
from headpond_workers.supervision.deployment import Deployment
from headpond_workers.supervision.private_files import private_folder, write_private

MODEL, ALIAS, WHO = "bench", "prod", "the benchmark"
CACHE = "HEADPOND_CACHE"
WORKERS, SLOTS, TOKENS_PER_S, TOKENS = 3, 4, 40.0, 20
PRODUCERS = WORKERS * SLOTS
BEFORE_S, AFTER_S = 4.0, 3.0
WINDOW_S, STEP_S = 2.0, 0.1
"""Throughput is looked at in every window of this length, each this much later than the one before."""
READY_S = 120.0
TABLE = f"""[models.{MODEL}]
engine = "scripted"
source = "s3:{MODEL}@{ALIAS}"
workers = {WORKERS}
slots = {SLOTS}
tokens_per_s = {TOKENS_PER_S:g}
answer_tokens = {TOKENS}
"""


def measure_rollover(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    with _deployment(plan.folder) as settings, Client(redis_of(settings).url) as client:
        rollover = _Rollover(settings, client)
        pairs = []
        for number in range(plan.pairs):
            samples = rollover.run(to=2 if number % 2 == 0 else 1)
            pairs.append(Pair(Order.HEADPOND, samples, {}))
            plan.say_pair(
                number,
                f"{samples['least_tokens_per_s']:.0f} of {samples['before_tokens_per_s']:.0f} tokens/s at least, first "
                f"token after {samples['first_s']:.2f} s, of which {samples['load_s']:.2f} s are loading",
            )
    return Measurement(
        plan.kind, f"rollover of {WORKERS} workers",
        f"a deployment as `headpond up` makes it, {WORKERS} workers of {SLOTS} slots with the scripted engine at "
        f"{TOKENS_PER_S:g} tokens/s a sequence; {PRODUCERS} threads ask for answers of {TOKENS} tokens, one after the "
        f"other; an alias is moved to the other of two versions. Throughput in every window of {WINDOW_S:g} s that "
        f"begins between the move and the change of the last worker, every {STEP_S:g} s; before it, over {BEFORE_S:g} "
        "s",
        "workers change in place, one at a time",
        "none; a worker's loading is the time from the end of its old process until it serves", pairs,
    )  # fmt: skip


@contextmanager
def _deployment(folder: Path) -> Iterator[Settings]:
    config = folder / "headpond.toml"
    write_private(config, TABLE)
    settings = load_settings(config)
    deployment = Deployment(settings)
    before = os.environ.get(CACHE)
    # Its programs inherit it: what they cache is gone with the folder.
    os.environ[CACHE] = str(private_folder(folder / "cache"))
    try:
        deployment.up()
        aliases = Aliases(Registry(open_storage(settings), MODEL, writer=WHO))
        for salt in ("one", "two"):
            files = private_folder(folder / salt)
            (files / "scripted.json").write_text(json.dumps({"salt": salt}))
            push(aliases.registry, files, Description())
        aliases.move(ALIAS, to=1, left=None, who=WHO)
        deployment.wait_ready(timeout_s=READY_S)
        yield settings
    finally:
        deployment.down()
        del os.environ[CACHE]
        if before is not None:
            os.environ[CACHE] = before


class _Rollover:
    """Moves the alias, and watches tokens, answers and workers."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self._settings, self._client = settings, client
        self._aliases = Aliases(Registry(open_storage(settings), MODEL, writer=WHO))

    def run(self, *, to: int) -> Samples:
        """One move of the alias. Raises BenchmarkError if a job fails, or a worker does not change."""
        tokens: list[float] = []
        first_tokens: list[tuple[float, str]] = []
        ending = threading.Event()
        server = Server(redis_of(self._settings))
        try:
            queue = server.queue(MODEL)
            with ThreadPoolExecutor(PRODUCERS) as pool:
                asking = [pool.submit(self._ask, tokens, first_tokens, ending) for _ in range(PRODUCERS)]
                try:
                    time.sleep(BEFORE_S + 1)
                    moved = time.monotonic()
                    copy_alias(queue, self._aliases.move(ALIAS, to=to, left=None, who=WHO))
                    load_s = self._await(queue, str(to))
                    changed = time.monotonic()
                    time.sleep(AFTER_S)
                finally:
                    ending.set()
                for one in asking:
                    one.result()
        finally:
            server.close()
        return {
            "load_s": round(load_s, 3),
            "first_s": round(min(at for at, version in first_tokens if version == str(to) and at > moved) - moved, 3),
            "all_changed_s": round(changed - moved, 3),
            "before_tokens_per_s": _rate(tokens, moved - BEFORE_S, moved),
            "least_tokens_per_s": least_rate(tokens, moved, changed),
            "jobs": len(first_tokens),
        }

    def _ask(self, tokens: list[float], first_tokens: list[tuple[float, str]], ending: threading.Event) -> None:
        while not ending.is_set():
            job = self._client.submit(MODEL, "Tell me of the mill.", max_tokens=TOKENS)
            times = []
            for chunk in job.stream():
                times += [time.monotonic()] * len(chunk.token_ids)
            tokens += times
            first_tokens.append((times[0], job.result(timeout=READY_S).version))

    def _await(self, queue: JobQueue, version: str) -> float:
        """Until every worker serves the version. Returns how long the first of them loaded, in seconds: from the end of
        its old process, which says so last, until it serves."""
        loading: dict[str, float] = {}
        load_s = 0.0
        until = time.monotonic() + READY_S
        while (now := time.monotonic()) < until:
            rows = [row for row in queue.workers() if row.version == version]
            for row in rows:
                if row.state is WorkerState.LOADING:
                    loading.setdefault(row.instance, now)
            ready = [row.instance for row in rows if row.state is WorkerState.READY]
            if ready and not load_s:
                load_s = now - loading.get(ready[0], now)
            if len(ready) == WORKERS:
                return load_s
            time.sleep(0.01)
        raise BenchmarkError(f"After {READY_S:g} s not all workers serve version {version}.")


def least_rate(tokens: Sequence[float], begin: float, end: float) -> float:
    """The lowest throughput of all windows that begin between `begin` and `end`, in tokens/s."""
    starts = [begin + n * STEP_S for n in range(max(1, round((end - begin) / STEP_S)))]
    return min(_rate(tokens, start, start + WINDOW_S) for start in starts)


def _rate(tokens: Sequence[float], begin: float, end: float) -> float:
    return round(sum(begin <= at < end for at in tokens) / (end - begin), 2)
