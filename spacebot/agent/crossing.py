"""Saying something in another conversation: found by name or address, recorded there, delivered there.

Only places that the agent knows already can be reached, or rooms by their address; nobody gets a first private message
because somebody else asked for it.

Floor:  agent
Source: messaging spec 5 and 8; pitfall 26 of its section 19, process spec P37, P66, P67
"""

from collections.abc import Callable, Sequence

from spacebot.agent.announcing import announce
from spacebot.agent.delivery import Delivery
from spacebot.base.errors import DeliveryError, NotFoundError, RefusedError, ToolError
from spacebot.base.events import EventBus
from spacebot.base.ids import AgentId, ConversationId, platform_of
from spacebot.base.redaction import scrub
from spacebot.conversations.log import Conversations
from spacebot.conversations.records import ChannelRecord, LoggedMessage
from spacebot.conversations.rooms import Rooms
from spacebot.messaging.addresses import parse_address
from spacebot.tools.recall_channel import resolve_channel

HOME = "home"
KNOWN = 500  # conversations looked through
LISTED = 12  # of them that a prompt names


class Crossing:
    """The way from one conversation of an agent into another."""

    def __init__(
        self, rooms: Rooms, conversations: Conversations, delivery: Delivery, *, agent_id: AgentId, events: EventBus
    ) -> None:
        self._rooms = rooms
        self._conversations = conversations
        self._delivery = delivery
        self._agent_id = agent_id
        self._events = events
        self.inject: Callable[[LoggedMessage], None] = lambda row: None  # a live channel learns what was said in it

    async def reachable(self, channel_id: ConversationId, person: str | None) -> Sequence[ChannelRecord]:
        """Conversations that a prompt may name: rooms, and the direct chats of the person who asks."""
        found = await self._rooms.reachable(
            without=channel_id, platform=platform_of(channel_id), person=person, limit=LISTED
        )
        keys = self._delivery.courier.keys()
        return [channel for channel in found if channel.adapter in keys]

    async def say(self, target: str, text: str, *, here: ConversationId, person: str | None) -> str:
        """Say something elsewhere; returns the place's name.

        Args:
            here: the conversation that asks.
            person: who asks, as the platform's id.

        Errors: ToolError when the place is not known or cannot be reached; StorageError.
        """
        channel_id, name = await self.find(target, here=here, person=person)
        if channel_id == here:
            raise ToolError("that is this conversation; say it with reply")
        self.announce(await self._conversations.record_reply(None, channel_id, text))
        return name

    def announce(self, row: LoggedMessage) -> None:
        """Send on its way what was recorded in another conversation. Never waits."""
        self.inject(row)
        announce(self._events, self._agent_id, row)
        self._delivery.nudge(row.channel_id)

    def is_address(self, target: str) -> bool:
        """Whether a text names an adapter that is configured, and a place there."""
        try:
            parse_address(target, self._delivery.courier.keys())
        except (NotFoundError, RefusedError):
            return False
        return True

    async def find(self, target: str, *, here: ConversationId, person: str | None) -> tuple[ConversationId, str]:
        """A conversation that can be reached from another, with its name.

        Errors: ToolError when the place is not known or cannot be reached; StorageError.
        """
        known = await self._rooms.reachable(
            without=ConversationId(""), platform=platform_of(here), person=person, limit=KNOWN
        )
        keys = self._delivery.courier.keys()
        known = [channel for channel in known if channel.adapter in keys]
        if target.casefold() == HOME:
            return await self._home(known, here)
        if (channel := resolve_channel(known, target)) is not None:
            return channel.id, channel.display_name or channel.id
        try:
            adapter_key, address = parse_address(target, self._delivery.courier.keys())
        except (NotFoundError, RefusedError) as error:
            names = ", ".join(channel.display_name or channel.id for channel in known[:LISTED] if channel.id != here)
            raise ToolError(f"no conversation is called {target!r}; known are: {names or 'none'}") from error
        return await self._open(adapter_key, address)

    async def _home(self, known: Sequence[ChannelRecord], here: ConversationId) -> tuple[ConversationId, str]:
        own = next((channel.adapter for channel in known if channel.id == here), None)
        for key in [own, *self._delivery.courier.keys()]:
            if key is not None and (home := await self._rooms.home(key)) is not None:
                return home, "home"
        raise ToolError("no home channel is chosen; somebody may choose one with /sethome in it")

    async def _open(self, adapter_key: str, address: str) -> tuple[ConversationId, str]:
        """A room by its address, made known if nobody has written there yet."""
        adapter = self._delivery.courier.connected(adapter_key)
        if adapter is None:
            raise ToolError(f"{adapter_key} is not connected now; try again later")
        try:
            place = await adapter.resolve(address)
        except DeliveryError as error:
            raise ToolError(f"{adapter_key}:{address} cannot be reached: {scrub(str(error))}") from error
        if place.is_direct:
            raise ToolError("this person has not written to you; they have to begin")
        await self._rooms.open(
            place.conversation_id,
            adapter=adapter_key,
            platform=platform_of(place.conversation_id),
            name=place.name,
            is_direct=False,
            data=dict(place.data),
        )
        return place.conversation_id, place.name
