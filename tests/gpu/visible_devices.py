"""Loads a model on one device and says what it saw: `python -m gpu.visible_devices FOLDER DIGEST_CACHE [DEVICE]`.

The last line of stdout is JSON: the UUIDs of the devices that CUDA showed after loading, and the model's answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gpu.model_under_test import ModelUnderTest, greedy_answer


def main(folder: str, digest_cache: str, *devices: str) -> None:
    chosen = tuple(map(int, devices)) or None
    with ModelUnderTest(Path(folder), Path(digest_cache)).loaded(devices=chosen) as engine:
        import torch

        uuids = [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]
        print(json.dumps({"uuids": uuids, "answer": greedy_answer(engine)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
