"""Every key in Redis, with its type and meaning. The keys of one queue share the hash tag {queue}.

headpond:models                    hash   model name -> document `headpond/model`: what it is, who holds it
headpond:{q}:meta                  hash   state, inc, run_id, storage, lease_ms, last_tick, counters
headpond:{q}:data                  hash   id -> header and packed call; outlives the job until its retention ends
headpond:{q}:run                   hash   id -> run row: state, fence, attempt, gen, offset, tag, ...
headpond:{q}:result                hash   id -> document `headpond/result`
headpond:{q}:ready:<lane>:<band>   zset   id by tag, lowest first
headpond:{q}:delayed               zset   id by time due, ms
headpond:{q}:deadlines             zset   id by deadline, ms
headpond:{q}:leases                zset   id by lease end, ms
headpond:{q}:ended                 zset   id by the time at which all of it is dropped, ms
headpond:{q}:dead                  zset   quarantined id by time, ms
headpond:{q}:wake:<lane>           list   at most one token, there exactly when the lane can be claimed from
headpond:{q}:events:<id>           stream tokens and events of one job
headpond:{q}:journal               stream durable changes, for the persister
headpond:{q}:workers               hash   boot id -> worker row; <boot>:seq -> its last claim
headpond:{q}:held:<boot>           hash   id -> "<seq>:<fence>": the leases that a worker was given
headpond:{q}:spec                  hash   version -> fingerprint of what serves this name
headpond:{q}:struck:<boot>         hash   id -> strikes before the one that this boot's silence gave
headpond:{q}:notice:<boot>         list   at most one token: something became of a job that this worker runs
headpond:{q}:waits                 zset   what ends a wait, by time: "s:<id>", "lane:", "gone:", "back:" and a lane
headpond:{q}:lanes                 set    lanes beside `any` that jobs wait in, or did
headpond:{q}:fair:<band>           zset   tenant by the virtual time up to which its jobs are paid for
headpond:{q}:weights               hash   tenant -> weight
headpond:{q}:streams               zset   ended id by the time at which its stream is dropped, ms
headpond:{q}:attempts              hash   id -> log of leases that ended without an end of the job
headpond:{q}:preempts              zset   batch job that was told to park, by time, ms
headpond:{q}:switch                hash   the queue's copy of an alias, whose turn it is to change, what was refused
headpond:{q}:restored              hash   id -> what was put in from storage, while it is: new, merged or conflict
headpond:{q}:outcomes              hash   <version>:<n> -> how one job ended while a trial was on; <version> -> how many
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

PREFIX = "headpond"
MODELS = f"{PREFIX}:models"
LANE_ANY = "any"
LANE_SUSPECT = "suspect"
PERSISTENCE_QUEUE = "persistence"


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """The keys of one queue, as strings."""

    queue: str

    @property
    def prefix(self) -> str:
        return f"{PREFIX}:{{{self.queue}}}:"

    def named(self, name: str) -> str:
        return self.prefix + name

    def events(self, job_id: str) -> str:
        return f"{self.prefix}events:{job_id}"

    def wake(self, lane: str) -> str:
        return f"{self.prefix}wake:{lane}"

    def notice(self, boot: str) -> str:
        return f"{self.prefix}notice:{boot}"

    def ready(self, lane: str, band: str) -> str:
        return f"{self.prefix}ready:{lane}:{band}"


def lanes_of(version: str, *, own_lane: bool = False) -> list[str]:
    """The lanes that a worker reads. version: of its model; empty for work that has none. own_lane: those of its
    version alone."""
    if own_lane:
        return [version, f"{LANE_SUSPECT}@{version}"]
    if not version:
        return [LANE_ANY, LANE_SUSPECT]
    return [LANE_ANY, version, LANE_SUSPECT, f"{LANE_SUSPECT}@{version}"]


@lru_cache(maxsize=1024)
def queue_keys(queue: str) -> QueueKeys:
    return QueueKeys(queue)
