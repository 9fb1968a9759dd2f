"""What people say on Discord while nobody listens is heard when somebody listens again."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
import trio

from spacebot.base.errors import DeliveryError, StorageError
from spacebot.base.ids import ConversationId
from spacebot.messaging.adapter import LATE_S
from spacebot.messaging.asyncio_bridge import AsyncioHost, open_asyncio_host
from spacebot.messaging.catch_up import HELD, ROOM_S, ROOMS_AT_ONCE, WHOLE_S, Begun, CatchUp
from spacebot.messaging.discord.adapter import DiscordAdapter
from spacebot.messaging.discord.past import MISSED
from spacebot.messaging.messages import InboundMessage, Target
from tests.fakes.recording_intake import RecordingIntake
from tests.messaging.discord_world import GUARD_S, account, open_world, target_of
from tests.stand_ins.discord import DiscordStandIn, open_discord
from tests.stand_ins.discord_shapes import BOT, EPOCH_MS, MANAGE_MESSAGES


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library waits two seconds before it connects again; not here."""
    monkeypatch.setattr("hikari.impl.shard._BACKOFF_WINDOW", 0.0)


@dataclass
class Place:
    """A Discord with two rooms and Ann, and a bot that was there before and is not connected now."""

    standin: DiscordStandIn
    host: AsyncioHost
    guild: str
    room: str
    other: str
    ann: str

    def heard(self, channel: str, id: str | None = None) -> Target:
        """What an earlier life took last in a channel: a message of now, unless one is named."""
        known = self.standin.channels[channel]
        place = f"{self.guild}:{channel}" if known.guild else f"dm:{known.person}"
        return Target(
            conversation_id=ConversationId(f"discord:{place}"),
            is_direct=known.guild is None,
            data={"channel_id": channel} | ({"guild_id": known.guild} if known.guild else {}),
            message_id=id or self.standin.post(channel, self.ann, "heard before"),
        )

    def say(self, channel: str, *texts: str) -> None:
        for text in texts:
            self.standin.post(channel, self.ann, text)

    def gate(self, channel: str) -> trio.Event:
        """Discord tells what was said in a channel only when this is set."""
        return self.standin.gates.setdefault(f"/channels/{channel}/messages", trio.Event())

    def asked(self, channel: str) -> int:
        """How often it was asked what was said in a channel."""
        return sum(call.path == f"/channels/{channel}/messages" for call in self.standin.calls)

    @asynccontextmanager
    async def connected(self, intake: RecordingIntake) -> AsyncIterator[DiscordAdapter]:
        adapter = DiscordAdapter(account(self.standin), key="discord", host=self.host, retries=0)
        async with trio.open_nursery() as nursery:
            await nursery.start(adapter.run, intake)
            await self.standin.until(lambda: self.standin.connected == 1)
            yield adapter
            nursery.cancel_scope.cancel()
        await self.standin.until(lambda: self.standin.connected == 0)


@asynccontextmanager
async def open_place() -> AsyncIterator[Place]:
    with trio.fail_after(GUARD_S):
        async with open_discord() as standin, open_asyncio_host() as host:
            guild = standin.add_guild("Guild")
            rooms = standin.add_channel(guild, "general"), standin.add_channel(guild, "random")
            yield Place(standin, host, guild, *rooms, standin.add_user("ann", guild=guild))
            assert not standin.complaints


def texts(messages: Sequence[InboundMessage]) -> list[str]:
    return [message.text for message in messages]


async def test_what_was_missed_reads_as_if_it_had_been_told() -> None:
    async with open_place() as place:
        standin, room = place.standin, place.room
        thread = standin.add_thread(room, "plans")
        ruler = standin.add_user("ruth", guild=place.guild, roles=[standin.add_role(place.guild, "r", MANAGE_MESSAGES)])
        chat = standin.direct(place.ann)
        told = RecordingIntake()
        heard = [place.heard(channel) for channel in (room, thread, chat)]
        async with place.connected(told):
            first = standin.post(
                room, place.ann, f"<@{BOT}> look <@{ruler}>", attachments=[standin.attach(room, "a.txt", b"abc")]
            )
            standin.reply(room, ruler, first, "I see")
            place.say(thread, "in the thread")
            place.say(chat, "psst")
            await told.received(4)
        missed = RecordingIntake(heard_last=heard)
        async with place.connected(missed):
            await missed.received(4)

        def by_id(messages: Sequence[InboundMessage]) -> list[InboundMessage]:
            return sorted(messages, key=lambda message: str(message.platform_id))

        assert by_id(missed.messages) == by_id(told.messages)
        assert [one.author.is_moderator for one in by_id(missed.messages)] == [False, True, False, None]


