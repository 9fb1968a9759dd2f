"""How files that people sent are called, what they are, and how the model and the history are told of them. Pure.

What a file is decides its content before its name. Whatever a name or a content holds, it cannot leave the frame that
it is shown in.

Floor:  agent
Source: messaging spec 13; process spec 4.7
"""

import base64
import codecs
import hashlib
import mimetypes
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from spacebot.agent.documents import plain_text
from spacebot.agent.pictures import picture_of
from spacebot.agent.render import neutral
from spacebot.base.errors import RefusedError
from spacebot.base.ids import MessageId
from spacebot.conversations.attachment_log import KeptFile
from spacebot.llm.messages import Image, Part, Text
from spacebot.messaging.messages import Attachment

FOLDER = "attachments"  # in the workspace
PRIVATE = "_direct"  # in it: what came in direct chats, a folder for each; no name of a file begins so
MAX_PICTURE = 5 * 2**20 * 3 // 4  # bytes that stay within 5 MiB of base64, the least that providers take
MAX_SHOWN = 8 * 2**20  # bytes of all pictures of a turn; each request of the turn carries them
MAX_SIDE = 8000  # of a picture in pixels; providers refuse larger ones, and the whole request with them
MAX_CHARACTERS = 50_000  # of a text that the model reads
HEAD_BYTES = 4 * MAX_CHARACTERS + 4096  # of a text that are looked at
NOTE_CHARACTERS = 4000  # of a recording's words in the history
LONGEST_NAME = 80

_TEXT_TYPES = frozenset(
    f"application/{kind}"
    for kind in (
        *("json", "xml", "javascript", "x-javascript", "typescript", "x-typescript", "toml", "yaml", "x-yaml"),
        *("x-sh", "sql", "x-ndjson"),
    )
)
_TEXT_ENDINGS = frozenset(
    (
        *("c", "cc", "cfg", "conf", "cpp", "cs", "css", "csv", "diff", "go", "h", "hpp", "ini", "java", "js", "json"),
        *(
            "jsonl",
            "jsx",
            "kt",
            "log",
            "lua",
            "md",
            "patch",
            "php",
            "pl",
            "py",
            "rb",
            "rs",
            "rst",
            "sh",
            "sql",
            "swift",
        ),
        *("tex", "toml", "ts", "tsv", "tsx", "txt", "xml", "yaml", "yml"),
    )
)
_FRAME = re.compile(r"<(?=\s*/?\s*(?:file|voice_transcript)\b)", re.IGNORECASE)
_TYPE = re.compile(r"[a-z0-9.+-]{1,60}/[a-z0-9.+-]{1,80}")
_IN_PROMPT = str.maketrans({'"': "'", "<": "‹", ">": "›", "[": "(", "]": ")"})


@dataclass(slots=True)
class Item:
    """One file on its way to the model."""

    message_id: MessageId
    position: int
    attachment: Attachment
    adapter_key: str
    folder: str = ""  # below that of attachments; empty: the folder itself
    kept: KeptFile | None = None
    trouble: str = ""  # why there is nothing to show
    data: bytes = b""
    words: str = ""  # of a recording

    @property
    def name(self) -> str:
        """Its name as it may stand in a prompt."""
        return shown_name(self.attachment.filename)


# What a file is called


def private_folder(channel_id: str) -> str:
    """Where, below the folder of attachments, the files of one direct chat lie: known to whoever knows the chat."""
    return f"{PRIVATE}/{hashlib.sha256(channel_id.encode()).hexdigest()[:24]}"


def safe_name(filename: str, media_type: str) -> str:
    """A file's name without anything that means something to a file system, a shell or a prompt."""
    base = filename.replace("\\", "/").rpartition("/")[2]
    kept = "".join(c if c.isalnum() or c in "._-" else "_" for c in unicodedata.normalize("NFC", base))
    stem, dot, ending = re.sub(r"_{2,}", "_", kept).strip("._-").rpartition(".")
    if not dot or len(ending) > 12:
        stem, ending = f"{stem}{dot}{ending}", (mimetypes.guess_extension(media_type) or "").removeprefix(".")
    stem = stem[: LONGEST_NAME - len(ending) - 1].strip("._-") or "file"
    while len(stem.encode()) > 180:  # file systems count bytes, up to 255
        stem = stem[:-1]
    return f"{stem}.{ending}" if ending else stem


def free_names(name: str) -> Iterator[str]:
    yield name
    stem, dot, ending = name.rpartition(".")
    if not dot:
        stem, ending = name, ""
    number = 2
    while True:
        yield f"{stem}_{number}{dot}{ending}"
        number += 1


def shown_name(filename: str) -> str:
    """A file's name as it may stand in a prompt: one line, no quotes, no brackets that mean something."""
    plain = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in filename)
    return neutral(" ".join(plain.split()).translate(_IN_PROMPT))[:120] or "file"


# What a file is


def media_type_of(attachment: Attachment, served: str, data: bytes) -> str:
    """What a file is: by its content for pictures, else as the platform says, the server, or its name."""
    picture = picture_of(data)
    if picture is not None:
        return picture.media_type
    for claimed in (attachment.media_type, served, mimetypes.guess_type(attachment.filename)[0] or ""):
        kind = claimed.partition(";")[0].strip().lower()
        if _TYPE.fullmatch(kind) and kind not in ("application/octet-stream", "binary/octet-stream"):
            return kind
    return "application/octet-stream"


