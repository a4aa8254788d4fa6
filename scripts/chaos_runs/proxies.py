"""A TCP proxy between processes and a server, which cuts connections when it is told to."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

from faults import Cut

from headpond.scripts import load_script

logger = logging.getLogger(__name__)

SEND_TIMEOUT_S = 5.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_GO_ON = b"HTTP/1.1 100 "
"""An HTTP server that has not acted yet: it asks for the rest of the request."""


@dataclass(slots=True)
class CutOrder:
    """One cut that was asked for. mark: in the call that it waits for. done: set once it has happened."""

    cut: Cut
    mark: bytes
    lasts_s: float
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True, eq=False)
class _Pair:
    """One connection, and its other half to the server. losing: the order to which its next reply falls victim."""

    client: socket.socket
    server: socket.socket
    losing: CutOrder | None = None


class WorkerProxy(threading.Thread):
    """Forwards to 127.0.0.1:port, also over restarts of what listens there. Its own port stays the same."""

    def __init__(self, port: int) -> None:
        super().__init__(name=f"proxy-to-{port}", daemon=True)
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._port: int = self._listener.getsockname()[1]
        self._wake_in, self._wake_out = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._pairs: dict[socket.socket, _Pair] = {}
        self._lock = threading.Lock()
        self._orders: list[CutOrder] = []
        self._waiting: list[CutOrder] = []
        self._closed_until = 0.0
        self._leaving = False

    @property
    def port(self) -> int:
        return self._port

    def cut(self, cut: Cut, *, script: str = "append", lasts_s: float = 0.0, mark: bytes | None = None) -> CutOrder:
        """Do it: at once, or to the next call of a script by its hash, or to the next call that holds `mark`."""
        order = CutOrder(cut, mark or load_script(script).sha.encode(), lasts_s)
        with self._lock:
            self._orders.append(order)
        self._wake_in.send(b"x")
        return order

    def close(self) -> None:
        self._leaving = True
        self._wake_in.send(b"x")
        self.join(10)
        # Not by the thread: it may see that it is to leave before it is woken.
        for end in (self._wake_in, self._wake_out):
            end.close()

    def run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        while not self._leaving:
            for key, _ in self._selector.select(1.0):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wake_out:
                    self._wake_out.recv(4096)
                    self._take_orders()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._pairs:
                    self._forward(key.fileobj)
        self._end_all()
        self._listener.close()
        self._selector.close()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if time.monotonic() < self._closed_until:
            client.close()
            return
        try:
            server = socket.create_connection(self._target, timeout=SEND_TIMEOUT_S)
        except OSError as error:
            # As it would be without a proxy: the server is away, and its client hears so.
            logger.debug("server_away error=%s", error)
            client.close()
            return
        pair = _Pair(client, server)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(SEND_TIMEOUT_S)
            self._pairs[end] = pair
            self._selector.register(end, selectors.EVENT_READ)

    def _take_orders(self) -> None:
        with self._lock:
            orders, self._orders = self._orders, []
        for order in orders:
            if order.cut in (Cut.LOSE_REQUEST, Cut.LOSE_REPLY):
                self._waiting.append(order)
                continue
            if order.cut is Cut.PARTITION:
                self._closed_until = time.monotonic() + order.lasts_s
            self._end_all()
            order.done.set()

    def _forward(self, source: socket.socket) -> None:
        pair = self._pairs[source]
        try:
            data = source.recv(1 << 16)
            if not data:
                self._end(pair)
            elif source is pair.server:
                self._reply(pair, data)
            else:
                self._request(pair, data)
        except OSError as error:
            logger.debug("connection_ended error=%s", error)
            self._end(pair)

    def _request(self, pair: _Pair, data: bytes) -> None:
        order = next((order for order in self._waiting if order.mark in data), None)
        if order is not None and pair.losing is None:
            self._waiting.remove(order)
            if order.cut is Cut.LOSE_REQUEST:
                self._end(pair)
                order.done.set()
                return
            pair.losing = order
        pair.server.sendall(data)

    def _reply(self, pair: _Pair, data: bytes) -> None:
        if pair.losing is None or data.startswith(_GO_ON):
            pair.client.sendall(data)
            return
        # A reply means that the server has acted.
        self._end(pair)
        pair.losing.done.set()

    def _end_all(self) -> None:
        for pair in set(self._pairs.values()):
            self._end(pair)

    def _end(self, pair: _Pair) -> None:
        for end in (pair.client, pair.server):
            if self._pairs.pop(end, None) is not None:
                self._selector.unregister(end)
                with contextlib.suppress(OSError):  # the other side may have ended it already
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                end.close()
