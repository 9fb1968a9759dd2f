"""CPU and time per completion through the real SDKs, against stand-ins in processes of their own.

Run: `python -m tests.bench.bench_llm`; one line per figure.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import trio
from pydantic import SecretStr

from spacebot.config.model import AgentSettings, ApiType, LlmConfig, ProviderConfig
from spacebot.config.routing import RoutingConfig
from spacebot.llm.manager import AgentModel
from spacebot.llm.messages import ModelMessage, ModelRequest, ProcessKind, SystemBlock, ToolSpec
from spacebot.llm.opening import open_models

DIALECTS = {"openai": ApiType.OPENAI_COMPLETIONS, "anthropic": ApiType.ANTHROPIC}
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string", "description": "a field " * 10} for name in ("content", "reason", "kind")},
    "required": ["content"],
}
TOOLS = tuple(
    ToolSpec(name, "what this tool is for " * 20, SCHEMA) for name in ("reply", "skip", "react", "branch", "x")
)


@contextmanager
def stand_in(name: str, latency_s: float) -> Iterator[str]:
    """Run a stand-in in a process of its own; gives its URL."""
    command = [sys.executable, "-m", f"tests.stand_ins.{name}", "--latency", str(latency_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


def request() -> ModelRequest:
    """A channel's request: 8 kB of system prompt, 20 messages, 5 tools."""
    talk = [ModelMessage.user("a line of talk " * 20), ModelMessage.assistant("an answer to it " * 20)] * 10
    return ModelRequest(
        process=ProcessKind.CHANNEL,
        system=(SystemBlock("how to behave " * 550), SystemBlock("what is going on " * 30, is_stable=False)),
        messages=(*talk, ModelMessage.user("[10:00] ann: hello there")),
        tools=TOOLS,
    )


async def measure(name: str, model: AgentModel, rounds: int, at_once: int) -> None:
    """Print CPU per completion one after another, and wall time of many at once."""
    asked = request()
    for _ in range(5):
        await model.complete(asked, lambda delta: None)
    cpu = time.process_time()
    for _ in range(rounds):
        await model.complete(asked, lambda delta: None)
    print(f"{name}: {(time.process_time() - cpu) / rounds * 1000:.2f} ms CPU per completion, one after another")

    async def ask() -> None:
        await model.complete(asked, lambda delta: None)

    for attempt in ("first", "again"):
        cpu, wall = time.process_time(), time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(ask)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(f"{name}: {at_once} at once ({attempt}): {wall:.2f} s, {cpu / at_once * 1000:.2f} ms CPU each")


async def main() -> None:
    """Measure both dialects."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--latency", type=float, default=0.0)
    options = parser.parse_args()
    for name, api_type in DIALECTS.items():
        with stand_in(name, options.latency) as url:
            provider = ProviderConfig(api_type=api_type, base_url=url, api_key=SecretStr("k" * 20))
            llm = LlmConfig(provider={name: provider})
            settings = AgentSettings(routing=RoutingConfig(channel=f"{name}/some-model"))
            async with open_models(partial(LlmConfig.model_copy, llm)) as models:
                begin = time.process_time()
                await models.warm_up([settings])
                print(f"{name}: {time.process_time() - begin:.2f} s CPU to import the library")
                model = models.for_agent(partial(AgentSettings.model_copy, settings))
                await measure(name, model, options.rounds, options.at_once)


if __name__ == "__main__":
    trio.run(main)
