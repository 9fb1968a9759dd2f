"""Markdown as models write it, in the form that a platform shows well, and in pieces that it takes.

Models write CommonMark with tables and strikethrough. A real parser reads it, so what is code stays code and
`snake_case` stays itself; texts that are no proper Markdown come out as they are, no word is ever lost.

Flow:   text -> replace_mentions -> split -> parse -> one of the forms; `split_for` does the last three at once
Floor:  messaging; the only importer of markdown-it-py, which is loaded at the first use
Source: messaging spec 7 (splitting), 8 (mentions), 14.3 and 19.14
"""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, TypeVar

from spacebot.messaging.text_forms import DiscordForm, Form, PlainForm, SlackForm, TelegramForm
from spacebot.messaging.text_split import code_spans, grapheme_cut, split
from spacebot.messaging.text_tree import Document, Kind, Node, words_of

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

__all__ = [
    "LONG_TEXT",
    "Document",
    "TelegramPart",
    "defuse_mass_mentions",
    "parse",
    "replace_mentions",
    "split",
    "split_for",
    "split_telegram",
    "to_discord",
    "to_plain",
    "to_slack",
    "to_telegram",
    "utf16_length",
]

LONG_TEXT = 8_000  # characters; converting longer texts takes more than a step of the loop may, so it takes a thread
TELEGRAM_LIMIT = 4096  # UTF-16 units of a message after its entities are parsed
TELEGRAM_RAW = 9000  # characters of HTML; the server refuses much longer requests before it parses them
DEEPEST = 60  # levels of lists and quotes; the parser drops what lies deeper, so such texts are shown as they are
MAX_BRACKETS = 400  # opening ones of a paragraph, beyond which it has no links
SMALLEST_SPLIT = 64  # below this limit a piece that does not fit is cut as plain words

_URL = re.compile(r"://[^\s<>\[\]`|\\\"]+")
_URL_SCHEME = re.compile(r"(?<![\w])https?$", re.IGNORECASE)
_BRACKETS = -1  # where the parser's cache keeps their number; its own keys are positions
_BRACKET_RUN = re.compile(r"[\[!]+")
_TAG = re.compile(r"<[^>]*>")
_LANGUAGE = re.compile(r"[A-Za-z0-9_+#.-]{1,40}")
_MASS_WORD = re.compile(r"@(?=(?:everyone|here|channel|group|all)\b)", re.IGNORECASE)
_MASS_TOKEN = re.compile(r"<(?=![a-z]|@&\d)", re.IGNORECASE)

_Converted = TypeVar("_Converted")


def parse(markdown: str) -> Document:
    """Read a text; whatever it holds, this does not fail."""
    text = markdown.replace("\r\n", "\n").replace("\r", "\n")
    tokens = _parser().parse(text)
    if any(token.level >= DEEPEST - 2 for token in tokens):
        return Document(text, (_verbatim(text),))
    return Document(text, tuple(_Builder(tokens, text).blocks()))


def to_discord(text: str) -> str:
    """Discord's Markdown: tables become code blocks, pictures links, small headings bold."""
    return _written(DiscordForm(), text)


def to_slack(text: str) -> str:
    """Slack's mrkdwn. `<@U…>` and `<#C…>` stay what they are; every other `<` is text, so nothing can ping a room."""
    return _written(SlackForm(), text)


def to_telegram(text: str) -> str:
    """The HTML that Telegram reads: its own few tags, everything else escaped."""
    return _written(TelegramForm(), text)


def to_plain(text: str) -> str:
    """Words without any marks; links as `label (address)`."""
    return _written(PlainForm(), text)


def _written(form: Form, text: str) -> str:
    return form.write(parse(text).blocks)


