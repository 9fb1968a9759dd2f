"""Telegram, from people to the agent: the adapter, with the real library, against a strict stand-in."""

import logging
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from spacebot.base.errors import DeliveryError
from spacebot.messaging.messages import (
    Attachment,
    Button,
    ButtonStyle,
    InboundMessage,
    Rich,
    Row,
    Select,
    SelectOption,
    Target,
)
from spacebot.messaging.telegram.adapter import WELCOME
from tests.fakes.recording_intake import RecordingIntake
from tests.fakes.telegram_talk import adapter_of, answer, connected, refusal_of, send, talking, target
from tests.stand_ins.serving import Connection, Request, serve
from tests.stand_ins.telegram import TOKEN, open_telegram

# Start


async def test_it_signs_in_registers_its_menu_once_and_takes_a_webhook_away() -> None:
    menu = [("status", "What runs now"), ("agent-id", "Which agent this is"), ("nö", "cannot be one")]
    with trio.fail_after(10):
        async with open_telegram() as telegram:
            telegram.webhook = "https://elsewhere.example/hook"
            ann = telegram.user("Ann")
            telegram.post(telegram.private(ann), ann, "said before the start")
            intake = RecordingIntake()
            async with connected(adapter_of(telegram, commands=menu), intake) as name:
                assert name == "@spacebot_bot"
                await intake.received(1)
            async with connected(adapter_of(telegram, commands=menu), intake):
                pass
            assert [command["command"] for command in telegram.commands] == ["status", "agent_id"]
            assert telegram.calls.count("setMyCommands") == 1
            assert telegram.calls.count("deleteWebhook") == 1
            assert telegram.complaints == []


@pytest.mark.parametrize("token", ["700000001:AAanotherTokenThatIsNotTheBots", "no token at all", ""])
async def test_a_refused_token_is_a_permanent_error_that_says_what_to_do(token: str) -> None:
    async with open_telegram() as telegram:
        adapter = adapter_of(telegram, token=token, key="telegram:ops")
        with pytest.raises(DeliveryError, match=r"@BotFather.*'ops' of \[messaging\.telegram\]") as caught:
            await adapter.run(RecordingIntake())
    assert caught.value.is_permanent
    assert not token or token not in str(caught.value)


async def test_a_server_that_is_down_is_a_passing_error_and_the_same_adapter_connects_later() -> None:
    intake = RecordingIntake()
    with trio.fail_after(10):
        async with open_telegram() as telegram:
            adapter = adapter_of(telegram)
            telegram.fail(1, method="getMe")
            with pytest.raises(DeliveryError) as caught:
                await adapter.run(intake)
            assert not caught.value.is_permanent
            async with connected(adapter, intake):
                ann = telegram.user("Ann")
                telegram.post(telegram.private(ann), ann, "there you are")
                assert (await intake.received(1))[0].text == "there you are"


async def test_nothing_can_be_sent_without_a_connection() -> None:
    async with open_telegram() as telegram:
        error = await refusal_of(adapter_of(telegram), target(telegram.group("Team")), answer("Hello"))
    assert not error.is_permanent


async def test_it_says_who_it_is_when_asked() -> None:
    async with talking() as (telegram, adapter, _):
        assert "@spacebot_bot" in await adapter.check()
        telegram.fail(1, method="getMe", code=401, text="Unauthorized")
        with pytest.raises(DeliveryError) as caught:
            await adapter.check()
        assert caught.value.is_permanent


async def test_a_proxy_of_the_environment_is_for_the_internet_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def refuse(request: Request, connection: Connection) -> None:
        asked.append(f"{request.method} {request.path}")
        await connection.send(b"", status=403)

    with trio.fail_after(10):
        async with serve(refuse) as proxy, open_telegram() as telegram:
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
                monkeypatch.setenv(name, proxy.url)
            for name in ("NO_PROXY", "no_proxy"):
                monkeypatch.delenv(name, raising=False)
            async with connected(adapter_of(telegram), RecordingIntake()):
                assert asked == []
            with pytest.raises(DeliveryError):
                await adapter_of(telegram, api_url=None).run(RecordingIntake())
    assert asked == ["CONNECT api.telegram.org:443"]


