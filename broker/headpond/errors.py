"""Every error that headpond raises, as one tree.

    HeadpondError
    |- ConfigError              a setting is wrong or missing: file, key, what to write
    |  `- NameTaken             another deployment on this Redis means another model by a name
    |- ServiceUnavailable       a server does not answer (retry=True)
    |  |- RedisUnavailable
    |  |  `- QueueMending        storage's part of a queue is being put back into Redis
    |  `- StorageUnavailable
    |- QueueError               the server refused a command: a defect, or a server that is not as it must be
    |  `- ServerWentBack        Redis went back in time amid calls that belong together (retry=True)
    |- InvalidRequest           refused at submit; nothing was enqueued
    |  |- UnknownModel
    |  `- IdConflict
    |- QueueFull                back-pressure (retry=True)
    |- ManyRefused              some jobs of a submit_many were not enqueued; it says which were
    |- RestoreRefused           this Redis is not one that a history can be restored into
    |- NameInUse                the name of a model is in use, so it is not forgotten
    |- NotQuarantined           the job is not among the quarantined ones, so it is not for an operator to decide
    |- NotCommitted             the job's end is not in storage yet (retry=True)
    |- BundleError              a replay bundle cannot be read or written
    |- JobGone                  the job is unknown, or its retention has passed
    |  `- NotStored              storage does not hold the job's end
    |- ResultTimeout            the job goes on; only the waiting ended (retry=True)
    |- JobEnded                 the job ended without an answer; carries the partial result
    |  |- JobFailed
    |  |- JobCancelled
    |  |- JobExpired
    |  `- JobQuarantined
    |- MalformedDocument        bytes that are not the document they should be
    |  `- UnsupportedSchema
    |- EngineError              an engine could not load, or could not run a sequence
    |  |- EngineUnavailable
    |  |- EngineOutOfMemory    the device is full; another attempt may find room (retry=True)
    |  |- EngineBroken         the engine is beyond repair; its process leaves (retry=True)
    |  |- UpstreamClosed       the server behind a proxy serves nobody just now (retry=True)
    |  |- JobPutBack           the server behind a proxy failed one job for now (retry=True)
    |  |- CapabilityMissing    this engine cannot do what was asked, ever
    |  |- PrefixRefused        stored keys and values that are damaged or of another model
    |  |- PromptTooLong
    |  `- SequenceFailed
    |- ModelFileError           weights that are missing, altered or of a format that is refused
    |- BlobError                what S3-compatible storage answered
    |  |- BlobMissing
    |  |- BlobChanged           a conditional put lost
    |  |- BlobCorrupt
    |  |- BlobMismatch
    |  |- CommitLost             another writer committed first (nothing is lost)
    |  |- StaleIncarnation       Redis went back in time without noticing
    |  |- HistoryMismatch        storage and Redis hold different histories
    |  |- HistoryTooShort        storage keeps no state of a model that is so old
    |  |- AliasMoved             an alias does not name what it was to be moved from
    |  |- PushOvertaken          a collector took a push for dead; it begins anew (retry=True)
    |  `- CollectionUnderWay     another collector is at work (retry=True)
    |- VersionError             a version of a model cannot be used as was asked
    |  |- VersionMissing        no such version or alias
    |  |- VersionUnusable       it is quarantined, deleted or not complete
    |  `- VersionInUse          an alias names it, or a worker serves it
    `- DeploymentError          `headpond up` and its relatives could not do what was asked

`retry` says whether the same call may succeed later without a change.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headpond.jobs import Result


class HeadpondError(Exception):
    """Base of every error of this library. `str()` of it is meant for people."""

    retry: ClassVar[bool] = False


class ConfigError(HeadpondError):
    """A setting is wrong. `where` names the file, and the key or line in it."""

    def __init__(self, message: str, *, where: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where = where


@dataclass(frozen=True, slots=True)
class NameConflict:
    """One name that others hold. holders: (id, in words) of each other deployment. differences: (key, here, there)."""

    name: str
    holders: tuple[tuple[str, str], ...]
    differences: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        lines = [f"The name '{self.name}' belongs to another model on this Redis. These hold it:"]
        lines += [f"  deployment {shown}" for _, shown in self.holders]
        lines += ["The two models differ in:"]
        lines += [f"  {key}: {here} here, {there} there" for key, here, there in self.differences]
        lines += [
            f"Give this model another name, or make these settings equal, or stop it there: headpond models stop "
            f"{self.name}. If a deployment is never coming back:"
        ]
        lines += [f"  headpond models forget {self.name} --deployment {holder}" for holder, _ in self.holders]
        return "\n".join(lines)


class NameTaken(ConfigError):
    """Other deployments on this Redis mean other models by these names. Nothing was started or changed."""

    def __init__(self, conflicts: Iterable[NameConflict], *, where: str) -> None:
        self.conflicts = tuple(conflicts)
        super().__init__("\n".join(str(conflict) for conflict in self.conflicts), where=where)


class ServiceUnavailable(HeadpondError):
    """A server that headpond needs does not answer.

    url: what was tried, without its password. configured_in: where that address came from.
    """

    retry = True
    service: ClassVar[str] = "a server"

    def __init__(self, url: str, *, configured_in: str, reason: str) -> None:
        super().__init__(
            f"Cannot reach {self.service} at {url} ({reason}). The address comes from {configured_in}. "
            "Start it there, or point headpond elsewhere."
        )
        self.url = url
        self.configured_in = configured_in
        self.reason = reason


class RedisUnavailable(ServiceUnavailable):
    service = "Redis"


class QueueMending(RedisUnavailable):
    """What storage holds of a queue is being put back into Redis. Until that is done nothing of it is leased and no job
    ends; whoever asks for that asks again, as after an outage.

    state: 'restoring' or 'reconciling'.
    """

    _WHAT: ClassVar[dict[str, str]] = {
        "restoring": "is being restored from storage. It opens when that command has ended: headpond restore",
        "reconciling": "waits for what storage has and Redis forgot when its server went back in time. The persister "
        "puts that back, which takes a second or two if storage answers: headpond logs persister",
    }

    def __init__(self, queue: str, *, state: str, url: str, configured_in: str) -> None:
        HeadpondError.__init__(self, f"The queue '{queue}' {self._WHAT.get(state, state)}")
        self.queue, self.state = queue, state
        self.url, self.configured_in, self.reason = url, configured_in, state


class StorageUnavailable(ServiceUnavailable):
    service = "S3 storage"


class QueueError(HeadpondError):
    """The server refused a command: a defect, or a server that is not as headpond needs it."""


class ServerWentBack(QueueError):
    """Redis went back in time amid several calls that belong together, or another has made them all. Begin anew."""

    retry = True

    def __init__(self, script: str) -> None:
        super().__init__(
            f"{script} was refused: the server went back in time since this began, or another process has done it all. "
            "Try again"
        )


class InvalidRequest(HeadpondError):
    """The request was refused before anything was enqueued. `field` names what is wrong."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class UnknownModel(InvalidRequest):
    """No model of that name is configured on this Redis. `known` lists those that are."""

    def __init__(self, model: str, known: Iterable[str]) -> None:
        self.model = model
        self.known = sorted(known)
        have = (
            f"configured models: {', '.join(self.known)}"
            if self.known
            else "no model is configured on this Redis yet; start some with: headpond up"
        )
        super().__init__(f"No model is named '{model}' ({have}).", field="model")


