"""Slack, what comes in: the adapter with the real library against a workspace on loopback. Real clocks, no waiting."""

import asyncio
from typing import Any

import pytest
import trio

from spacebot.base.errors import DeliveryError
from spacebot.config.messaging import SlackCommand
from spacebot.messaging.adapter import Receipt
from spacebot.messaging.asyncio_bridge import open_asyncio_host
from spacebot.messaging.messages import Button, InboundMessage, Rich, Row, Select, SelectOption, Target
from spacebot.messaging.slack.adapter import SlackAdapter
from tests.fakes.recording_intake import RecordingIntake
from tests.messaging.slack_world import PATIENCE_S, account_for, open_world
from tests.stand_ins.slack import BOT, BOT_ID, open_slack


async def count_tasks() -> int:
    return len(asyncio.all_tasks())


# Start and end.


async def test_it_says_who_it_is_and_leaves_nothing_behind() -> None:
    with trio.fail_after(PATIENCE_S):
        async with open_slack() as slack, open_asyncio_host() as host:
            before = await host.run(count_tasks)
            adapter = SlackAdapter(account_for(slack), key="slack", host=host)
            async with trio.open_nursery() as nursery:
                assert await nursery.start(adapter.run, RecordingIntake()) == "@spacebot in Acme"
                assert await adapter.check() == "@spacebot in Acme"
                slack.latency_s = 60  # a call that never ends, neither holds it up
                nursery.start_soon(adapter.check)
                await slack.until(lambda: len(slack.called("auth.test")) == 3)
                with trio.fail_after(2):  # the promise of a shutdown
                    nursery.cancel_scope.cancel()
            await slack.until(lambda: slack.sockets == 0)
            assert await host.run(count_tasks) == before
            with pytest.raises(DeliveryError, match="not connected"):
                await adapter.check()


@pytest.mark.parametrize(
    ("account", "setting", "remedy"),
    [
        ({"bot_token": "xoxb-wrong"}, {}, "the token is wrong"),
        ({"app_token": "xapp-wrong"}, {}, "the token is wrong"),
        ({"bot_token": "xapp-good", "app_token": "xoxb-good"}, {}, "app_token must begin with xapp-"),
        ({}, {"is_socket_mode": False}, "Socket Mode is off"),
    ],
)
async def test_wrong_credentials_end_it_for_good(account: dict[str, str], setting: dict[str, Any], remedy: str) -> None:
    with trio.fail_after(PATIENCE_S):
        async with open_slack(**setting) as slack, open_asyncio_host() as host:
            adapter = SlackAdapter(account_for(slack, **account), key="slack", host=host)
            with pytest.raises(DeliveryError, match=remedy) as caught:
                await adapter.run(RecordingIntake())
    assert caught.value.is_permanent
    assert "good" not in str(caught.value)
    assert "wrong" not in str(caught.value).replace("the token is wrong", "")


async def test_a_server_that_is_down_is_worth_another_try_and_a_pause_is_told() -> None:
    with trio.fail_after(PATIENCE_S):
        async with open_slack(is_up=False) as slack, open_asyncio_host() as host:
            adapter = SlackAdapter(account_for(slack), key="slack", host=host)
            with pytest.raises(DeliveryError) as caught:
                await adapter.run(RecordingIntake())
            assert not caught.value.is_permanent
            slack.is_up = True
            slack.rate_limit(retry_after="30", method="apps.connections.open")
            with pytest.raises(DeliveryError) as caught:
                await adapter.run(RecordingIntake())
            assert (caught.value.is_permanent, caught.value.retry_after_s) == (False, 30.0)
            async with trio.open_nursery() as nursery:
                await nursery.start(adapter.run, RecordingIntake())
                nursery.cancel_scope.cancel()


async def test_a_token_that_is_revoked_ends_it_with_the_remedy() -> None:
    async with open_world() as world:
        world.slack.revoke()
        await world.over.wait()
        assert world.ended[0].is_permanent
        assert "install the app again" in str(world.ended[0])


async def test_late_news_of_an_end_are_not_believed_when_the_token_works() -> None:
    async with open_world() as world:
        world.slack.send_event({"type": "app_uninstalled"})
        world.slack.send_event({"type": "tokens_revoked", "tokens": {"bot": [BOT]}})
        await world.slack.until(lambda: len(world.slack.receipts) == 2)
        await world.said("C1", "U1", "still here")
        assert not world.ended


async def test_a_revoked_token_that_nobody_told_of_ends_it_at_the_first_call() -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", "hello")
        world.slack.revoke(tells=False)
        with pytest.raises(DeliveryError, match="revoked"):
            await world.send(message, "hi")
        await world.over.wait()
        assert world.ended[0].is_permanent


# What people do.


