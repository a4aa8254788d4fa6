"""Asks DB-GPT's model worker, and shows the answer as it comes. If the worker dies, it asks anew."""

import http.client
import json
import os
import sys
import time
from collections.abc import Callable


def ask(prompt: str, max_tokens: int, show: Callable[[str], None], lost: Callable[[], None]) -> str:
    while True:
        try:
            return stream(prompt, max_tokens, show)
        except (OSError, http.client.HTTPException):
            lost()
            # Until the worker is there again.
            time.sleep(0.2)


def stream(prompt: str, max_tokens: int, show: Callable[[str], None]) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["DBGPT_PORT"]), timeout=300)
    body = {
        "model": "bench",
        "messages": [{"role": "human", "content": prompt}],
        "max_new_tokens": max_tokens,
        "temperature": 0,
    }
    try:
        path = "/api/worker/generate_stream"
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise ConnectionError(f"HTTP {response.status}")
        text, rest = "", b""
        # A stream that breaks off raises IncompleteRead.
        while block := response.read1():
            *outputs, rest = (rest + block).split(b"\0")
            for output in map(json.loads, outputs):
                # Each holds the whole text so far.
                whole = output["content"]["object"]["data"]
                if output["error_code"]:
                    raise ConnectionError(whole)
                if len(whole) > len(text):
                    show(whole[len(text) :])
                    text = whole
        return text
    finally:
        connection.close()


if __name__ == "__main__":
    ask(sys.argv[1], 64, lambda text: print(text, end="", flush=True), lambda: print("\n[from the beginning]"))
