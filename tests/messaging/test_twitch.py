"""Twitch: the adapter against a strict stand-in of the chat, over TCP."""

import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from pydantic import SecretStr
from trio.testing import MockClock

from spacebot.base.errors import DeliveryError
from spacebot.base.ids import ConversationId, MessageId
from spacebot.config.messaging import TwitchAccount
from spacebot.messaging.adapter import Receipt
from spacebot.messaging.messages import (
    InboundMessage,
    OutboundFile,
    OutboundKind,
    OutboundMessage,
    ReplyPreview,
    Target,
)
from spacebot.messaging.twitch import TwitchAdapter
from tests.conftest import Logs
from tests.fakes.recording_intake import RecordingIntake
from tests.stand_ins.twitch import TwitchStandIn, open_twitch


def account(chat: TwitchStandIn, **changes: Any) -> TwitchAccount:
    fields: dict[str, Any] = {
        "username": "SpaceBot",
        "oauth_token": SecretStr("oauth:chat-secret"),
        "channels": ("#Garden", "kitchen"),
        "host": "127.0.0.1",
        "port": chat.port,
        "tls": False,
    }
    return TwitchAccount(**(fields | changes))


@asynccontextmanager
async def open_adapter(
    chat: TwitchStandIn, intake: RecordingIntake, *, key: str = "twitch", **changes: Any
) -> AsyncIterator[TwitchAdapter]:
    """A signed-in adapter that sits in its rooms."""
    adapter = TwitchAdapter(account(chat, **changes), key=key)
    async with trio.open_nursery() as nursery:
        assert await nursery.start(adapter.run, intake) == "spacebot"
        await chat.joined("garden", "kitchen")
        yield adapter
        nursery.cancel_scope.cancel()
    await chat.until(lambda: chat.connected == 0)
    assert not chat.complaints


async def run_once(chat: TwitchStandIn, **changes: Any) -> None:
    await TwitchAdapter(account(chat, **changes), key="twitch").run(RecordingIntake())


def target(room: str = "garden", *, message_id: str | None = None, **data: str) -> Target:
    return Target(conversation_id=ConversationId(f"twitch:{room}"), data={"room": room, **data}, message_id=message_id)


def words(text: str, **more: Any) -> OutboundMessage:
    return OutboundMessage(id=MessageId("m1"), text=text, **more)


class Parts(list[str]):
    """The ids that the adapter told of."""

    async def note(self, part_id: str) -> None:
        self.append(part_id)


@pytest.mark.spec("D-h")
async def test_it_signs_in_and_joins_its_rooms_by_login() -> None:
    async with open_twitch() as chat, open_adapter(chat, RecordingIntake()) as adapter:
        assert [room for room, _ in chat.joins] == ["garden", "kitchen"]
        assert chat.lines[:3] == ["CAP REQ :twitch.tv/tags twitch.tv/commands", "PASS ***", "NICK spacebot"]
        assert "in #garden, #kitchen" in await adapter.check()


async def test_a_message_arrives_with_all_that_is_known_of_it() -> None:
    intake = RecordingIntake()
    async with open_twitch() as chat, open_adapter(chat, intake, key="twitch:ops"):
        message_id = await chat.post("garden", "ann_b", "  hello  there ", name="Ann B", badges="moderator/1,vip/1")
        await chat.post("garden", "bob", "hi", name="", badges="broadcaster/1")
        await chat.post("kitchen", "cem", "hi", name="ジェム\u202e")
        first, second, third = await intake.received(3)
    assert (first.platform, first.adapter_key, first.conversation_id) == ("twitch", "twitch:ops", "twitch:ops:garden")
    assert (first.author.name, first.author.handle, first.author.is_moderator) == ("Ann B", "@ann_b", True)
    assert first.author.id.isdecimal()
    assert (first.text, first.platform_id, first.room_ids) == ("hello  there", message_id, ("garden",))
    assert first.sent_at.utcoffset() == timedelta(0)
    assert first.sent_at.year == 2026
    assert not first.mentions_bot
    assert not first.is_direct
    assert (second.author.name, second.author.is_moderator) == ("bob", True)
    assert (third.author.name, third.author.is_moderator, third.conversation_id) == (
        "ジェム",
        False,
        "twitch:ops:kitchen",
    )


