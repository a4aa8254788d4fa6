"""The file of one run with versions of models: what was killed when, what was acknowledged, what was found. JSON.

schema, v         "headpond/chaos-models", 1
seed, parameters  the same seed gives the same plan; kills, seconds, grace_s, survey_kills, mode
started, seconds  UTC, and how long tasks were begun
machine           commit, versions and machine, as in the files of benchmarks
kills             each: at_s, kind, model, moment (part of the usual length after which it was planned), after_s (since
                  it had begun), hit (processes whose work was under way; 0 does not count; of the persister: 1 if
                  changes waited for it), change (the last that it had made in storage)
outcomes          by kind of task, then by how it ended: killed, done, refused, unavailable
usual_s           how long each kind of task took at the end
left              what killed processes had left in storage, as surveys met it: intents, pending, deleting, orphans
surveys           each: at_s, versions, complete, aliases, moves, objects, bytes_read
versions          acknowledged, complete (at the end), deleted, unheard (complete, and whose push was killed before it
                  could say so), lost
jobs              only with workers: submitted, not_finished, versions (how many answered), began_anew (jobs that
                  another version took over from the start), most_leases, moves, workers_started; and, since they are
                  part of a run, pinned (jobs that were submitted for one version, which each of them got), pinned_old
                  (of these, for a version that the alias no longer named), pinned_versions (how many that were)
wrong             what was found; empty if nothing
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raid import Kill
from record_file import RecordFile

KILL_FIELDS = ("at_s", "kind", "model", "moment", "after_s", "hit", "change")
SURVEY_FIELDS = ("at_s", "versions", "complete", "aliases", "moves", "objects", "bytes_read")


@dataclass(frozen=True, slots=True)
class Record:
    """See the module. kills and surveys are rows, in the order of KILL_FIELDS and SURVEY_FIELDS."""

    seed: int
    parameters: dict[str, Any]
    started: str
    seconds: float
    machine: dict[str, Any]
    kills: list[list[Any]]
    outcomes: dict[str, dict[str, int]]
    usual_s: dict[str, float]
    left: dict[str, int]
    surveys: list[list[Any]]
    versions: dict[str, int]
    wrong: list[str]
    jobs: dict[str, int] = field(default_factory=dict)

    def counted(self) -> Counter[str]:
        """Counted kills by kind of process."""
        kind, hit = KILL_FIELDS.index("kind"), KILL_FIELDS.index("hit")
        return Counter(row[kind] for row in self.kills if row[hit])

    def changes(self, kind: str) -> Counter[str]:
        """Counted kills of a kind of process, by the last change that it had made in storage."""
        at = {name: KILL_FIELDS.index(name) for name in ("kind", "hit", "change")}
        return Counter(row[at["change"]] for row in self.kills if row[at["kind"]] == kind and row[at["hit"]])


def kill_rows(kills: Sequence[Kill]) -> list[list[Any]]:
    return [
        [
            round(kill.at_s, 2),
            kill.kind.value,
            kill.model,
            round(kill.moment, 3),
            round(kill.after_s, 4),
            kill.hit,
            kill.change,
        ]
        for kill in kills
    ]


FILE = RecordFile(
    "headpond/chaos-models", Record, rows={"kills": KILL_FIELDS, "surveys": SURVEY_FIELDS}, pattern="models*.json"
)
