"""The process that runs one bundle: loads the model, goes on after the bundle's tokens, and may die of it.

    python -m headpond_workers.replay.child --config headpond.toml --model chat --events FD < bundle.json

It loads, renders and generates as a worker does, with one sequence and no queue. It leaves by `os._exit`, as a worker.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence as Seq
from itertools import chain
from pathlib import Path
from typing import NoReturn

from headpond.bundle import MAX_BUNDLE_BYTES, Bundle, parse_bundle
from headpond.errors import ConfigError, EngineUnavailable, HeadpondError, ModelFileError, VersionError
from headpond.jobs import FinishReason
from headpond.settings import load_settings
from headpond_workers.continuation import continue_job
from headpond_workers.embedding import embed_job
from headpond_workers.engines.protocol import Engine, Finish, Verdict
from headpond_workers.loading import load_engine, workers_of
from headpond_workers.redaction import Secrets
from headpond_workers.replay.events import Embedded, EventWriter, Failed, Finished, Loaded, Refused, Started, Step
from headpond_workers.replay.version_here import table_here
from headpond_workers.secret_filter import learn_references, start_logging

SIGN_OF_LIFE_S = 1.0
MAX_ERROR_CHARS = 2000


def replay(bundle: Bundle, options: argparse.Namespace, events: EventWriter, secrets: Secrets) -> None:
    """Run the bundle, and tell how it goes. Raises nothing but what is a defect of this process.

    secrets: learns those of the model, and keeps them out of what is told.
    """
    try:
        settings = load_settings(options.config, environment=os.environ, needed=[options.model])
        learn_references(secrets, settings.model(options.model))
        table, _held = table_here(settings, options.model, bundle.version, secrets)
        engine = load_engine(table, workers_on_host=workers_of(settings))
    except Exception as error:  # noqa: BLE001 - told to the parent, whoever's it is
        known = isinstance(error, (ConfigError, ModelFileError, EngineUnavailable, VersionError))
        events.send(Failed(_words(error, secrets), loading=True, configuration=known))
        return
    other = bundle.fingerprint not in ("", engine.info.fingerprint)
    events.send(Loaded(engine.info.engine, engine.info.fingerprint))
    if other and not options.any_fingerprint:
        events.send(Refused())
        return
    try:
        if bundle.request.input is not None:
            finish = _embed(bundle, engine, events)
        else:
            finish = _generate(bundle, engine, events, from_start=options.from_start, other_model=other)
    except Exception as error:  # noqa: BLE001 - told to the parent, whoever's it is
        events.send(Failed(_words(error, secrets), loading=False))
        return
    events.send(Finished(finish.reason.value))


def _generate(bundle: Bundle, engine: Engine, events: EventWriter, *, from_start: bool, other_model: bool) -> Finish:
    prior, prior_text = ((), "") if from_start else (bundle.token_ids, bundle.text)
    if other_model and prior and _text_of(engine, prior) != prior_text:
        raise HeadpondError(
            "The bundle's tokens give another text with this model, so it cannot go on after them. Run it with: "
            "--from-start"
        )
    prompt = engine.render(bundle.request.chat())
    events.send(Started(len(prompt)))
    begun = continue_job(engine, bundle.request, prompt, prior=prior, prior_text=prior_text, seed=bundle.seed)
    if isinstance(begun, Finish):
        return begun
    text, told_at = begun.text, time.monotonic()

    def emit(ids: Seq[int]) -> Verdict:
        nonlocal told_at
        now = time.monotonic()
        if ids:
            released = text.feed(ids)
            events.send(Step(len(ids), released.ids, "".join(released.pieces)))
            told_at = now
        elif now - told_at >= SIGN_OF_LIFE_S:
            events.send(Step(0, (), ""))
            told_at = now
        return Verdict.STOP if text.stopped else Verdict.GO

    finish = engine.generate(begun.sequence, emit)
    if text.stopped:
        return Finish(FinishReason.STOP, finish.details)
    rest = text.flush()
    if rest.ids:
        events.send(Step(0, rest.ids, "".join(rest.pieces)))
    return finish


def _embed(bundle: Bundle, engine: Engine, events: EventWriter) -> Finish:
    told_at = 0.0

    def proceed() -> Verdict:
        nonlocal told_at
        if (now := time.monotonic()) - told_at >= SIGN_OF_LIFE_S:
            events.send(Step(0, (), ""))
            told_at = now
        return Verdict.GO

    made = embed_job(engine, bundle.request, proceed)
    if made is None:
        return Finish(FinishReason.CANCELLED)
    theirs = () if bundle.embeddings is None else bundle.embeddings.vectors()
    numbers = [list(chain.from_iterable(vectors)) for vectors in (made.vectors, theirs)]
    furthest = None
    if len(theirs) == len(made.vectors) and len(numbers[0]) == len(numbers[1]):
        furthest = max(abs(one - other) for one, other in zip(*numbers, strict=True))
    events.send(Embedded(len(made.vectors), len(made.vectors[0]), furthest))
    return Finish(FinishReason.STOP)


def _text_of(engine: Engine, ids: Seq[int]) -> str:
    return b"".join(engine.token_bytes(token_id) for token_id in ids).decode("utf-8", errors="replace")


def _words(error: Exception, secrets: Secrets) -> str:
    text = str(error) if isinstance(error, HeadpondError) else f"{type(error).__name__}: {error}"
    return secrets.redact(text)[:MAX_ERROR_CHARS]


def main(argv: list[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(prog="headpond-replay", description="Run the replay bundle on stdin.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--events", type=int, required=True, help="descriptor of the pipe for events")
    parser.add_argument("--from-start", action="store_true")
    parser.add_argument("--any-fingerprint", action="store_true")
    options = parser.parse_args(argv)
    secrets = Secrets()
    start_logging(secrets)
    code = 0
    try:
        bundle = parse_bundle(sys.stdin.buffer.read(MAX_BUNDLE_BYTES + 1))
        replay(bundle, options, EventWriter(options.events), secrets)
    except Exception:
        logging.getLogger(__name__).exception("replay_crashed")
        code = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
