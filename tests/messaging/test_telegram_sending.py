"""Telegram, from the agent to people: the adapter, with the real library, against a strict stand-in."""

from itertools import pairwise
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from spacebot.base.errors import DeliveryError
from spacebot.base.ids import ConversationId
from spacebot.messaging.messages import (
    Button,
    Card,
    CardField,
    OutboundFile,
    OutboundKind,
    Poll,
    Rich,
    Row,
    Target,
)
from spacebot.messaging.text import split_telegram
from tests.fakes.telegram_talk import answer, refusal_of, send, talking, target
from tests.stand_ins.telegram import ApiError, Chat
from tests.stand_ins.telegram_forms import parse_html, utf16_length

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


@pytest.mark.parametrize(
    ("filename", "media_type", "data", "method"),
    [
        ("a.png", "image/png", PNG, "sendPhoto"),
        ("broken.png", "image/png", b"no picture", "sendDocument"),
        ("a.mp4", "video/mp4", b"film", "sendVideo"),
        ("a.ogg", "audio/ogg; codecs=opus", b"voice", "sendVoice"),
        ("a.mp3", "audio/mpeg", b"music", "sendAudio"),
        ("a.pdf", "application/pdf", b"paper", "sendDocument"),
        ("large.png", "image/png", PNG + bytes(11 * 1024 * 1024), "sendDocument"),
    ],
)
async def test_files_go_out_as_what_they_are(
    tmp_path: Path, filename: str, media_type: str, data: bytes, method: str
) -> None:
    path = tmp_path / "spooled"
    path.write_bytes(data)
    file = OutboundFile(filename=filename, media_type=media_type, path=path, size_bytes=len(data))
    async with talking() as (telegram, adapter, _):
        group = telegram.group("Team")
        telegram.refuse_entities = 0
        noted = await send(adapter, target(group), answer("**See** <this>", kind=OutboundKind.FILE, file=file))
        (sent,) = telegram.sent
        assert noted == [str(sent.message_id)]
        assert (sent.method, sent.text) == (method, "See <this>")
        assert sent.upload is not None
        assert (sent.upload.filename, sent.upload.data) == (filename, data)


@pytest.mark.spec("D-20", "D-g")
async def test_captions(tmp_path: Path) -> None:
    path = tmp_path / "spooled"
    path.write_bytes(b"paper")
    file = OutboundFile(filename="a.pdf", media_type="application/pdf", path=path, size_bytes=5)
    async with talking() as (telegram, adapter, _):
        group = telegram.group("Team")
        await send(adapter, target(group), answer("**" + "😀" * 512 + "**", kind=OutboundKind.FILE, file=file))
        assert utf16_length(telegram.sent[0].text) == 1024
        telegram.sent.clear()
        noted = await send(adapter, target(group), answer("word " * 300, kind=OutboundKind.FILE, file=file))
        assert [(sent.method, sent.text) for sent in telegram.sent] == [
            ("sendDocument", ""),
            ("sendMessage", ("word " * 300).strip()),
        ]
        assert len(noted) == 2
        telegram.sent.clear()
        telegram.refuse_entities = 1  # the file is not lost, and not sent twice
        await send(adapter, target(group), answer("**bold**", kind=OutboundKind.FILE, file=file))
        assert [(sent.method, sent.text, sent.parse_mode) for sent in telegram.sent] == [("sendDocument", "bold", None)]
        group.refusal = ApiError(400, "Bad Request: not enough rights to send documents to the chat")
        telegram.calls.clear()
        assert (await refusal_of(adapter, target(group), answer("x", kind=OutboundKind.FILE, file=file))).is_permanent
        assert telegram.calls.count("sendDocument") == 1  # a real failure is not doubled


