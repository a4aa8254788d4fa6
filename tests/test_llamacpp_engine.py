"""The llama.cpp engine on a real model: every id, in order, whatever happens beside it.

What holds of every engine is in test_engine_conformance.py.
"""

from __future__ import annotations

import gc
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine_conformance import TEXTS
from headpond.errors import EngineError, EngineUnavailable, ModelFileError
from headpond.jobs import FinishReason
from headpond.requests import Message
from headpond.sampling import Sampling
from headpond.tables import LlamaCppModel
from headpond_workers.engines.formats.gguf_header import GgufHeader
from headpond_workers.engines.llamacpp.completion import Completion
from headpond_workers.engines.llamacpp.engine import LlamaCppEngine
from headpond_workers.engines.llamacpp.id_recovery import IdRecovery
from headpond_workers.engines.llamacpp.model import default_threads
from headpond_workers.engines.llamacpp.parameters import check_parameters
from headpond_workers.engines.llamacpp.sampling import sampling_fields
from headpond_workers.engines.llamacpp.server import LlamaServer
from headpond_workers.engines.protocol import Finish, Sequence, Verdict
from headpond_workers.engines.seeds import seed_at
from headpond_workers.models.prepare import prepare

SOURCE = "smollm2-135m:Q8_0"
GREEDY = Sampling(temperature=0.0)
CONTEXT_TOKENS = 256
SLOTS = 3
DEADLINE_S = 120.0
EMOJI_PROMPT = "Repeat after me: \U0001f389\U0001f9d1\u200d\U0001f680 \u65e5\u672c\u8a9e\U0001f355"


def settings(*, exact: bool = False, slots: int = SLOTS, context_tokens: int = CONTEXT_TOKENS) -> LlamaCppModel:
    return LlamaCppModel(
        engine="llamacpp", source=SOURCE, slots=slots, context_tokens=context_tokens, exact=exact, threads=1
    )


class Listener:
    """Collects ids."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def __call__(self, ids: Seq[int]) -> Verdict:
        self.ids.extend(ids)
        return Verdict.GO


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The model, prepared once in the user's own cache."""
    return prepare(SOURCE, progress=lambda stage, done, total: None)


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Iterator[LlamaCppEngine]:
    loaded = LlamaCppEngine(settings(), model_path)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def exact_engine(model_path: Path) -> Iterator[LlamaCppEngine]:
    loaded = LlamaCppEngine(settings(exact=True), model_path)
    yield loaded
    loaded.close()


def prompt_of(engine: LlamaCppEngine, text: str) -> tuple[int, ...]:
    return tuple(engine.render([Message(role="user", content=text)]))


def run(
    engine: LlamaCppEngine,
    prompt: tuple[int, ...],
    *,
    generated: tuple[int, ...] = (),
    max_tokens: int = 24,
    sampling: Sampling = GREEDY,
    seed: int = 7,
) -> tuple[list[int], Finish]:
    listener = Listener()
    finish = engine.generate(Sequence(prompt, generated, max_tokens, sampling, seed), listener)
    return listener.ids, finish


def text_of(engine: LlamaCppEngine, ids: Seq[int]) -> str:
    return b"".join(engine.token_bytes(i) for i in ids).decode("utf-8", "replace")


POSTED = (
    *("/tokenize", "/detokenize", "/apply-template", "/infill", "/rerank", "/v1/rerank", "/reranking"),
    *("/completion", "/completions", "/v1/completions", "/v1/chat/completions", "/chat/completions", "/v1/messages"),
    *("/embedding", "/embeddings", "/v1/embeddings", "/v1/responses", "/lora-adapters", "/slots/0?action=save"),
    *("/slots/0?action=erase", "/props", "/models/load", "/models/unload", "/v1/messages/count_tokens"),
)
GOT = (
    "/health",
    "/v1/health",
    "/props",
    "/slots",
    "/metrics",
    "/models",
    "/v1/models",
    "/lora-adapters",
    "/",
    "/api/tags",
)
UNGUARDED: tuple[str, ...] = ("/health", "/v1/health")
"""What llama.cpp's server answers without a key."""


