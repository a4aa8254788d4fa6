"""The embedded servers' own files: what they keep of what was removed, until they write them anew."""

from __future__ import annotations

import http.client
import json
import time
from pathlib import Path

from headpond.errors import DeploymentError
from headpond.queue import Server
from headpond_workers.supervision.embedded_seaweed import ACCESS_FILE, FOLDER
from headpond_workers.supervision.ports import LOOPBACK

POLL_S = 0.1
VACUUM_TIMEOUT_S = 120.0
SETTLE_S = 4.0
"""SeaweedFS takes an object's name away at once, and tells its volumes of it about once a second."""
GARBAGE_THRESHOLD = "0.000001"
"""Share of a volume that is garbage from which on it is written anew: any."""


def rewrite_log(server: Server, *, timeout_s: float) -> bool:
    """Have Valkey write its append-only file anew, without what was removed. False: not done in time.

    Raises RedisUnavailable, QueueError.
    """
    until = time.monotonic() + timeout_s
    while not _is_idle(server):
        if time.monotonic() >= until:
            return False
        time.sleep(POLL_S)
    server.read("BGREWRITEAOF")
    while not _is_idle(server):
        if time.monotonic() >= until:
            return False
        time.sleep(POLL_S)
    return _persistence(server).get("aof_last_bgrewrite_status") == "ok"


def _is_idle(server: Server) -> bool:
    found = _persistence(server)
    return found.get("aof_rewrite_in_progress") == "0" and found.get("aof_rewrite_scheduled") == "0"


def _persistence(server: Server) -> dict[str, str]:
    return {name: str(value) for name, value in server.redis.info("persistence").items()}


def vacuum_volumes(state_folder: Path) -> None:
    """Have SeaweedFS write its volumes anew, without deleted objects. Raises DeploymentError."""
    path = state_folder / FOLDER / ACCESS_FILE
    time.sleep(SETTLE_S)
    try:
        port = int(json.loads(path.read_text(encoding="utf-8"))["ports"]["master"])
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=VACUUM_TIMEOUT_S)
        try:
            connection.request("GET", f"/vol/vacuum?garbageThreshold={GARBAGE_THRESHOLD}")
            status = connection.getresponse().status
        finally:
            connection.close()
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        raise DeploymentError(
            f"The embedded SeaweedFS cannot be asked to write its volumes anew ({error}). Deleted objects stay in its "
            "files until it does so by itself. Look at: headpond logs seaweedfs"
        ) from error
    if status >= http.client.BAD_REQUEST:
        raise DeploymentError(f"The embedded SeaweedFS refused to write its volumes anew: HTTP status {status}.")
