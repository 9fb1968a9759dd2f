"""Rules on lists of model messages: pairs kept together, sizes estimated, cuts aligned.

Every request passes `repair` just before it is sent, so that no orphaned tool call can poison a
conversation (process spec 4.10, P15, P51), and `fit`, so that no request outgrows its window (P38).

Floor: llm
"""

import json
from collections.abc import Iterable, Sequence

from spacebot.base.errors import StorageError
from spacebot.base.text import head_and_tail
from spacebot.llm.messages import (
    Image,
    ModelMessage,
    Part,
    Reasoning,
    Role,
    SystemBlock,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
)

BYTES_PER_TOKEN = 4  # process spec 9
IMAGE_TOKENS = 500
LOST_RESULT = "This call was cut off: it may have run in part, or not at all. Check before you repeat it."
OPENING = "(the conversation before this point is not shown)"
TOOLS_KNOWN = 256  # specs whose size is remembered
KEEP_MESSAGES = 2  # a cut never leaves fewer


def repair(messages: Sequence[ModelMessage]) -> tuple[ModelMessage, ...]:
    """Make a list that every provider accepts, changing as little as possible.

    Afterwards: the first message is the user's; roles alternate; each tool call is answered in the very next
    message and each result has its call in the one before; no part is empty, no message without parts.
    Call ids that repeat within one message keep their first call only.
    """
    repaired: list[ModelMessage] = []
    open_calls: list[ToolCall] = []
    for message in messages:
        if message.role is Role.USER:
            results = {part.call_id: part for part in reversed(message.parts) if isinstance(part, ToolResult)}
            answered = [results.get(call.id) or ToolResult(call.id, LOST_RESULT, is_error=True) for call in open_calls]
            rest = [part for part in message.parts if not isinstance(part, ToolResult) and not _is_empty(part)]
            _append(repaired, Role.USER, (*answered, *rest))
            open_calls = []
        else:
            if open_calls:
                _append(repaired, Role.USER, [ToolResult(c.id, LOST_RESULT, is_error=True) for c in open_calls])
            parts = _own_parts(message.parts)
            joined = bool(repaired) and repaired[-1].role is Role.ASSISTANT
            _append(repaired, Role.ASSISTANT, parts)
            fresh = [part for part in parts if isinstance(part, ToolCall)]
            open_calls = [*open_calls, *fresh] if joined and not open_calls else fresh
    if open_calls:
        _append(repaired, Role.USER, [ToolResult(call.id, LOST_RESULT, is_error=True) for call in open_calls])
    if repaired and repaired[0].role is Role.ASSISTANT:
        repaired.insert(0, ModelMessage.user(OPENING))
    return tuple(repaired)


def _own_parts(parts: Iterable[Part]) -> list[Part]:
    """An assistant's parts without empty ones, stray results and repeated call ids; thinking alone says nothing."""
    kept: list[Part] = []
    seen: set[str] = set()
    for part in parts:
        if _is_empty(part) or isinstance(part, ToolResult):
            continue
        if isinstance(part, ToolCall):
            if part.id in seen:
                continue
            seen.add(part.id)
        kept.append(part)
    return kept if any(not isinstance(part, Reasoning) for part in kept) else []


def _append(messages: list[ModelMessage], role: Role, parts: Sequence[Part]) -> None:
    if not parts:
        return
    if messages and messages[-1].role is role:
        previous = messages[-1].parts
        glue: tuple[Part, ...] = ()
        if isinstance(previous[-1], Text) and isinstance(parts[0], Text):
            glue, previous, parts = (Text(f"{previous[-1].text}\n{parts[0].text}"),), previous[:-1], parts[1:]
        messages[-1] = ModelMessage(role, (*previous, *glue, *parts))
    else:
        messages.append(ModelMessage(role, tuple(parts)))


def _is_empty(part: Part) -> bool:
    if isinstance(part, Text):
        return not part.text.strip()
    if isinstance(part, Reasoning):
        return not (part.text or part.data or part.signature)
    return False


def estimate_tokens(
    messages: Iterable[ModelMessage], system: Iterable[SystemBlock] = (), tools: Iterable[ToolSpec] = ()
) -> int:
    """Roughly how many tokens a request has: bytes / 4, pictures 500 each (process spec 9)."""
    size = sum(_size(part) for message in messages for part in message.parts)
    size += sum(len(block.text.encode()) for block in system)
    size += sum(_tool_size(tool) for tool in tools)
    return size // BYTES_PER_TOKEN


_tool_sizes: dict[int, tuple[ToolSpec, int]] = {}  # by identity; a spec is made once and asked about at every step


def _tool_size(tool: ToolSpec) -> int:
    known = _tool_sizes.get(id(tool))
    if known is not None and known[0] is tool:
        return known[1]
    size = len(tool.name) + len(tool.description.encode()) + len(json.dumps(tool.schema))
    if len(_tool_sizes) >= TOOLS_KNOWN:
        _tool_sizes.clear()
    _tool_sizes[id(tool)] = (tool, size)
    return size