# In


async def test_a_private_message() -> None:
    async with talking() as (telegram, _, intake):
        ann = telegram.user("Ann", "Lee", "ann_lee")
        number = telegram.post(telegram.private(ann), ann, "Hello 👋")
        message = (await intake.received(1))[0]
        assert message.conversation_id == f"telegram:{ann.id}"
        assert message.platform_id == str(number)
        assert (message.author.name, message.author.handle, message.author.is_moderator) == (
            "Ann Lee",
            "@ann_lee",
            True,
        )
        assert message.is_direct
        assert not message.mentions_bot
        assert message.sent_at.timestamp() == telegram.now


async def test_a_named_account_has_conversations_of_its_own() -> None:
    async with talking(key="telegram:ops") as (telegram, _, intake):
        ann, group = telegram.user("Ann"), telegram.group("Team")
        telegram.post(group, ann, "Hello")
        message = (await intake.received(1))[0]
        assert message.conversation_id == f"telegram:ops:{group.id}"
        assert (message.platform, message.adapter) == ("telegram", "telegram:ops")
        assert message.server_id == str(group.id)  # as bindings write it


@pytest.mark.spec("D-d")
async def test_a_topic_of_a_forum_is_a_room_and_is_answered_in_it() -> None:
    async with talking() as (telegram, adapter, intake):
        ann, forum = telegram.user("Ann"), telegram.group("Makers", topics=["Wood", "Metal"])
        metal = max(forum.topics)
        telegram.post(forum, ann, "which saw?", topic=metal)
        telegram.post(forum, ann, "in no topic")
        topical, general = await intake.received(2)
        assert topical.conversation_id == f"telegram:{forum.id}:{metal}"
        assert set(topical.room_ids) == {str(forum.id), str(metal)}
        assert (topical.server_name, topical.channel_name) == ("Makers", "Metal")
        assert topical.reply_to is None  # every message of a topic hangs on its opening
        assert general.conversation_id == f"telegram:{forum.id}"
        to = Target(conversation_id=topical.conversation_id, data=topical.metadata, message_id=topical.platform_id)
        await send(adapter, to, answer("A hacksaw."))
        await adapter.show_typing(to)
        assert telegram.sent[0].thread_id == metal
        assert telegram.actions == [(forum.id, "typing", metal)]


@pytest.mark.spec("D-4")
async def test_who_is_meant() -> None:
    async with talking() as (telegram, adapter, intake):
        ann, group = telegram.user("Ann"), telegram.group("Team")
        other = telegram.user("Other", username="spacebot_bot_two", is_bot=True)
        own = int((await send(adapter, target(group), answer("I am here.")))[0])
        others = telegram.post(group, other, "me too")
        by_id = {"type": "text_mention", "offset": 0, "length": 5, "user": telegram.me.json()}
        said: list[tuple[dict[str, Any], bool]] = [
            ({"text": "hello @Spacebot_Bot!"}, True),
            ({"text": "hello @spacebot_bot_two"}, False),
            ({"text": "mail spacebot_bot@example.org"}, False),
            ({"text": "🙂🙂 and @spacebot_bot"}, True),
            ({"text": "Robot, listen", "entities": [by_id]}, True),
            ({"text": "right", "reply_to": own}, True),
            ({"text": "wrong", "reply_to": others}, False),
            ({"text": "/status@spacebot_bot"}, True),
            ({"text": "/status@other_bot now"}, False),
            ({"text": "/status now"}, False),
        ]
        for fields, _ in said:
            telegram.post(group, ann, **fields)
        received = await intake.received(len(said))
        assert [message.mentions_bot for message in received] == [is_meant for _, is_meant in said]
        assert received[5].reply_to is not None
        assert (received[5].reply_to.author, received[5].reply_to.text) == ("Spacebot", "I am here.")


