"""The owner's text without the keys that stand in it in plain, and back again.

Each secret is shown as stars with a sign of its own, so that a text that was edited elsewhere, with its tables moved or
renamed, still gets the right secret back into the right place. The signs are made with a key of this process.

Floor:  config; may import base
Source: control spec 4.2 (config/raw), 8.1.10
"""

import hashlib
import hmac
import json
import re
import secrets
import tomllib
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any

from spacebot.base.errors import RefusedError
from spacebot.base.redaction import MASK, scrub
from spacebot.config.explain import is_reference
from spacebot.config.reading import ENDLESS_KEY, KeyPath, is_secret

_KEY = secrets.token_bytes(32)
_PAIR = re.compile(r"""(?P<key>[A-Za-z0-9_-]+)["']?[ \t]*=[ \t]*(["'])(?P<value>[^\n]+?)\2""")
_NAMED_SO = re.compile(r"(?:key|token|secret|password|passphrase|authorization|credential)s?$", re.IGNORECASE)
_SIGN = re.compile(r"\*{8}-[0-9a-f]{12}")
_STRING = re.compile(r"""#[^\n]*|\"{3}(?:\\.|[^\\])*?\"{3,5}|'{3}.*?'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*'""", re.DOTALL)
_SECRET_TABLES = frozenset({"env", "headers"})  # of MCP servers


def mask_text(text: str) -> str:
    """The text with every secret in plain behind stars; in one that is no TOML, what looks like one."""
    for value in _found(text):
        for spelling in _spellings(value):
            text = text.replace(spelling, spelling[0] + _sign(value) + spelling[-1])
    if left := {value for value in _found(text) if not _SIGN.fullmatch(value)}:  # over several lines, or escaped
        text = _STRING.sub(lambda match: _masked(match.group(), left), text)
    return scrub(text)


def _masked(token: str, values: Collection[str]) -> str:
    """A string as it is written, or its stars; comments stay."""
    with suppress(tomllib.TOMLDecodeError):
        if token[0] != "#" and (value := tomllib.loads(f"x = {token}")["x"]) in values:
            return f'"{_sign(value)}"'
    return token


def unmask_text(masked: str, original: str) -> str:
    """The text that somebody sends back, with the secrets of the original where their stars still stand.

    Errors: RefusedError when stars mean nothing, or a removed secret would be written as such.
    """
    by_sign = {_sign(value): value for value in _found(original)}
    if MASK in masked:
        line = masked[: masked.index(MASK)].count("\n") + 1
        raise RefusedError(
            f"line {line} holds {MASK!r} in place of a secret; write secret:NAME there, or edit the file"
        )

    def put_back(match: re.Match[str]) -> str:
        if (value := by_sign.get(match.group())) is None:
            line = masked.count("\n", 0, match.start()) + 1
            raise RefusedError(f"line {line} holds stars that mean no secret any more; load the file again")
        before = masked[match.start() - 1 : match.start()]
        return value if before == "'" else json.dumps(value, ensure_ascii=False)[1:-1]

    return _SIGN.sub(put_back, masked)


def _found(text: str) -> list[str]:
    """Secrets in plain, the longest first."""
    try:
        if ENDLESS_KEY.search(text) is not None:
            raise RecursionError
        return sorted(set(_walk(tomllib.loads(text), ())), key=len, reverse=True)
    except (tomllib.TOMLDecodeError, RecursionError):
        lines = (match for match in _PAIR.finditer(text) if _is_named_so((match["key"],)))
        return sorted({match["value"] for match in lines if not is_reference(match["value"])}, key=len, reverse=True)


def _walk(value: Any, path: KeyPath) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, path)
    elif isinstance(value, str) and _is_hidden(value, path):
        yield value


def _is_hidden(value: str, path: KeyPath) -> bool:
    if not value or is_reference(value) or value.startswith("${"):
        return False
    return _is_named_so(path) or not _SECRET_TABLES.isdisjoint(path[:-1])


def _is_named_so(path: KeyPath) -> bool:
    """Whether a key is called like one of a secret, also when it is misspelt or no key of ours."""
    name = next((part for part in reversed(path) if isinstance(part, str)), "")
    return is_secret(path) or _NAMED_SO.search(name) is not None


def _spellings(value: str) -> Iterator[str]:
    """How a value may be written: in both kinds of quotes, with what has to be escaped."""
    yield json.dumps(value, ensure_ascii=False)
    yield json.dumps(value)
    yield f'"{value}"'
    yield f"'{value}'"


def _sign(value: str) -> str:
    return "********-" + hmac.new(_KEY, value.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:12]
