"""What went wrong with a request to another server, and who is to blame: from the SDK's errors to one of ours."""

from __future__ import annotations

import email.utils
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import httpx2
import openai

E = TypeVar("E", bound=BaseException)


class Blame(Enum):
    """What a failed request says, and so what is done."""

    REQUEST = "request"
    """The server refuses this request: its job fails."""
    ACCESS = "access"
    """The server lets this worker not in, such as with a wrong key: a probe decides whether that is so for all."""
    OUTAGE = "outage"
    """The server is away or overloaded: tried again, then put back, for nobody is to blame."""
    UNCLEAR = "unclear"
    """The server failed; it may be the request's fault: tried again, then a probe decides."""
    HOPELESS = "hopeless"
    """As UNCLEAR, but the same request would fail in the same way: a probe decides at once."""


@dataclass(slots=True)
class UpstreamFailure(Exception):
    """One request failed. said: of the server, raw: it may hold anything. retry_after_s: as the server asks. broken: it
    accepted the request, and was gone before it had answered."""

    blame: Blame
    what: str
    said: str = ""
    retry_after_s: float | None = None
    broken: bool = False


class ReplyRefused(Exception):
    """A reply that breaks a bound or the protocol; raised below the SDK, which wraps it."""

    def __init__(self, what: str, blame: Blame) -> None:
        super().__init__(what)
        self.what, self.blame = what, blame


_OF_STATUS = {
    401: Blame.ACCESS,
    402: Blame.ACCESS,
    403: Blame.ACCESS,
    404: Blame.HOPELESS,
    407: Blame.ACCESS,
    408: Blame.OUTAGE,
    409: Blame.UNCLEAR,
    425: Blame.OUTAGE,
    429: Blame.OUTAGE,
    502: Blame.OUTAGE,
    503: Blame.OUTAGE,
    504: Blame.UNCLEAR,
}
_AWAY = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError, httpx2.PoolTimeout)


def failure_of(error: Exception, *, now: Callable[[], float] = time.time) -> UpstreamFailure:
    """now: seconds since the epoch, for a Retry-After that is a date. What is no failure of a request is raised."""
    if isinstance(error, UpstreamFailure):
        return error
    refused = _caused_by(error, ReplyRefused)
    if refused is not None:
        return UpstreamFailure(refused.blame, refused.what)
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, now)
    untrusted = _caused_by(error, ssl.SSLCertVerificationError)
    if untrusted is not None:
        return UpstreamFailure(Blame.ACCESS, "the server's certificate is not trusted; check ca_file", str(untrusted))
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
    if isinstance(error, openai.APITimeoutError) and not isinstance(cause, _AWAY):
        return UpstreamFailure(Blame.OUTAGE, "the server did not answer in time")
    if isinstance(cause, _AWAY):
        return UpstreamFailure(Blame.OUTAGE, "the server cannot be reached", str(cause))
    if isinstance(cause, httpx2.HTTPError):
        return UpstreamFailure(Blame.UNCLEAR, "the connection broke", str(cause), broken=True)
    if isinstance(error, openai.APIConnectionError):
        return UpstreamFailure(Blame.OUTAGE, "the server cannot be reached", str(cause or error))
    if isinstance(error, openai.APIError):
        # An error event amid a stream.
        return UpstreamFailure(Blame.UNCLEAR, "the server reported an error amid its answer", error.message)
    if isinstance(error, (ValueError, RecursionError)):
        # Not UTF-8, not JSON, or nested too deep. Its text may hold bytes of the reply.
        return UpstreamFailure(Blame.UNCLEAR, f"the answer is malformed: it is {_undecoded(error)}")
    raise error


def _undecoded(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"


def _of_status(error: openai.APIStatusError, now: Callable[[], float]) -> UpstreamFailure:
    status = error.status_code
    if 300 <= status < 400:
        host = _host(error.response.headers.get("location", ""))
        return UpstreamFailure(
            Blame.ACCESS, f"the server redirects{host} (HTTP {status}), which is not followed; correct base_url"
        )
    default = Blame.UNCLEAR if status >= 500 else Blame.REQUEST
    hints = {401: "; check api_key", 403: "; check api_key", 404: "; check base_url and upstream_model"}
    return UpstreamFailure(
        _OF_STATUS.get(status, default),
        f"HTTP {status}{hints.get(status, '')}",
        _message(error.body) or error.message,
        retry_after(error.response.headers, now=now),
    )


def retry_after(headers: Mapping[str, str], *, now: Callable[[], float]) -> float | None:
    """Seconds that a reply asks to wait; None if it does not, or not clearly."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()[:64]
        if text.isascii() and text.replace(".", "", 1).isdigit():
            return float(text) * unit
    try:
        at = email.utils.parsedate_to_datetime(headers.get("retry-after", "")[:64])
    except (ValueError, TypeError, IndexError):
        return None
    return max(0.0, at.timestamp() - now())


def _message(body: object) -> str:
    if isinstance(body, dict):
        inner = body.get("error", body)
        found = inner.get("message") if isinstance(inner, dict) else inner
        return found if isinstance(found, str) else ""
    return body if isinstance(body, str) else ""


def _caused_by(error: BaseException | None, kind: type[E]) -> E | None:
    for _ in range(8):
        if error is None or isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None


def _host(location: str) -> str:
    try:
        host = httpx2.URL(location[:2048]).host
    except (httpx2.InvalidURL, ValueError):
        return ""
    return f" to {host}" if host else ""
