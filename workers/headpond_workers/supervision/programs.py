"""What supervisord runs, as its configuration files. Pure: settings in, text out.

Each program is a group of its own in a file of its own: adding or retiring one touches no sibling. (Raising
`numprocs` would restart them all.) Every program starts through `launcher`, which cuts its environment down.

supervisord's files know one escape, `%%`, and cut a value at a `;` or `#` that follows a space. So paths other
than command lines are relative to the state folder, which is the working folder of supervisord and of its
programs, and command lines are quoted by `_word`. What can be neither quoted nor written as it stands is refused.
"""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headpond.errors import DeploymentError
from headpond.kept_settings import running_document
from headpond.overrides import prefix_of
from headpond.settings import Settings
from headpond.tables import KvModel, secrets_of
from headpond_workers.rollover.pair_program import (
    changes_side_by_side,
    pair_argv,
    stop_wait_s,
    worker_arguments,
)
from headpond_workers.supervised import SUPERVISED
from headpond_workers.supervision.launcher import is_always_allowed
from headpond_workers.supervision.supervisord_process import PID_NAME

VALKEY = "valkey"
SEAWEED = "seaweedfs"
PERSISTER = "persister"
SERVERS = (VALKEY, SEAWEED)

PRIORITIES = {VALKEY: 50, SEAWEED: 100, PERSISTER: 200}
WORKER_PRIORITY = 300
"""Low numbers start first and stop last."""

EX_CONFIG = 78
"""A worker that leaves with this status cannot load its model: starting it again would not help."""
WORKER_ENDS_FOR_GOOD = (EX_CONFIG,)
SERVER_STOP_WAIT_S = 60
PERSISTER_STOP_WAIT_S = 60

LOG_FOLDER = "logs"
CONF_FOLDER = "conf.d"
STARTS_FOLDER = "starts"
LOG_BYTES = "10MB"
LOG_BACKUPS = 3
_GLOB = frozenset("*?[")
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Program:
    """One process to keep running.

    allow, allow_prefixes: environment variables that it may see beyond those of every program. deny: those of every
    program that it may not see, since they hold secrets of others. names_only: it is a server, and sees no variable
    that only a pattern allows.
    """

    name: str
    argv: tuple[str, ...]
    priority: int
    stop_wait_s: int
    ends_for_good: tuple[int, ...] = ()
    """Exit statuses after which it is not started again; empty: always started again."""
    allow: tuple[str, ...] = ()
    allow_prefixes: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    names_only: bool = False
    digest: str = ""
    """Of the settings that it reads when it starts: a new one means a restart."""
    kept: str = ""
    """The text of these settings, of what holds without a restart too; see `headpond.kept_settings`."""
    environment: dict[str, str] = field(default_factory=dict)


def worker_name(model: str, index: int) -> str:
    """The name of one worker's program and log, and what it calls itself: `chat-0`."""
    return f"{model}-{index}"


def split_worker_name(name: str) -> tuple[str, int] | None:
    """(model, index) of a worker's program; None for any other program."""
    model, dash, index = name.rpartition("-")
    return (model, int(index)) if dash and index.isdecimal() else None


def model_of(name: str) -> str:
    """The model of a worker's program; empty for any other program."""
    split = split_worker_name(name)
    return split[0] if split is not None else ""


def worker(settings: Settings, model: str, index: int) -> Program:
    """One worker of one model. Raises ConfigError if the configuration has no such model."""
    table = settings.model(model)
    name = worker_name(model, index)
    # The others are no concern of a running worker, or it takes them over as it runs.
    at_start = table.model_dump_json(exclude=set(table.all_live_keys()))
    own = (*secret_variables(table), *secret_variables(settings.redis))
    if table.version_source is not None or (isinstance(table, KvModel) and table.kv == "storage"):
        # It pulls its versions, and stored keys and values, itself.
        own = (*own, *secret_variables(settings.storage))
    return Program(
        name=name,
        argv=(
            pair_argv(settings, model, name)
            if changes_side_by_side(table)
            else (*_python("headpond_workers.worker"), *worker_arguments(settings, model, name))
        ),
        priority=WORKER_PRIORITY,
        stop_wait_s=stop_wait_s(table),
        ends_for_good=WORKER_ENDS_FOR_GOOD,
        allow=own,
        # The environment's layer of this model's settings.
        allow_prefixes=(prefix_of(model),),
        deny=_secrets_of_others(settings, own),
        digest=_digest(f"{model}\n{at_start}", settings),
        kept=running_document(settings, [model]),
    )


def persister(settings: Settings) -> Program:
    """The process that writes state to storage."""
    own = (*secret_variables(settings.redis), *secret_variables(settings.storage))
    return Program(
        name=PERSISTER,
        argv=(*_python("headpond_workers.persister"), "--config", _config(settings)),
        priority=PRIORITIES[PERSISTER],
        stop_wait_s=PERSISTER_STOP_WAIT_S,
        allow=own,
        deny=_secrets_of_others(settings, own),
        # It serves every model: a model that comes or goes is a reason to look again.
        digest=_digest(",".join(sorted(settings.models)), settings),
        kept=running_document(settings, ()),
    )


def server(name: str, argv: Sequence[str]) -> Program:
    """An embedded server, VALKEY or SEAWEED."""
    return Program(
        name=name,
        argv=tuple(argv),
        priority=PRIORITIES[name],
        stop_wait_s=SERVER_STOP_WAIT_S,
        # Not a list of denied names: a new model's secret would restart the server.
        names_only=True,
    )


