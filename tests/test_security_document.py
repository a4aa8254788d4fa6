"""docs/security.md gives a command and a warning: both are tried on real servers."""

from __future__ import annotations

import json
import re
import shlex
import urllib.request
from pathlib import Path

import pytest
import redis

from headpond import Client, keys
from headpond.connections import RedisAddress
from headpond.errors import QueueError, QueueFull
from headpond.jobs import JobState
from headpond.models import ModelRow
from headpond.operations import Append
from headpond.queue import Server
from headpond.wire import TokenRun
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision import embedded_seaweed
from headpond_workers.supervision.embedded_seaweed import running_seaweed
from headpond_workers.supervision.embedded_valkey import running_valkey

SECURITY = (Path(__file__).parents[1] / "docs" / "security.md").read_text(encoding="utf-8")


def test_the_user_of_the_security_document_reaches_one_model_and_no_other(tmp_path: Path) -> None:
    (command,) = re.findall(r"^ACL SETUSER .*$", SECURITY, re.MULTILINE)
    with running_valkey(tmp_path) as valkey:
        address = RedisAddress(valkey.url, "the test")
        operator = Server(address)
        for model in ("chat", "code"):
            operator.configure_model(model, ModelRow("scripted", 2, storage=False, context_tokens=100))
        with redis.Redis.from_url(valkey.url) as admin:
            admin.execute_command(*shlex.split(command))
        url = f"redis://shop:PASSWORD@127.0.0.1:{valkey.port}/0"
        with Client(url) as client:
            job = client.submit("chat", "a question")
            queue = operator.queue("chat")
            (lease,) = queue.claim("boot", seq=1, nonce="n", slots=1).leases
            queue.append([Append(lease.id, lease.fence, TokenRun(0, (1,), ("yes",)))])
            assert job.cancel() is JobState.CANCELLED
            assert [chunk.text for chunk in job.stream()] == ["yes"]

            waiting = client.submit("chat@v1", "another", priority="batch", tenant="acme", delay=60, deadline=90)
            assert (waiting.state(), waiting.cancel()) == (JobState.DELAYED, JobState.CANCELLED)
            many = client.submit_many("chat@v1", [{"prompt": "one"}, {"prompt": "two"}])
            assert [job.state() for job in many] == [JobState.QUEUED, JobState.QUEUED]
            with pytest.raises(QueueFull):
                client.submit("chat", "one too many")

            with pytest.raises(QueueError, match="No permissions"):
                client.submit("code", "a question")
        own = Server(RedisAddress(url, "the test"))
        for refused in (("CONFIG", "GET", "*"), ("CLIENT", "LIST"), ("ACL", "LIST"), ("DEL", keys.MODELS)):
            with pytest.raises(QueueError, match="permissions"):
                own.read(*refused)
        own.close()
        operator.close()


@pytest.mark.slow
def test_the_filer_of_the_embedded_storage_asks_for_no_key_as_the_security_document_warns(tmp_path: Path) -> None:
    with running_seaweed(tmp_path) as server:
        address = StorageAddress(server.url, server.bucket, server.region, server.access_key, server.secret_key)
        S3Blobs(address).put_new("state/chat/example", b"a stored answer")
        port = json.loads((server.folder / embedded_seaweed.ACCESS_FILE).read_text())["ports"]["filer"]
        url = f"http://127.0.0.1:{port}/buckets/{server.bucket}/state/chat/example"
        with urllib.request.urlopen(url, timeout=10) as reply:
            assert reply.read() == b"a stored answer"
    assert "The filer reads, changes and deletes all stored state for every user" in SECURITY
