"""A producer program as a user would write one: two models at once, both streams live, then the results.

    python scripts/demo_producer.py "Why do rivers bend?"

It finds its server through the headpond.toml of the working folder.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from headpond import AsyncClient, HeadpondError, Result
from headpond.terminal import escape_controls

MODELS = ("chat", "chat-fast")
MAX_TOKENS = 120


class Screen:
    """Both streams side by side on a terminal; elsewhere only the results are printed."""

    def __init__(self, console: Console) -> None:
        self._texts = dict.fromkeys(MODELS, "")
        self._live = Live(console=console, refresh_per_second=12, transient=True) if console.is_terminal else None

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, model: str, text: str) -> None:
        self._texts[model] = text
        if self._live:
            panels = [Panel(Text(escape_controls(t)[-700:]), title=m, height=9) for m, t in self._texts.items()]
            self._live.update(Group(*panels))


async def ask(client: AsyncClient, model: str, prompt: str, screen: Screen) -> Result:
    job = await client.submit(model, prompt, max_tokens=MAX_TOKENS, temperature=0.7, seed=7)
    text = ""
    async for chunk in job.stream():
        text += chunk.text
        screen.show(model, text)
    return await job.result(timeout=10)


def report(console: Console, result: Result) -> None:
    timings = result.timings
    rate = f"{timings.tokens_per_s:.0f} tokens/s" if timings.tokens_per_s else "a single token"
    first = f"{timings.first_token_s * 1000:.0f} ms" if timings.first_token_s is not None else "-"
    title = f"{result.model} {result.version}: {len(result.token_ids)} tokens, {rate}, first token after {first}"
    console.print(Panel(Text(escape_controls(result.text.strip())), title=title, subtitle=result.id))


async def run(prompt: str, ids: Path | None) -> None:
    console = Console()
    async with AsyncClient() as client:
        with Screen(console) as screen:
            results = await asyncio.gather(*(ask(client, model, prompt, screen) for model in MODELS))
    for result in results:
        report(console, result)
    if ids:
        ids.write_text("\n".join(result.id for result in results))


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask two models at once.")
    parser.add_argument("prompt")
    parser.add_argument("--ids", type=Path, help="write the ids of the jobs into this file")
    options = parser.parse_args()
    try:
        asyncio.run(run(options.prompt, options.ids))
    except HeadpondError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