class IdConflict(InvalidRequest):
    """The id belongs to another request. Nothing of that other request is shown."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"The id '{job_id}' was already used for another request. Use a new id, or send the same request.",
            field="id",
        )
        self.job_id = job_id


class QueueFull(HeadpondError):
    """The model's queue holds as many waiting jobs as its configuration allows."""

    retry = True

    def __init__(self, model: str, *, limit: int, retry_after_s: float) -> None:
        super().__init__(
            f"The queue of '{model}' is full ({limit} jobs wait). Try again in {retry_after_s:.1f} s, "
            "or add workers with: headpond scale"
        )
        self.model = model
        self.limit = limit
        self.retry_after_s = retry_after_s


class ManyRefused(HeadpondError):
    """Some jobs of one submit_many were not enqueued.

    accepted: ids of those that were, or were there already. refused: place in the request and error of the others.
    The same call may be repeated as it is if the requests have ids: what was accepted is known.
    """

    def __init__(self, accepted: Iterable[str], refused: Iterable[tuple[int, HeadpondError]]) -> None:
        self.accepted = tuple(accepted)
        self.refused = tuple(refused)
        place, first = self.refused[0]
        super().__init__(
            f"{len(self.refused)} of {len(self.accepted) + len(self.refused)} jobs were not enqueued. The first of "
            f"them, requests[{place}]: {first}"
        )


class RestoreRefused(HeadpondError):
    """A model is not restored. Nothing was changed."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"'{model}' is not restored: {reason}")
        self.model = model
        self.reason = reason


class NameInUse(HeadpondError):
    """The name of a model is in use, so it is not forgotten. Nothing was changed."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"The name '{model}' is not forgotten: {reason}")
        self.model = model


class NotQuarantined(HeadpondError):
    """The job is not quarantined, so there is nothing to decide about it. Nothing was changed."""

    def __init__(self, job_id: str, *, state: str) -> None:
        super().__init__(
            f"The job '{job_id}' is {state}, not quarantined. Those that are: headpond dead list. To end a job "
            f"that has not ended: headpond cancel {job_id}"
        )
        self.job_id = job_id
        self.state = state


