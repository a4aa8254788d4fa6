"""What tenants have paid, from storage's terms to the queue's. Pure."""

from __future__ import annotations

from headpond import restoring
from headpond_workers.persistence.fair import Fair


def as_queue_has_it(fair: Fair | None) -> restoring.Fair | None:
    return None if fair is None else {band: (times.virtual, times.paid) for band, times in fair.items()}
