"""An intake for tests of adapters: keeps what came in, and refuses or fails when told to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from spacebot.base.errors import StorageError
from spacebot.messaging.adapter import Receipt
from spacebot.messaging.messages import InboundMessage, MessageDeletion, MessageEdit, Target


@dataclass
class RecordingIntake:
    """What an adapter handed in, in order."""

    messages: list[InboundMessage] = field(default_factory=list)
    edits: list[MessageEdit] = field(default_factory=list)
    deletions: list[MessageDeletion] = field(default_factory=list)
    admits: Callable[[InboundMessage], bool] = lambda message: True
    failures: int = 0  # so many next calls of `take` fail as a full disk would
    heard_last: list[Target] = field(default_factory=list)  # what an earlier life took last
    refused: list[InboundMessage] = field(default_factory=list)
    _known: set[tuple[str, str]] = field(default_factory=set)
    _more: trio.Event = field(default_factory=trio.Event)

    async def take(self, message: InboundMessage) -> Receipt:
        await trio.lowlevel.checkpoint()
        if self.failures:
            self.failures -= 1
            self._note()
            raise StorageError("the disk is full")
        if not self.admits(message):
            self.refused.append(message)
            self._note()
            return Receipt.REFUSED
        if message.platform_id is not None:
            identity = (message.conversation_id, message.platform_id)
            if identity in self._known:
                self._note()
                return Receipt.DUPLICATE
            self._known.add(identity)
        self.messages.append(message)
        self._note()
        return Receipt.ACCEPTED

    async def edit(self, edit: MessageEdit) -> None:
        await trio.lowlevel.checkpoint()
        self.edits.append(edit)
        self._note()

    async def delete(self, deletion: MessageDeletion) -> None:
        await trio.lowlevel.checkpoint()
        self.deletions.append(deletion)
        self._note()

    async def last_heard(self, adapter_key: str) -> Sequence[Target]:
        await trio.lowlevel.checkpoint()
        return self.heard_last

    def is_admitted(self, message: InboundMessage) -> bool:
        return self.admits(message)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that came in makes the condition true."""
        while not condition():
            await self._more.wait()

    async def received(self, count: int) -> list[InboundMessage]:
        """Wait for so many messages; returns all."""
        await self.until(lambda: len(self.messages) >= count)
        return self.messages

    def _note(self) -> None:
        self._more.set()
        self._more = trio.Event()
