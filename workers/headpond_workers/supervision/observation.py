"""A look at a deployment: queues and workers as they are now. Changes nothing."""

from __future__ import annotations

import socket
from collections.abc import Callable

from headpond.connections import redis_of
from headpond.models import ModelRow
from headpond.queue import JobQueue, Server
from headpond.settings import Settings
from headpond.spooled import parse_trouble
from headpond_workers.rollover.followed_models import followed
from headpond_workers.supervision.status import DeploymentStatus, QueueStatus, closed_reason, join
from headpond_workers.supervision.supervisor import Supervisor


def observe(
    settings: Settings, supervisor: Supervisor | None, *, deployment: str, last_log_line: Callable[[str], str]
) -> DeploymentStatus:
    """deployment: the id of this one. last_log_line: of a program. Raises RedisUnavailable, SupervisorGone."""
    processes = supervisor.processes() if supervisor is not None else {}
    server = Server(redis_of(settings))
    try:
        seconds, microseconds = server.read("TIME")
        queues, rows = [], []
        known = server.models()
        aliases = followed(known)
        for model in sorted({*settings.models, *known}):
            # Read, never opened: looking at a queue must not change what it is.
            queue = JobQueue(server, model)
            switch = queue.read_switch() if model in aliases else None
            meta = queue.meta()
            trouble = parse_trouble(meta.get("storage_away"), meta.get("spool"))
            queues.append(QueueStatus(model, queue.depths(), closed_reason(meta), switch, trouble))
            rows += queue.workers()
    finally:
        server.close()
    now_ms = int(seconds) * 1000 + int(microseconds) // 1000
    workers = join(
        processes,
        rows,
        host=socket.gethostname(),
        deployment=deployment,
        now_ms=now_ms,
        lease_s={name: model.lease_s for name, model in settings.models.items()},
        last_log_line=last_log_line,
    )
    return DeploymentStatus(tuple(queues), tuple(workers), now_ms)


def configured_models(settings: Settings) -> dict[str, ModelRow]:
    """What `headpond:models` says, of all deployments. Raises RedisUnavailable."""
    server = Server(redis_of(settings))
    try:
        return server.models()
    finally:
        server.close()
