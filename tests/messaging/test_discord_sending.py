"""The Discord adapter with the real library against a Discord of our own: what goes out, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

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
from tests.messaging.discord_world import open_world, target_of

# What goes out.


@pytest.mark.spec("messaging 19: k", "messaging 19: o", "messaging 19: 14", "D-k", "D-o")
async def test_long_texts_mentions_and_replies() -> None:
    async with open_world() as world:
        message = await world.said()
        text = "@Ann @everyone <@&5>\n\n" + "\n\n".join(f"Paragraph {n} " + "word " * 60 for n in range(12))
        noted = await world.send(message, text, wants_reply_mark=True, mentions={"Ann": f"<@{world.ann}>"})
        sent = world.standin.sent
        assert len(sent) == 2
        assert all(len(one.text) <= 2000 for one in sent)
        assert [one.reply_to for one in sent] == [message.platform_id, None]
        assert sent[0].text.startswith(f"<@{world.ann}> @everyone")
        assert all(one.body["allowed_mentions"]["parse"] == ["users"] for one in sent)
        assert noted == [one.id for one in sent]
        assert await world.send(message, text, sent=tuple(noted[:1]), id="m2") == [sent[2].id]
        assert sent[2].text == sent[1].text
        assert message.platform_id is not None
        world.standin.delete(world.room, message.platform_id)
        await world.send(message, "too late?", wants_reply_mark=True, id="m3")
        assert (sent[3].text, sent[3].reply_to) == ("too late?", None)


@pytest.mark.spec("messaging 19: 24")
async def test_cards_controls_and_polls_fit() -> None:
    cards = tuple(
        Card(
            title="t" * 300,
            description="d" * 5000,
            color=0xFF8800 if number else 1 << 30,
            url="javascript:x",
            fields=tuple(CardField(name="n" * 300, value="v" * 2000) for _ in range(30)),
            footer="f" * 3000,
            author_name="a" * 300,
            image_url="https://example.org/i.png",
        )
        for number in range(12)
    )
    rows = tuple(Row(buttons=tuple(Button(label="l" * 100, custom_id="same" * 30) for _ in range(7))) for _ in range(4))
    poll = Poll(question="q" * 400, answers=tuple(f"{n}" * 60 for n in range(1, 10)) * 2, duration_hours=10_000)
    async with open_world() as world:
        message = await world.said()
        await world.send(message, "look " * 500, rich=Rich(cards=cards, rows=rows, poll=poll))
        first, last, vote = world.standin.sent
        assert "embeds" not in first.body
        assert last.body["embeds"][0]["title"] == "t" * 255 + "…"
        assert len(last.body["components"]) == 5
        assert vote.body["poll"]["duration"] == 720
        await world.send(message, "no poll", rich=Rich(poll=Poll(question=" ", answers=("a", "b"))), id="m2")
        await world.send(message, "nor this", rich=Rich(poll=Poll(question="?", answers=("a", " "))), id="m3")
        assert [(one.text, one.body.get("poll")) for one in world.standin.sent[3:]] == [
            ("no poll", None),
            ("nor this", None),
        ]


async def test_what_discord_does_not_take_is_said_in_words() -> None:
    async with open_world() as world:
        message = await world.said()
        world.standin.refuse_next(1, status=400)
        await world.send(message, "", rich=Rich(cards=(Card(title="News", description="all well"),)))
        world.standin.revoke(world.room, "poll")
        await world.send(message, "", rich=Rich(poll=Poll(question="Tea?", answers=("yes", "no"))), id="m2")
        draft = await world.adapter.draft(target_of(message), "Pi", None)
        world.standin.refuse_next(1, status=400)
        buttons = Rich(rows=(Row(buttons=(Button(label="Go"), Button(label="Stop"))),))
        await world.send(message, "Pick", rich=buttons, draft_id=draft, id="m4")
        world.standin.refuse_next(1, status=400)
        await world.send(message, "", rich=buttons, id="m5")
        assert [one.text for one in world.standin.sent] == [
            "**News**\nall well",
            "Tea?\n1. yes\n2. no",
            "Pick",
            "• Go\n• Stop",
        ]
        with pytest.raises(DeliveryError, match="nothing is left") as caught:
            await world.send(message, "", rich=Rich(poll=Poll(question="", answers=())), id="m3")
        assert caught.value.is_permanent


async def test_threads_begin_under_the_message_or_not_at_all() -> None:
    async with open_world() as world:
        standin, message = world.standin, await world.said()
        rich = Rich(thread_name="  A new\nplan ")
        [first] = await world.send(message, "in the thread", rich=rich, wants_reply_mark=True)
        thread = standin.sent[0].room
        assert thread == message.platform_id
        assert standin.channels[thread].name == "A new plan"
        # A retry finds the thread that is there, and goes on behind what was sent.
        await world.send(message, "in the thread", rich=rich, is_doubtful=True)
        assert [one.room for one in standin.sent] == [thread]
        await world.send(message, "x" * 1500 + "\n\n" + "y" * 1500, rich=rich, sent=(first,), id="m2")
        assert [one.room for one in standin.sent] == [thread, thread]
        standin.revoke(world.room, "thread")
        other = await world.said("other")
        await world.send(other, "plainly", rich=rich, id="m3")
        standin.post(thread, world.ann, "deeper")
        inner = (await world.intake.received(3))[-1]
        await world.send(inner, "no thread in a thread", rich=rich, id="m4")
        assert [one.room for one in standin.sent[2:]] == [world.room, thread]


async def test_files_and_reactions(tmp_path: Path) -> None:
    path = tmp_path / "stored"
    path.write_bytes(b"some bytes")
    file = OutboundFile(filename="report.txt", media_type="text/plain", path=path, size_bytes=10)
    async with open_world() as world:
        message = await world.said()
        await world.send(message, "the report", kind=OutboundKind.FILE, file=file)
        await world.send(message, "", kind=OutboundKind.FILE, file=file, id="m2")
        first, second = world.standin.sent
        assert (first.text, first.files) == ("the report", [("report.txt", b"some bytes")])
        assert (second.text, second.files) == ("", [("report.txt", b"some bytes")])
        with pytest.raises(DeliveryError, match="10 MiB") as caught:
            await world.send(message, "", kind=OutboundKind.FILE, file=replace(file, size_bytes=30 << 20), id="m3")
        assert caught.value.is_permanent
        with pytest.raises(DeliveryError, match="not there any more"):
            await world.send(message, "", kind=OutboundKind.FILE, file=replace(file, path=tmp_path / "gone"), id="m4")
        assert await world.send(message, "👍", kind=OutboundKind.REACTION, id="m5") == [message.platform_id]
        await world.send(message, "<:party:1234>", kind=OutboundKind.REACTION, id="m6")
        assert [emoji for _, emoji in world.standin.reactions] == ["👍", "party:1234"]
        with pytest.raises(DeliveryError, match="emoji"):
            await world.send(message, "thumbs up", kind=OutboundKind.REACTION, id="m7")


@pytest.mark.spec("messaging 19: 22", "D-g")
async def test_a_growing_answer_ends_complete() -> None:
    async with open_world() as world:
        target = target_of(await world.said())
        await world.adapter.show_typing(target)
        await world.adapter.show_typing(target)
        await world.adapter.stop_typing(target)
        assert world.standin.typed == [world.room, world.room]
        draft = await world.adapter.draft(target, "The answer", None)
        long = "The answer is long. " * 150
        assert await world.adapter.draft(target, long, draft) == draft
        assert len(world.standin.sent[0].text) <= 2000
        assert world.standin.sent[0].text.endswith("…")
        noted = await world.send(target, long, draft_id=draft, rich=Rich(cards=(Card(title="end"),)))
        first, second = world.standin.sent
        assert noted == [draft, second.id]
        assert "".join((first.text + " " + second.text).split()) == "".join(long.split())
        assert second.body["embeds"]
        lost = await world.adapter.draft(target, "again", None)
        world.standin.delete(world.room, lost)
        await world.send(target, "again and whole", draft_id=lost, id="m2")
        assert world.standin.sent[-1].text == "again and whole"
        useless = await world.adapter.draft(target, "never mind", None)
        await world.adapter.drop_draft(target, useless)
        await world.adapter.drop_draft(target, useless)
        assert world.standin.sent[-1].is_deleted
        await world.said("last")
        assert [one.platform_ids for one in world.intake.deletions] == [(lost,)]  # what it took back itself is no news


async def test_a_growing_answer_to_a_command_takes_the_place_where_it_waits() -> None:
    async with open_world() as world:
        given = world.standin.command(world.room, world.ann, "status")
        [message] = await world.intake.received(1)
        draft = await world.adapter.draft(target_of(message), "All", None)
        await world.send(message, "All is well", draft_id=draft)
        [sent] = world.standin.sent
        assert (sent.text, sent.edits, sent.interaction) == ("All is well", ["All"], given)


async def test_nothing_is_said_twice_after_a_doubtful_attempt() -> None:
    async with open_world() as world:
        message = await world.said()
        text = "a" * 1500 + "\n\n" + "b" * 1500
        await world.send(message, text)
        first, second = (one.id for one in world.standin.sent)
        # Marks are known for some minutes; later, the channel is searched.
        assert await world.send(message, text) == [first, second]
        world.standin.forget_nonces()
        assert await world.send(message, text, is_doubtful=True) == [first, second]
        assert await world.send(message, text, is_doubtful=True, sent=(first,)) == [second]
        assert len(world.standin.sent) == 2
        assert await world.send(message, "another", is_doubtful=True, id="m2") == [world.standin.sent[2].id]


async def test_a_message_is_sent_once_though_the_library_cannot_read_the_answer() -> None:
    async with open_world() as world:
        message = await world.said()
        world.standin.is_garbled = True
        assert await world.send(message, "odd") == [world.standin.sent[0].id]
        assert await world.send(message, "odd") == [world.standin.sent[0].id]
        assert len(world.standin.sent) == 1


async def test_history_is_what_was_said_before() -> None:
    async with open_world() as world:
        standin, room = world.standin, world.room
        for number in range(130):
            standin.post(room, world.ann, f"line {number} <@{world.ann}>")
        standin.post(room, world.ann, "", attachments=[standin.attach(room, "a.txt", b"abc")])
        await world.intake.received(131)
        [mine] = await world.send(Target(conversation_id=ConversationId(f"discord:{world.guild}:{room}")), "mine")
        message = await world.said("now")
        lines = await world.adapter.history(target_of(message), 120)
        assert len(lines) == 120
        assert [line.text for line in lines[-3:]] == ["line 129 @Ann", "[attachment: a.txt]", "mine"]
        assert [line.is_self for line in lines[-2:]] == [False, True]
        assert lines[-1].author == "spacebot"
        assert lines[0].sent_at <= lines[-1].sent_at
        whole = await world.adapter.history(target_of(message), 1000)
        assert [line.text for line in whole][:2] == ["line 0 @Ann", "line 1 @Ann"]
        assert len(whole) == 132
        assert mine


async def test_places_are_found_by_their_addresses() -> None:
    async with open_world() as world:
        adapter, standin = world.adapter, world.standin
        thread = standin.add_thread(world.room, "plans")
        plain = await adapter.resolve(world.room)
        assert (plain.conversation_id, plain.name) == (f"discord:{world.guild}:{world.room}", "general")
        assert await adapter.resolve(f"discord:{world.guild}:{world.room}") == plain
        assert (await adapter.resolve(thread)).data["parent_id"] == world.room
        chat = await adapter.resolve(f"dm:{world.ann}")
        assert (chat.is_direct, chat.name) == (True, "Ann")
        assert await adapter.resolve(standin.direct(world.ann)) == chat
        await world.send(Target(conversation_id=chat.conversation_id, data=chat.data), "hello")
        await world.send(Target(conversation_id=chat.conversation_id), "without data", id="m2")
        assert [one.room for one in standin.sent] == [standin.direct(world.ann)] * 2
        for address in ("general", "dm:ann", "", "1:2:3", standin.new_id(), f"dm:{standin.new_id()}"):
            with pytest.raises(DeliveryError) as caught:
                await adapter.resolve(address)
            assert caught.value.is_permanent


# What goes wrong.


async def test_refusals_say_what_to_do() -> None:
    async with open_world() as world:
        standin, message = world.standin, await world.said()
        standin.revoke(world.room, "send", "history", "react")
        for call, words in (
            (lambda: world.send(message, "hi"), "Send Messages"),
            (lambda: world.adapter.history(target_of(message), 5), "Read Message History"),
            (lambda: world.send(message, "👍", kind=OutboundKind.REACTION, id="m2"), "Add Reactions"),
            (lambda: world.adapter.show_typing(target_of(message)), "Send Messages"),
        ):
            with pytest.raises(DeliveryError, match=words) as caught:
                await call()
            assert caught.value.is_permanent
        standin.revoke(world.room, "view")
        with pytest.raises(DeliveryError, match="View Channel"):
            await world.send(message, "hi")
        standin.remove_channel(world.room)
        with pytest.raises(DeliveryError, match="does not exist any more") as caught:
            await world.send(message, "hi")
        assert caught.value.is_permanent
        standin.refuse_next(1, status=502)
        with pytest.raises(DeliveryError) as caught:
            await world.adapter.check()
        assert not caught.value.is_permanent
        standin.token = "changed"
        with pytest.raises(DeliveryError, match="Reset Token") as caught:
            await world.adapter.check()
        assert caught.value.is_permanent


async def test_short_pauses_are_waited_out_and_long_ones_reported() -> None:
    async with open_world() as world:
        message = await world.said()
        world.standin.refuse_next(2, retry_after_s=0.05)
        await world.send(message, "patience")
        assert [call.status for call in world.standin.calls if call.method == "POST"] == [429, 429, 200]
        assert [one.text for one in world.standin.sent] == ["patience"]
        world.standin.refuse_next(1, retry_after_s=3600)
        with pytest.raises(DeliveryError) as caught:
            await world.send(message, "much patience", id="m2")
        assert not caught.value.is_permanent
        assert caught.value.retry_after_s == pytest.approx(3600)
