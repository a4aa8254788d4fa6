"""A checkpoint folder is checked before any loader sees it, and its digest tells which model it is."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headpond.errors import ModelFileError
from headpond_workers.engines.formats.checkpoint_folder import (
    MAX_FILES,
    PICKLED_SUFFIXES,
    CheckpointFolder,
    check_adapter,
    check_checkpoint,
)
from headpond_workers.engines.formats.safetensors_header import MAX_HEADER_BYTES, read_safetensors_header

Header = dict[str, Any]


def safetensors(header: object, data: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def tensor(begin: int = 0, end: int = 24, dtype: object = "F32", shape: object = (2, 3)) -> Header:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


SOUND = {"__metadata__": {"format": "pt"}, "a.weight": tensor(), "b": tensor(24, 30, "F16", (3,))}
DATA = bytes(range(30))


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"num_hidden_layers": 2, "vocab_size": 100}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model-1.safetensors").write_bytes(safetensors(SOUND, DATA))
    (folder / "model-2.safetensors").write_bytes(safetensors({"c": tensor(0, 4, "U8", (4,))}, b"last"))
    return folder


def make_adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 16}')
    (folder / "adapter_model.safetensors").write_bytes(safetensors(SOUND, DATA))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "digests"


def refusal(folder: Path, cache: Path) -> str:
    with pytest.raises(ModelFileError) as failure:
        check_checkpoint(folder, digest_cache=cache)
    return str(failure.value)


def test_a_sound_folder_gives_its_weights_in_order(model: Path, cache: Path) -> None:
    found = check_checkpoint(model, digest_cache=cache)
    weights = (model / "model-1.safetensors", model / "model-2.safetensors")
    size = sum(path.stat().st_size for path in weights)
    assert found == CheckpointFolder(path=model, weight_files=weights, weight_bytes=size, digest=found.digest)
    assert len(found.digest) == 64


def test_the_digest_is_of_the_contents_and_not_of_the_place(model: Path, cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    assert check_checkpoint(copy, digest_cache=cache).digest == check_checkpoint(model, digest_cache=cache).digest


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "added_tokens.json",
    ],
)
def test_every_file_that_decides_the_output_decides_the_digest(model: Path, cache: Path, name: str) -> None:
    before = check_checkpoint(model, digest_cache=cache).digest
    (model / name).write_text('{"changed": true}')
    assert check_checkpoint(model, digest_cache=cache).digest != before


def test_other_weights_have_another_digest_and_another_name_too(model: Path, cache: Path) -> None:
    before = check_checkpoint(model, digest_cache=cache).digest
    (model / "model-1.safetensors").write_bytes(safetensors(SOUND, DATA[::-1]))
    changed = check_checkpoint(model, digest_cache=cache).digest
    (model / "model-2.safetensors").rename(model / "model-3.safetensors")
    assert len({before, changed, check_checkpoint(model, digest_cache=cache).digest}) == 3


def test_a_file_that_decides_nothing_is_not_in_the_digest(model: Path, cache: Path) -> None:
    before = check_checkpoint(model, digest_cache=cache).digest
    (model / "README.md").write_text("A model.")
    assert check_checkpoint(model, digest_cache=cache).digest == before


def test_a_folder_of_links_as_in_a_cache_is_the_same_model(model: Path, cache: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for path in model.iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    assert check_checkpoint(snapshot, digest_cache=cache).digest == check_checkpoint(model, digest_cache=cache).digest


def test_a_link_is_digested_by_what_it_leads_to_now(model: Path, cache: Path, tmp_path: Path) -> None:
    link = model / "model-2.safetensors"
    blobs = [tmp_path / "blob-1", tmp_path / "blob-2"]
    for blob, data in zip(blobs, (b"one.", b"two."), strict=True):
        blob.write_bytes(safetensors({"c": tensor(0, 4, "U8", (4,))}, data))
    digests = set()
    for blob in blobs:
        link.unlink()
        link.symlink_to(blob)
        digests.add(check_checkpoint(model, digest_cache=cache).digest)
    assert len(digests) == 2


@pytest.mark.parametrize("name", ["config.json", "model-2.safetensors", "tokenizer.json"])
def test_a_link_that_leads_nowhere_or_to_no_file_is_refused_by_name(model: Path, cache: Path, name: str) -> None:
    for target, reason in (("/nonexistent/blob", "No file"), ("/dev/zero", "no regular file")):
        (model / name).unlink()
        (model / name).symlink_to(target)
        message = refusal(model, cache)
        assert reason in message
        assert name in message


def test_a_pipe_is_refused_without_waiting_for_its_writer(model: Path, cache: Path) -> None:
    (model / "model-2.safetensors").unlink()
    os.mkfifo(model / "model-2.safetensors")
    assert "model-2.safetensors is no regular file" in refusal(model, cache)


@pytest.mark.parametrize("suffix", [*PICKLED_SUFFIXES, ".BIN", ".Pt"])
def test_a_file_that_a_loader_could_unpickle_is_refused_with_what_to_do(model: Path, cache: Path, suffix: str) -> None:
    (model / f"extra{suffix}").write_bytes(b"")
    message = refusal(model, cache)
    assert f"'extra{suffix}'" in message
    assert "weights_only=True" in message


def test_a_link_to_a_pickle_is_refused_by_its_own_name(model: Path, cache: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").symlink_to(tmp_path / "missing")
    assert "'pytorch_model.bin'" in refusal(model, cache)


def test_no_folder_a_file_and_a_folder_without_weights_are_told_apart(model: Path, cache: Path) -> None:
    assert "No folder at" in refusal(model / "nothing", cache)
    assert "No folder at" in refusal(model / "config.json", cache)
    for path in model.glob("*.safetensors"):
        path.unlink()
    assert "holds no weights" in refusal(model, cache)
    (model / "config.json").unlink()
    assert "No file at" in refusal(model, cache)


def test_a_hidden_file_and_a_folder_of_the_name_of_weights_are_no_weights(model: Path, cache: Path) -> None:
    before = check_checkpoint(model, digest_cache=cache)
    (model / ".hidden.safetensors").write_bytes(b"")
    (model / "folder.safetensors").mkdir()
    assert check_checkpoint(model, digest_cache=cache) == before


def test_a_hidden_pickle_is_refused_all_the_same(model: Path, cache: Path) -> None:
    (model / ".adapter_model.bin").write_bytes(b"")
    assert "'.adapter_model.bin'" in refusal(model, cache)


def test_a_folder_of_very_many_files_is_refused(model: Path, cache: Path) -> None:
    for index in range(MAX_FILES):
        (model / f"{index}.txt").touch()
    assert f"more than {MAX_FILES} files" in refusal(model, cache)


def test_control_characters_in_a_files_name_reach_no_terminal(model: Path, cache: Path) -> None:
    (model / "x\x1b[2J.safetensors").write_bytes(safetensors({}))
    assert "\x1b" not in refusal(model, cache)
    (model / "x\x1b[2J.safetensors").rename(model / "x\x1b[2J.pt")
    assert "\x1b" not in refusal(model, cache)


def test_a_tensor_that_two_files_hold_is_refused(model: Path, cache: Path) -> None:
    (model / "other.safetensors").write_bytes(safetensors({"c": tensor(0, 4, "U8", (4,))}, b"more"))
    message = refusal(model, cache)
    assert "'c' is in both" in message
    assert "model-2.safetensors" in message
    assert "other.safetensors" in message


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('{"num_hidden_layers": 1000000000}', "num_hidden_layers is '1000000000'"),
        ('{"num_hidden_layers": -1}', "num_hidden_layers is '-1'"),
        ('{"num_hidden_layers": true}', "num_hidden_layers is 'True'"),
        ('{"hidden_size": "4096"}', "hidden_size is '4096'"),
        ('{"hidden_size": NaN}', "hidden_size is 'nan'"),
        (f'{{"vocab_size": 1{"0" * 400}}}', "vocab_size is '1000"),
        ('{"text_config": {"num_experts": 1e9}}', "num_experts is '1000000000.0'"),
        ("[]", "holds a list"),
        ("", "not valid JSON"),
        ('{"a":' * 100_000, "too deep"),
    ],
)
def test_a_configuration_that_would_make_a_loader_run_away_is_refused(
    model: Path, cache: Path, config: str, reason: str
) -> None:
    (model / "config.json").write_text(config)
    message = refusal(model, cache)
    assert reason in message
    assert "config.json" in message


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "", "..", "x.bin", "\x1b[2J"]
)
def test_an_index_names_nothing_outside_of_the_folder(model: Path, cache: Path, name: str) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    message = refusal(model, cache)
    assert "index.json is not valid" in message
    assert "\x1b" not in message


def test_the_index_of_the_model_before_it_was_quantised_does_no_harm(model: Path, cache: Path) -> None:
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00009.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(check_checkpoint(model, digest_cache=cache).weight_files) == 2
    (model / "model.safetensors.index.json").write_text("{}")
    assert "it has no weight_map" in refusal(model, cache)


BROKEN_HEADERS: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "0 bytes are too short"),
    "a length alone": (struct.pack("<Q", 0), "8 bytes are too short"),
    "no header": (struct.pack("<Q", 0) + b"1234", "no JSON object"),
    "a header as long as memory": (struct.pack("<Q", 1 << 63) + b"{}", f"a header of {1 << 63} bytes"),
    "a header longer than the file": (struct.pack("<Q", 100) + b"{}", "a header of 100 bytes in a file of 10"),
    "a header that is cut": (struct.pack("<Q", 5) + b'{"a":', "not valid JSON"),
    "a header that is a list": (safetensors([]), "no JSON object"),
    "a header that is deep": (struct.pack("<Q", 500_000) + b'{"a":' * 100_000, "too deep"),
    "a header that is no UTF-8": (struct.pack("<Q", 3) + b"{\xff}", "not valid JSON"),
    "a tensor that is a number": (safetensors({"a": 7}), "something else than an object"),
    "an unknown type": (safetensors({"a": tensor(dtype="Q4")}, DATA[:24]), "unknown type 'Q4'"),
    "a type that is a list": (safetensors({"a": tensor(dtype=["F32"])}, DATA[:24]), "unknown type"),
    "a negative size": (safetensors({"a": tensor(shape=(-2, -3))}, DATA[:24]), "has the shape"),
    "a size that is a fraction": (safetensors({"a": tensor(shape=(2.0, 3))}, DATA[:24]), "has the shape"),
    "a size that is true": (safetensors({"a": tensor(shape=(True, 6))}, DATA[:24]), "has the shape"),
    "a shape that is a text": (safetensors({"a": tensor(shape="23")}, DATA[:24]), "has the shape"),
    "many dimensions": (safetensors({"a": tensor(shape=(1,) * 9)}, DATA[:24]), "has the shape"),
    "a huge size": (safetensors({"a": tensor(shape=(1 << 62, 1 << 62))}, DATA[:24]), "cannot lie at the bytes"),
    "a shape that does not fit": (
        safetensors({"a": tensor(shape=(2, 4))}, DATA[:24]),
        "cannot lie at the bytes 0 to 24",
    ),
    "offsets backwards": (safetensors({"a": tensor(24, 0)}, DATA[:24]), "cannot lie at the bytes 24 to 0"),
    "three offsets": (safetensors({"a": {**tensor(), "data_offsets": [0, 24, 24]}}, DATA[:24]), "has the offsets"),
    "no offsets": (safetensors({"a": {"dtype": "F32", "shape": [6]}}, DATA[:24]), "has the offsets None"),
    "two tensors in one place": (safetensors({"a": tensor(), "b": tensor()}, DATA[:24]), "'b' overlaps"),
    "a hole": (safetensors({"a": tensor(), "b": tensor(26, 30, "U8", (4,))}, DATA), "'b' leaves a hole"),
    "bytes of nobody": (safetensors({"a": tensor()}, DATA), "6 bytes after its last tensor"),
    "data that is cut": (safetensors(SOUND, DATA[:-1]), "is truncated: its tensors end at byte 30"),
}


@pytest.mark.parametrize("case", sorted(BROKEN_HEADERS))
def test_a_broken_weight_file_is_refused_with_its_fault(model: Path, cache: Path, case: str) -> None:
    content, reason = BROKEN_HEADERS[case]
    (model / "model-2.safetensors").write_bytes(content)
    message = refusal(model, cache)
    assert reason in message
    assert "model-2.safetensors" in message


def test_an_oversized_header_is_refused_before_it_is_read(model: Path, cache: Path) -> None:
    with (model / "model-2.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(MAX_HEADER_BYTES * 2)
    assert f"the limit is {MAX_HEADER_BYTES}" in refusal(model, cache)


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_a_damaged_weight_file_is_refused_or_lies_within_its_bounds(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    content = bytearray(safetensors(SOUND, DATA))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.one_of(st.binary(max_size=2), st.sampled_from([b"0", b"9", b"-", b"[", b"]", b"}", b",", b'"']))
        )
    path.write_bytes(content)
    try:
        header = read_safetensors_header(path)
    except ModelFileError as error:
        message = str(error)
    else:
        message = ""
        ends = [header.data_start + entry.end for entry in header.tensors.values()]
        assert max(ends, default=header.data_start) == len(content)
        _assert_the_formats_own_reader_agrees(bytes(content), header.tensors.keys())
    assert not message or str(path) in message


def _assert_the_formats_own_reader_agrees(content: bytes, names: Any) -> None:
    try:
        from safetensors import deserialize
    except ImportError:
        return
    assert {name for name, _ in deserialize(content)} == set(names)


def test_a_sound_adapter_passes_and_its_configuration_is_in_its_digest(adapter: Path, cache: Path) -> None:
    found = check_adapter(adapter, digest_cache=cache)
    assert found.weight_files == (adapter / "adapter_model.safetensors",)
    (adapter / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 32}')
    assert check_adapter(adapter, digest_cache=cache).digest != found.digest


def test_a_pickled_adapter_is_refused_even_beside_a_sound_one(adapter: Path, cache: Path) -> None:
    (adapter / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"'adapter_model\.bin'.*weights_only=True"):
        check_adapter(adapter, digest_cache=cache)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_without_one_of_its_files_is_refused_by_name(adapter: Path, cache: Path, name: str) -> None:
    (adapter / name).unlink()
    with pytest.raises(ModelFileError, match=f"No file at .*{name}"):
        check_adapter(adapter, digest_cache=cache)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"r": 0, "lora_alpha": 16}, "r is '0'"),
        ({"r": 8.0, "lora_alpha": 16}, "r is '8.0'"),
        ({"r": 1 << 40, "lora_alpha": 16}, f"r is '{1 << 40}'"),
        ({"lora_alpha": 16}, "r is 'None'"),
        ({"r": 8}, "lora_alpha is 'None'"),
        ({"r": 8, "lora_alpha": float("inf")}, "lora_alpha is 'inf'"),
        ({"r": 8, "lora_alpha": 10**400}, "lora_alpha is '1000"),
        ({"peft_type": "PREFIX_TUNING", "r": 8, "lora_alpha": 16}, "PREFIX_TUNING"),
    ],
)
def test_an_adapter_that_cannot_be_scaled_is_refused(
    adapter: Path, cache: Path, config: dict[str, object], reason: str
) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match=r"adapter_config\.json") as failure:
        check_adapter(adapter, digest_cache=cache)
    assert reason in str(failure.value)
