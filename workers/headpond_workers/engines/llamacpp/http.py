"""The loopback HTTP side of llama.cpp's server: one connection, used by one call at a time."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.parse
from typing import Any

from headpond.errors import EngineError

_TIMEOUT_S = 60


class LoopbackHttp:
    """Thread-safe: calls wait for each other."""

    def __init__(self, address: str, api_key: str) -> None:
        """address: as `Server.listening_address`."""
        parts = urllib.parse.urlsplit(address)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 0
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        self._connection: http.client.HTTPConnection | None = None
        self._lock = threading.Lock()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Raises EngineError if the server answers with an error, or not at all. May ask twice."""
        payload = json.dumps(body).encode()
        with self._lock:
            try:
                status, answer = self._exchange(path, payload)
            except (http.client.HTTPException, ConnectionError):
                # The server drops a connection that was idle for some seconds. Asking twice changes nothing.
                self._disconnect()
                try:
                    status, answer = self._exchange(path, payload)
                except (http.client.HTTPException, OSError) as error:
                    self._disconnect()
                    raise EngineError(f"llama.cpp's loopback server does not answer {path}: {error!r}") from error
        if status != http.client.OK:
            raise EngineError(f"llama.cpp refuses {path} (HTTP {status}): {answer[:200].decode(errors='replace')}")
        return json.loads(answer)

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def _exchange(self, path: str, payload: bytes) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        self._connection.request("POST", path, payload, self._headers)
        response = self._connection.getresponse()
        return response.status, response.read()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
