"""`headpond models promote` and `rollback`: an alias is moved in storage, and the workers that follow it change."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import typer

from headpond.cli.exits import INTERNAL, INTERRUPTED, TRY_LATER
from headpond.connections import redis_of
from headpond.errors import DeploymentError, HeadpondError, InvalidRequest
from headpond.queue import Server
from headpond.settings import Settings
from headpond_workers.checkpoints.alias_document import AliasDocument, Trial, TrialBounds
from headpond_workers.checkpoints.registry import now_ms
from headpond_workers.cli.config_option import AsJson, Config, say, settings_of
from headpond_workers.cli.version_storage import who
from headpond_workers.rollover.alias_copy import copy_alias, version_name
from headpond_workers.rollover.awaiting import Ended, Rollover, RolloverWait, describe, lives
from headpond_workers.rollover.followed_alias import FollowedAlias, how_to_push

Name = Annotated[str, typer.Argument(metavar="NAME", help="A model: of the configuration, or in storage.")]
AliasOption = Annotated[
    str | None, typer.Option("--alias", metavar="ALIAS", help="Default: what the model follows, else prod.")
]
Note = Annotated[str, typer.Option("--note", help="Why, for the history of the alias.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return once the alias is moved; workers change over later.")]
Timeout = Annotated[
    float | None, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="How long to wait for the workers.")
]
_SHARE = re.compile(r"([0-9]{1,2}(?:\.[0-9])?)%")


def register(models_app: typer.Typer) -> None:
    """Add the commands to `headpond models`."""
    models_app.command()(promote)
    models_app.command()(rollback)


def promote(
    name: Name,
    version: Annotated[str, typer.Argument(metavar="V", help="The number of a version.")],
    config: Config = None,
    *,
    alias: AliasOption = None,
    note: Note = "",
    no_wait: NoWait = False,
    timeout: Timeout = None,
    share: Annotated[
        str | None,
        typer.Option("--share", metavar="PERCENT", help="Try it with this share of the jobs, such as 10%, first."),
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="With --share: promote or give it up by what its jobs show.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let an alias name a version, and wait until every worker that follows it serves that.

    Workers change one at a time. Jobs that run end on the version that they began with; those that wait take the new
    one, unless they were submitted for a version. A version that does not load is rolled back by itself.

    Exit codes: 0 served, or no worker lives; 1 it was rolled back, or a worker serves nothing; 2 no such version, or
    no such model; 6 --timeout.

    Examples:

      headpond models promote chat 3

      headpond models promote chat 3 --alias staging --note "before the weekend"

      headpond models promote chat 4 --share 10% --auto
    """
    number = _number(version)
    permille = None if share is None else _permille(share)
    if auto and permille is None:
        raise InvalidRequest("--auto decides about a trial: give its --share too, such as --share 10%", field="auto")
    with _Promotion(settings_of(config), name, alias, as_json=as_json) as promotion:
        promotion.check_pushed(number)
        if permille is None:
            promotion.move(number, note)
        else:
            promotion.begin_trial(number, permille, TrialBounds() if auto else None, note)
        promotion.end(number, trial=permille is not None, wait=not no_wait, timeout_s=timeout)


