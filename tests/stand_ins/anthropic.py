"""A stand-in for Anthropic's Messages API.

Separate process for benchmarks: `python -m tests.stand_ins.anthropic --port 0 --latency 1.0` prints its port.
"""

import argparse
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from tests.stand_ins.openai import pieces
from tests.stand_ins.serving import Answer, ModelStandIn, Reply, Respond, Use, serve_model

ERROR_EVENT = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'


@asynccontextmanager
async def serve_anthropic(
    respond: Respond | Sequence[Reply],
    *,
    latency_s: float = 0,
    one_write: bool = False,
    port: int = 0,
    keep: bool = True,
) -> AsyncIterator[ModelStandIn]:
    """Serve the Messages API at any path."""
    async with serve_model(
        respond, render, ERROR_EVENT, latency_s=latency_s, one_write=one_write, port=port, keep=keep
    ) as stand_in:
        yield stand_in


def render(answer: Answer) -> list[bytes]:
    """An answer as stream events; the last three end it."""
    usage = {
        "input_tokens": answer.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": answer.cached_tokens,
        "output_tokens": 1,
    }
    start = {"id": "msg_1", "type": "message", "role": "assistant", "model": "stand-in", "content": [], "usage": usage}
    events = [_event("message_start", message=start), _event("ping")]
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if answer.reasoning:
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(answer.reasoning)]
        blocks.append(
            (
                {"type": "thinking", "thinking": "", "signature": ""},
                [*deltas, {"type": "signature_delta", "signature": "sig=="}],
            )
        )
    if answer.text or not answer.uses:
        blocks.append(
            ({"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces(answer.text)])
        )
    for number, use in enumerate(answer.uses):
        raw = use.arguments if isinstance(use.arguments, str) else json.dumps(use.arguments, ensure_ascii=False)
        call_id = f"toolu_{number}" if use.id is None else use.id
        blocks.append(
            (
                {"type": "tool_use", "id": call_id, "name": use.name, "input": {}},
                [{"type": "input_json_delta", "partial_json": piece} for piece in ["", *pieces(raw)]],
            )
        )
    for index, (block, deltas) in enumerate(blocks):
        events.append(_event("content_block_start", index=index, content_block=block))
        events += [_event("content_block_delta", index=index, delta=delta) for delta in deltas]
        events.append(_event("content_block_stop", index=index))
    finish = answer.finish or ("tool_use" if answer.uses else "end_turn")
    events.append(
        _event(
            "message_delta",
            delta={"stop_reason": finish, "stop_sequence": None},
            usage={"output_tokens": answer.output_tokens},
        )
    )
    events.append(_event("message_stop"))
    return events


def last_user_text(body: Any) -> str:
    """The newest user text of a request."""
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            content = message["content"]
            text = content if isinstance(content, str) else "".join(block.get("text", "") for block in content)
            if text:
                return text
    return ""


def echo(body: Any) -> Answer:
    """The answer of the benchmarks: a `reply` that repeats the last line, or words when there is no such tool."""
    line = last_user_text(body).rstrip().rpartition("\n")[2][:200]
    if any(tool["name"] == "reply" for tool in body.get("tools", ())):
        return Answer(uses=(Use("reply", {"content": f"echo: {line}"}),))
    return Answer(text=f"echo: {line}")


def _event(kind: str, **facts: Any) -> bytes:
    data = json.dumps({"type": kind, **facts}, ensure_ascii=False).encode()
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


async def _main() -> None:
    parser = argparse.ArgumentParser(description="stand-in for the Messages API")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    options = parser.parse_args()
    async with serve_anthropic(
        echo, latency_s=options.latency, one_write=True, port=options.port, keep=False
    ) as stand_in:
        print(stand_in.url.rpartition(":")[2], flush=True)  # the starter reads the port
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(_main)
