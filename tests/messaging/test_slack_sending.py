"""Slack, what goes out: the adapter with the real library against a workspace on loopback."""

from pathlib import Path

import pytest

from spacebot.base.errors import DeliveryError
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
from tests.messaging.slack_world import open_world, target_of


async def test_a_short_answer_goes_where_it_was_asked_for_and_calls_no_room() -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", "hello")
        ids = await world.send(
            message, "**Hi** @Ann and @everyone <!channel> <!subteam^S1>", mentions={"Ann": "<@U0ANN01>"}
        )
        (sent,) = world.slack.sent
        assert ids == [sent.ts]
        assert "**Hi** <@U0ANN01> and" in sent.markdown
        assert "*Hi* <@U0ANN01> and" in sent.text
        assert "@everyone" not in sent.markdown + sent.text
        assert sent.thread_ts is None
        assert world.slack.called("chat.postMessage")[0]["unfurl_links"] is False


async def test_a_long_answer_goes_in_parts_with_whole_fences() -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", "tell me all")
        code = "```python\n" + "\n".join(f"line_{number} = {number}" for number in range(2500)) + "\n```"
        ids = await world.send(message, f"Here:\n\n{code}\n\nThat was it. " + "word " * 14_000)
        assert ids == [sent.ts for sent in world.slack.sent]
        assert 9 <= len(ids) <= 12
        assert all(len(sent.markdown) <= 12_000 for sent in world.slack.sent)
        assert all(sent.markdown.count("```") % 2 == 0 for sent in world.slack.sent)
        assert all(
            f"line_{number} = {number}\n" in "".join(s.markdown for s in world.slack.sent) for number in (0, 2499)
        )


async def test_a_late_answer_shows_whom_it_answers() -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", "hello")
        await world.send(message, "for you", wants_reply_mark=True)
        (sent,) = world.slack.sent
        assert sent.text.startswith("<@U1> ")
        assert "<@U1>" in sent.blocks[0]["elements"][0]["text"]


async def test_cards_controls_and_polls_become_blocks() -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", "show")
        card = Card(
            title="Build & test",
            description="**green**",
            color=0x00FF00,
            fields=(CardField(name="Took", value="3 s"),),
            footer="today",
            image_url="https://a.example/i.png",
            author_name="CI",
        )
        poll = Poll(question="Lunch?", answers=("Pizza", "Soup"))
        call = {"type": "rich_text_section", "elements": [{"type": "broadcast", "range": "channel"}]}
        raw = (
            {"type": "divider"},
            {"no": "type"},
            {"type": "section", "text": {"type": "mrkdwn", "text": "<!here> raw"}},
            {"type": "rich_text", "elements": [call]},
        )
        await world.send(message, "see", rich=Rich(cards=(card,), poll=poll, blocks=raw))
        (sent,) = world.slack.sent
        kinds = [block["type"] for block in sent.blocks]
        assert kinds == [
            "markdown", "context", "header", "section", "section", "image", "context", "section", "actions",
            "divider", "section", "rich_text",
        ]  # fmt: skip
        assert sent.blocks[2]["text"]["text"] == "Build & test"
        assert sent.blocks[3]["text"]["text"] == "*green*"
        assert [element["value"] for element in sent.blocks[8]["elements"]] == ["Pizza", "Soup"]
        assert "broadcast" not in str(sent.blocks)


async def test_blocks_that_slack_refuses_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", "show")
        await world.send(message, "the words", rich=Rich(blocks=({"type": "nonsense"},)))
        assert (world.slack.sent[0].markdown, len(world.slack.sent[0].blocks)) == ("the words", 1)
        assert world.slack.complaints.pop() == "no such kind of block: nonsense"
        world.slack.takes_markdown = False
        await world.send(message, "**more** words")
        await world.send(message, "**and** more")
        assert [(sent.text, sent.blocks) for sent in world.slack.sent[1:]] == [("*more* words", []), ("*and* more", [])]
        assert len(world.slack.called("chat.postMessage")) == 5  # a workspace without such blocks is asked once