async def test_files_that_cannot_go_out(tmp_path: Path) -> None:
    async with talking() as (telegram, adapter, _):
        group = telegram.group("Team")
        for size, words in [(5, "cannot be read"), (60 * 1024 * 1024, "at most")]:
            file = OutboundFile(filename="a.pdf", media_type="application/pdf", path=tmp_path / "no", size_bytes=size)
            error = await refusal_of(adapter, target(group), answer("x", kind=OutboundKind.FILE, file=file))
            assert error.is_permanent
            assert words in str(error)
        assert telegram.sent == []


# Out


async def test_long_texts_become_several_messages_and_a_retry_goes_on_behind_those_that_arrived() -> None:
    text = (
        "\n\n".join(f"Paragraph {n}: " + "wörter 😀 & <tags> " * 20 for n in range(30))
        + "\n\n```py\n"
        + "x = 1\n" * 1200
        + "```"
    )
    async with talking() as (telegram, adapter, _):
        group = telegram.group("Team")
        noted = await send(adapter, target(group), answer(text))
        parts = telegram.texts(group)
        assert len(noted) == len(parts) >= 4
        assert all(utf16_length(part) <= 4096 for part in parts)
        assert "".join(parts).count("x = 1") == 1200
        code = [sent for sent in telegram.sent if "x = 1" in sent.text]
        assert all(any(entity["type"] == "pre" for entity in sent.entities) for sent in code)
        telegram.sent.clear()
        again = await send(adapter, target(group), answer(text, sent=tuple(noted[:2])))
        assert telegram.texts(group) == parts[2:]
        assert len(again) == len(parts) - 2


async def test_marks_links_and_mentions() -> None:
    async with talking() as (telegram, adapter, intake):
        ann, group = telegram.user("Ann", "O[x]", ""), telegram.group("Team")
        bob = telegram.user("Bob", username="bobby")
        for author in (ann, bob):
            telegram.post(group, author, "hi")
        mentions = {message.author.name: message.author.handle or "" for message in await intake.received(2)}
        text = '**Bold**, `a<b`, [here](https://x.example/?a=1&b="2"), @Ann O[x] and @Bob; not @Bobby'
        await send(adapter, target(group), answer(text, mentions=mentions))
        (sent,) = telegram.sent
        assert sent.text == "Bold, a<b, here, Ann O[x] and @bobby; not @Bobby"
        kinds = {(entity["type"], entity.get("url", "").partition("?")[0]) for entity in sent.entities}
        assert {("bold", ""), ("code", ""), ("text_link", "https://x.example/")} <= kinds
        assert f"tg://user?id={ann.id}" in [entity.get("url") for entity in sent.entities]


async def test_broken_marks_are_sent_as_plain_words() -> None:
    async with talking() as (telegram, adapter, _):
        group = telegram.group("Team")
        telegram.refuse_entities = 1
        await send(adapter, target(group), answer("**Important** words"))
        assert [(sent.text, sent.parse_mode) for sent in telegram.sent] == [("Important words", None)]


async def test_a_reply_mark_stands_on_the_first_part_only_and_survives_a_deleted_message() -> None:
    async with talking() as (telegram, adapter, _):
        ann, group = telegram.user("Ann"), telegram.group("Team")
        number = telegram.post(group, ann, "question")
        text = "a " * 3000
        await send(adapter, target(group, number), answer(text, wants_reply_mark=True))
        await send(adapter, target(group, number), answer("no mark"))
        await send(adapter, target(group, 999_999), answer("to nothing", wants_reply_mark=True))
        await send(adapter, target(group, number), answer("thread", rich=Rich(thread_name="Plans")))
        assert [sent.reply_to for sent in telegram.sent] == [number, None, None, None, number]


