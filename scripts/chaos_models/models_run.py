"""One run with versions of models, from its first process to its verdict."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from forge import Forge
from found import Survey
from judgement import History, judge
from ledger import Ledger
from machine import describe_machine
from models_record import Record, kill_rows
from raid import Raid
from storm import Limit
from survey import take_survey
from task_plan import PlannedTask, TaskKind, Trigger, plan_tasks
from tasks import Tools
from town import ChaosError
from weights import MODELS

from headpond_workers.checkpoints.version_document import VersionState
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed

CACHE_BYTES = 24 << 20
"""Of the cache that all share: less than the versions that are live, so that some have to leave it."""
OPENING = (
    TaskKind.PUSH, TaskKind.PUSH, TaskKind.PROMOTE, TaskKind.PUSH, TaskKind.HOLD, TaskKind.VERIFY, TaskKind.PULL,
    TaskKind.PUSH, TaskKind.PROMOTE, TaskKind.DELETE, TaskKind.COLLECT,
)  # fmt: skip
CLEARINGS = 8
"""So often the collector goes round at the end; three times are enough."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """grace_s: of the collector. survey_kills: so many counted kills lie between two surveys."""

    seed: int
    limit: Limit
    grace_s: float
    survey_kills: int


@dataclass(slots=True)
class Surveys:
    """All of a run. left: see the record."""

    blobs: S3Blobs
    models: tuple[str, ...] = MODELS
    history: History = field(default_factory=dict)
    rows: list[list[float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    _met: set[tuple[str, str]] = field(default_factory=set)

    def look(self) -> Survey:
        """What is there, without a judgement."""
        return take_survey(self.blobs, self.models)

    def take(self, raid: Raid, *, last: bool) -> Survey:
        """Survey storage while nothing runs, and judge what is there. Something that is wrong is told once."""
        survey = self.look()
        for what in judge(survey, raid.ledger.promised(), self.history, last=last):
            if what not in self.wrong:
                self.wrong.append(what)
        complete = [version for version in survey.versions if version.state == VersionState.COMPLETE]
        moves = sum(map(len, self.history.values()))
        self.rows.append(
            [round(raid.seconds, 1), len(survey.versions), len(complete), len(survey.aliases), moves,
             len(survey.stored), survey.bytes_read]
        )  # fmt: skip
        if not last:
            self._note_left(survey)
        return survey

    def told(self) -> dict[str, int]:
        """What was left, by kind."""
        return {name: self.left[name] for name in ("intents", "pending", "deleting", "orphans")}

    def _note_left(self, survey: Survey) -> None:
        """Each thing that a killed process left is counted when it is met first."""
        met = {("intents", txn) for txn in survey.intents}
        met |= {
            (version.state, version.name)
            for version in survey.versions
            if version.state in (VersionState.PENDING, VersionState.DELETING)
        }
        met |= {("orphans", key) for key in survey.stored - survey.reachable}
        self.left.update(kind for kind, _ in met - self._met)
        self._met |= met


def run(parameters: Parameters, folder: Path, *, progress: Callable[[str], None]) -> Record:
    """folder: for data and logs. Raises HeadpondError if the run could not be made."""
    p = parameters
    machine = asdict(describe_machine())
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with running_seaweed(folder / "storage") as seaweed:
        # The forge is forked before this process contacts storage, and its processes contact it each for itself.
        tools = Tools(S3Blobs(storage_of(seaweed)), folder / "cache", CACHE_BYTES, p.grace_s)
        ledger = Ledger(p.seed)
        with closing(Forge(tools.perform, log=folder / "processes.log")) as forge:
            raid = Raid(seaweed, forge, ledger, folder / "tasks", progress)
            with closing(raid):
                surveys = Surveys(S3Blobs(storage_of(seaweed)))
                progress(f"seed {p.seed}: storage is ready, grace {p.grace_s:g} s")
                _open(raid)
                _rage(raid, surveys, plan_tasks(p.seed), p)
                seconds = raid.seconds
                progress(f"the raid is over: {raid.told()}")
                clear(raid, surveys, p.grace_s)
                _use_all(raid)
                last = surveys.take(raid, last=True)
    wrong = [*raid.wrong, *ledger.wrong, *surveys.wrong]
    versions = versions_of(ledger, last)
    progress(
        f"{len(wrong) or 'nothing'} wrong; {versions['acknowledged']} versions acknowledged, {versions['lost']} lost"
    )
    return Record(
        seed=p.seed,
        parameters={
            "kills": p.limit.kills, "seconds": p.limit.seconds, "grace_s": p.grace_s, "survey_kills": p.survey_kills,
        },
        started=started,
        seconds=round(seconds, 1),
        machine=machine,
        kills=kill_rows(raid.kills),
        outcomes=outcomes_of(raid),
        usual_s={kind.value: round(length, 3) for kind, length in raid.usual_s.items()},
        left=surveys.told(),
        surveys=surveys.rows,
        versions=versions,
        wrong=wrong,
    )  # fmt: skip


def _open(raid: Raid) -> None:
    """Some versions of each model, named by aliases, before anything is killed: how long a task takes is seen, too.

    Raises ChaosError.
    """
    opening = [(model, kind) for kind in OPENING for model in MODELS]
    for number, (model, kind) in enumerate(opening):
        task = PlannedTask(kind, model, 1, (0.9, number / len(opening), 0.6), None, Trigger.TIME, 0.0)
        told = raid.do(raid.ledger.order(task))
        if told is None or told["word"] != "done":
            raise ChaosError(f"Before anything was killed, {kind} of {model} did not succeed: {told}")


def _rage(raid: Raid, surveys: Surveys, plan: Iterator[PlannedTask], p: Parameters) -> None:
    """In parts, with a survey after each."""
    while not p.limit.reached(raid.counted, raid.seconds):
        kills = raid.counted + p.survey_kills
        if p.limit.kills is not None:
            kills = min(kills, p.limit.kills)
        raid.rage(plan, replace(p.limit, kills=kills))
        surveys.take(raid, last=False)
        raid.progress(raid.told())


def clear(raid: Raid, surveys: Surveys, grace_s: float) -> None:
    """As an operator would after crashes: end the deletions that were cut off, and let the collector go round until
    there is nothing for it to do."""
    number = 0
    for version in surveys.look().versions:
        if version.state == VersionState.DELETING:
            number += 1
            raid.do(
                {
                    "id": f"end-{number}",
                    "kind": "delete",
                    "model": version.model,
                    "number": version.number,
                    "force": False,
                }
            )
    for _ in range(CLEARINGS):
        time.sleep(grace_s)
        number += 1
        raid.do({"id": f"end-{number}", "kind": "collect", "model": ""})
        survey = surveys.look()
        if not survey.rounds and not survey.intents and survey.stored == survey.reachable:
            return


def _use_all(raid: Raid) -> None:
    """Each version that is there is verified, pulled into the cache and given to what would load it."""
    for model, number in sorted(raid.ledger.acknowledged):
        if not raid.ledger.is_live(model, number):
            continue
        for kind in (TaskKind.VERIFY, TaskKind.HOLD):
            order = {"id": f"last-{kind}-{model}-{number}", "kind": kind.value, "model": model, "number": number}
            told = raid.do(order)
            if told is None or told["word"] != "done":
                raid.wrong.append(f"{model}@{number}: at the end, {kind} did not succeed: {told}")


def versions_of(ledger: Ledger, last: Survey) -> dict[str, int]:
    """What became of the versions, by the last survey."""
    complete = {(version.model, version.number) for version in last.versions if version.state == VersionState.COMPLETE}
    live = {(model, number) for model, number in ledger.acknowledged if ledger.is_live(model, number)}
    return {
        "acknowledged": len(ledger.acknowledged),
        "complete": len(complete),
        "deleted": len(ledger.deleted),
        "unheard": len(complete - ledger.acknowledged.keys()),
        "lost": len(live - complete),
    }


def outcomes_of(raid: Raid) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (kind, ended), count in sorted(raid.outcomes.items()):
        found.setdefault(kind.value, {})[ended] = count
    return found


def storage_of(seaweed: SeaweedProcess) -> StorageAddress:
    return StorageAddress(
        seaweed.url, seaweed.bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, "scripts/chaos models"
    )
