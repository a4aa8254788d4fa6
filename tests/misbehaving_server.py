"""A server of OpenAI's protocol on loopback, over bare sockets, that fails on demand.

A request whose last message begins with `!NAME` is answered in the way NAME; `!NAME*2` is so the first two times. With
`server.fault` set, every request is. Everything else gets a good answer: `word0 word1 ...`.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

SILENCE_S = 60.0
_ORDER = re.compile(r"!(\w+)(?:\*(\d+))?")
_CLOSED = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError, OSError)


@dataclass
class Received:
    """One request. headers: by name in lower case."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        messages = self.body.get("messages")
        return str(messages[-1]["content"] if messages else self.body.get("prompt"))

    @property
    def key(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")


@dataclass
class MisbehavingServer:
    """words: of a good answer. token_s: before each. fault: of all requests. elsewhere: where redirects lead. accepts:
    the one key that is let in; None lets in any."""

    words: int = 12
    token_s: float = 0.0
    fault: str | None = None
    retry_after: str = "1"
    elsewhere: str = ""
    accepts: str | None = None
    tls: ssl.SSLContext | None = None
    received: list[Received] = field(default_factory=list)
    sent_bytes: int = 0
    running: int = 0
    most_running: int = 0
    """Requests at one time."""
    dropped: int = 0
    """Answers whose reader was gone before their end."""
    _times: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _socket: socket.socket = field(init=False)
    _closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}/v1"

    def times(self, text: str) -> int:
        """How often a request with this text came."""
        return sum(request.text == text for request in list(self.received))

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        if self.tls is not None:
            try:
                connection = self.tls.wrap_socket(connection, server_side=True)
            except OSError:
                return
        with connection, contextlib.suppress(ValueError):
            request = _read(connection)
            if request is None:
                return
            with self._lock:
                self.received.append(request)
                fault = self._fault_of(request)
                self.running += 1
                self.most_running = max(self.most_running, self.running)
            reply = Reply(connection, self, request)
            try:
                FAULTS[fault](reply) if fault else good(reply)
            except _CLOSED:
                self.dropped += 1
            finally:
                reply.end()

    def ended(self) -> None:
        """One request less runs."""
        with self._lock:
            self.running -= 1

    def _fault_of(self, request: Received) -> str | None:
        if self.fault is not None:
            return self.fault
        if self.accepts is not None and request.key != self.accepts:
            return "wrong_key"
        order = _ORDER.match(request.text)
        if order is None:
            return None
        self._times[request.text] += 1
        if order[2] is not None and self._times[request.text] > int(order[2]):
            return None
        return order[1]


@contextmanager
def misbehaving_server(**settings: Any) -> Iterator[MisbehavingServer]:
    server = MisbehavingServer(**settings)
    try:
        yield server
    finally:
        server.close()


def _read(connection: socket.socket) -> Received | None:
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65536)
    return Received(first.split(" ")[1], headers, json.loads(body or b"{}"))


