"""One run under load: producers and readers of a queue, workers that follow an alias, pushes and moves, and kills."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

from engines import Order
from evidence import Answer
from forge import Forge
from ledger import Ledger
from load import PRODUCERS, SETTLE_TIMEOUT_S, Load, LoadParameters, order_of
from load_plan import plan_acts
from load_town import LoadTown
from load_verdict import misplaced, unsaved
from machine import describe_machine
from models_record import Record, kill_rows
from models_run import Surveys, clear, outcomes_of, storage_of, versions_of
from pins import counts
from raid import Raid
from task_plan import PlannedTask, TaskKind, Trigger
from tasks import Tools
from town import MODEL, ChaosError, running_town
from verdict import judge
from weights import ANSWERS, write

from headpond import Client
from headpond.connections import RedisAddress
from headpond.wire import Rewound
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.names import PROD
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.supervision.embedded_seaweed import running_seaweed
from headpond_workers.supervision.embedded_valkey import running_valkey

CALM_TABLE = (
    '\n[models.{model}]\nengine = "scripted"\npath = "{path}"\nslots = 16\nlease_s = 30\ntokens_per_s = 100000\n'
)


def run_load(p: LoadParameters, folder: Path, *, progress: Callable[[str], None]) -> Record:
    """folder: for configuration, data and logs. Raises HeadpondError if the run could not be made."""
    machine = asdict(describe_machine())
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        valkey = stack.enter_context(running_valkey(folder / "server"))
        seaweed = stack.enter_context(running_seaweed(folder / "storage"))
        redis = RedisAddress(valkey.url, "scripts/chaos models")
        tools = Tools(S3Blobs(storage_of(seaweed)), folder / "tasks-cache", 1 << 30, p.grace_s, redis)
        # Forked before this process has a thread.
        forge = stack.enter_context(closing(Forge(tools.perform, log=folder / "processes.log")))
        ledger = Ledger(p.seed)
        raid = stack.enter_context(closing(Raid(seaweed, forge, ledger, folder / "tasks", progress)))
        (folder / "town").mkdir(mode=0o700)
        town = stack.enter_context(
            closing(
                LoadTown(
                    valkey, seaweed, folder / "town", workers=p.workers, rollover=p.rollover,
                    source=f"s3:{ANSWERS}@{PROD}",
                )
            )
        )  # fmt: skip
        town.start_persister()
        _begin(raid, town)
        aliases = Aliases(Registry(S3Blobs(storage_of(seaweed)), ANSWERS, writer="scripts/chaos models"))
        load = Load(raid, town, stack.enter_context(Client(valkey.url)), aliases, p)
        progress(f"seed {p.seed}: {p.workers} workers serve version 1, rollover {p.rollover}")
        load.rage(plan_acts(p.seed))
        seconds = raid.seconds
        progress(f"the load is over: {raid.told()}, {load.moves} moves")
        jobs, answered, queue = load.settle()
        ordered = load.ordered()
        # All who serve have drained, the persister last.
        entries = town.queue.journal_length()
        readings = [one for reader in load.readers for one in (*reader.readings, *reader.unfinished())]
        workers = town.evidence()
        surveys = Surveys(S3Blobs(storage_of(seaweed)), (ANSWERS,))
        surveys.take(raid, last=False)
        clear(raid, surveys, p.grace_s)
        last = surveys.take(raid, last=True)
    calm, strange = _calm_answers(folder / "calm", ledger, ordered, answered, progress=progress)
    wrong = [
        *raid.wrong, *ledger.wrong, *surveys.wrong, *strange, *misplaced(ordered, answered), *unsaved(entries),
        *map(str, judge(jobs, readings, queue, workers, calm)),
    ]  # fmt: skip
    progress(f"{len(wrong) or 'nothing'} wrong; {len(jobs)} jobs from {len(set(answered.values()))} versions")
    return Record(
        seed=p.seed,
        parameters={
            "kills": p.limit.kills, "seconds": p.limit.seconds, "grace_s": p.grace_s, "moves": p.moves,
            "workers": p.workers, "rollover": p.rollover, "producers": PRODUCERS,
        },
        started=started,
        seconds=round(seconds, 1),
        machine=machine,
        kills=kill_rows(raid.kills),
        outcomes=outcomes_of(raid),
        usual_s={kind.value: round(length, 3) for kind, length in raid.usual_s.items()},
        left=surveys.told(),
        surveys=surveys.rows,
        versions=versions_of(ledger, last),
        wrong=wrong,
        jobs={
            "submitted": len(jobs),
            "not_finished": sum(job.answer is None for job in jobs),
            "versions": len(set(answered.values())),
            "began_anew": sum(any(isinstance(event, Rewound) for event in job.events) for job in jobs),
            "most_leases": max((job.attempts for job in jobs), default=0),
            **counts(ordered, load.pinned_old),
            "moves": load.moves,
            "workers_started": town.started,
        },
    )  # fmt: skip


def _begin(raid: Raid, town: LoadTown) -> None:
    """The first version, named by the alias, and served. Raises ChaosError."""
    for kind in (TaskKind.PUSH, TaskKind.PROMOTE):
        told = raid.do(order_of(raid.ledger, PlannedTask(kind, ANSWERS, 1, (0.9, 0.0, 0.6), None, Trigger.TIME, 0.0)))
        if told is None or told["word"] != "done":
            raise ChaosError(f"The first {kind} did not succeed: {told}")
    town.all_serve("1")


def _calm_answers(
    folder: Path,
    ledger: Ledger,
    ordered: dict[str, Order],
    answered: dict[str, str],
    *,
    progress: Callable[[str], None],
) -> tuple[dict[str, Answer], list[str]]:
    """What each job's version alone answers, in a deployment in which nothing goes wrong; and what is strange about the
    versions themselves."""
    found: dict[str, Answer] = {}
    strange = []
    folder.mkdir(mode=0o700)
    for version, count in sorted(Counter(answered.values()).items()):
        push = ledger.acknowledged.get((ANSWERS, int(version))) if version.isdigit() else None
        if push is None:
            strange.append(f"{count} jobs were answered by version {version!r}, which nobody was told of")
            continue
        write(ledger.recipes[push], folder / f"files-{version}")
        table = CALM_TABLE.format(model=MODEL, path=folder / f"files-{version}")
        wanted = [ordered[job_id] for job_id, by in answered.items() if by == version]
        progress(f"{len(wanted)} jobs of version {version} once more, undisturbed")
        with running_town(folder / f"town-{version}", table, workers=1) as town, Client(town.valkey.url) as client:
            jobs = [
                client.submit(MODEL, o.prompt, id=o.id, max_tokens=o.max_tokens, temperature=o.temperature)
                for o in wanted
            ]
            for job in jobs:
                result = job.result(timeout=SETTLE_TIMEOUT_S)
                found[job.id] = Answer(result.token_ids, result.text)
    return found, strange
