"""Secret shapes: find them, scrub them, hold back what may be the start of one in a stream.

Two nets: the literal secrets of this instance (strongest, registered when the configuration and the secret store
are read) with every form they may be written in, and the shapes of well-known keys, also in URL, base64 and hex
coding (process spec 17.2).

Floor:   base
Source:  tools spec 14.1 and 14.2
"""

import base64
import binascii
import html
import json
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote, quote_plus, unquote

MASK = "[secret removed]"
MIN_LITERAL = 8  # shorter configured values are too common in ordinary text to be searched for
LONGEST = 256  # characters of the longest usual key
HELD_BACK = 4096  # characters a stream holds back while it may be inside a key; more for a longer configured one
LEAST_FORM = 4  # characters of an encoded secret that a stream may show: hardly two of the secret's own
LEAST_HALF = 16  # characters of half a secret that no ordinary text holds by chance
ALIGNED = 4096  # characters of a run up to which it is decoded from each of four places

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
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
_HEX = re.compile(r"\b[0-9a-fA-F]{40,}\b")
# Programs break long codes into lines of 60, 64 or 76 characters. Looked for at the beginning of a run only.
_WRAPPED = re.compile(r"(?<![A-Za-z0-9+/_-])(?:[A-Za-z0-9+/_-]{40,}\r?\n)+[A-Za-z0-9+/_-]+={0,2}")
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

# What a text that a shape fits must hold, and how long its word is at least: far quicker to look for than the shape.
_HINTS: tuple[tuple[str, int, str], ...] = (
    ("sk-ant-", 27, "anthropic key"),
    ("sk-or-", 26, "openrouter key"),
    ("sk-", 23, "openai key"),
    *((f"gh{kind}_", 40, "github token") for kind in "pousr"),
    ("github_pat_", 51, "github token"),
    ("AIza", 39, "google key"),
    (".", 59, "chat bot token"),
    ("xox", 15, "workspace token"),
    ("xapp-", 15, "workspace token"),
    (":", 44, "bot token"),
    ("BSA", 23, "search key"),
    ("AKIA", 20, "aws key"),
)
SHORTEST = 15  # characters of the shortest text that a shape fits
RUN = 24  # characters of a run that may be a code
WIDTH = 40  # characters of a line of a code in several lines

_RUN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_")
_PERCENT = re.compile(r"%[0-9A-F]{2}")


