"""The programs of a deployment, each run by a process that was forked from one that has imported them all.

A worker takes a second or two to import what it needs, a persister likewise: that is longer than they would live here.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

# For the process that the others are forked from: all that they need, also what they import when they need it.
import boto3  # noqa: F401
from forge import Fields, Say

import headpond_workers.cli.restore
import headpond_workers.engines.scripted
import headpond_workers.persistence.restoring.restore
import headpond_workers.storage.s3  # noqa: F401
from headpond.cli import app
from headpond_workers import persister, worker

WORKER, PERSISTER, COMMAND = "worker", "persister", "command"


def perform(order: Fields, _: Say) -> NoReturn:
    """Be that program. order: its name, arguments, working folder, and the file for what it says."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.chdir(order["folder"])
    sys.argv = [f"headpond {order['program']}", *order["arguments"]]
    status: object = 0
    try:
        match order["program"]:
            case "worker":
                worker.main()
            case "persister":
                persister.main()
            case "command":
                app.main()
    except SystemExit as error:
        status = error.code
    except BaseException:  # noqa: BLE001 - as Python itself would do
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)
