"""Asks llama.cpp's HTTP server through a dramatiq actor, whose retries outlive the server. The text comes whole.

Its worker: dramatiq ask_dramatiq --processes 1 --threads 8
"""

import http.client
import json
import os
import sys
from collections.abc import Callable

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

broker = RedisBroker(url=os.environ["REDIS_URL"])
# Without a time-out of its own, redis-py gives up a wait for a result after some seconds.
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["REDIS_URL"] + "?socket_timeout=310")))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def answer(prompt: str, max_tokens: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["LLAMA_PORT"]), timeout=300)
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "cache_prompt": False,
    }
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise ConnectionError(f"HTTP {response.status}")
        return json.loads(response.read())["choices"][0]["message"]["content"]
    finally:
        connection.close()


def ask(prompt: str, max_tokens: int, show: Callable[[str], None], lost: Callable[[], None]) -> str:
    text = answer.send(prompt, max_tokens).get_result(block=True, timeout=300_000)
    show(text)
    return text


if __name__ == "__main__":
    ask(sys.argv[1], 64, lambda text: print(text, end="", flush=True), lambda: print("\n[from the beginning]"))