async def test_a_message_comes_with_names_and_without_escapes() -> None:
    async with open_world() as world:
        message = await world.said("C1", "U2", "&lt;b&gt; <@U1> see <#C2> and <https://a.example/x|this>, <!here>")
        assert message.text == "<b> @Ann see #random and [this](https://a.example/x), @here"
        assert (message.author.name, message.author.handle, message.author.is_moderator) == ("Bo Berg", "<@U2>", True)
        assert (message.conversation_id, message.channel_name) == ("slack:T1:C1", "general")
        assert (message.server_id, message.server_name, message.room_ids) == ("T1", "Acme", ("C1",))
        assert (message.mentions_bot, message.is_direct) == (False, False)
        assert len(world.slack.called("conversations.info")) == 2
        await world.said("C1", "U2", "again")
        assert len(world.slack.called("users.info")) == 2  # names are kept


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.spec("D-a")
async def test_a_mention_that_comes_twice_is_taken_once_with_its_flag(before: bool) -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", f"<@{BOT}>, what now?", before=before)
        assert (message.text, message.mentions_bot) == ("what now?", True)
        await world.slack.until(lambda: len(world.slack.receipts) == 2)
        await world.said("C1", "U1", "next")
        assert [message.text for message in world.intake.messages] == ["what now?", "next"]


@pytest.mark.spec("D-16")
async def test_a_direct_chat_is_known_as_one() -> None:
    async with open_world() as world:
        message = await world.said("D1", "U1", "psst")
        assert (message.is_direct, message.channel_name, message.conversation_id) == (True, "Ann", "slack:T1:D1")


async def test_an_instance_has_conversations_of_its_own() -> None:
    async with open_world(key="slack:ops") as world:
        message = await world.said("C1", "U1", "hello")
        assert (message.conversation_id, message.adapter_key) == ("slack:ops:T1:C1", "slack:ops")
        assert message.platform == world.adapter.platform == "slack"
        await world.send(Target(conversation_id=message.conversation_id), "hi")
        assert (await world.adapter.resolve("C2")).conversation_id == "slack:ops:T1:C2"


async def test_own_messages_and_other_bots_are_not_heard() -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", "hello")
        await world.send(message, "an answer, which Slack tells the bot too")
        world.slack.post("C1", "U9", "beep", bot_id="B9")
        world.slack.post("C1", "U1", "has joined", subtype="channel_join")
        await world.said("C1", "U1", "end")
        assert [message.text for message in world.intake.messages] == ["hello", "end"]


async def test_other_bots_are_heard_when_the_owner_wants_it_but_never_the_bot_itself() -> None:
    async with open_world({"allow_bot_messages": True}) as world:
        message = await world.said("C1", "U1", "beep", bot_id="B9")
        assert message.author.is_bot
        await world.send(message, "an answer")
        world.slack.post("C1", BOT, "own words", bot_id=BOT_ID)
        webhook = await world.said("C1", None, "built", bot_id="B7", subtype="bot_message", username="CI")
        assert (webhook.author.name, webhook.author.handle, webhook.text) == ("CI", None, "built")


@pytest.mark.spec("D-2")
async def test_a_thread_has_a_conversation_of_its_own_that_knows_its_root() -> None:
    async with open_world() as world:
        root = await world.said("C1", "U1", "the plan")
        ids = await world.send(root, "let us talk", rich=Rich(thread_name="plan"))
        assert world.slack.sent[0].thread_ts == root.platform_id
        reply = await world.said("C1", "U2", "fine", thread=root.platform_id)
        assert reply.conversation_id == f"slack:T1:C1:{root.platform_id}"
        assert reply.reply_to is not None
        assert (reply.reply_to.author, reply.reply_to.text) == ("Ann", "the plan")
        assert reply.room_ids == ("C1",)
        await world.said("C1", "U2", "more", thread=root.platform_id)
        assert len(world.slack.called("conversations.replies")) == 1
        await world.send(reply, "good")
        assert world.slack.sent[1].thread_ts == root.platform_id
        answer = await world.said("C1", "U2", "so?", thread=(await world.send(root, "top"))[0])
        assert answer.mentions_bot  # it answers what the bot said
        assert ids == [world.slack.sent[0].ts]


@pytest.mark.spec("D-15")
async def test_files_come_as_references_that_need_the_token() -> None:
    async with open_world() as world:
        number = world.slack.add_file("plan.png", "image/png", b"PNG...")
        message = await world.said("C1", "U1", "look", files=[number])
        (attachment,) = message.attachments
        assert (attachment.filename, attachment.media_type, attachment.size_bytes) == ("plan.png", "image/png", 6)
        place = await world.adapter.locate(attachment)
        assert place.url == attachment.url
        assert place.headers == {"Authorization": "Bearer xoxb-good"}
        assert place.hosts == {"files.slack.com", f"127.0.0.1:{world.slack.port}"}
        assert place.may_be_private
        assert "xoxb" not in repr(message)


