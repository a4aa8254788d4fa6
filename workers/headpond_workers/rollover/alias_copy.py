"""A queue's copy of an alias. The document in storage decides; the copy rises by its seq, whoever brings it."""

from __future__ import annotations

from headpond.keys import queue_keys
from headpond.queue import JobQueue
from headpond.switching import Switch
from headpond_workers.checkpoints.alias_document import AliasDocument


def copy_alias(queue: JobQueue, alias: AliasDocument) -> None:
    """Bring the queue's copy to what the document says; an older one changes nothing. Raises RedisUnavailable."""
    trial = alias.trial
    while True:
        reply = queue.switch(
            seq=alias.seq,
            target=version_name(alias.to),
            previous=version_name(alias.previous),
            trial="" if trial is None else version_name(trial.version),
            permille=0 if trial is None else trial.share_permille,
        )
        # Jobs that waited for a trial which is over go to any version, some at a time.
        if not reply.left or reply.seq > alias.seq:
            return


def replace_copy(queue: JobQueue, alias: AliasDocument) -> None:
    """As `copy_alias`, whatever the queue's copy is of. Raises RedisUnavailable."""
    queue.server.read("DEL", queue_keys(queue.name).named("switch"))
    copy_alias(queue, alias)


def is_copied(switch: Switch | None, alias: AliasDocument) -> bool:
    """Whether the queue knows the document."""
    return switch is not None and switch.seq == alias.seq


def is_foreign(switch: Switch | None, alias: AliasDocument) -> bool:
    """Whether the copy is of another alias, which the model followed before, or of a storage that was put back.

    alias: read after `switch`: storage is told first, so a copy of this one is never ahead of it.
    """
    if switch is None or switch.seq < alias.seq:
        return False
    return switch.seq > alias.seq or switch.target != version_name(alias.to)


def version_name(number: int) -> str:
    """As workers and jobs name it: the number as text; '' for none."""
    return str(number) if number else ""
