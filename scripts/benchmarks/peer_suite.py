"""`peers`: headpond beside what one would put in its place, all on the same model file.

All sides are loaded at once. In each round every side is asked the same, one after the other, in an order that turns
round by round; headpond's run of a round makes a pair with each peer's. A peer that cannot be set up, or fails amid a
run, is left out and the reason noted; headpond and the bare server, which counts tokens, cannot be left out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from child import Answer, BenchmarkError
from dbgpt_environment import Kernels
from dbgpt_side import NAMES as DBGPT
from dbgpt_side import dbgpt_side
from document import Kind, Measurement, Samples
from pairs import Pair, order_of
from peer_prompts import CONTEXT_TOKENS, LONG_ANSWERS, MIX, QUICK, Ask, Mix, draw_asks
from peer_rows import JOBS
from peer_sides import (
    SLOTS,
    SOURCE,
    THREADS,
    DramatiqSide,
    ServerProcess,
    Side,
    code_lines,
    cpu_s,
    dramatiq_side,
    headpond_side,
    run,
    server_process,
    server_side,
)
from plan import Plan
from source_model import prepare_source

from headpond.errors import HeadpondError
from headpond_workers.models.prepare import prepared

CRASH_JOBS = SLOTS
KILL_TRIES = 4
GOAL_TIMES = 2
"""So many times the pairs where there are goals of speed: two runs of llama.cpp, one after the other, differ by up to a
tenth."""
LEAVABLE = {
    "dramatiq": DramatiqSide.name, "dbgpt": DBGPT[Kernels.NATIVE], "dbgpt-portable": DBGPT[Kernels.PORTABLE],
}  # fmt: skip
"""Peers that a run can do without, by the word for it. The bare server counts the tokens of all."""
Runs = dict[str, Samples]
"""One round: what each side measured, by its name."""


@dataclass(frozen=True, slots=True)
class Workload:
    """kill_share: how much of the time that a side takes for these jobs undisturbed has passed when the kill comes, at
    least and at most. By then no job has ended."""

    speed: Mix = MIX
    crash: Mix = LONG_ANSWERS
    kill_share: tuple[float, float] = (0.4, 0.6)


WHOLE = Workload()
QUICK_WORKLOAD = Workload(QUICK, Mix(QUICK.words, (20, 20, 24, 24, 28, 28, 32, 32)))


@dataclass
class PeerSuite:
    """folder: empty, private. only: names of measurements; none means all. without: of LEAVABLE. not_run: what was left
    out, and why."""

    pairs: int
    seed: int
    quick: bool
    only: Sequence[str]
    without: Sequence[str]
    folder: Path
    progress: Callable[[str], None]
    not_run: dict[str, str] = field(default_factory=dict)
    _sides: list[Side] = field(default_factory=list)

    def measure(self) -> list[Measurement]:
        """Raises HeadpondError."""
        prepare_source(SOURCE, benchmark="peers", progress=self.progress)
        path = prepared(SOURCE)
        if path is None:
            raise BenchmarkError(f"{SOURCE} was prepared, and is gone again.")
        workload = QUICK_WORKLOAD if self.quick else WHOLE
        with ExitStack() as stack:
            server = self._start(stack, path)
            for side in list(self._sides):
                self._try(side, self._warm_up, -1)
            made: list[Measurement] = []
            for kind, jobs in JOBS.items():
                if not self.only or kind.value in self.only:
                    made += self._measure_speed(server, self._plan(kind), workload.speed, jobs)
            if not self.only or Kind.PEERS_CRASH.value in self.only:
                made += self._measure_crash(server, self._plan(Kind.PEERS_CRASH), workload)
            return made

    def _plan(self, kind: Kind) -> Plan:
        pairs = self.pairs * (GOAL_TIMES if kind is Kind.PEERS_8 else 1)
        return Plan(kind, pairs, self.seed, self.quick, self.folder, self.progress, benchmark="peers")

    def _start(self, stack: ExitStack, path: Path) -> ServerProcess:
        def add(context: AbstractContextManager[Side]) -> None:
            self._sides.append(stack.enter_context(context))

        for word in self.without:
            self._leave_out(LEAVABLE[word], "This run was told to leave it out.")
        self._say("starting headpond, as `headpond up` does")
        add(headpond_side(self.folder / "headpond"))
        self._say("starting llama.cpp's own server")
        server = stack.enter_context(server_process(path, self.folder / "server"))
        add(server_side(server, self.folder / "server"))
        if "dramatiq" not in self.without:
            self._say("starting dramatiq's worker")
            add(dramatiq_side(server, self.folder / "dramatiq"))
        for word, kernels in (("dbgpt", Kernels.NATIVE), ("dbgpt-portable", Kernels.PORTABLE)):
            if word in self.without:
                continue
            try:
                add(dbgpt_side(kernels, path, self.folder / word, progress=self.progress))
            except HeadpondError as error:
                self._leave_out(LEAVABLE[word], str(error))
        return server

    # ---- speed

    def _measure_speed(self, server: ServerProcess, plan: Plan, mix: Mix, jobs: int) -> list[Measurement]:
        def one(side: Side, number: int) -> Samples:
            return self._speed(server, side, self._asks(mix, plan, number, jobs))

        many = f"{jobs} job{'s' if jobs > 1 else ''} at once"
        text = f"{_model_text()}, {many}: {mix.text}. Tokens are those of the texts, counted by one tokenizer"
        return self._rounds(plan, many, text, one, _speed_text, self._sides)

    def _speed(self, server: ServerProcess, side: Side, asks: Sequence[Ask]) -> Samples:
        others = [other for other in self._sides if other is not side]
        before, others_before = cpu_s(side), sum(map(cpu_s, others))
        answer = run(side, asks)
        spent, others_spent = cpu_s(side) - before, sum(map(cpu_s, others)) - others_before
        for one in answer["answers"]:
            if one["error"] is not None or len(one["parts"]) > 1:
                raise BenchmarkError(f"{side.name} lost a job with nobody killing anything: {one['error']}")
        return {
            "tokens": sum(server.count_tokens(one["text"]) for one in answer["answers"]),
            "seconds": _seconds(answer),
            "first_token_ms": [round((one["first_ns"] - answer["began_ns"]) / 1e6, 2) for one in answer["answers"]],
            "cpu_s": round(spent, 2),
            "others_cpu_s": round(others_spent, 2),
        }

    # ---- a kill

    def _measure_crash(self, server: ServerProcess, plan: Plan, workload: Workload) -> list[Measurement]:
        undisturbed_s: dict[str, float] = {}

        def one(side: Side, number: int) -> Samples:
            if side.name not in undisturbed_s:
                plan.say(f"{side.name}: an uncounted run, undisturbed")
                undisturbed_s[side.name] = _seconds(run(side, self._asks(workload.crash, plan, -1, CRASH_JOBS)))
            asks = self._asks(workload.crash, plan, number, CRASH_JOBS)
            # The same share for all sides of a pair.
            share = plan.draw(number).uniform(*workload.kill_share)
            for _ in range(KILL_TRIES):
                made = self._crash(server, side, asks, share * undisturbed_s[side.name])
                if made["running_at_kill"]:
                    return made
                # The machine has become faster since: nothing was killed, so nothing was measured.
                undisturbed_s[side.name] = made["seconds"]
            raise BenchmarkError(f"{side.name} answers everything before it can be killed.")

        least, most = (f"{share:.0%}" for share in workload.kill_share)
        text = (
            f"{_model_text()}, {CRASH_JOBS} jobs at once: {workload.crash.text}. After {least} to {most} (uniform, "
            "seeded) of the time that the side takes for such jobs undisturbed, the process that has the model gets "
            "SIGKILL, and is started again at once. A program that loses its stream asks anew, and shows the answer "
            "from its beginning"
        )
        # How fast its kernels are does not change what DB-GPT loses.
        sides = [side for side in self._sides if side.name != DBGPT[Kernels.PORTABLE]]
        return self._rounds(plan, "kill -9 amid 8 jobs", text, one, _crash_text, sides)

    def _crash(self, server: ServerProcess, side: Side, asks: Sequence[Ask], kill_after_s: float) -> Samples:
        with ThreadPoolExecutor(1) as thread:
            asking = thread.submit(run, side, asks)
            time.sleep(kill_after_s)
            killed_ns = time.monotonic_ns()
            side.kill()
            answer = asking.result()
        side.await_ready()
        answers = answer["answers"]
        running_at_kill = sum(one["ended_ns"] > killed_ns for one in answers)
        # A program that failed for good has lost what it showed.
        again = [part for one in answers for part in (one["parts"] if one["error"] else one["parts"][:-1])]
        return {
            "jobs": len(asks),
            "running_at_kill": running_at_kill,
            "jobs_lost": sum(len(one["parts"]) > 1 or one["error"] is not None for one in answers),
            "tokens": sum(server.count_tokens(one["text"]) for one in answers),
            "tokens_again": sum(map(server.count_tokens, again)),
            "tokens_missing": sum(server.count_tokens(_missing(one)) for one in answers),
            "killed_after_s": round(kill_after_s, 2),
            "recovered_s": round((max(one["ended_ns"] for one in answers) - killed_ns) / 1e9, 3),
            "seconds": _seconds(answer),
            "code_lines": code_lines(side),
            "errors": [one["error"] for one in answers if one["error"] is not None],
        }

    # ---- rounds

    def _rounds(
        self,
        plan: Plan,
        what: str,
        text: str,
        one: Callable[[Side, int], Samples],
        in_words: Callable[[Samples], str],
        sides: Sequence[Side],
    ) -> list[Measurement]:
        """A measurement for each peer that took part in every round."""
        rounds: list[Runs] = []
        for number in range(plan.pairs):
            runs: Runs = {}
            for side in in_turn(self._present(sides), number):
                samples = self._try(side, one, number)
                if samples is not None:
                    runs[side.name] = samples
                    plan.say_pair(number, f"{side.name}: {in_words(samples)}")
            rounds.append(runs)
        headpond, *peers = self._present(sides)
        return [
            Measurement(
                plan.kind, f"{what}, beside {peer.name}", text, headpond.about, peer.about,
                [Pair(order_of(n), runs[headpond.name], runs[peer.name]) for n, runs in enumerate(rounds)],
            )
            for peer in peers
        ]  # fmt: skip

    def _present(self, sides: Sequence[Side]) -> list[Side]:
        """Those that have not been left out meanwhile."""
        return [side for side in sides if side in self._sides]

    def _try(self, side: Side, action: Callable[[Side, int], Samples], number: int) -> Samples | None:
        """A peer that fails is left out from here on: None."""
        try:
            return action(side, number)
        except HeadpondError as error:
            if side.name not in LEAVABLE.values():
                raise
            self._leave_out(side.name, str(error))
            self._sides.remove(side)
            return None

    def _leave_out(self, name: str, reason: str) -> None:
        self.not_run[name] = without_places(reason)
        self._say(f"{name} is left out: {reason}")

    def _warm_up(self, side: Side, number: int) -> Samples:
        """Connections, threads and caches are there in a deployment that has run. The samples are empty."""
        draw = self._plan(Kind.PEERS_8).draw(number)
        self._say(f"{side.name}: an uncounted run")
        for one in run(side, draw_asks(QUICK, draw, jobs=SLOTS, name=f"warm-{side.program}"))["answers"]:
            if one["error"] is not None or not one["text"]:
                raise BenchmarkError(f"{side.name} did not answer: {one['error'] or 'an empty text'}")
        return {}

    def _asks(self, mix: Mix, plan: Plan, number: int, jobs: int) -> list[Ask]:
        return draw_asks(mix, plan.draw(number), jobs=jobs, name=f"{plan.kind.value}-{number}")

    def _say(self, text: str) -> None:
        self.progress(f"peers: {text}")


def in_turn(sides: Sequence[Side], number: int) -> list[Side]:
    """headpond first and the others in their order, then the whole order turned round, and so on: which of two sides
    runs first alternates for every two of them."""
    return list(sides) if number % 2 == 0 else list(reversed(sides))


def without_places(text: str) -> str:
    """text without addresses and paths, which are this machine's own business: it is written into a file for others."""
    return re.sub(r"(?<![\w/])/[\w.+-]+(?:/[\w.+-]*)+", "PATH", re.sub(r"\w+://\S+", "ADDRESS", text))


def _model_text() -> str:
    return f"{SOURCE} on {THREADS} thread, {SLOTS} slots of {CONTEXT_TOKENS} tokens"


def _seconds(answer: Answer) -> float:
    last_ns = max(int(one["ended_ns"]) for one in answer["answers"])
    return round((last_ns - int(answer["began_ns"])) / 1e9, 4)


def _missing(one: dict[str, Any]) -> str:
    """What of the whole answer was not shown."""
    shown, text = one["parts"][-1], one["text"]
    alike = next((n for n, (a, b) in enumerate(zip(shown, text, strict=False)) if a != b), min(len(shown), len(text)))
    return str(text[alike:])


def _speed_text(samples: Samples) -> str:
    first_ms = sorted(samples["first_token_ms"])
    return (
        f"{samples['tokens'] / samples['seconds']:.1f} tokens/s, first text after "
        f"{first_ms[len(first_ms) // 2]:.0f} ms (median), {samples['cpu_s']:g} s of CPU"
    )


def _crash_text(samples: Samples) -> str:
    return (
        f"{samples['jobs_lost']} jobs lost, {samples['tokens_again']} tokens shown again, {samples['tokens_missing']} "
        f"missing, all there {samples['recovered_s']:.1f} s after the kill"
    )
