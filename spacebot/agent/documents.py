"""From the bytes of a document to its text.

PDF and HTML go through parsers that a hostile file can keep busy for hours or fill the memory with, and ten
megabytes of any text keep the interpreter's lock for longer than a conversation may wait: such documents are read in
a child process with a limit on time and memory, which can be ended at any moment. The parser of PDF is never loaded
into the daemon. Keys and other secrets that show by their shape are taken out here, where the whole text is at hand.

Flow:   read_text -> (child process, `spacebot extract-document KIND`) -> plain_text | html_text | pdf_text
Floor:  agent; the only importer of pypdf, in the child alone
Source: memory spec 13.2, 13.3
"""

import codecs
import io
import logging
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from html.parser import HTMLParser

import trio

from spacebot.base.errors import ExternalError, RefusedError
from spacebot.base.paths import program_command
from spacebot.base.redaction import scrub
from spacebot.base.text import preview

MAX_BYTES = 10 * 1024 * 1024  # of one document; memory spec 13.6
INLINE_BYTES = 128 * 1024  # of a plain text that is decoded in a thread of the daemon
MAX_TEXT = 20_000_000  # characters of extracted text
MAX_PAGES = 5_000
CHILD_S = 60.0  # for one document
CHILD_MEMORY = 1 << 30  # bytes of address space
CHILD_WORD = "extract-document"  # the hidden command that runs `run_child`
REFUSED = 3  # exit code of the child: what it said on stderr is the reason

TEXT_KINDS = frozenset(
    {"", "txt", "md", "markdown", "json", "jsonl", "csv", "tsv", "log", "xml", "yaml", "yml", "toml", "rst", "org"}
)
PARSED_KINDS = {"html": "html", "htm": "html", "pdf": "pdf"}
KINDS = TEXT_KINDS | PARSED_KINDS.keys()
_MARKS = (  # byte order marks; the longer ones first, UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\f\r\x1b")) + b"\x7f"
_MOST_CONTROLS = 0.01  # share of a text's bytes; compressed or compiled data has about a tenth
_WIDE_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_SAMPLE = 65_536  # bytes looked at for a wide encoding without a mark
_WIDE_ZEROS = 0.3  # share of zero bytes at one parity that speaks for UTF-16
_TO_BLANK = {code: " " for code in range(32) if code not in (9, 10)} | {127: " "}
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{2,40})", re.IGNORECASE)


def kind_of(name: str) -> str:
    """The ending of a file's name in lower case, without the dot; empty without one."""
    stem, dot, ending = name.rpartition(".")
    return ending.lower() if dot and stem else ""


async def read_text(name: str, data: bytes, *, command: Callable[[], list[str]] = program_command) -> str:
    """The text of a document: newlines as `\\n`, no byte order mark, no control characters. It may be empty.

    Args:
        name: decides the kind, by its ending.
        data: the whole file.
        command: the words that start this program again.

    Errors: RefusedError which says why nothing can be read and what to do; ExternalError when the child process
        could not be started.
    Cancel: ends the child process.
    """
    if len(data) > MAX_BYTES:
        raise RefusedError(f"larger than {MAX_BYTES // 2**20} MiB; split it into smaller files")
    parser = PARSED_KINDS.get(kind_of(name), "text")
    if parser == "text" and len(data) <= INLINE_BYTES:
        return await trio.to_thread.run_sync(plain_text, data)
    return await _read_in_child([*command(), CHILD_WORD, parser], parser, data)


def plain_text(data: bytes) -> str:
    """The text of a file of a plain kind. Errors: RefusedError when it is binary data."""
    return scrub(_tidy(_decode(data)))


