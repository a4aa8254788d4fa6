"""`headpond verify` on llama.cpp: a changed file of weights, a changed template, and what is not exact."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from conftest import Deployment
from headpond import Client
from headpond.jobs import Result
from headpond_workers.engines.formats.weights_digest import Sidecar, sha256_of, sidecar_path
from headpond_workers.supervision.embedded_valkey import running_valkey
from tiny_gguf import write_adapter, write_tiny_model
from verified_jobs import ALL, named, said, verified

pytestmark = pytest.mark.slow

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
OTHER = TEMPLATE.replace("[assistant]", "[answer]")
MODEL = """
[models.chat]
engine = "llamacpp"
path = "tiny.gguf"
slots = 2
threads = 1
context_tokens = 256
exact = {exact}
[models.chat.adapters.pirate]
path = "pirate.gguf"
"""


@dataclass(frozen=True)
class Served:
    """Answers of a tiny model whose worker is gone."""

    deployment: Deployment
    results: dict[str, Result]

    @property
    def folder(self) -> Path:
        return self.deployment.folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("llama")
    write_tiny_model(folder / "tiny.gguf", template=TEMPLATE)
    write_adapter(folder / "pirate.gguf", folder / "tiny.gguf", seed=3)
    for name in ("tiny", "pirate"):
        shutil.copy2(folder / f"{name}.gguf", folder / f"{name}.kept")
    with running_valkey(folder / "server") as valkey, Client(valkey.url) as client:
        deployment = Deployment(valkey, folder)
        try:
            deployment.configure(MODEL.format(exact="true"))
            worker = deployment.start("chat", "chat-0")
            asked = {
                "chat/drawn": {"temperature": 0.9, "seed": 3},
                "chat/greedy": {"temperature": 0},
                "chat/pirate": {"temperature": 0, "adapter": "pirate"},
            }
            jobs = [client.submit("chat", "abba", id=key, max_tokens=24, **more) for key, more in asked.items()]
            results = {job.id: job.result(timeout=60) for job in jobs}
            worker.kill()
            yield Served(deployment, results)
        finally:
            deployment.close()


@pytest.fixture(autouse=True)
def _as_it_was(served: Served) -> Iterator[None]:
    yield
    served.deployment.configure(MODEL.format(exact="true"))
    sidecar_path(served.folder / "tiny.gguf").unlink(missing_ok=True)
    for name in ("tiny", "pirate"):
        shutil.copy2(served.folder / f"{name}.kept", served.folder / f"{name}.gguf")


@pytest.mark.parametrize("job_id", ["chat/drawn", "chat/pirate"])
def test_the_exact_profile_makes_the_stored_tokens_again(served: Served, job_id: str) -> None:
    code, found = verified(served.deployment, job_id)
    assert (code, found[""]) == (0, "same"), found
    assert named(found, "same") == (ALL if job_id == "chat/pirate" else ALL - {"adapters"})
    made_by = served.results[job_id].provenance
    assert made_by is not None
    assert made_by.weights_digest == sha256_of(served.folder / "tiny.gguf")
    if job_id == "chat/pirate":
        assert [(a.name, a.digest) for a in made_by.adapters] == [("pirate", sha256_of(served.folder / "pirate.gguf"))]


def test_a_changed_file_of_weights_differs_and_nothing_is_run(served: Served) -> None:
    write_tiny_model(served.folder / "tiny.gguf", seed=2, template=TEMPLATE)
    code, found = verified(served.deployment, "chat/greedy")
    assert (code, named(found, "differs")) == (1, {"weights", "fingerprint"})
    assert (found["prompt"], found["tokens"]) == ("same", "left out")
    _, out, _ = said(served.deployment, "chat/greedy")
    assert "weights         differs" in out


def test_a_flipped_bit_is_seen_though_the_file_looks_untouched(served: Served) -> None:
    path = served.folder / "tiny.gguf"
    status = path.stat()
    sidecar = Sidecar(sha256_of(path), status.st_size, status.st_mtime_ns, "tiny", "0" * 64, 1)
    sidecar_path(path).write_text(json.dumps(asdict(sidecar)))
    body = bytearray(path.read_bytes())
    body[-200] ^= 1
    path.write_bytes(body)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    code, found = verified(served.deployment, "chat/greedy")
    assert (code, found["weights"]) == (1, "differs")


def test_a_changed_template_differs_in_the_prompt_too(served: Served) -> None:
    write_tiny_model(served.folder / "tiny.gguf", template=OTHER)
    code, found = verified(served.deployment, "chat/greedy")
    assert (code, named(found, "differs")) == (1, {"weights", "fingerprint", "prompt"})


def test_a_changed_adapter_differs_where_it_was_applied(served: Served) -> None:
    write_adapter(served.folder / "pirate.gguf", served.folder / "tiny.gguf", seed=4)
    code, found = verified(served.deployment, "chat/pirate")
    assert (code, named(found, "differs")) == (1, {"adapters", "fingerprint"})
    # The fingerprint is of all adapters of a model, whichever a job names.
    code, found = verified(served.deployment, "chat/greedy")
    assert (code, named(found, "differs")) == (1, {"fingerprint"})


def test_a_file_that_is_gone_cannot_be_told(served: Served) -> None:
    (served.folder / "tiny.gguf").unlink()
    code, found = verified(served.deployment, "chat/greedy")
    assert (code, found["weights"], found["request"]) == (2, "unknown", "same")
    assert "tiny.gguf" in found["!weights"]
