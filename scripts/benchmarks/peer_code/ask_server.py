"""Asks llama.cpp's own HTTP server, and shows the answer as it comes. If the server dies, it asks anew."""

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
            # Until the server is there again.
            time.sleep(0.2)


def stream(prompt: str, max_tokens: int, show: Callable[[str], None]) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["LLAMA_PORT"]), timeout=300)
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "cache_prompt": False,
        "stream": True,
    }
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise ConnectionError(f"HTTP {response.status}")
        text = ""
        for line in response:
            if line.startswith(b"data: [DONE]"):
                return text
            if line.startswith(b"data: "):
                for choice in json.loads(line.removeprefix(b"data: ")).get("choices", ()):
                    if piece := choice["delta"].get("content"):
                        text += piece
                        show(piece)
        raise ConnectionError("the stream broke off")
    finally:
        connection.close()


if __name__ == "__main__":
    ask(sys.argv[1], 64, lambda text: print(text, end="", flush=True), lambda: print("\n[from the beginning]"))
