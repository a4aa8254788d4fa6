"""A GGUF head is read within bounds, and its vocabulary gives the bytes of each token."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from headpond.errors import EngineUnavailable, ModelFileError
from headpond_workers.engines.formats.gguf_header import GgufHeader, read_header
from headpond_workers.engines.formats.gguf_vocabulary import TokenType, read_vocabulary

PIECES = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xF0>", "\u2581hello", "\u2581", "o", "<tool>"]
TYPES = [
    TokenType.UNKNOWN,
    TokenType.CONTROL,
    TokenType.CONTROL,
    TokenType.BYTE,
    TokenType.BYTE,
    TokenType.NORMAL,
    TokenType.NORMAL,
    TokenType.NORMAL,
    TokenType.USER_DEFINED,
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small file by the reference writer."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_float32("llama.test", 0.5)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_types([int(kind) for kind in TYPES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}")
    writer.add_tensor("a.weight", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.add_tensor("b.weight", np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def vocabulary_header(kind: str, pieces: list[str], types: list[int]) -> GgufHeader:
    metadata = {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": list(pieces),
        "tokenizer.ggml.token_type": list(types),
    }
    return GgufHeader(version=3, metadata=metadata, pairs={}, tensors=(), alignment=32, data_start=0)  # type: ignore[arg-type]


def test_the_head_of_the_reference_writer_is_read_in_full(model: Path) -> None:
    header = read_header(model)
    reference = gguf.GGUFReader(str(model))
    expected = {name: field.contents() for name, field in reference.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata == expected
    assert [(t.name, t.shape, t.size_bytes) for t in header.tensors] == [
        ("a.weight", (32, 2), 256),
        ("b.weight", (5,), 20),
    ]
    assert [header.data_start + t.offset for t in header.tensors] == [t.data_offset for t in reference.tensors]
    assert header.integer("llama.context_length") == 128
    start, end = header.pairs["llama.context_length"]
    assert model.read_bytes()[start:end].endswith(struct.pack("<II", 4, 128))


def test_a_file_cut_anywhere_is_refused(model: Path, tmp_path: Path) -> None:
    whole = model.read_bytes()
    last_byte = read_header(model).data_start + 256 + 20
    cut = tmp_path / "cut.gguf"
    for size in range(0, last_byte, 7):
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelFileError, match=r"truncated|too short"):
            read_header(cut)


def test_a_file_altered_anywhere_is_read_or_refused_and_nothing_else(model: Path, tmp_path: Path) -> None:
    whole = model.read_bytes()
    altered = tmp_path / "altered.gguf"
    draws = random.Random(7)
    refused = 0
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(draws.randint(1, 4)):
            data[draws.randrange(len(data))] = draws.choice((0, 1, 0x7F, 0x80, 0xFF, draws.randrange(256)))
        altered.write_bytes(data)
        try:
            assert read_header(altered).tensors is not None
        except ModelFileError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("count", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_counts_are_bounded_before_anything_is_allocated(tmp_path: Path, count: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, count, count) + bytes(64))
    with pytest.raises(ModelFileError, match="limit"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "too short"),
        (b"PK\x03\x04" + bytes(100), "not a GGUF model"),
        (b"GGUF" + struct.pack("<I", 99) + bytes(100), "version 99"),
    ],
)
def test_what_is_no_gguf_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=reason):
        read_header(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="No model file"):
        read_header(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match="Cannot read"):
        read_header(tmp_path)


def test_a_sentence_piece_vocabulary_gives_bytes(model: Path) -> None:
    vocabulary = read_vocabulary(read_header(model))
    assert vocabulary.token_bytes == (b"", b"", b"", b"\n", b"\xf0", b" hello", b" ", b"o", b"<tool>")
    assert (vocabulary.bos_token, vocabulary.eos_token, vocabulary.adds_bos) == ("<s>", "</s>", True)
    assert vocabulary.chat_template == "{{ messages[0].content }}"


def test_a_byte_level_vocabulary_gives_every_byte_once() -> None:
    alphabet = [chr(i) for i in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144))]
    header = vocabulary_header("gpt2", [*alphabet, "\u0120hi\u010a", "<|end|>"], [1] * 257 + [3])
    token_bytes = read_vocabulary(header).token_bytes
    assert sorted(token_bytes[:256]) == [bytes([i]) for i in range(256)]
    assert token_bytes[256:] == (b" hi\n", b"")


def test_a_tokenizer_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(EngineUnavailable, match="'bert'"):
        read_vocabulary(vocabulary_header("bert", ["a"], [1]))


def test_token_types_must_match_the_tokens() -> None:
    with pytest.raises(ModelFileError, match="2 token types"):
        read_vocabulary(vocabulary_header("gpt2", ["a"], [1, 1]))
