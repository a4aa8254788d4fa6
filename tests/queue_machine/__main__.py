"""Many steps by hand, seed by seed: python -m queue_machine --seeds 1-40 --steps 25000

To be run with tests/, broker/ and workers/ on PYTHONPATH, or in tests/ of an installed checkout. Each seed that is done
stands in the output at once, with the commit that it ran on; seeds that stand there with this commit and as many steps
are not run again, so a run may be cut off and go on. Exits with 1 if a seed failed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from headpond_workers.supervision.embedded_valkey import running_valkey
from queue_machine.machine import run
from queue_machine.world import World

SCHEMA = "headpond/queue-machine"
ROOT = Path(__file__).resolve().parents[2]


def seeds(text: str) -> range:
    first, dash, last = text.partition("-")
    found = range(int(first), int(last if dash else first) + 1)
    if not found:
        raise ValueError
    return found


def commit() -> str:
    """The commit that is checked out, with + if the scripts or the machine differ from it."""

    def git(*arguments: str) -> str:
        call = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout

    changed = git("status", "--porcelain", "--", "broker", "workers", "tests/queue_machine").strip()
    return git("rev-parse", "HEAD").strip() + ("+" if changed else "")


def read(output: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(output.read_text())
    except FileNotFoundError:
        return {"schema": SCHEMA, "v": 1, "runs": []}
    if document.get("schema") != SCHEMA or document.get("v") != 1:
        sys.exit(f"{output} is not a {SCHEMA} of version 1. Name another --output, or move it away.")
    return document


def write(output: Path, document: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    new = output.with_suffix(".new")
    new.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(new, output)


def run_seed(world: World, seed: int, steps: int) -> dict[str, Any]:
    """One record: what was run, and how a failure said what it found, with the steps that led to it."""
    began = time.monotonic()
    told = io.StringIO()
    record: dict[str, Any] = {"seed": seed}
    try:
        with contextlib.redirect_stdout(told):
            ran = run(world, seed=seed, steps=steps)
    except Exception as error:  # noqa: BLE001 - whatever a check or a call raises is the finding
        notes = "\n".join(getattr(error, "__notes__", ()))
        record |= {"failed": f"{traceback.format_exc()}\n{notes}\n{told.getvalue()}"}
    else:
        record |= {
            "steps": ran.steps, "calls": ran.calls, "fail_overs": ran.fail_overs, "real_restarts": ran.real_restarts,
            "reached": dict(sorted(ran.reached.items())),
        }  # fmt: skip
    return record | {"seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m queue_machine", description="Run the queue's state machine.")
    parser.add_argument("--seeds", type=seeds, required=True, metavar="A-B", help="both included")
    parser.add_argument("--steps", type=int, default=25_000, metavar="N", help="at least so many for each seed")
    parser.add_argument("--output", type=Path, default=Path("build/queue_machine.json"), metavar="FILE")
    options = parser.parse_args()

    document, at = read(options.output), commit()
    done = {r["seed"] for r in document["runs"] if r["commit"] == at and r.get("steps", 0) >= options.steps}
    failed = 0
    with tempfile.TemporaryDirectory(prefix="queue-machine-") as folder, running_valkey(Path(folder)) as valkey:
        for seed in options.seeds:
            if seed in done:
                print(f"seed {seed}: done before", flush=True)
                continue
            world = World(valkey)
            record = {"commit": at, "python": platform.python_version(), **run_seed(world, seed, options.steps)}
            world.close()
            document["runs"] = [r for r in document["runs"] if (r["seed"], r["commit"]) != (seed, at)] + [record]
            write(options.output, document)
            if "failed" in record:
                failed += 1
                print(f"seed {seed}: FAILED; see {options.output}", flush=True)
            else:
                rate = record["steps"] / record["seconds"]
                print(f"seed {seed}: {record['steps']} steps, {record['calls']} calls, {rate:.0f} steps/s", flush=True)
    total = sum(r.get("steps", 0) for r in document["runs"] if r["commit"] == at)
    print(f"{total} steps on {at}; {failed} of these seeds failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
