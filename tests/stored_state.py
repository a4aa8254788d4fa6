"""Whether storage holds what Redis holds: the invariant that a restore rests on."""

from __future__ import annotations

from headpond.folding import fold_tokens
from headpond.queue import JobQueue
from headpond.results import build_result
from headpond.wire import pack_result, unpack_run
from headpond_workers.persistence.items import JobItem
from headpond_workers.persistence.segments import StateStore

KEPT = ("band", "attempt", "strikes", "tag", "submitted_ms", "pinned", "offset", "fingerprint", "served_by")
"""What a restored job takes from its row."""


def differences(queue: JobQueue, store: StateStore) -> list[str]:
    """Of jobs that Redis holds, while nothing is running and the journal is empty. Jobs that Redis has dropped after
    their retention may be in storage still."""
    at = store.read_head()
    assert at is not None
    stored = {item.id: item for item in store.items(at.head) if isinstance(item, JobItem)}
    found = [difference for job_id in queue.ids() for difference in _differences(queue, job_id, stored.get(job_id))]
    assert [store.find_job(job_id) for job_id in stored] == list(stored.values())
    return found


def _differences(queue: JobQueue, job_id: str, item: JobItem | None) -> list[str]:
    row = queue.run_row(job_id)
    if item is None or row is None:
        return [f"{job_id} is not in storage"]
    different = [] if item.data == queue.data(job_id) else [f"{job_id}: its request"]
    if row.state.ended:
        result = queue.result(job_id) or pack_result(build_result(job_id, row, None, queue.events(job_id)))
        if (item.state, item.result) != (row.state, result):
            different.append(f"{job_id} ended {row.state}, in storage {item.state}")
        return different
    made = fold_tokens(queue.events(job_id))
    if (item.state, item.ids, item.pieces) != (None, made.ids, made.pieces):
        different.append(f"{job_id} has {len(made.ids)} tokens, in storage {len(item.ids)}")
    kept = unpack_run(item.row)
    names = [name for name in KEPT if getattr(kept, name) != getattr(row, name)]
    return different + [f"{job_id}: {name}" for name in names]