async def test_own_bots_and_late_messages_are_left_out() -> None:
    async with open_place() as place:
        standin, room = place.standin, place.room
        last = str(int((datetime.now(UTC) - timedelta(days=1)).timestamp() * 1000 - EPOCH_MS) << 22)
        late = datetime.now(UTC) - timedelta(seconds=LATE_S + 60)
        standin.post(room, place.ann, "late", id=str(int(late.timestamp() * 1000 - EPOCH_MS) << 22))
        place.say(room, "one")
        standin.post(room, BOT, "mine")
        standin.post(room, standin.add_user("otherbot", guild=place.guild, bot=True), "beep")
        standin.post(room, place.ann, "", type=7)
        standin.channels[room].messages["7"] = {"id": standin.new_id(), "content": "garbled"}
        gone = standin.add_user("gone")
        standin.post(room, gone, "two")
        intake = RecordingIntake(heard_last=[place.heard(room, last), place.heard(room, str(int(last) - 1))])
        async with place.connected(intake):
            await intake.received(2)
            place.say(room, "now")
            assert texts(await intake.received(3)) == ["one", "two", "now"]
        assert intake.messages[1].author.is_moderator is None


async def test_no_more_than_a_hundred_are_caught_up_with() -> None:
    async with open_place() as place:
        heard = place.heard(place.room)
        place.say(place.room, *map(str, range(MISSED + 5)))
        intake = RecordingIntake(heard_last=[heard])
        async with place.connected(intake):
            await intake.received(MISSED)
            place.say(place.room, "now")
            assert texts(await intake.received(MISSED + 1)) == [*map(str, range(MISSED)), "now"]


async def test_what_is_said_meanwhile_waits_in_its_room_only() -> None:
    async with open_place() as place:
        room, other = place.room, place.other
        heard = place.heard(room)
        place.say(room, "missed 1", "missed 2")
        gate, intake = place.gate(room), RecordingIntake(heard_last=[heard])
        async with place.connected(intake):
            await place.standin.until(lambda: place.asked(room) == 1)
            place.say(room, "live 1")
            slip = place.standin.post(room, place.ann, "slip")
            place.standin.edit(room, slip, "live 2")
            place.standin.delete(room, place.standin.post(room, place.ann, "never mind"))
            place.say(other, "elsewhere")
            assert texts(await intake.received(1)) == ["elsewhere"]
            gate.set()
            await intake.until(lambda: bool(intake.deletions))
            place.say(room, "live 3")
            await intake.until(lambda: intake.messages[-1].text == "live 3")
            here = [message for message in intake.messages if message.metadata["channel_id"] == room]
            assert texts(here) == ["missed 1", "missed 2", "live 1", "live 2", "never mind", "live 3"]
            assert texts(intake.edits) == ["live 2"]  # type: ignore[arg-type]


async def test_rooms_that_nobody_had_spoken_in_are_found() -> None:
    async with open_place() as place:
        standin, guild = place.standin, place.guild
        quiet = standin.add_channel(guild, "quiet")
        an_hour_ago = str(int((datetime.now(UTC) - timedelta(hours=1)).timestamp() * 1000 - EPOCH_MS) << 22)
        heard = place.heard(place.room)
        standin.post(quiet, place.ann, "long ago", id=an_hour_ago)
        thread = standin.add_thread(quiet, "new")
        place.say(thread, "in a new thread")
        place.say(place.other, "in a silent room")
        intake = RecordingIntake(heard_last=[heard])
        async with place.connected(intake):
            assert set(texts(await intake.received(2))) == {"in a new thread", "in a silent room"}
            assert place.asked(quiet) == 0
    async with open_place() as place:
        place.say(place.room, "before the bot was there")
        intake = RecordingIntake()
        async with place.connected(intake):
            place.say(place.room, "now")
            assert texts(await intake.received(1)) == ["now"]


