"""All of Redis is lost amid work, and restored: everything is killed, the data are deleted, `headpond restore` is run,
killed at random moments and run again, and what came back is judged."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fold_rules import compare, missing
from loss_rules import Held, Loss, judge_loss, judge_reader
from process_rules import judge_process
from programs import COMMAND
from redis_image import RedisImage, read_image
from state_customers import Losses, PatientReader, Producer, found_of
from state_plan import Blow
from state_storm import StateStorm
from state_town import StateTown
from town import MODEL, ChaosError

from headpond.connections import RedisAddress
from headpond.errors import RedisUnavailable
from headpond.jobs import JobState
from headpond.queue import Server
from headpond_workers.persistence.items import JobItem
from headpond_workers.persistence.segments import HeadAt
from headpond_workers.persistence.state_point import StatePoint
from headpond_workers.supervision.embedded_valkey import ValkeyProcess

RESTORE_TIMEOUT_S = 180.0
STILL_S = 1.0
"""For so long a head has to stay as it is, once nobody is left who commits: what was on its way has arrived."""
MOST_KILLS = 4
"""Of one restore."""


@dataclass(slots=True)
class Losing:
    """losses, kept, rows: of each loss so far; rows as in the record, held readers by (reader, place)."""

    town: StateTown
    storm: StateStorm
    producers: Sequence[Producer]
    readers: Sequence[PatientReader]
    told: Losses
    folder: Path
    rng: random.Random
    losses: list[Loss] = field(default_factory=list)
    held: list[list[tuple[PatientReader, int, Held]]] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    ended_before: Counter[str] = field(default_factory=Counter)
    """Ended jobs that the last restore brought back, by state: the queue's counters begin anew."""
    wrong: list[str] = field(default_factory=list)

    def lose(self) -> None:
        """Raises HeadpondError if the run cannot go on."""
        town, number = self.town, len(self.losses) + 1
        at_s = self.storm.seconds
        with self.told.gate:
            self.told.begun, self.told.under_way = self.told.begun + 1, True
            self._kill_all()
            killed_ms = time.time_ns() // 1_000_000
            self.storm.end_outage()
            head = self._last_head()
            known = self._known()
            image = self._image(number)
            self.wrong += (f"loss {number}: {what}" for what in compare(town.store.items(head.head), image))
            self.wrong += (f"loss {number}: {what}" for what in missing(known, image))
            self.held.append([(r, *held) for r in self.readers if (held := r.held()) is not None])
            town.lose_data()
            emptied_ms = time.time_ns() // 1_000_000
            town.valkey.start()
            told, kills = self._restore()
            restored = self._restored_jobs()
            self.ended_before = Counter(item.state.value for item in restored if item.state is not None)
            known |= self._known()
            found = found_of(town.queue, sorted(known))
            loss = Loss(
                head_ms=head.head.as_of_ms,
                stated_ms=int(told.get("as_of_ms", head.head.as_of_ms)),
                emptied_ms=emptied_ms,
                restored_ended=self.ended_before.total(),
                stored={item.id: len(item.ids) for item in restored if item.state is None},
                durable={i: job.result for i, job in image.jobs.items() if job.row.durable and job.result},
            )
            self.losses.append(loss)
            self.wrong += (f"loss {number}: {what}" for what in judge_loss(loss, known, found))
            gone = sum(one.state is None for one in found.values())
            for producer in self.producers:
                producer.take_stock(found)
            self.told.under_way = False
        waiting = sum(not job.row.state.ended for job in image.jobs.values())
        running = sum(job.row.state is JobState.RUNNING for job in image.jobs.values())
        self.rows.append(
            [round(at_s, 1), len(image.jobs), waiting, running, len(image.tail), killed_ms - loss.stated_ms, gone,
             len(loss.durable), len(self.held[-1]), kills, round(self.storm.seconds - at_s, 1)]
        )  # fmt: skip
        self.storm.progress(
            f"loss {number}: {len(image.jobs)} jobs, {waiting} of them not ended; state of "
            f"{killed_ms - loss.stated_ms} ms before; {gone} gone; the restore was killed {kills} times"
        )

    def judge_readers(self) -> list[str]:
        """Once all readings have ended."""
        found: list[str] = []
        for number, (loss, held) in enumerate(zip(self.losses, self.held, strict=True), start=1):
            for reader, place, one in held:
                reading = reader.readings[place] if place < len(reader.readings) else None
                if reading is not None and reading.whole:
                    found += (f"loss {number}: {what}" for what in judge_reader(loss, one, reading.chunks))
        return found

    def _known(self) -> dict[str, Any]:
        return {job_id: one for producer in self.producers for job_id, one in producer.known().items()}

    def _kill_all(self) -> None:
        town, storm = self.town, self.storm
        rows, journal = town.running(), town.journal_length()
        boots = {}
        with suppress(RedisUnavailable):  # then nothing counts
            boots = {row.pid: row.boot for row in town.queue.workers()}
        for place in town.workers:
            if place.lives:
                boot = boots.get(place.pid)
                storm.note(Blow.WORKER, sum(row.worker == boot for row in rows), target=place.number)
        for place in town.persisters:
            if place.lives:
                storm.note(Blow.PERSISTER, journal, target=place.number)
        storm.note(Blow.VALKEY, len(rows))
        town.kill_all()

    def _last_head(self) -> HeadAt:
        """Once what was on its way to storage has arrived. Raises ChaosError, StorageUnavailable."""
        until = time.monotonic() + 60
        before = None
        while time.monotonic() < until:
            at = self.town.store.read_head()
            if at is not None and before is not None and at.etag == before.etag:
                return at
            before = at
            time.sleep(STILL_S)
        raise ChaosError("The head in storage moved though no persister was alive, or there is none.")

    def _image(self, number: int) -> RedisImage:
        """What the dead Valkey held, by a server on a copy of its data."""
        folder = self.folder / f"image-{number}"
        copy = ValkeyProcess(folder)
        self.town.keep_data(folder)
        with copy:
            server = Server(RedisAddress(copy.url, "scripts/chaos state"))
            try:
                return read_image(server.queue(MODEL, storage=True))
            finally:
                server.close()

    # ---- the restore

    def _restored_jobs(self) -> list[JobItem]:
        """What the last restore put in: it left a snapshot of that. Raises ChaosError, StorageUnavailable."""
        store = self.town.store
        at = store.read_head()
        snapshot = None if at is None else store.snapshot(at.head)
        if snapshot is None:
            raise ChaosError("A restore has ended, and storage has no snapshot of what it restored.")
        return [item for item in StatePoint(store, snapshot=snapshot).items() if isinstance(item, JobItem)]

    def _restore(self) -> tuple[dict[str, Any], int]:
        """Run it, kill it, and again, until the queue is open. Returns what it said, {} if it was killed just after it
        had opened it, and how often it was killed amid its work."""
        town, storm = self.town, self.storm
        planned, kills = self.rng.randint(1, MOST_KILLS), 0
        until = time.monotonic() + RESTORE_TIMEOUT_S
        log = self.folder / "restore.log"
        while time.monotonic() < until:
            output = self.folder / f"restore-{len(self.losses)}.json"
            output.unlink(missing_ok=True)
            arguments = ("restore", "--json", "--model", MODEL, "--config", str(town.config))
            process = town.run(COMMAND, arguments, output)
            # After a while in which it may do anything, or soon after it has begun to put jobs in.
            after_begin = self.rng.random() < 0.75
            kill_at = time.monotonic() + self.rng.uniform(0.0, 0.6)
            begun = False
            while not process.ended:
                if begun:
                    time.sleep(0.002)
                else:
                    storm.step()
                if not begun and self._state() == "restoring":
                    begun = True
                    if after_begin:
                        kill_at = time.monotonic() + self.rng.uniform(0.0, 0.05)
                if kills < planned and time.monotonic() >= kill_at and (begun or not after_begin):
                    amid = self._state() == "restoring" and not process.ended
                    process.kill()
                    kills += 1
                    storm.note(Blow.RESTORE, int(amid))
                    break
            process.wait()
            status = process.status()
            process.close()
            said = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
            with log.open("a", encoding="utf-8") as everything:
                everything.write(f"status {status}\n{said}\n")
            if told := _told(said):
                return told, kills
            self.wrong += judge_process("headpond restore", (), said)
            if self._state() == "open":
                return {}, kills
        raise ChaosError(f"The queue was not open {RESTORE_TIMEOUT_S:g} s after the loss; see {log}")

    def _state(self) -> str:
        try:
            return self.town.queue.meta().get("state", "")
        except RedisUnavailable:
            return ""


def _told(said: str) -> dict[str, Any]:
    """Of its one model; {} if it has not said all."""
    for line in said.split("\n"):
        if line.startswith('{"dry_run"'):
            with suppress(ValueError):  # cut off
                models: list[dict[str, Any]] = json.loads(line)["models"]
                return models[0]
    return {}