async def test_cards_polls_and_buttons() -> None:
    card = Card(
        title="Build 7",
        url="https://ci.example/7",
        description="All **green**",
        fields=(CardField(name="Time", value="3 min"), CardField(name="By", value="Ann")),
        footer="nightly",
        image_url="https://ci.example/7.png",
    )
    poll = Poll(question="Q" * 400, answers=("Yes", " ", "n" * 200), allow_multiselect=True, duration_hours=24 * 90)
    rich = Rich(cards=(card,), poll=poll, rows=(Row(buttons=(Button(label="Retry", custom_id="retry"),)),))
    async with talking() as (telegram, adapter, _):
        group = telegram.group("Team")
        noted = await send(adapter, target(group), answer("Done.", rich=rich))
        message, ballot = telegram.sent
        assert noted == [str(message.message_id), str(ballot.message_id)]
        assert message.text == "Done.\n\nBuild 7\n\nAll green\n\nTime: 3 min\nBy: Ann\n\nnightly"
        assert message.keyboard == [[{"text": "Retry", "callback_data": "retry"}]]
        assert message.preview == {"url": "https://ci.example/7.png"}
        assert ballot.poll is not None
        assert [option["text"] for option in ballot.poll["options"]] == ["Yes", "n" * 99 + "…"]
        assert (len(ballot.poll["question"]), ballot.poll["open_period"]) == (300, 2_628_000)
        assert ballot.poll["allows_multiple_answers"]
        assert not ballot.poll["is_anonymous"]


@pytest.mark.spec("D-24")
async def test_a_poll_that_would_be_refused_does_not_cost_the_text() -> None:
    async with talking() as (telegram, adapter, _):
        group = telegram.group("Team")
        await send(adapter, target(group), answer("Vote", rich=Rich(poll=Poll(question=" ", answers=("a", "b")))))
        await send(adapter, target(group), answer("Vote", rich=Rich(poll=Poll(question="?", answers=("a", " ")))))
        assert telegram.texts(group) == ["Vote", "Vote"]
        assert (await refusal_of(adapter, target(group), answer(" \n"))).is_permanent
        await send(adapter, target(group), answer("> "))  # marks around nothing
        assert telegram.texts(group)[-1] == ">"


async def test_reactions() -> None:
    async with talking() as (telegram, adapter, _):
        ann, group = telegram.user("Ann"), telegram.group("Team")
        number = telegram.post(group, ann, "done")
        await send(adapter, target(group, number), answer("❤️", kind=OutboundKind.REACTION))
        assert telegram.reactions == [(group.id, number, ["❤"])]
        error = await refusal_of(adapter, target(group, number), answer("🧮", kind=OutboundKind.REACTION))
        assert error.is_permanent
        assert "🧮" in str(error)
        assert (await refusal_of(adapter, target(group), answer("👍", kind=OutboundKind.REACTION))).is_permanent


@pytest.mark.spec("D-d")
async def test_a_draft_grows_and_becomes_the_first_part_of_the_answer() -> None:
    async with talking(edit_every_s=0.05) as (telegram, adapter, _):
        group = telegram.group("Team")
        draft = await adapter.draft(target(group), "One", None)
        started = trio.current_time()
        assert await adapter.draft(target(group), "One **two", draft) == draft
        assert await adapter.draft(target(group), "One **two", draft) == draft  # not modified, and no error
        await adapter.draft(target(group), "One **two** " + "three " * 1500, draft)
        times = [started, *(time for time, _ in telegram.sent[0].edits)]
        assert all(later - earlier >= 0.045 for earlier, later in pairwise(times))
        text = "One **two** " + "three " * 1500
        noted = await send(adapter, target(group), answer(text, draft_id=draft))
        assert noted[0] == draft
        assert len(telegram.sent) == len(noted) >= 3
        assert "".join(telegram.texts(group)).count("three") == 1500
        second = await adapter.draft(target(group), "never mind", None)
        await adapter.drop_draft(target(group), second)
        await adapter.drop_draft(target(group), second)
        assert telegram.deleted == [(group.id, int(second))]
        assert await send(adapter, target(group), answer("anew", draft_id=second)) != [second]
        assert telegram.texts(group)[-1] == "anew"


# Refusals


