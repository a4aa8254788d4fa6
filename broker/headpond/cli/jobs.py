"""`headpond submit | embed | watch | result | cancel`."""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from headpond.cli.request_options import form_of, sampling_of
from headpond.cli.unserved import told_if_unserved
from headpond.client import Client, Job
from headpond.durability import TIMEOUT_S, Durability
from headpond.errors import HeadpondError, InvalidRequest, JobEnded
from headpond.jobs import Chunk, JobId, Result
from headpond.requests import MAX_BODY_BYTES
from headpond.results import answer
from headpond.terminal import write_text

RESULTS_GROUP = "headpond.results"

UrlOption = Annotated[
    str | None, typer.Option("--redis", help="Server url; `headpond --help` says where it is looked for.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]
DurabilityOption = Annotated[
    str, typer.Option(metavar="queue|storage", help="Go on once the queue has it, or once storage has it too.")
]
DurabilityTimeoutOption = Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for storage.")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id: MODEL/SLUG.")]


class MissingFeature(HeadpondError):
    """A part of headpond that is not installed here."""


def submit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of a configured model, or NAME@VERSION.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt; - reads it from stdin.")],
    max_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Default: follows from the job's id.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")] = None,
    stop_token: Annotated[
        list[int] | None, typer.Option(help="End the answer before this token id; may be repeated.")
    ] = None,
    sampling: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Another setting, such as top_k=40; may be repeated.")
    ] = None,
    response_format: Annotated[
        str | None,
        typer.Option(metavar="json|FILE", help="json: any JSON object. A file: response_format as in OpenAI's API."),
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A JSON schema that the answer matches.")
    ] = None,
    grammar: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A GBNF grammar that the answer matches.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="A LoRA adapter of the model, by its name.")] = None,
    id: Annotated[str | None, typer.Option("--id", help="MODEL/SLUG; the same id and request is the same job.")] = None,
    priority: Annotated[str, typer.Option(help="interactive, normal or batch.")] = "normal",
    tenant: Annotated[str, typer.Option(help="For whom; tenants take turns by what their jobs cost.")] = "",
    session: Annotated[
        str | None, typer.Option(metavar="NAME", help="The next turn of this conversation with the model.")
    ] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="COMMIT", help="The head that the session must have; root: no turn yet.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Of the session, when the model is switched: migrate or pin.")
    ] = None,
    delay: Annotated[float, typer.Option(help="Seconds before it may begin.")] = 0.0,
    deadline: Annotated[float | None, typer.Option(help="Seconds after which it ends, done or not.")] = None,
    durability: DurabilityOption = Durability.QUEUE.value,
    durability_timeout: DurabilityTimeoutOption = TIMEOUT_S,
    detach: Annotated[bool, typer.Option("--detach", help="Print the id and leave.")] = False,
    as_json: JsonOption = False,
    redis: UrlOption = None,
) -> None:
    """Submit a job and show its tokens as they come.

    Examples:

      headpond submit chat "Why is the sky blue?" --max-tokens 64

      cat notes.txt | headpond submit chat - --json

      id=$(headpond submit chat "A long story" --detach); headpond watch $id

      headpond submit chat "Summarise ..." --priority batch --tenant reports --deadline 3600

      headpond submit chat "Bill order 17" --id chat/order-17 --durability storage --detach

      headpond submit chat "And why?" --session s1

      headpond submit chat "Where is Oslo?" --json-schema place.json --sampling top_k=40 --sampling min_p=0.05
    """
    more = sampling_of(sampling or ()) | form_of(response_format, json_schema, grammar)
    text = _from_stdin() if prompt == "-" else prompt
    with Client(redis) as client:
        job = client.submit(
            model, text, id=id, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed,
            stop=stop or (), stop_token_ids=stop_token or (), adapter=adapter, priority=priority, tenant=tenant,
            session=session, parent=parent, policy=policy, delay=delay, deadline=deadline, durability=durability,
            durability_timeout=durability_timeout, **more,
        )  # fmt: skip
        if detach:
            typer.echo(json.dumps({"id": job.id}) if as_json else job.id)
        elif as_json:
            _show_result(job, as_json=True)
        else:
            typer.echo(job.id, err=True)
            _show_stream(job, after=0, as_json=False)


def embed(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of a model that embeds, or NAME@VERSION.")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="What to embed; default: each line of stdin.")
    ] = None,
    id: Annotated[str | None, typer.Option("--id", help="MODEL/SLUG; the same id and texts are the same job.")] = None,
    priority: Annotated[str, typer.Option(help="interactive, normal or batch.")] = "normal",
    tenant: Annotated[str, typer.Option(help="For whom; tenants take turns by what their jobs cost.")] = "",
    deadline: Annotated[float | None, typer.Option(help="Seconds after which it ends, done or not.")] = None,
    durability: DurabilityOption = Durability.QUEUE.value,
    durability_timeout: DurabilityTimeoutOption = TIMEOUT_S,
    detach: Annotated[bool, typer.Option("--detach", help="Print the id and leave.")] = False,
    as_json: JsonOption = False,
    redis: UrlOption = None,
) -> None:
    """Embed texts, in one job, and print one vector a line, in the order of the texts.

    Examples:

      headpond embed embedder "a first text" "a second one"

      headpond embed embedder --json < lines.txt | jq '.embeddings[0]'
    """
    wanted = texts if texts else _lines_of_stdin()
    with Client(redis) as client:
        job = client.embed(
            model, wanted, id=id, priority=priority, tenant=tenant, deadline=deadline, durability=durability,
            durability_timeout=durability_timeout,
        )  # fmt: skip
        if detach:
            typer.echo(json.dumps({"id": job.id}) if as_json else job.id)
        else:
            if not as_json:
                typer.echo(job.id, err=True)
            _show_result(job, as_json=as_json)