def is_text(media_type: str, filename: str) -> bool:
    """Whether a file's words are shown to the model."""
    if media_type.startswith("text/") or media_type in _TEXT_TYPES or media_type.endswith(("+json", "+xml", "+yaml")):
        return True
    return media_type == "application/octet-stream" and filename.rpartition(".")[2].lower() in _TEXT_ENDINGS


def is_audio(media_type: str) -> bool:
    """Whether a file is a recording."""
    return media_type.startswith("audio/") or media_type == "application/ogg"


def is_shown(media_type: str, filename: str) -> bool:
    """Whether the model gets more of a file than a line about it."""
    return media_type.startswith("image/") or is_audio(media_type) or is_text(media_type, filename)


# How it is told


def _about(item: Item) -> str:
    """`NAME (TYPE, SIZE)`."""
    kind = item.kept.media_type if item.kept is not None else item.attachment.media_type or "unknown type"
    size = item.kept.size_bytes if item.kept is not None else item.attachment.size_bytes
    shown = "unknown size" if size is None else f"{size / 1024:.1f} KB"
    return f"{item.name} ({shown_name(kind)}, {shown})"


def _where(item: Item) -> str:
    assert item.kept is not None
    return f"{FOLDER}/{item.kept.saved_name}"


def limit_pictures(items: Sequence[Item]) -> None:
    """Mark the pictures that go beyond what a turn may show."""
    total = 0
    for item in items:
        if item.kept is not None and picture_of(item.data) is not None and len(item.data) <= MAX_PICTURE:
            total += len(item.data)
            if total > MAX_SHOWN:
                total -= len(item.data)
                item.trouble = f"cannot be shown: the pictures before it take up the {MAX_SHOWN // 2**20} MiB of a turn"


def parts_of(item: Item) -> list[Part]:
    """What the model gets of a file; runs in a thread."""
    if item.kept is None:
        return [Text(f"[attachment {item.name} {neutral(item.trouble)}]")]
    kind = item.kept.media_type
    line = f"[attachment: {_about(item)}, kept as {_where(item)}"
    if picture := picture_of(item.data):
        if reason := item.trouble or _reason_against(len(item.data), picture.width, picture.height):
            return [Text(f"{line}; it {reason}]")]
        return [Text(f"{line}]"), Image(kind, base64.b64encode(item.data).decode("ascii"))]
    if kind.startswith("image/") and not is_text(kind, item.name):
        return [Text(f"{line}; it cannot be shown: its content is no JPEG, PNG, GIF or WebP picture]")]
    if is_audio(kind):
        if not item.words:
            reason = item.trouble or "could not be understood: no model hears recordings, routing.voice names none"
            return [Text(f"{line}; it {neutral(reason)}]")]
        return [Text(_framed("voice_transcript", item, item.words))]
    if is_text(kind, item.attachment.filename):
        try:
            return [Text(_framed("file", item, _words_of(item)))]
        except RefusedError as error:
            return [Text(f"{line}; it cannot be shown: {error}]")]
    return [Text(f"{line}; a worker can read it there]")]


def _reason_against(size: int, width: int, height: int) -> str:
    if size > MAX_PICTURE:
        return f"cannot be shown: pictures over {MAX_PICTURE / 2**20:.2f} MiB are too large, a worker can shrink it"
    if not width or not height:
        return "cannot be shown: the picture is damaged"
    if max(width, height) > MAX_SIDE:
        return f"cannot be shown: sides over {MAX_SIDE} pixels are too long, a worker can shrink it"
    return ""


def _framed(tag: str, item: Item, words: str) -> str:
    assert item.kept is not None
    inner = _FRAME.sub("‹", neutral(words))
    return f'<{tag} name="{item.name}" mime="{item.kept.media_type}" path="{_where(item)}">\n{inner}\n</{tag}>'


def _words_of(item: Item) -> str:
    """The beginning of a text, without secrets. Errors: RefusedError when it is binary data."""
    head = item.data[:HEAD_BYTES]
    if len(head) < len(item.data):
        with suppress(UnicodeDecodeError):  # drops the half of a character at the end, when this is UTF-8
            head = codecs.getincrementaldecoder("utf-8")().decode(head).encode()
    text = plain_text(head)
    if len(text) <= MAX_CHARACTERS and len(head) == len(item.data):
        return text
    total = f"{len(text):,} characters" if len(head) == len(item.data) else f"{len(item.data) / 1024:,.1f} KB"
    cut = f"[… cut after {MAX_CHARACTERS:,} characters of {total}; the whole is {_where(item)} …]"
    return f"{text[:MAX_CHARACTERS]}\n{cut}"


def note_of(item: Item) -> str:
    """A file's line in the history."""
    if item.kept is None:
        return f"[attachment {item.name} {neutral(item.trouble)}]"
    if item.words:
        words = item.words if len(item.words) <= NOTE_CHARACTERS else f"{item.words[:NOTE_CHARACTERS]}…"
        return f"[recording {item.name}, kept as {_where(item)}, says: {neutral(words)}]"
    return f"[attachment: {_about(item)}, kept as {_where(item)}]"


def merged(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Texts side by side as one."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, Text) and joined and isinstance(last := joined[-1], Text):
            joined[-1] = Text(f"{last.text}\n{part.text}")
        else:
            joined.append(part)
    return tuple(joined)
