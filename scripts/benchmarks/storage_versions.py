"""`storage`: what a changed version takes, and how long an alias takes to move."""

from __future__ import annotations

import secrets
from time import perf_counter

from document import Measurement, Samples
from pairs import Order, Pair, run_pairs
from plan import Plan
from storage_models import MIB, draw_changed, draw_shape, write_model
from storage_sides import SERVER, WRITER, push_version, running_storage

from headpond_workers.checkpoints.aliases import Aliases

CHANGED_SHARE = 0.05
WHOLE_BYTES, QUICK_BYTES = 96 * MIB, 8 * MIB
MOVES, QUICK_MOVES = 100, 10
SMALL_BYTES = 2 * MIB


def measure_changed(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    pairs: list[Pair[Samples]] = []
    size = QUICK_BYTES if plan.quick else WHOLE_BYTES
    with running_storage(plan.folder / "server") as storage:
        for number in range(plan.pairs):
            draw = plan.draw(number)
            shape = draw_shape(size, draw)
            changed = draw_changed(shape, CHANGED_SHARE, draw)
            changed_bytes = sum(shape.tensors[n] for n in changed)
            seed, path = f"{plan.seed}:{number}", plan.folder / "model.safetensors"
            push_version(storage, f"changed-{number}", write_model(path, shape, seed=seed))
            added: list[tuple[int, int]] = []
            # The second time the header grows too: every byte of the file moves.
            for others in (changed, tuple(n for n in range(len(shape.tensors)) if n not in changed)[: len(changed)]):
                grown = ["x" * 1000] * 3 if added else []
                before = storage.stored_bytes()
                push_version(
                    storage, f"changed-{number}", write_model(path, shape, seed=seed, changed=others, notes=grown)
                )
                added.append((storage.stored_bytes() - before, sum(shape.tensors[n] for n in others)))
            (plain, _), (moved, moved_changed) = added
            pairs.append(
                Pair(
                    Order.HEADPOND,
                    {
                        "bytes": plain,
                        "changed_bytes": changed_bytes,
                        "grown_bytes": moved,
                        "grown_changed_bytes": moved_changed,
                        "model_bytes": shape.size_bytes,
                    },
                    {},
                )
            )
            plan.say_pair(number, f"{plain / changed_bytes:.3f}, with a grown header {moved / moved_changed:.3f}")
    return Measurement(
        plan.kind, "bytes of a version with 5 % of its tensors changed",
        f"a safetensors file of about {size >> 20} MiB, other tensors and other changes in each pair (seeded); every "
        "object counts, documents included",
        f"what the bucket of {SERVER} holds more after the push; once more with a header that is 3 kB longer",
        "none; compared with the bytes of the changed tensors alone", pairs,
    )  # fmt: skip


def measure_alias(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    moves = QUICK_MOVES if plan.quick else MOVES
    with running_storage(plan.folder / "server") as storage:
        for version in (1, 2):
            shape = draw_shape(SMALL_BYTES, plan.draw(version))
            push_version(storage, "chat", write_model(plan.folder / "m.safetensors", shape, seed=f"{version}"))
        aliases = Aliases(storage.registry("chat"))
        aliases.move("prod", to=1, left=0, who=WRITER)
        etag = storage.raw.put("raw/alias", secrets.token_bytes(2000), etag=None)

        def headpond(_pair: int) -> Samples:
            times = []
            for _ in range(moves // 2):
                for left, to in ((1, 2), (2, 1)):
                    began = perf_counter()
                    aliases.move("prod", to=to, left=left, who=WRITER, note="the benchmark")
                    times.append(round((perf_counter() - began) * 1000, 3))
            return {"switch_ms": times}

        def peer(_pair: int) -> Samples:
            nonlocal etag
            times = []
            for _ in range(moves // 2 * 2):
                began = perf_counter()
                storage.raw.get("raw/alias")
                etag = storage.raw.put("raw/alias", secrets.token_bytes(2000), etag=etag)
                times.append(round((perf_counter() - began) * 1000, 3))
            return {"switch_ms": times}

        def done(number: int, pair: Pair[Samples]) -> None:
            ours, theirs = (max(side["switch_ms"]) for side in (pair.headpond, pair.peer))
            plan.say_pair(number, f"slowest of {moves}: headpond {ours:.0f} ms, boto3 alone {theirs:.0f} ms")

        headpond(-1)
        peer(-1)
        pairs = run_pairs(plan.pairs, headpond, peer, done=done)
    return Measurement(
        plan.kind, "switch of an alias",
        f"{moves // 2 * 2} moves to and fro, one after the other, on {SERVER}",
        "Aliases.move between two small versions: the version and its objects are looked at, the alias is swapped",
        "boto3 alone: one GET and one conditional PUT of 2 kB", pairs,
    )  # fmt: skip
