"""Batch jobs that make room for urgent ones (Q12): chance alone brings a full worker and a long batch job seldom."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from headpond.jobs import Priority
from queue_machine.calls import NAMES, SEATS, seldom
from queue_machine.producers import Producers, entry
from queue_machine.writers import Writers


class Preemption(Producers, Writers):
    @seldom("urgent", 20)
    @rule(at=st.integers(0, len(SEATS) - 1), size=st.sampled_from((20, 58, 59, 60, 90)), again=st.booleans())
    def an_urgent_job_comes_while_a_worker_is_full_of_batch_jobs(self, at: int, size: int, again: bool) -> None:
        """size: tokens of the batch jobs by then."""
        self.step("urgent")
        process = self.seats[at]
        free = [job_id for job_id in NAMES if job_id not in self.model.jobs]
        batch = [entry(job_id, Priority.BATCH, "", 7) for job_id in free[: process.free]]
        if batch:
            self.submit(batch, 0, again=again)
            self.claim(process, [], process.free, fate="read")
        if process.held:
            self.append_of(process, size, "next", again=again)
        urgent = [entry(job_id, Priority.INTERACTIVE, "", 7) for job_id in free[len(batch) : len(batch) + 1]]
        if urgent:
            self.submit(urgent, 0, again=again)
        if process.held:
            self.append_of(process, 1, "next", again=again)
            self.renew_of(process, 99, again=again)
