"""The embedded SeaweedFS, as a real server: who may enter, what survives, what it leaves behind."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import psutil
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from headpond.errors import DeploymentError
from headpond_workers.supervision import embedded_seaweed
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed") / "state") as process:
        yield process


def client_of(seaweed: SeaweedProcess, *, secret_key: str | None = None, signed: bool = True) -> S3Client:
    config = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, proxies={}, connect_timeout=2)
    return boto3.session.Session().client(
        "s3",
        endpoint_url=seaweed.url,
        region_name=seaweed.region,
        aws_access_key_id=seaweed.access_key,
        aws_secret_access_key=secret_key or seaweed.secret_key,
        config=config if signed else config.merge(Config(signature_version=UNSIGNED)),
    )


def test_an_object_is_written_and_read_as_soon_as_start_returns(seaweed: SeaweedProcess) -> None:
    client = client_of(seaweed)
    client.put_object(Bucket=seaweed.bucket, Key="folder/a", Body=b"hello")
    assert client.get_object(Bucket=seaweed.bucket, Key="folder/a")["Body"].read() == b"hello"


@pytest.mark.parametrize("how", ["unsigned", "wrong secret"])
def test_a_request_without_our_keys_is_refused(seaweed: SeaweedProcess, how: str) -> None:
    client = client_of(seaweed, signed=False) if how == "unsigned" else client_of(seaweed, secret_key="guess")  # noqa: S106
    for call in (
        lambda: client.put_object(Bucket=seaweed.bucket, Key="x", Body=b""),
        lambda: client.list_objects_v2(Bucket=seaweed.bucket),
    ):
        with pytest.raises(ClientError) as refusal:
            call()
        assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_every_port_is_on_loopback_and_was_chosen_by_us(seaweed: SeaweedProcess) -> None:
    listening = {
        (c.laddr.ip, c.laddr.port)
        for c in psutil.Process(seaweed.pid).net_connections("tcp")
        if c.status == psutil.CONN_LISTEN
    }
    chosen = json.loads((seaweed.folder / "access.json").read_text())["ports"].values()
    assert listening == {("127.0.0.1", port) for number in chosen for port in (number, number + 10_000)}


def test_the_keys_are_in_no_command_line(seaweed: SeaweedProcess) -> None:
    words = " ".join(psutil.Process(seaweed.pid).cmdline())
    assert str(seaweed.folder) in words
    assert seaweed.access_key not in words
    assert seaweed.secret_key not in words


def test_only_the_owner_may_enter_its_folder(seaweed: SeaweedProcess) -> None:
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (
            seaweed.folder,
            seaweed.folder / "data",
            seaweed.folder / "access.json",
            seaweed.folder / "s3.json",
        )
    }
    assert modes == {"seaweedfs": 0o700, "data": 0o700, "access.json": 0o600, "s3.json": 0o600}


def test_a_killed_server_comes_back_with_its_objects_on_the_same_ports(tmp_path: Path) -> None:
    with running_seaweed(tmp_path / "state") as seaweed:
        client, url = client_of(seaweed), seaweed.url
        for number in range(20):
            client.put_object(Bucket=seaweed.bucket, Key=f"k/{number}", Body=f"{number}".encode() * 1000)
        seaweed.kill()
        seaweed.start()
        assert seaweed.url == url
        for number in range(20):
            body = client.get_object(Bucket=seaweed.bucket, Key=f"k/{number}")["Body"].read()
            assert body == f"{number}".encode() * 1000


def test_two_deployments_stand_side_by_side(tmp_path: Path, seaweed: SeaweedProcess) -> None:
    with running_seaweed(tmp_path / "other", bucket="other-bucket") as other:
        client_of(other).put_object(Bucket="other-bucket", Key="mine", Body=b"1")
        buckets = [bucket["Name"] for bucket in client_of(seaweed).list_buckets()["Buckets"]]
        assert buckets == ["headpond"]


def test_a_stopped_server_leaves_no_socket_behind(tmp_path: Path) -> None:
    with running_seaweed(tmp_path / "state") as seaweed:
        ports = json.loads((seaweed.folder / "access.json").read_text())["ports"].values()
        numbers = [str(port) for number in ports for port in (number, number + 10_000)]
        assert sockets_of(numbers) != []
    assert sockets_of(numbers) == []


def test_a_taken_port_is_refused_with_its_number(tmp_path: Path) -> None:
    seaweed = SeaweedProcess(tmp_path)
    port = json.loads((seaweed.folder / "access.json").read_text())["ports"]["filer"]
    with socket.create_server(("127.0.0.1", port)), pytest.raises(DeploymentError, match=str(port)):
        seaweed.start()


def test_a_stranger_on_the_port_is_told_from_our_server(tmp_path: Path, seaweed: SeaweedProcess) -> None:
    embedded_seaweed.prepare(tmp_path)
    access = tmp_path / "seaweedfs" / "access.json"
    document = json.loads(access.read_text())
    s3_port = int(seaweed.url.rpartition(":")[2])
    access.write_text(json.dumps({**document, "ports": {**document["ports"], "s3": s3_port}}))
    probe = embedded_seaweed.SeaweedProbe(embedded_seaweed.prepare(tmp_path))
    with pytest.raises(DeploymentError, match="refuses our keys"):
        probe.answers()


def sockets_of(ports: list[str]) -> list[Path]:
    # `weed` writes them to /tmp whatever TMPDIR says.
    return [path for path in Path("/tmp").glob("seaweedfs-*.sock") if path.stem.rpartition("-")[2] in ports]  # noqa: S108
