"""Bodies and texts as Telegram's server reads them: forms, its few HTML tags, what it finds in people's words."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from tests.stand_ins.serving import Request

_PLAIN_TAGS = {
    "b": "bold",
    "strong": "bold",
    "i": "italic",
    "em": "italic",
    "u": "underline",
    "ins": "underline",
    "s": "strikethrough",
    "strike": "strikethrough",
    "del": "strikethrough",
    "tg-spoiler": "spoiler",
    "span": "spoiler",
    "code": "code",
    "pre": "pre",
    "blockquote": "blockquote",
    "a": "text_link",
}
_CHARACTERS = {"lt": "<", "gt": ">", "amp": "&", "quot": '"'}
_ATTRIBUTE = re.compile(r"""\s+([a-zA-Z_-]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'))?""")
_TAG = re.compile(r"""<(/?)([a-zA-Z-]*)((?:\s+[a-zA-Z_-]+(?:\s*=\s*(?:"[^"]*"|'[^']*'))?)*)\s*>""")
_REFERENCE = re.compile(r"&(?:#(\d+)|#x([0-9a-fA-F]+)|([a-z]+));")
_FOUND = re.compile(r"(?<!\w)(?P<mention>@[A-Za-z][A-Za-z0-9_]{3,31})|(?:(?<=\s)|^)(?P<bot_command>/\w{1,64}(?:@\w+)?)")


class HtmlError(ValueError):
    """The server's reason for not reading some HTML."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a multipart body."""

    filename: str
    media_type: str
    data: bytes


def utf16_length(text: str) -> int:
    """Length in UTF-16 units."""
    return len(text.encode("utf-16-le")) // 2


def entities_of(text: str) -> list[dict[str, Any]]:
    """What the server marks in words that somebody typed: mentions and commands."""
    return [
        {
            "type": str(found.lastgroup),
            "offset": utf16_length(text[: found.start(str(found.lastgroup))]),
            "length": utf16_length(found[str(found.lastgroup)]),
        }
        for found in _FOUND.finditer(text)
    ]


def parse_html(source: str) -> tuple[str, list[dict[str, Any]]]:
    """Words and entities of HTML. Errors: HtmlError where the server would refuse."""
    words, at, length = [], 0, 0
    opened: list[tuple[str, int, Mapping[str, str]]] = []
    entities: list[dict[str, Any]] = []
    while at < len(source):
        if source[at] == "<":
            tag = _TAG.match(source, at)
            if tag is None:
                raise HtmlError(f"Unclosed start tag at byte offset {at}")
            name = tag[2].lower()
            if tag[1]:
                if not opened:
                    raise HtmlError(f"Unexpected end tag at byte offset {at}")
                expected, start, attributes = opened.pop()
                if name != expected:
                    raise HtmlError(
                        f'Unmatched end tag at byte offset {at}, expected "</{expected}>", found "</{name}>"'
                    )
                if length > start:
                    entities.append(_entity(name, start, length - start, attributes))
            else:
                attributes = {found[1].lower(): found[2] or found[3] or "" for found in _ATTRIBUTE.finditer(tag[3])}
                _check_tag(name, attributes, at)
                opened.append((name, length, attributes))
            at = tag.end()
            continue
        reference = _REFERENCE.match(source, at) if source[at] == "&" else None
        shown = _referred(reference) if reference is not None else None
        piece = shown if shown is not None else source[at]
        at = reference.end() if reference is not None and shown is not None else at + 1
        words.append(piece)
        length += utf16_length(piece)
    if opened:
        raise HtmlError(f'Can\'t find end tag corresponding to start tag "{opened[-1][0]}"')
    return "".join(words), sorted(entities, key=lambda entity: entity["offset"])


def _check_tag(name: str, attributes: Mapping[str, str], at: int) -> None:
    if name not in _PLAIN_TAGS:
        raise HtmlError(f'Unsupported start tag "{name}" at byte offset {at}')
    if name == "span" and attributes.get("class") != "tg-spoiler":
        raise HtmlError(f'Tag "span" must have class "tg-spoiler" at byte offset {at}')


def _entity(name: str, offset: int, length: int, attributes: Mapping[str, str]) -> dict[str, Any]:
    entity: dict[str, Any] = {"type": _PLAIN_TAGS[name], "offset": offset, "length": length}
    if name == "a":
        entity["url"] = attributes.get("href", "")
    return entity


def _referred(reference: re.Match[str]) -> str | None:
    if reference[1] or reference[2]:
        number = int(reference[1]) if reference[1] else int(reference[2], 16)
        return chr(number) if 0 < number < 0x110000 and not 0xD800 <= number < 0xE000 else None
    return _CHARACTERS.get(reference[3])


def form_of(request: Request) -> dict[str, Any]:
    """The parameters of a body: JSON, urlencoded or multipart, in which files become `Upload`s."""
    kind = request.headers.get("content-type", "")
    if kind.startswith("multipart/form-data"):
        return _multipart(request.body, kind.partition("boundary=")[2].strip('"').encode())
    if kind.startswith("application/json"):
        return dict(json.loads(request.body or b"{}"))
    return dict(parse_qsl(request.body.decode(), keep_blank_values=True))


def _multipart(body: bytes, boundary: bytes) -> dict[str, Any]:
    form: dict[str, Any] = {}
    uploads: dict[str, Upload] = {}
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary)[1:-1]:
        head, _, data = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        told = dict(re.findall(r'(name|filename)="([^"]*)"', headers["content-disposition"]))
        if "filename" in told:
            uploads[told["name"]] = Upload(told["filename"], headers.get("content-type", ""), data)
        else:
            form[told["name"]] = data.decode()
    for name, value in form.items():
        if isinstance(value, str) and value.startswith("attach://"):
            form[name] = uploads[value.removeprefix("attach://")]
    return form | {name: upload for name, upload in uploads.items() if not name.startswith("attached")}