@pytest.mark.parametrize(
    ("text", "is_meant"),
    [
        ("@spacebot hello", True),
        ("hello @SpaceBot, how are you?", True),
        ("(@spacebot)", True),
        ("@spacebot_two hello", False),
        ("@@spacebot hello", False),
        ("me@spacebot.org", False),
        ("spacebot hello", False),
    ],
)
@pytest.mark.spec("D-4")
async def test_only_its_whole_name_is_a_mention(text: str, is_meant: bool) -> None:
    intake = RecordingIntake()
    async with open_twitch() as chat, open_adapter(chat, intake):
        await chat.post("garden", "ann", text)
        (message,) = await intake.received(1)
        assert (message.text, message.mentions_bot) == (text, is_meant)


async def test_answers_to_the_bot_name_what_they_answer_and_answers_to_others_do_not_call_it(
    autojump_clock: MockClock,
) -> None:
    intake = RecordingIntake()
    async with open_twitch() as chat, open_adapter(chat, intake) as adapter:
        await adapter.send(target(), words("It is **noon**."), Parts().note)
        await chat.post("garden", "ann", "thanks!", reply_to=chat.sent[0])
        tags = {"reply_parent_msg_id": "x", "reply_parent_user_login": "bob", "reply_parent_msg_body": "a\nb"}
        await chat.post("garden", "ann", "@bob no", **tags)
        ours, others = await intake.received(2)
    assert (ours.text, ours.mentions_bot) == ("thanks!", True)
    assert ours.reply_to == ReplyPreview(author="Spacebot", text="It is noon.")
    assert (others.text, others.mentions_bot, others.reply_to) == (
        "no",
        False,
        ReplyPreview(author="bob", text="a b"),
    )


async def test_with_a_prefix_only_what_begins_with_it_is_heard() -> None:
    intake = RecordingIntake()
    async with open_twitch() as chat, open_adapter(chat, intake, trigger_prefix="!bot"):
        for text in ("hello", " !Bot upper case", "say !bot", "!bot   what is up?", "!bot"):
            await chat.post("garden", "ann", text)
        messages = await intake.received(2)
    assert [(message.text, message.mentions_bot) for message in messages] == [("what is up?", True), ("!bot", True)]


async def test_own_words_shared_chats_whispers_and_events_are_no_messages() -> None:
    intake = RecordingIntake()
    async with open_twitch() as chat, open_adapter(chat, intake):
        await chat.post("garden", "spacebot", "my own")
        await chat.post("garden", "ann", "said elsewhere", source_room_id="42")
        await chat.raw(b":ann!ann@ann.tmi.twitch.tv WHISPER spacebot :psst\r\n")
        await chat.raw(b"@msg-id=sub;login=ann :tmi.twitch.tv USERNOTICE #garden :first year!\r\n")
        await chat.post("garden", "ann", "   ")
        await chat.action("garden", "ann", "waves")
        assert [message.text for message in await intake.received(1)] == ["waves"]


async def test_malformed_and_unknown_lines_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    intake = RecordingIntake()
    async with open_twitch() as chat, open_adapter(chat, intake):
        await chat.raw(b"@@@ ;;; \r\n\r\n:only.a.source\r\n\xff\xfe\x00 x\r\nPRIVMSG\r\nPRIVMSG #garden :nobody\r\n")
        await chat.raw(b"@tmi-sent-ts=99999999999999999999 :ann!a@a PRIVMSG #garden :when?\r\n")
        await chat.raw(b"@slow=often :t ROOMSTATE #garden\r\nNEWTHING #garden :x\r\nNEWTHING #garden :y\r\n")
        await chat.raw(b"CLEARCHAT\r\nCLEARMSG #garden\r\nUSERSTATE\r\nNOTICE\r\nPONG\r\n")
        await chat.post("garden", "ann", "still there?")
        assert [message.text for message in await intake.received(1)] == ["still there?"]
    skipped = [record.kv["kind"] for record in caplog.records if "event skipped" in record.message]  # type: ignore[attr-defined]
    assert sorted(skipped) == ["NEWTHING", "PRIVMSG", "ROOMSTATE", "UNREADABLE"]