def rollback(
    name: Name,
    config: Config = None,
    *,
    alias: AliasOption = None,
    note: Note = "",
    no_wait: NoWait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Let an alias name again what it named before, and wait until every worker that follows it serves that.

    A second rollback goes one version further back. A trial ends. Exit codes as of promote.

    Examples:

      headpond models rollback chat

      headpond models rollback chat --note "answers too long" --json
    """
    with _Promotion(settings_of(config), name, alias, as_json=as_json) as promotion:
        number = promotion.roll_back(note)
        promotion.end(number, trial=False, wait=not no_wait, timeout_s=timeout)


class _Promotion:
    """One move of an alias, and what follows of it. A context: the connections that it needs."""

    def __init__(self, settings: Settings, name: str, alias: str | None, *, as_json: bool) -> None:
        self._settings, self._name, self._as_json = settings, name, as_json
        self._followed = FollowedAlias.of(settings, name, alias, who=who())
        self._server = Server(redis_of(settings))
        self._before: AliasDocument | None = None
        self._moved: AliasDocument | None = None

    def __enter__(self) -> _Promotion:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def check_pushed(self, number: int) -> None:
        """Raises VersionMissing, VersionUnusable; DeploymentError, with what to do, for one that was never pushed."""
        try:
            self._followed.registry.complete(number)
        except HeadpondError as error:
            advice = how_to_push(self._settings, self._name, self._followed.alias)
            if advice is None:
                raise
            raise DeploymentError(f"{error}\n{advice}") from error

    def move(self, number: int, note: str) -> None:
        self._before = self._followed.get()
        left = 0 if self._before is None else self._before.to
        self._moved = self._followed.aliases.move(
            self._followed.alias, to=number, left=left, who=self._followed.who, note=note
        )
        self._say_moved(number)

    def roll_back(self, note: str) -> int:
        """Returns the version that is named now."""
        self._before = self._followed.get()
        left = None if self._before is None else self._before.to
        self._moved = self._followed.aliases.rollback(
            self._followed.alias, left=left, who=self._followed.who, note=note
        )
        self._say_moved(self._moved.to)
        return self._moved.to

    def begin_trial(self, number: int, permille: int, bounds: TrialBounds | None, note: str) -> None:
        """Raises InvalidRequest for a model with less than two workers: one has to serve what is compared with."""
        for model in self._followed.models:
            self._refuse_one_worker(model)
        trial = Trial(number, permille, now_ms(), bounds)
        self._before = self._followed.get()
        self._moved = self._followed.aliases.begin_trial(self._followed.alias, trial, who=self._followed.who, note=note)
        say(f"{self._followed.shown}: {permille / 10:g}% of the jobs try version {number}")

    def end(self, number: int, *, trial: bool, wait: bool, timeout_s: float | None) -> None:
        """Tell the queues, wait for their workers, and say how it ended. Exits with its code."""
        found: dict[str, Rollover | None] = {}
        alias = self._moved
        if alias is None:
            raise RuntimeError("the alias has not been moved")
        try:
            for model in self._followed.models:
                copy_alias(self._server.queue(model, storage=True), alias)
                found[model] = None
            for model in self._followed.models if wait else ():
                found[model] = RolloverWait(
                    self._server.queue(model, storage=True), version_name(number), seq=alias.seq, trial=trial,
                    progress=say,
                ).wait(timeout_s=timeout_s)  # fmt: skip
        except KeyboardInterrupt:
            say("Interrupted. The workers go on changing over; see headpond status.")
            raise typer.Exit(INTERRUPTED) from None
        except HeadpondError as error:
            # The alias is moved: the persister tells the queues once they can be told.
            raise DeploymentError(
                f"{self._followed.shown} is moved, and its workers change over by themselves. It is not known how far "
                f"they are: {error}"
            ) from error
        if self._as_json:
            typer.echo(json.dumps(self._document(alias, number, found)))
        if not self._followed.models:
            self._say_unfollowed()
        codes = [self._tell(model, number, rollover) for model, rollover in found.items() if rollover is not None]
        if any(codes):
            raise typer.Exit(max(codes))

    def _say_moved(self, number: int) -> None:
        left = 0 if self._before is None else self._before.to
        if left == number:
            say(f"{self._followed.shown} names version {number} already")
        else:
            say(f"{self._followed.shown} names version {number} now" + (f", {left} before" if left else ""))

    def _say_unfollowed(self) -> None:
        advice = how_to_push(self._settings, self._name, self._followed.alias)
        say(advice or f"No model of this configuration follows {self._followed.shown}.")

    def _tell(self, model: str, number: int, found: Rollover) -> int:
        """Returns the exit code."""
        match found.ended:
            case Ended.SERVED:
                say(f"{model}: version {number} is served")
                return 0
            case Ended.UNSERVED:
                say(f"{model}: no worker lives; those that start serve version {number}")
                return 0
            case Ended.REFUSED:
                now = self._followed.get()
                named = f" {self._followed.shown} names version {now.to} again." if now and now.to != number else ""
                say(
                    f"{model}: VERSION {number} DID NOT LOAD AND WAS ROLLED BACK.{named} No job failed of it. The "
                    f"reason: {found.reason}"
                )
                return INTERNAL
            case Ended.SUPERSEDED:
                say(f"{model}: {self._followed.shown} was moved on meanwhile; see headpond models list")
                return INTERNAL
            case Ended.FAILED | Ended.TIMED_OUT:
                for row in found.workers:
                    if row.version != version_name(number) or describe(row) != f"serves {number}":
                        say(f"{model}: {row.instance} on {row.host} does not serve version {number}: {describe(row)}")
                return INTERNAL if found.ended is Ended.FAILED else TRY_LATER

    def _document(self, alias: AliasDocument, number: int, found: dict[str, Rollover | None]) -> dict[str, Any]:
        return {
            "name": self._followed.name,
            "alias": alias.alias,
            "version": number,
            "from": 0 if self._before is None else self._before.to,
            "seq": alias.seq,
            "trial": None
            if alias.trial is None
            else {"version": alias.trial.version, "share_permille": alias.trial.share_permille},
            "models": [
                {
                    "model": model,
                    "ended": None if rollover is None else rollover.ended.value,
                    "reason": "" if rollover is None else rollover.reason,
                    "workers": []
                    if rollover is None
                    else [
                        {"instance": row.instance, "host": row.host, "version": row.version, "state": row.state.value}
                        for row in rollover.workers
                    ],
                }
                for model, rollover in found.items()
            ],
        }

    def _refuse_one_worker(self, model: str) -> None:
        queue = self._server.queue(model, storage=True)
        seconds, microseconds = self._server.read("TIME")
        now, lease_ms = int(seconds) * 1000 + int(microseconds) // 1000, int(queue.meta().get("lease_ms", "0"))
        live = [row for row in queue.workers() if lives(row, now_ms=now, lease_ms=lease_ms)]
        if len(live) < 2:
            raise InvalidRequest(
                f"a trial needs two workers of {model}, one for each version, and {len(live)} lives. Start another one "
                f"with: headpond scale {model}=2",
                field="share",
            )


def _number(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,9}", text):
        raise InvalidRequest(
            f"'{text[:40]}' is no number of a version, such as 3. List them with: headpond models versions NAME",
            field="version",
        )
    return int(text)


def _permille(text: str) -> int:
    match = _SHARE.fullmatch(text)
    permille = round(float(match[1]) * 10) if match else 0
    if not 1 <= permille <= 999:
        raise InvalidRequest(f"'{text[:40]}' is no share of the jobs: 0.1% to 99.9%, such as 10%", field="share")
    return permille
