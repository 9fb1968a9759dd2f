"""Names of people and channels of a workspace: asked for once, kept for an hour.

A name that cannot be had is no reason to lose a message: the id stands in, and what is missing is said once.

Flow:    adapter -> names_for -> Slack's users.info, conversations.info, conversations.replies
Floor:   messaging
Source:  messaging spec 6 (Slack identity); 19.2 and 19.41
"""

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Generic, TypeVar

import trio

from spacebot.base.errors import DeliveryError
from spacebot.base.telemetry import kv
from spacebot.messaging.messages import ReplyPreview
from spacebot.messaging.names import clean_name
from spacebot.messaging.slack.refusals import SlackRefusal
from spacebot.messaging.slack.translate import PREVIEW, Me, Names, Person, ids_in, is_direct, readable

log = logging.getLogger(__name__)

KEPT_S = 3600.0
MISSING_S = 60.0  # until a name that could not be had is asked for again
PATIENCE_S = 1.0  # names must not hold up the receipt of a message
PEOPLE = 20_000
ROOMS = 5_000
ROOTS = 2_000
MOST_ASKED = 20  # names looked up for one text

Call = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
T = TypeVar("T")


class _Kept(Generic[T]):
    """A bounded table whose entries grow old."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[str, tuple[float, T | None]] = OrderedDict()

    def get(self, key: str) -> tuple[bool, T | None]:
        """Whether the answer is known, and the answer."""
        until, value = self._entries.get(key, (-1.0, None))
        return trio.current_time() < until, value

    def put(self, key: str, value: T | None) -> None:
        old = self._entries.pop(key, (0.0, None))[1]
        seconds = MISSING_S if value is None else KEPT_S
        self._entries[key] = (trio.current_time() + seconds, old if value is None else value)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)


class Directory:
    """Who and what ids stand for."""

    def __init__(self, call: Call, me: Me) -> None:
        self._call = call
        self._me = me
        self._people: _Kept[Person] = _Kept(PEOPLE)
        self._rooms: _Kept[str] = _Kept(ROOMS)
        self._roots: _Kept[ReplyPreview] = _Kept(ROOTS)
        self._warned: set[tuple[str, str]] = set()

    async def names_for(
        self, channel: str, text: str = "", *, user: str | None = None, thread: str | None = None
    ) -> Names:
        """Everything that a message needs names for; what does not come in a second stays unnamed."""
        mentioned, named = ids_in(text)
        people = {} if user is None else await self.people([user])
        people |= await self.people(mentioned - {self._me.user_id})
        rooms: dict[str, str] = {}
        room: str | None = None
        root: ReplyPreview | None = None
        with trio.move_on_after(PATIENCE_S):
            for other in sorted(named)[:MOST_ASKED]:
                if name := await self.room(other):
                    rooms[other] = name
            if is_direct(channel):
                room = people[user].name if user in people else None
            else:
                room = await self.room(channel)
            root = await self.root(channel, thread) if thread else None
        return Names(people=people, rooms=rooms, room=room, root=root)

    async def people(self, ids: Collection[str]) -> dict[str, Person]:
        """Those of the people whose names can be had soon."""
        found: dict[str, Person] = {}

        async def look(user: str) -> None:
            if (person := await self.person(user)) is not None:
                found[user] = person

        with trio.move_on_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for user in sorted(ids)[:MOST_ASKED]:
                    nursery.start_soon(look, user)
        return found

    async def person(self, user: str) -> Person | None:
        """Who somebody is."""
        is_known, known = self._people.get(user)
        if is_known:
            return known
        answer = await self._ask("users.info", {"user": user}, "users:read")
        found = None if answer is None else _person(user, answer.get("user"))
        self._people.put(user, found)
        return self._people.get(user)[1]

    async def room(self, channel: str) -> str | None:
        """What a channel is called, without `#`."""
        is_known, known = self._rooms.get(channel)
        if is_known:
            return known
        answer = await self._ask("conversations.info", {"channel": channel}, "channels:read, groups:read")
        info = {} if answer is None else answer.get("channel")
        name = info.get("name") if isinstance(info, Mapping) else None
        self._rooms.put(channel, clean_name(name) if isinstance(name, str) and name else None)
        return self._rooms.get(channel)[1]

    async def root(self, channel: str, ts: str) -> ReplyPreview | None:
        """The message that a thread hangs on."""
        key = f"{channel}:{ts}"
        is_known, known = self._roots.get(key)
        if is_known:
            return known
        asked = {"channel": channel, "ts": ts, "limit": 1, "inclusive": True}
        answer = await self._ask("conversations.replies", asked, "channels:history, groups:history")
        messages = [] if answer is None else answer.get("messages")
        first = messages[0] if isinstance(messages, list) and messages else None
        self._roots.put(key, await self.preview(first) if isinstance(first, Mapping) else None)
        return self._roots.get(key)[1]

    async def preview(self, message: Mapping[str, Any]) -> ReplyPreview:
        """A message as it is shown where somebody answers it."""
        text = message.get("text")
        words = await self.readable(text if isinstance(text, str) else "")
        return ReplyPreview(author=await self.author(message), text=words[:PREVIEW])

    async def author(self, message: Mapping[str, Any]) -> str:
        """Who wrote a message of a channel's past."""
        user = message.get("user")
        if user == self._me.user_id:
            return self._me.name
        person = await self.person(user) if isinstance(user, str) else None
        shown = message.get("username") or message.get("bot_id") or user
        return clean_name(person.name if person else str(shown or ""))

    async def readable(self, text: str) -> str:
        """A text as people see it."""
        mentioned, named = ids_in(text)
        people = await self.people(mentioned - {self._me.user_id})
        rooms = {channel: name for channel in sorted(named)[:MOST_ASKED] if (name := await self.room(channel))}
        return readable(text, people, rooms, self._me)

    async def _ask(self, method: str, form: Mapping[str, Any], scope: str) -> Mapping[str, Any] | None:
        try:
            return await self._call(method, form)
        except DeliveryError as error:
            code = error.code if isinstance(error, SlackRefusal) else "unreachable"
            if (method, code) not in self._warned:
                self._warned.add((method, code))
                hint = scope if code == "missing_scope" else None
                log.warning("names cannot be looked up", extra=kv(method=method, reason=str(error), scope=hint))
            return None


def _person(user: str, info: object) -> Person | None:
    if not isinstance(info, Mapping):
        return None
    profile = info.get("profile")
    profile = profile if isinstance(profile, Mapping) else {}
    names = (profile.get("display_name"), profile.get("real_name"), info.get("real_name"), info.get("name"))
    name = next((name for name in names if isinstance(name, str) and name.strip()), user)
    ranks = [info.get("is_admin"), info.get("is_owner")]
    return Person(
        id=user,
        name=clean_name(name, fallback=user),
        is_bot=bool(info.get("is_bot")),
        is_moderator=any(rank is True for rank in ranks) if any(isinstance(rank, bool) for rank in ranks) else None,
    )