async def test_a_room_that_cannot_be_asked_goes_on_without() -> None:
    async with open_place() as place:
        standin, guild = place.standin, place.guild
        hidden, gone = (standin.add_channel(guild, name) for name in ("hidden", "gone"))
        heard = [place.heard(channel) for channel in (hidden, gone, place.room)]
        place.say(hidden, "unheard")
        place.say(place.room, "missed")
        standin.revoke(hidden, "history")
        del standin.channels[gone]
        intake = RecordingIntake(heard_last=heard)
        async with place.connected(intake):
            place.say(hidden, "live")
            assert set(texts(await intake.received(2))) == {"live", "missed"}
            assert place.asked(gone) == 1


@pytest.mark.parametrize("how", ["op 9", "close 4009"])
async def test_a_session_that_is_lost_loses_nothing(how: str) -> None:
    async with open_world() as world:
        standin = world.standin
        last = await world.said("before")
        world.intake.heard_last = [target_of(last)]
        if how == "op 9":
            standin.invalidate_sessions(resumable=False)
        else:
            standin.close_sockets(4009)
            standin.forget_sessions()
        for number in range(3):
            standin.post(world.room, world.ann, f"between {number}")
        await standin.until(lambda: standin.identified == 2 and standin.connected == 1)
        standin.post(world.room, world.ann, "after")
        messages = await world.intake.received(5)
        assert texts(messages) == ["before", "between 0", "between 1", "between 2", "after"]
        standin.ask_reconnect()
        await standin.until(lambda: standin.resumed == 1)
        await world.said("resumed")
        asked = [call.path for call in standin.calls if call.path.endswith("/messages")]
        assert len(asked) == 2  # messages, then none; not again for a session that goes on
        assert len(world.intake.messages) == 6


async def test_a_session_that_is_lost_again_catches_up_once() -> None:
    async with open_place() as place:
        room, standin = place.room, place.standin
        heard = place.heard(room)
        place.say(room, "missed")
        gate, intake = place.gate(room), RecordingIntake(heard_last=[heard])
        async with place.connected(intake):
            await standin.until(lambda: place.asked(room) == 1)
            place.say(room, "held")
            standin.invalidate_sessions(resumable=False)
            place.say(room, "missed again")
            await standin.until(lambda: place.asked(room) == 2)
            place.say(room, "live")
            gate.set()
            assert texts(await intake.received(4)) == ["missed", "held", "missed again", "live"]


async def test_what_waits_when_the_connection_ends_is_heard_by_the_next() -> None:
    async with open_place() as place:
        room, standin = place.room, place.standin
        intake = RecordingIntake(heard_last=[place.heard(room)])
        place.say(room, "missed")
        gate = place.gate(room)
        with pytest.RaisesGroup(DeliveryError):
            async with place.connected(intake):
                await standin.until(lambda: place.asked(room) == 1)
                place.say(room, "held")
                place.say(place.other, "elsewhere")
                await intake.received(1)
                standin.close_sockets(4004)
                await trio.sleep_forever()
        assert texts(intake.messages) == ["elsewhere"]
        gate.set()
        async with place.connected(intake):
            assert texts(await intake.received(3)) == ["elsewhere", "missed", "held"]


# The order, on a clock of its own.

Item = tuple[str, int]


@dataclass
class Past:
    """Rooms with what was missed in each; and how long it takes to tell."""

    missed: dict[str, list[int]]
    takes_s: dict[str, float] = field(default_factory=dict)
    fails: dict[str, list[DeliveryError]] = field(default_factory=dict)
    is_disk_full: bool = False
    asked_at_once: int = 0
    most_at_once: int = 0

    async def heard(self) -> list[Target]:
        await trio.lowlevel.checkpoint()
        if self.is_disk_full:
            raise StorageError("the disk is full")
        return [Target(conversation_id=ConversationId(room), message_id="0") for room in self.missed]

    async def fetch(self, room: str, _: Sequence[Target]) -> list[Item]:
        self.asked_at_once += 1
        self.most_at_once = max(self.most_at_once, self.asked_at_once)
        try:
            await trio.sleep(self.takes_s.get(room, 0.0))
        finally:
            self.asked_at_once -= 1
        if self.fails.get(room):
            raise self.fails[room].pop(0)
        return [(room, number) for number in self.missed[room]]


