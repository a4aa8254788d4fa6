"""Pushes to a real server: killed, many at once, and with replies that are lost."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cutting_proxy import Cut, CuttingProxy
from headpond.errors import ModelFileError
from headpond_workers.checkpoints.pushes.pushing import How, push
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionState
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.s3_client import S3Timeouts
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from pushed_versions import PLAIN, check_versions, content_of, flip_last_bit_of_large_chunks, on_disk, registry_on
from tiny_weights import noise, write_model

pytestmark = pytest.mark.slow
KIB, MIB = 1 << 10, 1 << 20
KILLS = 10
HEADPOND = (sys.executable, "-c", "from headpond.cli import main; main()")
BRISK = S3Timeouts(connect_s=2.0, unreachable_s=2.5, read_s=1.0, deadline_s=5.0)


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


def open_s3(seaweed: SeaweedProcess, *, url: str | None = None, timeouts: S3Timeouts | None = None) -> S3Blobs:
    return S3Blobs(
        StorageAddress(
            url or seaweed.url, seaweed.bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, "the test"
        ),
        timeouts=timeouts,
    )


@pytest.fixture
def registry(seaweed: SeaweedProcess) -> Registry:
    """Of a model that no other test has."""
    return registry_on(open_s3(seaweed), f"m{os.urandom(6).hex()}")


def test_the_server_refuses_bytes_that_changed_without_a_trace(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = noise(501, 5 * MIB)
    model = write_model(tmp_path / "model", {"a": large, "b": noise(502, 100 * KIB)})
    with monkeypatch.context() as patch:
        flip_last_bit_of_large_chunks(patch)
        with pytest.raises(ModelFileError, match="changed while it was pushed"):
            push(registry, model, PLAIN)
    assert registry.numbers() == []
    named = hashlib.sha256(large).hexdigest()
    assert not any(key.endswith(named) for key in registry.blobs.list_keys("chunks/"))
    for left in list(registry.blobs.list_keys("intents/")):  # a collector would, after its grace
        registry.blobs.delete(left)
    push(registry, model, PLAIN)
    assert content_of(registry, 1) == on_disk(model)


def test_every_chunk_of_every_version_comes_back_and_only_what_is_new_is_sent(
    registry: Registry, tmp_path: Path
) -> None:
    tensors = {f"t{n}": noise(n, 700 * KIB) for n in range(20)} | {"big": noise(99, 20 * MIB)}
    model = write_model(tmp_path / "model", tensors)
    (model / "tokenizer.json").write_bytes(noise(7, 2 * MIB))
    first = push(registry, model, PLAIN)
    write_model(model, tensors | {"t3": noise(1003, 700 * KIB)}, metadata={"grown": "x" * 3000})
    second = push(registry, model, PLAIN)
    assert (first.number, second.number) == (1, 2)
    assert 700 * KIB < second.sent_bytes < 710 * KIB
    assert content_of(registry, 2) == on_disk(model)
    assert push(registry, model, PLAIN).how is How.UNCHANGED
    assert check_versions(registry) == {VersionState.COMPLETE: [1, 2]}
    assert list(registry.blobs.list_keys("intents/")) == []


def test_pushes_at_once_get_contiguous_numbers(seaweed: SeaweedProcess, registry: Registry, tmp_path: Path) -> None:
    folders = [write_model(tmp_path / f"model{n}", {"a": noise(n, 100 * KIB), "b": noise(9, KIB)}) for n in range(8)]
    start = threading.Barrier(len(folders))

    def run(folder: Path) -> int:
        own = registry_on(open_s3(seaweed), registry.model)
        start.wait()
        return push(own, folder, PLAIN).number

    with ThreadPoolExecutor(len(folders)) as pool:
        numbers = dict(zip(pool.map(run, folders), folders, strict=True))
    assert check_versions(registry) == {VersionState.COMPLETE: list(range(1, 9))}
    assert all(content_of(registry, number) == on_disk(folder) for number, folder in numbers.items())


@pytest.mark.parametrize("cut", [Cut.LOSE_REQUEST, Cut.LOSE_REPLY, Cut.ANSWER_503, Cut.ANSWER_409])
@pytest.mark.parametrize("key", ["intents/", "chunks/", "models/MODEL/manifests/", "models/MODEL/versions/"])
def test_replies_that_are_lost_make_no_second_version(
    seaweed: SeaweedProcess, registry: Registry, tmp_path: Path, cut: Cut, key: str
) -> None:
    model = write_model(tmp_path / "model", {"a": os.urandom(100 * KIB)})
    with CuttingProxy(urlsplit(seaweed.url).port or 0) as proxy:
        behind = registry_on(open_s3(seaweed, url=proxy.url, timeouts=BRISK), registry.model)
        proxy.cut(cut, f"PUT /{seaweed.bucket}/{key.replace('MODEL', registry.model)}", count=2)
        found = push(behind, model, PLAIN)
        assert proxy.done == [cut, cut]
    assert (found.number, found.how) == (1, How.NEW)
    assert check_versions(registry) == {VersionState.COMPLETE: [1]}
    assert content_of(registry, 1) == on_disk(model)


@pytest.fixture
def config(seaweed: SeaweedProcess, tmp_path: Path) -> Path:
    for name, value in (("access", seaweed.access_key), ("secret", seaweed.secret_key)):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(value)
    path = tmp_path / "headpond.toml"
    path.write_text(
        f'[storage]\nendpoint_url = "{seaweed.url}"\nbucket = "{seaweed.bucket}"\nregion = "{seaweed.region}"\n'
        f'access_key = {{file = "{tmp_path}/access"}}\nsecret_key = {{file = "{tmp_path}/secret"}}\n'
    )
    return path


def pusher(arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*HEADPOND, "models", "push", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


class Killing:
    """Pushes one set of files, each time killed at another moment, until it is left alone."""

    def __init__(self, arguments: Sequence[str], draws: random.Random) -> None:
        self._arguments, self._draws = arguments, draws
        self.kills = dict.fromkeys(("hashing", "sending"), 0)

    def kill(self) -> int | None:
        """The number of the version if the push was quicker than the kill."""
        process = pusher(self._arguments)
        assert process.stderr is not None
        stage = self._draws.choice(("hashing", "sending"))
        said = ""
        while stage not in said and (line := process.stderr.readline()):
            said += line
        try:
            process.wait(self._draws.uniform(0.0, 0.8))
        except subprocess.TimeoutExpired:
            process.kill()
        output, told = process.communicate()
        if process.returncode == 0:
            return int(json.loads(output)["number"])
        assert process.returncode == -9, said + told
        self.kills[stage] += 1
        return None

    def leave_alone(self) -> int:
        output, told = pusher(self._arguments).communicate(timeout=120)
        assert told.count("Traceback") == 0
        return int(json.loads(output)["number"])


def test_a_pusher_that_is_killed_at_any_moment_loses_no_version(
    registry: Registry, config: Path, tmp_path: Path
) -> None:
    draws = random.Random(6)
    model = tmp_path / "model"
    killing = Killing([registry.model, str(model), "--config", str(config), "--json"], draws)
    acknowledged: dict[int, dict[str, bytes]] = {}
    while sum(killing.kills.values()) < KILLS or killing.kills["sending"] < KILLS // 3:
        write_model(model, {f"t{n}": draws.randbytes(4 * MIB + n) for n in range(4)} | {"bias": draws.randbytes(300)})
        number = None
        for _ in range(draws.randint(3, 6)):
            number = number or killing.kill()
        again = killing.leave_alone()
        assert number in (None, again), "the same files are no other version"
        acknowledged[again] = on_disk(model)
    found = check_versions(registry)
    assert set(found) <= {VersionState.COMPLETE, VersionState.PENDING}
    assert {*acknowledged} <= {*found[VersionState.COMPLETE]}
    assert all(content_of(registry, number) == content for number, content in acknowledged.items())
