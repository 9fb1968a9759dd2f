"""The built-in demo model: rules instead of a model, so that the program can be tried without a key.

It drives the real tools: it remembers, recalls, starts workers and relays their results. What it does
follows from the request alone.

Flow:   respond(request) -> parts -> deltas, ModelReply
Floor:  llm
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import trio

from spacebot.llm.demo_talk import (
    ADDRESSED,
    CANCEL,
    COMMAND,
    FILE,
    HELLO,
    HELP,
    LINE,
    MARKER,
    NOW,
    NUMBERS,
    PHRASES,
    QUESTION,
    RECALL,
    RESULT,
    ROUTE,
    RUNNING,
    SAVE,
    STATE,
    STATEMENTS,
    THANKS,
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
    match request.process:
        case ProcessKind.CHANNEL:
            steps = _channel(request)
        case ProcessKind.BRANCH:
            steps = _branch(request)
        case ProcessKind.WORKER:
            steps = _worker(request)
        case ProcessKind.COMPACTOR:
            steps = iter([Text(f"Summary: {len(request.messages)} earlier messages were exchanged.")])
        case ProcessKind.CORTEX:
            steps = iter([Text(" ".join(last_user_text(request.messages).split())[:500])])
    parts: list[Part] = []
    for number, step in enumerate(steps):
        if isinstance(step, _Use):
            if step.tool not in offered:
                if step.tool == "reply":
                    parts.append(Text(step.arguments["content"]))
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
    if relayed := [_relay(state, text) for _, _, state, text in RESULT.findall(prompt)]:
        yield _Use("reply", {"content": MARKER + "\n".join(relayed)})
        return
    lines = _lines(prompt.strip())
    for name, text in lines:
        if steps := list(_rule(name, text, now)):
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
            yield _Use("route", {"worker_id": worker, "message": _task(told[1]) or told[1]})
        yield _reply("told") if worker else _reply("idle")
    elif task := _task(text):
        yield _Use("spawn_worker", {"task": task})
        yield _reply("on it", task=text.rstrip("."))
    elif memory := _statement(name, text):
        yield _Use("branch", {"description": memory})
        yield _Use("skip", {"reason": "the branch will tell"})
    elif QUESTION.fullmatch(text):
        yield _Use("branch", {"description": f"Recall from memory: {_as_seen_by_others(name, text)}"})
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
        yield Text(_words(results[-1].text) or "Nothing found in memory.")
    elif save:
        yield _Use("memory_save", {"content": save[2].strip(), "memory_type": save[1]})
    elif recall:
        yield _Use("memory_recall", {"query": recall[1].strip()})
    else:
        yield Text("The demo model cannot think about this.")


def _worker(request: ModelRequest) -> Iterator[_Step]:
    results = _newest_results(request)
    if results and len(results) < 2 and "outcome" in _newest_arguments(request):
        yield Text(_words(results[-1].text))
        return
    if results:
        text = _words(results[-1].text) or "finished without output"
        result = "failed" if results[-1].is_error else "done"
        yield _Use("set_status", {"status": text, "kind": "outcome", "result": result})
        yield Text(text)
        return
    system = "\n".join(block.text for block in request.system)
    asked = last_user_text(request.messages)
    for source in (asked, _task(asked) or "", system):
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
    yield Text(text)


def _task(text: str) -> str | None:
    text = text.strip().removesuffix(".")
    return next((make(match) for shape, make in _TASKS if (match := shape.fullmatch(text))), None)


def _command(line: str) -> str:
    return f"Run this shell command: `{line.strip()}` and report its output."


def _wait(match: re.Match[str]) -> str:
    number = match[1].lower()
    seconds = int(NUMBERS.get(number, number)) * (60 if match[2].lower().startswith("min") else 1)
    return (
        f"Run this shell command ({seconds + 30} s): `sleep {seconds}; echo waited {seconds} s` and report its output."
    )


def _statement(name: str, text: str) -> str | None:
    if text.rstrip().endswith("?"):
        return None
    for shape, sentence, kind in STATEMENTS:
        if match := re.fullmatch(shape, text.strip().rstrip("."), re.IGNORECASE | re.DOTALL):
            content = sentence.format(*match.groups(), name=name or "The user")
            return f"Save to memory ({kind}): {_as_seen_by_others(name, content)}"
    return None


def _as_seen_by_others(name: str, text: str) -> str:
    return re.sub(r"\bmy\b", f"{name or 'The user'}'s", text, flags=re.IGNORECASE)


def _relay(state: str, text: str) -> str:
    text = text.strip()[:RELAYED]
    return (
        text if state in ("done", "partial") else PHRASES["failed"].format(state=state, text=text or "no reason given")
    )


def _lines(prompt: str) -> list[tuple[str, str]]:
    """Who said what; a line without a name belongs to the one before."""
    lines: list[tuple[str, str]] = []
    for line in prompt.split("\n"):
        if match := LINE.fullmatch(line) if line.startswith("[") or not lines else None:
            lines.append((match[1].strip(), match[2].strip()))
        elif lines:
            lines[-1] = (lines[-1][0], f"{lines[-1][1]}\n{line}".strip())
        else:
            lines.append(("", line.strip()))
    return lines


def _newest_results(request: ModelRequest) -> list[ToolResult]:
    if not request.messages or request.messages[-1].text:
        return []
    return [part for part in request.messages[-1].parts if isinstance(part, ToolResult)]


def _newest_arguments(request: ModelRequest) -> str:
    spoken = (message for message in reversed(request.messages) if message.role is Role.ASSISTANT)
    return "".join(call.raw_arguments for call in next(spoken).tool_calls)


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


_TASKS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(shape, re.IGNORECASE | re.DOTALL), make)
    for shape, make in (
        (r"(?:run|shell|execute)\b(?: the command)?\s*:?\s*`?(.+?)`?", lambda m: _command(m[1])),
        (r"(?:wait|sleep|work)(?: for)? (\d+|one|a|two|five|ten) ?(second|sec|s|minute|min)s?", lambda m: _wait(m)),
        (r"count (?:the |all |my )?files.*", lambda m: _command("find . -type f | wc -l")),
        (r"list (?:the |all |my )?files.*", lambda m: _command("ls -la")),
        (
            r"(?:make|create|write) (?:a |the )?file(?: called| named)? ?`?([\w./-]*)`?(?:(?: with| containing|:) (.+))?",
            lambda m: f"Write the file `{m[1] or 'demo.txt'}` with this content: `{m[2] or 'made by the demo model'}`",
        ),
    )
)
