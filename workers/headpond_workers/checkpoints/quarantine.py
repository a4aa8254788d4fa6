"""A version that was found damaged: it is marked, so that nobody loads it again, and refused."""

from __future__ import annotations

import logging

from headpond.errors import BlobCorrupt, BlobMissing, HeadpondError, VersionUnusable
from headpond_workers.checkpoints.manifest import Manifest
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionDocument, VersionState

logger = logging.getLogger(__name__)


def quarantined(registry: Registry, number: int, damage: str) -> VersionUnusable:
    """Mark a version, and return the error to raise. damage: in words.

    A mark that storage does not take keeps nobody from refusing the version: it is in the log and in the error. One
    that is being deleted is not marked: its bytes may go.
    """
    version = f"{registry.model}@{number}"
    logger.error("version_damaged version=%s reason=%s", version, damage)
    advice = f"Push it again from its files; see headpond models show {version}"
    try:
        registry.quarantine(number, reason=damage)
        state = registry.read(number).document.state
    except HeadpondError as error:
        logger.error("version_not_quarantined version=%s error=%s", version, error)
        return VersionUnusable(version, f"it is damaged in storage: {damage}. It could not be quarantined: {error}")
    if state is not VersionState.QUARANTINED:
        return VersionUnusable(version, f"the version is {state} by now: {damage}")
    return VersionUnusable(version, f"it is damaged in storage, and quarantined: {damage}. {advice}")


def sound_manifest(registry: Registry, document: VersionDocument) -> Manifest:
    """The manifest of a complete version. One that is damaged or gone quarantines it: VersionUnusable.

    Raises UnsupportedSchema for a manifest of a newer release, which is no damage.
    """
    for last in (False, True):
        try:
            return registry.manifest_of(document)
        except (BlobCorrupt, BlobMissing) as error:
            if last:
                raise quarantined(registry, document.number, str(error)) from error
    raise AssertionError("the second reading returned or raised")
