"""Whether the tests of exllamav2 are to run here."""

from __future__ import annotations

import os

import pytest

DECLINED_BY = "HEADPOND_TEST_WITHOUT"
"""Names of what the user declined to install, with commas between."""
DECLINED = "exllamav2: declined with --without exllamav2"
REAL_DEVICE = "exllamav2: a CUDA device is there, which the CPU harness would hide; set CUDA_VISIBLE_DEVICES to nothing"


def require_exllamav2() -> None:
    """Skip the whole test file where the user declined torch, or where a real GPU is in sight.

    A package that is missing without having been declined is an error of the installation: nothing is skipped.
    """
    if "exllamav2" in os.environ.get(DECLINED_BY, "").split(","):
        pytest.skip(DECLINED, allow_module_level=True)
    # Not before: it must not be imported where it was declined.
    import torch

    from exllamav2_cpu import harness

    if harness.installed() is None and torch.cuda.is_available():
        pytest.skip(REAL_DEVICE, allow_module_level=True)
