"""What processes do that should be dead: they write with leases that are over (Q3)."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from headpond import operations as ops
from headpond.jobs import JobState
from headpond.operations import Settle, Settlement
from headpond.wire import pack
from queue_machine import answers, claims
from queue_machine.workers import Writing
from queue_machine.writers import SIZES, Writers, appending


class Zombies(Writers):
    @precondition(lambda self: any(not self._in_force(writing) for writing in self.model.handed_out))
    @rule(
        n=st.integers(0, 39), how=st.sampled_from(("append", "finish", "park", "settle")), size=st.sampled_from(SIZES)
    )
    def a_zombie_writes(self, n: int, how: str, size: int) -> None:
        """Whoever holds a lease that is over is refused, and changes nothing (Q3)."""
        self.step()
        over = [writing for writing in self.model.handed_out if not self._in_force(writing)]
        writing = over[n % len(over)]
        job = self.model.jobs.get(writing.id)
        offset = job.offset if job else 0
        if how == "append":
            batch = [self.tokens_of(Writing(*writing.pair, 0, writing.mark, [0] * offset, offset), size, "next")]
            self.changes_nothing(
                appending(batch),
                lambda told: told == answers.append(self.model, batch, "", told, self.now) and told[0].status.over,
            )
        elif how == "finish":
            done = ops.finish(*writing.pair, offset=offset, state=JobState.FINISHED, result=pack([0] * offset))
            self.changes_nothing(
                done,
                lambda told: (
                    told.status
                    == answers.finish(self.model, *writing.pair, offset, JobState.FINISHED, b"\x90", self.now_ms)
                ),
            )
        elif how == "park":
            self.changes_nothing(
                ops.park([writing.pair], strike=True),
                lambda told: told == [answers.park(self.model, *writing.pair, self.now_ms, fault=True)],
            )
        else:
            settlement = Settlement(*writing.pair, Settle.FAULTY, offset, "late")
            self.changes_nothing(
                ops.claim("a zombie", seq=1, nonce="", slots=0, settle=[settlement]),
                lambda told: list(told.settled) == claims.settle(self.model, [settlement], self.now_ms),
            )

    def _in_force(self, writing: Writing) -> bool:
        job = self.model.jobs.get(writing.id)
        return job is not None and job.refusal(writing.fence) is None
