"""The file of one run: what was done to whom, what became of each job, and on what it ran. JSON.

schema, v         "headpond/chaos", 1
engine, seed      what was run; the same seed gives the same jobs and the same plan of faults
parameters        workers, slots, jobs (kept waiting or running), lease_s, interval_s, tokens_per_s, kinds
started, seconds  UTC, and how long the faults went on
machine           commit, versions and machine, as in the files of benchmarks
spared            how often a worker was passed over, whose job had two strikes and no progress since
faults            each: at_s, kind, worker (null: the server), cut, lasts_s, jobs that ran there, fresh (of
                  these: with fewer tokens under this lease than clear a strike), counted
jobs              each: id, attempts, strikes (the most that were seen), tokens, ok
readings          readings, chunks, tokens, restarted chunks
undisturbed       how many jobs were compared with an undisturbed run
workers_started   processes
wrong             what was found; empty if nothing
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evidence import JobEvidence, Reading
from faults import Fault
from record_file import RecordFile
from verdict import Wrong

FAULT_FIELDS = ("at_s", "kind", "worker", "cut", "lasts_s", "jobs", "fresh", "counted")
JOB_FIELDS = ("id", "attempts", "strikes", "tokens", "ok")


@dataclass(frozen=True, slots=True)
class Record:
    """See the module. faults and jobs are rows, in the order of FAULT_FIELDS and JOB_FIELDS."""

    engine: str
    seed: int
    parameters: dict[str, Any]
    started: str
    seconds: float
    machine: dict[str, Any]
    spared: int
    faults: list[list[Any]]
    jobs: list[list[Any]]
    readings: dict[str, int]
    undisturbed: int
    workers_started: int
    wrong: list[str]

    def counted(self) -> Counter[str]:
        """Counted faults by kind."""
        kind, counted = FAULT_FIELDS.index("kind"), FAULT_FIELDS.index("counted")
        return Counter(row[kind] for row in self.faults if row[counted])

    def column(self, name: str) -> list[Any]:
        """Of the jobs."""
        return [row[JOB_FIELDS.index(name)] for row in self.jobs]


def fault_rows(faults: Sequence[Fault]) -> list[list[Any]]:
    return [
        [round(f.at_s, 2), f.kind.value, f.target, f.cut.value if f.cut else None, round(f.lasts_s, 2),
         f.hit.jobs, f.hit.fresh, f.counted]
        for f in faults
    ]  # fmt: skip


def job_rows(jobs: Sequence[JobEvidence], strikes: Mapping[str, int], wrong: Sequence[Wrong]) -> list[list[Any]]:
    """strikes: the most that each job was seen to have, by id."""
    bad = {found.id for found in wrong}
    return [
        [job.id, job.attempts, max(job.strikes, strikes.get(job.id, 0)), len(job.answer.ids) if job.answer else 0,
         job.id not in bad]
        for job in jobs
    ]  # fmt: skip


def reading_counts(readings: Sequence[Reading]) -> dict[str, int]:
    chunks = [chunk for reading in readings for chunk in reading.chunks]
    return {
        "readings": len(readings),
        "chunks": len(chunks),
        "tokens": sum(len(chunk.token_ids) for chunk in chunks),
        "restarted": sum(chunk.restarted for chunk in chunks),
    }


FILE = RecordFile("headpond/chaos", Record, rows={"faults": FAULT_FIELDS, "jobs": JOB_FIELDS}, pattern="chaos*.json")
