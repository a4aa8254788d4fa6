"""Jobs of a model whose queue is journaled, in every state that a restore has to bring back."""

from __future__ import annotations

from batches import in_batches
from child import BenchmarkError
from persisted_side import await_that
from running_jobs import LEASE_S, tokens_at

from headpond import Client
from headpond.jobs import FinishReason, JobState, Result, Usage
from headpond.models import ModelRow
from headpond.operations import Append, Lease, finish
from headpond.queue import JobQueue, Server
from headpond.wire import pack_result

OPEN_TIMEOUT_S = 60.0
AT_ONCE = 100
CLAIMED, FINISHED = 70, 60
"""Of AT_ONCE jobs: leased, and of these finished; the others are left running."""
TOKENS = 32
PROMPT_BYTES = 200
ABOUT = (
    f"of each {AT_ONCE} jobs {FINISHED} have finished with {TOKENS} tokens, {CLAIMED - FINISHED} run and have as many, "
    f"{AT_ONCE - CLAIMED} wait; prompts of {PROMPT_BYTES} bytes"
)
_ROW = ModelRow(engine="scripted", max_queued=0, storage=True, context_tokens=4096)


def fill(server: Server, model: str, count: int) -> JobQueue:
    """Submit `count` jobs, run most of them and finish most of those. A persister runs meanwhile, and opens the queue.

    Raises HeadpondError.
    """
    server.configure_model(model, _ROW)
    queue = server.queue(model, storage=True)
    await_that(lambda: queue.meta().get("state") == "open", OPEN_TIMEOUT_S, f"the persister opened {model}")
    with Client(server.address.url) as client:
        for number, prompts in enumerate(in_batches([_prompt(n) for n in range(count)]), 1):
            client.submit_many(model, [{"prompt": prompt} for prompt in prompts], max_tokens=2 * TOKENS)
            _work(queue, number, len(prompts) * CLAIMED // AT_ONCE, len(prompts) * FINISHED // AT_ONCE)
    return queue


def _prompt(number: int) -> str:
    return f"Question {number}: ".ljust(PROMPT_BYTES, "x")


def _work(queue: JobQueue, seq: int, claimed: int, finished: int) -> None:
    leases = queue.claim("the benchmark", seq=seq, nonce=f"fence-{seq}", slots=claimed, lease_s=LEASE_S).leases
    if len(leases) != claimed:
        raise BenchmarkError(f"{len(leases)} of {claimed} jobs were leased; nothing was measured.")
    run = tokens_at(0, TOKENS)
    queue.append([Append(lease.id, lease.fence, run) for lease in leases])
    queue.run_all(
        [
            finish(lease.id, lease.fence, offset=TOKENS, state=JobState.FINISHED, result=_result(lease))
            for lease in leases[:finished]
        ]
    )


def _result(lease: Lease) -> bytes:
    run = tokens_at(0, TOKENS)
    return pack_result(
        Result(
            lease.id, JobState.FINISHED, "".join(run.pieces), run.ids, FinishReason.LENGTH,
            usage=Usage(PROMPT_BYTES // 4, TOKENS), pieces=run.pieces,
        )
    )  # fmt: skip
