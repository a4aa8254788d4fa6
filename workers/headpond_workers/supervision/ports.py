"""Free TCP ports on loopback for the embedded servers."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

from headpond.errors import DeploymentError

LOOPBACK = "127.0.0.1"
LOWEST_PORT = 10_000
HIGHEST_PORT = 32_767
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int, *, twin_offset: int | None = None) -> list[int]:
    """`count` different ports of 127.0.0.1 on which nobody listens. Raises DeploymentError if there are too few.

    twin_offset: port + twin_offset is free too, of each, and is not given otherwise.

    They lie below the kernel's ephemeral range: a server keeps its port over restarts, and must not find it
    taken by the local end of somebody's outgoing connection. All are held until the last is found, so that no
    port is given twice; another process may still take one before the server does.
    """
    limit = _first_ephemeral_port()
    candidates = list(range(LOWEST_PORT, limit - (twin_offset or 0)))
    random.shuffle(candidates)
    found: list[int] = []
    taken: set[int] = set()
    with ExitStack() as held:
        for port in candidates:
            if len(found) == count:
                break
            wanted = [port] if twin_offset is None else [port, port + twin_offset]
            if taken.isdisjoint(wanted) and all(_listens(held, number) for number in wanted):
                taken.update(wanted)
                found.append(port)
    if len(found) < count:
        raise DeploymentError(
            f"Only {len(found)} of {count} ports are free on {LOOPBACK} between {LOWEST_PORT} and {limit - 1}. "
            "Stop some servers of this machine, then try again."
        )
    return found


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port now. Takes the port for a moment: see `is_open`."""
    with ExitStack() as held:
        return _listens(held, port)


def is_open(port: int) -> bool:
    """Whether somebody accepts connections on 127.0.0.1:port; safe to ask while a server is about to."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=2.0):
            return True
    except OSError:
        return False


def _listens(held: ExitStack, port: int) -> bool:
    """Listen on the port until `held` is left; False if somebody else does."""
    probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    # As servers do: a port whose old connections are in TIME_WAIT is free.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((LOOPBACK, port))
        probe.listen(1)
    except OSError:
        return False
    return True


def _first_ephemeral_port() -> int:
    try:
        first = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # not Linux: 49152 and up, by IANA
        return HIGHEST_PORT + 1
    # A machine whose ephemeral range starts very low leaves nothing below it: then any port is as good.
    return min(first, HIGHEST_PORT + 1) if first > LOWEST_PORT + 1000 else HIGHEST_PORT + 1
