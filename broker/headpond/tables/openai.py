"""A model of another server that speaks OpenAI's protocol."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, field_validator, model_validator

from headpond.sampling import BASIC, Sampling
from headpond.tables.header_secret import check_header_secret, check_proxy_secret, names_secret
from headpond.tables.model import ModelTable
from headpond.tables.secret_ref import SecretRef

_Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
_HeaderText = Annotated[str, Field(min_length=1, max_length=4096)]
_HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$")]
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
SAMPLING_FIELDS = tuple(sorted(Sampling.model_fields.keys() - BASIC))
OWN_HEADERS = frozenset(
    {"authorization", "connection", "content-length", "content-type", "accept-encoding", "host", "transfer-encoding"}
)
"""Headers that the client itself sets: one of these in the table would break requests, or go around `api_key`."""


class OpenAIModel(ModelTable):
    """A model of a server that speaks OpenAI's protocol, through the openai SDK."""

    host_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "organisation", "project", "ca_file", "connect_timeout_s", "first_token_timeout_s", "token_timeout_s",
            "max_retries", "backoff_s", "max_backoff_s", "retry_after_limit_s", "requests_per_minute",
            "tokens_per_minute", "max_response_bytes", "max_event_bytes",
        }
    )  # fmt: skip

    engine: Literal["openai"]
    base_url: Annotated[str, Field(max_length=2048)]
    """Of the API, such as https://api.openai.com/v1; http or https, without credentials."""
    upstream_model: Annotated[str, Field(min_length=1, max_length=512)]
    """The model's name there."""
    api_key: SecretRef | None = None
    """None: no key is sent."""
    organisation: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Sent as `OpenAI-Organization`."""
    project: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Sent as `OpenAI-Project`."""
    headers: Annotated[dict[_HeaderName, SecretRef | _HeaderText], Field(max_length=32)] = Field(default_factory=dict)
    """Sent with every request."""
    proxy: SecretRef | Annotated[str, Field(max_length=2048)] | None = None
    """URL of an HTTP proxy; a reference if it holds a password. The environment's proxies are not used."""
    ca_file: Path | None = None
    """Certificates (PEM) that the server's is checked against; None: those of the system."""

    context_tokens: Annotated[int, Field(ge=16, le=1 << 24)] = 131072
    """Told to producers. The server itself sees to it that a conversation fits."""
    resume: Literal["rewind", "continue"] = "rewind"
    """What becomes of the tokens that a job has when another worker takes it up."""
    mode: Literal["chat", "completions"] = "chat"
    """Which endpoint answers; completions takes a prompt alone, and no messages."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls it."""
    stream_usage: bool = True
    """Ask for the counts of tokens with stream_options."""
    sampling: Annotated[dict[str, Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=64)] = Field(
        default_factory=dict
    )
    """Fields of sampling that the server takes beyond temperature, top_p and seed, and what it calls them. A list where
    it calls them as headpond does."""
    response_formats: Annotated[tuple[Literal["json_object", "json_schema"], ...], Field(max_length=2)] = ()
    """Response formats that the server takes."""
    stop_strings: Annotated[int, Field(ge=0, le=16)] = 4
    """How many stop strings the server takes; the worker itself looks for all of them."""

    connect_timeout_s: _Seconds = 10.0
    """To connect, with TLS."""
    first_token_timeout_s: _Seconds = 120.0
    """From the request to the first piece of the answer."""
    token_timeout_s: _Seconds = 60.0
    """Of silence amid an answer."""
    max_retries: Annotated[int, Field(ge=0, le=100)] = 4
    """Of one request, after the first time."""
    backoff_s: _Seconds = 0.5
    """Before the first retry; twice as long before each further one, with jitter."""
    max_backoff_s: _Seconds = 30.0
    """The longest time before a retry that the server did not ask for."""
    retry_after_limit_s: _Seconds = 120.0
    """The longest Retry-After that is waited for; a longer one is cut to it."""
    requests_per_minute: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = None
    """Of each worker."""
    tokens_per_minute: Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)] | None = None
    """Of each worker: prompts, estimated, and answers as they come."""
    max_response_bytes: Annotated[int, Field(ge=1 << 16, le=48 << 20)] = 32 << 20
    """Of one response, as it comes over the wire."""
    max_event_bytes: Annotated[int, Field(ge=1 << 10, le=8 << 20)] = 1 << 20
    """Of one event of a stream, and so of one line."""

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        parts = _checked_url(url, ("http", "https"))
        if parts.username is not None or parts.password is not None:
            # Not repeated here: it may be a password.
            raise ValueError('holds credentials; take them out and write api_key = {env = "NAME"} or {file = "PATH"}')
        if parts.query or parts.fragment:
            raise ValueError("must have no query and no fragment")
        return url.rstrip("/")

    @field_validator("proxy")
    @classmethod
    def _proxy_without_password(cls, proxy: SecretRef | str | None) -> SecretRef | str | None:
        if isinstance(proxy, str) and _checked_url(proxy, ("http", "https")).password is not None:
            raise ValueError('holds a password; write proxy = {env = "NAME"} or {file = "PATH"} instead')
        return proxy

    @field_validator("upstream_model", "organisation", "project")
    @classmethod
    def _printable(cls, text: str | None) -> str | None:
        if text is not None and not (_PRINTABLE.fullmatch(text) and text == text.strip()):
            raise ValueError("must be printable ASCII, without spaces around it")
        return text

    @field_validator("headers")
    @classmethod
    def _safe_headers(cls, headers: dict[str, SecretRef | str]) -> dict[str, SecretRef | str]:
        for name, value in headers.items():
            if name.lower() in OWN_HEADERS:
                raise ValueError(f"{name} is set by the client itself; a key belongs into api_key")
            if isinstance(value, str) and not (_PRINTABLE.fullmatch(value) and value == value.strip()):
                raise ValueError(f"{name}: must be printable ASCII, without spaces around it")
        if len({name.lower() for name in headers}) != len(headers):
            raise ValueError("names a header twice")
        return headers

    @field_validator("sampling", mode="before")
    @classmethod
    def _same_names(cls, value: object) -> object:
        return {name: name for name in value} if isinstance(value, list) else value

    @field_validator("sampling")
    @classmethod
    def _known_sampling(cls, fields: dict[str, str]) -> dict[str, str]:
        for name in fields:
            if name not in SAMPLING_FIELDS:
                raise ValueError(f"'{name}' is no field of sampling; known: {', '.join(SAMPLING_FIELDS)}")
        return fields

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.resume == "continue" and self.mode == "completions":
            raise ValueError('resume = "continue" chooses the endpoint itself: leave mode out')
        if self.response_formats and (self.resume == "continue" or self.mode == "completions"):
            raise ValueError('response_formats needs mode = "chat" and resume = "rewind"')
        if self.backoff_s > self.max_backoff_s:
            raise ValueError(f"backoff_s = {self.backoff_s:g} is more than max_backoff_s = {self.max_backoff_s:g}")
        return self

    def secrets(self) -> dict[str, SecretRef]:
        """Every reference of this table, by the name of its key."""
        named = {"api_key": self.api_key, "proxy": self.proxy}
        named |= {f"headers.{name}": value for name, value in self.headers.items()}
        return {name: ref for name, ref in named.items() if isinstance(ref, SecretRef)}

    def check_secret(self, name: str, value: str) -> None:
        """Whether the secret under a key, as `secrets` names it, can be sent. Raises ConfigError without the value."""
        (check_proxy_secret if name == "proxy" else check_header_secret)(value, where=name)

    def bare_secrets(self) -> list[str]:
        """Headers whose value stands in the table itself, and whose name says that it is a secret."""
        return [name for name, value in self.headers.items() if isinstance(value, str) and names_secret(name)]

    def anchored(self, folder: Path) -> Self:
        def placed(value: SecretRef | str | None) -> SecretRef | str | None:
            if isinstance(value, SecretRef) and value.file is not None:
                return value.model_copy(update={"file": folder / value.file.expanduser()})
            return value

        return self.model_copy(
            update={
                "api_key": placed(self.api_key),
                "proxy": placed(self.proxy),
                "headers": {name: placed(value) for name, value in self.headers.items()},
                "ca_file": None if self.ca_file is None else folder / self.ca_file.expanduser(),
            }
        )


def _checked_url(url: str, schemes: tuple[str, ...]) -> SplitResult:
    if not _PRINTABLE.fullmatch(url) or " " in url:
        raise ValueError("must be a URL of printable ASCII without spaces")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in schemes or not parts.hostname or port == 0:
        raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)} and name a host")
    return parts