async def test_short_pauses_are_waited_out_and_long_ones_are_handed_on() -> None:
    async with talking() as (telegram, adapter, _):
        group = telegram.group("Team")
        telegram.slow_down(retry_after=0.05, method="sendMessage")
        await send(adapter, target(group), answer("after a pause"))
        assert telegram.calls.count("sendMessage") == 2
        assert telegram.texts(group) == ["after a pause"]
        telegram.slow_down(retry_after=30, method="sendMessage")
        error = await refusal_of(adapter, target(group), answer("later"))
        assert (error.is_permanent, error.retry_after_s) == (False, 30)


async def test_who_may_be_written_to_again_and_who_not() -> None:
    async with talking() as (telegram, adapter, _):
        ann, group = telegram.user("Ann"), telegram.group("Team")
        telegram.block(ann)
        telegram.kick(group)
        unknown = Chat(-42, "group")
        for chat in (telegram.private(ann), group, unknown):
            assert (await refusal_of(adapter, target(chat), answer("x"))).is_permanent
        assert (
            await refusal_of(adapter, Target(conversation_id=ConversationId("telegram:x")), answer("x"))
        ).is_permanent
        bob = telegram.private(telegram.user("Bob"))
        telegram.fail(1, method="sendMessage", code=502)
        assert not (await refusal_of(adapter, target(bob), answer("x"))).is_permanent
        telegram.hang_up(1, method="sendMessage", is_after=True)
        assert not (await refusal_of(adapter, target(bob), answer("x"))).is_permanent


async def test_a_group_that_moved_is_followed() -> None:
    async with talking() as (telegram, adapter, intake):
        ann, old = telegram.user("Ann"), telegram.group("Team", kind="group")
        telegram.post(old, ann, "before")
        await intake.received(1)
        old.refusal, keep = None, old
        new = telegram.migrate(old)
        await send(adapter, target(keep), answer("follows"))
        telegram.post(new, ann, "after")
        message = (await intake.received(2))[1]
        assert telegram.texts(new) == ["follows"]
        assert message.metadata["migrated_from"] == old.id
        assert [known.text for known in intake.messages] == ["before", "after"]


async def test_places_are_found_by_id_and_by_name() -> None:
    async with talking() as (telegram, adapter, _):
        ann, forum = telegram.user("Ann"), telegram.group("makers", topics=["Wood"])
        telegram.private(ann)
        found = await adapter.resolve(f" {forum.id} ")
        assert (found.conversation_id, found.name, found.is_direct) == (f"telegram:{forum.id}", "makers", False)
        assert (await adapter.resolve("@makers")).data == {"chat_id": forum.id}
        topic = await adapter.resolve(f"{forum.id}:1")
        assert topic.conversation_id == f"telegram:{forum.id}:1"
        await send(adapter, Target(conversation_id=topic.conversation_id, data=topic.data), answer("in there"))
        assert telegram.sent[0].thread_id == 1
        assert (await adapter.resolve(str(ann.id))).is_direct
        for address in ("-99", "general", "", "12 34"):
            with pytest.raises(DeliveryError) as caught:
                await adapter.resolve(address)
            assert caught.value.is_permanent


MARKDOWN = st.lists(
    st.one_of(
        st.sampled_from(
            ["**", "*", "_", "~~", "||", "`", "```", "\n", "\n\n", "> ", "- ", "# ", "[", "](", ")", "<", "&lt;"]
        ),
        st.sampled_from(
            ["&", "</b>", "<b>", "&amp", "http://x.y/?a=b&c", "a", "B c", "😀", "|", "---", "\\", "@ann", '"']
        ),
        st.text(max_size=4),
    ),
    max_size=40,
).map("".join)


@given(MARKDOWN, st.integers(64, 4096))
def test_whatever_a_model_writes_the_server_can_read_its_marks(text: str, limit: int) -> None:
    for part in split_telegram(text, limit):
        shown, _ = parse_html(part.html)
        assert utf16_length(shown.strip()) <= limit
        assert utf16_length(part.plain.strip()) <= limit