async def test_lines_that_come_in_pieces_are_put_together(autojump_clock: MockClock) -> None:
    intake = RecordingIntake()
    async with open_twitch() as chat, open_adapter(chat, intake):
        raw = "@id=1;tmi-sent-ts=1780000000000 :ann!a@a PRIVMSG #garden :grüße 🌍\r\n".encode()
        for index in range(len(raw)):
            await chat.raw(raw[index : index + 1])
            await trio.sleep(0.001)
        assert (await intake.received(1))[0].text == "grüße 🌍"


async def test_what_moderators_remove_is_told() -> None:
    intake = RecordingIntake()
    async with open_twitch() as chat, open_adapter(chat, intake):
        ids = [await chat.post("garden", "ann" if number % 2 else "bob", f"line {number}") for number in range(6)]
        elsewhere = await chat.post("kitchen", "ann", "elsewhere")
        await chat.delete("garden", ids[0])
        await chat.timeout_user("garden", "ann")
        await chat.timeout_user("garden", "ann")  # nothing is left of hers
        await chat.timeout_user("kitchen", None)
        await chat.post("garden", "bob", "after")
        await intake.received(8)
        await intake.until(lambda: len(intake.deletions) == 3)
    by_room = {(deletion.conversation_id, deletion.platform_ids) for deletion in intake.deletions}
    assert by_room == {
        ("twitch:garden", (ids[0],)),
        ("twitch:garden", (ids[1], ids[3], ids[5])),
        ("twitch:kitchen", (elsewhere,)),
    }


async def test_what_could_not_be_kept_is_handed_in_again_and_its_room_waits(autojump_clock: MockClock) -> None:
    intake = RecordingIntake(failures=2)
    async with open_twitch() as chat, open_adapter(chat, intake):
        await chat.post("garden", "ann", "first")
        await chat.post("garden", "ann", "second")
        assert [message.text for message in await intake.received(2)] == ["first", "second"]


async def test_a_disk_that_stays_full_is_an_error(logs: Logs, autojump_clock: MockClock) -> None:
    logs.expect("a Twitch event is lost")
    intake = RecordingIntake(failures=4)
    async with open_twitch() as chat, open_adapter(chat, intake):
        await chat.post("garden", "ann", "first")
        await chat.post("garden", "ann", "second")
        assert [message.text for message in await intake.received(1)] == ["second"]


async def test_an_answer_is_one_line_with_a_reply_mark(autojump_clock: MockClock) -> None:
    async with open_twitch() as chat, open_adapter(chat, RecordingIntake()) as adapter:
        parts = Parts()
        mentions = {"Ann B": "@ann_b"}
        await adapter.send(
            target(message_id="q=1;"), words("Hi @Ann B,\n\n* one\n* **two**", mentions=mentions), parts.note
        )
        await adapter.send(target("kitchen", message_id_of_old="x"), words("again"), parts.note)
        await adapter.send(target(**{"message_id": "q2"}), words("marked", wants_reply_mark=True), parts.note)  # type: ignore[arg-type]
        first, second, third = chat.sent
    assert first.text.startswith("Hi @ann_b, ")
    assert "one" in first.text
    assert "two" in first.text
    assert "**" not in first.text
    assert (first.reply_to, second.reply_to, third.reply_to) == ("q=1;", None, "q2")
    assert (second.room, second.raw) == ("kitchen", ". again")
    assert parts == [said.id for said in chat.sent]