@asynccontextmanager
async def catching_up(past: Past) -> AsyncIterator[tuple[trio.MemorySendChannel[Item | Begun], list[Item]]]:
    """Events go in at the first, and come out in the second; all have come out at the end."""
    catch_up = CatchUp[Item](
        "discord",
        heard=past.heard,
        place=lambda target: str(target.conversation_id),
        fetch=past.fetch,
        room=lambda item: item[0],
        moment=lambda item: item[1],
    )
    send, events = trio.open_memory_channel[Item | Begun](0)
    onwards, receive = trio.open_memory_channel[Item](0)
    out: list[Item] = []

    async def take() -> None:
        with suppress(trio.EndOfChannel):
            while True:
                out.append(await receive.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(catch_up.run, events, onwards)
        nursery.start_soon(take)
        await send.send(Begun())
        yield send, out
        send.close()


async def test_rooms_are_asked_a_few_at_a_time_and_not_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    quick = [f"quick{n}" for n in range(10)]
    stuck = [f"stuck{n}" for n in range(4 * ROOMS_AT_ONCE)]
    past = Past({room: [1] for room in (*quick, *stuck)}, dict.fromkeys(stuck, 1000.0) | dict.fromkeys(quick, 1.0))
    async with catching_up(past) as (send, out):
        for room in (*quick, *stuck):
            await send.send((room, 2))
        await trio.sleep(ROOM_S + len(quick) + 1)
        assert {(room, number) for room in quick for number in (1, 2)} <= set(out)
        assert all(number == 2 for room, number in out if room in stuck)
        await trio.sleep(WHOLE_S)
        assert {(room, 2) for room in stuck} <= set(out)
        assert past.most_at_once == ROOMS_AT_ONCE
        for room in quick:
            assert [number for name, number in out if name == room] == [1, 2]


async def test_what_fails_for_a_moment_is_asked_again(autojump_clock: trio.testing.MockClock) -> None:
    busy, forbidden = DeliveryError("busy", is_permanent=False), DeliveryError("forbidden", is_permanent=True)
    past = Past({"busy": [1], "down": [1], "closed": [1]})
    past.fails = {"busy": [busy], "down": [busy] * 10, "closed": [forbidden]}
    async with catching_up(past) as (send, out):
        for room in past.missed:
            await send.send((room, 2))
        await trio.sleep(0.5)
        assert out == [("closed", 2)]
        await trio.sleep(ROOM_S)
        assert out == [("closed", 2), ("busy", 1), ("busy", 2), ("down", 2)]


async def test_a_disk_that_does_not_tell_holds_nothing_up(autojump_clock: trio.testing.MockClock) -> None:
    async with catching_up(Past({"room": [1]}, is_disk_full=True)) as (send, out):
        await send.send(("room", 2))
        await trio.sleep(1)
        assert out == [("room", 2)]


async def test_a_new_session_starts_over_with_what_it_is_told(autojump_clock: trio.testing.MockClock) -> None:
    past = Past({"room": [1], "gone": [1]}, {"room": 5.0, "gone": 5.0})
    async with catching_up(past) as (send, out):
        for room in ("room", "gone"):
            await send.send((room, 2))
        await trio.sleep(1)
        past.missed = {"room": [1, 3]}
        await send.send(Begun())
        await send.send(("room", 4))
        await trio.sleep(1)
        assert out == [("gone", 2)]
        await trio.sleep(5)
        assert out == [("gone", 2), *(("room", number) for number in (1, 2, 3, 4))]


async def test_missed_and_held_are_put_in_order(autojump_clock: trio.testing.MockClock) -> None:
    past = Past({"room": [1, 2, 5, 6]}, {"room": 1.0})
    async with catching_up(past) as (send, out):
        for number in (3, 4, 6, 7):
            await send.send(("room", number))
        await trio.sleep(2)
        assert [number for _, number in out] == [1, 2, 3, 4, 5, 6, 6, 7]  # the door knows the second 6


async def test_no_more_than_so_many_wait(autojump_clock: trio.testing.MockClock) -> None:
    past = Past({"room": [0]}, {"room": 1.0})
    async with catching_up(past) as (send, out):
        for number in range(1, HELD + 1):
            await send.send(("room", number))
        with trio.move_on_after(0.5) as scope:
            await send.send(("room", HELD + 1))
            await send.send(("other", 1))
        assert scope.cancelled_caught
        await trio.sleep(1)
        await send.send(("other", 1))
        await trio.sleep(1)
        assert out == [*(("room", number) for number in range(HELD + 2)), ("other", 1)]