async def test_commands_and_who_may_give_them() -> None:
    async with talking(commands=[("mention-only", "Answer when named")]) as (telegram, _, intake):
        ann, bob, group = telegram.user("Ann"), telegram.user("Bob"), telegram.group("Team")
        group.administrators.add(ann.id)
        for author, text in [
            (ann, "/Mention_Only@spacebot_bot  for now "),
            (bob, "/quiet"),
            (bob, "/quiet again"),
            (bob, "/quiet@other_bot"),
            (bob, "not /quiet"),
        ]:
            telegram.post(group, author, text)
        telegram.post(telegram.private(bob), bob, "/help")
        received = await intake.received(6)
        first, second, third, foreign, words = (message for message in received if not message.is_direct)
        assert first.command is not None
        assert (first.command.name, first.command.args) == ("mention-only", "for now")
        assert first.author.is_moderator is True
        assert second.command is not None
        assert second.author.is_moderator is False
        assert third.command is not None
        assert third.command.args == "again"
        assert foreign.command is None
        assert foreign.text == "/quiet@other_bot"
        assert words.command is None
        assert telegram.calls.count("getChatMember") == 2  # once for each, not for each command


async def test_anonymous_administrators_speak_as_the_group() -> None:
    async with talking() as (telegram, _, intake):
        group = telegram.group("Team")
        stand_in = telegram.user("Group", username="GroupAnonymousBot", is_bot=True)
        telegram.post(group, stand_in, "/quiet", sender_chat=group.json())
        author = (await intake.received(1))[0].author
        assert (author.name, author.is_bot, author.is_moderator) == ("Team", False, True)


async def test_whom_it_does_not_hear() -> None:
    async with talking() as (telegram, _, intake):
        ann, group = telegram.user("Ann"), telegram.group("Team")
        telegram.post(group, telegram.user("Robot", is_bot=True), "beep")
        telegram.post(group, telegram.me, "my own words")
        telegram.post(telegram.group("News", kind="channel"), ann, "a post")
        telegram.post(group, ann, new_chat_members=[ann.json()])
        telegram.update("my_chat_member", {"chat": group.json(), "new_chat_member": {"status": "member"}})
        telegram.post(group, ann, "heard")
        await intake.received(1)
        assert [message.text for message in intake.messages] == ["heard"]


async def test_other_bots_are_heard_when_the_owner_wants_it() -> None:
    async with talking(allow_bot_messages=True) as (telegram, _, intake):
        group = telegram.group("Team")
        telegram.post(group, telegram.me, "my own words")
        telegram.post(group, telegram.user("Robot", is_bot=True), "beep")
        message = (await intake.received(1))[0]
        assert (message.text, message.author.is_bot) == ("beep", True)


async def test_a_changed_message() -> None:
    async with talking() as (telegram, _, intake):
        ann, group = telegram.user("Ann"), telegram.group("Team")
        number = telegram.post(group, ann, "at nine")
        telegram.edit(group, number, "at ten")
        await intake.until(lambda: len(intake.edits) == 1)
        edit = intake.edits[0]
        assert (edit.conversation_id, edit.platform_id, edit.text) == (f"telegram:{group.id}", str(number), "at ten")


async def test_buttons_are_answered_at_once_and_tell_what_was_pressed() -> None:
    rows = (
        Row(
            buttons=(
                Button(label="Yes", custom_id="yes"),
                Button(label="Site", style=ButtonStyle.LINK, url="https://x.example"),
                Button(label="Nowhere", style=ButtonStyle.LINK),
            )
        ),
        Row(
            buttons=(
                Button(label="Long", custom_id="answer-" + "ü" * 80),
                Button(label="Nameless"),
                Button(label="=", custom_id="=3:abc"),
            )
        ),
        Row(select=Select(custom_id="colour", options=(SelectOption(label="Red", value="r", emoji="🔴"),))),
    )
    async with talking() as (telegram, adapter, intake):
        ann, group = telegram.user("Ann"), telegram.group("Team")
        number = int((await send(adapter, target(group), answer("Well?", rich=Rich(rows=rows))))[0])
        presses = [telegram.press(group, ann, number, label) for label in ("Yes", "Long", "Nameless", "=", "🔴 Red")]
        pressed = [message.interaction for message in await intake.received(5)]
        assert [(press.action_id, press.values, press.label) for press in pressed if press is not None] == [
            ("yes", (), "Yes"),
            ("answer-" + "ü" * 80, (), "Long"),
            ("btn-1", (), "Nameless"),
            ("=3:abc", (), "="),
            ("colour", ("r",), "🔴 Red"),
        ]
        await telegram.until(lambda: sorted(telegram.answered) == sorted(presses))
        message = intake.messages[0]
        assert len({other.platform_id for other in intake.messages}) == 5
        assert message.text == "[interaction: yes → Yes]"
        to = Target(conversation_id=message.conversation_id, data=message.metadata, message_id=message.platform_id)
        await send(adapter, to, answer("Good.", wants_reply_mark=True))
        assert telegram.sent[-1].reply_to == number