@pytest.mark.parametrize(
    "text",
    [
        "/ban ann",
        ".ban ann",
        "  /me dances",
        "hello\r\nPRIVMSG #garden :injected",
        "hello\nJOIN #other\rQUIT\0",
        "\x01ACTION dances\x01",
        "@reply-parent-msg-id=1 PRIVMSG #garden :x",
        "a\u2028PRIVMSG #garden :b\u2029c\x85d",
    ],
)
@pytest.mark.spec("D-h")
async def test_texts_are_never_commands(text: str) -> None:
    async with open_twitch() as chat, open_adapter(chat, RecordingIntake()) as adapter:
        before = len(chat.lines)
        await adapter.send(target(), words(text), Parts().note)
        (said,) = chat.sent
        assert chat.lines[before:] == [f"PRIVMSG #garden :{said.raw}"]
        assert said.raw.startswith(". ")
        assert not said.text.startswith("\x01")


async def test_longer_answers_are_cut_and_very_long_ones_end(autojump_clock: MockClock) -> None:
    async with open_twitch() as chat, open_adapter(chat, RecordingIntake()) as adapter:
        parts = Parts()
        await adapter.send(target(message_id="q"), words("A sentence of some words. " * 40), parts.note)
        assert [said.reply_to for said in chat.sent] == ["q", None, None]
        assert all(said.text.endswith("words.") and len(said.raw) <= 500 for said in chat.sent)
        assert " ".join(said.text for said in chat.sent) == ("A sentence of some words. " * 40).strip()
        for long in ("word " * 20_000, "x" * 100_000, "😀" * 100_000, "[link](https://example.com/long) " * 3_000):
            chat.sent.clear()
            await adapter.send(target(), words(long), parts.note)
            assert 1 <= len(chat.sent) <= 5
            assert chat.sent[-1].text.endswith("(shortened; ask for the rest)")
            assert all(len(said.raw) <= 500 for said in chat.sent)


async def test_a_second_attempt_goes_on_behind_what_was_said(autojump_clock: MockClock) -> None:
    async with open_twitch() as chat, open_adapter(chat, RecordingIntake()) as adapter:
        text = "A sentence of some words. " * 40
        chat.refusals.append(("msg_ratelimit", "too quickly"))
        parts = Parts()
        with pytest.raises(DeliveryError) as refused:
            await adapter.send(target(), words(text), parts.note)
        assert (refused.value.is_permanent, refused.value.retry_after_s, parts) == (False, 30.0, [])
        await adapter.send(target(message_id="q"), words(text, sent=("one",)), parts.note)
        assert len(parts) == 2
        assert not any(said.reply_to for said in chat.sent)
        assert chat.sent[-1].text.endswith("words.")


@pytest.mark.parametrize(
    ("notice_id", "text", "is_permanent", "pause_s"),
    [
        ("msg_banned", "You are permanently banned from talking in garden.", True, None),
        ("msg_channel_suspended", "This channel does not exist or has been suspended.", True, None),
        ("msg_rejected_mandatory", "Your message wasn't posted due to conflicts.", True, None),
        ("msg_newly_invented", "Something new.", True, None),
        ("msg_slowmode", "You will be able to talk again in 42 seconds.", False, 42.0),
        ("msg_timedout", "You are timed out for 600 more seconds.", False, 600.0),
    ],
)
async def test_refusals_say_whether_to_try_again(
    notice_id: str, text: str, is_permanent: bool, pause_s: float | None, autojump_clock: MockClock
) -> None:
    async with open_twitch() as chat, open_adapter(chat, RecordingIntake()) as adapter:
        chat.refusals.append((notice_id, text))
        with pytest.raises(DeliveryError, match=notice_id) as refused:
            await adapter.send(target(), words("hello"), Parts().note)
        assert (refused.value.is_permanent, refused.value.retry_after_s) == (is_permanent, pause_s)
        await adapter.send(target(), words("better"), Parts().note)
        assert [said.text for said in chat.sent] == ["better"]


