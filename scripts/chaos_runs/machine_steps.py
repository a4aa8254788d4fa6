"""Runs of the state machine of the queue's scripts (tests/queue_machine), as docs/reliability.md tells of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from headpond.errors import MalformedDocument

SCHEMA = "headpond/queue-machine"
FILE = "queue-machine.json"


@dataclass(frozen=True, slots=True)
class MachineRun:
    """One seed. steps, calls: of the machine, and of scripts. restarts: SIGKILLs of the server, and put-back data.
    failed: it found something wrong."""

    seed: int
    commit: str
    steps: int
    calls: int
    restarts: int
    failed: bool


def load_machine_runs(folder: Path) -> list[MachineRun]:
    """By seed; none if there is no record. Raises MalformedDocument."""
    path = folder / FILE
    if not path.exists():
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA or document["v"] != 1:
            raise MalformedDocument(SCHEMA, f"{path.name} has another schema or version")
        return sorted(
            (
                MachineRun(
                    int(run["seed"]), str(run["commit"]), int(run.get("steps", 0)), int(run.get("calls", 0)),
                    int(run.get("fail_overs", 0)) + int(run.get("real_restarts", 0)), "failed" in run,
                )
                for run in document["runs"]
            ),
            key=lambda run: run.seed,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedDocument(SCHEMA, f"{path.name}: {error!r}") from error


def render_steps(runs: list[MachineRun]) -> str:
    """What stands below the results of chaos."""
    if not runs:
        return "The state machine was run in the suite alone.\n"
    commits = ", ".join(f"`{commit[:12]}`" for commit in sorted({run.commit for run in runs}))
    failed = [str(run.seed) for run in runs if run.failed]
    said = f"seeds {', '.join(failed)} found something wrong" if failed else "nothing was found wrong"
    return (
        f"**The state machine of the queue's scripts, by hand: {sum(run.steps for run in runs):,} steps** and "
        f"{sum(run.calls for run in runs):,} calls of scripts over {len(runs)} seeds ({runs[0].seed} to "
        f"{runs[-1].seed}), with {sum(run.restarts for run in runs):,} servers that were killed or went back in time; "
        f"{said}. Commit {commits}; [raw](reliability/{FILE}).\n"
    )