async def test_a_file_goes_out_in_three_steps(tmp_path: Path) -> None:
    path = tmp_path / "report.pdf"
    path.write_bytes(b"%PDF" * 1000)
    file = OutboundFile(filename="report.pdf", media_type="application/pdf", path=path, size_bytes=4000)
    async with open_world() as world:
        root = await world.said("C1", "U1", "the report?")
        message = await world.said("C1", "U1", "please", thread=root.platform_id)
        ids = await world.send(message, "here **it** is", kind=OutboundKind.FILE, file=file)
        (sent,) = world.slack.sent
        assert (sent.text, sent.thread_ts, sent.files) == ("here *it* is", root.platform_id, tuple(ids))
        assert world.slack.files[ids[0]].data == path.read_bytes()
        await world.send(message, "here **it** is", kind=OutboundKind.FILE, file=file, is_doubtful=True)
        assert len(world.slack.sent) == 1  # it had arrived
        long = await world.send(message, "word " * 2000, kind=OutboundKind.FILE, file=file)
        assert [bool(sent.files) for sent in world.slack.sent[1:]] == [False, True]
        assert len(long) == 2
        huge = OutboundFile(filename="x", media_type="a/b", path=path, size_bytes=10**9)
        with pytest.raises(DeliveryError, match="larger"):
            await world.send(message, "", kind=OutboundKind.FILE, file=huge)


async def test_reactions_go_by_name() -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", "done!")
        for emoji in ("🎉", "👍🏽", ":eyes:", "🎉"):
            assert await world.send(message, emoji, kind=OutboundKind.REACTION) == []
        names = [name for _, ts, name in world.slack.reactions if ts == message.platform_id]
        assert names == ["tada", "+1::skin-tone-4", "eyes"]
        with pytest.raises(DeliveryError, match="common emoji") as caught:
            await world.send(message, "🪸🪸", kind=OutboundKind.REACTION)
        assert caught.value.is_permanent


async def test_a_draft_grows_and_the_answer_takes_its_place() -> None:
    async with open_world() as world:
        root = await world.said("C1", "U1", "a long one")
        message = await world.said("C1", "U1", "please", thread=root.platform_id)
        draft = await world.adapter.draft(target_of(message), "It", None)
        assert await world.adapter.draft(target_of(message), "It grows", draft) == draft
        ids = await world.send(message, "It grows\n\n" + "word " * 3000, draft_id=draft)
        first, second = world.slack.sent
        assert ids == [draft, second.ts]
        assert first.versions == ["It", "It grows"]
        assert first.metadata == {"event_type": "spacebot_message", "event_payload": {"id": "m1", "part": 0}}
        assert first.thread_ts == second.thread_ts == root.platform_id
        await world.adapter.draft(target_of(message), "x" * 20_000, draft)
        other = await world.adapter.draft(target_of(message), "never mind", None)
        await world.adapter.drop_draft(target_of(message), other)
        await world.adapter.drop_draft(target_of(message), other)
        assert world.slack.sent[2].is_deleted
        assert await world.send(message, "anew", draft_id=other) == [world.slack.sent[3].ts]


async def test_a_status_is_shown_in_threads_until_slack_says_no() -> None:
    async with open_world() as world:
        root = await world.said("C1", "U1", "hello")
        message = await world.said("C1", "U1", "there", thread=root.platform_id)
        await world.adapter.show_typing(target_of(root))  # no thread, no status
        await world.adapter.show_typing(target_of(message))
        await world.adapter.stop_typing(target_of(message))
        await world.adapter.stop_typing(target_of(message))
        assert [status for _, _, status in world.slack.statuses] == ["is typing…", ""]
        assert world.adapter.traits.typing_every_s > 0
        world.slack.missing_scopes.add("assistant:write")
        await world.adapter.show_typing(target_of(message))
        await world.adapter.show_typing(target_of(message))
        assert len(world.slack.called("assistant.threads.setStatus")) == 3
        assert world.adapter.traits.typing_every_s == 0


@pytest.mark.spec("D-b")
async def test_history_is_what_came_before_the_message_in_order() -> None:
    async with open_world() as world:
        first = await world.said("C1", "U1", "one <@U2>")
        await world.send(first, "two")
        await world.said("C1", "U2", "three")
        message = await world.said("C1", "U1", "four")
        world.slack.post("C1", "U1", "later")
        lines = await world.adapter.history(target_of(message), 10)
        assert [(line.author, line.text, line.is_self) for line in lines] == [
            ("Ann", "one @Bo Berg", False), ("spacebot", "two", True), ("Bo Berg", "three", False),
        ]  # fmt: skip
        assert [line.text for line in await world.adapter.history(target_of(message), 2)] == ["two", "three"]


