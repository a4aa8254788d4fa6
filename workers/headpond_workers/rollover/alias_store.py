"""The alias in storage that a model follows, as its workers and the persister use it."""

from __future__ import annotations

import logging
from contextlib import suppress

from headpond.errors import AliasMoved, BlobChanged, VersionMissing
from headpond.tables import VersionSource
from headpond_workers.checkpoints.alias_document import AliasDocument, Cause
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.names import PROD
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.resolving import resolve
from headpond_workers.checkpoints.version_document import VersionState

logger = logging.getLogger(__name__)


class AliasStore:
    """Of one source. registry: of its model in storage. who: is written into histories."""

    def __init__(self, source: VersionSource, registry: Registry, *, who: str) -> None:
        self._source, self._registry, self._who = source, registry, who
        self._alias = source.alias or PROD
        self._aliases = Aliases(registry)

    def get(self) -> AliasDocument:
        """Raises VersionMissing, with what to do, if the alias names nothing; StorageUnavailable."""
        at = self._aliases.get(self._alias)
        if at is None:
            resolve(self._source, self._registry.blobs)  # it says what to do
            raise VersionMissing(self._source.version, "there is no such alias")
        return at.document

    def put_back(self, number: int) -> bool:
        """Undo a deletion that was begun of a version which the alias names, or tries: whoever deleted was killed amid
        it, or is about to refuse. Returns whether the version may be complete now. Raises StorageUnavailable."""
        try:
            now = self.get()
            named = {now.to} if now.trial is None else {now.to, now.trial.version}
            while number in named and (at := self._registry.read(number)).document.state is VersionState.DELETING:
                logger.warning("deletion_undone version=%s@%d", self._source.name, number)
                with suppress(BlobChanged):
                    self._registry.undo_deletion(at)
            return number in named and at.document.state is VersionState.COMPLETE
        except VersionMissing:
            return False

    def leave_version(self, number: int, *, reason: str) -> AliasDocument:
        """Have the alias no longer name a version that was refused, nor try it. Returns the alias as it is then.

        Raises VersionMissing if it named nothing before, VersionUnusable, StorageUnavailable.
        """
        now = self.get()
        try:
            if now.to == number:
                return self._aliases.rollback(
                    self._alias, left=number, who=self._who, note=reason, cause=Cause.AUTOMATIC
                )
            if now.trial is not None and now.trial.version == number:
                return self._aliases.end_trial(
                    self._alias, version=number, who=self._who, note=reason, cause=Cause.AUTOMATIC
                )
        except AliasMoved as error:
            logger.info("alias_moved_meanwhile version=%s@%d error=%s", self._source.name, number, error)
            return self.get()
        return now
