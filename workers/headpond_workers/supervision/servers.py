"""The servers that a deployment embeds, because its configuration names none: prepared, waited for, written down."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headpond.errors import DeploymentError
from headpond.settings import Settings
from headpond_workers.supervision import embedded_seaweed, embedded_valkey, programs
from headpond_workers.supervision.embedded_seaweed import EmbeddedSeaweed
from headpond_workers.supervision.embedded_valkey import EmbeddedValkey
from headpond_workers.supervision.ports import is_free
from headpond_workers.supervision.private_files import last_lines
from headpond_workers.supervision.programs import Program
from headpond_workers.supervision.run_file import RunFile, StorageAccess
from headpond_workers.supervision.supervisor import Supervisor

PORT_TIMEOUT_S = 15.0
"""The servers of a deployment that lost its supervisor need a moment to go."""
START_TIMEOUT_S = 90.0
POLL_INTERVAL_S = 0.05
CRASHES_BEFORE_FAILED = 3


@dataclass(frozen=True, slots=True)
class Servers:
    """Each is None where the configuration names a server of its own."""

    valkey: EmbeddedValkey | None
    seaweed: EmbeddedSeaweed | None

    def programs(self) -> list[Program]:
        found = []
        if self.valkey is not None:
            found.append(programs.server(programs.VALKEY, self.valkey.argv))
        if self.seaweed is not None:
            found.append(programs.server(programs.SEAWEED, self.seaweed.argv))
        return found


def prepare_servers(settings: Settings) -> Servers:
    """Write the files of the servers to embed. Raises DeploymentError if one is not installed."""
    folder = settings.state_folder
    return Servers(
        valkey=embedded_valkey.prepare(folder) if settings.redis.url is None else None,
        seaweed=embedded_seaweed.prepare(folder, bucket=settings.storage.bucket)
        if settings.storage.endpoint_url is None
        else None,
    )


def wait_for_free_ports(servers: Servers) -> None:
    """Return once nobody listens on the servers' ports. Raises DeploymentError naming one that stays taken."""
    wanted: dict[int, Path] = {}
    if servers.valkey is not None:
        wanted[servers.valkey.port] = servers.valkey.folder / embedded_valkey.ACCESS_FILE
    if servers.seaweed is not None:
        access = servers.seaweed.folder / embedded_seaweed.ACCESS_FILE
        wanted |= dict.fromkeys(servers.seaweed.all_ports, access)
    deadline = time.monotonic() + PORT_TIMEOUT_S
    while taken := [port for port in wanted if not is_free(port)]:
        if time.monotonic() >= deadline:
            raise DeploymentError(
                f"Port {taken[0]} of an embedded server is taken by another process: `ss -ltnp` names it. Stop it, "
                f"or remove {wanted[taken[0]]} so that headpond takes other ports."
            )
        time.sleep(POLL_INTERVAL_S)


def wait_for_servers(
    supervisor: Supervisor, servers: Servers, *, log_folder: Path, progress: Callable[[str], None]
) -> None:
    """Return once the servers answer. Raises DeploymentError with the end of the log of one that does not."""
    if (valkey := servers.valkey) is not None:
        _wait(supervisor, programs.VALKEY, lambda: embedded_valkey.answers(valkey), log_folder=log_folder)
        progress(f"{programs.VALKEY} ready on 127.0.0.1:{valkey.port}")
    if servers.seaweed is not None:
        probe = embedded_seaweed.SeaweedProbe(servers.seaweed)
        _wait(supervisor, programs.SEAWEED, probe.answers, log_folder=log_folder)
        progress(f"{programs.SEAWEED} ready on {servers.seaweed.url}")


def run_file(settings: Settings, servers: Servers, supervisor: Supervisor) -> RunFile:
    """What clients and workers need to know of this deployment."""
    redis_url = servers.valkey.url if servers.valkey is not None else settings.redis.url
    if redis_url is None:
        raise DeploymentError("This deployment neither names a Redis nor embeds one.")
    storage = None
    if (seaweed := servers.seaweed) is not None:
        storage = StorageAccess(
            endpoint_url=seaweed.url,
            bucket=seaweed.bucket,
            region=embedded_seaweed.REGION,
            access_key=seaweed.access_key,
            secret_key=seaweed.secret_key,
        )
    return RunFile(
        redis_url=redis_url,
        storage=storage,
        supervisor_socket=str(supervisor.socket),
        supervisor_pid=supervisor.pid(),
        config=str(settings.file),
    )


def _wait(supervisor: Supervisor, name: str, answers: Callable[[], bool], *, log_folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    lives: set[int] = set()
    while not answers():
        process = supervisor.processes().get(name)
        if process is not None and process.pid:
            lives.add(process.pid)
        if len(lives) > CRASHES_BEFORE_FAILED or time.monotonic() >= deadline:
            log = log_folder / f"{name}.log"
            raise DeploymentError(
                f"The embedded {name} does not start. Call headpond down, mend what its log says, and try again. "
                f"The end of {log}:\n{last_lines(log)}"
            )
        time.sleep(POLL_INTERVAL_S)