def utf16_length(text: str) -> int:
    """Length in UTF-16 units, as Telegram counts."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def split_for(text: str, convert: Callable[[str], str], limit: int, measure: Callable[[str], int] = len) -> list[str]:
    """Cut a Markdown text and convert each piece; every converted piece is within the limit, none is empty.

    Takes up to 3 ms for 1,000 characters: texts of more than `LONG_TEXT` belong in a thread.
    """
    pieces = _fitted(text, convert, lambda converted: measure(converted) <= limit, limit, measure)
    return [piece for piece in pieces if piece.strip()]


@dataclass(frozen=True, slots=True)
class TelegramPart:
    """One message: as HTML, and without marks for the case that the server does not accept the HTML."""

    html: str
    plain: str


def split_telegram(markdown: str, limit: int = TELEGRAM_LIMIT) -> list[TelegramPart]:
    """Cut a Markdown text into messages for Telegram. Both forms of each are within the limit in UTF-16 units.

    Takes up to 3 ms for 1,000 characters: texts of more than `LONG_TEXT` belong in a thread.
    """

    def convert(piece: str) -> TelegramPart:
        document = parse(piece)
        return TelegramPart(TelegramForm().write(document.blocks), PlainForm().write(document.blocks))

    def fits(part: TelegramPart) -> bool:
        shown = utf16_length(html.unescape(_TAG.sub("", part.html)))
        return shown <= limit and len(part.html) <= TELEGRAM_RAW and utf16_length(part.plain) <= limit

    return [part for part in _fitted(markdown, convert, fits, limit, utf16_length) if part.plain.strip()]


def _fitted(
    text: str,
    convert: Callable[[str], _Converted],
    fits: Callable[[_Converted], bool],
    limit: int,
    measure: Callable[[str], int],
) -> list[_Converted]:
    """The converted pieces. One that grows over the limit is cut again into smaller ones."""
    done: list[_Converted] = []
    waiting = [(piece, limit) for piece in reversed(split(text, limit, measure))]
    while waiting:
        piece, size = waiting.pop()
        converted = convert(piece)
        if len(piece) <= 1 or fits(converted):
            done.append(converted)
            continue
        smaller = min(size, measure(piece)) * 2 // 3
        pieces = split(piece, smaller, measure) if smaller >= SMALLEST_SPLIT else _halves(piece)
        waiting.extend((part, smaller) for part in reversed(pieces))
    return done


def _halves(piece: str) -> list[str]:
    middle = grapheme_cut(piece, (len(piece) + 1) // 2)
    return [half for half in (piece[:middle], piece[middle:]) if half.strip()]


def replace_mentions(text: str, mentions: Mapping[str, str]) -> str:
    """Put handles in the place of `@Name`, the longest name first, outside of code.

    Args:
        mentions: name as people see it -> handle. Written in other capitals a name is found when only one fits.
    """
    handles = {name: handle for name, handle in mentions.items() if name.strip() and handle}
    if not handles or "@" not in text:
        return text
    loose: dict[str, str | None] = {}
    for name, handle in handles.items():
        key = name.casefold()
        loose[key] = handle if loose.get(key, handle) == handle else None
    names = "|".join(re.escape(name) for name in sorted(handles, key=len, reverse=True))
    pattern = re.compile(rf"<@(?P<framed>{names})>|(?<![\w@/<])@(?P<bare>{names})(?![\w@]|[-.]\w)", re.IGNORECASE)

    def handle_of(found: re.Match[str]) -> str:
        name = found["framed"] or found["bare"]
        return handles.get(name) or loose.get(name.casefold()) or found[0]

    pieces: list[str] = []
    position = 0
    for start, end in code_spans(text):
        pieces += [pattern.sub(handle_of, text[position:start]), text[start:end]]
        position = end
    return "".join([*pieces, pattern.sub(handle_of, text[position:])])


def defuse_mass_mentions(text: str) -> str:
    """Make words that would call a whole room or role harmless, for platforms that have no switch for it.

    They look the same: a sign without width stands behind the `@` or `<`.
    """
    return _MASS_TOKEN.sub("<\u200b", _MASS_WORD.sub("@\u200b", text))


@lru_cache(maxsize=1)
def _parser() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": DEEPEST})
    parser.enable(["table", "strikethrough"])
    # A definition of an address that nothing refers to would vanish with its words; tags are words here.
    parser.disable(["reference", "html_block", "html_inline", "text_join"])
    parser.inline.ruler.before("escape", "bare_address", _bare_address)
    parser.inline.ruler.before("link", "brackets", _brackets)
    return parser


def _bare_address(state: "StateInline", silent: bool) -> bool:
    """Take an address as it stands as words, so that marks inside of it mean nothing."""
    start = state.pos
    if state.src[start] != ":" or not _URL_SCHEME.search(state.src, max(0, start - 6), start):
        return False
    found = _URL.match(state.src, start, state.posMax)
    if found is None:
        return False
    end = start + len(_trimmed_address(found[0]))
    if end <= start + 3:
        return False
    if not silent:
        state.pending += state.src[start:end]
    state.pos = end
    return True


def _brackets(state: "StateInline", silent: bool) -> bool:
    """Take brackets as words where there are so many of them that looking for links would take seconds."""
    if state.src[state.pos] not in "[!":
        return False
    if state.cache.setdefault(_BRACKETS, state.src.count("[")) <= MAX_BRACKETS:
        return False
    found = _BRACKET_RUN.match(state.src, state.pos, state.posMax)
    if found is None:
        return False
    if not silent:
        state.pending += found[0]
    state.pos = found.end()
    return True


def _trimmed_address(text: str) -> str:
    """Without what follows an address in prose: full stops, closing marks and brackets that it did not open."""
    while text:
        if text[-1] in ".,;:!?'*_~" or (text[-1] == ")" and text.count(")") > text.count("(")):
            text = text[:-1]
        else:
            break
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth < 0:  # the address of a link ends here
            return text[:position]
    return text


class _Builder:
    """Makes the tree of a text from the parser's flat list."""

    _CONTAINERS: ClassVar = {
        "paragraph_open": Kind.PARAGRAPH,
        "heading_open": Kind.HEADING,
        "bullet_list_open": Kind.LIST,
        "ordered_list_open": Kind.LIST,
        "list_item_open": Kind.ITEM,
        "blockquote_open": Kind.QUOTE,
    }
    _MARKS: ClassVar = {"em_open": Kind.EMPHASIS, "strong_open": Kind.STRONG, "s_open": Kind.STRIKE}

    def __init__(self, tokens: Sequence["Token"], source: str) -> None:
        self._tokens = tokens
        self._lines = source.split("\n")
        self._next = 0

    def blocks(self) -> list[Node]:
        """The blocks up to the end of the one that is open."""
        nodes: list[Node] = []
        while self._next < len(self._tokens):
            token = self._tokens[self._next]
            self._next += 1
            if token.nesting < 0:
                break
            nodes += self._block(token)
        return nodes

    def _block(self, token: "Token") -> list[Node]:
        if token.type in ("fence", "code_block"):
            return [_fence(token)]
        if token.type == "hr":
            return [Node(Kind.RULE)]
        if token.type == "inline":
            return _spoilers(_Inline(token.children or ()).nodes())
        if token.type == "table_open":
            return [self._table()]
        kind = self._CONTAINERS.get(token.type)
        if kind is None:
            return self.blocks() if token.nesting > 0 else [Node(Kind.PARAGRAPH, [Node(Kind.TEXT, text=token.content)])]
        node = Node(kind, self.blocks())
        if kind is Kind.HEADING:
            node.number = int(token.tag[1])
        elif kind is Kind.LIST:
            if token.type == "ordered_list_open":
                node.number, node.text = int(token.attrs.get("start", 1)), token.markup
            node.is_tight = all(
                block.is_tight for item in node.children for block in item.children if block.kind is Kind.PARAGRAPH
            )
        node.is_tight |= token.hidden  # the parser's word for a paragraph of a list without blank lines
        return [node]

    def _table(self) -> Node:
        table = Node(Kind.TABLE)
        while (token := self._tokens[self._next]).type != "table_close":
            self._next += 1
            if token.type == "tr_open":
                table.children.append(self._row(token, table))
        self._next += 1
        return table

    def _row(self, opening: "Token", table: Node) -> Node:
        row = Node(Kind.ROW)
        while (token := self._tokens[self._next]).type != "tr_close":
            self._next += 1
            if token.type in ("th_open", "td_open"):
                if token.type == "th_open":
                    style = str(token.attrs.get("style", ""))
                    table.info += ">" if style.endswith("right") else "^" if style.endswith("center") else "<"
                row.children.append(Node(Kind.CELL, self.blocks()))
        self._next += 1
        first = opening.map[0] if opening.map else 0
        if len(table.children) and first < len(self._lines):  # the parser drops the cells that have no column
            cells = _cells(self._lines[first])
            for extra in cells[len(row.children) :]:
                row.children.append(Node(Kind.CELL, [Node(Kind.TEXT, text=extra)]))
        return row


