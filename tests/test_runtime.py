"""Changes of what runs, on real processes: duplicates, restarts, reloads, single models, names of two deployments."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

import marked_engine
from conftest import Deployment, eventually
from deployment_town import Place, Town, town_of
from example_engine import on_path
from headpond import Client, Job
from headpond.errors import ConfigError, DeploymentError, NameTaken, UnknownModel
from headpond.jobs import JobState
from headpond.workers import WorkerState
from headpond_workers.naming.identity import IDENTITY_FILE
from headpond_workers.naming.instance_lock import instance_lock
from headpond_workers.supervision.applied import APPLIED_FILE
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from headpond_workers.supervision.embedded_valkey import ValkeyProcess, running_valkey
from headpond_workers.supervision.run_file import read_run_file
from headpond_workers.supervision.shell_secrets import SECRETS_FILE
from headpond_workers.supervision.single_models import SingleModels
from headpond_workers.supervision.stopped import STOPPED_FILE

COMMON = "[defaults]\nlease_s = 2\ndrain_timeout_s = 20\n"
CHAT = '[models.chat]\nengine = "scripted"\ntokens_per_s = 90\nslots = 2\nanswer_tokens = 400\n'
CODE = '[models.code]\nengine = "scripted"\ntokens_per_s = 200\n'
BOTH = COMMON + CHAT + CODE


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@pytest.fixture
def town(valkey: ValkeyProcess, seaweed: SeaweedProcess, tmp_path: Path) -> Iterator[Town]:
    with town_of(valkey, seaweed, tmp_path) as town:
        yield town


@pytest.fixture(scope="module")
def lasting_town(seaweed: SeaweedProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """One for the tests that leave a deployment as they found it: its start is most of what they would take."""
    folder = tmp_path_factory.mktemp("town")
    with running_valkey(folder / "valkey") as valkey, town_of(valkey, seaweed, folder) as town:
        town.place("only", BOTH)
        yield town


@pytest.fixture
def place(lasting_town: Town) -> Place:
    """A deployment with the models chat and code, each with one worker that is ready."""
    (place,) = lasting_town.places
    place.configure(BOTH)
    (place.folder / ".headpond" / STOPPED_FILE).unlink(missing_ok=True)
    place.up()
    place.lines.clear()
    return place


def begun(town: Town, client: Client, prompt: str, *, model: str = "chat", max_tokens: int = 120) -> Job:
    """A job that has tokens already."""
    job = client.submit(model, prompt, max_tokens=max_tokens)
    queue = town.server().queue(model)
    eventually(lambda: (row := queue.run_row(job.id)) and row.offset > 3, what="its first tokens")
    return job


# ---- duplicates


@pytest.mark.slow
def test_a_second_worker_of_one_name_leaves_the_first_and_its_job_alone(deployment: Deployment, client: Client) -> None:
    deployment.configure(f"[defaults]\nlease_s = 1\n{CHAT}")
    first = deployment.start("chat", "chat-0")
    job = client.submit("chat", "a long answer", max_tokens=150)
    queue = deployment.queue("chat")
    eventually(lambda: (row := queue.run_row(job.id)) and row.offset > 3, what="its first tokens")
    (before,) = queue.workers()

    second = deployment.start("chat", "chat-0", ready=False)
    assert second.wait() == 78
    said = second.log.read_text()
    assert f"the worker chat-0 runs already (pid {first.pid}), and goes on" in said
    assert "Traceback" not in said
    (row,) = queue.workers()
    assert (row.boot, row.pid, row.state) == (before.boot, first.pid, WorkerState.READY)

    result = job.result(timeout=30)
    assert (result.state, result.attempts, len(result.token_ids)) == (JobState.FINISHED, 1, 150)
    # A killed one may be replaced at once: the kernel gave its name back.
    first.kill()
    deployment.start("chat", "chat-0")


@pytest.mark.slow
def test_a_second_up_and_a_second_deployment_leave_a_running_job_alone(town: Town) -> None:
    place = town.place("first", BOTH)
    place.up()
    before = place.pids()
    with town.client() as client:
        job = begun(town, client, "undisturbed", max_tokens=300)

        again = place.headpond("up", "--detach")
        assert again.returncode == 0, again.stderr
        assert "supervisord runs already" in again.stderr

        # Another folder, as on another machine: it means another model by the name.
        other = town.place("second", COMMON + '[models.chat]\nengine = "scripted"\nanswer_tokens = 9\n')
        refused = other.headpond("up", "--detach")
        assert refused.returncode == 2
        assert "answer_tokens: 9 here, 400 there" in refused.stderr
        assert f"{place.deployment.identity().id} (" in refused.stderr
        assert str(place.folder) in refused.stderr
        assert "Traceback" not in refused.stderr
        assert other.processes() == []
        # A worker started by hand is refused likewise, and writes nothing into the queue.
        rows = town.server().queue("chat").workers()
        by_hand = other.headpond("worker", "chat")
        assert by_hand.returncode == 78
        assert "answer_tokens: 9 here" in by_hand.stderr
        assert {row.boot for row in town.server().queue("chat").workers()} == {row.boot for row in rows}

        # It means the same, with other slots: it shares the queue, under the same names of instances.
        other.configure(COMMON + CHAT.replace("slots = 2", "slots = 3"))
        other.up()
        assert town.holders("chat") == {place.deployment.identity().id, other.deployment.identity().id}
        assert sorted(row.slots for row in town.ready("chat")) == [2, 3]
        assert other.pids().keys() == {"chat-0"}
        listed = {m["name"]: m for m in json.loads(other.command("models", "list", "--json").stdout)["models"]}
        assert listed["chat"]["workers"] == {"ready": 2, "wanted": 1}
        assert listed["code"]["workers"] == {"ready": 1, "wanted": None}
        assert [h["folder"] for h in listed["code"]["held_by"]] == [str(place.folder)]
        assert job.result(timeout=30).attempts == 1
        assert place.pids() == before

        # Neither may now change what the name means.
        place.configure(BOTH.replace("answer_tokens = 400", "answer_tokens = 9"))
        with pytest.raises(NameTaken, match="answer_tokens: 9 here"):
            place.deployment.reload()
        assert place.pids() == before
        # A machine that is gone for good: supervisord and all that it ran are killed.
        # At once, as power goes: nobody is started again, and nobody hears that another one has ended.
        processes = other.processes()
        for process in processes:
            process.suspend()
        for process in processes:
            process.kill()
        gone = other.deployment.identity().id
        lately = place.command("models", "forget", "chat", "--deployment", gone)
        assert "heard of in the last 15 s" in lately.stderr
        # Time passes.
        (boot,) = {row.boot for row in town.server().queue("chat").workers() if row.deployment == gone}
        town.server().read("HSET", "headpond:{chat}:workers", f"{boot}:seen", 1)
        assert place.command("models", "forget", "chat", "--deployment", gone).returncode == 0
        place.deployment.reload()
        place.deployment.wait_ready(timeout_s=60)
        assert town.holders("chat") == {place.deployment.identity().id}
        assert len(client.submit("chat", "short").result(timeout=30).token_ids) == 9
    place.deployment.down()
    assert town.holders("chat") == town.holders("code") == set()


def test_a_name_given_twice_in_the_configuration_is_an_error_and_starts_nothing(tmp_path: Path) -> None:
    place = Place(Town(None, "", tmp_path), tmp_path)  # type: ignore[arg-type]
    place.config.write_text(BOTH + CHAT)
    done = place.headpond("up", "--detach")
    assert done.returncode == 2
    assert "chat" in done.stderr
    assert "at line" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".headpond").exists()


# ---- restart, stop and start


@pytest.mark.slow
def test_a_restarted_model_comes_back_and_answers_what_was_submitted_meanwhile(place: Place) -> None:
    town = place.town
    before = place.pids()
    with town.client() as client:
        running = begun(town, client, "amid it", max_tokens=200)
        jobs = [client.submit("chat", f"meanwhile {n}", max_tokens=20) for n in range(10)]
        done = place.command("models", "restart", "chat", "--json")
        assert done.returncode == 0, done.stderr
        (model,) = json.loads(done.stdout)["models"]
        after = place.pids()
        assert model == {"name": "chat", "workers": [{"instance": "chat-0", "pid": after["chat-0"]}]}
        assert after["chat-0"] != before["chat-0"]
        assert after["code-0"] == before["code-0"]
        assert running.result(timeout=30).attempts == 1  # it drained
        assert all(job.result(timeout=30).state is JobState.FINISHED for job in jobs)


@pytest.mark.slow
def test_a_stopped_model_stays_stopped_until_it_is_started_and_loses_no_job(place: Place) -> None:
    town = place.town
    before = place.pids()
    with town.client() as client:
        running = begun(town, client, "amid it")
        assert place.command("models", "stop", "chat").returncode == 0
        assert running.result(timeout=30).attempts == 1
        assert place.pids() == {"code-0": before["code-0"]}
        assert town.holders("chat") == set()
        waiting = client.submit("chat", "while it is stopped", max_tokens=10)

        place.up()  # nor does this start it
        assert place.pids() == {"code-0": before["code-0"]}
        assert "chat is stopped; start it with: headpond models start chat" in place.lines
        with pytest.raises(DeploymentError, match="chat is stopped"):
            place.deployment.scale({"chat": 2})
        listed = json.loads(place.command("models", "list", "--json").stdout)["models"]
        assert [(m["name"], m["state"], m["workers"]) for m in listed] == [
            ("chat", "stopped", {"ready": 0, "wanted": 1}),
            ("code", "ready", {"ready": 1, "wanted": 1}),
        ]
        assert listed[0]["held_by"] == []
        code = listed[1]
        assert code["engine"] == "scripted"
        assert code["spec"] == "scripted 8192 tokens"
        assert code["devices"] == ["cpu"]
        assert code["rss_bytes"] > 20 << 20
        assert code["versions"][0].startswith("local-")
        assert [h["deployment"] for h in code["held_by"]] == [place.deployment.identity().id]

        assert waiting.state() is JobState.QUEUED
        started = place.command("models", "start", "chat")
        assert started.returncode == 0, started.stderr
        assert "chat-0 ready" in started.stderr
        assert waiting.result(timeout=30).state is JobState.FINISHED
        assert place.pids()["code-0"] == before["code-0"]
        table = place.command("models", "list")
        assert "scripted 8192 tokens" in table.stdout
        assert place.command("models", "start", "chap").returncode == 2

        # The last word on a name: nobody serves it, and nothing waits.
        assert "headpond models stop code" in place.command("models", "forget", "code").stderr
        assert place.command("models", "stop", "code").returncode == 0
        assert place.command("models", "forget", "code").returncode == 0
        assert list(town.server().models()) == ["chat"]
    with town.client() as fresh, pytest.raises(UnknownModel, match="code"):
        fresh.submit("code", "to nobody")


# ---- reload


@pytest.mark.slow
def test_changed_slots_are_shown_then_applied_and_no_job_is_lost(place: Place) -> None:
    town = place.town
    before = place.pids()
    with town.client() as client:
        running = begun(town, client, "amid it", max_tokens=200)
        jobs = [client.submit("chat", f"waiting {n}", max_tokens=30) for n in range(12)]
        place.configure(BOTH.replace("slots = 2", "slots = 4"))
        shown = place.command("reload", "--dry-run")
        assert shown.returncode == 0, shown.stderr
        assert shown.stderr.splitlines() == ["~ models.chat.slots: 2 -> 4  (restart)"]
        assert place.pids() == before
        # One worker more would have other settings than its sibling.
        with pytest.raises(DeploymentError, match=r"models\.chat\.slots has changed .* headpond reload"):
            place.deployment.scale({"chat": 2})
        with pytest.raises(DeploymentError, match="headpond reload"):
            SingleModels(place.deployment).start(["chat"])

        applied = place.command("reload", "--json")
        assert applied.returncode == 0, applied.stderr
        assert json.loads(applied.stdout) == {
            "added": [], "removed": [], "notices": [], "applied": True,
            "changed": [{"table": "models.chat", "key": "slots", "old": 2, "new": 4, "restart": True}],
        }  # fmt: skip
        after = place.pids()
        assert after["code-0"] == before["code-0"]
        assert after["chat-0"] != before["chat-0"]
        assert [row.slots for row in town.ready("chat")] == [4]
        assert running.result(timeout=30).attempts == 1
        assert all(job.result(timeout=30).state is JobState.FINISHED for job in jobs)
        assert "Nothing differs" in place.command("reload").stderr
        assert place.pids() == after


@pytest.mark.slow
def test_models_come_and_go_and_settings_of_a_queue_hold_without_a_restart(place: Place) -> None:
    town = place.town
    before = place.pids()
    place.configure(
        COMMON + CHAT + "max_queued = 3\nretention_s = 77\ntenant_weights = {acme = 3.0}\nworkers = 2\n"
        '[models.fresh]\nengine = "scripted"\n'
    )
    changes = place.deployment.reload()
    assert changes.lines({"fresh": 1}) == [
        "+ models.fresh: 1 worker",
        "- models.code",
        "~ models.chat.max_queued: 0 -> 3",
        "~ models.chat.retention_s: 86400.0 -> 77.0",
        "~ models.chat.tenant_weights.acme: none -> 3.0",
        "~ models.chat.workers: 1 -> 2",
    ]
    place.deployment.wait_ready(timeout_s=60)
    after = place.pids()
    assert after.keys() == {"chat-0", "chat-1", "fresh-0"}
    assert after["chat-0"] == before["chat-0"]
    assert town.server().models()["chat"].max_queued == 3
    assert town.holders("code") == set()
    queue = town.server().queue("chat")
    eventually(lambda: queue.meta()["retention_ms"] == "77000", what="the new retention")
    eventually(lambda: "reloaded model=chat" in (place.deployment.logs.folder / "chat-0.log").read_text())
    assert queue.server.read("HGETALL", "headpond:{chat}:weights") == {b"acme": b"3.0"}


@pytest.mark.slow
def test_a_path_that_is_not_there_is_refused_before_a_worker_drains(place: Place) -> None:
    before = place.pids()
    place.configure(COMMON + CHAT + 'path = "nofile.json"\n' + CODE)
    for words in (["reload"], ["reload", "--dry-run"], ["models", "restart", "chat"], ["up", "--detach"]):
        refused = place.command(*words)
        assert refused.returncode == 2, (words, refused.stderr)
        message = f"headpond.toml:19: [models.chat] path: there is no {place.folder}/nofile.json"
        assert message in refused.stderr, (words, refused.stderr)
        assert "not looked at" not in refused.stderr
        assert place.pids() == before
    # What is wrong with one model is no reason to leave another one down.
    restarted = place.command("models", "restart", "code")
    assert restarted.returncode == 0, restarted.stderr
    assert "1 worker ready" in restarted.stderr
    assert place.pids()["chat-0"] == before["chat-0"]
    # A model without workers here needs no weights here.
    place.configure(COMMON + CHAT + 'path = "nofile.json"\nworkers = 0\n' + CODE)
    shown = place.command("reload", "--dry-run")
    assert shown.returncode == 0, shown.stderr


@pytest.mark.slow
def test_a_wrong_configuration_changes_nothing_and_a_model_goes_on_being_served_as_it_is_changed(town: Town) -> None:
    two = BOTH.replace("slots = 2", "slots = 2\nworkers = 2")
    place = town.place("only", two)
    place.up()
    before = place.pids()
    applied = (place.folder / ".headpond" / APPLIED_FILE).read_text()

    place.configure(two.replace("slots = 2", "slotz = 3"))
    wrong = place.headpond("reload")
    assert wrong.returncode == 2
    assert "unknown key 'slotz'" in wrong.stderr
    assert place.config.read_text() != two
    place.configure(two)
    assert place.pids() == before
    assert (place.folder / ".headpond" / APPLIED_FILE).read_text() == applied

    # A model that cannot load with its new settings: the second worker keeps its old ones.
    (place.folder / "no.gguf").write_bytes(b"no weights")
    place.configure(f'{COMMON}[models.chat]\nengine = "llamacpp"\npath = "no.gguf"\nworkers = 2\n{CODE}')
    with pytest.raises(DeploymentError, match=r"chat-0 failed: .*no\.gguf[\s\S]*left as they are"):
        place.deployment.reload()
    assert {name: pid for name, pid in place.pids().items() if name != "chat-0"} == {
        name: pid for name, pid in before.items() if name != "chat-0"
    }
    with town.client() as client:
        assert client.submit("chat", "still served", max_tokens=5).result(timeout=30).state is JobState.FINISHED

        # A sound change: one worker at a time, so that somebody is always ready.
        place.configure(two.replace("slots = 2", "slots = 5"))
        served: list[int] = []
        done = threading.Event()

        def watch() -> None:
            queue = town.server().queue("chat")
            while not done.is_set():
                served.append(sum(row.state is WorkerState.READY for row in queue.workers()))
                time.sleep(0.01)  # not to be waited for: how often to look

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            place.deployment.reload()
            place.deployment.wait_ready(timeout_s=60)
        finally:
            done.set()
            watching.join()
        assert min(served) >= 1
        assert [row.slots for row in town.ready("chat")] == [5, 5]
        assert place.pids()["code-0"] == before["code-0"]


@pytest.mark.slow
def test_secrets_are_renewed_from_files_and_those_of_another_shell_are_told_and_no_value_is_written(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = (town.folder / "access-secret").read_text()
    town.servers = town.servers.replace(f'{{file = "{town.folder}/access-secret"}}', '{env = "TOWN_ACCESS"}')
    token = town.folder / "token"
    token.touch(mode=0o600)
    token.write_text("first of two tokens")
    for name, value in marked_engine.install(town.folder / "installed").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOWN_ACCESS", key)
    table = f'[models.gpt]\nengine = "marked"\nmark = "m"\ntoken = {{file = "{token}"}}\n'
    with on_path(town.folder / "installed"):
        place = town.place("only", COMMON + CODE + table)
        place.up()
        before = place.pids()

        def renewals() -> list[str]:
            log = (place.deployment.logs.folder / "gpt-0.log").read_text()
            return [line.rpartition("=")[2] for line in log.splitlines() if "renewed sha256" in line]

        token.write_text("second of two tokens")
        done = place.command("reload")
        assert done.stderr.splitlines()[:2] == [
            "Nothing differs from what runs.",
            "gpt-0 reads its configuration again",
        ]
        digests = [sha256(f"{which} of two tokens".encode()).hexdigest() for which in ("first", "second")]
        eventually(lambda: renewals() == digests, what="the new secret")

        told = place.command("reload", "--json", environment={"TOWN_ACCESS": "a new and secret value"})
        assert told.returncode == 0, told.stderr
        (notice,) = json.loads(told.stdout)["notices"]
        assert "TOWN_ACCESS had another value when supervisord was started" in notice
        assert "headpond down, then headpond up" in notice
        assert place.pids() == before
    state = place.folder / ".headpond"
    for name in (IDENTITY_FILE, APPLIED_FILE, SECRETS_FILE):
        assert (state / name).stat().st_mode & 0o777 == 0o600
    secrets = ("secret value", "of two tokens", key)
    assert not any(secret in told.stdout + told.stderr for secret in secrets)
    for path in state.rglob("*"):
        if path.is_file():
            assert not any(secret in path.read_text(errors="replace") for secret in secrets), path
    rows = town.server().read("HGETALL", "headpond:models")
    assert not any(word in part for part in rows for word in (b"token", b"TOWN_ACCESS", *map(str.encode, secrets)))


@pytest.mark.slow
def test_a_reload_waits_for_the_command_before_it(place: Place) -> None:
    town = place.town
    with town.client() as client:
        running = begun(town, client, "amid it", max_tokens=150)
        place.configure(COMMON + CHAT + CODE)
        failures: list[BaseException] = []

        def restart() -> None:
            try:
                SingleModels(place.deployment).restart(["chat"])
            except BaseException as error:  # noqa: BLE001 - the test raises it
                failures.append(error)

        restarting = threading.Thread(target=restart)
        restarting.start()
        eventually(lambda: any("chat-0 stopping" in line for line in place.lines), what="the restart")
        place.deployment.reload()
        assert not restarting.is_alive() or not failures
        restarting.join(30)
        assert failures == []
        place.deployment.wait_ready(timeout_s=60)
        assert place.pids().keys() == {"chat-0", "code-0"}
        assert running.result(timeout=30).attempts == 1


# ---- workers by hand


@pytest.mark.slow
def test_the_last_worker_by_hand_frees_its_name_and_one_that_lost_it_leaves(
    deployment: Deployment, client: Client
) -> None:
    deployment.configure(f"[defaults]\nlease_s = 1\n{CHAT}")
    first, second = deployment.start("chat", "one"), deployment.start("chat", "two")
    server = deployment.server()
    (holder,) = server.models()["chat"].holders
    assert holder.folder == str(deployment.folder)
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    assert server.models()["chat"].holders == (holder,)
    # While its worker is stopped, an operator frees the name, and another deployment means another model by it.
    second.signal(signal.SIGSTOP)
    server.release(holder.deployment, ["chat"])
    other = deployment.folder / "other"
    other.mkdir()
    config = other / "headpond.toml"
    config.write_text(deployment.config.read_text().replace("answer_tokens = 400", "answer_tokens = 7"))
    deployment.config.rename(deployment.folder / "kept.toml")
    deployment.config.symlink_to(config)
    third = deployment.start("chat", "three")
    second.signal(signal.SIGHUP)  # it looks at once, and not within 10 s
    second.signal(signal.SIGCONT)
    assert second.wait() == 78
    assert "name_lost model=chat" in second.log.read_text()
    assert len(client.submit("chat", "to the new one").result(timeout=30).token_ids) == 7
    third.signal(signal.SIGTERM)
    assert third.wait() == 0
    assert server.models()["chat"].holders == ()


@pytest.mark.slow
def test_workers_of_one_service_may_change_its_spec_by_a_rolling_update(deployment: Deployment) -> None:
    """In containers each has a folder of its own, and a chosen id in common."""
    service = {"HEADPOND_DEPLOYMENT": "shop"}
    deployment.configure(CHAT)
    old = deployment.start("chat", "old", environment=service)
    (holder,) = deployment.server().models()["chat"].holders
    assert holder.deployment == "shop"
    deployment.configure(CHAT.replace("answer_tokens = 400", "answer_tokens = 7"))
    deployment.start("chat", "new", environment=service)
    assert '"answer_tokens":7' in deployment.server().models()["chat"].spec
    # The old one goes on until it is told to leave, and then leaves the name to the new one.
    old.signal(signal.SIGTERM)
    assert old.wait() == 0
    assert [h.deployment for h in deployment.server().models()["chat"].holders] == ["shop"]
    deployment.configure(CHAT)
    stranger = deployment.start("chat", "stranger", ready=False)
    assert stranger.wait() == 78
    assert "answer_tokens: 400 here, 7 there" in stranger.log.read_text()


def test_an_instance_name_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    for name in ("../escape", "", "a/b", ".hidden", "x" * 101):
        with pytest.raises(ConfigError, match="such as chat-0"), instance_lock(tmp_path, name):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_down_frees_names_also_after_everything_was_killed(town: Town) -> None:
    place = town.place("only", COMMON + CHAT)
    place.up()
    run = read_run_file(place.folder / ".headpond")
    assert run is not None
    for process in place.processes():
        process.kill()
    assert town.holders("chat") == {place.deployment.identity().id}
    eventually(lambda: place.processes() == [], what="the end of its processes")
    assert place.deployment.down() is False
    assert town.holders("chat") == set()
