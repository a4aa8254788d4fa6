"""What a session is made of: its row, and its commits, of which each is one turn and never changes. No I/O.

A commit's id is the SHA-256 of its document, which names its parent: whoever has the id of a head has the whole
conversation, and no other one passes for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from headpond.codec import pack_document, unpack_document, unpack_row
from headpond.errors import CommitGone, MalformedDocument
from headpond.jobs import FinishReason, Usage
from headpond.requests import Message
from headpond.turns import Policy

COMMIT_SCHEMA = "headpond/commit"
MAX_COMMIT_BYTES = 8 << 20
MAX_TURNS = 1000
"""Commits from a session's first to its head."""
MAX_CONVERSATION_BYTES = 4 << 20
"""Of all messages of a conversation, in UTF-8."""
PAGE_COMMITS = 200
PAGE_BYTES = 2 << 20
"""What one call reads of a chain."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What made a commit's parent, where that was not what made the commit."""

    version: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Commit:
    """One turn. Immutable.

    id: 64 hex digits. parent: id of the commit before; '' for the first. session: in which it was made; forks share it.
    messages: those of the turn, and the answer as the last. turns: commits up to this one. size: of all messages up to
    here, in bytes of UTF-8. created_ms: by the worker's clock. policy: of the session then. migrated_from: what made
    the parent, if another version, or one with another fingerprint, did. skipped: see `headpond.turns.Turn`.
    """

    id: str
    parent: str
    session: str
    job: str
    messages: tuple[Message, ...]
    finish_reason: FinishReason
    model: str
    version: str
    fingerprint: str
    usage: Usage
    created_ms: int
    turns: int
    size: int
    policy: Policy
    migrated_from: Origin | None = None
    skipped: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """All but the id, as the document has them."""
        origin = self.migrated_from
        return {
            "parent": self.parent,
            "session": self.session,
            "job": self.job,
            "messages": [[message.role, message.content] for message in self.messages],
            "finish_reason": self.finish_reason.value,
            "model": self.model,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "usage": [self.usage.prompt_tokens, self.usage.completion_tokens],
            "created_ms": self.created_ms,
            "turns": self.turns,
            "size": self.size,
            "policy": self.policy.value,
            "migrated_from": None if origin is None else [origin.version, origin.fingerprint],
            "skipped": list(self.skipped),
        }


def pack_commit(commit: Commit) -> tuple[str, bytes]:
    """Id and document. The id that `commit` has is not looked at."""
    document = pack_document(COMMIT_SCHEMA, 1, commit.fields())
    return hashlib.sha256(document).hexdigest(), document


def unpack_commit(commit_id: str, document: bytes) -> Commit:
    """Raises MalformedDocument, also for a document that is another commit's, and UnsupportedSchema."""
    fields = unpack_document(document, schema=COMMIT_SCHEMA, v=1, max_bytes=MAX_COMMIT_BYTES)
    if hashlib.sha256(document).hexdigest() != commit_id:
        raise MalformedDocument(COMMIT_SCHEMA, f"it is not what {commit_id[:12]} stands for")
    try:
        origin = fields.get("migrated_from")
        return Commit(
            id=commit_id,
            parent=_text(fields["parent"]),
            session=_text(fields["session"]),
            job=_text(fields["job"]),
            messages=tuple(Message(role=role, content=content) for role, content in fields["messages"]),
            finish_reason=FinishReason(fields["finish_reason"]),
            model=_text(fields["model"]),
            version=_text(fields["version"]),
            fingerprint=_text(fields["fingerprint"]),
            usage=Usage(*(_count(n) for n in fields["usage"])),
            created_ms=_count(fields["created_ms"]),
            turns=_count(fields["turns"]),
            size=_count(fields["size"]),
            policy=Policy(fields["policy"]),
            migrated_from=None if origin is None else Origin(*(_text(word) for word in origin)),
            skipped=tuple(_text(job) for job in fields.get("skipped", [])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedDocument(COMMIT_SCHEMA, repr(error)[:300]) from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of text")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{str(value)[:40]} instead of a count")
    return value


def size_of(messages: Iterable[Message]) -> int:
    """Bytes of UTF-8."""
    return sum(len(message.content.encode()) for message in messages)


@dataclass(frozen=True, slots=True)
class SessionRow:
    """Where a session stands; scripts alone write it. Times are ms of the server's clock.

    head: its newest commit; '' without one. version: of the model that made the head. policy: None until a turn was
    made. turns: commits up to the head. skipped: jobs that ended without a commit since. left: heads that it went back
    from, and may go to again.
    """

    name: str
    head: str
    version: str
    policy: Policy | None
    tenant: str
    turns: int
    created_ms: int
    updated_ms: int
    skipped: tuple[str, ...]
    left: tuple[str, ...]


def unpack_session(name: str, row: bytes) -> SessionRow:
    """Raises MalformedDocument, UnsupportedSchema."""
    head, version, policy, tenant, turns, created, updated, skipped, left = unpack_row(
        row, kind="session row", length=10
    )[1:10]
    try:
        return SessionRow(
            name, _text(head), _text(version), Policy(policy) if policy else None, _text(tenant), _count(turns),
            _count(created), _count(updated), tuple(_text(job) for job in skipped),
            tuple(_text(commit) for commit in left),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise MalformedDocument("session row", repr(error)[:300]) from error


@dataclass(frozen=True, slots=True)
class ChainPage:
    """Part of a chain, the newest first. onward: the commit to go on from; '' after the last; '?' if it is gone."""

    commits: tuple[Commit, ...]
    onward: str


def parse_chain(reply: Sequence[bytes]) -> ChainPage:
    """From the reply of the script `chain`. Raises MalformedDocument."""
    onward, *flat = reply
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return ChainPage(
        tuple(unpack_commit(commit_id.decode(), document) for commit_id, document in pairs), onward.decode()
    )


class Chain:
    """Collects the pages of one chain: what it asks for next, and its commits once nothing is left."""

    def __init__(self, session: str, head: str) -> None:
        self._session, self.onward = session, head
        self._found: list[Commit] = []

    def add(self, page: ChainPage) -> None:
        """Raises CommitGone, MalformedDocument."""
        for commit in page.commits:
            if commit.id != self.onward or len(self._found) >= MAX_TURNS:
                raise MalformedDocument(COMMIT_SCHEMA, f"{commit.id[:12]} does not follow in the chain of its session")
            self._found.append(commit)
            self.onward = commit.parent
        if self.onward and (page.onward == "?" or not page.commits):
            raise CommitGone(self._session, self.onward)

    def commits(self) -> list[Commit]:
        """The first turn first."""
        return self._found[::-1]


def conversation(commits: Iterable[Commit]) -> list[Message]:
    """All messages of a chain, the first turn first."""
    return [message for commit in commits for message in commit.messages]