async def test_the_same_words_twice_count_as_said_and_other_notices_answer_nothing(autojump_clock: MockClock) -> None:
    async with open_twitch() as chat, open_adapter(chat, RecordingIntake()) as adapter:
        parts = Parts()
        chat.refusals.append(("msg_duplicate", "Your message is identical to the previous one."))
        await adapter.send(target(), words("hello"), parts.note)
        assert len(parts) == 1
        for notice_id in ("msg_banned", "slow_on", ""):
            await chat.notice("garden", notice_id)
        await adapter.send(target("kitchen"), words("hello"), parts.note)
        await adapter.check()
        assert len(parts) == 2


async def test_a_message_without_an_answer_is_tried_again_later(autojump_clock: MockClock) -> None:
    async with open_twitch() as chat, open_adapter(chat, RecordingIntake()) as adapter:
        chat.is_mute = True
        with pytest.raises(DeliveryError, match="did not confirm") as failed:
            await adapter.send(target(), words("hello"), Parts().note)
        assert not failed.value.is_permanent


async def test_a_server_that_gives_no_ids_is_understood(autojump_clock: MockClock) -> None:
    async with open_twitch() as chat:
        chat.gives_ids = False
        async with open_adapter(chat, RecordingIntake()) as adapter:
            parts = Parts()
            for _ in range(2):
                await adapter.send(target(), words("hello"), parts.note)
            assert len(set(parts)) == len(chat.sent) == 2


@pytest.mark.parametrize(("moderated", "least_s", "most_s"), [((), 90.0, 160.0), (("garden", "kitchen"), 0.0, 40.0)])
@pytest.mark.spec("D-i")
async def test_sending_keeps_below_the_limits_of_the_account(
    moderated: tuple[str, ...], least_s: float, most_s: float, autojump_clock: MockClock
) -> None:
    """The stand-in complains about the 21st message in 30 s, or the 101st of a moderator."""
    async with open_twitch() as chat:
        chat.moderated |= set(moderated)
        async with open_adapter(chat, RecordingIntake()) as adapter:
            began = trio.current_time()

            async def talk(room: str) -> None:
                for number in range(36):
                    await adapter.send(target(room), words(f"line {number}"), Parts().note)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk, "garden")
                nursery.start_soon(talk, "kitchen")
            assert len(chat.sent) == 72
            assert least_s <= trio.current_time() - began <= most_s


async def test_in_slow_rooms_it_waits_as_everybody_does(autojump_clock: MockClock) -> None:
    async with open_twitch() as chat, open_adapter(chat, RecordingIntake()) as adapter:
        await chat.slow("garden", 5)
        await chat.slow("kitchen", 120)
        await adapter.check()
        for room in ("garden", "garden", "kitchen"):
            await adapter.send(target(room), words("hello"), Parts().note)
        assert chat.sent[1].at - chat.sent[0].at >= 5
        with pytest.raises(DeliveryError, match="slow mode") as slow:
            await adapter.send(target("kitchen"), words("hello"), Parts().note)
        assert slow.value.retry_after_s == pytest.approx(120, abs=5)
        assert not slow.value.is_permanent


