"""What tests of `headpond verify` share: the command in this process, and its verdicts by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from typer.testing import CliRunner

from conftest import Deployment
from headpond.cli.app import build_app
from headpond.cli.exits import exit_code
from headpond.errors import HeadpondError

ALL = {"request", "sampling", "seed", "weights", "adapters", "fingerprint", "prompt", "text", "tokens"}
"""Every check of a job with an adapter."""


def said(deployment: Deployment, job_id: str, *options: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a verification in this process."""
    arguments = ["verify", job_id, "--config", str(deployment.config), "--redis", deployment.url, *options]
    done = CliRunner().invoke(build_app(), arguments)
    if isinstance(done.exception, HeadpondError):
        return exit_code(done.exception), done.stdout, f"{done.stderr}{done.exception}"
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def verified(deployment: Deployment, job_id: str, *options: str) -> tuple[int, dict[str, str]]:
    """Exit code, and the verdict of each check by its name; under '' that of all, under '!name' the reason of one."""
    code, out, err = said(deployment, job_id, "--json", *options)
    assert out, err
    document: dict[str, Any] = json.loads(out)
    found = {"": document["verdict"]}
    for check in document["checks"]:
        found[check["name"]] = check["verdict"]
        found[f"!{check['name']}"] = check["reason"]
    return code, found


def named(found: Mapping[str, str], verdict: str) -> set[str]:
    """The checks that came to a verdict."""
    return {name for name, said in found.items() if said == verdict and name and not name.startswith("!")}