async def test_the_history_before_a_press_goes_up_to_now() -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", "menu")
        await world.send(message, "choose", rich=Rich(rows=(Row(buttons=(Button(label="Yes", custom_id="ok"),)),)))
        await world.said("C1", "U2", "wait")
        world.slack.press(world.slack.sent[0], "U1", world.slack.sent[0].blocks[1]["elements"][0])
        press = (await world.intake.received(3))[-1]
        assert [line.text for line in await world.adapter.history(target_of(press), 9)] == ["menu", "choose", "wait"]


@pytest.mark.spec("D-b")
async def test_the_history_of_a_long_thread_is_its_newest_part() -> None:
    async with open_world() as world:
        root = await world.said("C1", "U1", "root")
        for number in range(450):
            world.slack._keep("C1", {"type": "message", "user": "U1", "text": str(number), "ts": world.slack._ts()}
                              | {"thread_ts": root.platform_id})  # fmt: skip
        message = await world.said("C1", "U1", "now", thread=root.platform_id)
        lines = await world.adapter.history(target_of(message), 3)
        assert [line.text for line in lines] == ["447", "448", "449"]


async def test_parts_whose_answer_was_lost_are_not_said_twice() -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", "go")
        text = "\n\n".join(letter * 9000 for letter in "abc")
        world.slack.lose_answers("chat.postMessage")
        with pytest.raises(DeliveryError) as caught:
            await world.send(message, text)
        assert not caught.value.is_permanent
        assert len(world.slack.sent) == 1
        ids = await world.send(message, text, is_doubtful=True)
        assert [sent.markdown[0] for sent in world.slack.sent] == ["a", "b", "c"]
        assert ids == [sent.ts for sent in world.slack.sent]
        assert await world.send(message, text, sent=tuple(ids[:2])) == [world.slack.sent[3].ts]


@pytest.mark.parametrize(
    ("code", "is_permanent", "text"),
    [
        ("not_in_channel", True, "/invite @bot"),
        ("is_archived", True, "archived"),
        ("channel_not_found", True, "no such channel"),
        ("restricted_action", True, "do not let apps write"),
        ("missing_scope", True, "Reinstall"),
        ("internal_error", False, "internal_error"),
        ("500", False, "500"),
        ("503", False, "503"),
    ],
)
async def test_refusals_say_what_to_do(code: str, is_permanent: bool, text: str) -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", "hello")
        world.slack.refuse("chat.postMessage", code)
        with pytest.raises(DeliveryError, match=text) as caught:
            await world.send(message, "hi")
        assert caught.value.is_permanent is is_permanent
        assert not world.ended
        await world.send(message, "hi")


async def test_a_pause_that_slack_asks_for_is_passed_on() -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", "hello")
        world.slack.rate_limit(retry_after="12")
        with pytest.raises(DeliveryError) as caught:
            await world.send(message, "hi")
        assert (caught.value.is_permanent, caught.value.retry_after_s) == (False, 12.0)


async def test_places_are_found_by_address() -> None:
    async with open_world() as world:
        root = await world.said("C2", "U1", "here")
        for address, name, conversation in (
            ("C1", "#general", "slack:T1:C1"),
            ("T1:C1", "#general", "slack:T1:C1"),
            ("dm:U2", "Bo Berg", "slack:T1:DU2"),
            (f"C2#thread:{root.platform_id}", "#random", f"slack:T1:C2:{root.platform_id}"),
        ):
            place = await world.adapter.resolve(address)
            assert (place.name, place.conversation_id) == (name, conversation)
            target = Target(conversation_id=place.conversation_id, is_direct=place.is_direct, data=place.data)
            await world.send(target, "hello there")
            assert world.slack.sent[-1].channel == conversation.split(":")[2]
        assert world.slack.sent[-1].thread_ts == root.platform_id
        for address in ("C404", "dm:U404", "T9:C1", "general talk", ""):
            with pytest.raises(DeliveryError) as caught:
                await world.adapter.resolve(address)
            assert caught.value.is_permanent


async def test_a_conversation_alone_is_target_enough() -> None:
    async with open_world() as world:
        message = await world.said("C1", "U1", "hello")
        await world.send(Target(conversation_id=message.conversation_id), "later")
        assert world.slack.sent[0].channel == "C1"
        with pytest.raises(DeliveryError, match="no channel"):
            await world.send(Target(conversation_id=type(message.conversation_id)("discord:1:2")), "later")
