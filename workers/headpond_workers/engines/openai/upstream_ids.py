"""Token ids over HTTP: answers of llama.cpp's server that go on after the ids that a job has.

    stream ---- text with the ids of it ----------------> give
       |------- ids that the stream left out -----------> a short request without a stream, which names all ids;
       |                                                   then a stream again
       `------- end token, limit, failure --------------> the end

The stream names the last id of each event alone: where a character spans tokens, those before are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from headpond.errors import EngineUnavailable
from headpond.jobs import FinishReason
from headpond.requests import JobRequest
from headpond.tables import OpenAIModel
from headpond_workers.engines.openai.bodies import COMPLETIONS, PROBE_TEXT, continuation_body
from headpond_workers.engines.openai.chunks import read_ids, read_token_chunk
from headpond_workers.engines.openai.client import Heard, UpstreamClient
from headpond_workers.engines.openai.upstream_failures import Blame, UpstreamFailure

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_CHARACTER_TOKENS = 4
Give = Callable[[tuple[int, ...], tuple[str, ...]], None]


@dataclass(slots=True)
class Continuation:
    """One answer so far. prompt: ids of the conversation. ids: of the answer, those of earlier attempts first."""

    asked: JobRequest
    seed: int
    prompt: list[int]
    ids: list[int]
    give: Give

    @property
    def left(self) -> int:
        return self.asked.max_tokens - len(self.ids)

    def take(self, ids: list[int], text: str) -> None:
        """The text belongs to the last of its tokens, which completes it."""
        self.ids += ids
        self.give(tuple(ids), ("",) * (len(ids) - 1) + (text,))


@dataclass(slots=True)
class _Stream:
    """What one request has brought. unnamed: events without ids. lost: ids at its end that it did not name."""

    made: int = 0
    unnamed: int = 0
    lost: int = 0
    held: list[int] = field(default_factory=list)
    reason: FinishReason | None = None


class TokenServer:
    """llama.cpp's server, asked for and by token ids."""

    def __init__(self, settings: OpenAIModel, client: UpstreamClient) -> None:
        self._settings, self._client = settings, client
        parts = urlsplit(settings.base_url)
        self._root = f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix('/v1')}"

    async def check(self) -> None:
        """Raises EngineUnavailable if this server cannot continue an answer, UpstreamFailure if it does not say."""
        asked = JobRequest(prompt=PROBE_TEXT, max_tokens=2)
        try:
            given: list[int] = []
            probe = Continuation(asked, 0, await self.render(asked), [], lambda ids, _: given.extend(ids))
            await self.run(probe)
        except UpstreamFailure as failure:
            if failure.blame in (Blame.REQUEST, Blame.HOPELESS):
                raise EngineUnavailable(self._unfit(failure.what)) from None
            raise

    async def render(self, asked: JobRequest) -> list[int]:
        """Token ids of a conversation in the server's chat template."""
        messages = [{"role": message.role, "content": message.content} for message in asked.chat()]
        reply = await self._client.post(f"{self._root}/apply-template", {"messages": messages})
        prompt = reply.get("prompt") if isinstance(reply, dict) else None
        if not isinstance(prompt, str) or not prompt:
            raise UpstreamFailure(Blame.HOPELESS, "/apply-template gives no prompt")
        reply = await self._client.post(
            f"{self._root}/tokenize", {"content": prompt, "add_special": True, "parse_special": True}
        )
        return read_ids(reply.get("tokens") if isinstance(reply, dict) else None)

    async def text_of(self, ids: list[int]) -> str:
        reply = await self._client.post(f"{self._root}/detokenize", {"tokens": ids})
        text = reply.get("content") if isinstance(reply, dict) else None
        if not isinstance(text, str):
            raise UpstreamFailure(Blame.HOPELESS, "/detokenize gives no text")
        return text

    async def run(self, answer: Continuation) -> FinishReason:
        """Go on to the end of the answer. What was given stays good when this raises: run it again to go on."""
        while answer.left > 0:
            heard = await self._stream(answer)
            reason = heard.reason
            if heard.lost:
                reason = await self._fetch(answer, heard.lost)
            elif reason is None:
                if heard.unnamed and not heard.made:
                    raise UpstreamFailure(Blame.HOPELESS, "the answer names no token ids")
                raise UpstreamFailure(Blame.UNCLEAR, "the answer broke off", broken=True)
            if reason is not None:
                return reason
        return FinishReason.LENGTH

    async def _stream(self, answer: Continuation) -> _Stream:
        heard = _Stream()

        def hear(event: object) -> Heard:
            chunk = read_token_chunk(event)
            if chunk is None:
                heard.unnamed += 1
                return Heard.IDLE
            missing = chunk.made - heard.made - len(chunk.ids)
            if chunk.reason is not None:
                self._end(answer, heard, missing, chunk.reason)
                return Heard.ENDED
            if missing or not chunk.ids:
                heard.lost = missing + len(chunk.ids)
                return Heard.ENOUGH
            heard.made = chunk.made
            heard.held += chunk.ids
            if chunk.text:
                # A token without text may be the end token: that is known with the next event.
                answer.take(heard.held, chunk.text)
                heard.held = []
            return Heard.MOVED

        body = continuation_body(
            self._settings, answer.asked, prompt=answer.prompt + answer.ids, made=len(answer.ids),
            max_tokens=answer.left, seed=answer.seed, stream=True,
        )  # fmt: skip
        await self._client.stream(COMPLETIONS, body, hear)
        return heard

    def _end(self, answer: Continuation, heard: _Stream, missing: int, reason: FinishReason) -> None:
        """missing: tokens that no event named; the end token is one of them, or was held."""
        ended = reason is FinishReason.STOP
        held, heard.held = heard.held, []
        if ended and not missing and held:
            held = held[:-1]
        if held:
            answer.take(held, "")
        if missing > (1 if ended else 0):
            heard.lost = missing
        else:
            heard.reason = reason

    async def _fetch(self, answer: Continuation, count: int) -> FinishReason | None:
        """Make the ids that a stream left out, without a stream, and more until no character is incomplete."""
        ids: list[int] = []
        reason: FinishReason | None = None
        for _ in range(1 + _MAX_CHARACTER_TOKENS):
            body = continuation_body(
                self._settings, answer.asked, prompt=answer.prompt + answer.ids + ids, made=len(answer.ids) + len(ids),
                max_tokens=min(count, answer.left - len(ids)), seed=answer.seed, stream=False,
            )  # fmt: skip
            chunk = read_token_chunk(await self._client.post(COMPLETIONS, body))
            if chunk is None:
                raise UpstreamFailure(Blame.HOPELESS, "the answer names no token ids")
            new = list(chunk.ids)
            if chunk.reason is FinishReason.STOP:
                reason = FinishReason.STOP
                # Whether the end token is among them is told by the count.
                new = new[:-1] if len(new) == chunk.made else new
            ids += new
            text = await self.text_of(ids) if ids else ""
            count = 1
            if reason is not None or len(ids) >= answer.left or not text.endswith(_REPLACEMENT):
                break
            if not new:
                raise UpstreamFailure(Blame.UNCLEAR, "the answer made no token and named no reason")
        if ids:
            answer.take(ids, text)
        return reason

    def _unfit(self, why: str) -> str:
        return (
            f"The server at {self._settings.base_url} cannot continue an answer from token ids ({why}): "
            'resume = "continue" needs llama.cpp\'s server. Write resume = "rewind".'
        )


def is_cut(shown: str, whole: str) -> bool:
    """Whether the last token was cut at a stop string, by a worker that was gone before it wrote the end.

    A space at the beginning may be missing from what the server makes of ids.
    """
    shown, whole = shown.lstrip(), whole.lstrip()
    return len(whole) > len(shown) and whole.startswith(shown)
