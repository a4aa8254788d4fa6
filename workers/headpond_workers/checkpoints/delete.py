"""Deletion of a version, in two steps: nobody can begin to use it, then it is gone.

The version becomes `deleting`, then every alias is swapped as it is found: see aliases.py for why no move is missed. A
crash between the steps leaves a version that cannot be used; the same call again ends what was begun. The number is
never given again; a collector removes the bytes that no other version needs.
"""

from __future__ import annotations

from collections.abc import Iterable

from headpond.errors import BlobChanged, VersionInUse, VersionUnusable
from headpond_workers.checkpoints.alias_document import AliasDocument
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.version_document import VersionDocument, VersionState

USED = (VersionState.COMPLETE, VersionState.QUARANTINED)


def delete_version(aliases: Aliases, number: int, *, force: bool = False) -> VersionDocument:
    """Delete a version; a repeat changes nothing. force: also if a rollback of an alias would go to it.

    Raises VersionMissing; VersionInUse if an alias names it; VersionUnusable if its push is not acknowledged.
    """
    registry = aliases.registry
    name = f"{registry.model}@{number}"
    while True:
        at = registry.read(number)
        state = at.document.state
        if state is VersionState.DELETED:
            return at.document
        if state is VersionState.PENDING:
            raise VersionUnusable(
                name,
                "its push is not acknowledged yet. If that was killed, push again, or let `headpond storage gc` delete "
                "what it left",
            )
        try:
            if state in USED:
                # Before the first step: while it is taken back, nobody could load the version.
                _refuse_if_named(name, aliases.all(), number, force=force)
                at = registry.swap(at, VersionState.DELETING, reason=at.document.reason)
            try:
                _refuse_if_named(name, aliases.swap_each(), number, force=force)
            except VersionInUse:
                registry.undo_deletion(at)
                raise
            return registry.swap(at, VersionState.DELETED, reason="deleted").document
        except BlobChanged:
            continue  # Another one deletes it too, took it back or quarantined it: look again.


def _refuse_if_named(name: str, aliases: Iterable[AliasDocument], number: int, *, force: bool) -> None:
    """Raises VersionInUse, with what to do."""
    model = name.partition("@")[0]
    for alias in aliases:
        if alias.to == number:
            raise VersionInUse(
                name,
                f"'{alias.alias}' names it, so it is not deleted. Let that name another version first: "
                f"headpond models promote {model} VERSION --alias {alias.alias}",
            )
        if alias.trial is not None and alias.trial.version == number:
            raise VersionInUse(
                name,
                f"it is on trial at '{alias.alias}', so it is not deleted. End the trial first: "
                f"headpond models canary {model}",
            )
        if alias.previous == number and not force:
            raise VersionInUse(
                name,
                f"a rollback of '{alias.alias}' goes to it, so it is not deleted. To delete it all the same: "
                f"headpond models delete {model} {number} --force",
            )
