"""What is wrong with a run under load, beside what every job and every version is judged by. No I/O.

A rule that finds nothing yields nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from engines import Order


def misplaced(ordered: Mapping[str, Order], answered: Mapping[str, str]) -> list[str]:
    """Each job that was submitted for a version and answered by another one, or by nobody. answered: versions by id."""
    return [
        f"{job_id}: it was submitted for version {order.version}, and answered by {answered.get(job_id) or 'nobody'}"
        for job_id, order in ordered.items()
        if order.version and answered.get(job_id) != order.version
    ]


def unsaved(entries: int) -> list[str]:
    """Changes of the queue that never came to storage. entries: of its journal, once the persister has left."""
    return [f"{entries} changes of the queue never came to storage"] if entries else []
