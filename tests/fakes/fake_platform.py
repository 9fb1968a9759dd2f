"""A platform for tests of what lies behind adapters: keeps what went out, fails when told to, tells its past.

platform = FakePlatform()
async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
    await opened.agent.take(platform.message("Ann", "hi"), observe=False, may_control=True)
    assert [sent.text for sent in await platform.went_out(1)] == ["hello"]
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import trio

from spacebot.base.errors import DeliveryError
from spacebot.base.ids import ConversationId
from spacebot.messaging.adapter import Adapter, Destination, Intake, Location, Traits
from spacebot.messaging.messages import Attachment, Author, HistoryLine, InboundMessage, OutboundMessage, Target

TRAITS = Traits(
    max_characters=2000,
    typing_every_s=4.0,
    edit_every_s=1.0,
    max_file_bytes=2**20,
    can_react=True,
    can_thread=True,
    reads_history=True,
)
SENT_AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@dataclass
class Sent:
    """Something that went out."""

    target: Target
    message: OutboundMessage

    @property
    def text(self) -> str:
        return self.message.text


@dataclass
class FakePlatform:
    """One account of a platform called `fake`."""

    key: str = "fake"
    platform: str = "fake"
    traits: Traits = TRAITS
    sent: list[Sent] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # ids of the parts that went out
    drafts: list[tuple[str, str]] = field(default_factory=list)  # (id, text) of each drawing
    dropped: list[str] = field(default_factory=list)
    typing: list[str] = field(default_factory=list)  # "on", "off"
    past: list[HistoryLine] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)  # the next sends end with these
    part_size: int = 10_000
    fails_after_part: int | None = None  # the next send breaks off behind so many parts
    places: dict[str, Destination] = field(default_factory=dict)
    stalls: trio.Event | None = None  # while set to an event, sends wait for it
    number: int = field(default_factory=count().__next__)  # tells the platforms of one test run apart
    _count: int = 0
    _more: trio.Event = field(default_factory=trio.Event)

    def message(self, author: str, text: str, *, room: str = "fake:room", **fields: Any) -> InboundMessage:
        """Something that a person says."""
        self._count += 1
        return InboundMessage(
            platform=self.platform,
            adapter=self.key,
            conversation_id=ConversationId(room),
            author=Author(id=author.casefold(), name=author, handle=f"<{author.casefold()}>"),
            text=text,
            sent_at=fields.pop("sent_at", SENT_AT),
            platform_id=fields.pop("platform_id", f"in-{self.number}-{self._count}"),
            metadata={"room": room},
            **fields,
        )

    async def run(self, intake: Intake, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started("@bot")
        await trio.sleep_forever()

    async def send(self, target: Target, message: OutboundMessage, note_sent: Callable[[str], Awaitable[None]]) -> None:
        await trio.lowlevel.checkpoint()
        if self.stalls is not None:
            await self.stalls.wait()
        if self.failures:
            self._note()
            raise self.failures.pop(0)
        pieces = [message.text[i : i + self.part_size] for i in range(0, len(message.text), self.part_size)] or [""]
        for number, piece in enumerate(pieces[len(message.sent) :], len(message.sent)):
            if self.fails_after_part is not None and number >= self.fails_after_part:
                self.fails_after_part = None
                self._note()
                raise DeliveryError("the connection was lost", is_permanent=False)
            self.parts.append(piece)
            await note_sent(f"{message.id}/{number}")
        self.sent.append(Sent(target, message))
        self._note()

    async def show_typing(self, target: Target) -> None:
        self.typing.append("on")
        self._note()

    async def stop_typing(self, target: Target) -> None:
        self.typing.append("off")
        self._note()

    async def draft(self, target: Target, text: str, draft_id: str | None) -> str:
        await trio.lowlevel.checkpoint()
        draft_id = draft_id or f"draft-{len(self.drafts) + 1}"
        self.drafts.append((draft_id, text))
        self._note()
        return draft_id

    async def drop_draft(self, target: Target, draft_id: str) -> None:
        self.dropped.append(draft_id)
        self._note()

    async def history(self, target: Target, limit: int) -> Sequence[HistoryLine]:
        await trio.lowlevel.checkpoint()
        return self.past[-limit:]

    async def locate(self, attachment: Attachment) -> Location:
        return Location(url=attachment.url, may_be_private=True)

    async def resolve(self, address: str) -> Destination:
        await trio.lowlevel.checkpoint()
        if address not in self.places:
            raise DeliveryError(f"there is no {address!r}", is_permanent=True)
        return self.places[address]

    async def check(self) -> str:
        return "all is well"

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that happened makes the condition true."""
        while not condition():
            self._more = trio.Event()
            await self._more.wait()

    async def went_out(self, count: int) -> list[Sent]:
        """Wait for so many messages; returns all."""
        await self.until(lambda: len(self.sent) >= count)
        return self.sent

    def _note(self) -> None:
        self._more.set()


class FakeCourier:
    """Adapters that are connected unless taken away."""

    def __init__(self, *platforms: FakePlatform) -> None:
        self.platforms = {platform.key: platform for platform in platforms}
        self.away: set[str] = set()
        self.delivered = 0
        self.failed = 0
        self._changed = trio.Event()

    def take_away(self, key: str) -> None:
        """Let an adapter lose its connection."""
        self.away.add(key)

    def bring_back(self, key: str) -> None:
        """Connect it again."""
        self.away.discard(key)
        self._changed.set()
        self._changed = trio.Event()

    def keys(self) -> Collection[str]:
        return self.platforms.keys()

    def traits(self, key: str) -> Traits | None:
        platform = self.platforms.get(key)
        return platform.traits if platform else None

    def connected(self, key: str) -> Adapter | None:
        return None if key in self.away else self.platforms.get(key)

    async def wait_connected(self, key: str) -> Adapter:
        while (adapter := self.connected(key)) is None:
            await self._changed.wait()
        return adapter

    def note_delivery(self, key: str, *, is_delivered: bool) -> None:
        self.delivered += is_delivered
        self.failed += not is_delivered

    def streams(self, key: str) -> bool:
        return True


def without(traits: Traits = TRAITS, **changes: Any) -> Traits:
    """Traits with changes."""
    return replace(traits, **changes)
