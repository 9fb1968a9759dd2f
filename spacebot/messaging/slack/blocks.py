"""Messages to people as Slack takes them: text in parts, each with blocks, and words for where blocks are not shown.

Slack has no polls and no embeds: a card becomes a few blocks, a poll numbered answers with a button each. Nothing here
can call a whole room: Slack has no switch for that, so words that would do it are made harmless, in given blocks too.

Flow:    OutboundMessage -> parts_of -> Part -> layouts -> chat.postMessage
Floor:   messaging
Source:  messaging spec 7 and 14.2; docs.slack.dev on Block Kit for the limits; slackapi/bolt-js issue 2509 for the sum
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from spacebot.messaging.messages import Button, ButtonStyle, Card, OutboundMessage, Poll, Rich, Row, Select
from spacebot.messaging.slack.controls import LINK_ACTION
from spacebot.messaging.text import defuse_mass_mentions, replace_mentions, split, to_slack

MARKDOWN = 12_000  # characters of all markdown blocks of a message
TOGETHER = 12_500  # characters of all blocks of a message; beyond about 13,000 Slack refuses
TEXT = 40_000  # characters of the words beside the blocks
BLOCKS = 50
SECTION = 3_000
HEADER = 150
FIELDS = 10
FIELD = 2_000
FIELDS_TOGETHER = 8_000  # characters of the fields of one section, so that a message can hold it
ACTIONS = 25
ACTIONS_TOGETHER = 10  # of ours in one block, for the same reason
OPTIONS = 100
LABEL = 75
OPTION_VALUE = 150
BUTTON_VALUE = 255  # Slack takes 2,000
ACTION_ID = 255
URL = 3_000
ALT = 2_000

_STYLES = {ButtonStyle.PRIMARY: "primary", ButtonStyle.SUCCESS: "primary", ButtonStyle.DANGER: "danger"}
_CALLS = ("broadcast", "usergroup")  # elements of rich text that would call many people

Block = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One message of those that an answer takes.

    Args:
        text: the words in Slack's own marks; what notifications show, and what is left when blocks are refused.
        markdown: the words as Markdown, for a block of their own.
        before, after: other blocks.
    """

    text: str
    markdown: str = ""
    before: tuple[Block, ...] = ()
    after: tuple[Block, ...] = ()

    def layouts(self, *, has_markdown: bool = True) -> list[list[Block]]:
        """Blocks to try, the fullest first, none at last.

        Args:
            has_markdown: the workspace takes markdown blocks.
        """
        words: list[Block] = []
        if self.markdown and has_markdown:
            words = [{"type": "markdown", "text": self.markdown}]
        elif self.markdown and self.after:
            words = [_section(piece) for piece in _mrkdwn_pieces(self.markdown)]
        full = [*self.before, *words, *self.after]
        fits = has_markdown or (_length(full) <= TOGETHER and len(full) <= BLOCKS)  # escapes make sections longer
        tries = [full] if full and fits else []
        if words and has_markdown and full != words:
            tries.append(words)
        return [*tries, []]


def parts_of(message: OutboundMessage, *, addressee: str | None = None) -> list[Part]:
    """Cut a message into parts; the same message gives the same parts again. Nothing comes of one without content.

    Takes a few milliseconds per 10,000 characters.

    Args:
        addressee: user id of the person whom the first part shows that it answers.
    """
    text = replace_mentions(defuse_mass_mentions(message.text), message.mentions)
    parts = [Part(text=_words(piece), markdown=piece) for piece in split(text, MARKDOWN)]
    if message.rich is not None:
        groups = list(_groups(_rich_blocks(message.rich)))
        if parts and groups and _length(groups[0]) + len(parts[-1].markdown) <= TOGETHER:
            parts[-1] = replace(parts[-1], after=tuple(groups.pop(0)))
        words = "" if parts else _words_of(message.rich)
        parts += [Part(text=words or "…", after=tuple(group)) for group in groups]
    if parts and addressee:
        mark = {"type": "context", "elements": [{"type": "mrkdwn", "text": f"↪ <@{addressee}>"}]}
        parts[0] = replace(parts[0], before=(mark,), text=f"<@{addressee}> {parts[0].text}"[:TEXT])
    return parts


def draft_of(text: str) -> Part:
    """A growing answer: all of it in one message, cut where it grows over."""
    text = defuse_mass_mentions(text)
    if len(text) > MARKDOWN:
        text = text[: MARKDOWN - 1] + "…"
    return Part(text=_words(text), markdown=text)


