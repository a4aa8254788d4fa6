"""Fixtures of the tests that need a GPU, which are skipped by name where there is none. See docs/gpu.md."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine_subjects import GPU_MODEL
from gpu.model_under_test import ModelUnderTest, reason_to_skip


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelUnderTest:
    if reason := reason_to_skip():
        pytest.skip(reason)
    return ModelUnderTest(Path(os.environ[GPU_MODEL]), tmp_path_factory.mktemp("digests"))


@pytest.fixture(scope="session")
def spread_model(model: ModelUnderTest) -> ModelUnderTest:
    """The model, where there are two devices to spread it over."""
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("gpu: needs two devices")
    return model


@pytest.fixture(scope="session")
def spread_exl2_model(spread_model: ModelUnderTest) -> ModelUnderTest:
    """The same, where its weights are EXL2-quantised."""
    if not spread_model.is_exl2:
        pytest.skip(f"gpu: {GPU_MODEL} is no EXL2 checkpoint")
    return spread_model