async def test_files_elsewhere_do_not_get_the_token_and_hidden_addresses_are_asked_for() -> None:
    async with open_world() as world:
        number = world.slack.add_file("a.txt", "text/plain", b"words")
        files = [{"id": "FX", "name": "b", "url_private": "https://drive.example/b"}, {"id": number, "name": "a.txt"}]
        world.slack.send_event(
            {"type": "message", "subtype": "file_share", "channel": "C1", "user": "U1", "ts": "1700000900.000001"}
            | {"files": files}
        )
        elsewhere, hidden = (await world.intake.received(1))[0].attachments
        place = await world.adapter.locate(elsewhere)
        assert (place.headers, place.hosts, place.may_be_private) == ({}, frozenset(), False)
        assert (await world.adapter.locate(hidden)).url.endswith("/a.txt")


async def test_changes_and_removals_are_told() -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", "teh plan")
        ts = str(message.platform_id)
        world.slack.edit("C1", ts, "teh plan")  # only a preview came
        world.slack.edit("C1", ts, "the <@U2> plan")
        await world.intake.until(lambda: bool(world.intake.edits))
        (edit,) = world.intake.edits
        assert (edit.conversation_id, edit.platform_id, edit.text) == ("slack:T1:C1", ts, "the @Bo Berg plan")
        world.slack.delete("C1", ts)
        await world.intake.until(lambda: bool(world.intake.deletions))
        assert world.intake.deletions[0].platform_ids == (ts,)
        assert world.intake.deletions[0].conversation_id == "slack:T1:C1"


@pytest.mark.spec("D-34")
async def test_slash_commands_reach_their_agent_or_are_commands() -> None:
    async with open_world({"commands": (SlackCommand(command="/ask", agent_id="helper"),)}) as world:
        world.slack.slash("C1", "U1", "/ask", "why, <@U2|bo> &amp; co?")
        asked = (await world.intake.received(1))[0]
        assert (asked.agent_id, asked.text, asked.command) == ("helper", "/ask why, @bo & co?", None)
        assert asked.author.name == "Ann"
        world.slack.slash("C1", "U1", "/spacebot", "Quiet  now")
        given = (await world.intake.received(2))[1]
        assert given.command is not None
        assert (given.command.name, given.command.args, given.text) == ("quiet", "now", "/quiet now")
        world.slack.slash("C1", "U1", "/other")
        await world.slack.until(lambda: len(world.slack.receipts) == 3)
        payloads = [receipt.payload for receipt in world.slack.receipts]
        assert payloads[:2] == [None, None]
        assert payloads[2] is not None
        assert payloads[2]["response_type"] == "ephemeral"
        assert len(world.intake.messages) == 2
        await world.send(asked, "because")
        assert world.slack.sent[0].channel == "C1"


async def test_presses_and_choices_are_interactions() -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", "menu")
        rich = Rich(
            rows=(
                Row(buttons=(Button(label="Yes", custom_id="ok"), Button(label="Docs", url="https://a.example"))),
                Row(select=Select(custom_id="size", options=(SelectOption(label="Small", value="s"),))),
            )
        )
        await world.send(message, "choose", rich=rich)
        (sent,) = world.slack.sent
        buttons, menu = (block["elements"] for block in sent.blocks if block["type"] == "actions")
        trigger = world.slack.press(
            sent, "U2", buttons[0], buttons[1], {**menu[0], "selected_option": menu[0]["options"][0]}
        )
        _, pressed, chosen = await world.intake.received(3)
        assert pressed.text == "[interaction: ok → Yes]"
        assert (pressed.platform_id, chosen.platform_id) == (trigger, f"{trigger}:1")
        assert chosen.interaction is not None
        assert (chosen.interaction.action_id, chosen.interaction.values) == ("size", ("s",))
        assert chosen.interaction.message_id == sent.ts
        assert (chosen.author.name, chosen.conversation_id) == ("Bo Berg", "slack:T1:C1")


async def test_malformed_and_unknown_events_are_skipped(caplog: pytest.LogCaptureFixture) -> None:
    async with open_world() as world:
        for event in (
            None,
            [],
            {"type": "message"},
            {"type": "message", "user": "U1", "channel": "C1", "ts": "soon", "text": "x"},
            {"type": "message", "user": "U1", "channel": "C1", "ts": "1.0", "text": ["x"]},
            {"type": "reaction_added", "user": "U1"},
            {"type": "message", "subtype": "message_changed", "channel": "C1"},
        ):
            world.slack.send_event(event)
        world.slack._envelope("interactive", {"type": "view_submission"})
        world.slack._envelope("future_kind", {"type": "x"})
        await world.slack.until(lambda: len(world.slack.receipts) == 9)
        await world.said("C1", "U1", "still here")
        assert len([r for r in caplog.records if "malformed event" in r.getMessage()]) == 4  # once per reason
        assert not world.ended