async def test_after_a_restart_a_shortened_button_still_tells_its_label() -> None:
    action = "choose-" + "x" * 90
    with trio.fail_after(10):
        async with open_telegram() as telegram:
            ann, group, intake = telegram.user("Ann"), telegram.group("Team"), RecordingIntake()
            first = adapter_of(telegram)
            async with connected(first, intake):
                rows = (Row(buttons=(Button(label="Go", custom_id=action),)),)
                number = int((await send(first, target(group), answer("Go?", rich=Rich(rows=rows))))[0])
            async with connected(adapter_of(telegram), intake):
                telegram.press(group, ann, number, "Go")
                pressed = (await intake.received(1))[0].interaction
    assert pressed is not None
    assert pressed.label == "Go"
    assert action.startswith(pressed.action_id)
    assert len(pressed.action_id) > 20


# Files


@pytest.mark.parametrize(
    ("kind", "fields", "filename", "media_type"),
    [
        ("photo", {}, "photo_u1.jpg", "image/jpeg"),
        ("document", {"file_name": "plan.pdf", "mime_type": "application/pdf"}, "plan.pdf", "application/pdf"),
        ("voice", {"duration": 3}, "voice.ogg", "audio/ogg"),
        ("video", {"mime_type": "video/mp4"}, "video.mp4", "video/mp4"),
        ("audio", {}, "audio", "audio/mpeg"),
    ],
)
@pytest.mark.spec("D-19", "D-l")
async def test_files_arrive_by_reference(kind: str, fields: dict[str, str], filename: str, media_type: str) -> None:
    async with talking() as (telegram, adapter, intake):
        ann = telegram.user("Ann")
        telegram.attach(telegram.private(ann), ann, kind, b"the bytes", "look", **fields)
        message = (await intake.received(1))[0]
        assert message.text == "look"
        (attachment,) = message.attachments
        assert (attachment.filename, attachment.media_type, attachment.size_bytes) == (filename, media_type, 9)
        assert TOKEN not in repr(message)
        location = await adapter.locate(attachment)
        assert location.may_be_private
        assert location.url == f"{telegram.url}/file/bot{TOKEN}/{kind}s/file%201"


async def test_a_file_that_bots_do_not_get_is_a_permanent_error_that_says_so() -> None:
    async with talking() as (telegram, adapter, intake):
        ann = telegram.user("Ann")
        telegram.attach(telegram.private(ann), ann, "document", b"x", size=30 * 1024 * 1024, file_name="film.mkv")
        attachment = (await intake.received(1))[0].attachments[0]
        with pytest.raises(DeliveryError, match=r"film\.mkv.*20 MB") as caught:
            await adapter.locate(attachment)
        assert caught.value.is_permanent
        with pytest.raises(DeliveryError):
            await adapter.locate(Attachment(filename="x", media_type="image/png", url="gone"))


@pytest.mark.spec("D-l")
async def test_the_token_is_in_no_record_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="spacebot")
    async with talking() as (telegram, adapter, intake):
        ann = telegram.user("Ann")
        telegram.attach(telegram.private(ann), ann, "document", b"x")
        telegram.fail(2, method="getUpdates")
        telegram.hang_up(1, method="sendMessage")
        await adapter.locate((await intake.received(1))[0].attachments[0])
        error = await refusal_of(adapter, target(telegram.private(ann)), answer("Hello"))
    assert TOKEN not in str(error)
    assert TOKEN not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith(("httpx", "telegram"))]


