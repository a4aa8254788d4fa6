"""Which refusals a process may meet, of those that storage and the state of versions give. No I/O."""

from __future__ import annotations

from typing import Any

from task_plan import TaskKind

MAY_MEET = {
    TaskKind.PUSH: ("PushOvertaken",),
    TaskKind.HOLD: ("ConfigError",),
    TaskKind.PROMOTE: ("AliasMoved",),
    TaskKind.ROLLBACK: ("AliasMoved", "VersionMissing", "VersionUnusable"),
    TaskKind.DELETE: ("VersionInUse",),
    TaskKind.COLLECT: ("CollectionUnderWay",),
}
"""Whatever else goes on: a push may take longer than the grace, versions in use may fill the cache, an alias may be
moved meanwhile or have nothing to go back to, and another collector may be at work."""
IF_NAMELESS = "VersionMissing"
"""What an alias gives before it was moved first."""
IF_DOOMED = "VersionUnusable"
"""What a version may give from the beginning of a deletion on."""


def unfit_refusal(order: dict[str, Any], error: str, *, doomed: bool) -> str | None:
    """Why a process should not have been refused so; None if it may be. doomed: a deletion of the version that its
    order names was begun at some time."""
    if error in MAY_MEET.get(TaskKind(order["kind"]), ()):
        return None
    if error == IF_NAMELESS and order["kind"] == TaskKind.HOLD and "alias" in order:
        return None
    if error == IF_DOOMED:
        return None if doomed else f"with {error}, though nobody deleted the version"
    return f"with {error}"
