"""The Discord adapter with the real library against a Discord of our own: signing in, and what people do."""

import asyncio
import logging
from dataclasses import dataclass, field

import pytest
import trio
from pydantic import SecretStr

from spacebot.base.errors import DeliveryError
from spacebot.config.messaging import DiscordAccount
from spacebot.messaging.adapter import Receipt
from spacebot.messaging.asyncio_bridge import open_asyncio_host
from spacebot.messaging.discord.adapter import DiscordAdapter
from spacebot.messaging.messages import (
    Attachment,
    Button,
    ButtonStyle,
    Command,
    InboundMessage,
    Rich,
    Row,
    Select,
    SelectOption,
    Target,
)
from tests.conftest import Logs
from tests.fakes.recording_intake import RecordingIntake
from tests.messaging.discord_world import GUARD_S, account, failure_of, open_world
from tests.stand_ins.discord import open_discord
from tests.stand_ins.discord_shapes import ADMINISTRATOR, BOT, MANAGE_MESSAGES, OWNER, TOKEN


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library waits two seconds before it connects again; not here."""
    monkeypatch.setattr("hikari.impl.shard._BACKOFF_WINDOW", 0.0)


# Signing in.


@pytest.mark.spec("messaging 19: 11", "messaging 19: 42", "D-11", "D-42")
async def test_started_means_signed_in_and_offers_the_commands_once() -> None:
    commands = [("help", "What can be asked"), ("Bad Name", "x"), ("quiet", "Listen only"), ("mention-only", "y" * 101)]
    async with open_world(commands=commands) as world:
        standin = world.standin
        assert world.who == "@spacebot"
        await standin.until(lambda: standin.command_writes == 1)
        assert [one["name"] for one in standin.commands] == ["help", "quiet"]
        assert await world.adapter.check() == "signed in as @spacebot"
        standin.invalidate_sessions(resumable=False)
        await standin.until(
            lambda: sum(call.path.endswith("/commands") and call.method == "GET" for call in standin.calls) == 2
        )
        assert standin.identified == 2
        await world.said()
        assert standin.command_writes == 1


@pytest.mark.spec("D-42")
async def test_a_command_that_discord_does_not_take_costs_no_other() -> None:
    async with open_discord() as standin, open_asyncio_host() as host:
        standin.bad_commands.add("status")
        adapter = DiscordAdapter(account(standin), key="discord", host=host, commands=[("status", "s"), ("help", "h")])
        with trio.fail_after(GUARD_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(adapter.run, RecordingIntake())
                await standin.until(lambda: bool(standin.commands))
                nursery.cancel_scope.cancel()
        assert [one["name"] for one in standin.commands] == ["help"]


@pytest.mark.parametrize("token", [TOKEN[:-2] + "zz", "not a token"])
@pytest.mark.spec("D-11")
async def test_a_bad_token_is_permanent_and_says_where_to_get_one(token: str) -> None:
    async with open_discord() as standin, open_asyncio_host() as host:
        error = await failure_of(DiscordAdapter(account(standin, token=token), key="discord", host=host))
    assert error.is_permanent
    assert "Reset Token" in str(error)
    assert token not in str(error)


async def test_a_missing_intent_is_permanent_and_names_the_switch() -> None:
    async with open_discord() as standin, open_asyncio_host() as host:
        standin.is_intent_granted = False
        error = await failure_of(DiscordAdapter(account(standin), key="discord", host=host))
    assert error.is_permanent
    assert "Message Content Intent" in str(error)


async def test_a_server_that_is_down_is_not_permanent() -> None:
    async with open_discord() as standin, open_asyncio_host() as host:
        adapter = DiscordAdapter(account(standin), key="discord", host=host, retries=0)
        standin.refuse_next(1, status=503)
        error = await failure_of(adapter)
    assert not error.is_permanent
    with pytest.raises(DeliveryError, match="not connected"):
        await adapter.check()


async def test_a_token_that_is_revoked_ends_the_run_after_what_came_before() -> None:
    async with open_discord() as standin, open_asyncio_host() as host:
        guild = standin.add_guild()
        room, ann = standin.add_channel(guild), standin.add_user("ann")
        intake = RecordingIntake()
        adapter = DiscordAdapter(account(standin), key="discord", host=host)
        with trio.fail_after(GUARD_S), pytest.RaisesGroup(DeliveryError, match=None) as caught:
            async with trio.open_nursery() as nursery:
                await nursery.start(adapter.run, intake)
                await standin.until(lambda: standin.connected == 1)
                standin.post(room, ann, "the last word")
                standin.close_sockets(4004)
        assert [message.text for message in intake.messages] == ["the last word"]
        error = caught.value.exceptions[0]
        assert isinstance(error, DeliveryError)
        assert error.is_permanent


# What comes in.


@pytest.mark.spec("messaging 19: c")
async def test_what_people_say_arrives_as_they_see_it() -> None:
    async with open_world() as world:
        standin, room, ann = world.standin, world.room, world.ann
        role = standin.add_role(world.guild, "makers")
        standin.dispatch(
            "GUILD_ROLE_CREATE", {"guild_id": world.guild, "role": standin.guilds[world.guild].roles[role]}
        )
        bob = standin.add_user("b\u202eo\t b", guild=world.guild)
        standin.post(room, ann, f"hey <@{bob}> and <@&{role}> in <#{room}> <:wave:123>")
        standin.post(room, bob, f"<@{BOT}> are you there?")
        first, second = await world.intake.received(2)
        assert first.text == "hey @BO B and @makers in #general :wave:"
        assert first.conversation_id == f"discord:{world.guild}:{room}"
        assert (first.server_id, first.room_ids) == (world.guild, (room,))
        assert (first.server_name, first.channel_name) == ("Guild", "general")
        assert (first.author.id, first.author.name, first.author.handle) == (ann, "Ann", f"<@{ann}>")
        assert not first.mentions_bot
        assert first.metadata["mentions"] == {"BO B": f"<@{bob}>"}
        assert second.author.name == "BO B"
        assert second.mentions_bot
        assert not second.is_direct
        assert not [call for call in standin.calls if call.method == "GET" and call.path != "/gateway/bot"]


async def test_replies_files_and_wordless_messages() -> None:
    async with open_world(allow_bot_messages=True) as world:
        standin, room, ann = world.standin, world.room, world.ann
        other = standin.add_user("otherbot", guild=world.guild, bot=True)
        question = await world.said("question")
        [answer] = await world.send(question, "answer")
        standin.reply(room, ann, answer, "thanks")
        theirs = standin.post(room, other, "", embeds=[{"title": "Build", "description": "failed"}])
        standin.reply(room, ann, theirs, "oh")
        standin.post(room, ann, "", attachments=[standin.attach(room, "a.txt", b"abc"), {"filename": "broken"}])
        standin.post(room, ann, "", sticker_items=[{"id": "1", "name": "party", "format_type": 1}])
        standin.post(room, ann, "", message_snapshots=[{"message": {"content": "from elsewhere"}}])
        standin.post(room, ann, "", type=7)  # Ann joined
        thanks, build, oh, file, sticker, forwarded = (await world.intake.received(7))[1:]
        assert thanks.mentions_bot
        assert thanks.reply_to is not None
        assert (thanks.reply_to.author, thanks.reply_to.text) == ("spacebot", "answer")
        assert build.author.is_bot
        assert build.text == "[embed: Build – failed]"
        assert oh.reply_to is not None
        assert not oh.mentions_bot  # it answers another bot
        [attachment] = file.attachments
        assert (attachment.filename, attachment.media_type, attachment.size_bytes) == ("a.txt", "text/plain", 3)
        location = await world.adapter.locate(attachment)
        assert location.url == attachment.url
        assert location.may_be_private  # because the owner named another server
        assert sticker.text == "[sticker: party]"
        assert forwarded.text == "[forwarded] from elsewhere"
        await world.said("after the join")
        assert len(world.intake.messages) == 8


async def test_other_bots_and_the_bot_itself_are_not_heard() -> None:
    async with open_world() as world:
        other = world.standin.add_user("otherbot", guild=world.guild, bot=True)
        world.standin.post(world.room, other, f"<@{BOT}> beep")
        world.standin.post(world.room, world.ann, "by a webhook", webhook_id="77")
        message = await world.said()
        await world.send(message, "answer")
        await world.said("again")
        assert [one.text for one in world.intake.messages] == ["hello", "again"]


async def test_direct_chats_and_named_accounts() -> None:
    async with open_world(key="discord:ops") as world:
        chat = world.standin.direct(world.ann)
        said = world.standin.post(chat, world.ann, "psst")
        [message] = await world.intake.received(1)
        assert message.conversation_id == f"discord:ops:dm:{world.ann}"
        assert (message.adapter, message.platform) == ("discord:ops", "discord")
        assert message.is_direct
        assert message.server_id is None
        assert message.author.is_moderator is None
        world.standin.edit(chat, said, "psst!")
        world.standin.delete(chat, said)
        await world.intake.until(lambda: bool(world.intake.deletions))
        assert world.intake.edits[0].conversation_id == message.conversation_id
        assert world.intake.deletions[0].conversation_id == message.conversation_id
        other = world.standin.direct(world.standin.add_user("bob"))
        world.standin.delete(other, world.standin.new_id())  # of a chat that nobody wrote in since the start
        await world.intake.until(lambda: len(world.intake.deletions) == 2)
        assert world.intake.deletions[1].conversation_id != message.conversation_id


@pytest.mark.spec("D-c")
async def test_threads_are_conversations_of_their_own_and_unknown_rooms_are_asked_for_once() -> None:
    async with open_world() as world:
        standin = world.standin
        known = standin.add_thread(world.room, "plans")
        unknown = standin.add_thread(world.room, "old plans", quiet=True)
        gone = standin.add_channel(world.guild, "hidden", quiet=True)
        standin.revoke(gone, "view")
        for text in ("one", "two"):
            standin.post(known, world.ann, text)
            standin.post(unknown, world.ann, text)
            standin.post(gone, world.ann, text)
        messages = await world.intake.received(6)
        for room, name, rooms in (
            (known, "plans", (known, world.room)),
            (unknown, "old plans", (unknown, world.room)),
            (gone, None, (gone,)),
        ):
            here = [one for one in messages if one.conversation_id == f"discord:{world.guild}:{room}"]
            assert [one.text for one in here] == ["one", "two"]
            assert {(one.channel_name, one.room_ids) for one in here} == {(name, rooms)}
        asked = [call.path for call in standin.calls if call.method == "GET" and call.path.startswith("/channels/")]
        assert sorted(asked) == sorted([f"/channels/{unknown}", f"/channels/{gone}"])


async def test_who_rules_is_read_off_the_roles() -> None:
    async with open_world() as world:
        standin, guild = world.standin, world.guild
        roles = [
            standin.add_role(guild, name, bits)
            for name, bits in (("a", ADMINISTRATOR), ("m", MANAGE_MESSAGES), ("x", 1))
        ]
        mine = standin.add_role(guild, "spacebot", bot=True)
        for role in (*roles, mine):
            standin.dispatch("GUILD_ROLE_CREATE", {"guild_id": guild, "role": standin.guilds[guild].roles[role]})
        for index, role in enumerate([*roles, "12345"]):
            standin.post(world.room, standin.add_user(f"user{index}", guild=guild, roles=[role]), "hi")
        standin.users[OWNER] = standin.users[world.ann] | {"id": OWNER}
        standin.post(world.room, OWNER, f"<@&{mine}> hi")
        messages = await world.intake.received(5)
        assert [one.author.is_moderator for one in messages] == [True, True, False, None, True]
        assert [one.mentions_bot for one in messages] == [False, False, False, False, True]


async def test_changes_and_deletions() -> None:
    async with open_world() as world:
        standin, room, ann = world.standin, world.room, world.ann
        message = await world.said("first try https://example.org")
        assert message.platform_id is not None
        standin.unfurl(room, message.platform_id)
        standin.edit(room, message.platform_id, f"second try <@{ann}>")
        standin.unfurl(room, message.platform_id)  # the time of the edit is still there
        standin.edit(room, message.platform_id, "third")
        many = [standin.post(room, ann, str(number)) for number in range(3)]
        standin.delete(room, message.platform_id)
        standin.delete(room, *many)
        await world.intake.until(lambda: len(world.intake.deletions) == 2)
        assert [(one.platform_id, one.text) for one in world.intake.edits] == [
            (message.platform_id, "second try @Ann"),
            (message.platform_id, "third"),
        ]
        assert {one.conversation_id for one in world.intake.edits} == {message.conversation_id}
        assert [one.platform_ids for one in world.intake.deletions] == [(message.platform_id,), tuple(many)]


async def test_nothing_that_arrives_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with open_world() as world:
        for _ in range(3):
            world.standin.dispatch("MESSAGE_CREATE", {"id": "not an id", "content": "private words"})
            world.standin.dispatch("INTERACTION_CREATE", {"type": 3, "data": {"custom_id": 7}})
            world.standin.dispatch("NEVER_HEARD_OF", {"content": "private words"})
            world.standin.dispatch("MESSAGE_DELETE", {})
        assert (await world.said()).text == "hello"
    skipped = [record for record in caplog.records if record.getMessage() == "Discord event skipped"]
    assert len(skipped) == 3  # once of each kind
    assert "private words" not in caplog.text


async def test_a_full_disk_holds_the_message_back_and_keeps_the_order(logs: Logs) -> None:
    logs.expect("event lost")
    async with open_world() as world:
        world.intake.failures = 2
        for text in ("one", "two"):
            world.standin.post(world.room, world.ann, text)
        assert [one.text for one in await world.intake.received(2)] == ["one", "two"]
        world.intake.failures = 3  # one attempt and two more
        world.standin.post(world.room, world.ann, "lost")
        world.standin.post(world.room, world.ann, "kept")
        assert [one.text for one in await world.intake.received(3)] == ["one", "two", "kept"]


# Buttons, lists and commands.


@dataclass
class SlowIntake(RecordingIntake):
    """Takes nothing before it is let go."""

    gate: trio.Event = field(default_factory=trio.Event)
    waiting: int = 0

    async def take(self, message: InboundMessage) -> Receipt:
        self.waiting += 1
        self._note()
        await self.gate.wait()
        return await super().take(message)


async def test_interactions_are_acknowledged_before_anybody_thinks() -> None:
    intake = SlowIntake()
    async with open_world(intake) as world:
        standin, room = world.standin, world.room
        rows = (
            Row(
                buttons=(
                    Button(label="Yes", custom_id="vote"),
                    Button(label="Page", style=ButtonStyle.LINK, url="https://x.org"),
                )
            ),
            Row(
                select=Select(
                    custom_id="colour",
                    options=(SelectOption(label="Red", value="r", emoji="🔴"), SelectOption(label="Blue", value="b")),
                    placeholder="Which?",
                )
            ),
        )
        place = await world.adapter.resolve(f"{world.guild}:{room}")
        [carrier] = await world.send(
            Target(conversation_id=place.conversation_id, data=place.data), "Choose", rich=Rich(rows=rows)
        )
        pressed = standin.press(room, world.ann, carrier, "vote")
        chosen = standin.press(room, world.ann, carrier, "colour", ["r", "b"])
        await intake.until(lambda: intake.waiting == 1)  # of one room, one after the other
        await standin.until(lambda: len(standin.acknowledged) == 2)
        assert not intake.messages
        intake.gate.set()
        press, choice = await intake.received(2)
        assert press.platform_id == pressed
        assert press.text == "[interaction: vote → Yes]"
        assert press.interaction is not None
        assert press.interaction.message_id == carrier
        assert press.mentions_bot
        assert choice.platform_id == chosen
        assert choice.interaction is not None
        assert (choice.interaction.values, choice.interaction.label) == (("r", "b"), "Red, Blue")
        assert standin.acknowledged == {pressed: 6, chosen: 6}
        await world.send(press, "noted", id="m2", wants_reply_mark=True)
        assert standin.sent[-1].reply_to == carrier
        assert "token-of" not in repr(press)


@pytest.mark.spec("D-g")
async def test_a_command_is_answered_where_it_waits() -> None:
    async with open_world() as world:
        standin = world.standin
        given = standin.command(world.room, world.ann, "Status", verbose="yes please")
        [message] = await world.intake.received(1)
        assert message.command == Command(name="status", args="yes please")
        assert message.author.is_moderator is False
        assert standin.acknowledged == {given: 5}
        assert "token-of" not in repr(message)
        noted = await world.send(message, "a" * 1500 + "\n\n" + "b" * 1500)
        assert [one.interaction for one in standin.sent] == [given, None]
        assert noted == [one.id for one in standin.sent]
        await world.send(message, "more", id="m2")
        assert standin.sent[-1].interaction is None
        standin.command(world.room, world.ann, "help")
        late = (await world.intake.received(2))[-1]
        standin.expire_tokens()
        await world.send(late, "sorry for the wait", id="m3")
        assert (standin.sent[-1].text, standin.sent[-1].interaction) == ("sorry for the wait", None)


async def test_a_command_of_somebody_who_is_not_served_does_not_keep_waiting() -> None:
    async with open_world(RecordingIntake(admits=lambda message: message.command is None)) as world:
        given = world.standin.command(world.room, world.ann, "status")
        await world.standin.until(lambda: world.standin.withdrawn == [given])
        assert not world.intake.messages


@pytest.mark.parametrize("how", ["op 7", "op 9", "close 4000", "drop"])
async def test_a_break_loses_nothing_and_doubles_nothing(how: str) -> None:
    async with open_world() as world:
        standin = world.standin
        for number in range(3):
            standin.post(world.room, world.ann, f"before {number}")
        match how:
            case "op 7":
                standin.ask_reconnect()
            case "op 9":
                standin.invalidate_sessions(resumable=True)
            case "close 4000":
                standin.close_sockets(4000)
            case "drop":
                await standin.drop_sockets()
        for number in range(3):
            standin.post(world.room, world.ann, f"between {number}")
        await standin.until(lambda: standin.resumed == 1)
        standin.post(world.room, world.ann, "after")
        messages = await world.intake.received(7)
        assert [one.text for one in messages] == [f"{when} {n}" for when in ("before", "between") for n in range(3)] + [
            "after"
        ]
        assert standin.identified == 1
        await world.send(messages[-1], "still here")


async def tasks() -> list[str]:
    """What runs on the asyncio side."""
    return [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_shutdown_leaves_nothing_behind() -> None:
    async with open_discord() as standin, open_asyncio_host() as host:
        before = await host.run(tasks)
        adapter = DiscordAdapter(account(standin), key="discord", host=host)
        for _ in range(2):  # it can be started again
            with trio.fail_after(GUARD_S):
                async with trio.open_nursery() as nursery:
                    await nursery.start(adapter.run, RecordingIntake())
                    await standin.until(lambda: standin.connected == 1)
                    with trio.CancelScope(shield=True), trio.fail_after(2):
                        nursery.cancel_scope.cancel()
                        await standin.until(lambda: standin.connected == 0)
            assert await host.run(tasks) == before
        assert standin.closed_by_client == [1001, 1001]


@pytest.mark.parametrize("stage", ["asking", "connecting", "waiting", "identifying", "ready"])
async def test_a_start_can_be_cancelled_at_any_moment(stage: str) -> None:
    async with open_discord() as standin, open_asyncio_host() as host:
        before = await host.run(tasks)
        adapter = DiscordAdapter(account(standin), key="discord", host=host)
        standin.latency_s = 60.0 if stage == "asking" else 0.0
        standin.is_silent = stage == "waiting"
        reached = {
            "asking": lambda: len(standin.calls) == 1,
            "connecting": lambda: standin.opened == 1,
            "waiting": lambda: standin.opened == 1,
            "identifying": lambda: standin.identified == 1,
            "ready": lambda: standin.identified == 1 and standin.connected == 1,
        }[stage]
        with trio.fail_after(GUARD_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(adapter.run, RecordingIntake())
                await standin.until(reached)
                nursery.cancel_scope.cancel()
        assert await host.run(tasks) == before


async def test_an_attachment_of_the_real_discord_may_not_be_private() -> None:
    async with open_asyncio_host() as host:
        adapter = DiscordAdapter(DiscordAccount(token=SecretStr(TOKEN)), key="discord", host=host)
        attachment = Attachment(
            filename="a", media_type="text/plain", url="https://cdn.discordapp.com/attachments/1/2/a"
        )
        assert not (await adapter.locate(attachment)).may_be_private
