"""What people see of an answer before it is there: that somebody writes, and its beginning.

Both are shown beside the turn and never hold it up; nothing depends on them. A draft that people saw is known to the
outbox, so that the answer takes its place, also in the next life of the program.

Flow:    turn begins -> Typing ; reply grows -> GrowingDraft ; answer recorded -> the outbox edits the draft
Floor:   agent
Source:  messaging spec 7 (typing, streaming)
"""

import logging
from collections.abc import Callable

import trio

from spacebot.agent.delivery import END_S, Delivery
from spacebot.base.errors import DeliveryError, StorageError
from spacebot.base.ids import ConversationId, MessageId
from spacebot.base.redaction import find_secret, scrub
from spacebot.base.telemetry import kv
from spacebot.conversations.records import LoggedMessage
from spacebot.messaging.messages import InboundMessage, Target
from spacebot.tools.channel import is_tool_syntax

log = logging.getLogger(__name__)

TYPING_S = 600.0  # longest sign of writing
DRAFT_CHARACTERS = 60  # of a growing answer before people see it
DRAFT_AFTER_S = 0.7  # and so long it must have been growing: a quick answer comes whole


class Typing:
    """The sign that an answer is being written; begins when it is made, ends with `end`."""

    def __init__(self, delivery: Delivery, adapter_key: str, target: Target) -> None:
        self._delivery = delivery
        self._adapter_key = adapter_key
        self._target = target
        self._ended = trio.Event()
        traits = delivery.courier.traits(adapter_key)
        if delivery.nursery is not None and traits is not None and traits.typing_every_s:
            delivery.nursery.start_soon(self._run, traits.typing_every_s)

    def end(self) -> None:
        """Take the sign away. Never waits."""
        self._ended.set()

    async def _run(self, every_s: float) -> None:
        courier = self._delivery.courier
        try:
            with trio.move_on_after(TYPING_S):
                while not self._ended.is_set() and (adapter := courier.connected(self._adapter_key)) is not None:
                    await adapter.show_typing(self._target)
                    with trio.move_on_after(every_s):
                        await self._ended.wait()
            if (adapter := courier.connected(self._adapter_key)) is not None:
                with trio.move_on_after(END_S):
                    await adapter.stop_typing(self._target)
        except DeliveryError as error:
            log.debug("typing not shown", extra=kv(adapter=self._adapter_key, reason=scrub(str(error))))
        except Exception as error:  # boundary: adapter
            log.error("adapter broke while showing typing", exc_info=error, extra=kv(adapter=self._adapter_key))