def secret_variables(value: object) -> list[str]:
    """Names of the environment variables that secret references of a table name, at any depth."""
    return list(dict.fromkeys(reference.env for reference in secrets_of(value) if reference.env is not None))


def _secrets_of_others(settings: Settings, own: Iterable[str]) -> tuple[str, ...]:
    """Variables that any table refers to, that `own` lacks, and that the launcher's patterns would let through.

    Only those: what it drops anyway is no reason to change a program's file, which restarts it.
    """
    every = secret_variables([settings.redis, settings.storage, settings.models])
    return tuple(sorted(name for name in set(every) - set(own) if is_always_allowed(name)))


def render(program: Program) -> str:
    """The file of one program. Raises DeploymentError if a word cannot be written down."""
    launcher = [*_python("headpond_workers.supervision.launcher")]
    for name in program.allow:
        launcher += ["--allow", name]
    for prefix in program.allow_prefixes:
        launcher += ["--allow-prefix", prefix]
    for name in program.deny:
        launcher += ["--deny", name]
    if program.names_only:
        launcher.append("--names-only")
    launcher += ["--backoff", f"{STARTS_FOLDER}/{program.name}", "--"]
    restart = (
        ["autorestart=unexpected", f"exitcodes={','.join(map(str, program.ends_for_good))}"]
        if program.ends_for_good
        else ["autorestart=true"]
    )
    environment = program.environment | ({SUPERVISED: program.digest} if program.digest else {})
    lines = [
        f"[program:{_name(program.name)}]",
        f"command={_command([*launcher, *program.argv])}",
        f"priority={program.priority}",
        # With startsecs above 0, supervisord starts a program that ended sooner again whatever its exit status,
        # and gives up on it for good after a while. The launcher holds back a program that keeps crashing.
        "startsecs=0",
        *restart,
        "stopsignal=TERM",
        f"stopwaitsecs={program.stop_wait_s}",
        "killasgroup=true",
        "umask=077",
        "redirect_stderr=true",
        f"stdout_logfile={LOG_FOLDER}/{program.name}.log",
        f"stdout_logfile_maxbytes={LOG_BYTES}",
        f"stdout_logfile_backups={LOG_BACKUPS}",
    ]
    if environment:
        pairs = ",".join(f'{_name(name)}="{_plain(value)}"' for name, value in sorted(environment.items()))
        lines.append(f"environment={pairs}")
    return "\n".join(lines) + "\n"


def supervisord_conf(*, socket: Path, state_folder: Path) -> str:
    """supervisord's own file, which stands in `state_folder`. Raises DeploymentError for an unusable folder."""
    if not _GLOB.isdisjoint(str(state_folder)):
        raise DeploymentError(
            f"supervisord cannot work in {state_folder}: the path holds '*', '?' or '['. Rename that folder."
        )
    return "\n".join(
        [
            "; Written by headpond; changes are lost at the next start.",
            "[unix_http_server]",
            f"file={_plain(str(socket))}",
            "chmod=0700",
            "[supervisord]",
            f"logfile={LOG_FOLDER}/supervisord.log",
            f"logfile_maxbytes={LOG_BYTES}",
            f"logfile_backups={LOG_BACKUPS}",
            f"pidfile={PID_NAME}",
            f"childlogdir={LOG_FOLDER}",
            "nocleanup=true",
            "umask=077",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
            "[include]",
            f"files = {CONF_FOLDER}/*.conf",
            "",
        ]
    )


def _python(module: str) -> tuple[str, ...]:
    return sys.executable, "-m", module


def _config(settings: Settings) -> str:
    if settings.file is None:
        raise DeploymentError("A deployment needs a configuration file: write a headpond.toml first.")
    return str(settings.file)


def _digest(own: str, settings: Settings) -> str:
    text = "\n".join([own, settings.redis.model_dump_json(), settings.storage.model_dump_json()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _command(words: Iterable[str]) -> str:
    """A command line as supervisord reads it: percent signs doubled, then split as a shell would."""
    return " ".join(_word(word) for word in words).replace("%", "%%")


def _word(word: str) -> str:
    """word, quoted so that no `;` or `#` in it follows a space, which would begin a comment."""
    if any(unicodedata.category(character) in _UNPRINTABLE for character in word):
        raise DeploymentError(f"{word!r} holds control characters, which supervisord cannot pass on. Rename it.")
    if word and all(character.isalnum() or character in "/._-+=:,@*" for character in word):
        return word
    # 'it'"'"'s' for a quote, 'a'' ''#b' for a space of any kind, and '%''(here)s' since supervisord replaces that one
    # even where its percent sign is doubled.
    quoted = word.replace("'", "'\"'\"'").replace("%", "%''")
    return "'" + "".join(f"''{char}''" if char.isspace() else char for char in quoted) + "'"


def _name(value: str) -> str:
    """The name of a program or a variable. Raises DeploymentError if it could be read as anything else."""
    if not _NAME.fullmatch(value):
        raise DeploymentError(f"{value!r} cannot name anything in supervisord's configuration.")
    return value


def _plain(value: str) -> str:
    """value as it stands, where nothing can be quoted. Raises DeploymentError if it would need to be."""
    if not all(character.isalnum() or character in "/._-+=:@" for character in value):
        raise DeploymentError(f"{value!r} cannot be written into supervisord's configuration.")
    return value
