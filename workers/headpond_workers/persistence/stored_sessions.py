"""The sessions of a model as storage has them."""

from __future__ import annotations

from headpond.commits import Chain, ChainPage, Commit, SessionRow, unpack_commit, unpack_session
from headpond_workers.persistence.items import COMMIT, SESSION, CommitItem, Item, SessionItem
from headpond_workers.persistence.segments import StateStore


class StoredSessions:
    """At the moment of its making. Memory is that of what was committed since the last snapshot, and of one part.

    Any call raises BlobCorrupt, StorageUnavailable.
    """

    def __init__(self, store: StateStore) -> None:
        at = store.read_head()
        self.name = store.model
        self._point = None if at is None else store.state(at.head)

    def session(self, name: str) -> SessionRow | None:
        """None if storage has none of this name. Raises MalformedDocument."""
        item = self._item(f"{SESSION}/{name}")
        return unpack_session(name, item.row) if isinstance(item, SessionItem) else None

    def chain(self, session: str, head: str) -> list[Commit]:
        """The commits up to a head, the first turn first. session: named in errors.

        Raises CommitGone, MalformedDocument.
        """
        chain = Chain(session, head)
        while chain.onward:
            item = self._item(f"{COMMIT}/{chain.onward}")
            if not isinstance(item, CommitItem):
                chain.add(ChainPage((), chain.onward))
                continue
            commit = unpack_commit(item.id, item.document)
            chain.add(ChainPage((commit,), commit.parent))
        return chain.commits()

    def _item(self, key: str) -> Item | None:
        return None if self._point is None else next(self._point.items(only={key}), None)