class _Inline:
    """Makes nodes of what stands inside of a line."""

    def __init__(self, tokens: Sequence["Token"]) -> None:
        self._tokens = tokens
        self._next = 0

    def nodes(self) -> list[Node]:
        """The nodes up to the end of the one that is open."""
        found: list[Node] = []
        while self._next < len(self._tokens):
            token = self._tokens[self._next]
            self._next += 1
            if token.nesting < 0:
                break
            found.append(self._node(token))
        return found

    def _node(self, token: "Token") -> Node:
        if token.type in _Builder._MARKS:
            return Node(_Builder._MARKS[token.type], _spoilers(self.nodes()), info=token.markup)
        if token.type == "link_open":
            address, title = str(token.attrs.get("href", "")), str(token.attrs.get("title", ""))
            return Node(Kind.LINK, self.nodes(), text=title, info=address)
        if token.type == "image":
            address, title = str(token.attrs.get("src", "")), str(token.attrs.get("title", ""))
            return Node(Kind.IMAGE, _Inline(token.children or ()).nodes(), text=title, info=address)
        if token.type == "code_inline":
            return Node(Kind.CODE, text=token.content, info=token.markup)
        if token.type in ("softbreak", "hardbreak"):
            return Node(Kind.BREAK)
        if token.type == "text_special" and token.content != token.markup:
            return Node(Kind.ESCAPED, text=token.content, info=token.markup)
        return Node(Kind.TEXT, text=token.content)


