"""xllamacpp's Server: made from checked parameters, and its loopback HTTP side, which alone can tokenise."""

from __future__ import annotations

import http.client
import json
import secrets
import threading
import urllib.parse
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

from headpond.errors import EngineError, EngineUnavailable
from headpond.tables import LlamaCppModel
from headpond_workers.engines.llamacpp_adapters import LlamaAdapter
from headpond_workers.engines.llamacpp_parameters import check_devices, server_parameters

_HTTP_TIMEOUT_S = 60


def import_xllamacpp() -> Any:
    """Raises EngineUnavailable that names what is missing."""
    try:
        import xllamacpp
    except ImportError as error:
        if "libgomp" in str(error):
            raise EngineUnavailable(
                "The llamacpp engine needs the system library libgomp.so.1. Install it with: apt-get install libgomp1"
            ) from error
        raise EngineUnavailable(
            f"The llamacpp engine needs the package xllamacpp ({error}). Install it with: pip install 'headpond[llama]'"
        ) from error
    return xllamacpp


class LlamaServer:
    """One loaded model. `complete` may be called from several threads.

    Make it after any fork: a child that inherits it hangs. After it was made, the process must not fork
    without exec. It is warm when the constructor returns; destroying a server that has never run hangs.
    """

    def __init__(
        self,
        settings: LlamaCppModel,
        path: Path,
        *,
        threads: int,
        pooling: str = "mean",
        adapters: Seq[LlamaAdapter] = (),
    ) -> None:
        """The settings have passed `check_parameters`. Raises EngineUnavailable if the model does not load."""
        xllamacpp = import_xllamacpp()
        check_devices(settings, xllamacpp.get_device_info())
        self._api_key = secrets.token_urlsafe(32)
        parameters = server_parameters(
            xllamacpp, settings, path, threads=threads, adapters=adapters, pooling=pooling, api_key=self._api_key
        )
        try:
            self._server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise EngineUnavailable(
                f"llama.cpp cannot load {path}: {error}. The file's head is sound: its architecture or a tensor type "
                "may be newer than the installed xllamacpp, or memory is short."
            ) from error
        address = urllib.parse.urlsplit(self._server.listening_address)
        self._host, self._port = address.hostname or "127.0.0.1", address.port or 0
        self._connection: http.client.HTTPConnection | None = None
        self._lock = threading.Lock()
        if settings.task == "embed":
            warm_up = self.embed([0])
        else:
            warm_up = self.complete({"prompt": "Hello", "max_tokens": 1, "cache_prompt": False}, None)
        if "error" in warm_up:
            raise EngineUnavailable(f"llama.cpp loaded {path}, but cannot run it: {error_text(warm_up)}")

    def complete(self, body: dict[str, Any], on_chunk: Any) -> Any:
        """One completion. Blocks. With on_chunk and stream=True: calls it with each chunk until it returns True."""
        return (
            self._server.handle_completions(body)
            if on_chunk is None
            else self._server.handle_completions(body, on_chunk)
        )

    def embed(self, ids: Seq[int]) -> Any:
        """The reply to one text, as token ids. Blocks."""
        return self._server.handle_embeddings({"input": list(ids)})

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """POST to the loopback server. Raises EngineError if it answers with an error, or not at all."""
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
        """Free the model. No call may be running, and none may follow."""
        with self._lock:
            self._disconnect()
        del self._server

    def _exchange(self, path: str, payload: bytes) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._host, self._port, timeout=_HTTP_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self._api_key}", "Content-Type": "application/json"}
        self._connection.request("POST", path, payload, headers)
        response = self._connection.getresponse()
        return response.status, response.read()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def error_text(answer: dict[str, Any]) -> str:
    """The message of an error reply."""
    error = answer.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:500]
