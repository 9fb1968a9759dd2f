"""A Markdown text as a small tree: what the forms of the platforms are written from.

Floor: messaging
"""

from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """What a node is; blocks first, then what stands inside of lines."""

    PARAGRAPH = "paragraph"
    HEADING = "heading"  # number: 1 to 6
    LIST = "list"  # number: first number, None for bullets; text: the sign behind the number
    ITEM = "item"
    QUOTE = "quote"
    FENCE = "fence"  # text: the code; info: its language
    RULE = "rule"
    TABLE = "table"  # children: rows of cells; info: one of `<^>` for each column
    ROW = "row"
    CELL = "cell"

    TEXT = "text"
    ESCAPED = "escaped"  # a sign that is meant as itself; info: how it was written
    BREAK = "break"
    CODE = "code"
    EMPHASIS = "emphasis"
    STRONG = "strong"
    STRIKE = "strike"
    SPOILER = "spoiler"
    LINK = "link"  # info: the address; text: its title
    IMAGE = "image"  # info: the address; text: its title; children: the words that stand for it


@dataclass(slots=True)
class Node:
    """One piece of a text; which fields matter depends on `kind`."""

    kind: Kind
    children: list["Node"] = field(default_factory=list)
    text: str = ""
    info: str = ""
    number: int | None = None
    is_tight: bool = False  # of a list: no blank lines between its items


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed text."""

    source: str
    blocks: tuple[Node, ...]


def words_of(node: Node) -> str:
    """All words of a node without any marks."""
    if node.kind in (Kind.TEXT, Kind.ESCAPED, Kind.CODE, Kind.FENCE):
        return node.text
    return "\n" if node.kind is Kind.BREAK else "".join(words_of(child) for child in node.children)
