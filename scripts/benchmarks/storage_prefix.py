"""`storage`, stored_prefix: the first token of a session that is gone on with, from stored keys and values, beside the
same from a prompt that is computed."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

from both_sides import MODEL, ServedModel, served
from child import BenchmarkError
from document import Measurement, Samples
from generate_overhead import LLAMA_SOURCE
from pairs import Pair, run_pairs
from persisted_side import PersistedModel, await_that, persisted_model
from plan import Plan
from source_model import prepare_source

from headpond import Client
from headpond_workers.checkpoints.resolving import open_storage
from headpond_workers.prefixes.folders import fingerprint_folders, kv_folder, prefixes_in
from headpond_workers.prefixes.usage import stored_use
from headpond_workers.supervision.programs import LOG_FOLDER, worker_name

TABLE = f"""\
engine = "llamacpp"
source = "{LLAMA_SOURCE}"
slots = 1
context_tokens = 4096
threads = 1
"""
WORDS = ("mill", "river", "stone", "bread", "wheel", "water", "field", "house", "night", "winter", "road", "bridge")
SESSION_WORDS, QUICK_SESSION_WORDS = 1930, 430
"""A token each. With what the chat template puts around them, the answer and a question: 60 tokens more, or so."""
ANSWER_TOKENS = 24
QUESTION = "And then?"
STORED_TIMEOUT_S = 120.0
NOTED_TIMEOUT_S = 10.0
RESULT_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class _Session:
    """file: where its keys and values stand on this machine."""

    messages: list[dict[str, str]]
    file: Path


def measure_stored_prefix(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    prepare_source(LLAMA_SOURCE, benchmark=plan.benchmark, progress=plan.progress)
    with (
        served(TABLE, plan.folder / "computed") as computed,
        persisted_model(f'{TABLE}kv = "storage"\n', plan.folder / "kept") as kept,
    ):
        return _measure(plan, computed, kept)


def _measure(plan: Plan, computed: ServedModel, kept: PersistedModel) -> Measurement:
    with Client(computed.valkey.url) as computing, Client(kept.url) as keeping:
        resuming = _Resuming(keeping, kept)
        words = QUICK_SESSION_WORDS if plan.quick else SESSION_WORDS
        sessions = [resuming.begin(plan.draw(number), words) for number in range(plan.pairs)]
        resuming.await_stored(len(sessions))

        def headpond(number: int) -> Samples:
            session = sessions[number]
            # In this order: what this turn leaves on the disk may be used by the next one.
            session.file.unlink()
            storage_s = resuming.first_token_s(session)
            if not session.file.exists():
                raise BenchmarkError("A session's keys and values did not come from storage.")
            local_s = resuming.first_token_s(session)
            return {"local_s": local_s, "storage_s": storage_s, "bytes": session.file.stat().st_size}

        def peer(number: int) -> Samples:
            seconds, tokens = _ask(computing, sessions[number].messages)
            return {"prefill_s": seconds, "tokens": tokens}

        def done(number: int, pair: Pair[Samples]) -> None:
            ours = pair.headpond
            plan.say_pair(
                number, f"{ours['local_s']:.2f} s from the local disk, {ours['storage_s']:.2f} s from storage, "
                f"{pair.peer['prefill_s']:.2f} s computed",
            )  # fmt: skip

        peer(0)  # its first pages, and threads
        pairs = run_pairs(plan.pairs, headpond, peer, done=done)
    return Measurement(
        plan.kind, f"a session of {words + 70} tokens gone on with",
        f"{LLAMA_SOURCE} on one thread, one slot; {len(sessions)} sessions, one a pair, of a turn that came "
        f"before ({words} words, an answer of at most {ANSWER_TOKENS} tokens) and a short question; from just "
        "before `submit` until the reader has the first token",
        'kv = "storage", in a deployment as `headpond up` makes it; first from SeaweedFS, with the file on the local '
        "disk removed, then from the local disk",
        "the same model with kv off: the whole prompt is computed", pairs,
    )  # fmt: skip


class _Resuming:
    """Sessions on the deployment that keeps keys and values."""

    def __init__(self, client: Client, model: PersistedModel) -> None:
        self._client, self._settings = client, model.settings
        self._log = model.settings.state_folder / LOG_FOLDER / f"{worker_name(MODEL, 0)}.log"

    def begin(self, draw: random.Random, words: int) -> _Session:
        """The first turn. Returns once its keys and values are in a file. Raises BenchmarkError."""
        before = self._files()
        asked = {"role": "user", "content": " ".join(draw.choice(WORDS) for _ in range(words))}
        job = self._client.submit(MODEL, messages=[asked], max_tokens=ANSWER_TOKENS, temperature=0.0)
        answer = {"role": "assistant", "content": job.result(timeout=RESULT_TIMEOUT_S).text}
        await_that(lambda: len(self._files()) > len(before), STORED_TIMEOUT_S, "a session was kept")
        (file,) = self._files() - before
        return _Session([asked, answer, {"role": "user", "content": QUESTION}], file)

    def await_stored(self, count: int) -> None:
        """Until so many are in storage, and the worker knows of them. Raises BenchmarkError."""
        blobs = open_storage(self._settings)

        def stored() -> bool:
            use = stored_use(blobs).get(MODEL)
            return use is not None and use.prefixes >= count

        await_that(stored, STORED_TIMEOUT_S, "every session was uploaded")
        await_that(lambda: self._logged("kv_prefix_known") >= count, STORED_TIMEOUT_S, "the worker knows every session")

    def first_token_s(self, session: _Session) -> float:
        """Of the next turn. Raises BenchmarkError if the prompt was computed after all."""
        before = self._logged("kv_prefix_used")
        seconds, _ = _ask(self._client, session.messages)
        await_that(
            lambda: self._logged("kv_prefix_used") > before, NOTED_TIMEOUT_S, "the session went on from what is stored"
        )
        return seconds

    def _files(self) -> set[Path]:
        folders = fingerprint_folders(kv_folder(self._settings.state_folder), MODEL)
        return {found.path for folder in folders for found in prefixes_in(folder)}

    def _logged(self, event: str) -> int:
        return self._log.read_text(encoding="utf-8", errors="replace").count(event)


def _ask(client: Client, messages: list[dict[str, str]]) -> tuple[float, int]:
    """Seconds to the first token, and the tokens of the prompt."""
    began = time.monotonic()
    job = client.submit(MODEL, messages=messages, max_tokens=2, temperature=0.0)
    first = next((time.monotonic() for chunk in job.stream() if chunk.token_ids), None)
    if first is None:
        raise BenchmarkError("A session's next turn has no token.")
    return round(first - began, 4), job.result(timeout=RESULT_TIMEOUT_S).usage.prompt_tokens
