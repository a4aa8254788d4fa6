"""`storage`: pushes and pulls beside boto3 alone, and a push again of what is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from document import Measurement, Samples
from pairs import Order, Pair, run_pairs
from plan import Plan
from storage_models import MIB, Shape, draw_shape, write_model
from storage_raw import HOW
from storage_sides import SERVER, Storage, pull_version, push_version, require_same, running_storage, seconds_of

WHOLE_BYTES, QUICK_BYTES = 192 * MIB, 8 * MIB
RATES = "MB/s"


def _shape(plan: Plan) -> Shape:
    return draw_shape(QUICK_BYTES if plan.quick else WHOLE_BYTES, plan.draw(0))


def measure_push(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    shape = _shape(plan)
    with running_storage(plan.folder / "server") as storage:

        def headpond(number: int) -> Samples:
            path = write_model(plan.folder / "ours.safetensors", shape, seed=f"{plan.seed}:{number}:headpond")
            seconds = seconds_of(lambda: push_version(storage, f"pushed-{number}", path))
            return {"bytes": path.stat().st_size, "seconds": seconds}

        def peer(number: int) -> Samples:
            path = write_model(plan.folder / "theirs.safetensors", shape, seed=f"{plan.seed}:{number}:peer")
            seconds = seconds_of(lambda: storage.raw.put_file(f"raw/pushed-{number}", path))
            return {"bytes": path.stat().st_size, "seconds": seconds}

        # Connections and the server's files are there before the first pair.
        headpond(-1)
        peer(-1)
        pairs = run_pairs(plan.pairs, headpond, peer, done=_say_rates(plan))
    return Measurement(
        plan.kind, "push of new data",
        f"a safetensors file of {shape.size_bytes >> 20} MiB with {len(shape.tensors)} tensors, other bytes each time, "
        f"from the page cache to {SERVER}",
        "push: every byte hashed, chunks by tensor, packs, intent, manifest, version document; each object put with "
        "its SHA-256",
        f"{HOW}; upload_file of the same number of bytes as one object", pairs,
    )  # fmt: skip


def measure_pull(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    shape = _shape(plan)
    with running_storage(plan.folder / "server") as storage:
        path = write_model(plan.folder / "model.safetensors", shape, seed=f"{plan.seed}")
        size = path.stat().st_size
        number = push_version(storage, "pulled", path).number
        storage.raw.put_file("raw/pulled", path)

        def headpond(_pair: int) -> Samples:
            folder = plan.folder / "pulled"
            seconds = seconds_of(lambda: pull_version(storage, "pulled", number, folder))
            require_same(path, folder / path.name)
            shutil.rmtree(folder)
            return {"bytes": size, "seconds": seconds}

        def peer(_pair: int) -> Samples:
            file = plan.folder / "raw"
            seconds = seconds_of(lambda: storage.raw.read_to_file("raw/pulled", size, file))
            require_same(path, file)
            file.unlink()
            memory_s = seconds_of(lambda: storage.raw.read_ranges("raw/pulled", size))
            return {"bytes": size, "seconds": seconds, "memory_s": memory_s}

        headpond(-1)
        peer(-1)
        pairs = run_pairs(plan.pairs, headpond, peer, done=_say_rates(plan))
    return Measurement(
        plan.kind, "verified pull",
        f"a version of {size >> 20} MiB with {len(shape.tensors)} tensors from {SERVER} into a new folder, on the disk "
        "(fsync) at the end",
        "pull: every chunk checked against its SHA-256, then the folder is renamed into place",
        f"{HOW}; ranged GETs of one object, each range written to its place in one file; nothing is checked", pairs,
    )  # fmt: skip


def measure_push_again(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    shape = _shape(plan)
    pairs: list[Pair[Samples]] = []
    with running_storage(plan.folder / "server") as storage:
        for number in range(-1, plan.pairs):
            path = write_model(plan.folder / "model.safetensors", shape, seed=f"{plan.seed}:{number}")
            again, first = _twice(storage, f"again-{number}", path)
            if number >= 0:
                pairs.append(Pair(Order.HEADPOND, {"seconds": again, "first_s": first}, {}))
                plan.say_pair(number, f"first {first:.2f} s, again {again:.2f} s")
    return Measurement(
        plan.kind, "push again of what is there",
        f"a safetensors file of {shape.size_bytes >> 20} MiB with {len(shape.tensors)} tensors, to {SERVER}",
        "the second push of the same file: every byte is read and hashed again, nothing is sent",
        "none; compared with the first push of it, which comes before", pairs,
    )  # fmt: skip


def _twice(storage: Storage, model: str, path: Path) -> tuple[float, float]:
    """Seconds of the second push and of the first."""
    first = seconds_of(lambda: push_version(storage, model, path))
    return seconds_of(lambda: push_version(storage, model, path)), first


def _say_rates(plan: Plan) -> Callable[[int, Pair[Samples]], None]:
    def done(number: int, pair: Pair[Samples]) -> None:
        ours, theirs = (side["bytes"] / side["seconds"] / 1e6 for side in (pair.headpond, pair.peer))
        plan.say_pair(number, f"headpond {ours:.0f} MB/s, boto3 alone {theirs:.0f} MB/s")

    return done
