"""`python -m exllamav3_cpu.preflight FOLDER`: the engine where something is missing; print its errors as JSON.

No stand-in is there: this is the installed package on a machine without a device.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from headpond.errors import EngineUnavailable
from headpond.tables import ExLlamaV3Model
from headpond_workers.engines.exllamav3 import ExLlamaV3Engine


def error_of(folder: Path) -> str:
    try:
        ExLlamaV3Engine(ExLlamaV3Model(engine="exllamav3", path=folder), digest_cache=folder)
    except EngineUnavailable as error:
        return str(error)
    raise RuntimeError("the engine was made")


def main(folder: Path) -> None:
    told = {"no_device": error_of(folder)}
    torch.cuda.is_available = lambda: True
    told["no_extension"] = error_of(folder)
    sys.modules["exllamav3"] = None  # type: ignore[assignment]
    told["no_package"] = error_of(folder)
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
