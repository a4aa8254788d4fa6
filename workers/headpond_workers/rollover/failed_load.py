"""A version that does not load: it is refused, its alias moved back, and workers go on with the other version (P5)."""

from __future__ import annotations

import logging

from headpond.errors import HeadpondError, StorageUnavailable
from headpond.queue import JobQueue
from headpond.switching import Switch
from headpond_workers.rollover.alias_copy import copy_alias
from headpond_workers.rollover.alias_store import AliasStore

logger = logging.getLogger(__name__)

MAX_REASON_CHARS = 500


def other_version(switch: Switch | None, version: str) -> str:
    """What workers serve if this version does not load; '' if there is nothing else."""
    if switch is None:
        return ""
    others = (switch.previous,) if version == switch.target else (switch.target, switch.previous)
    return next((other for other in others if other not in ("", version) and other not in switch.refused), "")


def refuse_version(queue: JobQueue, alias: AliasStore, version: str, *, who: str, reason: str) -> str:
    """Give up a version that did not load. Returns what is served instead; '' if there is nothing else, and then
    nothing is changed: whoever mends the machine is not to have to move an alias too.

    reason: without secrets. Raises RedisUnavailable. With storage away the queue's word is enough, and a persister
    moves the alias once it can.
    """
    other = other_version(queue.read_switch(), version)
    if not other:
        return ""
    # First: nobody else goes for it from now on.
    queue.refuse(who=who, version=version, reason=reason[:MAX_REASON_CHARS])
    logger.error(
        "version_rolled_back model=%s version=%s serves=%s reason=%s", queue.name, version, other, _one_line(reason)
    )
    move_back(queue, alias, version, reason=reason)
    return other


def move_back(queue: JobQueue, alias: AliasStore, version: str, *, reason: str) -> None:
    """Have the alias no longer name a version that was refused, and tell the queue. Raises RedisUnavailable."""
    try:
        now = alias.leave_version(int(version), reason=_one_line(reason)[:MAX_REASON_CHARS])
    except StorageUnavailable as error:
        logger.warning("alias_stays_for_now model=%s version=%s error=%s", queue.name, version, error)
        return
    except HeadpondError as error:
        # The queue serves the other version all the same; what storage refuses is for people.
        logger.error("alias_not_moved_back model=%s version=%s error=%s", queue.name, version, error)
        return
    copy_alias(queue, now)


def _one_line(text: str) -> str:
    return " ".join(text.split())
