"""The forms that platforms show, written from the tree of a text.

A form gives each kind of node the platform's marks. What a platform cannot show keeps its words: a table becomes
aligned columns, a picture a link, a link to an unknown scheme its label and address.

Floor:  messaging
Source: messaging spec 7, 14.1 to 14.4
"""

import html
import re
import unicodedata
from collections.abc import Sequence
from typing import ClassVar
from urllib.parse import unquote

from spacebot.messaging.text_tree import Kind, Node, words_of

WIDEST_COLUMN = 40  # columns of a table are padded up to this width; a longer cell pushes the rest of its row
RULE = "──────────"
_LINKED = re.compile(r"(?:https?://|mailto:)[^\s<>]+", re.IGNORECASE)
_ZERO_WIDTH = "\u200b"


def columns_of(text: str) -> int:
    """How many columns a text takes in a font of one width."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.category(character) in ("Mn", "Me", "Cf") for character in text)


def aligned(table: Node) -> str:
    """A table as lines of equal columns, with a line below its head."""
    rows = [[_cell_words(cell) for cell in row.children] for row in table.children]
    count = max((len(row) for row in rows), default=0)
    rows = [row + [""] * (count - len(row)) for row in rows]
    signs = table.info.ljust(count, "<")
    widths = [min(max(columns_of(row[column]) for row in rows), WIDEST_COLUMN) for column in range(count)]
    lines = [" │ ".join(map(_padded, row, widths, signs)).rstrip() for row in rows]
    if len(lines) > 1:
        lines.insert(1, "─┼─".join("─" * width for width in widths))
    return "\n".join(lines)


def _cell_words(cell: Node) -> str:
    return " ".join(PlainForm().inline(cell.children).split())


def _padded(text: str, width: int, sign: str) -> str:
    missing = max(width - columns_of(text), 0)
    left = missing if sign == ">" else missing // 2 if sign == "^" else 0
    return " " * left + text + " " * (missing - left)


class Form:
    """Writes a tree. What is common: the order of blocks, lists, what marks stand around what."""

    BULLETS: ClassVar[tuple[str, ...]] = ("-",)
    INDENT: ClassVar[int] = 2
    MARKS: ClassVar[dict[Kind, tuple[str, str]]] = {}

    def __init__(self) -> None:
        self._active: list[Kind] = []  # the marks that stand open
        self._depth = 0  # of lists

    def write(self, nodes: Sequence[Node]) -> str:
        """The text of some blocks."""
        return self.blocks(nodes).strip("\n")

    def blocks(self, nodes: Sequence[Node], gap: str = "\n\n") -> str:
        """Blocks, one below the other; those without any words are left out."""
        return gap.join(text for node in nodes if (text := self.block(node)))

    def block(self, node: Node) -> str:
        """One block."""
        match node.kind:
            case Kind.PARAGRAPH:
                return self.inline(node.children)
            case Kind.HEADING:
                return self.heading(node)
            case Kind.LIST:
                return self.listed(node)
            case Kind.QUOTE:
                return self.quote(node)
            case Kind.FENCE:
                return self.code_block(node.text, node.info)
            case Kind.TABLE:
                return self.code_block(aligned(node), "")
            case Kind.RULE:
                return RULE
            case _:
                return self.inline([node])

    def heading(self, node: Node) -> str:
        """A heading: a bold line where there are none."""
        return self.marked(Node(Kind.STRONG, node.children))

    def listed(self, node: Node) -> str:
        """A list; what belongs to an item is indented below it."""
        bullet = self.BULLETS[min(self._depth, len(self.BULLETS) - 1)]
        lines = []
        for position, item in enumerate(node.children):
            sign = bullet if node.number is None else f"{node.number + position}{node.text or '.'}"
            self._depth += 1
            body = self.blocks(item.children, "\n")
            self._depth -= 1
            lines.append(self.indented(body, f"{sign} ", self.INDENT if node.number is None else len(sign) + 1))
        return ("\n" if node.is_tight or self._depth else "\n\n").join(lines)

    def indented(self, body: str, sign: str, width: int) -> str:
        """An item behind its sign; code keeps its own column."""
        lines = []
        is_code = False
        for position, line in enumerate(body.split("\n")):
            is_edge = self.is_code_edge(line)
            lines.append((sign if position == 0 else "" if is_code or is_edge or not line else " " * width) + line)
            is_code ^= is_edge
        if lines[0].removeprefix(sign) and self.is_code_edge(lines[0].removeprefix(sign)):
            lines[0] = f"{sign}\n{lines[0].removeprefix(sign)}"
        return "\n".join(lines)

    def is_code_edge(self, line: str) -> bool:
        """Whether a written line begins or ends a block of code."""
        return line.startswith("```")

    def quote(self, node: Node) -> str:
        """A quotation."""
        return "\n".join(f"> {line}".rstrip() for line in self.blocks(node.children).split("\n"))

    def code_block(self, code: str, language: str) -> str:
        """Code as it is."""
        safe = code.replace("```", f"`{_ZERO_WIDTH}`{_ZERO_WIDTH}`")
        return f"```\n{safe}\n```"

    def inline(self, nodes: Sequence[Node]) -> str:
        """What stands inside of lines."""
        return "".join(self.piece(node) for node in nodes)

    def piece(self, node: Node) -> str:
        """One piece of a line."""
        match node.kind:
            case Kind.TEXT:
                return self.text(node.text)
            case Kind.ESCAPED:
                return self.escaped(node)
            case Kind.BREAK:
                return "\n"
            case Kind.CODE:
                return self.code(node.text)
            case Kind.LINK | Kind.IMAGE:
                return self.link(node)
            case _:
                return self.marked(node)

    def marked(self, node: Node) -> str:
        """Words between marks; marks that stand already are not doubled."""
        opening, closing = self.MARKS.get(node.kind, ("", ""))
        if node.kind in self._active or not opening:
            return self.inline(node.children)
        self._active.append(node.kind)
        words = self.inline(node.children)
        self._active.pop()
        bare = words.strip()
        if not bare:
            return words
        lead = words[: len(words) - len(words.lstrip())]
        return f"{lead}{opening}{bare}{closing}{words[len(lead) + len(bare) :]}"

    def link(self, node: Node) -> str:
        """A link or picture."""
        label = " ".join(self.inline(node.children).split("\n")).strip()
        title = f" ({self.text(node.text)})" if node.text else ""
        if not node.info:
            return label + title
        words = words_of(node).strip()
        if unquote(node.info.removeprefix("mailto:")) == unquote(words):  # an address that stands for itself
            words = node.info
        if self.is_linkable(node.info):
            return self.linked(label, words, node.info) + title
        return (label if words == node.info else f"{label} ({self.text(node.info)})".strip()) + title

    def is_linkable(self, address: str) -> bool:
        """Whether the platform makes a link of an address."""
        return _LINKED.fullmatch(address) is not None

    def linked(self, label: str, words: str, address: str) -> str:
        """A link. `label` is written already; `words` are its words without marks, or the address itself."""
        return f"{label} ({address})" if words and words != address else label or address

    def text(self, text: str) -> str:
        """Plain words."""
        return text

    def escaped(self, node: Node) -> str:
        """A sign that is meant as itself."""
        return self.text(node.text)

    def code(self, text: str) -> str:
        """Code inside of a line."""
        return f"`{text}`"


class PlainForm(Form):
    """No marks at all."""

    def heading(self, node: Node) -> str:
        """A line of its own."""
        return self.inline(node.children)

    def code_block(self, code: str, language: str) -> str:
        """The lines of the code."""
        return code

    def code(self, text: str) -> str:
        """The words of the code."""
        return text

    def is_code_edge(self, line: str) -> bool:
        """Nothing is marked here."""
        return False


class DiscordForm(Form):
    """Discord's own Markdown."""

    MARKS: ClassVar = {
        Kind.STRONG: ("**", "**"),
        Kind.STRIKE: ("~~", "~~"),
        Kind.SPOILER: ("||", "||"),
        Kind.EMPHASIS: ("*", "*"),
    }
    _SPECIAL = frozenset("\\`*_~|<>#-+:[]()")

    def heading(self, node: Node) -> str:
        """Three sizes; below them bold."""
        if node.number is None or node.number > 3:
            return super().heading(node)
        return f"{'#' * node.number} {self.inline(node.children)}"

    def code_block(self, code: str, language: str) -> str:
        """Code with the colours of its language."""
        return super().code_block(code, "").replace("```", f"```{language}", 1)

    def marked(self, node: Node) -> str:
        """As it was written, for emphasis: only `_` may touch a `*`."""
        if node.kind is Kind.EMPHASIS and node.info == "_" and Kind.EMPHASIS not in self._active:
            self._active.append(Kind.EMPHASIS)
            words = self.inline(node.children)
            self._active.pop()
            return f"_{words}_"
        return super().marked(node)

    def is_linkable(self, address: str) -> bool:
        """Addresses of the web alone."""
        return super().is_linkable(address) and not address.lower().startswith("mailto:")

    def linked(self, label: str, words: str, address: str) -> str:
        """A masked link; an address alone stays without a preview when it was written so."""
        if not words or words == address:
            return f"<{address}>" if words else address
        return f"[{label}]({address.replace('(', '%28').replace(')', '%29')})"

    def escaped(self, node: Node) -> str:
        """Escaped here too where it would mean something."""
        return f"\\{node.text}" if node.text in self._SPECIAL else node.text

    def code(self, text: str) -> str:
        """Between as many marks as it takes."""
        if "`" not in text:
            return f"`{text}`"
        return f"`` {text} ``" if "``" not in text else "`" + text.replace("`", "ˋ") + "`"