def watch(
    job: JobArgument,
    after: Annotated[int, typer.Option(help="How many tokens you have already.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON for each chunk, then the result.")] = False,
    redis: UrlOption = None,
) -> None:
    """Show a job's tokens as they come, from any point on.

    Example:  headpond watch chat/order-17 --after 40
    """
    with Client(redis) as client:
        _show_stream(client.job(job), after=after, as_json=as_json)


def result(
    job: JobArgument,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait; default: until it ends.")] = None,
    from_storage: Annotated[
        bool, typer.Option("--from-storage", help="Read it from S3, also once Redis has forgotten it.")
    ] = False,
    as_json: JsonOption = False,
    redis: UrlOption = None,
) -> None:
    """Wait for a job's end and print its text.

    Example:  headpond result chat/order-17 --json
    """
    if from_storage:
        _print_result(_stored_result(JobId.parse(job)), as_json=as_json)
        return
    with Client(redis) as client:
        _show_result(client.job(job), as_json=as_json, timeout=timeout)


def cancel(job: JobArgument, as_json: JsonOption = False, redis: UrlOption = None) -> None:
    """End a job that has not ended yet.

    Example:  headpond cancel chat/order-17
    """
    with Client(redis) as client:
        state = client.job(job).cancel()
    typer.echo(json.dumps({"id": job, "state": state.value}) if as_json else f"{job} is {state.value}")


COMMANDS = (submit, embed, watch, result, cancel)
NAMES = frozenset(command.__name__ for command in COMMANDS)


def register(app: typer.Typer) -> None:
    for command in COMMANDS:
        app.command()(command)


def _from_stdin(*, field: str = "prompt") -> str:
    raw = sys.stdin.buffer.read(MAX_BODY_BYTES + 1)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(raw) > MAX_BODY_BYTES and error.start > MAX_BODY_BYTES - 4:
            return raw.decode("utf-8", errors="ignore")  # Cut amid a character: too long anyway, and said so later.
        raise InvalidRequest(
            f"stdin is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}. Convert it with: iconv -t utf-8",
            field=field,
        ) from None


def _lines_of_stdin() -> list[str]:
    text = _from_stdin(field="input").removesuffix("\n")
    if not text:
        raise InvalidRequest("give a text: as an argument, or a line each on stdin; stdin is empty", field="input")
    return text.split("\n")


def _show_stream(job: Job, *, after: int, as_json: bool) -> None:
    with told_if_unserved(job):
        for chunk in job.stream(after=after):
            if as_json:
                typer.echo(json.dumps(_chunk_fields(chunk)))
            else:
                if chunk.restarted:
                    typer.echo(f"\n[what was shown from token {chunk.offset} on is void]", err=True)
                write_text(chunk.text)
    if not as_json:
        write_text("\n")
    if as_json:
        _show_result(job, as_json=True)
    else:
        job.result()


def _show_result(job: Job, *, as_json: bool, timeout: float | None = None) -> None:
    try:
        with told_if_unserved(job):
            found = job.result(timeout)
        _print_result(found, as_json=as_json)
    except JobEnded as error:
        if as_json:
            typer.echo(json.dumps(_result_fields(error.result)))
        raise


def _print_result(result: Result, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_result_fields(result)))
    elif result.embeddings is not None:
        for vector in result.embeddings:
            typer.echo(json.dumps(vector))
    else:
        write_text(result.text + "\n")
    answer(result)


def _stored_result(job_id: JobId) -> Result:
    for point in entry_points(group=RESULTS_GROUP):
        read: Any = point.load()
        found = read(job_id)
        if not isinstance(found, Result):
            raise TypeError(f"the entry point {point.value} gave {type(found).__name__}")
        return found
    raise MissingFeature("Reading from storage needs the worker side: pip install 'headpond[worker]'")


def _chunk_fields(chunk: Chunk) -> dict[str, Any]:
    return {
        "offset": chunk.offset,
        "text": chunk.text,
        "token_ids": list(chunk.token_ids),
        "restarted": chunk.restarted,
    }


def _result_fields(result: Result) -> dict[str, Any]:
    usage, timings = result.usage, result.timings
    return {
        "id": result.id,
        "state": result.state.value,
        "text": result.text,
        "token_ids": list(result.token_ids),
        "finish_reason": result.finish_reason.value,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
        "timings": {
            "queued_s": timings.queued_s,
            "first_token_s": timings.first_token_s,
            "generate_s": timings.generate_s,
            "tokens_per_s": timings.tokens_per_s,
        },
        "model": result.model,
        "version": result.version,
        "attempts": result.attempts,
        "durable": result.durable,
        "error": result.error,
        "embeddings": result.embeddings,
        "commit": result.commit,
        "turn": None if result.turn is None else result.turn.fields(),
        "provenance": None if result.provenance is None else result.provenance.fields(),
    }
