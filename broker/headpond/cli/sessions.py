"""`headpond sessions list | show | fork | rollback | export | delete`: conversations, each turn a commit."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headpond.cli.jobs import JsonOption, UrlOption
from headpond.client import Client
from headpond.errors import InvalidRequest
from headpond.terminal import escape_controls

if TYPE_CHECKING:
    from headpond.commits import Commit, SessionRow

NAMES = frozenset({"sessions"})
SHOWN_CHARS = 400
"""Of one message, without --full."""
SHORT_ID = 12
EXPORT_SCHEMA = "headpond/session"

SessionArgument = Annotated[
    str, typer.Argument(metavar="SESSION", help="MODEL/NAME; the name alone if one model has a session of that name.")
]

sessions_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@sessions_app.callback()
def _sessions() -> None:
    """Look at conversations, and take them another way.

    A session begins with its first turn: headpond submit chat "..." --session NAME. Each turn is a commit, which never
    changes and has the one before as its parent. Where a commit is asked for, the first 8 digits of its id do.

    Examples:

      headpond sessions list chat

      headpond sessions show chat/s1

      headpond sessions fork chat/s1 --name s1-shorter --at 3f9a0c2b

      headpond sessions rollback chat/s1 --to 3f9a0c2b
    """


@sessions_app.command("list")
def list_sessions(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Default: every model.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Of each model; the latest come first.")] = 1000,
    as_json: JsonOption = False,
    redis: UrlOption = None,
) -> None:
    """List sessions: turns, last change, head, version that made it, policy, tenant.

    Examples:

      headpond sessions list

      headpond sessions list chat --json | jq -r '.sessions[] | select(.turns > 20) | .id'
    """
    with Client(redis) as client:
        names = sorted(client.models()) if model is None else [model]
        found = [(name, row) for name in names for row in client.sessions(name, limit=limit)]
    if as_json:
        typer.echo(json.dumps({"sessions": [_row_fields(name, row) for name, row in found]}))
    elif found:
        _print_list(found)
    else:
        typer.echo("There is no session.")


@sessions_app.command()
def show(
    session: SessionArgument,
    full: Annotated[bool, typer.Option("--full", help="All of each message.")] = False,
    as_json: JsonOption = False,
    redis: UrlOption = None,
) -> None:
    """Show a session's turns from the first to its head, and which jobs of it wait or run.

    Examples:

      headpond sessions show chat/s1 --full

      headpond sessions show chat/s1 --json | jq -r '.commits[-1].id'
    """
    with Client(redis) as client:
        handle = client.session(session)
        row, commits, waiting = handle.status(), handle.commits(), handle.waiting()
        model = handle.model
    if as_json:
        fields = {**_row_fields(model, row), "waiting": waiting, "commits": [_commit_fields(c) for c in commits]}
        typer.echo(json.dumps(fields))
    else:
        _print_session(model, row, commits, waiting, full=full)


@sessions_app.command()
def fork(
    session: SessionArgument,
    name: Annotated[str, typer.Option(help="Of the new session, of the same model.")],
    at: Annotated[str | None, typer.Option(metavar="COMMIT", help="Default: the head.")] = None,
    as_json: JsonOption = False,
    redis: UrlOption = None,
) -> None:
    """Begin a new session with the turns up to a commit. The old one stays as it is; both share these commits.

    Prints the new session.

    Examples:

      headpond sessions fork chat/s1 --name s2

      headpond sessions fork chat/s1 --name s1-again --at 3f9a0c2b
    """
    with Client(redis) as client:
        forked = client.session(session).fork(name=name, at=at)
        head = forked.head()
    typer.echo(json.dumps({"id": forked.id, "head": head}) if as_json else forked.id)


@sessions_app.command()
def rollback(
    session: SessionArgument,
    to: Annotated[str, typer.Option(metavar="COMMIT", help="A commit of the session; root: before its first turn.")],
    as_json: JsonOption = False,
    redis: UrlOption = None,
) -> None:
    """Have a session go on from an earlier commit. What it leaves is kept: it can be rolled back to that as well.

    Prints the head. Fails while a job of the session waits or runs.

    Example:  headpond sessions rollback chat/s1 --to 3f9a0c2b
    """
    with Client(redis) as client:
        handle = client.session(session)
        handle.rollback(to=to)
        head = handle.head()
    typer.echo(json.dumps({"id": handle.id, "head": head}) if as_json else (head or "root"))


@sessions_app.command()
def export(
    session: SessionArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Written with the mode 0600; - is stdout.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    redis: UrlOption = None,
) -> None:
    """Write a conversation as JSON: its messages, as `messages` of a request has them, and its commits.

    Examples:

      headpond sessions export chat/s1 s1.json

      headpond sessions export chat/s1 - | jq .messages
    """
    with Client(redis) as client:
        handle = client.session(session)
        commits, model = handle.commits(), handle.model
    messages = [{"role": m.role, "content": m.content} for commit in commits for m in commit.messages]
    document = {
        "schema": EXPORT_SCHEMA, "v": 1, "model": model, "session": handle.name, "messages": messages,
        "commits": [_commit_fields(commit) for commit in commits],
    }  # fmt: skip
    # ASCII: control characters of a message are escapes, whoever prints it.
    text = json.dumps(document, indent=1) + "\n"
    if file == "-":
        sys.stdout.write(text)
        return
    _write(Path(file), text, force=force)
    typer.echo(f"{escape_controls(file)}: {handle.id}, {len(commits)} turns")


@sessions_app.command()
def delete(
    session: SessionArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    redis: UrlOption = None,
) -> None:
    """Remove a session, and its commits that no fork of it needs. Its jobs stay for their own retention.

    Fails while a job of the session waits or runs.

    Example:  headpond sessions delete chat/s1 --yes
    """
    with Client(redis) as client:
        handle = client.session(session)
        turns = handle.status().turns
        if not yes:
            if not sys.stdin.isatty():
                raise InvalidRequest(f"To delete {handle.id} with its {turns} turns, add --yes", field="yes")
            typer.confirm(f"Delete {handle.id} with its {turns} turns?", abort=True)
        handle.delete()
    typer.echo(json.dumps({"id": handle.id, "deleted": True}) if as_json else f"{handle.id} is deleted")


def register(app: typer.Typer) -> None:
    app.add_typer(sessions_app, name="sessions")


def _row_fields(model: str, row: SessionRow) -> dict[str, Any]:
    policy = None if row.policy is None else row.policy.value
    return {"id": f"{model}/{row.name}", "model": model, **asdict(row), "head": row.head or None, "policy": policy}


def _commit_fields(commit: Commit) -> dict[str, Any]:
    messages = [{"role": m.role, "content": m.content} for m in commit.messages]
    return {"id": commit.id, **commit.fields(), "parent": commit.parent or None, "messages": messages}


def _write(path: Path, text: str, *, force: bool) -> None:
    """Raises InvalidRequest."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if force else os.O_EXCL)
    try:
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="ascii") as out:
            os.fchmod(out.fileno(), 0o600)
            out.write(text)
    except FileExistsError:
        raise InvalidRequest(f"{path} exists, and is not overwritten without --force", field="file") from None
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror or error}", field="file") from error


