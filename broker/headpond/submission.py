"""From a producer's arguments to a queue entry, and from the queue's answer to an error. No I/O."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ulid import ULID

from headpond.errors import (
    HeadpondError,
    IdConflict,
    InvalidRequest,
    ManyRefused,
    QueueFull,
    SessionConflict,
    SessionFull,
    UnknownModel,
)
from headpond.jobs import TENANT_NAME, VERSION_NAME, JobId, Priority
from headpond.models import ModelRow
from headpond.nearby import nearest
from headpond.operations import Entry, Submitted
from headpond.requests import JobRequest, digest_of, parse_request
from headpond.sampling import Sampling
from headpond.turns import TurnRequest, turn_request
from headpond.wire import Call, pack_data

GENERATE = "generate"
"""The actor that runs a job; its one argument is `request`."""

MAX_DEADLINE_S = 10 * 365 * 86400.0
CHUNK_JOBS = 100
CHUNK_BYTES = 1 << 20
WINDOW_CHUNKS = 16
"""Chunks that are on their way to the server at once."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One checked request, ready to enqueue."""

    id: JobId
    request: JobRequest
    entry: Entry
    max_queued: int


def prepare(
    model: str,
    prompt: str | None,
    messages: Sequence[Mapping[str, str]] | None,
    *,
    known: Mapping[str, ModelRow],
    id: str | None = None,
    new_ids: Iterator[JobId] | None = None,
    delay: float = 0.0,
    deadline: float | None = None,
    priority: str = Priority.NORMAL,
    tenant: str = "",
    session: str | None = None,
    parent: str | None = None,
    policy: str | None = None,
    **options: Any,
) -> Submission:
    """Check everything that can be checked without the model. model: its name, or name@version for that version alone.
    new_ids: where the id comes from if none is given.

    Raises InvalidRequest, UnknownModel.
    """
    name, pinned = parse_model(model)
    row = known.get(name)
    if row is None:
        raise UnknownModel(name[:100], known)
    fresh = new_ids or (JobId(name, str(ULID())) for _ in range(1))
    new_id = next(fresh) if id is None else JobId.parse(id)
    if new_id.model != name:
        raise InvalidRequest(
            f"The id '{id}' is of the model '{new_id.model}', not of '{name}': write {name}/{new_id.slug}",
            field="id",
        )
    if not 0 <= delay <= MAX_DEADLINE_S:
        raise InvalidRequest(f"delay={delay}: seconds from now, 0 or more", field="delay")
    if deadline is not None and not 0 < deadline <= MAX_DEADLINE_S:
        raise InvalidRequest(f"deadline={deadline}: seconds from now, more than 0", field="deadline")
    band = parse_priority(priority)
    if tenant and not TENANT_NAME.fullmatch(tenant):
        raise InvalidRequest(
            f"'{tenant[:100]}' cannot name a tenant. A name has 1 to 63 letters, digits, '.', '_', '@', ':' and '-', "
            "and begins with a letter or a digit.",
            field="tenant",
        )
    turn = _turn(session, parent, policy, delay)
    request = _request(prompt, messages, options)
    if turn is not None and request.input is not None:
        raise InvalidRequest("a job that embeds is no turn of a session: leave out session", field="session")
    return submission_of(
        new_id, request, tenant=tenant, band=band, pinned=pinned, max_queued=row.max_queued, delay=delay,
        deadline=deadline, turn=turn,
    )  # fmt: skip


def _turn(session: str | None, parent: str | None, policy: str | None, delay: float) -> TurnRequest | None:
    if session is None:
        for name, value in (("parent", parent), ("policy", policy)):
            if value is not None:
                raise InvalidRequest(f"{name} is of a session: give session too", field=name)
        return None
    if delay:
        raise InvalidRequest(
            "a job of a session has no delay: its turn comes once the one before has ended", field="delay"
        )
    return turn_request(session, policy, parent)


def submission_of(
    new_id: JobId,
    request: JobRequest,
    *,
    tenant: str,
    band: Priority,
    pinned: str,
    max_queued: int,
    delay: float = 0.0,
    deadline: float | None = None,
    turn: TurnRequest | None = None,
) -> Submission:
    """What is enqueued for a request that was checked before. delay, deadline: seconds from now. turn: of a session."""
    asked = request.asked()
    call = Call(GENERATE, (), {"request": asked}, {}, int(time.time() * 1000))
    digest, cost = digest_of(asked, pinned=pinned, turn=turn), request.cost_tokens()
    entry = Entry(
        id=str(new_id),
        data=pack_data(call, digest=digest, tenant=tenant, band=band.value, pinned=pinned, cost=cost, turn=turn),
        digest=digest,
        tenant=tenant,
        band=band,
        pinned=pinned,
        cost=cost,
        delay_s=delay,
        deadline_s=deadline,
        session="" if turn is None else turn.session,
    )
    return Submission(new_id, request, entry, max_queued)


def prepare_many(
    model: str, requests: Sequence[Mapping[str, Any]], common: Mapping[str, Any], *, known: Mapping[str, ModelRow]
) -> list[Submission]:
    """`prepare` for each of `requests`, which are arguments of submit; `common` stands for what they do not say.

    Raises InvalidRequest, whose text names the first bad one by its place, and UnknownModel.
    """
    submissions = []
    new_ids = JobId.many(parse_model(model)[0])
    for n, request in enumerate(requests):
        arguments = {**common, **request}
        try:
            prompt, messages = arguments.pop("prompt", None), arguments.pop("messages", None)
            submissions.append(prepare(model, prompt, messages, known=known, new_ids=new_ids, **arguments))
        except UnknownModel:
            raise
        except InvalidRequest as error:
            raise InvalidRequest(f"requests[{n}]: {error}", field=error.field) from error
        except TypeError as error:
            raise InvalidRequest(f"requests[{n}]: {error}", field="requests") from error
    return submissions


