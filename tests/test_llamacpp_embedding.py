"""llama.cpp as an engine that embeds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headpond.errors import CapabilityMissing, EngineError, EngineUnavailable, PromptTooLong
from headpond.sampling import Sampling
from headpond_workers.engines.formats.gguf_header import read_header
from headpond_workers.engines.llamacpp.embedding import LlamaCppEmbedder
from headpond_workers.engines.llamacpp.engine import LlamaCppEngine
from headpond_workers.engines.llamacpp.parameters import pooling_of
from headpond_workers.engines.protocol import Capability, Embedding, Sequence, Verdict
from llama_engines import smollm2, table
from tiny_gguf import write_tiny_model

TEXTS = ["The river bends.", "A stream curves.", "Tax law of 1987, part 3"]


def go() -> Verdict:
    return Verdict.GO


def cosine(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    return math.fsum(a * b for a, b in zip(one, two, strict=True))


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaCppEmbedder]:
    path = smollm2()
    loaded = LlamaCppEmbedder(table(path, task="embed", context_tokens=128, slots=2), path)
    yield loaded
    loaded.close()


def embedded(engine: LlamaCppEmbedder, texts: list[str]) -> Embedding:
    made = engine.embed(texts, go)
    assert made is not None
    return made


@pytest.mark.slow
def test_texts_become_vectors_of_length_1_and_alike_texts_alike_vectors(engine: LlamaCppEmbedder) -> None:
    made = embedded(engine, TEXTS)
    assert [len(vector) for vector in made.vectors] == [576] * 3
    assert all(math.isclose(math.fsum(v * v for v in vector), 1, rel_tol=1e-9) for vector in made.vectors)
    assert made.tokens == sum(len(engine.encode(text)) for text in TEXTS)
    river, stream, tax = made.vectors
    assert cosine(river, stream) > cosine(river, tax)


@pytest.mark.slow
def test_a_text_has_the_same_vector_each_time_alone_and_beside_others(engine: LlamaCppEmbedder) -> None:
    together = embedded(engine, TEXTS).vectors
    alone = [embedded(engine, [text]).vectors[0] for text in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        beside = [made.vectors[0] for made in pool.map(lambda text: embedded(engine, [text]), TEXTS * 2)]
    for vectors in (alone, beside[:3], beside[3:]):
        assert all(cosine(one, two) > 0.999 for one, two in zip(vectors, together, strict=True))
    assert list(together) == alone


@pytest.mark.slow
def test_no_two_texts_are_computed_at_a_time(engine: LlamaCppEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    # llama.cpp pools a text wrongly beside one of another length, but only where their requests meet.
    server = engine.open_server()
    at_once, compute = 0, server.embed
    seen: list[int] = []

    def embed(ids: Sequence) -> object:
        nonlocal at_once
        at_once += 1
        seen.append(at_once)
        try:
            return compute(ids)
        finally:
            at_once -= 1

    monkeypatch.setattr(server, "embed", embed)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda text: embedded(engine, [text]), TEXTS * 2))
    assert seen == [1] * 6


@pytest.mark.slow
def test_vectors_are_those_of_llama_cpp_itself(engine: LlamaCppEmbedder) -> None:
    answer = engine.open_server()._server.handle_embeddings({"input": TEXTS})
    for item, vector in zip(answer["data"], embedded(engine, TEXTS).vectors, strict=True):
        assert cosine(tuple(item["embedding"]), vector) > 0.999


@pytest.mark.slow
def test_a_text_as_long_as_the_context_is_embedded_and_a_longer_one_refused(engine: LlamaCppEmbedder) -> None:
    word = " river"
    whole = "river" + word * 127
    assert len(engine.encode(whole)) == 128
    assert embedded(engine, [whole]).tokens == 128
    with pytest.raises(PromptTooLong) as caught:
        engine.embed(["short", whole + word], go)
    assert (caught.value.prompt_tokens, caught.value.context_tokens) == (129, 128)


@pytest.mark.slow
def test_a_cancel_is_heard_between_texts(engine: LlamaCppEmbedder) -> None:
    asked = 0

    def stop() -> Verdict:
        nonlocal asked
        asked += 1
        return Verdict.STOP if asked > 2 else Verdict.GO

    assert engine.embed(["a river"] * 50, stop) is None
    assert asked == 3
    assert embedded(engine, ["a river"]).tokens == 2


@pytest.mark.slow
def test_what_a_listener_raises_reaches_its_caller(engine: LlamaCppEmbedder) -> None:
    def fail() -> Verdict:
        raise LookupError("the listener's own")

    for _ in range(3):  # more often than there are slots
        with pytest.raises(LookupError):
            engine.embed(["a"], fail)
    assert embedded(engine, ["a"]).tokens == 1


@pytest.mark.slow
def test_an_embedding_model_refuses_to_generate_and_a_generating_one_to_embed(
    engine: LlamaCppEmbedder, tmp_path: Path
) -> None:
    assert engine.info.capabilities == frozenset({Capability.EMBEDDINGS})
    with pytest.raises(CapabilityMissing, match=r"cannot generate text: it is loaded to embed .* under another name"):
        engine.generate(Sequence((1,), (), 5, Sampling(), 1), lambda ids: Verdict.GO)
    path = write_tiny_model(tmp_path / "tiny.gguf")
    generating = LlamaCppEngine(table(path), path)
    with pytest.raises(CapabilityMissing, match=r'cannot embed texts .* needs task = "embed"'):
        generating.info.require(Capability.EMBEDDINGS)
    assert not hasattr(generating, "embed")
    generating.close()


@pytest.mark.slow
def test_a_closed_engine_embeds_no_more(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")
    engine = LlamaCppEmbedder(table(path, task="embed"), path)
    assert len(embedded(engine, ["ab"]).vectors[0]) == 64
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.embed(["ab"], go)


@pytest.mark.slow
def test_each_pooling_makes_other_vectors_and_another_fingerprint(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")
    made = {}
    for pooling in ("mean", "cls", "last"):
        engine = LlamaCppEmbedder(table(path, task="embed", pooling=pooling), path)
        made[engine.info.fingerprint] = embedded(engine, ["abc12"]).vectors[0]
        engine.close()
    assert len(made) == len(set(made.values())) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("slots", "context_tokens"), [(3, 256), (5, 511), (7, 64), (256, 64)])
def test_slots_need_not_divide_the_context(tmp_path: Path, slots: int, context_tokens: int) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")
    engine = LlamaCppEmbedder(table(path, task="embed", slots=slots, context_tokens=context_tokens), path)
    assert embedded(engine, ["a" * context_tokens]).tokens == context_tokens
    engine.close()


def test_the_pooling_is_the_tables_or_the_models_or_the_mean(tmp_path: Path) -> None:
    def pooling(stated: int | None, chosen: str | None = None) -> str:
        path = write_tiny_model(tmp_path / f"{stated}.gguf", pooling=stated)
        return pooling_of(table(path, task="embed", pooling=chosen), read_header(path))

    assert [pooling(None), pooling(1), pooling(2), pooling(3)] == ["mean", "mean", "cls", "last"]
    assert pooling(2, "last") == "last"
    with pytest.raises(EngineUnavailable, match="type 4"):
        pooling(4)
