"""`headpond dead list | show | retry | drop | export`: what an operator does about quarantined jobs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headpond.cli.jobs import JobArgument, JsonOption, UrlOption
from headpond.jobs import JobId
from headpond.operators import Operator
from headpond.terminal import escape_controls

if TYPE_CHECKING:
    from headpond.bundle import Bundle
    from headpond.dead import DeadJob, DeadJobs

NAMES = frozenset({"dead"})
SHOWN_LINES = 12
SHOWN_CHARS = 1600
"""Of a prompt or an answer, without --full."""
SHOWN_ERROR_CHARS = 160

dead_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@dead_app.callback()
def _dead() -> None:
    """Look at quarantined jobs, and decide about them.

    A job is quarantined when three leases in a row ended without progress, or 25 by a fault. Nothing runs it then.

    Examples:

      headpond dead list

      headpond dead show chat/order-17 --full

      headpond dead retry chat/order-17
    """


@dead_app.command("list")
def list_jobs(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Default: every model.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Of each model; the latest come first.")] = 1000,
    as_json: JsonOption = False,
    redis: UrlOption = None,
) -> None:
    """List quarantined jobs: id, when, leases, strikes and faults, tenant, last error.

    Examples:

      headpond dead list

      headpond dead list chat --json | jq -r '.jobs[].id'
    """
    with Operator(redis) as operator:
        names = operator.models() if model is None else [model]
        jobs = [job for name in names for job in operator.dead(name).jobs(limit=limit)]
    if as_json:
        typer.echo(json.dumps({"jobs": [asdict(job) for job in jobs]}))
    elif jobs:
        _print_list(jobs)
    else:
        typer.echo("No job is quarantined.")


@dead_app.command()
def show(
    job: JobArgument,
    full: Annotated[bool, typer.Option("--full", help="The whole prompt and all tokens so far.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The replay bundle, in one line.")] = False,
    redis: UrlOption = None,
) -> None:
    """Show a job's request, sampling, seed and tokens, and how each of its leases ended.

    Works for any job that Redis holds.

    Examples:

      headpond dead show chat/order-17

      headpond dead show chat/order-17 --json | jq '.attempts[] | {host, how, reason}'
    """
    with Operator(redis) as operator:
        bundle = _dead_jobs(operator, job).show(job)
    if as_json:
        typer.echo(json.dumps(bundle.document()))
    else:
        _print_bundle(bundle, full=full)


@dead_app.command()
def retry(job: JobArgument, as_json: JsonOption = False, redis: UrlOption = None) -> None:
    """Submit a quarantined job's request again, under an id of its own: <slug>.retry1, of that one .retry2, and so on.

    The new job has the same seed, tenant, priority and version, and begins without tokens; a deadline is not taken
    over. The old one is listed no more, and stays readable until its retention ends. A repeat of the command finds the
    same new job. Prints the new id.

    Examples:

      headpond dead retry chat/order-17

      headpond dead list chat --json | jq -r '.jobs[].id' | xargs -n 1 headpond dead retry
    """
    with Operator(redis) as operator:
        retried = _dead_jobs(operator, job).retry(job)
    if as_json:
        typer.echo(json.dumps({"id": job, "retried_as": retried.id, "new": retried.new}))
        return
    typer.echo(retried.id)
    if not retried.new:
        typer.echo("It was submitted by an earlier retry.", err=True)


@dead_app.command()
def drop(job: JobArgument, as_json: JsonOption = False, redis: UrlOption = None) -> None:
    """Remove all of a quarantined job from Redis, now: request, tokens, attempts. Storage keeps what it has.

    Examples:

      headpond dead export chat/order-17 order-17.json && headpond dead drop chat/order-17
    """
    with Operator(redis) as operator:
        _dead_jobs(operator, job).drop(job)
    typer.echo(json.dumps({"id": job, "dropped": True}) if as_json else f"{job} is dropped")


@dead_app.command()
def export(
    job: JobArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Written with the mode 0600; - is stdout.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: JsonOption = False,
    redis: UrlOption = None,
) -> None:
    """Write a job's replay bundle, for `headpond replay`: request, tokens, seed, attempts. It holds the prompt.

    Works for any job that Redis holds, quarantined or not.

    Examples:

      headpond dead export chat/order-17 order-17.json

      headpond dead export chat/order-17 - | ssh gpu7 headpond replay - --config /srv/chat/headpond.toml
    """
    from headpond.bundle import pack_bundle, write_bundle

    with Operator(redis) as operator:
        bundle = _dead_jobs(operator, job).show(job)
    if file == "-":
        sys.stdout.write(pack_bundle(bundle).decode("ascii"))
        sys.stdout.flush()
        return
    write_bundle(bundle, Path(file), force=force)
    if as_json:
        written = {"id": job, "file": file, "tokens": len(bundle.token_ids), "attempts": len(bundle.attempts)}
        typer.echo(json.dumps(written))
    else:
        _line(f"{file}: {job}, {bundle.state.value}, {len(bundle.token_ids)} tokens, {bundle.leases} leases")


def register(app: typer.Typer) -> None:
    app.add_typer(dead_app, name="dead")


def _dead_jobs(operator: Operator, job: str) -> DeadJobs:
    return operator.dead(JobId.parse(job).model)


def _print_list(jobs: list[DeadJob]) -> None:
    rows = [("JOB", "QUARANTINED", "LEASES", "STRIKES/FAULTS", "TENANT")]
    rows += [
        (escape_controls(job.id), _when(job.ended_ms), str(job.attempts), f"{job.strikes}/{job.faults}",
         escape_controls(job.tenant) or "-")
        for job in jobs
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    errors = ["LAST ERROR", *(job.damage or job.last_error for job in jobs)]
    for n, (row, error) in enumerate(zip(rows, errors, strict=True)):
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        # Styles are left out where no terminal reads them.
        told = typer.style(_one_line(error), fg="red" if n else None, bold=n == 0)
        typer.echo(f"{typer.style(cells, bold=True) if n == 0 else cells}  {told}")


def _print_bundle(bundle: Bundle, *, full: bool) -> None:
    request, sampling = bundle.request, bundle.request.sampling
    _field("job", f"{bundle.id}, {bundle.state.value}")
    _field("submitted", _when(bundle.submitted_ms))
    if bundle.ended_ms:
        _field("ended", _when(bundle.ended_ms))
    _field("tenant", bundle.tenant or "-")
    _field("priority", bundle.priority.value)
    _field("version", f"{bundle.version or '-'}{' (pinned)' if bundle.pinned else ''}")
    _field("fingerprint", bundle.fingerprint or "-")
    more = "".join(f", {name} {getattr(sampling, name)}" for name in sorted(sampling.asks_for()))
    _field("sampling", f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}{more}")
    _field("seed", f"{bundle.seed}{'' if sampling.seed is not None else ' (from the id)'}")
    _field("max_tokens", str(request.max_tokens))
    if request.stop or request.stop_token_ids:
        _field("stop", ", ".join([*map(json.dumps, request.stop), *map(str, request.stop_token_ids)]))
    if request.adapter:
        _field("adapter", request.adapter)
    _field("strikes/faults", f"{bundle.strikes}/{bundle.faults} in {bundle.leases} leases")
    _field("last error", bundle.last_error or "-")
    if (constraint := request.constraint()) is not None:
        _field("answer", f"{constraint.kind.value} {constraint.text}")
    if request.input is not None:
        _block(f"request, {len(request.input)} texts to embed", "\n".join(request.input), full=full)
    else:
        for message in request.chat():
            _block(f"request, {message.role}", message.content, full=full)
    if bundle.token_ids:
        _block(f"{len(bundle.token_ids)} tokens so far", bundle.text, full=full)
    if bundle.attempts:
        typer.echo(typer.style("attempts", bold=True))
    for a in bundle.attempts:
        until = f"{(a.ended_ms - a.claimed_ms) / 1000:.1f} s" if a.ended_ms else "goes on"
        where = f"worker {a.worker} on {a.host or '-'} ({a.version or '-'})"
        _line(
            f"  {a.attempt}. {_when(a.claimed_ms)}, {until}; {where}; tokens {a.from_offset} to {a.to_offset}; "
            f"{a.how}{': ' if a.reason else ''}{_one_line(a.reason)}"
        )


def _field(name: str, value: str) -> None:
    typer.echo(f"{typer.style(f'{name:<15}', bold=True)} {_one_line(value, chars=1000)}")


def _block(title: str, text: str, *, full: bool) -> None:
    typer.echo(typer.style(title, bold=True))
    shown = text if full else "\n".join(text[:SHOWN_CHARS].split("\n")[:SHOWN_LINES])
    for line in escape_controls(shown).split("\n"):
        typer.echo(f"  {line}")
    if len(shown) < len(text):
        typer.echo(f"  ... {len(text) - len(shown)} characters more; --full shows them")


def _line(text: str) -> None:
    typer.echo(escape_controls(text))


def _one_line(text: str, *, chars: int = SHOWN_ERROR_CHARS) -> str:
    line = " ".join(escape_controls(text[: 2 * chars]).split())
    return line if len(line) <= chars else f"{line[: chars - 3]}..."


def _when(ms: int) -> str:
    try:
        return datetime.fromtimestamp(ms / 1000).astimezone().isoformat(sep=" ", timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms"  # a damaged row: no time that this system can write
