"""Bring what supervisord runs in line with what it should run, touching nothing that is right already.

First the files, then the processes: a command that is killed between the two is put right by the next one,
since supervisord compares its files with what it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from headpond.kept_settings import RUNNING_FOLDER
from headpond.settings import Settings
from headpond_workers.rollover.pair_program import STOP_MARGIN_S
from headpond_workers.supervision.private_files import private_folder, write_private
from headpond_workers.supervision.programs import (
    CONF_FOLDER,
    SERVER_STOP_WAIT_S,
    STARTS_FOLDER,
    Program,
    model_of,
    render,
    split_worker_name,
)
from headpond_workers.supervision.supervisor import Supervisor

LONGEST_DRAIN_S = 86_400.0
"""Of a worker whose settings are gone from the configuration; supervisord still knows its own bound."""
KILL_MARGIN_S = 15.0


def converge(
    supervisor: Supervisor,
    wanted: Sequence[Program],
    *,
    keep: Collection[str] = (),
    settings: Settings,
    progress: Callable[[str], None],
    settle: Callable[[str], None] | None = None,
) -> None:
    """Make supervisord run `wanted`, the programs named in `keep` as they are, and nothing else.

    settle: returns once a worker that was restarted serves; None restarts the next one at once.
    """
    write_files(settings.state_folder, wanted, keep=keep)
    changes = supervisor.reload()
    # What is kept may have a file of other settings, of a command that did not get to its end.
    names = {program.name for program in wanted}
    changed = [name for name in changes.changed if name in names]
    restart(supervisor, changed, "has other settings now", settings=settings, progress=progress, settle=settle)
    for name in changes.added:
        supervisor.add(name)
        progress(f"{name} started")
    # Last: a worker that was just restarted on another server may have needed the old one for its drain.
    retire(supervisor, changes.removed, settings=settings, progress=progress)


def restart(
    supervisor: Supervisor,
    names: Sequence[str],
    why: str,
    *,
    settings: Settings,
    progress: Callable[[str], None],
    settle: Callable[[str], None] | None,
) -> None:
    """Restart programs by the files that were read last, one after the other: a model with several workers goes on
    being served. Each drains first. Those that do not run come first: they serve nobody as it is."""
    known = supervisor.processes()
    left = sorted(
        names, key=lambda name: (name in known and known[name].state.alive, split_worker_name(name) or ("", 0))
    )
    while left:
        name = left.pop(0)
        progress(f"{name} {why}; it is restarted")
        supervisor.stop([name], timeout_s=stop_timeout_s(settings, [name]), progress=progress)
        supervisor.remove(name)
        supervisor.add(name)
        model = model_of(name)
        if settle is not None and model and any(model_of(other) == model for other in left):
            settle(name)


def retire(
    supervisor: Supervisor, names: Sequence[str], *, settings: Settings, progress: Callable[[str], None]
) -> None:
    """Stop programs together, workers after their drain, and forget them."""
    supervisor.stop(list(names), timeout_s=stop_timeout_s(settings, names), progress=progress)
    for name in names:
        supervisor.remove(name)
        (settings.state_folder / STARTS_FOLDER / name).unlink(missing_ok=True)


def write_files(state_folder: Path, wanted: Sequence[Program], *, keep: Collection[str]) -> None:
    """One file a program of `wanted`, and the settings that it is started with; files of `keep` stay; all others go."""
    folder, running = state_folder / CONF_FOLDER, private_folder(state_folder / RUNNING_FOLDER)
    for program in wanted:
        if program.digest:
            # Before supervisord hears of it. Those of before stay, for programs that are not restarted yet.
            _write_if_new(running / f"{program.digest}.json", program.kept)
        _write_if_new(folder / f"{program.name}.conf", render(program))
    names = {program.name for program in wanted} | set(keep)
    for path in folder.glob("*.conf"):
        if path.name.removesuffix(".conf") not in names:
            path.unlink()


def forget_settings(state_folder: Path, programs: Sequence[Program]) -> None:
    """Remove kept settings but for those of `programs`: all that run."""
    digests = {program.digest for program in programs}
    for path in (state_folder / RUNNING_FOLDER).glob("*.json"):
        if path.name.removesuffix(".json") not in digests:
            path.unlink()


def _write_if_new(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_private(path, text)


def stop_timeout_s(settings: Settings, names: Sequence[str]) -> float:
    """Longer than supervisord itself waits before it sends SIGKILL."""
    longest = float(SERVER_STOP_WAIT_S)
    for name in names:
        split = split_worker_name(name)
        if split is not None:
            model = settings.models.get(split[0])
            drain_s = model.drain_timeout_s if model is not None else LONGEST_DRAIN_S
            longest = max(longest, drain_s + STOP_MARGIN_S)
    return longest + KILL_MARGIN_S
