"""A job's place in a conversation: what a producer asks of a session, and what its result says of it. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from headpond.errors import InvalidRequest, MalformedDocument

SESSION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
COMMIT_ID = re.compile(r"[0-9a-f]{64}")
ROOT = "root"
"""Stands for the head of a session that has no commit."""
MAX_SKIPPED = 8
"""Jobs that one turn tells of."""


class Policy(StrEnum):
    """What becomes of a conversation when its model is switched to another version."""

    PIN = "pin"
    """Its turns run on the version that made its head, and fail where nobody serves that any more."""
    MIGRATE = "migrate"
    """Its turns run on any version, which renders the whole conversation anew. The commit says so."""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What a producer asks of a session. policy: None leaves the session's. parent: the head that the turn must be made
    on: a commit's id, ROOT, or '' for whatever it is then."""

    session: str
    policy: Policy | None = None
    parent: str = ""

    def words(self) -> tuple[str, str, str]:
        """As a data entry's header has them."""
        return self.session, self.policy.value if self.policy else "", self.parent


def turn_request(session: object, policy: object = None, parent: object = None) -> TurnRequest:
    """Check what a producer gave. Raises InvalidRequest."""
    name = check_session_name(session)
    if parent is not None and (not isinstance(parent, str) or not (parent == ROOT or COMMIT_ID.fullmatch(parent))):
        raise InvalidRequest(
            f"parent={str(parent)[:100]!r}: the id of a commit, 64 hex digits, as in result.commit; or '{ROOT}' for a "
            "session without a commit",
            field="parent",
        )
    return TurnRequest(name, None if policy is None else _policy(policy), parent or "")


def check_session_name(name: object) -> str:
    """Return name if it can name a session. Raises InvalidRequest."""
    if not isinstance(name, str) or not SESSION_NAME.fullmatch(name):
        raise InvalidRequest(
            f"'{str(name)[:150]}' cannot name a session. A name has 1 to 127 letters, digits, '.', '_' and '-', and "
            "begins with a letter or a digit.",
            field="session",
        )
    return name


def _policy(policy: object) -> Policy:
    try:
        return Policy(str(policy))
    except ValueError:
        names = " or ".join(each.value for each in Policy)
        raise InvalidRequest(f"policy='{str(policy)[:100]}': {names}", field="policy") from None


@dataclass(frozen=True, slots=True)
class Turn:
    """What a result says of its session.

    commit: that holds the turn and its answer; None if the job made none, and left the session as it was. parent: the
    commit that it went on from; None for the first turn, and where no worker ended the job. skipped: jobs of the
    session, the latest of them, that ended without a commit since `parent`: their turns are not in the conversation.
    migrated_from: the version of the model that made `parent`, if this turn ran on another one, or on another
    build or other settings of it.
    """

    session: str
    commit: str | None = None
    parent: str | None = None
    skipped: tuple[str, ...] = ()
    migrated_from: str | None = None

    def fields(self) -> dict[str, Any]:
        """As a result document has it, and JSON too."""
        return {
            "session": self.session,
            "commit": self.commit,
            "parent": self.parent,
            "skipped": list(self.skipped),
            "migrated_from": self.migrated_from,
        }

    @classmethod
    def of_fields(cls, fields: object) -> Turn:
        """Raises MalformedDocument."""
        if not isinstance(fields, dict) or not isinstance(fields.get("session"), str):
            raise MalformedDocument("turn", "it is no map with a session")
        words = [fields.get(name) for name in ("commit", "parent", "migrated_from")]
        skipped = fields.get("skipped", [])
        if not all(word is None or isinstance(word, str) for word in words):
            raise MalformedDocument("turn", "a field is no text")
        if not isinstance(skipped, list) or not all(isinstance(job, str) for job in skipped):
            raise MalformedDocument("turn", "skipped is no array of job ids")
        commit, parent, migrated_from = words
        return cls(fields["session"], commit, parent, tuple(skipped), migrated_from)