class _Known:
    """The secrets of this instance, and the forms in which they may appear; each longest first.

    The tuples are replaced, never changed: threads register while the loop reads.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self.values: tuple[str, ...] = ()
        self.forms: tuple[str, ...] = ()  # of whole values
        self.halves: tuple[str, ...] = ()  # of long values: who cuts one in two shows one of its halves
        self.long: tuple[str, ...] = ()  # values, forms and cores that are looked for across blanks and line ends too
        self.cores: tuple[str, ...] = ()  # what base64 makes of a value, without the characters its neighbours share
        self.longest = 0
        self.add(values)

    def add(self, values: Iterable[str]) -> None:
        with self._lock:
            new = set(values).difference(self.values)
            if not new:
                return
            forms = {form for value in new for form in _forms_of(value)}
            cores = {core for value in new for core in _cores_of(value)}
            self.longest = max(self.longest, *map(len, (*new, *forms, *cores)))
            self.forms = _longest_first({*self.forms, *forms})
            self.cores = _longest_first({*self.cores, *cores})
            for value in sorted(new):
                if len(value) >= 2 * LEAST_HALF:
                    self.halves = (*self.halves, value[: len(value) // 2], value[len(value) // 2 :])
            self.values = _longest_first({*self.values, *new})
            self.long = _longest_first(
                found for found in (*self.values, *self.forms, *self.cores)
                if len(found) >= LEAST_HALF and not any(map(str.isspace, found))
            )  # fmt: skip


def _longest_first(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(values, key=lambda value: (-len(value), value)))


def _forms_of(value: str) -> set[str]:
    """A value as it is written in URLs, in JSON, in JSON inside of JSON, in HTML, and as hexadecimal digits."""
    raw = value.encode(errors="surrogatepass")
    found = {raw.hex(), raw.hex().upper()}
    for coded in (quote(raw, safe=""), quote(raw), quote_plus(raw)):
        found |= {coded, _PERCENT.sub(lambda match: match.group().lower(), coded)}
    for plain in (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
        found |= {plain, plain.replace("/", r"\/"), json.dumps(plain)[1:-1]}
    found |= {html.escape(value), html.escape(value, quote=False)}
    return found - {value}


def _cores_of(value: str) -> set[str]:
    """The base64 characters that are the same whatever stands before and behind a value, for each alignment."""
    raw, found = value.encode(errors="surrogatepass"), set()
    for offset in range(3):
        first, last = -(-offset * 8 // 6), (offset + len(raw)) * 8 // 6
        for alphabet in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(alphabet(b"\0" * offset + raw).decode()[first:last])
    return found


_known = _Known()


def register_secret(value: str) -> None:
    """Remember a configured secret, so that it is scrubbed wherever it appears, in any usual coding.

    What is known lives as long as the program and only grows: an old key is still a secret after a reload. May be
    called from any thread.
    """
    register_secrets((value,))


def register_secrets(values: Iterable[str]) -> None:
    """The same for many at once, which costs little more than one."""
    _known.add(value for value in values if len(value) >= MIN_LITERAL)


def find_secret(text: str) -> str | None:
    """Name the kind of secret that a text holds, also when it is URL, base64 or hex coded; None when clean.

    For what goes out. Half of a configured secret counts too: the other half may go out with the next message.
    """
    if _is_clean(text):
        return "half of a configured secret" if any(half in text for half in _known.halves) else None
    if kind := _plain(text):
        return kind
    if _has_form(text) or _mask_spread(text) != text or any(_wrapped_end(match) for match in _WRAPPED.finditer(text)):
        return "encoded configured secret"
    if "%" in text and (kind := _plain(unquote(text))):
        return kind
    for match in (*_ENCODED.finditer(text), *_HEX.finditer(text)):
        if kind := _inside(match.group()):
            return f"encoded {kind}"
    return None


def _is_clean(text: str) -> bool:
    """Whether a text surely holds no secret; nearly every text is asked this and nothing else.

    All shapes but the private key's, and all codes, lie within a word. Looking at the long words alone, all at once,
    takes a tenth of the time.
    """
    if any(value in text for value in _known.values) or _has_form(text) or "PRIVATE KEY-----" in text:
        return False
    every = text.split()
    joined = "".join(every)
    if any(found in joined for found in _known.long):
        return False
    words = [word for word in every if len(word) >= SHORTEST]
    if _has_shape(words):
        return False
    quoted = [unquote(word) for word in every if "%" in word] if "%" in text else []
    if quoted and _has_plain(quoted):
        return False
    if _may_be_wrapped(text, words) and any(_wrapped_end(match) for match in _WRAPPED.finditer(text)):
        return False
    long = "\n".join(word for word in words if len(word) >= RUN)
    runs = (*_ENCODED.findall(long), *_HEX.findall(long)) if long else ()
    return not (runs and _has_plain([decoded for run in runs for decoded in _decoded(run)]))


def _has_shape(words: Sequence[str]) -> bool:
    whole = "\n".join(words)
    for hint, least, kind in _HINTS:
        if hint in whole:
            fitting = "\n".join(word for word in words if hint in word and len(word) >= least)
            if _SHAPES[kind].search(fitting):
                return True
    return False


def _has_plain(texts: Sequence[str]) -> bool:
    whole = "\n".join(texts)
    return any(value in whole for value in _known.values) or "PRIVATE KEY-----" in whole or _has_shape(texts)


def _may_be_wrapped(text: str, words: Iterable[str]) -> bool:
    """Whether some line ends in a word so long that it may be a line of a code."""
    if not any(len(word) >= WIDTH for word in words):
        return False
    return any(len(line) >= WIDTH and not any(map(str.isspace, line[-WIDTH:])) for line in text.splitlines())


def _has_form(text: str) -> bool:
    return any(form in text for form in (*_known.forms, *_known.cores))


def _wrapped_end(match: re.Match[str]) -> int:
    """How much of some lines is the code of a secret; 0 when none is. All lines but the last are equally long."""
    lines = match.group().splitlines(keepends=True)
    widths = [len(line.rstrip()) for line in lines]
    full = next((i for i, width in enumerate(widths) if width != widths[0]), len(lines))
    for count in (full + 1, full):  # the next line may be the code's last, or a word of the text
        run = "".join(line.rstrip() for line in lines[:count])
        if count <= len(lines) and (_has_form(run) or _inside(run)):
            return len("".join(lines[:count]).rstrip())
    return 0


def _plain(text: str) -> str | None:
    if any(value in text for value in _known.values):
        return "configured secret"
    if "PRIVATE KEY-----" not in text and not _has_shape((text,)):
        return None
    return next((kind for kind, shape in _SHAPES.items() if shape.search(text)), None)


def _inside(run: str) -> str | None:
    """The kind of secret that a run of base64 or hex holds."""
    return next((kind for decoded in _decoded(run) if (kind := _plain(decoded))), None)


def _decoded(run: str) -> Iterator[str]:
    """What a run may stand for. The words around a code can belong to its alphabet, so its start is not known."""
    if _HEX.fullmatch(run):
        yield bytes.fromhex(run[: len(run) // 2 * 2]).decode("latin-1")
    altchars = b"-_" if "-" in run or "_" in run else None
    for start in range(4 if len(run) <= ALIGNED else 1):
        part = run[start:].rstrip("=")
        part = part[:-1] if len(part) % 4 == 1 else part
        try:
            yield base64.b64decode(part + "=" * (-len(part) % 4), altchars=altchars).decode("latin-1")
        except (binascii.Error, ValueError):
            continue


def scrub(text: str) -> str:
    """Replace every secret in a text by a mask: plain ones, and coded ones with the whole code they stand in."""
    if _is_clean(text):
        return text
    for value in (*_known.values, *_known.forms):
        if value in text:
            text = text.replace(value, MASK)
    for core in _known.cores:
        if core in text:
            text = _mask_core(text, core)
    for shape in _SHAPES.values():
        text = shape.sub(MASK, text)
    text = _WRAPPED.sub(_mask_wrapped, text)
    text = _ENCODED.sub(_mask_coded, text)
    text = _HEX.sub(_mask_coded, text)
    if "%" in text:
        text = re.sub(r"\S+", _mask_quoted, text)
    return _mask_spread(text)


def _mask_spread(text: str) -> str:
    """Mask what stands with blanks or line ends in between: dumps in columns, codes in short lines."""
    for found in _known.long:
        while (start := "".join(text.split()).find(found)) >= 0:
            places = [place for place, character in enumerate(text) if not character.isspace()]
            text = text[: places[start]] + MASK + text[places[start + len(found) - 1] + 1 :]
    return text


def _mask_coded(match: re.Match[str]) -> str:
    return MASK if _inside(match.group()) else match.group()


def _mask_wrapped(match: re.Match[str]) -> str:
    end = _wrapped_end(match)
    return MASK + match.group()[end:] if end else match.group()


def _mask_quoted(match: re.Match[str]) -> str:
    word = match.group()
    return MASK if "%" in word and _plain(unquote(word)) else word


def _mask_core(text: str, core: str) -> str:
    """Mask every place of a core, and the neighbours that hold the rest of its first and last characters."""
    shown, position = [], 0
    while (found := text.find(core, position)) >= 0:
        start, end = found, found + len(core)
        while start > max(position, found - 2) and text[start - 1] in _RUN:
            start -= 1
        while end < min(len(text), found + len(core) + 2) and text[end] in _RUN:
            end += 1
        while end < len(text) and text[end] == "=":
            end += 1
        shown += [text[position:start], MASK]
        position = end
    return "".join([*shown, text[position:]])


def safe_length(text: str) -> int:
    """How much of a growing text may be shown now: up to the last place where a secret could be starting.

    The rest is held back until more text shows that it is harmless; at most `HELD_BACK` characters, or as many as
    the longest configured secret has.
    """
    start = max(0, len(text) - max(HELD_BACK, _known.longest))
    tail = text[start:]
    cut = len(tail)
    word = max(tail.rfind(blank) for blank in " \n\t") + 1
    if match := _OPEN.search(tail, word):
        cut = match.start()
    for lead in (*_LEADS, *_known.values):
        cut = min(cut, _beginning(tail, lead, 1))
    for form in (*_known.forms, *_known.cores):
        cut = min(cut, _beginning(tail, form, LEAST_FORM))
    return start + _before_secrets(tail, cut)


def _before_secrets(tail: str, cut: int) -> int:
    """Move a cut that goes through a whole secret before it: what begins there may be that secret's own end."""
    last = len(tail) + 1
    while cut < last:
        last = cut
        for secret in (*_known.values, *_known.forms, *_known.cores):
            found = tail.find(secret, max(0, cut - len(secret) + 1), cut + len(secret) - 1)
            cut = min(cut, found) if found >= 0 else cut
    return cut


def _beginning(tail: str, secret: str, least: int) -> int:
    """Where the first characters of a secret, `least` of them or more, end a text; the text's length if they do not."""
    anchor = secret[:8]
    found = tail.find(anchor, max(0, len(tail) - len(secret) + 1))
    while found >= 0:
        if secret.startswith(tail[found:]):
            return found
        found = tail.find(anchor, found + 1)
    for size in range(min(len(anchor), len(secret)) - 1, least - 1, -1):
        if tail.endswith(anchor[:size]):
            return len(tail) - size
    return len(tail)
