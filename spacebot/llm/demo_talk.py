"""What the demo model understands and says: phrases and shapes, and what is read with them.

Floor: llm
"""

import re
from collections.abc import Callable

MARKER = "[demo model] "  # begins whatever people see

HELP = (
    "I am a set of rules, not a language model; put a provider's key into config.toml to get a real one. "
    'Try: "remember that …", "my favourite tea is …", "what is my favourite tea?", "run: ls", "wait 10 seconds", '
    '"make a file notes.txt with hello", "count files", "what is running?", "tell the worker: …", "cancel the worker".'
)
PHRASES = {
    "hello": "Hello{name}! " + HELP,
    "thanks": "You are welcome{name}.",
    "on it": "On it: {task}.",
    "cancelled": "Cancelled: {ids}.",
    "told": "I told the worker.",
    "idle": "Nothing is running.",
    "running": "Running now:\n{lines}",
    "failed": "That did not work ({state}): {text}",
}
NOW = re.compile(r"<now>(.*?)</now>", re.DOTALL)
RESULT = re.compile(r'<result process="(\w+)" id="([^"]*)" state="(\w+)"[^>]*>\n?(.*?)\n?</result>', re.DOTALL)
LINE = re.compile(r"(?:\[[^\]\n]*\] )?([^:\n\[\]]{1,60}): (.*)", re.DOTALL)
RUNNING = re.compile(r"^(Worker|Branch) ([^\s,]+)(?:,| since)", re.MULTILINE)
SAVE = re.compile(r"Save to memory \((\w+)\): (.+)", re.DOTALL)
RECALL = re.compile(r"Recall from memory: (.+)", re.DOTALL)
COMMAND = re.compile(r"shell command(?: \((\d+) s\))?: `(.+?)`", re.DOTALL)
FILE = re.compile(r"Write the file `(.+?)` with this content: `(.*?)`", re.DOTALL)

ORDERS = frozenset({"run", "shell", "execute", "remember", "note", "todo", "remind", "tell", "write", "make", "create"})
NUMBERS = {"a": 1, "one": 1, "two": 2, "five": 5, "ten": 10}
STATEMENTS = (  # shape, what is remembered, kind of memory
    (r"(?:please )?(?:remember|note|keep in mind)(?: that)?:? (.+)", "{0}", "fact"),
    (r"my name is (.+)", "{name}'s name is {0}", "identity"),
    (r"my (favou?rite .+?) (?:is|are) (.+)", "{name}'s {0} is {1}", "preference"),
    (r"my (.+?) (?:is|are) (.+)", "{name}'s {0} is {1}", "fact"),
    (r"i (?:really )?(like|love|prefer|hate|dislike) (.+)", "{name}: {0}s {1}", "preference"),
    (r"we (?:have )?decided (?:that |to )?(.+)", "Decision: {0}", "decision"),
    (r"(?:todo|remind me to):? (.+)", "To do for {name}: {0}", "todo"),
)
QUESTION = re.compile(
    r"(?:what|who|when|where|which)\b.*\b(?:my|i|me|we|our)\b.*|what do you (?:remember|know).*|do you remember.*"
    r"|recall\b.*",
    re.IGNORECASE | re.DOTALL,
)
HELLO = re.compile(r"(?:hello|hi|hey|good (?:morning|evening|day)|greetings)\b.*", re.IGNORECASE | re.DOTALL)
THANKS = re.compile(r"(?:thanks|thank you|great|cool|nice)\b.*", re.IGNORECASE | re.DOTALL)
CANCEL = re.compile(r"(?:cancel|stop|abort)\b.*", re.IGNORECASE | re.DOTALL)
ROUTE = re.compile(r"tell (?:the |your )?worker:?(?: to)? (.+)", re.IGNORECASE | re.DOTALL)
STATE = re.compile(r"(?:what is|what's|whats) running\b.*|status\??", re.IGNORECASE | re.DOTALL)
MENTION = re.compile(r"^(?:<?@\S+|(?:space)?bot\b)[,:]?\s+", re.IGNORECASE)  # before an order
ADDRESSED = re.compile(r"\b(?:space)?bot\b|\?\s*$|\byou\b", re.IGNORECASE)


def parse_task(text: str) -> str | None:
    """The task that an order makes for a worker, or None when it is no order."""
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


def parse_statement(name: str, text: str) -> str | None:
    """The task that a statement makes for a branch that saves it, or None when there is nothing to save."""
    if text.rstrip().endswith("?"):
        return None
    for shape, sentence, kind in STATEMENTS:
        if match := re.fullmatch(shape, text.strip().rstrip("."), re.IGNORECASE | re.DOTALL):
            content = sentence.format(*match.groups(), name=name or "The user")
            return f"Save to memory ({kind}): {as_seen_by_others(name, content)}"
    return None


def as_seen_by_others(name: str, text: str) -> str:
    """Words of one person as a memory for everybody: `my` becomes the name."""
    return re.sub(r"\bmy\b", f"{name or 'The user'}'s", text, flags=re.IGNORECASE)


def parse_lines(prompt: str) -> list[tuple[str, str]]:
    """Who said what; a line without a name belongs to the one before."""
    lines: list[tuple[str, str]] = []
    for line in prompt.split("\n"):
        is_new = line.startswith("[") or (not lines and line.partition(":")[0].split(" ")[0].lower() not in ORDERS)
        if is_new and (match := LINE.fullmatch(line)):
            lines.append((match[1].strip(), match[2].strip()))
        elif lines:
            lines[-1] = (lines[-1][0], f"{lines[-1][1]}\n{line}".strip())
        else:
            lines.append(("", line.strip()))
    return lines


_TASKS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(shape, re.IGNORECASE | re.DOTALL), make)
    for shape, make in (
        (r"(?:run|shell|execute)\b(?: the command)?\s*:?\s*`?(.+?)`?", lambda m: _command(m[1])),
        (r"(?:wait|sleep|work)(?: for)? (\d+|one|a|two|five|ten) ?(second|sec|s|minute|min)s?", lambda m: _wait(m)),
        (r"count (?:the |all |my )?files.*", lambda m: _command("find . -type f | wc -l")),
        (r"list (?:the |all |my )?files.*", lambda m: _command("ls -la")),
        (
            r"(?:make|create|write) (?:a |the )?file(?: called| named)? ?`?([\w./-]*)`?"
            r"(?:(?: with| containing|:) (.+))?",
            lambda m: f"Write the file `{m[1] or 'demo.txt'}` with this content: `{m[2] or 'made by the demo model'}`",
        ),
    )
)
