"""`headpond replay`: run a replay bundle on this machine."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from headpond.bundle import MAX_BUNDLE_BYTES, Bundle, checked_bundle, read_bundle
from headpond.cli.exits import BAD_INPUT, ENGINE_DIED, INTERNAL, JOB_ENDED, OTHER_FINGERPRINT
from headpond.errors import ConfigError
from headpond.settings import CONFIG_NAME, find_config, load_settings
from headpond.terminal import escape_controls, write_text
from headpond_workers.replay.events import Event, Loaded, Step
from headpond_workers.replay.run import WITHOUT_A_WORD, How, Replay, While, log_tail, run_replay


def replay(
    file: Annotated[str, typer.Argument(metavar="FILE", help="From `headpond dead export`; - is stdin.")],
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help=f"The configuration; default: the nearest {CONFIG_NAME}."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="A table [models.NAME]; default: the bundle's model.")
    ] = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Make all tokens anew, instead of going on after the bundle's.")
    ] = False,
    any_fingerprint: Annotated[
        bool, typer.Option("--any-fingerprint", help="Run it on a model other than the one that made its tokens too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, for programs.")] = False,
) -> None:
    """Run a replay bundle on this machine, without a queue, and say how it ends.

    The model is loaded from the configuration in a process of its own: a job that kills its worker kills that, and
    here you read by which signal, and after which token. It runs alone, as it may not have run in its worker.

    Exit codes: 0 it came to an end; 5 the engine reported an error; 8 this model is not the bundle's, and nothing was
    run; 9 the process died or hung.

    Examples:

      headpond replay order-17.json

      headpond replay order-17.json --from-start --json | jq '{how, signal, offset, same_tokens}'

      headpond replay order-17.json --model chat-candidate --any-fingerprint --from-start
    """
    bundle = _bundle(file)
    source = config or find_config()
    if source is None:
        raise ConfigError("no such file here or above; name one with --config", where=CONFIG_NAME)
    name = model or bundle.model
    table = load_settings(source, environment=os.environ, needed=[name]).model(name)
    with tempfile.TemporaryFile() as log:
        found = run_replay(
            bundle,
            config=source,
            model=name,
            from_start=from_start,
            any_fingerprint=any_fingerprint,
            stall_timeout_s=table.stall_timeout_s,
            log=log,
            on_event=lambda event: None if as_json else _show(event, bundle, name, from_start=from_start),
        )
        tail = log_tail(log) if found.how in WITHOUT_A_WORD else []
    if as_json:
        typer.echo(json.dumps(_document(found, bundle, name, tail)))
    else:
        _conclude(found, bundle, tail)
    raise typer.Exit(_exit_code(found))


def register(app: typer.Typer) -> None:
    app.command()(replay)


def _bundle(file: str) -> Bundle:
    if file != "-":
        return read_bundle(Path(file))
    return checked_bundle(sys.stdin.buffer.read(MAX_BUNDLE_BYTES + 1), where="stdin")


def _exit_code(found: Replay) -> int:
    match found.how:
        case How.FINISHED:
            return 0
        case How.REFUSED:
            return OTHER_FINGERPRINT
        case How.FAILED if found.configuration:
            return BAD_INPUT
        case How.FAILED:
            return INTERNAL if found.during is While.LOADING else JOB_ENDED
        case _:
            return ENGINE_DIED


def _show(event: Event, bundle: Bundle, model: str, *, from_start: bool) -> None:
    match event:
        case Loaded():
            had = 0 if from_start else len(bundle.token_ids)
            begins = f"after the bundle's {had} tokens" if had else "from the start"
            _say(f"{bundle.id} on {model} ({event.engine}, fingerprint {event.fingerprint[:12]}), {begins}")
            if bundle.fingerprint not in ("", event.fingerprint):
                _say(
                    f"WARNING: the bundle's tokens are of the fingerprint {bundle.fingerprint[:12]}, and not of this "
                    "model: other weights, another engine, or other settings."
                )
        case Step(text=text) if text:
            write_text(text)


def _conclude(found: Replay, bundle: Bundle, tail: list[str]) -> None:
    if found.text:
        write_text("\n")
    _say(_ending(found))
    if found.how in WITHOUT_A_WORD:
        for line in tail or ["(nothing)"]:
            _say(f"  | {line}")
    compared = found.compared(bundle)
    if compared:
        at = found.difference(bundle)
        _say(
            f"The {compared} tokens that the bundle has too are the same."
            if at is None
            else f"Token {at} is not the bundle's: {found.token_ids[at - found.from_offset]} instead of "
            f"{bundle.token_ids[at]}."
        )


def _ending(found: Replay) -> str:
    place = {
        While.LOADING: "while the model was loading",
        While.PREFILL: f"before its first token, at offset {found.offset}",
        While.GENERATING: f"after token {found.offset}, {found.made} of them its own",
    }[found.during]
    match found.how:
        case How.FINISHED if found.embedded is not None:
            made, beside = found.embedded, "the bundle has none of this shape"
            if made.furthest is not None:
                beside = f"no number is further than {made.furthest:.2g} from the bundle's"
            return f"Finished with {made.texts} vectors of {made.dimensions} numbers; {beside}."
        case How.FINISHED:
            return f"Finished ({found.reason}) with {found.offset} tokens, {len(found.token_ids)} of them its own."
        case How.FAILED:
            return f"Failed {place}: {found.error}"
        case How.DIED:
            memory = ". The kernel's out-of-memory killer sends it too" if found.signal == "SIGKILL" else ""
            return f"Died of {found.signal} {place}{memory}. What the process wrote last:"
        case How.LEFT:
            return f"The process left with status {found.status} {place}. What it wrote last:"
        case How.STALLED:
            return f"Stalled {place}: no step within stall_timeout_s. It was killed. What it wrote last:"
        case How.REFUSED:
            return "Nothing was run. To run it all the same: --any-fingerprint"


def _document(found: Replay, bundle: Bundle, model: str, tail: list[str]) -> dict[str, Any]:
    compared = found.compared(bundle)
    at = found.difference(bundle)
    return {
        "id": bundle.id,
        "model": model,
        "engine": found.engine,
        "fingerprint": found.fingerprint,
        "bundle_fingerprint": bundle.fingerprint,
        "same_fingerprint": found.fingerprint == bundle.fingerprint if found.fingerprint else None,
        "from_offset": found.from_offset,
        "how": found.how.value,
        "while": found.during.value,
        "reason": found.reason,
        "error": found.error,
        "signal": found.signal,
        "status": found.status,
        "offset": found.offset,
        "token_ids": found.token_ids,
        "text": found.text,
        "compared_tokens": compared,
        "same_tokens": at is None if compared else None,
        "first_difference": at,
        "embedded": None if found.embedded is None else asdict(found.embedded),
        "log": tail,
    }


def _say(line: str) -> None:
    typer.echo(escape_controls(line), err=True)