class GrowingDraft:
    """The beginning of one answer, edited as it grows.

    Args:
        reply_to: the message that is answered; the answer's own row takes the draft over by it.
    """

    def __init__(
        self, delivery: Delivery, adapter_key: str, target: Target, channel_id: ConversationId, reply_to: MessageId
    ) -> None:
        self._delivery = delivery
        self._adapter_key = adapter_key
        self._target = target
        self._channel_id = channel_id
        self._reply_to = reply_to
        self._read: Callable[[], str | None] = str
        self._draft_id: str | None = None
        self._more = trio.Event()
        self._calling = trio.Lock()
        self._call = trio.CancelScope()
        self._is_held = False
        self._is_late = False
        self._is_running = False

    def show(self, read: Callable[[], str | None]) -> None:
        """Show the whole text so far, as `read` gives it when it is time. Never waits."""
        traits = self._delivery.courier.traits(self._adapter_key)
        if traits is None or not traits.edit_every_s or not self._delivery.courier.streams(self._adapter_key):
            return
        self._read = read
        self._more.set()
        if not self._is_running and self._delivery.nursery is not None:
            self._is_running = True
            self._delivery.nursery.start_soon(self._run, traits.edit_every_s)

    async def hold(self) -> None:
        """Show nothing more; what is just being shown is known to the outbox when this returns."""
        self._is_held = True
        self._more.set()
        with trio.move_on_after(END_S) as patience:
            async with self._calling:
                pass
        self._is_late = patience.cancelled_caught
        if self._is_late and self._draft_id is not None:
            self._call.cancel()  # the answer takes this draft's place; an old text must not come after it

    async def drop(self) -> None:
        """Remove the draft: there will be no answer."""
        await self.hold()
        draft_id = await self._delivery.outbox.take_draft(self._channel_id, self._reply_to)
        if draft_id is not None and self._delivery.nursery is not None:
            self._delivery.nursery.start_soon(self._delivery.drop_draft, self._adapter_key, self._target, draft_id)

    async def _run(self, every_s: float) -> None:
        try:
            await trio.sleep(DRAFT_AFTER_S)
            if self._is_held:
                return
            self._draft_id = await self._delivery.outbox.draft(self._channel_id, self._reply_to)
            shown = ""
            while not self._is_held:
                text = (self._read() or "").strip()
                if len(text) >= DRAFT_CHARACTERS and text != shown:
                    if find_secret(text) or is_tool_syntax(text):
                        return
                    async with self._calling:
                        if self._is_held:
                            return
                        await self._show(text)
                    shown = text
                    await trio.sleep(every_s)
                else:
                    self._more = trio.Event()
                    await self._more.wait()
        except (DeliveryError, StorageError) as error:
            log.info("growing answer not shown", extra=kv(adapter=self._adapter_key, reason=scrub(str(error))))
        except Exception as error:  # boundary: adapter
            log.error("adapter broke while showing a draft", exc_info=error, extra=kv(adapter=self._adapter_key))

    async def _show(self, text: str) -> None:
        adapter = self._delivery.courier.connected(self._adapter_key)
        if adapter is None:
            return
        with trio.CancelScope() as self._call:
            draft_id = await adapter.draft(self._target, text, self._draft_id)
        if self._call.cancelled_caught or draft_id == self._draft_id:
            return
        if self._is_late:  # the answer went out without waiting for this
            await adapter.drop_draft(self._target, draft_id)
        else:
            self._draft_id = draft_id
            await self._delivery.outbox.note_draft(self._channel_id, self._reply_to, self._adapter_key, draft_id)


class Stage:
    """Where a turn speaks: the sign of writing, the growing answer, and the way of what was recorded.

    On conversations whose readers follow the log it does nothing.
    """

    def __init__(self, delivery: Delivery, channel_id: ConversationId, reply_to: MessageId | None) -> None:
        self._delivery = delivery
        self._channel_id = channel_id
        self._reply_to = reply_to
        self._place: tuple[str, Target] | None = None
        self._typing: Typing | None = None
        self._draft: GrowingDraft | None = None

    @property
    def adapter_key(self) -> str | None:
        """The adapter that delivers here; None where readers follow the log."""
        return self._place[0] if self._place else None

    @property
    def target(self) -> Target | None:
        """Where answers go."""
        return self._place[1] if self._place else None

    async def enter(self, message: InboundMessage | None) -> None:
        """Find out where that is, and show that somebody writes.

        Args:
            message: the one that is answered; None for finished work, whose place is looked up.
        """
        if message is None:
            self._place = await self._delivery.outbox.target(self._channel_id, self._reply_to)
        elif message.adapter is not None:
            target = Target(
                conversation_id=self._channel_id,
                is_direct=message.is_direct,
                data=message.metadata,
                message_id=message.platform_id,
            )
            self._place = (message.adapter, target)
        if self._place is not None:
            self._typing = Typing(self._delivery, *self._place)

    def show(self, read: Callable[[], str | None]) -> None:
        """Show a growing answer, the whole text so far of which `read` gives. Never waits."""
        if self._place is None or self._reply_to is None:
            return
        if self._draft is None:
            self._draft = GrowingDraft(self._delivery, *self._place, self._channel_id, self._reply_to)
        self._draft.show(read)

    async def settle(self) -> None:
        """Let a draft stand, because the answer is about to be recorded; the next answer begins another."""
        if self._draft is not None:
            await self._draft.hold()
            self._draft = None

    def recorded(self, row: LoggedMessage) -> None:
        """Send a recorded message on its way."""
        if row.is_queued:
            self._delivery.nudge(self._channel_id)

    def rest(self) -> None:
        """Take the sign of writing away."""
        if self._typing is not None:
            self._typing.end()

    async def leave(self, *, keeps_draft: bool) -> None:
        """Show nothing more; a draft that no answer came of is removed, unless the next turn takes it over."""
        self.rest()
        if self._draft is not None:
            draft, self._draft = self._draft, None
            await (draft.hold() if keeps_draft else draft.drop())
