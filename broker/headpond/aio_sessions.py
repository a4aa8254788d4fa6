"""AsyncSession: headpond.sessions for asyncio. Same names, same arguments, same errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headpond import session_operations as ops
from headpond.aio_queue import AsyncJobQueue
from headpond.commits import Commit, SessionRow, conversation
from headpond.errors import CommitGone, SessionGone
from headpond.session_moves import full_id, parse_session, refusal, the_one
from headpond.turns import ROOT, check_session_name

if TYPE_CHECKING:
    from headpond.aio import AsyncClient, AsyncJob


class AsyncSession:
    """One session; the asynchronous twin of `Session`."""

    def __init__(self, client: AsyncClient, name: str, *, model: str | None = None) -> None:
        self._client = client
        self._model, self.name = parse_session(name, model)

    def __repr__(self) -> str:
        return f"AsyncSession({self.id!r})"

    @property
    def id(self) -> str:
        """`<model>/<name>`; the name alone until its model is known."""
        return self.name if self._model is None else f"{self._model}/{self.name}"

    async def submit(self, prompt: str | None = None, **options: Any) -> AsyncJob:
        return await self._client.submit((await self._queue()).name, prompt, session=self.name, **options)

    async def status(self) -> SessionRow:
        queue = await self._queue()
        row = await queue.session(self.name)
        if row is None and not await queue.session_jobs(self.name):
            raise SessionGone(self.id)
        return row or SessionRow(self.name, "", "", None, "", 0, 0, 0, (), ())

    async def head(self) -> str | None:
        return (await self.status()).head or None

    async def waiting(self) -> list[str]:
        return await (await self._queue()).session_jobs(self.name)

    async def commits(self) -> list[Commit]:
        head = await self.head()
        return [] if head is None else await (await self._queue()).chain(self.id, head)

    async def messages(self) -> list[dict[str, str]]:
        messages = conversation(await self.commits())
        return [{"role": message.role, "content": message.content} for message in messages]

    async def fork(self, *, name: str, at: str | None = None) -> AsyncSession:
        """See `Session.fork`."""
        check_session_name(name)
        queue, commit = await self._queue(), await self._commit(at or await self.head() or "")
        answer = await queue.run(ops.fork(self.name, commit, name=name, settled=at is None))
        if error := refusal(answer, self.id, commit=commit.id, name=f"{queue.name}/{name}"):
            raise error
        return AsyncSession(self._client, name, model=queue.name)

    async def rollback(self, *, to: str) -> None:
        """See `Session.rollback`."""
        commit = None if to == ROOT else await self._commit(to)
        answer = await (await self._queue()).run(ops.rollback(self.name, commit))
        if error := refusal(answer, self.id, commit=to):
            raise error

    async def delete(self) -> None:
        """See `Session.delete`."""
        if error := refusal(await (await self._queue()).run(ops.delete(self.name)), self.id):
            raise error

    async def _queue(self) -> AsyncJobQueue:
        if self._model is None:
            having = []
            for model in await self._client.models():
                queue = await self._client._queue(model)
                if await queue.session(self.name) or await queue.session_jobs(self.name):
                    having.append(model)
            self._model = the_one(self.name, having)
        return await self._client._queue(self._model)

    async def _commit(self, said: str) -> Commit:
        queue = await self._queue()
        known = [] if len(said) == 64 else [*(c.id for c in await self.commits()), *(await self.status()).left]
        commit_id = full_id(self.id, said, known) if said else ""
        commit = await queue.commit(commit_id) if commit_id else None
        if commit is None:
            raise CommitGone(self.id, said or ROOT)
        return commit
