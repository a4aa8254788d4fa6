"""Asks a model through headpond, and shows the answer as it comes. A worker that dies needs no line here."""

import sys
from collections.abc import Callable

from headpond import Client

client = Client()


def ask(prompt: str, max_tokens: int, show: Callable[[str], None], lost: Callable[[], None]) -> str:
    job = client.submit("bench", prompt, max_tokens=max_tokens, temperature=0.0)
    for chunk in job.stream():
        if chunk.restarted:
            lost()
        show(chunk.text)
    return job.result().text


if __name__ == "__main__":
    ask(sys.argv[1], 64, lambda text: print(text, end="", flush=True), lambda: print("\n[from the beginning]"))
