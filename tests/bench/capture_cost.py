"""What keeping requests to models adds to a message: the same requests noted, prepared and written, in processor time.

A request has what a channel's has: 9 KB of system prompt, 12 tools, a history that grows by two messages per turn.
"""

import tempfile
import time
from pathlib import Path

import trio

from spacebot.agent.captures import Captures
from spacebot.base.clock import Clock
from spacebot.base.paths import package_file
from spacebot.conversations.captures import CaptureLog
from spacebot.llm.messages import (
    FinishReason,
    ModelMessage,
    ModelReply,
    ModelRequest,
    ProcessKind,
    SystemBlock,
    Text,
    ToolSpec,
    Usage,
)
from spacebot.storage.database import open_database

TURNS, KEPT, PER_SECOND = 1000, 200, 25
SYSTEM = "".join(
    f"## Part {n}\n\n{'A rule that the channel has to follow, in a sentence or two. ' * 15}\n\n" for n in range(10)
)
TOOLS = tuple(
    ToolSpec(f"tool_{n}", "What it does and when it is used. " * 8, {"type": "object", "properties": {}})
    for n in range(12)
)


async def _measure() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with open_database(Path(folder) / "x.db", package_file("storage", "sql")) as database:
            captures = Captures(CaptureLog(database), Clock(), agent_id="main", keep=lambda: KEPT)
            history: list[ModelMessage] = []
            spent = 0.0
            for turn in range(TURNS):
                history = [
                    *history,
                    ModelMessage.user(f"[{turn}] A question of a person, some thirty words long " * 3),
                ][-60:]
                request = ModelRequest(
                    process=ProcessKind.CHANNEL, system=(SystemBlock(SYSTEM), SystemBlock("now", is_stable=False)),
                    messages=tuple(history), tools=TOOLS,
                )  # fmt: skip
                reply = ModelReply(
                    parts=(Text(f"The answer to {turn}. " * 20),), finish_reason=FinishReason.STOP,
                    usage=Usage(input_tokens=500, cache_read_tokens=4000, output_tokens=80), model="m/m",
                )  # fmt: skip
                history = [*history, reply.message]
                began = time.process_time()  # of all threads
                captures.note(request, reply)
                if turn % PER_SECOND == PER_SECOND - 1:  # what gathers within a second of a busy instance
                    await captures.flush()
                spent += time.process_time() - began
    cost, size = spent / TURNS * 1000, len(SYSTEM) // 1024 + 5
    print(f"keeping a request of {size} KB and 60 messages: {cost:.2f} ms of processor (reach 0.3)")


def measure() -> None:
    """Print the figure."""
    trio.run(_measure)
