"""The built-in demo model: rules instead of a model, so that the program can be tried without a key.

It drives the real tools: it remembers, recalls, starts workers and relays their results. What it does
follows from the request alone.

Flow:   respond(request) -> parts -> deltas, ModelReply
Floor:  llm
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import trio

from spacebot.llm import demo_upkeep
from spacebot.llm.demo_talk import (
    ADDRESSED,
    CANCEL,
    COMMAND,
    FILE,
    HELLO,
    HELP,
    MARKER,
    MENTION,
    NOW,
    PHRASES,
    QUESTION,
    RECALL,
    RESULT,
    ROUTE,
    RUNNING,
    SAVE,
    STATE,
    THANKS,
    as_seen_by_others,
    parse_lines,
    parse_statement,
    parse_task,
)
from spacebot.llm.dialect import Target
from spacebot.llm.history import estimate_tokens
from spacebot.llm.messages import (
    ArgumentsDelta,
    FinishReason,
    ModelReply,
    ModelRequest,
    OnDelta,
    Part,
    ProcessKind,
    Role,
    Text,
    TextDelta,
    ToolCall,
    ToolResult,
    Usage,
    last_user_text,
)

PIECE = 24  # characters of a delta
RELAYED = 2000  # characters of a result that are passed on

RECALLED = 3  # memories that a branch concludes with


class DemoDialect:
    """Answers by rules, without a network."""

    is_loaded = True

    def load(self) -> None:
        """Nothing to import."""

    async def complete(self, request: ModelRequest, target: Target, on_delta: OnDelta) -> ModelReply:
        """Answer at once, in a few pieces."""
        parts = tuple(respond(request))
        index = -1
        for part in parts:
            if isinstance(part, Text):
                for piece in _pieces(part.text):
                    await trio.lowlevel.checkpoint()
                    on_delta(TextDelta(piece))
            elif isinstance(part, ToolCall):
                index += 1
                for piece in ("", *_pieces(part.raw_arguments)):
                    await trio.lowlevel.checkpoint()
                    on_delta(ArgumentsDelta(index, part.name, piece))
        written = sum(len(part.text if isinstance(part, Text) else part.raw_arguments) for part in parts
                      if isinstance(part, Text | ToolCall))  # fmt: skip
        return ModelReply(
            parts=parts,
            finish_reason=FinishReason.TOOL_CALLS if index >= 0 else FinishReason.STOP,
            usage=Usage(input_tokens=estimate_tokens(request.messages, request.system), output_tokens=written // 4),
            model=target.model,
        )


def respond(request: ModelRequest) -> list[Part]:
    """What the demo model says to a request; only tools that the request offers are called."""
    offered = {tool.name for tool in request.tools}
    steps: Iterator[_Step]
    match request.process:
        case _ if (upkeep := demo_upkeep.steps(request)) is not None:
            steps = (Text(step) if isinstance(step, str) else _Use(*step) for step in upkeep)
        case ProcessKind.CHANNEL:
            steps = _channel(request)
        case ProcessKind.BRANCH:
            steps = _branch(request)
        case _:
            steps = _worker(request)
    parts: list[Part] = []
    for number, step in enumerate(steps):
        if isinstance(step, _Use):
            if step.tool not in offered:
                if words := step.words:
                    parts.append(Text(words))
                continue
            raw = json.dumps(step.arguments, ensure_ascii=False)
            parts.append(ToolCall(f"demo_{len(request.messages)}_{number}", step.tool, dict(step.arguments), raw))
        else:
            parts.append(step)
    return parts


@dataclass(frozen=True, slots=True)
class _Use:
    tool: str
    arguments: Mapping[str, str]

    @property
    def words(self) -> str | None:
        """What is said in plain text when the tool is not offered."""
        return self.arguments.get("content" if self.tool == "reply" else "status") if self._is_final else None

    @property
    def _is_final(self) -> bool:
        return self.tool == "reply" or self.arguments.get("kind") == "outcome"


_Step = _Use | Text


def _reply(phrase: str, **values: str) -> _Use:
    return _Use("reply", {"content": MARKER + PHRASES[phrase].format(**values)})


def _channel(request: ModelRequest) -> Iterator[_Step]:
    results = _newest_results(request)
    if results:  # the tools of this turn have run
        bad = [result for result in results if result.is_error]
        if bad:
            yield _reply("failed", state="refused", text=_words(bad[0].text))
        return
    prompt = last_user_text(request.messages)
    now = "".join(NOW.findall(prompt)) + "".join(block.text for block in request.system if not block.is_stable)
    prompt = NOW.sub("", prompt)
    relayed = MARKER + "\n".join(_relay(state, text) for _, _, state, text in RESULT.findall(prompt))
    if relayed == MARKER:
        yield from _talk(parse_lines(prompt.strip()), now)
        return
    lines = [(name, text) for name, text in parse_lines(RESULT.sub("", prompt).strip()) if name]  # said meanwhile
    steps = list(_talk(lines, now)) if lines else []
    said = [step.arguments["content"] for step in steps if isinstance(step, _Use) and step.tool == "reply"]
    yield from (step for step in steps if not (isinstance(step, _Use) and step.tool in ("reply", "skip")))
    yield _Use("reply", {"content": "\n".join([relayed, *(text.removeprefix(MARKER) for text in said)])})


def _talk(lines: list[tuple[str, str]], now: str) -> Iterator[_Step]:
    """The steps for what people said: those of the first line that a rule fits."""
    for name, text in lines:
        if steps := list(_rule(name, MENTION.sub("", text), now)):
            yield from steps
            return
    if len({name for name, _ in lines}) > 1 and not any(ADDRESSED.search(text) for _, text in lines):
        yield _Use("skip", {"reason": "they talk to each other"})
        return
    yield _Use("reply", {"content": MARKER + HELP})


def _rule(name: str, text: str, now: str) -> Iterator[_Step]:
    """The steps for one line of talk; none when no rule fits."""
    running = RUNNING.findall(now)
    if STATE.fullmatch(text):
        lines = "\n".join(line for line in now.splitlines() if RUNNING.match(line))
        yield _reply("running", lines=lines) if running else _reply("idle")
    elif CANCEL.fullmatch(text):
        for kind, process_id in running:
            yield _Use("cancel", {"process_type": kind.lower(), "process_id": process_id, "reason": "asked to"})
        yield _reply("cancelled", ids=", ".join(i for _, i in running)) if running else _reply("idle")
    elif told := ROUTE.fullmatch(text):
        worker = next((process_id for kind, process_id in running if kind == "Worker"), None)
        if worker is not None:
            yield _Use("route", {"worker_id": worker, "message": parse_task(told[1]) or told[1]})
        yield _reply("told") if worker else _reply("idle")
    elif task := parse_task(text):
        yield _Use("spawn_worker", {"task": task})
        yield _reply("on it", task=text.rstrip("."))
    elif memory := parse_statement(name, text):
        yield _Use("branch", {"description": memory})
        yield _Use("skip", {"reason": "the branch will tell"})
    elif QUESTION.fullmatch(text):
        yield _Use("branch", {"description": f"Recall from memory: {as_seen_by_others(name, text)}"})
        yield _Use("skip", {"reason": "the branch will tell"})
    elif HELLO.fullmatch(text):
        yield _reply("hello", name=f" {name}" if name else "")
    elif THANKS.fullmatch(text):
        yield _reply("thanks", name=f" {name}" if name else "")


def _branch(request: ModelRequest) -> Iterator[_Step]:
    results = _newest_results(request)
    prompt = last_user_text(request.messages)
    save, recall = _last(SAVE, prompt), _last(RECALL, prompt)
    if results and save:
        text = f"Noted: {save[2].strip()}"
        yield Text(f"Could not save it: {_words(results[-1].text)}" if results[-1].is_error else text)
    elif results:
        found = _words(results[-1].text).splitlines()[:RECALLED]
        yield Text("\n".join(found) or "Nothing found in memory.")
    elif save:
        yield _Use("memory_save", {"content": save[2].strip(), "memory_type": save[1]})
    elif recall:
        yield _Use("memory_recall", {"query": recall[1].strip()})
    else:
        yield Text("The demo model cannot think about this.")


def _worker(request: ModelRequest) -> Iterator[_Step]:
    results = _newest_results(request)
    if results and (account := _newest_outcome(request)):
        yield Text(account)
        return
    if results:
        text = _words(results[-1].text) or "finished without output"
        result = "failed" if results[-1].is_error else "done"
        yield _Use("set_status", {"status": text, "kind": "outcome", "result": result})
        return
    system = "\n".join(block.text for block in request.system)
    asked = last_user_text(request.messages)
    for source in (asked, parse_task(asked) or "", system):
        if command := _last(COMMAND, source):
            yield _Use("set_status", {"status": f"running {command[2][:80]}"})
            patience = {"timeout_seconds": command[1]} if command[1] else {}
            yield _Use("shell", {"command": command[2], **patience})
            return
        if file := _last(FILE, source):
            yield _Use("set_status", {"status": f"writing {file[1]}"})
            yield _Use("file", {"operation": "write", "path": file[1], "content": file[2]})
            return
    text = "The demo model does not know how to do this."
    yield _Use("set_status", {"status": text, "kind": "outcome", "result": "blocked"})


def _relay(state: str, text: str) -> str:
    text = text.strip()[:RELAYED]
    return (
        text if state in ("done", "partial") else PHRASES["failed"].format(state=state, text=text or "no reason given")
    )


def _newest_results(request: ModelRequest) -> list[ToolResult]:
    if not request.messages or request.messages[-1].text:
        return []
    return [part for part in request.messages[-1].parts if isinstance(part, ToolResult)]


def _newest_outcome(request: ModelRequest) -> str | None:
    """The account that this worker has just given."""
    spoken = next((message for message in reversed(request.messages) if message.role is Role.ASSISTANT), None)
    for call in spoken.tool_calls if spoken else ():
        if call.arguments and call.arguments.get("kind") == "outcome":
            return str(call.arguments.get("status"))
    return None


def _words(result: str) -> str:
    """The words in a tool's result, which is often a JSON object."""
    try:
        value = json.loads(result)
    except ValueError:
        return result.strip()[:RELAYED]
    return "\n".join(dict.fromkeys(_leaves(value))).strip()[:RELAYED]


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, list | dict):
                yield from _leaves(item)
            elif key in ("content", "text", "stdout", "stderr", "output", "error", "message") and item:
                yield str(item).strip()


def _last(shape: re.Pattern[str], text: str) -> re.Match[str] | None:
    return max(shape.finditer(text), key=lambda match: match.start(), default=None)


def _pieces(text: str) -> list[str]:
    return [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