async def test_names_that_cannot_be_had_cost_no_message(caplog: pytest.LogCaptureFixture) -> None:
    async with open_world(missing_scopes={"users:read"}) as world:
        first, second = await world.said("C1", "U1", "a <@U2>"), await world.said("C1", "U2", "b")
        assert (first.author.name, first.text, second.author.name) == ("U1", "a @U2", "U2")
        warnings = [r for r in caplog.records if "cannot be looked up" in r.getMessage()]
        assert len(warnings) == 1
        assert "users:read" in str(warnings[0].__dict__)


# Receipts and sockets.


async def test_what_could_not_be_stored_comes_again() -> None:
    async with open_world(redeliver_s=0.05) as world:
        world.intake.failures = 2
        message = await world.said("C1", "U1", "keep this")
        await world.slack.until(lambda: bool(world.slack.receipts))
        assert (message.text, world.slack.receipts[0].attempt) == ("keep this", 2)


class SlowIntake(RecordingIntake):
    """Takes the first message only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()

    async def take(self, message: InboundMessage) -> Receipt:
        await self.gate.wait()
        return await super().take(message)


async def test_a_receipt_that_would_be_late_is_left_to_the_second_delivery() -> None:
    intake = SlowIntake()
    async with open_world(redeliver_s=0.3, receipt_s=0.1, intake=intake) as world:
        world.slack.post("C1", "U1", "slowly")
        await world.slack.until(lambda: world.slack.redelivered == 1)
        assert not world.slack.receipts
        intake.gate.set()
        await world.slack.until(lambda: bool(world.slack.receipts))
        assert (world.slack.receipts[0].attempt >= 1, world.slack.late) == (True, 0)
        assert [message.text for message in intake.messages] == ["slowly"]


@pytest.mark.parametrize("reason", ["warning", "refresh_requested", "too_many_websockets"])
async def test_the_next_socket_is_opened_when_slack_asks(reason: str) -> None:
    async with open_world(redeliver_s=0.1) as world:
        await world.said("C1", "U1", "1")
        before = await world.host.run(count_tasks)
        world.slack.disconnect(reason)
        world.slack.post("C1", "U1", "2")
        await world.intake.received(2)
        await world.slack.until(lambda: (world.slack.sockets, world.slack.sockets_opened) == (1, 2))
        await world.said("C1", "U1", "3")
        assert [message.text for message in world.intake.messages] == ["1", "2", "3"]
        assert len(world.slack.called("auth.test")) == 1
        while await world.host.run(count_tasks) > before:  # nothing may be left of the first socket
            pass


async def test_socket_mode_that_is_switched_off_ends_it_for_good() -> None:
    async with open_world() as world:
        world.slack.disconnect("link_disabled")
        await world.over.wait()
        assert world.ended[0].is_permanent
        assert "Socket Mode is off" in str(world.ended[0])
        assert len(world.slack.called("apps.connections.open")) == 2  # what is hopeless is not repeated


async def test_a_socket_that_is_closed_before_the_greeting_is_only_an_attempt() -> None:
    async with open_world() as world:
        world.slack.turns_away = 1
        world.slack.drop_sockets()
        await world.slack.until(lambda: world.slack.sockets_opened == 2)
        await world.said("C1", "U1", "here again")
        world.slack.turns_away = 9
        world.slack.drop_sockets()
        await world.over.wait()
        assert not world.ended[0].is_permanent


async def test_a_slack_that_stays_away_is_left_to_the_supervisor() -> None:
    async with open_world() as world:
        world.slack.is_up = False
        world.slack.drop_sockets()
        await world.over.wait()
        assert not world.ended[0].is_permanent
        world.slack.is_up = True


@pytest.mark.spec("D-40")
async def test_sockets_that_break_again_and_again_lose_and_double_nothing() -> None:
    rooms = [f"C{number}" for number in range(10, 15)]
    async with open_world(redeliver_s=0.3, attempts=100) as world:
        for room in rooms:
            world.slack.add_channel(room, room.lower())
        for number in range(60):
            for room in rooms:
                world.slack.post(room, "U1", str(number))
            if number % 12 == 11:
                opened = world.slack.sockets_opened
                world.slack.drop_sockets()
                await world.slack.until(lambda opened=opened: world.slack.sockets_opened > opened)
        await world.intake.received(300)
        for room in rooms:
            said = [message.text for message in world.intake.messages if message.room_ids == (room,)]
            assert sorted(said, key=int) == [str(number) for number in range(60)]
        await world.slack.until(lambda: not world.slack._waiting)
        assert not world.slack.given_up