@dataclass
class Reply:
    """What one request is answered with."""

    connection: socket.socket
    server: MisbehavingServer
    request: Received
    over: bool = False

    def end(self) -> None:
        """Before its last bytes: whoever has them may ask anew before this thread goes on."""
        if not self.over:
            self.over = True
            self.server.ended()

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)
        self.server.sent_bytes += len(data)

    def head(self, status: str, *headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", "Connection: close", *headers]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n")

    def json(self, status: str, body: object, *headers: str) -> None:
        data = json.dumps(body).encode()
        self.head(status, "Content-Type: application/json", f"Content-Length: {len(data)}", *headers)
        self.end()
        self.send(data)

    def error(self, status: str, message: str, *headers: str) -> None:
        self.json(status, {"error": {"message": message, "type": "error", "code": None}}, *headers)

    def stream(self) -> None:
        self.head("200 OK", "Content-Type: text/event-stream; charset=utf-8", "Transfer-Encoding: chunked")

    def raw(self, data: bytes) -> None:
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def event(self, body: object) -> None:
        self.raw(b"data: " + json.dumps(body).encode() + b"\n\n")

    def delta(self, content: object, finish: object = None) -> None:
        if "/chat/" in self.request.path:
            self.event({"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]})
        else:
            self.event({"choices": [{"index": 0, "text": content, "finish_reason": finish}]})

    def some_words(self, count: int) -> None:
        for n in range(count):
            time.sleep(self.server.token_s)
            self.delta(f"word{n} ")

    def done(self) -> None:
        self.raw(b"data: [DONE]\n\n")
        self.send(b"0\r\n\r\n")

    def wait_until_gone(self) -> None:
        self.connection.settimeout(SILENCE_S)
        if not self.connection.recv(1):
            raise BrokenPipeError


def good(reply: Reply) -> None:
    body = reply.request.body
    most = body.get("max_tokens") or body.get("max_completion_tokens") or 1 << 30
    count = min(most, reply.server.words)
    reply.stream()
    reply.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
    reply.some_words(count)
    reply.end()
    reply.delta("", "length" if most < reply.server.words else "stop")
    if (body.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
        reply.event({"choices": [], "usage": usage})
    reply.done()


def _status(status: str, message: str) -> Callable[[Reply], None]:
    return lambda reply: reply.error(status, message)


def _echo_key(status: str) -> Callable[[Reply], None]:
    """The server repeats what it was sent, as some do."""

    def answer(reply: Reply) -> None:
        key = reply.request.key
        secret = reply.request.headers.get("x-secret", "")
        reply.error(status, f"Incorrect API key provided: {key}\x1b[31m ({json.dumps(key)}, {secret}).")

    return answer


def _rate_limited(reply: Reply) -> None:
    reply.error("429 Too Many Requests", "Slow down.", f"Retry-After: {reply.server.retry_after}")


def _rate_limited_until(reply: Reply) -> None:
    at = email.utils.formatdate(time.time() + 2, usegmt=True)
    reply.error("429 Too Many Requests", "Slow down.", f"Retry-After: {at}")


def _after_words(rest: Callable[[Reply], None]) -> Callable[[Reply], None]:
    def answer(reply: Reply) -> None:
        reply.stream()
        reply.some_words(3)
        rest(reply)

    return answer


def _raw_event(data: bytes) -> Callable[[Reply], None]:
    def answer(reply: Reply) -> None:
        reply.stream()
        reply.raw(data)
        reply.done()

    return answer


def _endless_line(reply: Reply) -> None:
    reply.stream()
    reply.raw(b"data: ")
    while True:
        reply.raw(b"x" * 65536)


def _endless_event(reply: Reply) -> None:
    reply.stream()
    while True:
        reply.raw(b"data: x\n" * 8192)


def _endless_answer(reply: Reply) -> None:
    reply.stream()
    while True:
        reply.delta("x" * 8192)


def _huge_error(reply: Reply) -> None:
    reply.head("500 Internal Server Error", "Content-Type: application/json", "Transfer-Encoding: chunked")
    while True:
        reply.raw(b"x" * 65536)


def _announced_huge(reply: Reply) -> None:
    reply.head("200 OK", "Content-Type: text/event-stream", f"Content-Length: {1 << 40}")
    reply.wait_until_gone()


def _html(reply: Reply) -> None:
    page = b"<html>Please log in</html>"
    reply.head("200 OK", "Content-Type: text/html", f"Content-Length: {len(page)}")
    reply.send(page)


def _whole(reply: Reply) -> None:
    """A server that knows no streams."""
    message = {"role": "assistant", "content": "word0 word1"}
    reply.json("200 OK", {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def _error_200(reply: Reply) -> None:
    reply.error("200 OK", "Try later.")


def _key_as_kind(reply: Reply) -> None:
    """A server that sends the key back where whoever reads it makes small letters of it."""
    reply.head("200 OK", f"Content-Type: {reply.request.key}", "Content-Length: 0")


def _key_as_host(reply: Reply) -> None:
    reply.head("302 Found", f"Location: http://{reply.request.key}/x", "Content-Length: 0")


def _compressed(reply: Reply) -> None:
    reply.head("200 OK", "Content-Type: text/event-stream", "Content-Encoding: gzip", "Content-Length: 0")


def _crash(reply: Reply) -> None:
    """The request takes the server down: nothing is served until somebody sets `fault` to None."""
    reply.server.fault = "error_503"


def _redirect(reply: Reply) -> None:
    reply.head("307 Temporary Redirect", f"Location: {reply.server.elsewhere}", "Content-Length: 0")


def _no_done(reply: Reply) -> None:
    reply.stream()
    reply.some_words(3)
    reply.delta("", "stop")


def _no_end(reply: Reply) -> None:
    reply.stream()
    reply.some_words(3)
    reply.done()


def _filtered(reply: Reply) -> None:
    reply.stream()
    reply.some_words(3)
    reply.delta("", "content_filter")
    reply.done()


def _no_choices(reply: Reply) -> None:
    reply.stream()
    for _ in range(3):
        reply.event({"choices": []})
    reply.done()


def _half_emoji(reply: Reply) -> None:
    reply.stream()
    reply.raw(b'data: {"choices": [{"index": 0, "delta": {"content": "a\\ud83d"}, "finish_reason": "stop"}]}\n\n')
    reply.done()


def _not_http(reply: Reply) -> None:
    reply.send(b"SSH-2.0-OpenSSH_9.9\r\n")


FAULTS: dict[str, Callable[[Reply], None]] = {
    "rate_limited": _rate_limited,
    "rate_limited_until": _rate_limited_until,
    "error_500": _status("500 Internal Server Error", "It broke."),
    "error_503": _status("503 Service Unavailable", "Loading model"),
    "wrong_key": _echo_key("401 Unauthorized"),
    "forbidden": _echo_key("403 Forbidden"),
    "bad_request": _echo_key("400 Bad Request"),
    "unprocessable": _status("422 Unprocessable Entity", "temperature is out of range"),
    "not_found": _status("404 Not Found", "The model does not exist"),
    "mute": Reply.wait_until_gone,
    "silent": _after_words(Reply.wait_until_gone),
    "cut": _after_words(lambda reply: None),
    "error_amid": _after_words(lambda reply: reply.event({"error": {"message": "CUDA error", "code": 500}})),
    "no_done": _no_done,
    "no_end": _no_end,
    "filtered": _filtered,
    "no_choices": _no_choices,
    "half_emoji": _half_emoji,
    "not_sse": _raw_event(b"hello\n\n"),
    "not_json": _raw_event(b"data: {not json\n\n"),
    "not_utf8": _raw_event(b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n'),
    "deep_json": _raw_event(b"data: " + b"[" * 20_000 + b"]" * 20_000 + b"\n\n"),
    "number": _raw_event(b"data: 5\n\n"),
    "choices_map": _raw_event(b'data: {"choices": {"delta": 1}}\n\n'),
    "content_number": _raw_event(b'data: {"choices": [{"index": 0, "delta": {"content": 5}}]}\n\n'),
    "choice_text": _raw_event(b'data: {"choices": ["x"]}\n\n'),
    "endless_line": _endless_line,
    "endless_event": _endless_event,
    "endless_answer": _endless_answer,
    "huge_error": _huge_error,
    "announced_huge": _announced_huge,
    "html": _html,
    "whole": _whole,
    "error_200": _error_200,
    "key_as_kind": _key_as_kind,
    "key_as_host": _key_as_host,
    "compressed": _compressed,
    "crash": _crash,
    "redirect": _redirect,
    "not_http": _not_http,
}
