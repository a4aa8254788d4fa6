"""The start of a deployment: its folders, and supervisord with the servers alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from headpond.errors import DeploymentError
from headpond_workers.supervision import programs
from headpond_workers.supervision.convergence import write_files
from headpond_workers.supervision.private_files import private_folder, write_private
from headpond_workers.supervision.run_file import remove_run_file
from headpond_workers.supervision.runtime_folder import make_runtime_folder
from headpond_workers.supervision.servers import Servers, wait_for_free_ports
from headpond_workers.supervision.supervisor import Supervisor, start_supervisord
from headpond_workers.supervision.supervisord_process import CONF_NAME

LEAST_FREE_BYTES = 64 << 20


def prepare_folders(state_folder: Path) -> None:
    """Make what a deployment needs. Raises DeploymentError, also if the disk is nearly full."""
    private_folder(state_folder)
    for name in (programs.LOG_FOLDER, programs.CONF_FOLDER, programs.STARTS_FOLDER):
        private_folder(state_folder / name)
    free = shutil.disk_usage(state_folder).free
    if free < LEAST_FREE_BYTES:
        raise DeploymentError(
            f"Only {free >> 20} MiB are free on the disk of {state_folder}. Free some space, then try again."
        )


def start_with_servers(
    state_folder: Path, servers: Servers, *, socket: Path, lock: int, progress: Callable[[str], None]
) -> Supervisor:
    """Start supervisord with the servers alone: workers come once those answer. lock: of the deployment."""
    remove_run_file(state_folder)  # what it says is of a deployment that is gone
    wait_for_free_ports(servers)
    make_runtime_folder(socket)
    write_private(state_folder / CONF_NAME, programs.supervisord_conf(socket=socket, state_folder=state_folder))
    write_files(state_folder, servers.programs(), keep=())
    supervisor = start_supervisord(state_folder, socket, log_folder=state_folder / programs.LOG_FOLDER, lock=lock)
    progress(f"supervisord started (pid {supervisor.pid()})")
    return supervisor
