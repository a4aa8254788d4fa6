"""A TCP proxy on loopback that does to chosen HTTP requests what networks do."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Self


class Cut(Enum):
    """What happens to one request."""

    LOSE_REQUEST = "the connection ends before the server has it"
    LOSE_REPLY = "the server does it, the connection ends without a reply"
    ANSWER_503 = "the server does it, a gateway says 503"
    ANSWER_409 = "the server does it, the reply is a conflict"
    HOLD = "the server gets it at release(); the client gets no reply"
    DAMAGE = "a bit of the reply's body is flipped"
    DAMAGE_REQUEST = "a bit of the request's body is flipped"
    CUT_REPLY = "the connection ends amid the reply's body"


@dataclass
class _Order:
    cut: Cut
    start: bytes
    count: int
    skip: int


class CuttingProxy:
    """Forwards to 127.0.0.1:port; `cut()` says which requests suffer."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._orders: list[_Order] = []
        self._often: tuple[tuple[Cut, ...], int] | None = None
        self._released = threading.Event()
        self._left = threading.Event()
        self.done: list[Cut] = []
        """What was done, in order."""
        self.requests: list[str] = []
        """First lines of all requests."""
        self.heads: list[str] = []
        """All requests up to their bodies."""
        self.held_replies: list[bytes] = []
        """First lines of the server's replies to held requests."""
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self, cut: Cut, start: str, *, count: int = 1, skip: int = 0) -> None:
        """Do it to the next `count` requests whose first line begins with `start`, such as "PUT /bucket/key", after
        `skip` others of these."""
        with self._lock:
            self._orders.append(_Order(cut, start.encode(), count, skip))

    def cut_often(self, *cuts: Cut, every: int) -> None:
        """Do these, one after the other, to each request whose number is a multiple of `every`."""
        with self._lock:
            self._often = (cuts, every)

    def forget(self) -> None:
        """Cut nothing more."""
        with self._lock:
            self._orders.clear()
            self._often = None

    def release(self) -> None:
        self._released.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._released.set()
        # A blocked accept() ends by a connection, not by a close().
        with contextlib.suppress(OSError):
            socket.create_connection(self._listener.getsockname(), timeout=5).close()
        self._thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while not self._left.is_set():
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._target, timeout=30) as server:
            self._relay(client, server)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        order: Cut | None = None
        fresh, reply = True, b""
        while not self._left.is_set():
            readable, _, _ = select.select([client, server], [], [], 0.2)
            if client in readable:
                data = client.recv(1 << 16)
                if not data:
                    return
                if fresh:
                    order, fresh, reply = self._take(data), False, b""
                    if order is Cut.LOSE_REQUEST:
                        return
                    if order is Cut.HOLD:
                        self._hold(data, client, server)
                        return
                if order is Cut.DAMAGE_REQUEST:
                    data, damaged = _damaged(data)
                    order = None if damaged else order
                server.sendall(data)
            if server in readable:
                data = server.recv(1 << 16)
                if not data:
                    return
                if data == b"HTTP/1.1 100 Continue\r\n\r\n":
                    client.sendall(data)
                    continue
                fresh = True  # the client says nothing before the reply began, so what it says next is a request
                if order is None:
                    client.sendall(data)
                    continue
                reply += data
                if order is Cut.LOSE_REPLY:
                    return
                if order is Cut.CUT_REPLY:
                    head, _, body = reply.partition(b"\r\n\r\n")
                    if body:
                        client.sendall(head + b"\r\n\r\n" + body[: len(body) // 2])
                        return
                    continue
                if order in (Cut.ANSWER_503, Cut.ANSWER_409):
                    client.sendall(_error(order))
                    return
                head, _, body = reply.partition(b"\r\n\r\n")
                if body:
                    client.sendall(head + b"\r\n\r\n" + body[:-1] + bytes([body[-1] ^ 1]))
                    order = None

    def _hold(self, data: bytes, client: socket.socket, server: socket.socket) -> None:
        """Take the whole request from the client; give it to the server once released."""
        client.settimeout(30)
        while b"\r\n\r\n" not in data:
            data += client.recv(1 << 16)
        head, _, body = data.partition(b"\r\n\r\n")
        if b"100-continue" in head.lower():
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        while len(body) < int(fields[b"content-length"]):
            body += client.recv(1 << 16)
        self._released.wait(30)
        server.sendall(head.replace(b"Expect: 100-continue\r\n", b"") + b"\r\n\r\n" + body)
        self.held_replies.append(server.recv(1 << 16).split(b"\r\n")[0])

    def _take(self, data: bytes) -> Cut | None:
        with self._lock:
            self.requests.append(data.split(b" HTTP/", 1)[0].decode("ascii", "replace"))
            self.heads.append(data.partition(b"\r\n\r\n")[0].decode("ascii", "replace"))
            for order in self._orders:
                if order.count and data.startswith(order.start):
                    if order.skip:
                        order.skip -= 1
                        break
                    order.count -= 1
                    self.done.append(order.cut)
                    return order.cut
            if self._often is not None and len(self.requests) % self._often[1] == 0:
                cuts, every = self._often
                cut = cuts[len(self.requests) // every % len(cuts)]
                self.done.append(cut)
                return cut
        return None


def _damaged(data: bytes) -> tuple[bytes, bool]:
    """What a client sent, with a bit of the body flipped; whether there was any."""
    head, end, body = data.partition(b"\r\n\r\n") if data.startswith((b"PUT ", b"POST ")) else (b"", b"", data)
    if not body:
        return data, False
    return head + end + bytes([body[0] ^ 1]) + body[1:], True


def _error(cut: Cut) -> bytes:
    status, code = (
        (b"503 Service Unavailable", b"SlowDown")
        if cut is Cut.ANSWER_503
        else (b"409 Conflict", b"ConditionalRequestConflict")
    )
    body = b"<Error><Code>" + code + b"</Code><Message>again</Message></Error>"
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(body), body)
