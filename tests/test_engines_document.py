"""docs/engines.md: its tables are those of the code, and its example is a package that works as it stands there."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest

from conftest import Deployment
from example_engine import DOCUMENT, example_files, install_example, on_path, python_path
from headpond import Client, FinishReason, JobState, errors
from headpond.engine_kinds import known_engines
from headpond.settings import load_settings
from headpond.tables import ModelTable
from headpond.workers import WorkerState
from headpond_workers.engines.protocol import Capability, Engine

TEXT = DOCUMENT.read_text(encoding="utf-8")
CODE_LINES = 40
PROMPT = "the river \u65e5\u672c\u8a9e bends"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where the document's package is installed."""
    return install_example(tmp_path_factory.mktemp("example"))


def first_cells(heading: str) -> list[str]:
    """The first column of the table under a heading."""
    section = TEXT.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| `(\w+)[^|]*\|", section, re.MULTILINE)


def test_members_capabilities_and_errors_are_those_of_the_code() -> None:
    members = [name for name, _ in inspect.getmembers(Engine) if not name.startswith("_")]
    assert sorted(first_cells("What an engine is asked for")) == sorted(members)
    assert first_cells("Capabilities") == list(Capability)
    told = [getattr(errors, name) for name in first_cells("Errors")]
    assert {*told} >= {errors.SequenceFailed, errors.PromptTooLong, errors.EngineBroken}
    assert all(issubclass(error, errors.EngineError) for error in told)


def test_the_example_is_as_short_as_its_heading_says() -> None:
    files = example_files()
    assert sorted(files) == ["headpond_echo/__init__.py", "pyproject.toml"]
    code = [line for line in files["headpond_echo/__init__.py"].splitlines() if line.strip()]
    assert f"\n## An engine in {CODE_LINES} lines\n" in TEXT
    assert len(code) <= CODE_LINES
    assert "headpond.engines" in tomllib.loads(files["pyproject.toml"])["project"]["entry-points"]


def test_the_installed_example_is_an_engine_of_the_configuration(example: Path, tmp_path: Path) -> None:
    (shown,) = re.findall(r"```toml\n(\[models\.parrot\]\n.*?)```", TEXT, re.DOTALL)
    config = tmp_path / "headpond.toml"
    config.write_text(shown)
    with pytest.raises(errors.ConfigError, match="no such engine"):
        load_settings(config)
    with on_path(example):
        assert "echo" in known_engines()
        model = load_settings(config).model("parrot")
        config.write_text(shown + "token = 5\n")
        with pytest.raises(errors.ConfigError, match=r"unknown key 'token' .*did you mean 'token_s'"):
            load_settings(config)
    assert isinstance(model, ModelTable)
    assert (model.engine, model.model_dump()["token_s"]) == ("echo", 0.02)
    assert "echo" not in known_engines()


@pytest.mark.slow
def test_a_worker_with_the_example_serves_and_another_one_goes_on(
    deployment: Deployment, client: Client, example: Path
) -> None:
    deployment.configure('[models.parrot]\nengine = "echo"\ntoken_s = 0.05\nslots = 2\nlease_s = 1.0\n')
    path = python_path(example)
    first = deployment.start("parrot", "parrot-0", environment=path)
    (row,) = deployment.queue("parrot").workers()
    assert (row.state, row.slots) == (WorkerState.READY, 2)
    calm = client.submit("parrot", PROMPT, temperature=0).result(timeout=30)
    assert (calm.text, calm.state, calm.finish_reason) == (PROMPT, JobState.FINISHED, FinishReason.STOP)
    assert calm.usage.prompt_tokens == calm.usage.completion_tokens == len(PROMPT.encode())
    stopped = client.submit("parrot", PROMPT, temperature=0, stop=["\u672c"]).result(timeout=30)
    assert (stopped.text, stopped.finish_reason) == ("the river \u65e5", FinishReason.STOP)

    job = client.submit("parrot", PROMPT, id="parrot/killed", temperature=1, seed=3)
    for chunk in job.stream():
        if chunk.offset >= 5:
            break
    first.kill()
    deployment.start("parrot", "parrot-1", environment=path)

    result = job.result(timeout=30)
    assert (result.text, result.attempts) == ("bends \u65e5\u672c\u8a9e river the", 2)
    assert tuple(i for chunk in job.stream() for i in chunk.token_ids) == result.token_ids


def test_a_request_that_the_example_cannot_serve_fails_with_the_reason(
    deployment: Deployment, client: Client, example: Path
) -> None:
    deployment.configure('[models.parrot]\nengine = "echo"\ncontext_tokens = 16\n')
    deployment.start("parrot", "parrot-0", environment=python_path(example))
    for request, reason in [
        ({"prompt": "more bytes than sixteen"}, "The prompt has 23 tokens"),
        ({"prompt": "hi", "adapter": "green"}, "The engine 'echo' cannot serve adapters"),
    ]:
        prompt = request.pop("prompt")
        with pytest.raises(errors.JobFailed, match=reason):
            client.submit("parrot", prompt, **request).result(timeout=30)
