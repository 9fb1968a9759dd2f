"""Loop guard: a model that repeats itself is told so instead of burning money.

A verdict never ends a process. A blocked call is skipped, and the explanation becomes its result.
Counts are of calls in a row: a different call in between starts them anew (process spec 17.3, P71, P73).
From the first warning to the block a call is warned of (block - warn) times, more often where polling is meant.

Looking at something that may change by itself is polling: commands that wait or ask for a state, and the browser's
looks at its page. A look between two actions is how a page is worked with, so it makes no ping-pong.

Floor:  agent
Source: tools spec 16
"""

import hashlib
import json
import re
from collections import deque
from dataclasses import dataclass

from spacebot.llm.messages import ProcessKind, ToolCall

HISTORY = 30
OUTCOME_BYTES = 1000  # of a result, that make two outcomes the same
POLL_WORDS = re.compile(r"\b(?:status|poll|wait|watch|tail|ps|jobs|pgrep|kubectl get)\b")
POLL_CHARACTERS = 200  # longer commands are no mere polling
COMMANDS = frozenset({"shell", "exec"})
LOOKS = frozenset({"snapshot", "tabs"})  # actions of the browser that only look
PING_PONG = (2, 3)  # lengths of patterns that are looked for
PATTERN_WARNING = 3  # repeats; six calls of a pair, nine of three


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """Patience of one kind of process; tools spec 16."""

    warn: int
    block: int
    poll_factor: int
    same_outcome_block: int
    pattern_block: int  # repeats of a pattern


LIMITS = {
    ProcessKind.WORKER: GuardLimits(warn=4, block=7, poll_factor=3, same_outcome_block=4, pattern_block=4),
    ProcessKind.BRANCH: GuardLimits(warn=3, block=5, poll_factor=2, same_outcome_block=3, pattern_block=3),
    ProcessKind.CORTEX: GuardLimits(warn=3, block=5, poll_factor=2, same_outcome_block=3, pattern_block=3),
    ProcessKind.CHANNEL: GuardLimits(warn=2, block=4, poll_factor=2, same_outcome_block=3, pattern_block=3),
    ProcessKind.COMPACTOR: GuardLimits(warn=2, block=4, poll_factor=2, same_outcome_block=3, pattern_block=3),
}


class LoopGuard:
    """Watches the calls of one process; made anew for each prompt."""

    def __init__(self, kind: ProcessKind) -> None:
        self._limits = LIMITS[kind]
        self._recent: deque[str] = deque(maxlen=HISTORY)
        self._in_a_row = 0
        self._outcomes: deque[str] = deque(maxlen=HISTORY)
        self._poisoned: set[str] = set()
        self._looks: set[str] = set()  # calls that only looked

    def before(self, call: ToolCall) -> str | None:
        """Note a call; a text means: do not run it, this is its result."""
        key = _key(call)
        self._in_a_row = self._in_a_row + 1 if self._recent and self._recent[-1] == key else 1
        self._recent.append(key)
        if _is_look(call):
            self._looks.add(key)
        else:
            self._poisoned -= self._looks  # something was done: a look may show something new
        factor = self._limits.poll_factor if _is_poll(call) else 1
        if key in self._poisoned:
            return "This exact call keeps giving the same result. It was not run again; try something else."
        if self._in_a_row >= self._limits.block * factor:
            return f"The same call came {self._in_a_row} times in a row. It was not run; change the approach."
        length, repeats = self._pattern()
        if repeats >= self._limits.pattern_block and not _is_waiting(call):
            return f"The last calls repeat a pattern of {length}. This one was not run; change the approach."
        return None

    def after(self, call: ToolCall, result: str) -> str:
        """Note a result; returns it, with a warning behind it where repetition sets in."""
        key = _key(call)
        outcome = hashlib.sha256(key.encode() + result[:OUTCOME_BYTES].encode()).hexdigest()
        self._outcomes.append(outcome)
        same = 0
        for earlier in reversed(self._outcomes):
            if earlier != outcome:
                break
            same += 1
        factor = self._limits.poll_factor if _is_poll(call) else 1
        limit = self._limits.same_outcome_block * factor
        if same >= limit:
            self._poisoned.add(key)
        if same >= limit - 1 and same > 1:
            return f"{result}\n[note: the same call gave the same result {same} times in a row]"
        if self._in_a_row >= self._limits.warn * factor:
            return f"{result}\n[note: the same call came {self._in_a_row} times in a row]"
        length, repeats = self._pattern()
        if repeats >= PATTERN_WARNING and not _is_waiting(call):
            return f"{result}\n[note: the last calls repeat a pattern of {length}, {repeats} times by now]"
        return result

    def _pattern(self) -> tuple[int, int]:
        """Length of the pattern that the last calls repeat, and how often; a look between actions is none."""
        recent = list(self._recent)
        for length in PING_PONG:
            pattern = recent[-length:]
            if len(set(pattern)) == 1 or (length == 2 and len(self._looks.intersection(pattern)) == 1):
                continue
            repeats = 0
            while recent[-length:] == pattern:
                del recent[-length:]
                repeats += 1
            if repeats >= PATTERN_WARNING:
                return length, repeats
            recent = list(self._recent)
        return 0, 0


def _key(call: ToolCall) -> str:
    arguments = call.raw_arguments if call.arguments is None else json.dumps(dict(call.arguments), sort_keys=True)
    return f"{call.name}\0{arguments}"


def _is_poll(call: ToolCall) -> bool:
    return _is_look(call) or _is_waiting(call)


def _is_waiting(call: ToolCall) -> bool:
    if call.name not in COMMANDS:
        return False
    text = json.dumps(dict(call.arguments or {}), ensure_ascii=False)
    return len(text) < POLL_CHARACTERS and POLL_WORDS.search(text) is not None


def _is_look(call: ToolCall) -> bool:
    return call.name == "browser" and (call.arguments or {}).get("action") in LOOKS