class SlackForm(Form):
    """Slack's mrkdwn."""

    BULLETS: ClassVar = ("•", "◦", "▪")
    INDENT: ClassVar = 4
    MARKS: ClassVar = {Kind.STRONG: ("*", "*"), Kind.EMPHASIS: ("_", "_"), Kind.STRIKE: ("~", "~")}
    _HANDLE = re.compile(r"&lt;(@[UW][A-Z0-9]{5,20}|#[CG][A-Z0-9]{5,20})(?:\|[^&|<>\n]{0,80})?&gt;")

    def text(self, text: str) -> str:
        """Words, with people and rooms that are named by their ids."""
        return self._HANDLE.sub(r"<\1>", html.escape(text, quote=False))

    def escaped(self, node: Node) -> str:
        """A sign without width keeps it from pairing up."""
        return f"{node.text}{_ZERO_WIDTH}" if node.text in "*_~`" else html.escape(node.text, quote=False)

    def inline(self, nodes: Sequence[Node]) -> str:
        """Marks count between words only, so inside of a word they get borders without width."""
        pieces: list[str] = []
        is_marked = False
        for node in nodes:
            text = self.piece(node)
            if not text:
                continue
            was_marked, is_marked = is_marked, node.kind in self.MARKS or node.kind is Kind.CODE
            if pieces and (is_marked or was_marked) and _touches(pieces[-1], is_marked, text, was_marked):
                pieces.append(_ZERO_WIDTH)
            pieces.append(text)
        return "".join(pieces)

    def code_block(self, code: str, language: str) -> str:
        """Code; mrkdwn knows no languages."""
        return super().code_block(html.escape(code, quote=False), "")

    def code(self, text: str) -> str:
        """Code inside of a line."""
        return f"`{html.escape(text.replace('`', 'ˋ'), quote=False)}`"

    def linked(self, label: str, words: str, address: str) -> str:
        """A labelled link; what would end it early is coded."""
        target = html.escape(address, quote=False).replace("|", "%7C")
        shown = " ".join(html.escape(words, quote=False).replace("|", "¦").split())  # marks mean nothing in a label
        return f"<{target}|{shown}>" if words and words != address else f"<{target}>"


