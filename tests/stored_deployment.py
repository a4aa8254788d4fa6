"""A deployment of a test on a storage: its table, and a persister."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import Deployment, WorkerChild
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess


def storage_table(seaweed: SeaweedProcess, folder: Path, *, bucket: str = "headpond") -> str:
    """[storage] for headpond.toml, with its secrets in files of `folder`."""
    for name, value in (("access", seaweed.access_key), ("secret", seaweed.secret_key)):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(value)
    return (
        f'[storage]\nendpoint_url = "{seaweed.url}"\nbucket = "{bucket}"\nregion = "{seaweed.region}"\n'
        f'access_key = {{file = "{folder / "access"}"}}\nsecret_key = {{file = "{folder / "secret"}"}}\n'
    )


def start_persister(deployment: Deployment) -> WorkerChild:
    log = deployment.folder / "persister.log"
    command = [sys.executable, "-m", "headpond_workers.persister", "--config", str(deployment.config)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=deployment.folder
        )
    child = WorkerChild(process, log)
    deployment.children.append(child)
    return child
