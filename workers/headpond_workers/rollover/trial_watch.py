"""Ends the trials that decide by themselves: promotes a version that kept its bounds, drops one that broke them.

Whoever calls `tick` may be killed amid it, and several may call it at once: the alias moves by a swap that names the
version it is about, and a repeat changes nothing. A kill between the alias and the queue's copy of it leaves a copy of
a lower seq, which the next tick brings up to date.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from functools import partial

from headpond.errors import HeadpondError
from headpond.queue import JobQueue, Server
from headpond.switching import Switch
from headpond.tables import VersionSource
from headpond_workers.checkpoints.alias_document import Cause, Trial
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.names import PROD
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.trial_decision import Decision, Ruling, decide
from headpond_workers.checkpoints.version_document import MAX_NOTE_CHARS
from headpond_workers.rollover.alias_copy import copy_alias, version_name
from headpond_workers.rollover.followed_models import followed
from headpond_workers.storage.blobs import Blobs

logger = logging.getLogger(__name__)

INTERVAL_S = 5.0
"""Between two ticks."""


class TrialWatch:
    """Of all models of a server whose versions stand in this storage. Keeps nothing between two ticks."""

    def __init__(self, server: Server, blobs: Blobs, *, writer: str) -> None:
        """writer: who is written into documents."""
        self._server, self._blobs, self._writer = server, blobs, writer

    def tick(self) -> None:
        """Look at every trial that is on. One model's trouble is no other's: it is logged, and tried again.

        Raises RedisUnavailable if the models cannot be read.
        """
        for model, source in sorted(followed(self._server.models()).items()):
            self._guarded(model, partial(self._look, model, source))

    def _guarded(self, model: str, work: Callable[[], None]) -> None:
        try:
            work()
        except HeadpondError as error:
            logger.warning("trial_not_watched model=%s error=%s", model, error)

    def _look(self, model: str, source: VersionSource) -> None:
        queue = self._server.queue(model, storage=True)
        switch = queue.read_switch()
        if switch is None or not switch.trial:
            return  # The usual case: storage is not asked.
        aliases = Aliases(Registry(self._blobs, source.name, writer=self._writer))
        alias = source.alias or PROD
        at = aliases.get(alias)
        if at is None or at.document.seq < switch.seq:
            return  # Another alias, or a storage that was put back: nothing here is about this trial.
        if at.document.seq > switch.seq:
            copy_alias(queue, at.document)  # Its outcomes begin with the trial that it now has.
            return
        trial = at.document.trial
        if trial is None or version_name(trial.version) != switch.trial:
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
            alias,
            version=trial.version,
            who=f"the persister on {socket.gethostname()}",
            note=decision.reason[:MAX_NOTE_CHARS],
            cause=Cause.AUTOMATIC,
        )
        copy_alias(queue, moved)

    def _decide(self, queue: JobQueue, switch: Switch, trial: Trial) -> Decision:
        if switch.trial in switch.refused:
            return Decision(Ruling.ROLL_BACK, f"version {switch.trial} does not load: {switch.refused[switch.trial]}")
        if trial.bounds is None:
            return Decision(Ruling.GO_ON, "people decide")
        return decide(queue.read_outcomes(), trial.bounds, trial=switch.trial, other=switch.target)
