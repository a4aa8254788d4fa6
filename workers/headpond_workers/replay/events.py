"""What a replay's child tells its parent: a line of JSON each, so that what it said last outlives it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from typing import Any

from headpond.errors import HeadpondError


class ReplayBroken(HeadpondError):
    """The child of a replay said something that is no event: a defect."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The engine is warm."""

    engine: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine's fingerprint is not the bundle's; of a verification also: what it makes cannot be compared."""


@dataclass(frozen=True, slots=True)
class Started:
    """The request is rendered. prompt_tokens: of it."""

    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Traced:
    """What this engine would name as having made the result, for a verification.

    provenance: as `Provenance.fields` gives it. capabilities: of the engine. text_alike: whether the stored tokens give
    the stored text; None where there are none. refused: why the request could not be rendered; '' if it was, or need
    not be.
    """

    provenance: dict[str, Any]
    capabilities: Seq[str]
    text_alike: bool | None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """made: ids that the engine gave; 0 for a sign of life. ids, text: what of them, and of held ones, is settled."""

    made: int
    ids: Seq[int]
    text: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """A job that embeds has its vectors. furthest: the largest difference of a number from the bundle's; None if the
    bundle has no vectors of this shape."""

    texts: int
    dimensions: int
    furthest: float | None


@dataclass(frozen=True, slots=True)
class Finished:
    """reason: a headpond.jobs.FinishReason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """An exception ended it. loading: before the engine was there. configuration: of the wrong settings or files."""

    error: str
    loading: bool
    configuration: bool = False


Event = Loaded | Refused | Started | Traced | Step | Embedded | Finished | Failed
_KINDS: dict[str, type[Event]] = {
    kind.__name__.lower(): kind for kind in (Loaded, Refused, Started, Traced, Step, Embedded, Finished, Failed)
}


class EventWriter:
    """The child's end of the pipe."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "wb")

    def send(self, event: Event) -> None:
        """In the pipe when this returns, whatever happens next. Leaves at once if nobody reads any more."""
        line = json.dumps({"event": type(event).__name__.lower(), **asdict(event)}) + "\n"
        try:
            self._file.write(line.encode("ascii"))
            self._file.flush()
        except BrokenPipeError:
            # The parent is gone, and a model in memory serves nobody.
            os._exit(1)


def parse_event(line: bytes) -> Event:
    """Raises ReplayBroken."""
    try:
        fields: dict[str, Any] = json.loads(line)
        return _KINDS[fields.pop("event")](**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReplayBroken(f"The replay's process said {line[:200]!r}, which is no event of a replay.") from error