# The poll


async def test_an_update_that_was_not_stored_is_not_confirmed() -> None:
    with trio.fail_after(10):
        async with open_telegram() as telegram:
            ann, intake = telegram.user("Ann"), RecordingIntake()
            chat = telegram.private(ann)
            for text in ("one", "two", "three"):
                telegram.post(chat, ann, text)
            intake.failures = 10**9
            async with connected(adapter_of(telegram), intake):
                await intake.until(lambda: intake.failures < 10**9 - 3)
                telegram.post(telegram.group("Team"), ann, "elsewhere")
                await intake.until(lambda: intake.failures < 10**9 - 5)
            assert len(telegram.pending) == 4  # all of them are still there
            intake.failures = 2
            async with connected(adapter_of(telegram), intake):
                await intake.received(4)
                await telegram.until(lambda: not telegram.pending)
            assert [message.text for message in intake.messages if message.is_direct] == ["one", "two", "three"]


async def test_lost_polls_lose_nothing_and_double_nothing() -> None:
    async with talking(poll_s=1) as (telegram, _, intake):
        ann, group = telegram.user("Ann"), telegram.group("Team")
        for n in range(40):
            match n % 8:
                case 1:
                    telegram.hang_up(1, method="getUpdates", is_after=True)  # the updates were sent, and got lost
                case 3:
                    telegram.fail(2, method="getUpdates")
                case 5:
                    telegram.fail(1, method="getUpdates", code=500, text="Internal Server Error")
                case 7:
                    telegram.slow_down(1, retry_after=0.01, method="getUpdates")
            telegram.post(group, ann, str(n))
            await intake.received(n + 1)
        assert [message.text for message in intake.messages] == [str(n) for n in range(40)]


async def test_chats_do_not_wait_for_each_other_and_each_keeps_its_order() -> None:
    class SlowForOne(RecordingIntake):
        async def take(self, message: InboundMessage) -> Any:
            if message.channel_name == "slow":
                await others_taken.wait()
            return await super().take(message)

    others_taken, intake = trio.Event(), SlowForOne()
    with trio.fail_after(10):
        async with open_telegram() as telegram:
            ann, slow = telegram.user("Ann"), telegram.group("slow")
            rooms = [telegram.group(f"room {n}") for n in range(5)]
            for n in range(3):
                telegram.post(slow, ann, str(n))
                for room in rooms:
                    telegram.post(room, ann, str(n))
            async with connected(adapter_of(telegram), intake):
                await intake.received(sum(hash(room.id) % 16 != hash(slow.id) % 16 for room in rooms) * 3)
                others_taken.set()
                await intake.received(18)
            for room in (slow, *rooms):
                assert [m.text for m in intake.messages if m.server_id == str(room.id)] == ["0", "1", "2"]


async def test_updates_that_make_no_sense_are_skipped_with_one_warning_of_a_kind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with talking() as (telegram, _, intake):
        ann, group = telegram.user("Ann"), telegram.group("Team")
        for _ in range(3):
            telegram.update("message", {"message_id": "one", "chat": group.json(), "secret": "private words"})
        telegram.update("message", 5)
        telegram.update("callback_query", {"id": "77", "from": ann.json()})
        telegram.pending.append({"update_id": 599, "something_new": {}})
        telegram.post(group, ann, "good")
        await intake.received(1)
        await telegram.until(lambda: telegram.answered == ["77"])  # its button must not wait for ever
    warnings = [record for record in caplog.records if record.getMessage() == "update not understood"]
    assert len(warnings) == 2
    assert "private words" not in repr([record.__dict__ for record in warnings])