def _verbatim(text: str) -> Node:
    lines = text.strip("\n").split("\n")
    children = [node for line in lines for node in (Node(Kind.TEXT, text=line), Node(Kind.BREAK))]
    return Node(Kind.PARAGRAPH, children[:-1])


def _fence(token: "Token") -> Node:
    """A block of code. Words behind the language, which no platform shows, become its first line."""
    language, _, rest = token.info.strip().partition(" ")
    if not _LANGUAGE.fullmatch(language) or not token.content.strip():
        language, rest = "", token.info.strip()
    code = token.content.removesuffix("\n")
    return Node(Kind.FENCE, text=f"{rest.strip()}\n{code}" if rest.strip() else code, info=language)


def _cells(line: str) -> list[str]:
    """The cells of a table's row, as it stands in the source."""
    line = re.sub(r"^[\s>]*", "", line).strip().removeprefix("|")
    cells = re.split(r"(?<!\\)\|", line)
    if cells and not cells[-1].strip():
        cells.pop()
    return [cell.strip() for cell in cells]


def _spoilers(nodes: list[Node]) -> list[Node]:
    """Pair the `||` among nodes side by side; one without a partner stays a text."""
    parts: list[Node | None] = []  # None stands for a mark
    for node in nodes:
        if node.kind is Kind.TEXT and "||" in node.text:
            for position, text in enumerate(node.text.split("||")):
                parts += [None] if position else []
                parts += [Node(Kind.TEXT, text=text)] if text else []
        else:
            parts.append(node)
    if None not in parts:
        return nodes
    found: list[Node] = []
    inside: list[Node] | None = None
    for part in parts:
        if part is not None:
            (found if inside is None else inside).append(part)
        elif inside is None:
            inside = []
        elif (hidden := "".join(map(words_of, inside))) and hidden == hidden.strip():  # `a || b || c` hides nothing
            found.append(Node(Kind.SPOILER, inside))
            inside = None
        else:
            found += [Node(Kind.TEXT, text="||"), *inside]
            inside = []
    return found if inside is None else [*found, Node(Kind.TEXT, text="||"), *inside]
