"""Two models on one server, a thousand mixed jobs, and workers of both killed amid them: nobody sees another's text."""

from __future__ import annotations

import hashlib
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import marked_engine
from conftest import Deployment, WorkerChild, eventually
from headpond import Client
from headpond.jobs import JobState, Priority
from headpond.keys import queue_keys
from headpond.queue import JobQueue

SEED = 20261126
JOBS = 1000
PRODUCERS = 5
KILLS = 16
ADAPTERS = {"alpha": ("formal", "brief"), "beta": ("rhyme",)}
TENANTS = ("", "acme", "umbra", "zephyr")
TABLES = """
[defaults]
lease_s = 1
slots = 4
tokens_per_s = 160
[models.alpha]
engine = "marked"
mark = "the first of two"
adapters = {formal = "sir", brief = "short"}
context_tokens = 2048
[models.beta]
engine = "marked"
mark = "the other one"
adapters = {rhyme = "verse"}
context_tokens = 1024
tenant_weights = {acme = 2.0}
"""


@dataclass(frozen=True, slots=True)
class Order:
    """One job, and who asks for it."""

    id: str
    model: str
    prompt: str
    max_tokens: int
    temperature: float
    seed: int
    adapter: str | None
    tenant: str
    priority: str


def orders() -> list[Order]:
    rng = random.Random(SEED)
    found = []
    for number in range(JOBS):
        model = rng.choice(tuple(ADAPTERS))
        found.append(
            Order(
                id=f"{model}/job-{number}",
                model=model,
                # Few subjects: what differs is often a setting alone.
                prompt=f"Tell me of subject {rng.randrange(40)}.",
                max_tokens=rng.randint(12, 48),
                temperature=rng.choice([0.0, 0.7]),
                seed=rng.randrange(6),
                adapter=rng.choice([None, *ADAPTERS[model]]),
                tenant=rng.choice(TENANTS),
                priority=rng.choice(list(Priority)).value,
            )
        )
    return found


def expected(wanted: list[Order]) -> dict[str, tuple[tuple[int, ...], str]]:
    """What each job is to answer, from an engine in this process."""
    tables = {
        "alpha": {"mark": "the first of two", "adapters": {"formal": "sir", "brief": "short"}, "context_tokens": 2048},
        "beta": {"mark": "the other one", "adapters": {"rhyme": "verse"}, "context_tokens": 1024},
    }
    engines = {
        name: marked_engine.MarkedEngine(
            marked_engine.MarkedModel.model_validate({"engine": "marked", "tokens_per_s": 1e6, "slots": 64, **table})
        )
        for name, table in tables.items()
    }

    def one(order: Order) -> tuple[tuple[int, ...], str]:
        return marked_engine.answer(
            engines[order.model], order.prompt, max_tokens=order.max_tokens, temperature=order.temperature,
            seed=order.seed, adapter=order.adapter,
        )  # fmt: skip

    try:
        with ThreadPoolExecutor(32) as pool:
            return dict(zip((order.id for order in wanted), pool.map(one, wanted), strict=True))
    finally:
        for engine in engines.values():
            engine.close()


@pytest.fixture
def marked(tmp_path: Path) -> dict[str, str]:
    return marked_engine.install(tmp_path / "installed")


