"""Secret shapes: find them, scrub them, hold back what may be the start of one in a stream.

Two nets: the literal secrets of this instance (strongest, registered when the configuration is
read), and the shapes of well-known keys, also in URL, base64 and hex coding (process spec 17.2).

Floor: base
"""

import base64
import binascii
import re
from urllib.parse import unquote

MASK = "[secret removed]"
MIN_LITERAL = 8  # shorter configured values are too common in ordinary text to be searched for
LONGEST = 256  # characters of the longest usual key
HELD_BACK = 4096  # characters a stream holds back, at most, while it may be inside a key or an encoded one

_SHAPES: dict[str, re.Pattern[str]] = {
    "private key": re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----|.*\Z)", re.DOTALL
    ),
    "anthropic key": re.compile(r"\bsk-ant-[A-Za-z0-9_-]{20,}"),
    "openrouter key": re.compile(r"\bsk-or-[A-Za-z0-9_-]{20,}"),
    "openai key": re.compile(r"\bsk-(?:proj-)?[A-Za-z0-9_-]{20,}"),
    "github token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})"),
    "google key": re.compile(r"\bAIza[A-Za-z0-9_-]{35}"),
    "chat bot token": re.compile(r"\b[MN][A-Za-z0-9_-]{23,30}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,}"),
    "workspace token": re.compile(r"\bx(?:ox[bapr]|app)-[A-Za-z0-9-]{10,}"),
    "bot token": re.compile(r"(?<![\w:])(?:bot)?\d{8,10}:[A-Za-z0-9_-]{35}(?![\w-])"),
    "search key": re.compile(r"\bBSA[A-Za-z0-9_-]{20,}"),
    "aws key": re.compile(r"\bAKIA[A-Z0-9]{16}\b"),
}
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{32,}={0,2}")
_HEX = re.compile(r"\b[0-9a-fA-F]{40,}\b")
_LEADS = (
    "sk-",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "AIza",
    "xox",
    "xapp",
    "BSA",
    "AKIA",
    "-----BEGIN",
)
# The word that a text ends with may become a key: it has a lead, the form of a bot's token, or looks encoded.
_OPEN = re.compile(
    r"sk-|gh[pousr]_|github_pat_|AIza|xox|xapp|BSA|AKIA|\d{8,10}:|\b[MN][A-Za-z0-9_-]{9}|[A-Za-z0-9+/_%=.-]{24}"
)

_literals: set[str] = set()


def register_secret(value: str) -> None:
    """Remember a configured secret, so that it is scrubbed wherever it appears.

    The set lives as long as the program and only grows: an old key is still a secret after a reload.
    """
    if len(value) >= MIN_LITERAL:
        _literals.add(value)


def find_secret(text: str) -> str | None:
    """Name the kind of secret that a text holds, also when it is URL, base64 or hex coded; None when clean."""
    for literal in _literals:
        if literal in text:
            return "configured secret"
    if kind := _plain(text):
        return kind
    if "%" in text and (kind := _plain(unquote(text))):
        return kind
    for match in _ENCODED.finditer(text):
        raw = match.group()
        try:
            decoded = base64.b64decode(
                raw + "=" * (-len(raw) % 4), altchars=b"-_" if "-" in raw or "_" in raw else None
            )
        except (binascii.Error, ValueError):
            continue
        if kind := _plain(decoded.decode("latin-1")):
            return f"encoded {kind}"
    for match in _HEX.finditer(text):
        raw = match.group()
        if kind := _plain(bytes.fromhex(raw[: len(raw) // 2 * 2]).decode("latin-1")):
            return f"encoded {kind}"
    return None


def _plain(text: str) -> str | None:
    for literal in _literals:
        if literal in text:
            return "configured secret"
    return next((kind for kind, shape in _SHAPES.items() if shape.search(text)), None)


def scrub(text: str) -> str:
    """Replace every plain secret in a text by a mask."""
    for literal in _literals:
        if literal in text:
            text = text.replace(literal, MASK)
    for shape in _SHAPES.values():
        text = shape.sub(MASK, text)
    return text


def safe_length(text: str) -> int:
    """How much of a growing text may be shown now: up to the last place where a secret could be starting.

    The rest is held back until more text shows that it is harmless; at most `HELD_BACK` characters.
    """
    start = max(0, len(text) - HELD_BACK)
    tail = text[start:]
    cut = len(tail)
    word = max(tail.rfind(blank) for blank in " \n\t") + 1
    if match := _OPEN.search(tail, word):
        cut = match.start()
    for lead in (*_LEADS, *_literals):
        for size in range(min(len(lead) - 1, len(tail)), 0, -1):
            if tail.endswith(lead[:size]):
                cut = min(cut, len(tail) - size)
                break
    return start + cut
