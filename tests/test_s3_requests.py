"""What leaves for storage: the URL that names the bucket, and headers for checksum, signature and encryption."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse

from headpond.errors import BlobMismatch, ConfigError
from headpond.settings import load_settings
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.s3_uploads import PartSizes
from headpond_workers.storage.settings import StorageAddress, configured_storage, storage_of
from headpond_workers.supervision import embedded_seaweed
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed

ADDRESS = StorageAddress("http://storage.example:8333", "pond", "eu-1", "the-key", "the-secret", "the test")


@dataclass
class Sent:
    """One request as it would have gone out."""

    method: str
    url: str
    headers: dict[str, str]


@dataclass
class Recorder:
    """Answers each request of an S3Blobs as a server that stores all and holds nothing."""

    blobs: S3Blobs
    sent: list[Sent]
    refuse_puts: bytes | None = None
    """What each put is answered with, by status 400."""

    def answer(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        headers = {
            str(name): value.decode() if isinstance(value, bytes) else str(value)
            for name, value in request.headers.items()
        }
        self.sent.append(Sent(request.method, request.url, headers))
        if request.method == "HEAD":
            return AWSResponse(request.url, 404, {}, Reply(b""))
        if request.method == "PUT" and self.refuse_puts is not None:
            return AWSResponse(request.url, 400, {}, Reply(self.refuse_puts))
        body = b""
        if request.url.endswith("?uploads"):
            body = b"<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>"
        elif request.method == "POST":
            body = b'<CompleteMultipartUploadResult><ETag>"e"</ETag></CompleteMultipartUploadResult>'
        return AWSResponse(request.url, 200, {"ETag": '"e"'}, Reply(body))


class Reply(io.BytesIO):
    """A body in the way urllib3 hands it over."""

    def stream(self, **_: object) -> Iterator[bytes]:
        yield self.read()


def recorded(address: StorageAddress) -> Recorder:
    recorder = Recorder(S3Blobs(address, parts=PartSizes(single_bytes=1000, part_bytes=1000)), [])
    recorder.blobs._bucket.client.meta.events.register("before-send.s3", recorder.answer)
    return recorder


@pytest.mark.parametrize(
    ("endpoint", "addressing", "bucket", "url"),
    [
        ("http://storage.example:8333", "auto", "pond", "http://storage.example:8333/pond/a/key"),
        ("http://storage.example:8333", "path", "pond", "http://storage.example:8333/pond/a/key"),
        ("http://storage.example:8333", "virtual", "pond", "http://pond.storage.example:8333/a/key"),
        ("https://s3.example.org", "virtual", "pond", "https://pond.s3.example.org/a/key"),
        ("https://s3.eu-1.amazonaws.com", "auto", "pond", "https://pond.s3.eu-1.amazonaws.com/a/key"),
        # No certificate covers a name with more dots.
        ("https://s3.eu-1.amazonaws.com", "auto", "my.pond", "https://s3.eu-1.amazonaws.com/my.pond/a/key"),
        ("https://s3.eu-1.amazonaws.com", "path", "pond", "https://s3.eu-1.amazonaws.com/pond/a/key"),
        (None, "auto", "pond", "https://pond.s3.eu-1.amazonaws.com/a/key"),
        (None, "virtual", "pond", "https://pond.s3.eu-1.amazonaws.com/a/key"),
    ],
)
def test_a_request_names_the_bucket_where_the_settings_say(
    endpoint: str | None, addressing: str, bucket: str, url: str
) -> None:
    recorder = recorded(replace(ADDRESS, endpoint_url=endpoint, addressing=addressing, bucket=bucket))
    recorder.blobs.put_new("a/key", b"body")
    assert [sent.url for sent in recorder.sent] == [url]


@pytest.mark.parametrize("endpoint", ["http://storage.example:8333", "https://storage.example"])
def test_the_checksum_of_a_put_is_signed_and_its_body_is_not_hashed_again(endpoint: str, tmp_path: Path) -> None:
    recorder = recorded(replace(ADDRESS, endpoint_url=endpoint))
    recorder.blobs.put_new("key", b"body")
    recorder.blobs.put_if("key", b"x" * 1_000_000, etag='"e"')
    path = tmp_path / "file"
    path.write_bytes(b"y" * 1500)
    recorder.blobs.put_file("key", path)
    puts = [sent for sent in recorder.sent if sent.method == "PUT"]
    bodies = [b"body", b"x" * 1_000_000, b"y" * 1000, b"y" * 500]
    assert len(puts) == len(bodies)
    # The parts of an upload leave at the same time.
    assert {sent.headers["x-amz-checksum-sha256"] for sent in puts} == {
        base64.b64encode(hashlib.sha256(body).digest()).decode() for body in bodies
    }
    for sent in puts:
        assert sent.headers["X-Amz-Content-SHA256"] == "UNSIGNED-PAYLOAD"
        (signed,) = re.findall("SignedHeaders=([^,]*)", sent.headers["Authorization"])
        assert "x-amz-checksum-sha256" in signed.split(";")
        assert int(sent.headers["Content-Length"]) in [len(body) for body in bodies]
        assert not {"Content-Encoding", "Transfer-Encoding", "x-amz-trailer"} & set(sent.headers)


def test_a_sha256_that_is_given_goes_along_as_it_is_and_a_body_without_it_is_refused_once() -> None:
    recorder = recorded(ADDRESS)
    given = hashlib.sha256(b"what was hashed").digest()
    assert recorder.blobs.put_once("key", b"what is there now", sha256=given)
    assert recorder.sent[0].headers["x-amz-checksum-sha256"] == base64.b64encode(given).decode()
    recorder.refuse_puts = b"<Error><Code>BadDigest</Code></Error>"
    with pytest.raises(BlobMismatch):
        recorder.blobs.put_once("key", b"what is there now", sha256=given)
    assert len(recorder.sent) == 2, "no further try would mend it"


def test_each_put_and_each_complete_of_an_upload_has_its_condition(tmp_path: Path) -> None:
    recorder = recorded(ADDRESS)
    path = tmp_path / "file"
    path.write_bytes(b"y" * 1001)
    recorder.blobs.put_new("key", b"body")
    recorder.blobs.put_once("key", b"body")
    recorder.blobs.put_if("key", b"body", etag='"e"')
    recorder.blobs.put_file("key", path)
    conditions = [
        (sent.headers.get("If-None-Match"), sent.headers.get("If-Match"))
        for sent in recorder.sent
        if sent.method == "POST" or (sent.method == "PUT" and "partNumber" not in sent.url)
    ]
    assert conditions == [("*", None), ("*", None), (None, '"e"'), (None, None), ("*", None)]
    assert recorder.sent[4].url.endswith("?uploads"), "nothing is there yet to have a condition"


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ("", {}),
        ('encryption = "none"', {}),
        ('encryption = "sse-s3"', {"x-amz-server-side-encryption": "AES256"}),
        ('encryption = "sse-kms"', {"x-amz-server-side-encryption": "aws:kms"}),
        (
            'encryption = "sse-kms"\nkms_key_id = "key-1"',
            {"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "key-1"},
        ),
    ],
)
def test_encryption_is_asked_for_with_every_object_that_is_stored(
    settings: str, headers: dict[str, str], tmp_path: Path
) -> None:
    config = tmp_path / "headpond.toml"
    config.write_text(f'[storage]\nendpoint_url = "http://storage.example:8333"\n{settings}\n')
    address = configured_storage(load_settings(config))
    assert address is not None
    recorder = recorded(replace(address, access_key="k", secret_key=ADDRESS.secret_key))
    path = tmp_path / "file"
    path.write_bytes(b"y" * 1001)
    recorder.blobs.put_new("key", b"body")
    recorder.blobs.put_once("key", b"body")
    recorder.blobs.put_if("key", b"body", etag='"e"')
    recorder.blobs.put_file("key", path)
    path.write_bytes(b"small")
    recorder.blobs.put_file("key", path)
    storing = [sent for sent in recorder.sent if sent.method in ("PUT", "POST") and "ploadId=" not in sent.url]
    assert len(storing) == 5
    for sent in storing:
        found = {name.lower(): value for name, value in sent.headers.items() if "encryption" in name.lower()}
        assert found == headers


def test_the_settings_of_storage_reach_the_address_also_of_the_embedded_server(tmp_path: Path) -> None:
    config = tmp_path / "headpond.toml"
    config.write_text('[storage]\nencryption = "sse-s3"\nupload_mb_per_s = 20\ndownload_mb_per_s = 0.5\n')
    (tmp_path / ".headpond").mkdir()
    (tmp_path / ".headpond" / "run.json").write_text(
        '{"storage": {"endpoint_url": "http://127.0.0.1:9", "bucket": "pond", "region": "us-east-1",'
        ' "access_key": "k", "secret_key": "s"}}'
    )
    address = storage_of(load_settings(config))
    assert address is not None
    assert (address.encryption, address.upload_bytes_per_s, address.download_bytes_per_s) == ("sse-s3", 20e6, 5e5)
    assert urlsplit(address.endpoint_url or "").hostname == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('kms_key_id = "k"', 'kms_key_id names a key for encryption = "sse-kms"'),
        ('encryption = "sse-s3"\nkms_key_id = "k"', 'kms_key_id names a key for encryption = "sse-kms"'),
        ('encryption = "aes"', "encryption: "),
        ('addressing = "host"', "addressing: "),
        ('addressing = "virtual"', 'addressing = "virtual" needs an endpoint_url'),
        ('encryption = "sse-kms"', 'encryption = "sse-kms" needs an endpoint_url'),
        ("upload_mb_per_s = 0", "upload_mb_per_s: "),
        ("download_mb_per_s = -1", "download_mb_per_s: "),
        ("upload_mb_per_s = inf", "upload_mb_per_s: "),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_their_place(text: str, said: str, tmp_path: Path) -> None:
    config = tmp_path / "headpond.toml"
    config.write_text(f"[storage]\n{text}\n")
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load_settings(config)
    assert str(caught.value).startswith(f"{config}")
    assert "[storage]" in str(caught.value)


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    """A server that knows its buckets by host names below localhost too."""
    prepare = embedded_seaweed.prepare

    def with_host_names(folder: Path, *, bucket: str) -> embedded_seaweed.EmbeddedSeaweed:
        server = prepare(folder, bucket=bucket)
        return replace(server, argv=(*server.argv, "-s3.domainName=localhost"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded_seaweed, "prepare", with_host_names)
        with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
            yield process


@pytest.mark.slow
def test_a_server_with_a_host_name_for_each_bucket_is_reached_by_it(
    seaweed: SeaweedProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookup = socket.getaddrinfo

    def resolve(host: str, *arguments: Any, **options: Any) -> Any:
        # Not every resolver knows that all of .localhost is this machine.
        return lookup("127.0.0.1" if host.endswith(".localhost") else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = f"http://localhost:{urlsplit(seaweed.url).port}"
    address = StorageAddress(url, seaweed.bucket, seaweed.region, seaweed.access_key, seaweed.secret_key)
    hosts: list[str] = []
    blobs = S3Blobs(replace(address, addressing="virtual"), parts=PartSizes(1 << 20, 5 << 20))
    blobs._bucket.client.meta.events.register(
        "before-send.s3", lambda request, **_: hosts.append(urlsplit(request.url).hostname or "")
    )
    etag = blobs.put_new("a/key", b"body")
    blobs.put_if("a/key", b"other", etag=etag)
    path = tmp_path / "file"
    path.write_bytes(b"y" * (6 << 20))
    blobs.put_file("a/file", path)
    assert list(blobs.list_sizes("a/")) == [("a/file", 6 << 20), ("a/key", 5)]
    assert set(hosts) == {"headpond.localhost"}
    assert S3Blobs(replace(address, endpoint_url=seaweed.url)).get("a/key").body == b"other"


@pytest.mark.slow
def test_the_embedded_server_encrypts_what_it_is_asked_to(seaweed: SeaweedProcess, tmp_path: Path) -> None:
    address = StorageAddress(seaweed.url, seaweed.bucket, seaweed.region, seaweed.access_key, seaweed.secret_key)
    bodies = {name: secrets.token_bytes((5 << 20) + 1000) for name in ("plain", "encrypted")}
    for name, encryption in (("plain", "none"), ("encrypted", "sse-s3")):
        blobs = S3Blobs(replace(address, encryption=encryption), parts=PartSizes(6 << 20, 5 << 20))
        blobs.put_new(name, bodies[name])
        path = tmp_path / name
        path.write_bytes(bodies[name] * 2)
        blobs.put_file(f"{name}-file", path)
    reader = S3Blobs(address)
    for name, body in bodies.items():
        assert reader.get(name).body == body
        found = bytearray(2 * len(body))
        reader.read_into(f"{name}-file", memoryview(found))
        assert found == body * 2
        found = bytearray(100)
        reader.read_into(f"{name}-file", memoryview(found), offset=(5 << 20) + 950)
        assert found == (body * 2)[(5 << 20) + 950 :][:100]
    stored = b"".join(path.read_bytes() for path in seaweed.folder.rglob("*.dat"))
    assert stored.count(bodies["plain"][:64]) == 3
    assert bodies["encrypted"][:64] not in stored
