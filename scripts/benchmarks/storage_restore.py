"""`storage`, restore: how long `headpond restore` takes into a Redis that lost its data, and whether ten times the jobs
take ten times as long; and the memory of the persister that stored them."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from both_sides import persister_process, write_config
from child import BenchmarkError
from document import Measurement, Samples
from pairs import Pair, run_pairs
from persisted_side import await_that
from plan import Plan
from stored_jobs import ABOUT, fill

from headpond.connections import RedisAddress
from headpond.queue import Server
from headpond.settings import load_settings
from headpond_workers.checkpoints.resolving import open_storage
from headpond_workers.persistence.segments import StateStore
from headpond_workers.persistence.snapshots import is_due
from headpond_workers.persistence.state_keys import StateKeys
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from headpond_workers.supervision.embedded_valkey import running_valkey
from headpond_workers.supervision.private_files import private_folder

FEW, MANY = 10_000, 100_000
QUICK_FEW, QUICK_MANY = 100, 300
COMMITTED_TIMEOUT_S = 600.0
RESTORE_TIMEOUT_S = 600.0
HEADPOND = (sys.executable, "-c", "from headpond.cli import main; main()")
TABLE = 'engine = "scripted"\n'


@dataclass(frozen=True, slots=True)
class _Stored:
    """A model in storage as a lost Redis left it. head: the object that leads to all of it. keys: of every object."""

    model: str
    jobs: int
    head: bytes
    keys: frozenset[str]
    persister_peak_bytes: int


def measure_restore(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    few, many = (QUICK_FEW, QUICK_MANY) if plan.quick else (FEW, MANY)
    with running_seaweed(plan.folder / "seaweedfs") as seaweed:
        stored = {jobs: _store(plan, seaweed, jobs) for jobs in (few, many)}
        restores = itertools.count()

        def restore(jobs: int) -> Samples:
            one = stored[jobs]
            folder = private_folder(plan.folder / f"restore-{next(restores)}")
            seconds = _restore(folder, seaweed, one)
            return {"jobs": jobs, "seconds": seconds, "persister_peak_bytes": one.persister_peak_bytes}

        def done(number: int, pair: Pair[Samples]) -> None:
            plan.say_pair(
                number, f"{few} jobs in {pair.peer['seconds']:.2f} s, {many} in {pair.headpond['seconds']:.2f} s"
            )

        pairs = run_pairs(plan.pairs, lambda _: restore(many), lambda _: restore(few), done=done)
    return Measurement(
        plan.kind, f"restore of {few} jobs, and of {many}",
        f"a model of which {ABOUT}; stored by a persister as they came, in SeaweedFS. Each time a new Valkey without "
        "any data, and storage as the persister left it",
        f"`headpond restore`, from its start as a process to its end; {many} jobs",
        f"the same with {few} jobs", pairs,
    )  # fmt: skip


def _store(plan: Plan, seaweed: SeaweedProcess, jobs: int) -> _Stored:
    model = f"jobs-{jobs}"
    folder = private_folder(plan.folder / model)
    config = folder / "headpond.toml"
    began = time.monotonic()
    with running_valkey(folder / "state") as valkey:
        write_config(config, valkey, TABLE, seaweed=seaweed)
        server = Server(RedisAddress(valkey.url, "the benchmark"))
        try:
            with persister_process(config, folder / "persister.log") as persister:
                queue = fill(server, model, jobs)
                await_that(lambda: queue.journal_length() == 0, COMMITTED_TIMEOUT_S, f"all of {model} was committed")
                blobs = _blobs(config)
                await_that(lambda: not _is_snapshot_due(blobs, model), COMMITTED_TIMEOUT_S, "the snapshot was made")
                peak = _peak_bytes(persister.pid)
        finally:
            server.close()
    keys = StateKeys(model)
    made = _Stored(model, jobs, blobs.get(keys.head).body, frozenset(blobs.list_keys(keys.prefix)), peak)
    plan.say(
        f"{jobs} jobs stored in {time.monotonic() - began:.0f} s, {len(made.keys)} objects, the persister took "
        f"{peak >> 20} MiB at its peak"
    )
    return made


def _restore(folder: Path, seaweed: SeaweedProcess, stored: _Stored) -> float:
    """Seconds. Storage is afterwards as it was before. Raises BenchmarkError."""
    config = folder / "headpond.toml"
    with running_valkey(folder / "state") as valkey:
        write_config(config, valkey, TABLE, seaweed=seaweed)
        began = time.monotonic()
        try:
            done = subprocess.run(
                [*HEADPOND, "restore", "--model", stored.model, "--json", "--config", str(config)],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=RESTORE_TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"`headpond restore` did not end within {RESTORE_TIMEOUT_S:g} s.") from error
        seconds = time.monotonic() - began
    if done.returncode != 0:
        raise BenchmarkError(f"`headpond restore` ended with status {done.returncode}: {done.stderr[-1000:]}")
    (model,) = json.loads(done.stdout)["models"]
    if model["jobs"] != stored.jobs:
        raise BenchmarkError(f"{model['jobs']} of {stored.jobs} jobs came back.")
    _put_back(_blobs(config), stored)
    return round(seconds, 3)


def _put_back(blobs: S3Blobs, stored: _Stored) -> None:
    keys = StateKeys(stored.model)
    blobs.put_if(keys.head, stored.head, etag=blobs.get(keys.head).etag)
    for key in set(blobs.list_keys(keys.prefix)) - stored.keys:
        blobs.delete(key)


def _is_snapshot_due(blobs: S3Blobs, model: str) -> bool:
    at = StateStore(blobs, model).read_head()
    return at is not None and is_due(at.head)


def _blobs(config: Path) -> S3Blobs:
    return open_storage(load_settings(config))


def _peak_bytes(pid: int) -> int:
    """The most memory that a process has had resident (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise BenchmarkError("The kernel does not say how much memory the persister has had.")
