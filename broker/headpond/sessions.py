"""A session: one conversation with one model, turn by turn, each a commit. The handle that a producer has of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headpond import session_operations as ops
from headpond.commits import Commit, SessionRow, conversation
from headpond.errors import CommitGone, SessionGone
from headpond.queue import JobQueue
from headpond.session_moves import full_id, parse_session, refusal, the_one
from headpond.turns import ROOT, check_session_name

if TYPE_CHECKING:
    from headpond.client import Client, Job


class Session:
    """One session. Holds no state of its own: any process may make one from the name. Thread-safe."""

    def __init__(self, client: Client, name: str, *, model: str | None = None) -> None:
        """name: `<model>/<name>`, or the name alone with `model`. Where neither says the model, it is the one that has
        a session of that name. Raises InvalidRequest."""
        self._client = client
        self._model, self.name = parse_session(name, model)

    def __repr__(self) -> str:
        return f"Session({self.id!r})"

    @property
    def id(self) -> str:
        """`<model>/<name>`; the name alone until its model is known."""
        return self.name if self._model is None else f"{self._model}/{self.name}"

    @property
    def model(self) -> str:
        """Raises SessionGone, InvalidRequest, RedisUnavailable where only the server knows it."""
        return self._queue().name

    def submit(self, prompt: str | None = None, **options: Any) -> Job:
        """Enqueue the next turn; see `Client.submit`."""
        return self._client.submit(self.model, prompt, session=self.name, **options)

    def status(self) -> SessionRow:
        """Where it stands. Raises SessionGone."""
        queue = self._queue()
        row = queue.session(self.name)
        if row is None and not queue.session_jobs(self.name):
            raise SessionGone(self.id)
        return row or SessionRow(self.name, "", "", None, "", 0, 0, 0, (), ())

    def head(self) -> str | None:
        """Id of the newest commit; None without one. Raises SessionGone."""
        return self.status().head or None

    def waiting(self) -> list[str]:
        """Ids of its jobs that have not ended, in their order; the first one may run."""
        return self._queue().session_jobs(self.name)

    def commits(self) -> list[Commit]:
        """From the first turn to the head. Raises SessionGone, CommitGone, MalformedDocument."""
        head = self.head()
        return [] if head is None else self._queue().chain(self.id, head)

    def messages(self) -> list[dict[str, str]]:
        """The conversation: maps of `role` and `content`, as `Client.submit` takes them. Raises as `commits`."""
        return [{"role": message.role, "content": message.content} for message in conversation(self.commits())]

    def fork(self, *, name: str, at: str | None = None) -> Session:
        """A new session of this model that begins with the turns up to a commit.

        at: of this session, as its id or the first 8 digits of it; None is the head, and then nothing of this session
        may wait or run. Commits are shared, and stay while one of the sessions needs them.
        Raises SessionGone, SessionBusy, SessionConflict if the name is taken, CommitGone, InvalidRequest.
        """
        check_session_name(name)
        queue, commit = self._queue(), self._commit(at or self.head() or "")
        answer = queue.run(ops.fork(self.name, commit, name=name, settled=at is None))
        if error := refusal(answer, self.id, commit=commit.id, name=f"{queue.name}/{name}"):
            raise error
        return Session(self._client, name, model=queue.name)

    def rollback(self, *, to: str) -> None:
        """Move the head to a commit that it had before, or to "root", before its first turn.

        Nothing is lost: the commits that it leaves are kept, and it may move to them again. Nothing of the session may
        wait or run. Raises SessionGone, SessionBusy, CommitGone, InvalidRequest.
        """
        commit = None if to == ROOT else self._commit(to)
        answer = self._queue().run(ops.rollback(self.name, commit))
        if error := refusal(answer, self.id, commit=to):
            raise error

    def delete(self) -> None:
        """Remove the session, and its commits that no other one needs. Nothing of it may wait or run.

        Its jobs and their results stay for their own retention. Raises SessionGone, SessionBusy.
        """
        if error := refusal(self._queue().run(ops.delete(self.name)), self.id):
            raise error

    def _queue(self) -> JobQueue:
        if self._model is None:
            having = [
                model
                for model in self._client.models()
                if (queue := self._client._queue(model)).session_row(self.name) or queue.session_jobs(self.name)
            ]
            self._model = the_one(self.name, having)
        return self._client._queue(self._model)

    def _commit(self, said: str) -> Commit:
        queue = self._queue()
        known = [] if len(said) == 64 else [*(c.id for c in self.commits()), *self.status().left]
        commit_id = full_id(self.id, said, known) if said else ""
        commit = queue.commit(commit_id) if commit_id else None
        if commit is None:
            raise CommitGone(self.id, said or ROOT)
        return commit