class Killer(threading.Thread):
    """Kills workers of both models at random, each only while it holds leases, and starts the next one."""

    def __init__(self, deployment: Deployment, environment: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self._deployment, self._environment = deployment, environment
        self.leaving = threading.Event()
        self.kills = dict.fromkeys(ADAPTERS, 0)
        self.failure: BaseException | None = None
        self._queues = {model: deployment.queue(model) for model in ADAPTERS}
        self._workers = {
            f"{model}-{n}": deployment.start(model, f"{model}-{n}", environment=environment, ready=False)
            for model in ADAPTERS
            for n in range(2)
        }
        for instance, worker in self._workers.items():
            queue = self._queues[instance.partition("-")[0]]
            eventually(lambda queue=queue, worker=worker: boot_of(queue, worker), what=f"{instance} being ready")

    def run(self) -> None:
        rng = random.Random(SEED)
        try:
            while not self.leaving.is_set() and sum(self.kills.values()) < KILLS:
                instance = rng.choice(sorted(self._workers))
                self._strike(instance)
                # Time in which jobs make progress: three faults in a row without any would quarantine one.
                self.leaving.wait(rng.uniform(0.2, 0.7))
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self.failure = error

    def _strike(self, instance: str) -> None:
        model = instance.partition("-")[0]
        queue, worker = self._queues[model], self._workers[instance]
        boot = boot_of(queue, worker)
        if not boot:
            return
        # Stopped first: what it holds now it holds when it dies.
        worker.signal(signal.SIGSTOP)
        held = queue.server.read("HLEN", queue_keys(model).named(f"held:{boot}"))
        if not held:
            worker.signal(signal.SIGCONT)
            return
        worker.kill()
        self.kills[model] += 1
        self._workers[instance] = self._deployment.start(model, instance, environment=self._environment, ready=False)


def boot_of(queue: JobQueue, worker: WorkerChild) -> str:
    """Of a worker that is ready; empty if it is not yet."""
    assert worker.process.poll() is None, worker.log.read_text()[-3000:]
    return next((row.boot for row in queue.workers() if row.pid == worker.pid and row.state == "ready"), "")


class Producer(threading.Thread):
    """Submits its share, a few at a time, reads some streams as they come, and waits for all results."""

    def __init__(self, url: str, share: list[Order]) -> None:
        super().__init__(daemon=True)
        self._url, self._share = url, share
        self.answers: dict[str, tuple[tuple[int, ...], str]] = {}
        self.streamed: dict[str, tuple[tuple[int, ...], str]] = {}
        self.attempts: dict[str, int] = {}
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with Client(self._url) as client:
                jobs = []
                for n, order in enumerate(self._share):
                    job = client.submit(
                        order.model, order.prompt, id=order.id, max_tokens=order.max_tokens, seed=order.seed,
                        temperature=order.temperature, adapter=order.adapter, tenant=order.tenant,
                        priority=order.priority,
                    )  # fmt: skip
                    jobs.append(job)
                    if n % 20 == 0:
                        chunks = list(job.stream())
                        assert not any(chunk.restarted for chunk in chunks)
                        self.streamed[order.id] = (
                            tuple(i for chunk in chunks for i in chunk.token_ids),
                            "".join(chunk.text for chunk in chunks),
                        )
                for job in jobs:
                    result = job.result(timeout=60)
                    assert result.state is JobState.FINISHED
                    assert result.model == job.id.partition("/")[0]
                    self.answers[job.id] = (result.token_ids, result.text)
                    self.attempts[job.id] = result.attempts
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self.failure = error


@pytest.mark.slow
def test_a_thousand_mixed_jobs_on_two_models_survive_kills_and_each_has_its_own_text(
    deployment: Deployment, marked: dict[str, str]
) -> None:
    wanted = orders()
    texts = expected(wanted)
    deployment.configure(TABLES)
    killer = Killer(deployment, marked)
    producers = [Producer(deployment.url, wanted[n::PRODUCERS]) for n in range(PRODUCERS)]
    killer.start()
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join(100)
        assert not producer.is_alive()
    killer.leaving.set()
    killer.join(30)
    failures = [thread.failure for thread in (killer, *producers) if thread.failure is not None]
    assert failures == []

    answers = {job_id: found for producer in producers for job_id, found in producer.answers.items()}
    assert answers.keys() == texts.keys()
    wrong = [job_id for job_id, found in answers.items() if found != texts[job_id]]
    assert wrong == []
    streamed = {job_id: found for producer in producers for job_id, found in producer.streamed.items()}
    assert len(streamed) == PRODUCERS * (JOBS // PRODUCERS // 20)
    assert [job_id for job_id, found in streamed.items() if found != texts[job_id]] == []

    # It was worth something: both models lost workers amid jobs, and the texts tell settings apart.
    assert all(kills >= 3 for kills in killer.kills.values()), killer.kills
    assert sum(attempts > 1 for producer in producers for attempts in producer.attempts.values()) >= 10
    by_prompt: dict[str, set[str]] = {}
    for order in wanted:
        by_prompt.setdefault(f"{order.model} {order.prompt}", set()).add(texts[order.id][1][:40])
    assert min(map(len, by_prompt.values())) > 1
    for model in ADAPTERS:
        counted = deployment.queue(model).depths()
        assert (counted.ready, counted.running, counted.dead) == (0, 0, 0)


@pytest.mark.slow
def test_sighup_has_a_worker_read_its_secret_file_again_and_a_bad_one_is_told_and_changes_nothing(
    deployment: Deployment, client: Client, marked: dict[str, str]
) -> None:
    secret = deployment.folder / "token"
    secret.touch(mode=0o600)
    secret.write_text("the old one")
    table = f'[models.chat]\nengine = "marked"\nmark = "m"\ntoken = {{file = "{secret}"}}\n'
    deployment.configure(table)
    worker = deployment.start("chat", "chat-0", environment=marked)

    def renewals() -> list[str]:
        return [line.rpartition("=")[2] for line in worker.log.read_text().splitlines() if "renewed sha256" in line]

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    assert renewals() == [digest("the old one")]
    secret.write_text("the new one")
    worker.signal(signal.SIGHUP)
    eventually(lambda: renewals()[1:] == [digest("the new one")], what="the new secret")
    secret.unlink()
    worker.signal(signal.SIGHUP)
    eventually(lambda: f"cannot read the secret file {secret}" in worker.log.read_text(), what="the refusal")
    assert len(renewals()) == 2
    deployment.configure(table.replace("mark", "marc"))
    worker.signal(signal.SIGHUP)
    eventually(lambda: "reload_failed model=chat" in worker.log.read_text().rpartition("secret file")[2])
    assert client.submit("chat", "still served", max_tokens=3).result(timeout=20).state is JobState.FINISHED
    assert worker.process.poll() is None
    for text in ("the old one", "the new one"):
        assert text not in worker.log.read_text()