def _groups(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    """Blocks in messages that are not too large."""
    group: list[Block] = []
    for block in blocks:
        if group and (len(group) >= BLOCKS - 2 or _length([*group, block]) > TOGETHER):
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _length(value: Any) -> int:
    """Characters of all that blocks say, without what lists offer."""
    if isinstance(value, Mapping):
        return sum(_length(inner) for name, inner in value.items() if name != "options")
    if isinstance(value, list | tuple):
        return sum(map(_length, value))
    return len(value) if isinstance(value, str) else 0


def _rich_blocks(rich: Rich) -> Iterator[Block]:
    for card in rich.cards:
        yield from _card(card)
    if rich.poll is not None:
        yield from _poll(rich.poll)
    for row in rich.rows:
        yield from _row(row)
    for block in rich.blocks[:BLOCKS]:
        if isinstance(block.get("type"), str) and block["type"]:
            yield _harmless(dict(block))


def _card(card: Card) -> Iterator[Block]:
    yield from _context(card.author_name)
    title = card.title.strip()
    if title and card.url:
        yield _section(f"*<{_address(card.url)}|{_mrkdwn(_one_line(title), HEADER) or 'link'}>*")
    elif title:
        yield {"type": "header", "text": _plain(_one_line(title), HEADER)}
    pieces = _mrkdwn_pieces(card.description)
    for number, piece in enumerate(pieces):
        section = _section(piece)
        if number == 0 and card.thumbnail_url:
            section["accessory"] = _image(card.thumbnail_url, title)
        yield section
    fields = [
        {"type": "mrkdwn", "text": _cut(f"*{to_slack(_one_line(field.name))}*\n{_mrkdwn(field.value)}", FIELD)}
        for field in card.fields
        if field.name.strip() or field.value.strip()
    ]
    row: list[Block] = []
    for field in fields:
        if row and (len(row) >= FIELDS or _length([*row, field]) > FIELDS_TOGETHER):
            yield {"type": "section", "fields": row}
            row = []
        row.append(field)
    if row:
        yield {"type": "section", "fields": row}
    pictures = [card.image_url, None if pieces else card.thumbnail_url]
    yield from (_image(url, title) for url in pictures if url)
    yield from _context(card.footer)


def _poll(poll: Poll) -> Iterator[Block]:
    answers = [_one_line(answer) for answer in poll.answers if answer.strip()][:ACTIONS]
    if not poll.question.strip() or len(answers) < 2:
        return
    lines = "\n".join(f"{number}. {answer}" for number, answer in enumerate(answers, 1))
    yield _section(_mrkdwn(f"**{_one_line(poll.question)}**\n\n{lines}"))
    yield {
        "type": "actions",
        "elements": [
            {
                "type": "button",
                "text": _plain(f"{number}. {answer}", LABEL),
                "action_id": f"poll:{number}",
                "value": answer[:BUTTON_VALUE],
            }
            for number, answer in enumerate(answers, 1)
        ],
    }


def _row(row: Row) -> Iterator[Block]:
    elements: list[Block] = []
    known: set[str] = set()
    for button in row.buttons:
        element = _button(button)
        if element is not None and element["action_id"] not in known:  # twice in one block is refused
            known.add(element["action_id"])
            elements.append(element)
    for start in range(0, len(elements), ACTIONS_TOGETHER):
        yield {"type": "actions", "elements": elements[start : start + ACTIONS_TOGETHER]}
    if row.select is not None and row.select.options:
        yield {"type": "actions", "elements": [_select(row.select)]}


def _button(button: Button) -> Block | None:
    label = _one_line(button.label)
    element: Block = {"type": "button", "text": _plain(label or "…", LABEL)}
    if button.url:
        return {**element, "action_id": f"{LINK_ACTION}{button.url}"[:ACTION_ID], "url": button.url[:URL]}
    if not (button.custom_id or label):
        return None
    element |= {
        "action_id": (button.custom_id or label)[:ACTION_ID],
        "value": (label or button.custom_id)[:BUTTON_VALUE],
    }
    style = _STYLES.get(button.style)
    return {**element, "style": style} if style else element


def _select(select: Select) -> Block:
    options: list[Block] = []
    for option in select.options[:OPTIONS]:
        label = f"{option.emoji or ''} {option.label}".strip()
        entry: Block = {"text": _plain(label or option.value or "…", LABEL), "value": option.value[:OPTION_VALUE]}
        if option.description.strip():
            entry["description"] = _plain(_one_line(option.description), LABEL)
        options.append(entry)
    element: Block = {
        "type": "static_select",
        "action_id": select.custom_id[:ACTION_ID] or "select",
        "options": options,
    }
    if select.placeholder.strip():
        element["placeholder"] = _plain(select.placeholder, HEADER)
    return element


def _harmless(value: Any) -> Any:
    """A given block without anything that calls a whole room."""
    if isinstance(value, str):
        return defuse_mass_mentions(value)
    if isinstance(value, Mapping):
        if value.get("type") in _CALLS:
            return {"type": "text", "text": f"@\u200b{value.get('range') or 'group'}"}
        return {str(name): _harmless(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_harmless(inner) for inner in value]
    return value


def _words_of(rich: Rich) -> str:
    """What a message without text says where blocks are not shown."""
    words = [card.title or card.description for card in rich.cards]
    if rich.poll is not None:
        words.append(rich.poll.question)
    return _cut(_mrkdwn("\n".join(_one_line(word) for word in words if word.strip())), SECTION)


def _words(markdown: str) -> str:
    """A text for where no blocks are shown; one of nothing but marks stays as it is."""
    return to_slack(markdown)[:TEXT] or markdown.strip()[:TEXT] or "…"


def _section(mrkdwn: str) -> Block:
    return {"type": "section", "text": {"type": "mrkdwn", "text": mrkdwn}}


def _context(text: str) -> Iterator[Block]:
    mrkdwn = _mrkdwn(text, FIELD)
    if mrkdwn:  # some signs are only marks
        yield {"type": "context", "elements": [{"type": "mrkdwn", "text": mrkdwn}]}


def _image(url: str, title: str) -> Block:
    return {"type": "image", "image_url": url[:URL], "alt_text": _cut(_one_line(title), ALT) or "image"}


def _plain(text: str, limit: int) -> Block:
    return {"type": "plain_text", "text": _cut(text.strip() or "…", limit), "emoji": True}


def _mrkdwn(text: str, limit: int = SECTION) -> str:
    return _cut(to_slack(defuse_mass_mentions(text)), limit)


def _mrkdwn_pieces(text: str) -> list[str]:
    """A Markdown text as sections take it; signs that grow by their escapes leave room for that."""
    return [piece for part in split(defuse_mass_mentions(text), SECTION // 2) if (piece := _mrkdwn(part))]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _address(url: str) -> str:
    return url[:URL].replace("|", "%7C").replace(">", "%3E").replace("<", "%3C")


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
