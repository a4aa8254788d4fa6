"""Q7: what wakes an idle worker, and what becomes of a claim whose reply is lost."""

from __future__ import annotations

import threading

import pytest

from conftest import eventually
from headpond.broker import HeadpondBroker
from headpond.connections import RedisAddress
from headpond.queue import Server
from queue_bench import Bench, entry
from queue_holes.hole import Ground, Hole, LuaCut, PythonCut

BLOCK_S = 0.4
NEVER_S = 4 * BLOCK_S
"""An idle worker looks again after BLOCK_S; one that has not after so long does not."""


def tokens_after_twenty_thousand_submits(ground: Ground) -> object:
    bench = ground.bench()
    for start in range(0, 20_000, 20):
        bench.queue.submit([entry(f"chat/{n}") for n in range(start, start + 20)])
    return bench.wake_tokens()


def blocked_clients(bench: Bench) -> int:
    return sum(c["cmd"] == "blpop" and "b" in c["flags"] for c in bench.raw.client_list())


def peer_beside_two_jobs(ground: Ground) -> object:
    """Whether a second idle worker is woken where two jobs came at once and the first worker has claimed one."""
    bench, _ = ground.own()
    woken: list[bool] = []
    first, peer = bench.queue.waiter(), bench.queue.waiter()
    ground.ends.callback(first.close)
    ground.ends.callback(peer.close)
    bench.submit("chat/a", "chat/b")
    assert first.wait(1.0)
    thread = threading.Thread(target=lambda: woken.append(peer.wait(NEVER_S)), daemon=True)
    thread.start()
    eventually(lambda: blocked_clients(bench) == 1, what="the peer being asleep")
    bench.claim("first")
    thread.join(10)
    return woken


def peer_of_a_dying_consumer(ground: Ground) -> object:
    """What an idle consumer gets of a job whose wake token was taken by one that died before it claimed."""
    bench, valkey = ground.own()
    server = Server(RedisAddress(valkey.url, "the peer"), clock=bench.clock)
    ground.ends.callback(server.close)
    broker = HeadpondBroker(server, slots=1, version="v1")
    broker.declare_queue("chat")
    dying, taken, got, stop = bench.queue.waiter("v1"), list[bool](), list[str](), threading.Event()
    ground.ends.callback(dying.close)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headpond.consumer.BLOCK_S", BLOCK_S)
        peer = broker.consume("chat")

        def serve() -> None:
            while not stop.is_set() and not got:
                message = next(peer)
                if message is not None:
                    got.append(message.message_id)

        # Who has waited for longest is given the token.
        threads = [threading.Thread(target=lambda: taken.append(dying.wait(2.5)), daemon=True)]
        threads.append(threading.Thread(target=serve, daemon=True))
        for n, thread in enumerate(threads):
            thread.start()
            eventually(lambda n=n: blocked_clients(bench) == n + 1, what="both being asleep")
        bench.submit("chat/a")
        threads[0].join(10)
        threads[1].join(NEVER_S)
        stop.set()
        threads[1].join(10)
        broker.drain()
        peer.close()
        broker.close()
    return taken, got


def leases_after_a_lost_reply(ground: Ground) -> object:
    """Jobs that run on the server, and leases that their worker knows, where its first claim's reply was lost."""
    bench = ground.bench()
    bench.submit("chat/a", "chat/b")
    lost = bench.queue.claim("A", seq=1, nonce="one", slots=1)
    known = bench.queue.claim("A", seq=1, nonce="two", slots=1)
    return bench.queue.depths().running, known.leases == lost.leases


PUSH = "call('RPUSH', key, '1')"
LEFT_IN_LANE = "not (suspect and is_suspect(lane)) then"

HOLES = [
    Hole(
        "wake tokens pile up",
        "Q7",
        tokens_after_twenty_thousand_submits,
        kept=1,
        broken=1_000,
        cuts=(LuaCut("parts/lanes.lua", f"if call('EXISTS', key) == 0 then {PUSH} end", PUSH),),
    ),
    Hole(
        "a peer sleeps beside a job that was left in the lane",
        "Q7",
        peer_beside_two_jobs,
        kept=[True],
        broken=[False],
        cuts=(LuaCut("claim.lua", f"{LEFT_IN_LANE} wake(lane)\n", f"{LEFT_IN_LANE}\n"),),
    ),
    Hole(
        "a token that is lost with a dying consumer leaves an idle peer asleep",
        "Q7",
        peer_of_a_dying_consumer,
        kept=([True], ["chat/a"]),
        broken=([True], []),
        cuts=(PythonCut("headpond.consumer:HeadpondConsumer.__next__", " or time.monotonic() >= self._claim_by", ""),),
    ),
    Hole(
        "a lost reply leaves a lease that its worker does not know",
        "Q7",
        leases_after_a_lost_reply,
        kept=(1, True),
        broken=(2, False),
        cuts=(LuaCut("claim.lua", "if call('HGET', workers, boot .. ':seq') == int(seq) then", "if false then"),),
    ),
]
