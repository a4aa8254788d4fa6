"""A tick of the trials' watch in a process that is killed between the alias and the queue's copy of it.

`python -m killed_tick REDIS_URL S3_URL BUCKET REGION ACCESS_KEY SECRET_KEY`
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from headpond.connections import RedisAddress
from headpond.queue import JobQueue, Server
from headpond_workers.rollover.trial_watch import TrialWatch
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    url, endpoint, bucket, region, access, secret = sys.argv[1:]
    JobQueue.switch = _die  # type: ignore[method-assign, assignment]
    blobs = S3Blobs(StorageAddress(endpoint, bucket, region, access, secret, configured_in="the test"))
    TrialWatch(Server(RedisAddress(url, "the test")), blobs, writer="one that is killed").tick()
