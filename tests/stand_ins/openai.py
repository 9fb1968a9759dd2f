"""A stand-in for providers that speak chat completions, or the Responses API.

Separate process for benchmarks: `python -m tests.stand_ins.openai --port 0 --latency 1.0` prints its port.
"""

import argparse
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from tests.stand_ins.serving import Answer, ModelStandIn, Reply, Respond, Use, serve_model

ERROR_EVENT = b'data: {"error":{"message":"The server is overloaded","type":"overloaded_error","code":529}}\n\n'


@asynccontextmanager
async def serve_openai(
    respond: Respond | Sequence[Reply],
    *,
    latency_s: float = 0,
    one_write: bool = False,
    port: int = 0,
    keep: bool = True,
) -> AsyncIterator[ModelStandIn]:
    """Serve chat completions at any path."""
    async with serve_model(
        respond, render, ERROR_EVENT, latency_s=latency_s, one_write=one_write, port=port, keep=keep, whole=render_whole
    ) as stand_in:
        yield stand_in


RESPONSES_ERROR = b'data: {"type":"error","code":"server_error","message":"The server had an error","param":null}\n\n'


@asynccontextmanager
async def serve_responses(respond: Respond | Sequence[Reply]) -> AsyncIterator[ModelStandIn]:
    """Serve the Responses API at any path."""
    async with serve_model(respond, render_responses, RESPONSES_ERROR) as stand_in:
        yield stand_in


def render_responses(answer: Answer) -> list[bytes]:
    """An answer as events of the Responses API; the last three end it."""
    items: list[tuple[dict[str, Any], str, list[str]]] = []
    if answer.reasoning:
        summary = [{"type": "summary_text", "text": answer.reasoning}]
        sealed = {"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": "sealed=="}
        items.append((sealed, "reasoning_summary_text", pieces(answer.reasoning)))
    if answer.text or not answer.uses:
        content = [{"type": "output_text", "text": answer.text, "annotations": []}]
        items.append(
            (
                {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content},
                "output_text",
                pieces(answer.text),
            )
        )
    for number, use in enumerate(answer.uses):
        raw = use.arguments if isinstance(use.arguments, str) else json.dumps(use.arguments, ensure_ascii=False)
        call = {"type": "function_call", "id": f"fc_{number}", "name": use.name, "arguments": raw}
        call["call_id"] = f"call_{number}" if use.id is None else use.id
        items.append((call, "function_call_arguments", pieces(raw)))
    events = [_typed("response.created", response={"id": "resp_1", "status": "in_progress", "output": []})]
    for index, (item, kind, deltas) in enumerate(items):
        begun = item | ({"arguments": ""} if "arguments" in item else {"content": []} if "content" in item else {})
        events.append(_typed("response.output_item.added", output_index=index, item=begun))
        for piece in deltas:
            place = {"output_index": index, "item_id": item["id"], "content_index": 0}
            events.append(_typed(f"response.{kind}.delta", delta=piece, **place))
        events.append(_typed("response.output_item.done", output_index=index, item=item))
    usage = {
        "input_tokens": answer.input_tokens + answer.cached_tokens,
        "input_tokens_details": {"cached_tokens": answer.cached_tokens},
        "output_tokens": answer.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    end = {"id": "resp_1", "status": "completed", "output": [item for item, _, _ in items], "usage": usage}
    if answer.finish:
        end |= {"status": "incomplete", "incomplete_details": {"reason": answer.finish}}
    events.append(_typed(f"response.{end['status']}", response=end))
    return events


def _typed(kind: str, **facts: Any) -> bytes:
    data = json.dumps({"type": kind, **facts}, ensure_ascii=False).encode()
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def render_whole(answer: Answer) -> bytes:
    """An answer of words in one piece, as it comes without `stream`."""
    usage = {"prompt_tokens": answer.input_tokens, "completion_tokens": answer.output_tokens}
    message = {"role": "assistant", "content": answer.text}
    choice = {"index": 0, "message": message, "finish_reason": answer.finish or "stop"}
    return json.dumps({"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def render(answer: Answer) -> list[bytes]:
    """An answer as stream events; the last three end it."""
    events = [_choice({"role": "assistant", "content": ""})]
    if answer.reasoning:
        events.append(_choice({"reasoning_content": answer.reasoning}))
    events += [_choice({"content": piece}) for piece in pieces(answer.text)]
    for index, use in enumerate(answer.uses):
        raw = use.arguments if isinstance(use.arguments, str) else json.dumps(use.arguments, ensure_ascii=False)
        call_id = f"call_{index}" if use.id is None else use.id
        function = {"name": use.name, "arguments": ""}
        events.append(
            _choice({"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]})
        )
        events += [
            _choice({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}) for piece in pieces(raw)
        ]
    finish = answer.finish or ("tool_calls" if answer.uses else "stop")
    events.append(_choice({}, finish))
    usage = {
        "prompt_tokens": answer.input_tokens + answer.cached_tokens,
        "completion_tokens": answer.output_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
    }
    events.append(_event({"choices": [], "usage": usage}))
    events.append(b"data: [DONE]\n\n")
    return events


def pieces(text: str, size: int = 6) -> list[str]:
    """A text in small pieces, as models send it."""
    return [text[i : i + size] for i in range(0, len(text), size)]


def last_user_text(body: Any) -> str:
    """The newest user text of a chat completion request."""
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            content = message["content"]
            return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return ""


def echo(body: Any) -> Answer:
    """The answer of the benchmarks: a `reply` that repeats the last line, or words when there is no such tool."""
    line = last_user_text(body).rstrip().rpartition("\n")[2][:200]
    if any(tool["function"]["name"] == "reply" for tool in body.get("tools", ())):
        return Answer(uses=(Use("reply", {"content": f"echo: {line}"}),))
    return Answer(text=f"echo: {line}")


def _choice(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return _event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def _event(facts: dict[str, Any]) -> bytes:
    facts = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "stand-in", **facts}
    return b"data: " + json.dumps(facts, ensure_ascii=False).encode() + b"\n\n"


async def _main() -> None:
    parser = argparse.ArgumentParser(description="stand-in for an OpenAI-compatible provider")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    options = parser.parse_args()
    async with serve_openai(echo, latency_s=options.latency, one_write=True, port=options.port, keep=False) as stand_in:
        print(stand_in.url.rpartition(":")[2], flush=True)  # the starter reads the port
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(_main)
