"""What `headpond up` is told reaches the workers that supervisord starts, and every later command."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import test_deployment
from headpond.connections import redis_of
from headpond.queue import JobQueue, Server
from headpond.settings import load_settings
from headpond.workers import WorkerState
from test_deployment import deployment_of, processes_of, wait_until

place = test_deployment.folder
"""Its fixture: a folder in which everything ends with the test."""
HEADPOND = Path(sys.executable).with_name("headpond")
CONFIG = """\
[storage]
endpoint_url = "http://127.0.0.1:9"
[defaults]
drain_timeout_s = 1
[models.chat]
engine = "scripted"
[models.code]
engine = "scripted"
slots = 5
"""


def run(folder: Path, *words: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HEADPOND_")}
    return subprocess.run(
        [str(HEADPOND), *words], cwd=folder, env={**clean, **(environment or {})}, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip


def slots(folder: Path) -> dict[str, int]:
    """As the workers themselves say, by instance."""
    settings = load_settings(folder / "headpond.toml")
    server = Server(redis_of(settings))
    try:
        return {row.instance: row.slots for model in settings.models for row in JobQueue(server, model).workers()}
    finally:
        server.close()


def pids_of(folder: Path) -> dict[str, int]:
    """Of workers that are ready, by instance."""
    status = deployment_of(folder).status()
    return {worker.instance: worker.pid for worker in status.workers if worker.state is WorkerState.READY}


@pytest.mark.slow
def test_workers_and_later_commands_see_what_up_was_told(place: Path) -> None:
    folder = place
    (folder / "headpond.toml").write_text(CONFIG)
    up = ["up", "--detach", "--set", "chat.slots=7", "--set", "defaults.slots=2"]
    told = {"HEADPOND_MODELS__CODE__WORKERS": "2", "HEADPOND_DEFAULTS__LEASE_S": "3"}
    started = run(folder, *up, environment=told)
    assert started.returncode == 0, started.stderr
    assert slots(folder) == {"chat-0": 7, "code-0": 5, "code-1": 5}
    note = folder / ".headpond" / "up.json"
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    pids = pids_of(folder)

    # One that is started again after a crash reads the same.
    os.kill(pids["chat-0"], signal.SIGKILL)
    wait_until(lambda: pids_of(folder).get("chat-0") not in (None, 0, pids["chat-0"]))
    deployment_of(folder).wait_ready(timeout_s=60)
    assert slots(folder) == {"chat-0": 7, "code-0": 5, "code-1": 5}
    pids = pids_of(folder)

    # From another shell, that knows nothing of it: nothing is restarted, and the new worker is like its siblings.
    scaled = run(folder, "scale", "chat=2")
    assert scaled.returncode == 0, scaled.stderr
    deployment_of(folder).wait_ready(timeout_s=60)
    assert slots(folder) == {"chat-0": 7, "chat-1": 7, "code-0": 5, "code-1": 5}
    after = pids_of(folder)
    assert {name: after[name] for name in pids} == pids
    shown = run(folder, "config", "show", "chat", "--running", "--json")
    found = {row["key"]: (row["value"], row["origin"]) for row in json.loads(shown.stdout)["settings"]}
    assert found["models.chat.slots"] == (7, "--set")
    assert found["models.chat.lease_s"] == (3.0, "HEADPOND_DEFAULTS__LEASE_S")

    # The next `up` says everything anew.
    again = run(folder, "up", "--detach", environment={"HEADPOND_DEFAULTS__SLOTS": "3"})
    assert again.returncode == 0, again.stderr
    assert slots(folder) == {"chat-0": 3, "chat-1": 3, "code-0": 5}

    refused = run(folder, "up", "--detach", "--set", "chat.slot=3")
    assert refused.returncode == 2
    assert "--set chat.slot: unknown key 'slot' in [models.chat]; did you mean 'slots'?" in refused.stderr
    assert run(folder, "down").returncode == 0
    assert not note.exists()
    assert processes_of(folder) == []
