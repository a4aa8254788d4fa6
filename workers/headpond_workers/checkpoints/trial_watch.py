"""Ends the trials that decide by themselves: promotes a version that kept its bounds, drops one that broke them.

Whoever calls `tick` may be killed amid it, and several may call it at once: the alias moves by a swap that names the
version it is about, and a repeat changes nothing. A kill between the alias and the queue's copy of it leaves a copy of
a lower seq, which the next tick brings up to date.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from functools import partial

from headpond.errors import HeadpondError, MalformedDocument
from headpond.models import ModelRow
from headpond.queue import JobQueue, Server
from headpond.switching import Switch
from headpond.tables import VersionSource
from headpond.tables.version_source import is_version_source
from headpond_workers.checkpoints.alias_document import AliasDocument, Cause, Trial
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.trial_decision import Decision, Ruling, decide
from headpond_workers.checkpoints.version_document import MAX_NOTE_CHARS
from headpond_workers.persistence.blobs import Blobs

logger = logging.getLogger(__name__)

INTERVAL_S = 5.0
"""Between two ticks."""
MOST_SWITCHES = 50
"""Calls of one tick that move jobs out of the lane of a trial that is over; what is left, a sweep moves."""


class TrialWatch:
    """Of all models of a server whose versions stand in this storage. Keeps nothing between two ticks."""

    def __init__(self, server: Server, blobs: Blobs, *, writer: str) -> None:
        """writer: who is written into documents."""
        self._server, self._blobs, self._writer = server, blobs, writer

    def tick(self) -> None:
        """Look at every trial that is on. One model's trouble is no other's: it is logged, and tried again.

        Raises RedisUnavailable if the models cannot be read.
        """
        for model, row in sorted(self._server.models().items()):
            self._guarded(model, partial(self._look, model, row))

    def _guarded(self, model: str, work: Callable[[], None]) -> None:
        try:
            work()
        except HeadpondError as error:
            logger.warning("trial_not_watched model=%s error=%s", model, error)

    def _look(self, model: str, row: ModelRow) -> None:
        source = followed(model, row)
        if source is None or source.alias is None:
            return
        queue = self._server.queue(model, storage=row.storage)
        switch = queue.read_switch()
        if switch is None or not switch.trial:
            return  # The usual case: storage is not asked.
        aliases = Aliases(Registry(self._blobs, source.name, writer=self._writer))
        at = aliases.get(source.alias)
        if at is None or at.document.seq < switch.seq:
            return  # Another alias, or a storage that was put back: nothing here is about this trial.
        if at.document.seq > switch.seq:
            bring(queue, at.document)  # Its outcomes begin with the trial that it now has.
            return
        trial = at.document.trial
        if trial is None or _name(trial.version) != switch.trial:
            return
        decision = self._decide(queue, switch, trial)
        if decision.ruling is Ruling.GO_ON:
            return
        logger.warning(
            "trial_decided model=%s version=%d ruling=%r reason=%s", model, trial.version, str(decision.ruling),
            decision.reason,
        )  # fmt: skip
        move = aliases.promote_trial if decision.ruling is Ruling.PROMOTE else aliases.end_trial
        moved = move(
            source.alias,
            version=trial.version,
            who=f"the persister on {socket.gethostname()}",
            note=decision.reason[:MAX_NOTE_CHARS],
            cause=Cause.AUTOMATIC,
        )
        bring(queue, moved)

    def _decide(self, queue: JobQueue, switch: Switch, trial: Trial) -> Decision:
        if switch.trial in switch.refused:
            return Decision(Ruling.ROLL_BACK, f"version {switch.trial} does not load: {switch.refused[switch.trial]}")
        if trial.bounds is None:
            return Decision(Ruling.GO_ON, "people decide")
        return decide(queue.read_outcomes(), trial.bounds, trial=switch.trial, other=switch.target)


def followed(model: str, row: ModelRow) -> VersionSource | None:
    """What a model loads, by what its deployments say of it; None if that is no version in storage. Where nobody said,
    it is the model's own `prod`. Raises MalformedDocument."""
    if not row.spec:
        return VersionSource(model)
    try:
        said = json.loads(row.spec).get("source")
    except (ValueError, AttributeError) as error:
        raise MalformedDocument("spec", str(error)[:200]) from error
    return VersionSource.parse(said) if isinstance(said, str) and is_version_source(said) else None


def bring(queue: JobQueue, alias: AliasDocument) -> None:
    """Bring the queue's copy of an alias to what storage says. Raises RedisUnavailable, QueueError."""
    for _ in range(MOST_SWITCHES):
        reply = queue.switch(
            seq=alias.seq,
            target=_name(alias.to),
            previous=_name(alias.previous),
            trial="" if alias.trial is None else _name(alias.trial.version),
            permille=0 if alias.trial is None else alias.trial.share_permille,
        )
        if not reply.left:
            return


def _name(number: int) -> str:
    return str(number) if number else ""