def _size(part: Part) -> int:
    if isinstance(part, Text | Reasoning):
        return len(part.text.encode())
    if isinstance(part, ToolResult):
        return len(part.text.encode())
    if isinstance(part, Image):
        return IMAGE_TOKENS * BYTES_PER_TOKEN
    arguments = part.raw_arguments if part.arguments is None else json.dumps(dict(part.arguments), ensure_ascii=False)
    return len(part.name) + len(arguments.encode())


def is_boundary(message: ModelMessage) -> bool:
    """Whether a history may begin with this message: the user's own words, no result of an earlier call."""
    return message.role is Role.USER and not any(isinstance(part, ToolResult) for part in message.parts)


def drop_oldest(messages: Sequence[ModelMessage], fraction: float) -> int:
    """How many messages to remove from the front to lose about `fraction` of them.

    Returns 0 when no cut leaves `KEEP_MESSAGES` and starts at a boundary; otherwise the cut is moved on to
    the next boundary, or, inside one long run of calls, to the next assistant message, whose calls keep
    their results.
    """
    n = len(messages)
    wanted = max(1, int(n * fraction))
    for cut in range(wanted, n - KEEP_MESSAGES + 1):
        if is_boundary(messages[cut]):
            return cut
    for cut in range(wanted, n - KEEP_MESSAGES + 1):
        if messages[cut].role is Role.ASSISTANT:
            return cut
    return 0


def fit(
    messages: Sequence[ModelMessage],
    *,
    ceiling: int,
    system: Sequence[SystemBlock] = (),
    tools: Sequence[ToolSpec] = (),
    reserve: float = 0.15,
    task: ModelMessage | None = None,
) -> tuple[ModelMessage, ...]:
    """Shorten a request until it fits a window, a quarter of the oldest messages at a time.

    Args:
        ceiling: tokens that the model reads, answer included.
        reserve: share of it kept free for the answer (process spec 18).
        task: the message that says what is wanted; it stays, in front, when those around it go.

    Returns the messages unchanged when they fit. What is left may still be too long when the last
    messages alone are; long results among them are then cut in the middle.
    """
    budget = int(ceiling * (1 - reserve)) - estimate_tokens((), system, tools)
    kept = tuple(messages)
    while estimate_tokens(kept) > budget:
        head = kept[:1] if task is not None and kept and kept[0] is task else ()
        rest = kept[len(head) :]
        cut = drop_oldest(rest, 0.25)
        if cut == 0:
            return _shorten_parts(kept, budget)
        if any(message is task for message in rest[:cut]):
            head = tuple(message for message in rest[:cut] if message is task)
        kept = (*head, *rest[cut:])
    return kept


def _shorten_parts(messages: tuple[ModelMessage, ...], budget: int) -> tuple[ModelMessage, ...]:
    """Cut the longest texts and results until the rest fits; each keeps its head and its tail."""
    parts = [part for message in messages for part in message.parts if isinstance(part, Text | ToolResult)]
    limit = max((len(part.text.encode()) for part in parts), default=0)
    while limit > 400 and estimate_tokens(messages) > budget:
        limit = limit * 3 // 4
        messages = tuple(
            ModelMessage(
                message.role,
                tuple(
                    Text(head_and_tail(part.text, limit)) if isinstance(part, Text)
                    else ToolResult(part.call_id, head_and_tail(part.text, limit), part.is_error)
                    if isinstance(part, ToolResult) else part
                    for part in message.parts
                ),
            )
            for message in messages
        )  # fmt: skip
    return messages


def to_json(messages: Sequence[ModelMessage]) -> str:
    """Write messages as JSON text, for a row."""

    def encode(part: Part) -> dict[str, object]:
        match part:
            case Text(text):
                return {"text": text}
            case Image(media_type, data):
                return {"image": media_type, "data": data}
            case Reasoning(text, signature, data):
                return {"reasoning": text, "signature": signature, "data": data}
            case ToolCall(call_id, name, arguments, raw):
                return {
                    "call": call_id,
                    "name": name,
                    "arguments": None if arguments is None else dict(arguments),
                    "raw": raw if arguments is None else "",
                }
            case ToolResult(call_id, text, is_error):
                return {"result": call_id, "text": text, "is_error": is_error}

    return json.dumps(
        [{"role": str(message.role), "parts": [encode(part) for part in message.parts]} for message in messages],
        ensure_ascii=False,
    )


def from_json(text: str) -> list[ModelMessage]:
    """Read what `to_json` wrote.

    Errors: StorageError when the text is damaged.
    """

    def decode(part: dict[str, object]) -> Part:
        if "call" in part:
            arguments = part["arguments"]
            return ToolCall(
                str(part["call"]),
                str(part["name"]),
                arguments if isinstance(arguments, dict) else None,
                str(part["raw"]),
            )
        if "result" in part:
            return ToolResult(str(part["result"]), str(part["text"]), bool(part["is_error"]))
        if "image" in part:
            return Image(str(part["image"]), str(part["data"]))
        if "reasoning" in part:
            signature, data = part["signature"], part["data"]
            return Reasoning(
                str(part["reasoning"]),
                None if signature is None else str(signature),
                None if data is None else str(data),
            )
        return Text(str(part["text"]))

    try:
        return [
            ModelMessage(Role(message["role"]), tuple(decode(part) for part in message["parts"]))
            for message in json.loads(text)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"a transcript is damaged ({type(error).__name__}); its work cannot go on") from error
