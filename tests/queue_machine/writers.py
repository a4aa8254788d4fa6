"""What worker processes may do next, those included that should be dead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from headpond import operations as ops
from headpond.jobs import JobState
from headpond.keys import queue_keys
from headpond.operations import Append, Claimed, LeaseStatus, Outcome, Settle, Settlement
from headpond.wire import TokenRun, pack
from queue_machine import answers, claims
from queue_machine.calls import SEATS, Calls, seldom
from queue_machine.model import QUEUE
from queue_machine.sessions import TrueSession, turn_words
from queue_machine.snapshot import Snapshot
from queue_machine.workers import Process, Writing

seat = st.integers(0, len(SEATS) - 1)
which = st.integers(0, 3)
lost = st.booleans()
somebody_works = precondition(lambda self: any(process.held for process in self.seats))
SIZES = (1, 1, 2, 5, 9, 40, 70)


def appending(batch: list[Append], full_version: str = "") -> ops.Operation[list[Outcome]]:
    """An append. The offset that goes with FENCED means nothing, and depends on what else is in the batch."""
    operation = ops.append(batch, full_version=full_version)

    def parse(reply: Any) -> list[Outcome]:
        told = operation.parse(reply)
        return [Outcome(each.status, 0) if each.status is LeaseStatus.FENCED else each for each in told]

    return replace(operation, parse=parse)


class Writers(Calls):
    def worker(self, at: int) -> Process:
        """The process of that seat, or the next that holds leases."""
        return next(process for process in self.seats[at:] + self.seats[:at] if process.held)

    def claim(self, process: Process, settlements: list[Settlement], slots: int, *, fate: str) -> None:
        """fate: what becomes of the reply: 'read', 'again' (lost, and the same is asked at once) or 'lost' (the process
        asks again when it moves next)."""
        seq = process.seq + 1
        before = self.now

        def asked() -> ops.Operation[Claimed]:
            # A client makes a new nonce for each call, also for a repeated one.
            return ops.claim(
                process.boot, seq=seq, nonce=f"n{self.model.new_serial()}", slots=slots, version=process.version,
                fingerprint=process.fingerprint, host="host", own_lane=process.own_lane, settle=settlements,
            )  # fmt: skip

        def expect(told: Claimed, after: Snapshot) -> bool:
            claims.claim(
                self.model, process, told, seq=seq, slots=slots, settlements=settlements, now_ms=self.now_ms,
                before=before, after=after,
            )  # fmt: skip
            return True

        def repeated(told: Claimed) -> Claimed:
            # What the first one gave it has ended no wait of the second.
            only_settles = slots == 0 or not self.model.server.open
            return told if only_settles else replace(told, next_due_s=claims.next_due_s(self.now, self.now_ms, told))

        told = self.call(asked(), expect, again=fate == "again", other=asked(), repeated=repeated)
        received = [self._received(lease, seq) for lease in told.leases]
        self.model.handed_out.extend(received)
        if fate == "lost":
            process.unanswered = slots > 0
            return
        if slots:
            process.seq, process.unanswered = seq, False
        over = {(s.id, s.fence) for s in settlements}
        process.held = [writing for writing in process.held if writing.pair not in over] + received

    def _received(self, lease: ops.Lease, seq: int) -> Writing:
        tokens = self.model.jobs[lease.id].tokens[: lease.offset]
        return Writing(lease.id, lease.fence, seq, self.model.new_serial(), list(tokens), lease.offset)

    @rule(at=seat, fate=st.sampled_from(("read", "read", "again", "again", "lost")))
    def claim_jobs(self, at: int, fate: str) -> None:
        self.step()
        process = self.seats[at]
        self.claim(process, [], max(1, process.free), fate=fate)

    @rule(settling=st.booleans(), again=lost)
    def all_claim(self, settling: bool, again: bool) -> None:
        """Every process that has room, one after the other. settling: each first ends a job that it holds."""
        self.step()
        for process in self.seats:
            over = [Settlement(*w.pair, Settle.PREEMPTED, w.sent, "over") for w in process.held[:1] if settling]
            if process.free or over:
                self.claim(process, over, process.free + len(over), fate="again" if again else "read")

    @somebody_works
    @rule(size=st.sampled_from(SIZES), again=lost)
    def all_write(self, size: int, again: bool) -> None:
        """An engine step or more of every process, and a renewal."""
        self.step()
        self.move_clock(400)
        for process in self.seats:
            if process.held:
                self.append_of(process, size, "next", again=again)
                self.renew_of(process, 99, again=again)

    @somebody_works
    @rule(at=seat, n=which, size=st.sampled_from(SIZES), again=lost)
    def write_and_finish(self, at: int, n: int, size: int, again: bool) -> None:
        self.step()
        process = self.worker(at)
        self.append_of(process, size, "next", again=again)
        if process.held:
            writing = process.held[n % len(process.held)]
            self._finish(writing, writing.sent, JobState.FINISHED, again=again)
            process.held.remove(writing)

    @precondition(lambda self: any(self._wakes(process) for process in self.seats))
    @rule(at=seat)
    def take_a_wake_token(self, at: int) -> None:
        """An idle consumer is woken. It claims when it moves next, unless it dies first."""
        self.step()
        lane = next(lane for process in self.seats[at:] + self.seats[:at] if (lane := self._wakes(process)))
        client: Any = self.world.server.redis
        assert client.lpop(queue_keys(QUEUE).wake(lane)) == b"1"
        self.model.server.owed.add(lane)
        self.check(self.world.look(self.model.seen()))

    def _wakes(self, process: Process) -> str | None:
        """The lane whose token this process would take, were it idle."""
        if process.unanswered or not process.free:
            return None
        return next((lane for lane in process.lanes if self.now.has_token(lane)), None)

    @somebody_works
    @rule(
        at=seat, n=which, what=st.sampled_from(tuple(Settle)), claim=st.booleans(),
        fate=st.sampled_from(("read", "again", "lost")),
    )  # fmt: skip
    def settle_and_claim(self, at: int, n: int, what: Settle, claim: bool, fate: str) -> None:
        self.step()
        process = self.worker(at)
        writing = process.held[n % len(process.held)]
        settlement = Settlement(writing.id, writing.fence, what, writing.sent, "over")
        self.claim(process, [settlement], process.free + 1 if claim else 0, fate=fate)

    @somebody_works
    @rule(
        at=seat, whats=st.tuples(*3 * [st.sampled_from(tuple(Settle))]), twice=st.booleans(), claim=st.booleans(),
        fate=st.sampled_from(("read", "again", "lost")),
    )  # fmt: skip
    def settle_all(self, at: int, whats: tuple[Settle, ...], twice: bool, claim: bool, fate: str) -> None:
        """All that a process holds is over at once. twice: it names the first lease twice."""
        self.step()
        process = self.worker(at)
        over = [Settlement(*w.pair, what, w.sent, "over") for w, what in zip(process.newest, whats, strict=False)]
        named = [*over, over[0]] if twice else over
        self.claim(process, named, process.free + len(over) if claim else 0, fate=fate)

    @precondition(lambda self: self._notices())
    @rule(again=lost)
    def a_notice_is_heard(self, again: bool) -> None:
        """Its worker, if it lives, renews at once."""
        self.step()
        boot = min(self._notices())
        client: Any = self.world.server.redis
        assert client.lpop(f"{queue_keys(QUEUE).prefix}notice:{boot}") == b"1"
        self.model.server.noticed.discard(boot)
        self.check(self.world.look(self.model.seen()))
        for process in self.seats:
            if process.boot == boot:
                self.renew_of(process, 99, again=again)

    def _notices(self) -> list[str]:
        return [name.removeprefix("notice:") for name in self.now.lists if name.startswith("notice:")]

    @somebody_works
    @rule(
        at=seat, size=st.sampled_from(SIZES), shape=st.sampled_from(("next", "next", "gap", "overlap", "there")),
        again=lost,
    )  # fmt: skip
    def append(self, at: int, size: int, shape: str, again: bool) -> None:
        """One engine step of a process: tokens of all its jobs."""
        self.step()
        self.append_of(self.worker(at), size, shape, again=again)

    @somebody_works
    @rule(at=seat, again=lost)
    def make_a_token(self, at: int, again: bool) -> None:
        self.step()
        self.append_of(self.worker(at), 1, "next", again=again)

    def append_of(self, process: Process, size: int, shape: str, *, again: bool) -> None:
        batch = [self.tokens_of(writing, size, shape if n == 0 else "next") for n, writing in enumerate(process.held)]
        version = self._full_version(process)
        told: list[Outcome] = self.call(
            appending(batch, version),
            lambda told, after: told == answers.append(self.model, batch, version, told, after),
            again=again,
        )
        for writing, outcome in zip(list(process.held), told, strict=True):
            if outcome.status.over:
                process.held.remove(writing)
            else:
                writing.sent = outcome.offset

    def tokens_of(self, writing: Writing, size: int, shape: str) -> Append:
        start = {"next": writing.sent, "gap": writing.sent + 2}.get(shape, max(0, writing.sent - 3))
        end = max(start + 1, writing.sent) if shape == "there" else start + size
        writing.decode_until(end)
        ids = tuple(writing.tokens[start:end])
        return Append(writing.id, writing.fence, TokenRun(start, ids, (" t",) * len(ids)))

    def _full_version(self, process: Process) -> str:
        if process.free:
            return ""
        return ops.OWN_LANE + process.version if process.own_lane else process.version

    @somebody_works
    @rule(at=seat, n=which, state=st.sampled_from((JobState.FINISHED, JobState.FINISHED, JobState.FAILED)), ahead=which,
          head=which, again=lost)  # fmt: skip
    def finish(self, at: int, n: int, state: JobState, ahead: int, head: int, again: bool) -> None:
        """ahead: 3 for a worker that has tokens which it has not sent. head: 3 for one that saw another head of the
        session than it has."""
        self.step()
        process = self.worker(at)
        writing = process.held[n % len(process.held)]
        offset = writing.sent + (ahead == 3)
        writing.decode_until(offset)
        told = self._finish(writing, offset, state, stale=head == 3, again=again)
        if told.status is LeaseStatus.GAP:
            writing.sent = told.offset
        else:
            process.held.remove(writing)

    def _finish(self, writing: Writing, offset: int, state: JobState, *, again: bool, stale: bool = False) -> Outcome:
        result, name = pack(writing.tokens[:offset]), self._session_of(writing)
        turn = state is JobState.FINISHED and name != ""
        session = self.model.server.sessions.get(name, TrueSession())
        words = turn_words(session, writing.fence, stale=stale) if turn else ()

        def expect(told: Outcome, _: Snapshot) -> bool:
            status = answers.finish(
                self.model, writing.id, writing.fence, offset, state, result, self.now_ms, turn=turn, stale=stale
            )
            job = self.model.jobs.get(writing.id)
            return told == Outcome(status, job.offset if job else 0)

        return self.call(
            ops.finish(writing.id, writing.fence, offset=offset, state=state, result=result, turn=words),
            expect,
            again=again,
        )

    def _session_of(self, writing: Writing) -> str:
        job = self.model.jobs.get(writing.id)
        return job.entry.session if job else ""

    @somebody_works
    @rule(at=seat, n=which, strike=st.booleans(), again=lost)
    def park(self, at: int, n: int, strike: bool, again: bool) -> None:
        self.step()
        process = self.worker(at)
        # 3: all of them, as at the end of a drain.
        parked = process.newest if n == 3 else [process.held[n % len(process.held)]]
        pairs = [writing.pair for writing in parked]
        self.call(
            ops.park(pairs, strike=strike),
            lambda told, _: told == [answers.park(self.model, *pair, self.now_ms, fault=strike) for pair in pairs],
            again=again,
        )
        process.held = [writing for writing in process.held if writing not in parked]

    @rule(at=seat, left_out=st.integers(0, 7), again=lost)
    def renew(self, at: int, left_out: int, again: bool) -> None:
        """left_out: which lease does not move, and so is not named; most often none."""
        self.step()
        self.renew_of(self.seats[at], left_out, again=again)

    def renew_of(self, process: Process, left_out: int, *, again: bool) -> None:
        process.loads = False
        named = [writing for n, writing in enumerate(process.held) if n != left_out]
        pairs = [writing.pair for writing in named]
        version, before = self._full_version(process), self.now
        told: list[LeaseStatus] = self.call(
            ops.renew(process.boot, last_seq=process.seq, row=self.row(process), pairs=pairs, full_version=version),
            lambda told, after: (
                told
                == answers.renew(
                    self.model,
                    process.boot,
                    last_seq=process.seq,
                    pairs=pairs,
                    full_version=version,
                    told=told,
                    now_ms=self.now_ms,
                    before=before,
                    after=after,
                )
            ),
            again=again,
        )
        process.held = [writing for writing, status in zip(named, told, strict=True) if not status.over]

    @seldom("silence", 10)
    @rule(silent=seat, again=lost)
    def all_but_one_renew(self, silent: int, again: bool) -> None:
        """A little more than a lease passes; one process says nothing in it, and loses what it holds."""
        self.step("silence")
        for _ in range(3):
            self.move_clock(3_500)
            for process in self.seats:
                if process.seat != silent:
                    self.renew_of(process, 99, again=again)

    @seldom("replace", 10)
    @rule(at=seat, told=st.sampled_from(["nothing", "nothing", "left", "killed"]), loads=st.integers(0, 3), again=lost)
    def replace_a_process(self, at: int, told: str, loads: int, again: bool) -> None:
        """It leaves as after a drain, or is killed, and somebody may know; another one comes in its place."""
        self.step("replace")
        process = self.seats[at]
        if told != "nothing":
            killed = told == "killed"
            self.call(
                ops.unregister(process.boot, killed=killed),
                lambda said, _: said == "ok" and self._gone(process, killed=killed),
                again=again,
            )
        self.seats[at] = self.start_process(at, loads=loads == 3)

    def _gone(self, process: Process, *, killed: bool) -> bool:
        answers.unregister(self.model, process.boot, self.now_ms, killed=killed)
        return True
