"""The same jobs in a deployment in which nothing goes wrong: what a disturbed run is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from engines import EngineName, Order, model_table
from evidence import Answer
from town import MODEL, running_town

from headpond import Client

SLOTS = {EngineName.SCRIPTED: 16, EngineName.LLAMACPP: 2, EngineName.LLAMACPP_EXACT: 2}
TOKENS_PER_S = 100_000.0
"""Of the scripted engine, whose tokens do not depend on it."""
ANSWER_TIMEOUT_S = 300.0


def undisturbed_answers(
    folder: Path, engine: EngineName, orders: Iterable[Order], *, progress: Callable[[str], None]
) -> dict[str, Answer]:
    """Each order's answer from one worker on a server of its own, under the same id. Raises HeadpondError."""
    wanted = list(orders)
    table = model_table(engine, MODEL, slots=SLOTS[engine], lease_s=30.0, tokens_per_s=TOKENS_PER_S)
    answers = {}
    with running_town(folder, table, workers=1) as town, Client(town.valkey.url) as client:
        jobs = [
            client.submit(
                MODEL,
                order.prompt,
                id=order.id,
                max_tokens=order.max_tokens,
                temperature=order.temperature,
                session=order.session,
            )
            for order in wanted
        ]
        progress(f"{len(jobs)} jobs once more, undisturbed")
        for job in jobs:
            result = job.result(timeout=ANSWER_TIMEOUT_S)
            answers[job.id] = Answer(result.token_ids, result.text)
    return answers
