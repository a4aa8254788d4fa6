"""What both clients share of sessions: which session and commit are meant, and from an answer to an error. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from headpond.errors import CommitGone, InvalidRequest, SessionBusy, SessionConflict, SessionError, SessionGone
from headpond.jobs import check_model_name
from headpond.session_operations import SessionAnswer
from headpond.turns import COMMIT_ID, check_session_name

MAX_LISTED = 100_000
_SHORT_ID = re.compile(r"[0-9a-f]{8,63}")


def parse_session(text: str, model: str | None) -> tuple[str | None, str]:
    """Model and name of `<model>/<name>`, or of a name alone; the model is None if neither says it.

    Raises InvalidRequest.
    """
    said, slash, name = text.rpartition("/")
    if slash and model is not None and said != model:
        raise InvalidRequest(f"'{text[:200]}' is of the model '{said[:63]}', not of '{model[:63]}'", field="session")
    found = said if slash else model
    return None if found is None else check_model_name(found), check_session_name(name)


def the_one(name: str, models: Sequence[str]) -> str:
    """The model whose session is meant, of those that have one of that name. Raises SessionGone, InvalidRequest."""
    if not models:
        raise SessionGone(name)
    if len(models) > 1:
        raise InvalidRequest(
            f"Several models have a session '{name}': say which one, such as {models[0]}/{name}. They are: "
            f"{', '.join(sorted(models))}",
            field="session",
        )
    return models[0]


def full_id(session: str, said: str, known: Iterable[str]) -> str:
    """The commit that is meant: its whole id, or its first 8 digits or more, if they are of one commit alone.

    known: ids of the session's commits. Raises InvalidRequest, CommitGone.
    """
    if COMMIT_ID.fullmatch(said):
        return said
    if not _SHORT_ID.fullmatch(said):
        raise InvalidRequest(
            f"'{said[:100]}' is no commit: give its id, or the first 8 digits of it or more", field="commit"
        )
    found = sorted({commit for commit in known if commit.startswith(said)})
    if len(found) > 1:
        raise InvalidRequest(f"'{said}' begins the ids of {len(found)} commits: give more of it", field="commit")
    if not found:
        raise CommitGone(session, said)
    return found[0]


def refusal(answer: SessionAnswer, session: str, *, commit: str = "", name: str = "") -> SessionError | None:
    """What an answer means; None if it was done. session: as people name it. name: of a fork."""
    match answer:
        case SessionAnswer.OK:
            return None
        case SessionAnswer.GONE:
            return SessionGone(session)
        case SessionAnswer.BUSY:
            return SessionBusy(
                f"A job of session '{session}' waits or runs. Wait until it has ended, or cancel it; then try again.",
                session=session,
            )
        case SessionAnswer.TAKEN:
            return SessionConflict(
                f"There is a session '{name}' already. Give the fork another name, or delete that one first: "
                f"headpond sessions delete {name}",
                session=session,
            )
        case SessionAnswer.UNKNOWN:
            return CommitGone(session, commit, why="is not one of its own")
        case SessionAnswer.CLOSED:
            return SessionBusy(
                f"The queue of session '{session}' is not open: it is not known yet whether this Redis and storage "
                "hold the same history. See: headpond status",
                session=session,
            )