async def test_forty_rooms_are_joined_at_the_allowed_pace(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with open_twitch() as chat:
        chat.unknown.add("nobody")
        names = ("garden", "kitchen", "nobody", *(f"room{number}" for number in range(40)))
        async with open_adapter(chat, RecordingIntake(), channels=names) as adapter:
            await chat.joined("room39")
            assert chat.joins[-1][1] - chat.joins[0][1] >= 20
            await trio.sleep(60)
            assert "not in #nobody" in await adapter.check()
    missing = [record for record in caplog.records if record.message == "Twitch channel not joined"]
    assert [record.kv["channel"] for record in missing] == ["nobody"]  # type: ignore[attr-defined]


async def test_a_file_becomes_a_line_and_what_the_chat_cannot_do_is_said(tmp_path: Path) -> None:
    async with open_twitch() as chat, open_adapter(chat, RecordingIntake()) as adapter:
        file = OutboundFile(filename="plan\n.pdf", media_type="application/pdf", path=tmp_path / "x", size_bytes=3)
        await adapter.send(target(), words("the plan", kind=OutboundKind.FILE, file=file), Parts().note)
        assert chat.sent[0].text == "[File: plan .pdf] the plan"
        with pytest.raises(DeliveryError, match="no reactions"):
            await adapter.send(target(), words("👍", kind=OutboundKind.REACTION), Parts().note)
        with pytest.raises(DeliveryError, match="edited"):
            await adapter.draft(target(), "so far", None)
        assert await adapter.history(target(), 10) == ()


async def test_addresses_are_logins_of_its_rooms(autojump_clock: MockClock) -> None:
    async with open_twitch() as chat, open_adapter(chat, RecordingIntake(), key="twitch:ops") as adapter:
        place = await adapter.resolve(" #Garden")
        assert (place.conversation_id, place.name, place.is_direct) == ("twitch:ops:garden", "#garden", False)
        await adapter.send(Target(conversation_id=place.conversation_id, data=place.data), words("hi"), Parts().note)
        await adapter.send(Target(conversation_id=ConversationId("twitch:ops:kitchen")), words("hi"), Parts().note)
        assert [said.room for said in chat.sent] == ["garden", "kitchen"]
        for wrong in ("elsewhere", "two words", "", "#a\r\nQUIT"):
            with pytest.raises(DeliveryError, match="none of the bot's channels") as refused:
                await adapter.resolve(wrong)
            assert refused.value.is_permanent


@pytest.mark.spec("D-11")
async def test_a_wrong_token_is_permanent_and_not_told() -> None:
    async with open_twitch() as chat:
        for wrong in ("oauth:wrong-secret", "wrong-secret\r\nJOIN #x"):
            with pytest.raises(DeliveryError, match="chat:read and chat:edit") as refused:
                await run_once(chat, oauth_token=SecretStr(wrong))
            assert refused.value.is_permanent
            assert "wrong-secret" not in str(refused.value)
        with pytest.raises(DeliveryError, match="no Twitch login") as refused:
            await run_once(chat, username="Space Bot!")
        assert refused.value.is_permanent
        chat.knows_tags = False
        with pytest.raises(DeliveryError, match="no tags"):
            await run_once(chat)


async def test_a_server_that_is_down_is_not_permanent() -> None:
    async with open_twitch() as chat:
        gone = account(chat)
    with pytest.raises(DeliveryError, match="cannot be reached") as failed:
        await TwitchAdapter(gone, key="twitch").run(RecordingIntake())
    assert not failed.value.is_permanent


async def test_a_server_that_never_answers_the_sign_in_is_left(autojump_clock: MockClock) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with listeners[0]:
        quiet = TwitchAccount(username="spacebot", oauth_token=SecretStr("x"), host="127.0.0.1", port=port, tls=False)
        with pytest.raises(DeliveryError, match="did not answer the sign-in") as failed:
            await TwitchAdapter(quiet, key="twitch").run(RecordingIntake())
    assert not failed.value.is_permanent


async def test_signs_of_life_go_both_ways_and_a_dead_connection_is_left(autojump_clock: MockClock) -> None:
    intake = RecordingIntake()
    async with open_twitch() as chat:
        adapter = TwitchAdapter(account(chat), key="twitch")
        failure: list[DeliveryError] = []

        async def run() -> None:
            try:
                await adapter.run(intake)
            except DeliveryError as error:
                failure.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await chat.joined("garden", "kitchen")
            await trio.sleep(200)
            assert chat.pings == 3
            await chat.ping()
            await chat.until(lambda: chat.pongs == 1)
            chat.is_silent = True
        assert not failure[0].is_permanent
        assert "PING" in str(failure[0])
        assert chat.connected == 0
        with pytest.raises(DeliveryError, match="not connected"):
            await adapter.send(target(), words("hello"), Parts().note)
        with pytest.raises(DeliveryError, match="not connected"):
            await adapter.check()


async def test_reconnecting_loses_and_doubles_nothing_that_was_heard() -> None:
    """RECONNECT is a good end; a dropped connection an error that is worth another try."""
    intake = RecordingIntake()
    async with open_twitch() as chat:
        adapter = TwitchAdapter(account(chat), key="twitch")
        endings: list[bool | None] = []

        async def run() -> None:
            try:
                await adapter.run(intake)
                endings.append(None)
            except DeliveryError as error:
                endings.append(error.is_permanent)

        for life in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await chat.joined("garden", "kitchen")
                for number in range(20):
                    await chat.post("garden", "ann", f"{life}.{number}")
                await (chat.drop() if life == 1 else chat.reconnect())
        assert endings == [None, False, None]
        assert [message.text for message in intake.messages] == [f"{a}.{b}" for a in range(3) for b in range(20)]
        assert chat.connections == 3
        assert not chat.complaints


async def test_a_send_under_way_when_the_connection_breaks_is_tried_again() -> None:
    async with open_twitch() as chat:
        adapter = TwitchAdapter(account(chat), key="twitch")
        chat.is_mute = True
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                with pytest.raises(DeliveryError):
                    await adapter.run(RecordingIntake())

            nursery.start_soon(run)
            await chat.joined("garden", "kitchen")

            async def hang_up() -> None:
                await chat.heard(1)
                await chat.drop()

            nursery.start_soon(hang_up)
            with pytest.raises(DeliveryError, match="connection to Twitch ended") as failed:
                await adapter.send(target(), words("hello"), Parts().note)
            assert not failed.value.is_permanent


class SlowIntake(RecordingIntake):
    """The first message takes more than three minutes."""

    async def take(self, message: InboundMessage) -> Receipt:
        if not self.messages:
            await trio.sleep(200)
        return await super().take(message)


async def test_a_program_that_is_slow_to_take_messages_is_not_a_dead_connection(autojump_clock: MockClock) -> None:
    """More events wait than all queues hold; nothing is lost, and the missing PONG is excused."""
    total = 2000
    intake = SlowIntake()
    async with open_twitch() as chat, open_adapter(chat, intake):
        for number in range(total):
            await chat.post("garden", "ann", f"line {number}")
        messages = await intake.received(total)
        assert [message.text for message in messages] == [f"line {number}" for number in range(total)]
        assert chat.connections == chat.connected == 1


async def test_a_token_that_is_taken_back_ends_the_connection_for_good() -> None:
    async with open_twitch() as chat:
        adapter = TwitchAdapter(account(chat), key="twitch")
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                with pytest.raises(DeliveryError, match="chat:read") as refused:
                    await adapter.run(RecordingIntake())
                assert refused.value.is_permanent

            nursery.start_soon(run)
            await chat.joined("garden", "kitchen")
            await chat.raw(b":tmi.twitch.tv NOTICE * :Login authentication failed\r\n")


async def test_the_connection_is_encrypted_and_the_server_is_checked(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    chat = TwitchStandIn("chat-secret", "spacebot")
    listeners = await trio.open_ssl_over_tcp_listeners(0, server, host="127.0.0.1")
    chat.port = listeners[0].transport_listener.socket.getsockname()[1]
    secure = account(chat, host="localhost", tls=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, chat.serve, listeners)
        with pytest.raises(DeliveryError, match=r"cannot be reached \(.*certificate verify failed"):
            await TwitchAdapter(secure, key="twitch").run(RecordingIntake())
        trusting = ssl.create_default_context(cafile=str(certificate))
        adapter = TwitchAdapter(secure, key="twitch", tls=trusting)
        await nursery.start(adapter.run, RecordingIntake())
        await chat.joined("garden", "kitchen")
        await adapter.send(target(), words("hello"), Parts().note)
        assert [said.text for said in chat.sent] == ["hello"]
        nursery.cancel_scope.cancel()