def parse_model(model: str) -> tuple[str, str]:
    """Name and version of `name` or `name@version`; version '' without one. Raises InvalidRequest."""
    name, at, version = model.partition("@")
    if at and not VERSION_NAME.fullmatch(version):
        raise InvalidRequest(
            f"'{version[:100]}' cannot name a version. Versions that are served are listed by: headpond status",
            field="model",
        )
    return name, version


def parse_priority(priority: str) -> Priority:
    """Raises InvalidRequest."""
    try:
        return Priority(priority)
    except ValueError:
        names = ", ".join(band.value for band in Priority)
        raise InvalidRequest(f"priority='{str(priority)[:100]}': one of {names}", field="priority") from None


def _request(prompt: str | None, messages: object, options: dict[str, Any]) -> JobRequest:
    fields: dict[str, Any] = {} if prompt is None and "input" in options else {"prompt": prompt}
    # What is not asked for is not checked either: its default is good.
    if sampling := {key: options.pop(key) for key in Sampling.model_fields if key in options}:
        fields["sampling"] = {key: _as_sampled(key, value) for key, value in sampling.items()}
    if "input" in options:
        value = options.pop("input")
        fields["input"] = [value] if isinstance(value, str) else _listed(value)
    for key in ("response_format", "grammar"):
        if (value := options.pop(key, None)) is not None:
            fields[key] = value
    if messages is not None:
        fields["messages"] = _listed(messages)
    for key in ("stop", "stop_token_ids"):
        value = options.pop(key, ())
        if value != ():
            fields[key] = [value] if key == "stop" and isinstance(value, str) else _listed(value)
    for key in options:
        if key not in JobRequest.model_fields:
            raise InvalidRequest(f"{key[:100]}: there is no such argument{nearest(key, _ARGUMENTS)}", field=key)
    return parse_request(fields | options)


def _as_sampled(key: str, value: object) -> object:
    """A setting as `Sampling` takes it: to a person 0 and 1 are floats too, and a token's id is a number."""
    if key == "logit_bias" and isinstance(value, Mapping):
        return {str(token): _as_float(bias) for token, bias in value.items()}
    if key == "dry_sequence_breakers":
        return _listed(value)
    return value if key in _WHOLE_NUMBERS else _as_float(value)


_ARGUMENTS = (JobRequest.model_fields.keys() - {"sampling"}) | Sampling.model_fields.keys() | {
    "id", "delay", "deadline", "priority", "tenant", "session", "parent", "policy", "durability", "durability_timeout",
}  # fmt: skip
"""Of `submit`, by keyword."""
_WHOLE_NUMBERS = {"seed", *(name for name, field in Sampling.model_fields.items() if type(field.default) is int)}


def _as_float(value: object) -> object:
    try:
        return float(value) if type(value) is int else value
    except OverflowError:
        return value  # For the request's own check to refuse.


def _listed(values: object) -> object:
    """A sequence as a list, its mappings as dicts. Anything else is left for the request's own check to refuse."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return values
    return [dict(value) if isinstance(value, Mapping) else value for value in values]


def is_refused(answers: Sequence[Submitted]) -> bool:
    return any(answer not in (Submitted.NEW, Submitted.KNOWN) for answer in answers)


def raise_refusals(
    submissions: Sequence[Submission], answers: Sequence[Submitted], *, retry_after_s: float, many: bool
) -> NoReturn:
    """Raise what `is_refused` found: ManyRefused, or for a single submit the error itself.

    retry_after_s: of the queue, where it is full.
    """
    accepted: list[str] = []
    refused: list[tuple[int, HeadpondError]] = []
    for n, (submission, answer) in enumerate(zip(submissions, answers, strict=True)):
        if answer is Submitted.CONFLICT:
            refused.append((n, IdConflict(str(submission.id))))
        elif answer is Submitted.FULL:
            model, limit = submission.id.model, submission.max_queued
            refused.append((n, QueueFull(model, limit=limit, retry_after_s=retry_after_s)))
        elif answer is Submitted.CROWDED:
            name = submission.entry.session
            text = f"Session '{name}' has 1000 jobs that have not ended, and takes no more until some have."
            refused.append((n, SessionFull(text, session=name)))
        elif answer is Submitted.MOVED:
            name = submission.entry.session
            text = (
                f"The head of session '{name}' is not the parent that was asked for: somebody else has added a turn, "
                "or moved it. Read the conversation anew, and submit on the head that it has."
            )
            refused.append((n, SessionConflict(text, session=name)))
        else:
            accepted.append(str(submission.id))
    raise ManyRefused(accepted, refused) if many else refused[0][1]


def chunked(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Entries in groups that one script takes in a moment: others are served between two of them."""
    group: list[Entry] = []
    size = 0
    for entry in entries:
        if group and (len(group) >= CHUNK_JOBS or size + len(entry.data) > CHUNK_BYTES):
            yield group
            group, size = [], 0
        group.append(entry)
        size += len(entry.data)
    if group:
        yield group
