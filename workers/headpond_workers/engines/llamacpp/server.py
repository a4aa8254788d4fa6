"""xllamacpp's Server: made from checked parameters, and its loopback HTTP side, which alone can tokenise."""

from __future__ import annotations

import secrets
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

from headpond.errors import EngineUnavailable
from headpond.tables import LlamaCppModel
from headpond_workers.engines.llamacpp.adapters import LlamaAdapter
from headpond_workers.engines.llamacpp.http import LoopbackHttp
from headpond_workers.engines.llamacpp.parameters import check_devices, server_parameters


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
        slot_folder: Path | None = None,
    ) -> None:
        """The settings have passed `check_parameters`. slot_folder: where files of slots stand; None: there are none.
        Raises EngineUnavailable if the model does not load."""
        xllamacpp = import_xllamacpp()
        check_devices(settings, xllamacpp.get_device_info())
        api_key = secrets.token_urlsafe(32)
        parameters = server_parameters(
            xllamacpp, settings, path, threads=threads, adapters=adapters, pooling=pooling, api_key=api_key,
            slot_folder=slot_folder,
        )  # fmt: skip
        try:
            self._server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise EngineUnavailable(
                f"llama.cpp cannot load {path}: {error}. The file's head is sound: its architecture or a tensor type "
                "may be newer than the installed xllamacpp, or memory is short."
            ) from error
        self._http = LoopbackHttp(self._server.listening_address, api_key)
        # Of its own: a slot's file waits for the step at hand, and a prompt that is tokenised should not.
        self._slots_http = LoopbackHttp(self._server.listening_address, api_key)
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
        return self._http.post(path, body)

    def save_slot(self, slot: int, name: str) -> None:
        """Write what a slot holds to a file of the slot folder. Nothing may run in that slot. Raises EngineError."""
        self._slots_http.post(f"/slots/{slot}?action=save", {"filename": name})

    def restore_slot(self, slot: int, name: str) -> int:
        """Put a file of the slot folder into a slot; return how many tokens it has. Of a damaged file llama.cpp notices
        little. Nothing may run in that slot, which is empty after an error. Raises EngineError."""
        answer = self._slots_http.post(f"/slots/{slot}?action=restore", {"filename": name})
        return int(answer["n_restored"])

    def close(self) -> None:
        """Free the model. No call may be running, and none may follow."""
        self._http.close()
        self._slots_http.close()
        del self._server


def error_text(answer: dict[str, Any]) -> str:
    """The message of an error reply."""
    error = answer.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:500]
