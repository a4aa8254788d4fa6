"""`headpond models forget`: a name, or one deployment's hold of it, is given up by an operator."""

from __future__ import annotations

from enum import Enum

from headpond.errors import InvalidRequest, NameInUse, UnknownModel
from headpond.models import unpack_model
from headpond.queue import JobQueue, Server
from headpond.workers import SILENT_AFTER_S


class Waiting(Enum):
    """What becomes of a name for which jobs wait."""

    KEEP = "keep"
    LEAVE = "leave"
    """They stay in the queue, for whoever takes the name next."""


def forget_name(server: Server, model: str, *, waiting: Waiting) -> None:
    """Remove a model's row. Its jobs and results stay, until their retention ends.

    Raises UnknownModel; NameInUse while a worker lives, or while jobs wait and are to be kept; RedisUnavailable.
    """
    seen = _seen(server, model)
    queue = JobQueue(server, model)
    _refuse_if_served(queue, model)
    if waiting is Waiting.KEEP and (jobs := _unfinished(queue)):
        wait = "1 job waits" if jobs == 1 else f"{jobs} jobs wait"
        raise NameInUse(
            model,
            f"{wait} for it. Let a worker end them first; or leave them to whoever takes the name next: "
            f"headpond models forget {model} --force",
        )
    if not server.forget_name(model, seen):
        raise NameInUse(
            model, "a deployment took it or gave it up just now. Look at headpond models list, and try again"
        )


def forget_holder(server: Server, model: str, deployment: str) -> None:
    """Take a name from one deployment that is never coming back. What the name means stays.

    Raises UnknownModel; InvalidRequest if it does not hold the name; NameInUse while a worker of it lives;
    RedisUnavailable.
    """
    row = unpack_model(_seen(server, model))
    holders = [holder.deployment for holder in row.holders]
    if deployment not in holders:
        held = f"these do: {', '.join(holders)}" if holders else "nobody does"
        raise InvalidRequest(
            f"The deployment {deployment[:100]!r} does not hold the name '{model}'; {held}.", field="deployment"
        )
    _refuse_if_served(JobQueue(server, model), model, deployment=deployment)
    server.release(deployment, [model])


def _seen(server: Server, model: str) -> bytes:
    raw = server.raw_model(model)
    if raw is None:
        raise UnknownModel(model[:100], server.models())
    return raw


def _refuse_if_served(queue: JobQueue, model: str, *, deployment: str | None = None) -> None:
    rows = [row for row in queue.living() if deployment is None or row.deployment == deployment]
    if rows:
        shown = ", ".join(f"{row.instance} on {row.host} (pid {row.pid})" for row in rows[:5])
        raise NameInUse(
            model,
            f"{len(rows)} of its workers were heard of in the last {SILENT_AFTER_S:.0f} s or two leases: {shown}. Stop "
            f"them there first: headpond models stop {model}",
        )


def _unfinished(queue: JobQueue) -> int:
    if not queue.meta():  # nobody has used it: asking for its depths would make it
        return 0
    depths = queue.depths()
    return depths.ready + depths.delayed + depths.running
