"""What tests of conversations with real workers share: a model of the reference engine, and one turn."""

from __future__ import annotations

import json

from conftest import Deployment, WorkerChild
from headpond import Client, Result

MODEL = """
[models.chat]
engine = "scripted"
tokens_per_s = {speed}
slots = 4
lease_s = 1.0
answer_tokens = 30
context_tokens = 4096
version_wait_s = 1.0
{more}
"""


def configure(deployment: Deployment, *, speed: int = 2000, more: str = "") -> None:
    deployment.configure(MODEL.format(speed=speed, more=more))


def serve(deployment: Deployment, instance: str = "chat-0", *, speed: int = 2000, more: str = "") -> WorkerChild:
    configure(deployment, speed=speed, more=more)
    return deployment.start("chat", instance)


def serve_salted(deployment: Deployment, instance: str, salt: str) -> WorkerChild:
    """A worker of another version of the model, whose answers are others."""
    weights = deployment.folder / f"{salt}.json"
    weights.write_text(json.dumps({"salt": salt}))
    return serve(deployment, instance, more=f'path = "{weights}"')


def ask(client: Client, prompt: str, **options: object) -> Result:
    more = {"session": "s", "temperature": 0.0, **options}
    return client.submit("chat", prompt, **more).result(timeout=30)  # type: ignore[arg-type]
