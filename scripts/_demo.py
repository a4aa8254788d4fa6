"""What scripts/demo runs in .venv: up, a producer, a look into storage, down."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from headpond.errors import ConfigError, HeadpondError
from headpond.settings import load_settings
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import storage_of

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "headpond.toml"
HEADPOND = Path(sys.executable).with_name("headpond")
PRODUCER = Path(__file__).with_name("demo_producer.py")
PROMPT = "Explain in three sentences why rivers bend."
DURABLE_WITHIN_S = 20.0
SHOWN_KEYS = 12


def step(title: str) -> None:
    print(f"\n== {title}", flush=True)


def headpond(*arguments: str) -> int:
    return subprocess.run([str(HEADPOND), *arguments, "--config", str(CONFIG)], cwd=ROOT, check=False).returncode


def is_running() -> bool:
    try:
        settings = load_settings(CONFIG)
        return (settings.state_folder / "run.json").exists() and storage_of(settings) is not None
    except ConfigError:
        return False


def produce(prompt: str) -> tuple[int, list[str]]:
    """Run the producer program; return its exit code and the ids of its jobs."""
    ids_file = ROOT / ".headpond" / "demo-jobs.txt"
    ids_file.unlink(missing_ok=True)
    code = subprocess.run([sys.executable, str(PRODUCER), prompt, "--ids", str(ids_file)], cwd=ROOT, check=False)
    return code.returncode, ids_file.read_text().split() if ids_file.exists() else []


def show_storage(ids: list[str]) -> int:
    """Read each result back from S3, then show what lies there."""
    for job_id in ids:
        until = time.monotonic() + DURABLE_WITHIN_S
        while True:
            found = subprocess.run(
                [str(HEADPOND), "result", job_id, "--from-storage"],
                cwd=ROOT,
                check=False,
                capture_output=True,
                text=True,
            )
            if found.returncode == 0 or time.monotonic() >= until:
                break
            time.sleep(0.2)
        if found.returncode != 0:
            print(found.stderr.strip(), file=sys.stderr)
            return found.returncode
        print(f"{job_id}: {' '.join(found.stdout.split())[:100]}...")
    storage = storage_of(load_settings(CONFIG))
    if storage is None:
        print("no storage is configured", file=sys.stderr)
        return 1
    keys = list(S3Blobs(storage).list_keys("state/"))
    print(f"\n{len(keys)} objects in s3://{storage.bucket}:")
    heads = [key for key in keys if key.endswith("/head")]
    others = [key for key in keys if key not in heads]
    for key in [*heads, *others[-SHOWN_KEYS:]]:
        print(f"  {key}")
    return 0


def run(prompt: str, *, keep: bool) -> int:
    was_running = is_running()
    try:
        step("Starting the servers and both models (headpond up --detach)")
        code = headpond("up", "--detach")
        if code == 0:
            step("A producer submits to two models at once, and reads both streams as they come")
            code, ids = produce(prompt)
            if code == 0:
                step("The same results, read back from S3 (headpond result JOB --from-storage)")
                code = show_storage(ids)
            if keep and code == 0:
                step("It goes on running. Try:")
                print(f"  cd {ROOT}\n  . .venv/bin/activate")
                print('  headpond submit chat "Why is the sky blue?"')
                print("  headpond status\n  headpond scale chat=2\n  headpond logs chat -f\n  headpond down")
                return 0
    finally:
        if not was_running and not keep:
            step("Stopping everything (headpond down)")
            headpond("down")
    print("\nDone." if code == 0 else f"\nThe demo failed with status {code}.")
    return code


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description="Start two models on this machine and run jobs on both, with everything real."
    )
    parser.add_argument("prompt", nargs="?", default=PROMPT, help="what both models are asked")
    parser.add_argument("--keep", action="store_true", help="leave everything running, and say what to type next")
    options = parser.parse_args()
    try:
        return run(options.prompt, keep=options.keep)
    except HeadpondError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
