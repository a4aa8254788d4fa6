"""What a change makes of an alias, and what a rollback of it goes to. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from headpond_workers.checkpoints.alias_document import MAX_HISTORY, AliasDocument, Cause, Move, Trial
from headpond_workers.checkpoints.document_io import new_txn, now_ms


@dataclass(frozen=True, slots=True)
class Change:
    """to: what the alias names afterwards. begins_to_name: a version that it did not name, or not so; 0: none."""

    to: int
    cause: Cause
    trial: Trial | None = None
    begins_to_name: int = 0


@dataclass(frozen=True, slots=True)
class Mover:
    """Who changes an alias. txn: of this one change: it is recognised in the history by it."""

    who: str
    note: str
    txn: str


def blank(model: str, alias: str, *, writer: str) -> AliasDocument:
    """An alias that was never moved. To readers it is as if it were not there."""
    return AliasDocument(
        txn=new_txn(), created_ms=now_ms(), writer=writer, model=model, alias=alias, to=0, previous=0, seq=0
    )


def is_blank(document: AliasDocument) -> bool:
    return document.to == 0 and document.trial is None


def changed(document: AliasDocument, change: Change, mover: Mover, *, writer: str) -> AliasDocument:
    """The alias after a change: one move more in its history, whose oldest are dropped."""
    at_ms = now_ms()
    move = Move(
        seq=document.seq + 1,
        left=document.to,
        to=change.to,
        who=mover.who,
        at_ms=at_ms,
        cause=change.cause,
        note=mover.note,
        txn=mover.txn,
    )
    history = (*document.history, move)[-MAX_HISTORY:]
    return replace(
        document,
        txn=new_txn(),
        created_ms=at_ms,
        writer=writer,
        to=change.to,
        previous=document.previous if change.to == document.to else previous_after(history),
        seq=move.seq,
        trial=change.trial,
        history=history,
    )


def knows(document: AliasDocument, mover: Mover) -> bool:
    """Whether this very change is in the alias already."""
    return any(move.txn == mover.txn for move in document.history)


def last_move(document: AliasDocument) -> Move | None:
    """The newest that changed what the alias names."""
    return next((move for move in reversed(document.history) if move.left != move.to), None)


def previous_after(history: tuple[Move, ...]) -> int:
    """What a rollback goes to: moves forward heap versions up, and a move back takes off what is above the version that
    it goes to. So a second rollback goes further back, and never to the version that the first one left. 0: nothing."""
    if not history:
        return 0
    heap = [history[0].left]
    for move in history:
        back = move.cause in (Cause.ROLLBACK, Cause.AUTOMATIC) and move.to in heap
        if back:
            heap = heap[: len(heap) - heap[::-1].index(move.to)]
        elif move.to != heap[-1]:
            heap.append(move.to)
    return heap[-2] if len(heap) > 1 else 0