def _when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _print_list(found: list[tuple[str, SessionRow]]) -> None:
    rows = [("SESSION", "TURNS", "CHANGED (UTC)", "HEAD", "VERSION", "POLICY", "TENANT")]
    rows += [
        (f"{model}/{row.name}", str(row.turns), _when(row.updated_ms), row.head[:SHORT_ID] or "root",
         row.version or "-", row.policy.value if row.policy else "-", row.tenant or "-")
        for model, row in found
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for n, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        typer.echo(typer.style(escape_controls(line), bold=n == 0))


def _print_session(model: str, row: SessionRow, commits: list[Commit], waiting: list[str], *, full: bool) -> None:
    policy = f", policy {row.policy.value}" if row.policy else ""
    typer.echo(typer.style(f"{model}/{row.name}: {len(commits)} turns{policy}", bold=True))
    for commit in commits:
        origin = commit.migrated_from
        notes = [f"version {commit.version}", f"job {commit.job}", _when(commit.created_ms)]
        notes += [f"migrated from version {origin.version}"] if origin else []
        notes += [f"after {', '.join(commit.skipped)} made no turn"] if commit.skipped else []
        typer.echo(f"\n{typer.style(commit.id[:SHORT_ID], fg='yellow')}  {escape_controls(', '.join(notes))}")
        for message in commit.messages:
            text = message.content if full or len(message.content) <= SHOWN_CHARS else message.content[:SHOWN_CHARS]
            more = len(message.content) - len(text)
            cut = f" [{more} characters more: --full]" if more else ""
            typer.echo(f"  {typer.style(message.role, bold=True)}: {escape_controls(text)}{cut}")
    if row.skipped:
        typer.echo(f"\nSince then these made no turn: {', '.join(row.skipped)}")
    if row.left:
        typer.echo(f"\nIt went back from: {', '.join(commit[:SHORT_ID] for commit in row.left)}")
    if waiting:
        typer.echo(f"\nWaiting or running: {', '.join(waiting)}")