def _tidy(text: str) -> str:
    """One form of newlines, and no control characters."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").translate(_TO_BLANK)


def _decode(data: bytes, declared: str | None = None) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding).removeprefix("\ufeff")
            except UnicodeDecodeError as error:
                raise RefusedError(f"its mark says {encoding}, its content is not; save it as UTF-8") from error
    if wide := _wide_encoding(data):
        with suppress(UnicodeDecodeError):
            text = data.decode(wide)
            if len(_WIDE_CONTROLS.findall(text)) <= len(text) * _MOST_CONTROLS:
                return text
    _refuse_binary(data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    if declared is not None:
        with suppress(LookupError, UnicodeDecodeError):
            return data.decode(declared)
    return _decode_foreign(data)


def _decode_foreign(data: bytes) -> str:
    """Decode what is no valid UTF-8: a damaged place or two in UTF-8, or an encoding of one byte."""
    lenient = data.decode("utf-8", errors="replace")
    damaged = lenient.count("\ufffd")
    if damaged * 4 <= sum(len(run) for run in re.findall(r"[^\x00-\x7f\ufffd]+", lenient)):
        return lenient
    if re.search(rb"[\x80-\x9f]", data):  # control characters in Latin-1, letters and quotes in Windows-1252
        with suppress(UnicodeDecodeError):
            return data.decode("cp1252")
    return data.decode("latin-1")


def _wide_encoding(data: bytes) -> str | None:
    sample = data[:_SAMPLE]
    if len(sample) < 4 or len(data) % 2:
        return None
    half = len(sample) // 2
    if sample[1::2].count(0) > half * _WIDE_ZEROS and sample[0::2].count(0) < half * 0.02:
        return "utf-16-le"
    if sample[0::2].count(0) > half * _WIDE_ZEROS and sample[1::2].count(0) < half * 0.02:
        return "utf-16-be"
    return None


def _refuse_binary(data: bytes) -> None:
    controls = len(data) - len(data.translate(None, _CONTROLS))
    if b"\0" in data or controls > len(data) * _MOST_CONTROLS:
        raise RefusedError("binary data, not text; export it as text, Markdown or PDF")


class _HtmlReader(HTMLParser):
    """Collects the words of a page; blocks become lines, list items get a dash, cells a bar."""

    DROPPED = frozenset({"script", "style", "template", "svg"})
    BLOCKS = frozenset({
        "address", "article", "aside", "blockquote", "body", "br", "dd", "div", "dl", "dt", "fieldset", "figcaption",
        "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p",
        "pre", "section", "table", "title", "tr", "ul",
    })  # fmt: skip

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._dropped: str | None = None
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._dropped is not None:
            self._depth += tag == self._dropped
        elif tag in self.DROPPED:
            self._dropped, self._depth = tag, 1
        elif tag == "li":
            self.parts.append("\n- ")
        elif tag in ("td", "th"):
            self.parts.append(" | ")
        elif len(tag) == 2 and tag[0] == "h" and tag[1] in "123456":
            self.parts.append("\n" + "#" * int(tag[1]) + " ")
        elif tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._dropped is None and tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self._dropped is not None:
            self._depth -= tag == self._dropped
            if self._depth == 0:
                self._dropped = None
        elif tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if self._dropped is None:
            self.parts.append(data if data.strip() else " ")


def html_text(data: bytes) -> str:
    """The words of a page. Errors: RefusedError when it is binary data, or has no words."""
    declared = _CHARSET.search(data[:4096])
    reader = _HtmlReader()
    reader.feed(_tidy(_decode(data, declared[1].decode("ascii") if declared else None)))
    reader.close()
    lines = (" ".join(line.split()).removeprefix("| ") for line in "".join(reader.parts).split("\n"))
    text = "\n".join(line for line in lines if line not in ("-", "#"))
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    if not text and data.strip():
        raise RefusedError("no text in it: it is drawn by scripts or pictures; save what you see as text or PDF")
    return scrub(text)


def pdf_text(data: bytes) -> str:
    """The words of a PDF, pages parted by an empty line.

    Errors: RefusedError: protected, damaged, without text, or too long.
    """
    from pypdf import PasswordType, PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError, PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
            raise RefusedError("protected by a password; save a copy without one")
        if len(reader.pages) > MAX_PAGES:
            raise RefusedError(f"more than {MAX_PAGES} pages; split it into smaller files")
        pages: list[str] = []
        length = 0
        for page in reader.pages:
            pages.append(page.extract_text().strip())
            length += len(pages[-1])
            if length > MAX_TEXT:
                raise RefusedError(f"more than {MAX_TEXT:,} characters of text; split it into smaller files")
    except (FileNotDecryptedError, DependencyError) as error:
        raise RefusedError("protected in a way that cannot be opened; save a copy without protection") from error
    except PyPdfError as error:
        raise RefusedError(f"damaged, or no PDF at all ({_one_line(error)}); save or download it again") from error
    text = scrub(_tidy("\n\n".join(page for page in pages if page)))
    if not text.strip():
        raise RefusedError("no text in it: its pages are pictures; run text recognition (OCR) over it first")
    return text


_PARSERS = {"text": plain_text, "html": html_text, "pdf": pdf_text}


async def _read_in_child(command: list[str], kind: str, data: bytes) -> str:
    """Run the parser in a process of its own."""
    with trio.move_on_after(CHILD_S):
        try:
            ended = await trio.run_process(
                command, stdin=data, capture_stdout=True, capture_stderr=True, check=False, deliver_cancel=_end,
                env=_environment(), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise ExternalError(f"the reader of documents cannot be started: {error.strerror}") from error
        if ended.returncode == 0:
            return ended.stdout.decode("utf-8")
        if ended.returncode == REFUSED:
            raise RefusedError(ended.stderr.decode("utf-8", errors="replace").strip())
        raise RefusedError(_why_it_broke(kind, ended))
    raise RefusedError(f"not read within {CHILD_S:.0f} s; it may be damaged: save it anew, or as plain text")


async def _end(process: trio.Process) -> None:
    process.kill()


def _environment() -> dict[str, str]:
    """What Python and the system's loader need; no keys."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "XDG_CACHE_HOME")
    ours = {name: value for name, value in os.environ.items() if name in kept or name.startswith("SPACEBOT_CACHE")}
    return ours | {"PYTHONUTF8": "1"}


def _why_it_broke(kind: str, ended: "subprocess.CompletedProcess[bytes]") -> str:
    last = ended.stderr.decode("utf-8", errors="replace").strip().rpartition("\n")[2]
    if "MemoryError" in last or ended.returncode < 0:
        return f"needs more memory or time than a document may ({kind}); save it as plain text, or split it"
    return f"damaged: its reader failed ({preview(last, 160)}); save it anew, or as plain text"


def _one_line(error: BaseException) -> str:
    return preview("".join(c for c in str(error) if unicodedata.category(c)[0] != "C"), 160) or type(error).__name__


def run_child(words: list[str]) -> int:
    """The child's side: a document from stdin, its text to stdout. Returns the exit code."""
    if len(words) != 1 or words[0] not in _PARSERS:
        print(f"usage: {CHILD_WORD} {'|'.join(_PARSERS)}", file=sys.stderr)
        return 2
    _limit_self()
    try:
        text = _PARSERS[words[0]](sys.stdin.buffer.read(MAX_BYTES + 1))
    except RefusedError as error:
        sys.stderr.buffer.write(str(error).encode("utf-8", errors="replace"))
        return REFUSED
    sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))
    return 0


def _limit_self() -> None:
    """Let the system end us when we take too much, also when nobody is left to do it."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (int(CHILD_S), int(CHILD_S) + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY, CHILD_MEMORY))