def ask(
    server: LlamaServer, method: str, path: str, body: str, headers: dict[str, str]
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer of the loopback server."""
    connection = http.client.HTTPConnection(server._http._host, server._http._port, timeout=DEADLINE_S)
    connection.request(method, path, body, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def server_of(engine: LlamaCppEngine) -> LlamaServer:
    return engine.open_server()


def ids_without_a_stream(
    engine: LlamaCppEngine, prompt: tuple[int, ...], *, max_tokens: int, sampling: Sampling, seed: int
) -> list[int]:
    """What the server itself lists as its tokens, the end token left out."""
    body = {
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "samplers": ["temperature"],
        "temperature": sampling.temperature,
        "seed": seed,
        "cache_prompt": False,
        "return_tokens": True,
        "verbose": True,
    }
    detail = server_of(engine).complete(body, None)["__verbose"]
    tokens: list[int] = detail["tokens"]
    return tokens[:-1] if detail["stop_type"] == "eos" else tokens


# Without a model


def test_lost_ids_are_found_where_only_one_way_writes_the_text() -> None:
    recovery = IdRecovery([b"", b"\xf0\x9f", b"\x91", b"\xa9", b"a"])
    assert recovery.missing("\U0001f469", last=3, count=2) == [1, 2]
    assert recovery.missing("a\U0001f469", last=3, count=3) == [4, 1, 2]


def test_lost_ids_stay_unknown_where_two_ways_write_the_text() -> None:
    recovery = IdRecovery([b"\xf0", b"\x9f", b"\x91", b"\xa9", b"\xf0\x9f", b"\x9f\x91"])
    assert recovery.missing("\U0001f469", last=3, count=2) is None
    assert recovery.missing("\U0001f469", last=3, count=3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "last", "count"),
    [("\ufffd", 0, 1), ("b", 0, 1), ("a" * 100, 0, 99), ("aa", 5, 1), ("", 0, 1), ("aa", 0, 2)],
)
def test_lost_ids_are_not_guessed(text: str, last: int, count: int) -> None:
    assert IdRecovery([b"a"]).missing(text, last=last, count=count) is None


def test_a_silent_token_in_the_vocabulary_makes_a_guess_impossible() -> None:
    assert IdRecovery([b"", b"\xc3", b"\xa9"]).missing("\u00e9", last=2, count=2) is None


def test_a_later_request_has_a_seed_of_its_own() -> None:
    assert seed_at(5, 0) == 5
    assert seed_at(5, 3) == seed_at(5, 3) != seed_at(5, 4)
    assert seed_at(0xFFFFFFFF, 0) != 0xFFFFFFFF, "llama.cpp takes that one for: choose one"


def test_threads_are_the_cores_divided_by_the_workers() -> None:
    cores = default_threads(1)
    assert 1 <= cores <= (os.cpu_count() or 1)
    assert default_threads(cores) == 1
    assert default_threads(10_000) == 1
    assert default_threads(0) == cores


@pytest.mark.parametrize(
    ("slots", "context_tokens", "threads", "reason"),
    [(257, 64, 1, "slots = 257"), (1, 4096, 1, "trained for 2048"), (1, 64, 513, "threads"), (256, 2048, 1, "MiB")],
)
def test_parameters_that_would_abort_the_process_are_refused(
    slots: int, context_tokens: int, threads: int, reason: str
) -> None:
    metadata = {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "llama.block_count": 10_000,
        "llama.attention.head_count": 64,
        "llama.embedding_length": 8192,
    }
    header = GgufHeader(3, metadata, {}, (), 32, 0)  # type: ignore[arg-type]
    with pytest.raises(EngineUnavailable, match=reason):
        check_parameters(settings(slots=slots, context_tokens=context_tokens), header, threads=threads)


@pytest.mark.parametrize("content", [None, b"", b"not a model at all, but long enough"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match="model"):
        LlamaCppEngine(settings(), path)


# Loading


@pytest.mark.slow
def test_a_truncated_model_is_refused(model_path: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    shutil.copyfile(model_path, cut)
    os.truncate(cut, model_path.stat().st_size - 4096)
    with pytest.raises(ModelFileError, match="truncated"):
        LlamaCppEngine(settings(), cut)


@pytest.mark.slow
def test_the_info_says_what_was_loaded(engine: LlamaCppEngine, exact_engine: LlamaCppEngine) -> None:
    assert (engine.info.engine, engine.info.context_tokens, engine.info.slots) == ("llamacpp", CONTEXT_TOKENS, SLOTS)
    assert len(bytes.fromhex(engine.info.fingerprint)) == 32
    assert engine.info.fingerprint != exact_engine.info.fingerprint
    assert "exact_resume" in exact_engine.info.capabilities - engine.info.capabilities


@pytest.mark.slow
def test_a_process_can_load_close_and_leave(model_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from headpond.tables import LlamaCppModel\n"
        "from headpond_workers.engines.llamacpp.engine import LlamaCppEngine\n"
        "s = LlamaCppModel(engine='llamacpp', path=Path(sys.argv[1]), slots=1, context_tokens=64, threads=1)\n"
        "one, two = LlamaCppEngine(s, s.path), LlamaCppEngine(s, s.path)\n"
        "assert one.info.fingerprint == two.info.fingerprint\n"
        "one.close(); one.close()\n"
        "print('closed')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(model_path)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "closed\n"), ended.stderr
    assert ended.stderr == "", "llama.cpp is silent"


@pytest.mark.slow
def test_a_closed_engine_tokenises_no_more(model_path: Path) -> None:
    engine = LlamaCppEngine(settings(slots=1, context_tokens=64), model_path)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.encode("a")


@pytest.mark.slow
def test_closing_frees_the_model_also_under_running_and_waiting_callers(
    model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = LlamaCppEngine(settings(slots=2), model_path)
    freed = weakref.ref(server_of(engine))
    asked = Sequence(prompt_of(engine, "Tell me a long story."), (), 200, GREEDY, 7)
    began = threading.Event()

    def emit(ids: Seq[int]) -> Verdict:
        began.set()
        return Verdict.GO

    with ThreadPoolExecutor(5) as pool:
        running = [pool.submit(engine.generate, asked, emit) for _ in range(5)]
        assert began.wait(DEADLINE_S)
        engine.close()
        for future in running:
            with pytest.raises(EngineError, match="closed"):
                future.result(DEADLINE_S)
    running.clear()
    gc.collect()
    assert freed() is None
    assert "engine_closed_busy" not in caplog.text


@pytest.mark.slow
def test_the_loopback_server_is_closed_to_others(engine: LlamaCppEngine) -> None:
    server = server_of(engine)
    assert server._http._host == "127.0.0.1"
    body = json.dumps({"content": "a", "prompt": "a", "input": "a", "messages": [{"role": "user", "content": "a"}]})
    for method, path in [*(("POST", path) for path in POSTED), *(("GET", path) for path in GOT)]:
        for key in ({}, {"Authorization": "Bearer wrong"}, {"X-Api-Key": "wrong"}, {"Authorization": "Bearer "}):
            status, headers, _ = ask(server, method, path, body, {"Origin": "http://a.example", **key})
            assert status in ((200,) if path in UNGUARDED else (401, 404)), (method, path, key)
            assert headers.get("Access-Control-Allow-Origin") in (None, "")


@pytest.mark.slow
def test_what_the_loopback_server_tells_everybody_names_no_model_and_no_text(engine: LlamaCppEngine) -> None:
    for path in UNGUARDED:
        status, _, content = ask(server_of(engine), "GET", path, "", {})
        assert status == 200
        assert len(content) < 20_000
        for told in ("smollm", "gguf", str(Path.home()).lower()):
            assert told not in content.decode().lower()


@pytest.mark.slow
def test_a_browser_of_another_site_is_given_no_leave(engine: LlamaCppEngine) -> None:
    asked = {
        "Origin": "http://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    for path in (*POSTED, *GOT):
        _, headers, _ = ask(server_of(engine), "OPTIONS", path, "", asked)
        assert headers.get("Access-Control-Allow-Origin") in (None, "")
        assert headers.get("Access-Control-Allow-Credentials") in (None, "", "false")


# Text and tokens


@pytest.mark.slow
def test_the_bytes_of_tokens_are_llama_cpps(engine: LlamaCppEngine) -> None:
    answer = server_of(engine).post(
        "/tokenize", {"content": " ".join(TEXTS), "with_pieces": True, "parse_special": False}
    )
    assert len(answer["tokens"]) > 50
    for token in answer["tokens"]:
        piece = token["piece"]
        assert engine.token_bytes(token["id"]) == (piece.encode() if isinstance(piece, str) else bytes(piece))


@pytest.mark.slow
def test_special_tokens_are_parsed_in_a_conversation_and_not_in_plain_text(engine: LlamaCppEngine) -> None:
    begin = server_of(engine).post("/tokenize", {"content": "<|im_start|>", "parse_special": True})["tokens"]
    assert len(begin) == 1
    assert engine.token_bytes(begin[0]) == b""
    assert begin[0] not in engine.encode("<|im_start|>")
    assert engine.render([Message(role="user", content="Hi")]).count(begin[0]) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "conversation",
    [
        [("user", "Hi")],
        [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "  spaces  \n\n")],
        [("user", EMOJI_PROMPT), ("assistant", "{{ 1 + 1 }} {% raw %} <b>&amp;'\""), ("user", "")],
        [("system", "only a system message")],
    ],
)
def test_a_conversation_is_rendered_as_llama_cpp_itself_does(
    engine: LlamaCppEngine, conversation: list[tuple[str, str]]
) -> None:
    messages = [Message.model_validate({"role": role, "content": content}) for role, content in conversation]
    body = {"messages": [{"role": role, "content": content} for role, content in conversation]}
    reference = server_of(engine).post("/apply-template", body)["prompt"]
    assert engine.render_text(messages) == reference
    tokens = {"content": reference, "add_special": True, "parse_special": True}
    assert engine.render(messages) == server_of(engine).post("/tokenize", tokens)["tokens"]


@pytest.mark.slow
def test_tokenising_survives_a_dropped_connection(engine: LlamaCppEngine) -> None:
    before = engine.encode("once more")
    connection = server_of(engine)._http._connection
    assert connection is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    assert engine.encode("once more") == before


@pytest.mark.slow
def test_an_id_outside_the_vocabulary_has_no_bytes(engine: LlamaCppEngine) -> None:
    for token_id in (-1, 49_152):
        with pytest.raises(EngineError, match="no token"):
            engine.token_bytes(token_id)


# Generation


@pytest.mark.slow
def test_an_answer_comes_with_what_was_measured(engine: LlamaCppEngine) -> None:
    prompt = prompt_of(engine, "What is 2 + 2?")
    ids, finish = run(engine, prompt, max_tokens=150)
    assert finish.reason is FinishReason.STOP
    assert "4" in text_of(engine, ids)
    assert finish.details["prefill_tokens"] == len(prompt)
    assert finish.details["cached_tokens"] == 0
    assert finish.details["prefill_s"] > 0
    assert finish.details["decode_s"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_id_of_an_emoji_is_emitted(exact_engine: LlamaCppEngine, seed: int, temperature: float) -> None:
    prompt = prompt_of(exact_engine, EMOJI_PROMPT)
    sampling = Sampling(temperature=temperature)
    expected = ids_without_a_stream(exact_engine, prompt, max_tokens=20, sampling=sampling, seed=seed)
    ids, finish = run(exact_engine, prompt, max_tokens=20, sampling=sampling, seed=seed)
    drawn_anew = finish.details["prefill_tokens"] > len(prompt)
    if temperature == 0:
        assert "\U0001f389" in text_of(exact_engine, ids)
    # A character whose ids are uncertain is drawn anew, with a seed of its own; that is repeatable too.
    assert ids == expected or (temperature > 0 and drawn_anew)
    assert run(exact_engine, prompt, max_tokens=20, sampling=sampling, seed=seed)[0] == ids


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_an_answer_cut_amid_a_character_has_all_its_ids(exact_engine: LlamaCppEngine, max_tokens: int) -> None:
    prompt = prompt_of(exact_engine, EMOJI_PROMPT)
    expected = ids_without_a_stream(exact_engine, prompt, max_tokens=max_tokens, sampling=GREEDY, seed=7)
    ids, finish = run(exact_engine, prompt, max_tokens=max_tokens)
    assert ids == expected
    assert (len(ids), finish.reason) == (max_tokens, FinishReason.LENGTH)


@pytest.mark.slow
def test_ids_that_cannot_be_told_from_the_text_are_made_again_without_a_stream(exact_engine: LlamaCppEngine) -> None:
    prompt = prompt_of(exact_engine, EMOJI_PROMPT)
    expected, _ = run(exact_engine, prompt, max_tokens=20)
    listener = Listener()
    knows_nothing = IdRecovery([b""] * 49_152)
    finish = Completion(
        server_of(exact_engine),
        slot=0,
        token_bytes=[exact_engine.token_bytes(i) for i in range(49_152)],
        recovery=knows_nothing,
        prompt=prompt,
        prior=0,
        max_tokens=20,
        fields=sampling_fields(GREEDY, vocabulary=49_152, context_tokens=CONTEXT_TOKENS),
        seed=7,
        emit=listener,
    ).run()
    assert listener.ids == expected
    assert finish.reason in (FinishReason.STOP, FinishReason.LENGTH)


@pytest.mark.slow
def test_seeds_decide_what_is_drawn_and_the_neighbours_do_not(exact_engine: LlamaCppEngine) -> None:
    prompt = prompt_of(exact_engine, "Name an animal.")
    hot = Sampling(temperature=1.0, top_p=0.9)
    alone = [run(exact_engine, prompt, sampling=hot, seed=seed)[0] for seed in range(SLOTS)]
    assert len({tuple(ids) for ids in alone}) > 1
    with ThreadPoolExecutor(SLOTS) as pool:
        together = list(pool.map(lambda seed: run(exact_engine, prompt, sampling=hot, seed=seed)[0], range(SLOTS)))
    assert together == alone


@pytest.mark.slow
def test_a_tiny_top_p_leaves_only_the_likeliest_token(exact_engine: LlamaCppEngine) -> None:
    prompt = prompt_of(exact_engine, "Name an animal.")
    greedy, _ = run(exact_engine, prompt)
    assert run(exact_engine, prompt, sampling=Sampling(temperature=1.0, top_p=1e-6))[0] == greedy


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, top_p=0.95)])
def test_a_resume_amid_emoji_under_the_exact_profile_goes_on_with_the_same_ids(
    exact_engine: LlamaCppEngine, sampling: Sampling
) -> None:
    prompt = prompt_of(exact_engine, EMOJI_PROMPT)
    whole, finish = run(exact_engine, prompt, max_tokens=30, sampling=sampling)
    kept = [k for k in (1, 2, 3, 7, 16) if k < len(whole)]
    with ThreadPoolExecutor(SLOTS) as pool:
        resumed = list(
            pool.map(
                lambda k: run(exact_engine, prompt, generated=tuple(whole[:k]), max_tokens=30 - k, sampling=sampling),
                kept,
            )
        )
    for k, (rest, end) in zip(kept, resumed, strict=True):
        assert whole[:k] + rest == whole, f"resumed after {k} ids"
        assert end.reason is finish.reason


@pytest.mark.slow
def test_ids_that_this_engine_would_not_have_made_are_continued_all_the_same(exact_engine: LlamaCppEngine) -> None:
    prompt = prompt_of(exact_engine, "Tell me about rivers.")
    foreign = tuple(exact_engine.encode("Zebras, on the other hand,"))
    hot = Sampling(temperature=1.0)
    ids, finish = run(exact_engine, prompt, generated=foreign, max_tokens=8, sampling=hot)
    assert len(ids) <= 8
    assert finish.reason in (FinishReason.LENGTH, FinishReason.STOP)
    assert run(exact_engine, prompt, generated=foreign, max_tokens=8, sampling=hot)[0] == ids