class NotCommitted(HeadpondError):
    """Storage does not hold the job's end yet, and nothing is dropped before it does. Nothing was changed."""

    retry = True

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"The end of '{job_id}' is not in storage yet, and nothing is dropped before. Try again in a second; if "
            "that does not help, see what the persister says: headpond logs persister"
        )
        self.job_id = job_id


class BundleError(HeadpondError):
    """A replay bundle cannot be read or written. `where`: its file."""

    def __init__(self, message: str, *, where: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where = where


class JobGone(HeadpondError):
    """Redis does not hold this job: it never did, or its retention has passed."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"Redis does not hold the job '{job_id}': it was never submitted here, or its retention has "
            f"passed. If storage is configured: headpond result {job_id} --from-storage"
        )
        self.job_id = job_id


class NotStored(JobGone):
    """Storage does not hold the end of this job."""

    def __init__(self, job_id: str) -> None:
        HeadpondError.__init__(
            self,
            f"Storage does not hold the end of the job '{job_id}': it has not ended, it ended within the last second, "
            "or it was never submitted here.",
        )
        self.job_id = job_id


class ResultTimeout(HeadpondError):
    """The job had not ended in time. It goes on."""

    retry = True

    def __init__(self, job_id: str, *, timeout_s: float) -> None:
        super().__init__(f"The job '{job_id}' has not ended after {timeout_s:g} s; it goes on.")
        self.job_id = job_id
        self.timeout_s = timeout_s


class JobEnded(HeadpondError):
    """The job ended without a full answer. `result` holds the text and tokens up to then."""

    what: ClassVar[str] = "ended"

    def __init__(self, result: Result) -> None:
        reason = f": {result.error}" if result.error else ""
        super().__init__(f"The job '{result.id}' {self.what} after {len(result.token_ids)} tokens{reason}")
        self.result = result


class JobFailed(JobEnded):
    what = "failed"


class JobCancelled(JobEnded):
    what = "was cancelled"


class JobExpired(JobEnded):
    what = "passed its deadline"


class JobQuarantined(JobEnded):
    what = "was quarantined"


class MalformedDocument(HeadpondError):
    """Bytes that should be one of headpond's documents are not."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"Not a valid {kind} document: {reason}")
        self.kind = kind
        self.reason = reason


class UnsupportedSchema(MalformedDocument):
    """A document of a newer major version than this headpond reads."""

    def __init__(self, kind: str, *, found: object, supported: int) -> None:
        super().__init__(kind, f"schema version {found!r}; this headpond reads up to {supported}. Upgrade headpond")
        self.found = found
        self.supported = supported


class EngineError(HeadpondError):
    """An engine could not do what was asked."""


class EngineUnavailable(EngineError):
    """The engine or its model could not be loaded: what is missing, and how to get it."""


class EngineOutOfMemory(EngineError):
    """The device has no memory left for this sequence. The engine is clear again, and its neighbours go on."""

    retry = True


class EngineBroken(EngineError):
    """The engine cannot go on in this process. Its jobs are parked; a new process may serve them."""

    retry = True


class UpstreamClosed(EngineError):
    """The server behind a proxy serves nobody just now, and no job is to blame: jobs wait until it does again.

    needs_operator: waiting will not help, such as with a wrong key.
    """

    retry = True

    def __init__(self, message: str, *, needs_operator: bool = False) -> None:
        super().__init__(message)
        self.needs_operator = needs_operator


class JobPutBack(EngineError):
    """The server behind a proxy failed one job for now: it broke off amid an answer, or is too busy for this one. The
    job goes back to its queue, and nobody is to blame."""

    retry = True


class CapabilityMissing(EngineError):
    """An ability that an engine of this kind does not have."""

    _MEANING: ClassVar[dict[str, str]] = {
        "seeded": "repeat an answer from its seed",
        "exact_resume": "promise the identical continuation after a restart",
        "adapters": "serve adapters",
        "kv_prefixes": "store keys and values of a prompt",
        "json_schema": "bind an answer to JSON or to a schema",
        "grammar": "bind an answer to a grammar",
        "embeddings": "embed texts",
        "generation": "generate text: it is loaded to embed",
    }
    """A name that is not here is one of `Sampling`."""

    def __init__(self, engine: str, capability: str) -> None:
        super().__init__(
            f"The engine '{engine}' cannot {self._MEANING.get(capability, f'sample with {capability}')}. "
            "Leave that out of the request, or serve the model with an engine that can."
        )
        self.engine = engine
        self.capability = capability


class PrefixRefused(EngineError):
    """A file of keys and values was not loaded: it is damaged, or was made by another model. Prefill instead."""


class PromptTooLong(EngineError):
    """The prompt leaves no room for an answer in the model's context."""

    def __init__(self, *, prompt_tokens: int, context_tokens: int) -> None:
        super().__init__(
            f"The prompt has {prompt_tokens} tokens, and the model's context holds {context_tokens}, answer included. "
            "Shorten the prompt, or raise context_tokens in the model's table."
        )
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class SequenceFailed(EngineError):
    """The engine gave up on one sequence; its neighbours go on."""


class ModelFileError(HeadpondError):
    """Weights are missing, altered, or in a format that headpond refuses to load."""


class BlobError(HeadpondError):
    """Storage answered, and the answer was no."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key


class BlobMissing(BlobError):
    def __init__(self, key: str) -> None:
        super().__init__(key, "no such object in storage")


class BlobChanged(BlobError):
    """A conditional put lost: the object exists, or is no longer what was read."""

    def __init__(self, key: str) -> None:
        super().__init__(key, "another writer was first; read it again before writing")


class BlobCorrupt(BlobError):
    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, f"corrupt object: {reason}")
        self.reason = reason


class BlobMismatch(BlobError):
    """What was to be put is not what its caller hashed: it has changed since, and is not stored."""

    def __init__(self, key: str) -> None:
        super().__init__(
            key, "its content changed between being hashed and being stored; nothing was stored. Try again"
        )


class CommitLost(BlobError):
    """Another writer moved the head first. The batch is abandoned: its entries are still in the journal, and what
    of them is already in the chain shows in the watermark of the head. Read the head, then commit again."""

    def __init__(self, key: str) -> None:
        super().__init__(key, "another writer committed first; read the head again, then commit what is left")


class StaleIncarnation(BlobError):
    """Redis names a lower incarnation than storage has seen: it went back in time without noticing, so its journal
    ids may name other entries than the ones in the chain. Nothing was committed."""

    def __init__(self, key: str, *, inc: int, head_inc: int) -> None:
        super().__init__(
            key, f"Redis is at incarnation {inc}, storage has seen {head_inc}; raise it in Redis above that first"
        )
        self.inc = inc
        self.head_inc = head_inc


class HistoryMismatch(BlobError):
    """Storage and Redis hold different histories of one model. Nothing was committed."""

    def __init__(self, key: str, *, found: str, wanted: str) -> None:
        super().__init__(
            key,
            f"storage holds {found}, Redis {wanted}. Nothing is committed until [storage] names the bucket of this "
            "Redis again; the journal keeps what waits.",
        )


class HistoryTooShort(BlobError):
    """Storage keeps no state of a model that is so old. oldest_ms: of the oldest one that is kept, by Redis's clock."""

    def __init__(self, key: str, *, oldest_ms: int) -> None:
        oldest = datetime.fromtimestamp(oldest_ms / 1000, UTC).isoformat(timespec="seconds")
        super().__init__(key, f"no state of that time is kept; the oldest that can be restored is of {oldest}")
        self.oldest_ms = oldest_ms


class AliasMoved(BlobError):
    """An alias names another version than the one that it was to be moved from. Nothing was changed."""

    def __init__(self, key: str, *, alias: str, expected: int, found: int) -> None:
        super().__init__(
            key, f"'{alias}' names version {found or 'none'} now, not {expected or 'none'}; nothing was moved"
        )
        self.alias, self.expected, self.found = alias, expected, found


class PushOvertaken(BlobError):
    """A push that took longer than the grace of the collector, which then dropped its intent."""

    retry = True

    def __init__(self, key: str) -> None:
        super().__init__(key, "the push took so long that a collector dropped its intent; it has to begin anew")


class CollectionUnderWay(BlobError):
    """Another collector is at work. holder: which; until_ms: when its lease ends, by its clock."""

    retry = True

    def __init__(self, holder: str, *, until_ms: int) -> None:
        until = datetime.fromtimestamp(until_ms / 1000, tz=UTC)
        super().__init__(
            "gc/state",
            f"{holder} collects just now, until {until:%Y-%m-%d %H:%M:%S} UTC at the latest. Try again "
            "when it is done, or then if it was killed",
        )
        self.holder, self.until_ms = holder, until_ms


class VersionError(HeadpondError):
    """A version of a model cannot be used as was asked. version: `chat@3` or `chat@prod`."""

    def __init__(self, version: str, message: str) -> None:
        super().__init__(f"{version}: {message}")
        self.version = version


class VersionMissing(VersionError):
    """There is no such version or alias."""


class VersionUnusable(VersionError):
    """A version that is quarantined, deleted or not complete."""


class VersionInUse(VersionError):
    """It cannot be deleted: an alias names it."""


class DeploymentError(HeadpondError):
    """The deployment on this machine could not do what was asked."""
