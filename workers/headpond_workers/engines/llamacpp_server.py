"""xllamacpp's Server: made from checked parameters, and its loopback HTTP side, which alone can tokenise.

Parameters that llama.cpp dislikes abort the whole process, so all of them are checked here first.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import threading
import urllib.parse
from pathlib import Path
from typing import Any

from headpond.errors import EngineError, EngineUnavailable
from headpond_workers.engines.gguf_header import GgufHeader

MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ of the pinned build."""
MAX_THREADS = 512
BATCH_TOKENS = 128
"""As fast as 512 on a CPU, and a cancel is heard after at most so many tokens of prefill."""
EXACT_BATCH_TOKENS = 16
"""n_batch = 1 aborts the process."""
KV_BYTES_PER_VALUE = 2
MEMORY_SHARE = 0.8
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


def check_parameters(header: GgufHeader, *, slots: int, context_tokens: int, threads: int) -> None:
    """Raises EngineUnavailable for what would abort the process, or be changed by llama.cpp without a word."""
    if not 1 <= slots <= MAX_SEQUENCES:
        raise EngineUnavailable(f"slots = {slots}: the llamacpp engine runs 1 to {MAX_SEQUENCES} sequences together.")
    if not 1 <= threads <= MAX_THREADS:
        raise EngineUnavailable(f"threads = {threads}: llama.cpp takes 1 to {MAX_THREADS}.")
    architecture = header.text("general.architecture")
    trained = header.integer(f"{architecture}.context_length")
    if trained is not None and context_tokens > trained:
        raise EngineUnavailable(
            f"context_tokens = {context_tokens}: the model was trained for {trained}. Lower context_tokens."
        )
    needed = _kv_bytes_per_token(header, architecture) * context_tokens * slots
    have = int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * MEMORY_SHARE)
    if needed > have:
        raise EngineUnavailable(
            f"context_tokens = {context_tokens} in {slots} slots needs {needed >> 20} MiB for keys and values; "
            f"{have >> 20} MiB can be used on this machine. Lower slots or context_tokens."
        )


def _kv_bytes_per_token(header: GgufHeader, architecture: str) -> int:
    """0 where the metadata do not tell."""

    def of(key: str) -> int:
        layers = [item for item in header.items(f"{architecture}.{key}") if isinstance(item, int)]
        return header.integer(f"{architecture}.{key}") or max(layers, default=0)

    heads = of("attention.head_count")
    head_size = of("attention.key_length") or (of("embedding_length") // heads if heads else 0)
    return 2 * of("block_count") * (of("attention.head_count_kv") or heads) * head_size * KV_BYTES_PER_VALUE


class LlamaServer:
    """One loaded model. `complete` may be called from several threads.

    Make it after any fork: a child that inherits it hangs. After it was made, the process must not fork
    without exec. It is warm when the constructor returns; destroying a server that has never run hangs.
    """

    def __init__(self, path: Path, *, slots: int, context_tokens: int, threads: int, exact: bool) -> None:
        """The parameters have passed `check_parameters`. Raises EngineUnavailable if the model does not load."""
        xllamacpp = import_xllamacpp()
        self._api_key = secrets.token_urlsafe(32)
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_parallel = slots
        parameters.n_ctx = context_tokens * slots
        parameters.kv_unified = False
        parameters.ctx_shift = False
        parameters.fit_params = False
        parameters.n_gpu_layers = 0
        parameters.n_batch = EXACT_BATCH_TOKENS if exact else BATCH_TOKENS
        parameters.n_ubatch = 1 if exact else BATCH_TOKENS
        parameters.cpuparams.n_threads = threads
        parameters.cpuparams_batch.n_threads = threads
        parameters.cache_prompt = False
        parameters.cache_ram_mib = 0
        parameters.cache_idle_slots = False
        parameters.verbosity = -1
        # The HTTP side cannot be left out: only this process may use it, and only for what it needs.
        parameters.hostnames = ["127.0.0.1"]
        parameters.api_keys = [self._api_key]
        parameters.cors_origins = ""
        parameters.cors_credentials = False
        parameters.ui = False
        parameters.endpoint_slots = False
        parameters.n_threads_http = 2
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
