"""The file of one run with storage: what was killed and cut off, what was compared, lost and restored. JSON.

schema, v         "headpond/chaos-state", 1
seed, parameters  the same seed gives the same jobs and the same plan of blows
started, seconds  UTC, and how long the storm went on
machine           commit, versions and machine, as in the files of benchmarks
blows             each: at_s, kind, target (which of its kind), lasts_s, hit (running jobs, or entries of the journal;
                  for a restore 1 if it was putting jobs in), counted
outages           of storage, each: at_s, kind, lasts_s, ended (jobs, meanwhile), held_up (the Valkey was started anew
                  meanwhile, and waited for storage)
comparisons       amid quiet, each: at_s, jobs, not_ended, with_tokens (of these), seq (of the newest segment), snapshot
                  (seq of the newest one)
losses            of Redis, each: at_s, jobs (in it), not_ended, running, tail (entries that storage did not have),
                  interval_ms (from the time that is stated to the loss), lost (acknowledged jobs that are gone),
                  durable (results compared), readers (amid a job), kills (of the restore), took_s
jobs              acknowledged, stored (that waited for storage), remade (that came back once or more), lost, tokens,
                  most_leases, unknown (submits of which it was not known in time whether storage had them), compared
                  (with an undisturbed run), turns (of sessions)
readings          readings, chunks, tokens, restarted chunks, resumed (tries to go on after a loss)
processes         started
wrong             what was found; empty if nothing
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evidence import Answer, JobEvidence
from record_file import RecordFile
from state_customers import Producer
from state_plan import KILLS, Blown

BLOW_FIELDS = ("at_s", "kind", "target", "lasts_s", "hit", "counted")
OUTAGE_FIELDS = ("at_s", "kind", "lasts_s", "ended", "held_up")
COMPARISON_FIELDS = ("at_s", "jobs", "not_ended", "with_tokens", "seq", "snapshot")
LOSS_FIELDS = (
    "at_s", "jobs", "not_ended", "running", "tail", "interval_ms", "lost", "durable", "readers", "kills", "took_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Record:
    """See the module. Rows are in the order of the *_FIELDS."""

    seed: int
    parameters: dict[str, Any]
    started: str
    seconds: float
    machine: dict[str, Any]
    blows: list[list[Any]]
    outages: list[list[Any]]
    comparisons: list[list[Any]]
    losses: list[list[Any]]
    jobs: dict[str, int]
    readings: dict[str, int]
    processes: int
    wrong: list[str]

    def counted(self) -> Counter[str]:
        """Counted blows by kind."""
        kind, counted = BLOW_FIELDS.index("kind"), BLOW_FIELDS.index("counted")
        return Counter(row[kind] for row in self.blows if row[counted])

    @property
    def kills(self) -> int:
        """Counted ones."""
        counted = self.counted()
        return sum(counted[kind] for kind in KILLS)

    def loss_column(self, name: str) -> list[Any]:
        return [row[LOSS_FIELDS.index(name)] for row in self.losses]


def blow_rows(blows: Sequence[Blown]) -> list[list[Any]]:
    return [[round(b.at_s, 2), b.kind.value, b.target, round(b.lasts_s, 2), b.hit, b.counted] for b in blows]


def job_counts(
    jobs: Sequence[JobEvidence], producers: Sequence[Producer], calm: Mapping[str, Answer]
) -> dict[str, int]:
    return {
        "acknowledged": len(jobs),
        "stored": sum(one.stored for producer in producers for one in producer.acknowledged.values()),
        "remade": sum(job.remade for job in jobs),
        "lost": sum(len(producer.lost) for producer in producers),
        "tokens": sum(len(job.answer.ids) for job in jobs if job.answer is not None),
        "most_leases": max((job.attempts for job in jobs), default=0),
        "unknown": sum(producer.unknown for producer in producers),
        "compared": len(calm),
    }


FILE = RecordFile(
    "headpond/chaos-state",
    Record,
    rows={
        "blows": BLOW_FIELDS,
        "outages": OUTAGE_FIELDS,
        "comparisons": COMPARISON_FIELDS,
        "losses": LOSS_FIELDS,
    },
    pattern="state*.json",
)