async def test_another_program_with_the_same_token_ends_the_connection() -> None:
    intake = RecordingIntake()
    with trio.fail_after(10):
        async with open_telegram() as telegram:
            outcome: list[DeliveryError] = []
            is_over = trio.Event()

            async def first() -> None:
                with pytest.raises(DeliveryError) as caught:
                    await adapter_of(telegram).run(intake)
                outcome.append(caught.value)
                is_over.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(first)
                await telegram.until(lambda: telegram.polls)
                await nursery.start(adapter_of(telegram).run, intake)
                await is_over.wait()
                nursery.cancel_scope.cancel()
    assert not outcome[0].is_permanent
    assert "another program polls with the same token" in str(outcome[0])


@pytest.mark.parametrize(
    ("happens", "is_permanent", "words"),
    [("revoked", True, "@BotFather"), ("webhook", False, "webhook"), ("gone", False, "reached")],
)
async def test_what_ends_a_connection(happens: str, is_permanent: bool, words: str) -> None:
    intake = RecordingIntake()
    with trio.fail_after(10):
        async with open_telegram() as telegram:
            ann = telegram.user("Ann")

            async def spoil() -> None:
                await telegram.until(lambda: telegram.polls)
                telegram.is_revoked = happens == "revoked"
                telegram.webhook = "https://elsewhere.example" if happens == "webhook" else ""
                telegram.fail(1000 if happens == "gone" else 0, method="getUpdates")
                telegram.post(telegram.private(ann), ann, "wakes the poll")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(spoil)
                with pytest.raises(DeliveryError, match=words) as caught:
                    await adapter_of(telegram, patience_s=0.2).run(intake)
    assert caught.value.is_permanent is is_permanent
    assert [message.text for message in intake.messages] == ["wakes the poll"]


@pytest.mark.spec("D-18")
async def test_a_poll_without_news_is_no_failure(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with open_telegram() as telegram:
        async with connected(adapter_of(telegram), RecordingIntake()):
            await telegram.until(lambda: telegram.polls >= 4)
    assert trio.current_time() >= 75  # three times the full wait, which is longer than any other answer may take
    assert not caplog.records


async def test_a_poll_ends_at_once_when_it_is_cancelled() -> None:
    async with open_telegram() as telegram:
        with trio.fail_after(5):
            async with connected(adapter_of(telegram), RecordingIntake()):
                await telegram.until(lambda: telegram.is_polled)
            while telegram.is_polled:  # the hang-up is on its way
                await trio.lowlevel.checkpoint()
        assert telegram.polls == 1


async def test_those_who_were_refused_are_told_when_they_may_write() -> None:
    async with talking() as (telegram, _, intake):
        ann, bob, group = telegram.user("Ann"), telegram.user("Bob"), telegram.group("Team")
        intake.admits = lambda message: False
        for person in (ann, bob):
            telegram.post(telegram.private(person), person, "may I?")
        telegram.post(group, ann, "and here?")
        await intake.until(lambda: len(intake.refused) == 3)
        intake.admits = lambda message: message.author.id == str(ann.id)
        telegram.post(group, bob, "ends the poll")
        await telegram.until(lambda: telegram.sent)
        telegram.post(telegram.private(ann), ann, "thanks")
        await intake.received(1)
        assert [(sent.chat_id, sent.text) for sent in telegram.sent] == [(ann.id, WELCOME)]


async def test_fifty_who_were_refused_are_remembered() -> None:
    async with talking() as (telegram, _, intake):
        ann, group = telegram.user("Ann"), telegram.group("Team")
        people = [telegram.user(f"Person {n}") for n in range(53)]
        intake.admits = lambda message: not message.is_direct
        for person in people:
            telegram.post(telegram.private(person), person, "may I?")
        await intake.until(lambda: len(intake.refused) == 53)
        intake.admits = lambda message: True
        telegram.post(group, ann, "ends the poll")
        await telegram.until(lambda: len(telegram.sent) >= 50)
        for count in (2, 3):  # the second of them is polled for after everybody was told
            telegram.post(group, ann, "ends another poll")
            await intake.received(count)
        told = {sent.chat_id for sent in telegram.sent}
        assert len(telegram.sent) == len(told) == 50
        assert told < {person.id for person in people}
