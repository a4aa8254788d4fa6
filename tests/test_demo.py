"""scripts/demo as a new user runs it, and the configuration that the repository ships."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil
import pytest

from headpond.settings import load_settings

ROOT = Path(__file__).resolve().parent.parent


def test_the_shipped_configuration_is_valid_and_shows_a_gpu_model_before_the_others() -> None:
    settings = load_settings(ROOT / "headpond.toml")
    assert list(settings.models) == ["chat", "chat-fast"]
    text = (ROOT / "headpond.toml").read_text()
    assert text.index('# engine = "exllamav2"') < text.index("[models.chat]")


@pytest.mark.slow
@pytest.mark.skipif((ROOT / ".headpond" / "run.json").exists(), reason="a deployment of this checkout runs already")
def test_the_demo_does_the_main_job_and_leaves_nothing_running() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HEADPOND_")}
    done = subprocess.run(
        [str(ROOT / "scripts" / "demo"), "Say hello."], cwd="/", capture_output=True, text=True, timeout=280,
        env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("chat local-", "chat-fast local-", "tokens/s", "first token after", "state/chat/head", "Done."):
        assert words in done.stdout
    for word in ("Traceback", "ERROR"):
        assert word not in done.stdout + done.stderr
    folder = str(ROOT / ".headpond")
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if folder in " ".join(p.info["cmdline"] or [])]
    assert left == []
