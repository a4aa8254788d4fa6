"""An alias that moves, and workers that follow it (Q5): which version each is told to serve, and what it claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from headpond import operations as ops
from headpond import switching
from headpond.jobs import Priority
from headpond.keys import queue_keys
from headpond.switching import Assignment, Serve, Switch, SwitchReply, parse_switch
from queue_machine import answers
from queue_machine.calls import NAMES, SEATS, seldom
from queue_machine.jobs import TrueJob
from queue_machine.model import LOADING_MS, QUEUE, SERVING_MS
from queue_machine.producers import Producers, entry
from queue_machine.snapshot import Snapshot
from queue_machine.workers import Process
from queue_machine.writers import Writers

ALIASES: tuple[tuple[str, str, str, int], ...] = (
    ("1", "", "2", 300), ("1", "", "2", 700), ("2", "1", "", 0), ("1", "2", "", 0), ("2", "1", "1", 100),
    ("2", "1", "3", 500), ("3", "2", "", 0), ("2", "1", "1", 500),
)  # fmt: skip
"""target, previous, trial, permille. A trial that is the target is none."""
lost = st.booleans()


class Switching(Producers, Writers):
    @seldom("one lane", 12)
    @rule(at=st.integers(0, len(SEATS) - 1), again=lost)
    def a_worker_claims_for_one_lane_while_others_have_work(self, at: int, again: bool) -> None:
        """It was woken by a lane that it read until a moment ago."""
        self.step("one lane")
        process = self.seats[at]
        free = [job_id for job_id in NAMES if job_id not in self.model.jobs]
        if not process.version or len(free) < 3:
            return
        pins = ("", "", process.version)
        jobs = [entry(job_id, Priority.NORMAL, "", 7, pinned=pin) for job_id, pin in zip(free, pins, strict=False)]
        self.submit(jobs, 0, again=again)
        if self.now.has_token("any"):
            client: Any = self.world.server.redis
            assert client.lpop(queue_keys(QUEUE).wake("any")) == b"1"
            self.model.server.owed.add("any")
        process.own_lane = True
        self.claim(process, [], max(1, process.free), fate="again" if again else "read")

    @seldom("switch", 15)
    @rule(to=st.sampled_from(ALIASES), stale=st.integers(0, 7), again=lost)
    def the_alias_moves(self, to: tuple[str, str, str, int], stale: int, again: bool) -> None:
        """stale: 0 for a call that comes too late, 1 for one that was made before."""
        self.step("switch")
        seq = max(1, self.model.server.seq + (stale - 1 if stale < 2 else 1))
        before = self.alias
        target, previous, trial, permille = to

        def expect(told: SwitchReply, after: Snapshot) -> bool:
            known, now = self.model.server.seq, self.alias_in(after)
            assert now is not None
            if seq > known:
                named = "" if trial == target else trial
                assert (now.target, now.previous, now.trial) == (target, previous, named)
                assert not ({target, named} - _named(before)) & now.refused.keys(), "what is named anew is tried anew"
                if named and (before is None or before.trial != named):
                    self.model.server.outcomes.clear()
                self.model.server.seq = seq
            else:
                assert now == before, "a call that is not newer changed the alias"
            self._follow_share(after)
            return told == SwitchReply(max(seq, known), 0)

        self.call(
            switching.switch(seq=seq, target=target, previous=previous, trial=trial, permille=permille), expect,
            again=again,
        )  # fmt: skip

    @precondition(lambda self: self.alias is not None)
    @rule(at=st.integers(0, len(SEATS) - 1), obeys=st.booleans(), leaves=st.booleans(), again=lost)
    def a_worker_asks(self, at: int, obeys: bool, leaves: bool, again: bool) -> None:
        """obeys: whether it does what it is told before the next step. leaves: it drains; else it is killed."""
        self.step()
        process = self.seats[at]
        if not process.version or process.loads:
            return
        told = self._ask(process, again=again)
        process.own_lane = told.serve is Serve.OWN_LANE
        if told.move and obeys:
            self._start_again(at, leaves=leaves, again=again)

    @seldom("all ask", 10)
    @precondition(lambda self: self.alias is not None)
    @rule(rounds=st.integers(1, 4), again=lost)
    def all_workers_ask(self, rounds: int, again: bool) -> None:
        """Each obeys at once, and comes to serve what it was told."""
        self.step("all ask")
        for _ in range(rounds):
            for at in range(len(SEATS)):
                process = self.seats[at]
                if process.version:
                    if process.loads:
                        self._comes_to_serve(process)
                    told = self._ask(process, again=again)
                    process.own_lane = told.serve is Serve.OWN_LANE
                    if told.move:
                        self._start_again(at, leaves=True, again=again)
                        self._comes_to_serve(self.seats[at])

    @seldom("refuse", 25)
    @precondition(lambda self: self.alias is not None)
    @rule(at=st.integers(0, len(SEATS) - 1), which=st.integers(0, 2), again=lost)
    def a_version_does_not_load(self, at: int, which: int, again: bool) -> None:
        self.step("refuse")
        assert self.alias is not None
        version = (self.alias.target, self.alias.trial or self.alias.target, "2")[which]

        def expect(told: None, after: Snapshot) -> bool:
            now = self.alias_in(after)
            assert now is not None
            assert version in now.refused
            self._follow_share(after)
            return told is None

        self.call(switching.refuse(who=_who(at), version=version, reason="it is damaged"), expect, again=again)

    @property
    def alias(self) -> Switch | None:
        return self.alias_in(self.now)

    def alias_in(self, moment: Snapshot) -> Switch | None:
        return parse_switch({name.encode(): value for name, value in moment.hash("switch").items()})

    def _ask(self, process: Process, *, again: bool) -> Assignment:
        before = self.alias
        assert before is not None

        def expect(told: Assignment, after: Snapshot) -> bool:
            now = self.alias_in(after)
            assert now is not None
            held = (
                before.turn not in ("", _who(process.seat))
                and before.turn_until_ms > self.now_ms
                and _lives(after.hash("workers"), before.turn, self.now_ms)
            )
            assert not (told.move and held), f"{before.turn} has the turn, and {process.boot} was told to move"
            assert told.move == (now.turn == _who(process.seat) and process.version != "")
            if told.move:
                self.model.reached["told to move"] += 1
                self.model.reached["visit"] += told.version not in (now.effective, now.trial)
                assert told.version not in (process.version, *now.refused), f"told to move to {told.version}"
            elif process.version:
                assert told.version == process.version
            if told.serve is Serve.OWN_LANE:
                assert (process.version or told.version) != now.effective
            self._follow_share(after, speaker=process)
            return told.seq == now.seq == self.model.server.seq

        return self.call(
            switching.assign(
                boot=process.boot, who=_who(process.seat), version=process.version, busy=len(process.held)
            ),
            expect,
            again=again,
        )

    def _start_again(self, at: int, *, leaves: bool, again: bool) -> None:
        old = self.seats[at]
        if leaves:
            left = ops.unregister(old.boot)
            self.call(left, lambda told, _: told == "ok" and self._is_gone(old), again=again)
        new = Process(f"{at}-{self.boots + 1}", at, "", "", 2)
        told = self._ask(new, again=again)
        self.seats[at] = self.start_process(at, loads=True, version=told.version)
        assert self.seats[at].boot == new.boot

    def _is_gone(self, process: Process) -> bool:
        answers.unregister(self.model, process.boot, self.now_ms)
        return True

    def _comes_to_serve(self, process: Process) -> None:
        process.loads = False
        self.call(self.registration(process), lambda told, _: told == "ok", again=False)
        told = self._ask(process, again=False)
        process.own_lane = told.serve is Serve.OWN_LANE

    def _follow_share(self, after: Snapshot, *, speaker: Process | None = None) -> None:
        """A share begins with a worker that serves its trial; where one ends, or a version is named no more, what waits
        there for it goes on."""
        server, now = self.model.server, self.alias_in(after)
        version, _, permille = after.meta("trial").partition(":")
        share = (version, int(permille)) if version else None
        if share is not None:
            assert now is not None
            assert share == (now.trial, now.permille), f"{share} has a share, and {now.trial} is tried"
            assert share[0] not in now.refused
            if share[0] != (server.share or ("",))[0]:
                assert speaker is not None
                assert speaker.version == share[0], f"a share begins, and {speaker.version} is what is served"
                self.model.reached["share begun"] += 1
        elif server.share is not None:
            self.model.reached["share ended"] += 1
        server.share = share
        for job in self.model.queued():
            if self._is_stray(job, now) and after.row(job.id).lane != job.lane:
                self.model.reached["job moved back"] += 1
                job.lane = job.belongs(share)
                server.fairness.shares[job.band].unsettle(job.entry.tenant)

    def _is_stray(self, job: TrueJob, now: Switch | None) -> bool:
        """Whether it waits in a version's lane for a share alone."""
        return not job.version and job.lane not in ("any", "suspect") and now is not None


def _who(seat: int) -> str:
    return f"/host/{QUEUE}-{seat}"


def _lives(workers: Mapping[str, bytes], who: str, now_ms: int) -> bool:
    for boot, row in workers.items():
        if ":" not in boot:
            its, silent_ms = msgpack.unpackb(row), now_ms - int(workers.get(f"{boot}:seen", b"0"))
            if f"{its[15]}/{its[2]}/{its[4]}" == who:
                return silent_ms < (LOADING_MS if its[7] == "loading" else SERVING_MS)
    return False


def _named(alias: Switch | None) -> set[str]:
    return set() if alias is None else {alias.target, alias.trial}