def _touches(before: str, is_marked: bool, text: str, was_marked: bool) -> bool:
    return (is_marked and before[-1].isalnum()) or (was_marked and text[0].isalnum()) or (is_marked and was_marked)


class TelegramForm(Form):
    """The HTML of Telegram's messages."""

    BULLETS: ClassVar = ("•", "◦", "▪")
    MARKS: ClassVar = {
        Kind.STRONG: ("<b>", "</b>"),
        Kind.EMPHASIS: ("<i>", "</i>"),
        Kind.STRIKE: ("<s>", "</s>"),
        Kind.SPOILER: ("<tg-spoiler>", "</tg-spoiler>"),
    }
    _PERSON = re.compile(r"tg://user\?id=\d{1,20}")

    def __init__(self) -> None:
        super().__init__()
        self._quotes = 0

    def text(self, text: str) -> str:
        """Words; quotes are escaped as well, so that a text is safe wherever it is put."""
        return html.escape(text, quote=True).replace("&#x27;", "&#39;")

    def code(self, text: str) -> str:
        """Code inside of a line."""
        return f"<code>{self.text(text)}</code>"

    def code_block(self, code: str, language: str) -> str:
        """Code with the colours of its language."""
        safe = self.text(code)
        return (
            f'<pre><code class="language-{self.text(language)}">{safe}</code></pre>'
            if language
            else f"<pre>{safe}</pre>"
        )

    def is_code_edge(self, line: str) -> bool:
        """A block that ends on the line it began on is no edge."""
        return line.startswith("<pre>") != line.endswith("</pre>")

    def quote(self, node: Node) -> str:
        """A quotation; the server refuses one inside of another, so the inner one is a part of the outer."""
        self._quotes += 1
        body = self.blocks(node.children)
        self._quotes -= 1
        return body if self._quotes or not body else f"<blockquote>{body}</blockquote>"

    def is_linkable(self, address: str) -> bool:
        """Addresses of the web, and people by their id."""
        return super().is_linkable(address) or self._PERSON.fullmatch(address) is not None

    def linked(self, label: str, words: str, address: str) -> str:
        """A link with its address in quotes."""
        return f'<a href="{self.text(address)}">{label if words else self.text(address)}</a>'
