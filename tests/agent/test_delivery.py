"""What the agent says reaches its platform: in order, once, also after failures and restarts."""

import base64
import json
import re
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from spacebot.agent.delivery import ATTEMPTS, BREAKS
from spacebot.base.errors import DeliveryError, ModelUnavailableError
from spacebot.base.events import EventKind
from spacebot.llm.messages import (
    ArgumentsDelta,
    FinishReason,
    Image,
    ModelReply,
    ModelRequest,
    OnDelta,
    ProcessKind,
    ToolCall,
)
from spacebot.messaging.adapter import Receipt
from spacebot.messaging.messages import Attachment, OutboundKind
from tests.conftest import Logs
from tests.fakes.fake_platform import FakeCourier, FakePlatform, without
from tests.fakes.opened import Opened, open_test_agent
from tests.fakes.scripted_model import Call, Calls, Fail, Say, ScriptedModel
from tests.stand_ins.serving import Connection, Request, serve


async def take(opened: Opened, platform: FakePlatform, author: str, text: str, **fields: object) -> Receipt:
    message = platform.message(author, text, **{"is_direct": True, "room": "fake:dm:ann", **fields})
    return await opened.agent.take(message, observe=False, may_control=True)


async def test_an_answer_goes_out_to_where_the_question_came_from(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform()
    model = ScriptedModel(Call("reply", content="hello Ann"))
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        assert await take(opened, platform, "Ann", "hi", platform_id="m1") is Receipt.ACCEPTED
        (sent,) = await platform.went_out(1)
        assert sent.text == "hello Ann"
        assert sent.target.message_id == "m1"
        assert sent.target.data == {"room": "fake:dm:ann"}
        assert sent.target.is_direct
        assert not sent.message.is_doubtful
        await opened.events_of(EventKind.DELIVERED, 1)
        assert await opened.agent.delivery.outbox.take(sent.target.conversation_id) is None


@pytest.mark.spec("P25", "D-1")
async def test_each_answer_is_tied_to_its_own_question(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform()
    model = ScriptedModel(Call("reply", content="to one"), Call("reply", content="to two"))
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        for name in ("one", "two"):
            await take(opened, platform, "Ann", name, platform_id=name)
            await opened.ended(1 if name == "one" else 2)
        sent = await platform.went_out(2)
        assert [(one.text, one.target.message_id) for one in sent] == [("to one", "one"), ("to two", "two")]


async def test_a_second_delivery_of_the_same_message_is_not_answered(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform()
    model = ScriptedModel(Call("reply", content="once"))
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        assert await take(opened, platform, "Ann", "hi", platform_id="m1") is Receipt.ACCEPTED
        assert await take(opened, platform, "Ann", "hi", platform_id="m1") is Receipt.DUPLICATE
        await platform.went_out(1)
        await opened.settled()
        assert len(model.requests) == 1


async def test_a_failure_that_may_pass_is_tried_again_and_later_ones_wait(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform(failures=[DeliveryError("busy", is_permanent=False, retry_after_s=7.0)])
    model = ScriptedModel(Call("reply", content="first"), Call("reply", content="second"))
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        await take(opened, platform, "Ann", "one")
        await take(opened, platform, "Ann", "two")
        await opened.ended(1)
        await opened.advance(6.9)
        assert platform.sent == []
        await opened.advance(0.2)
        assert [sent.text for sent in await platform.went_out(2)] == ["first", "second"]
        assert not platform.sent[0].message.is_doubtful  # the platform said no: it cannot have arrived


async def test_after_a_lost_connection_the_rest_of_a_long_answer_follows(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform(part_size=4, fails_after_part=2)
    model = ScriptedModel(Call("reply", content="aaaabbbbccccdddd"))
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        await take(opened, platform, "Ann", "one")
        await opened.ended(1)
        await opened.advance(2)
        (sent,) = await platform.went_out(1)
        assert platform.parts == ["aaaa", "bbbb", "cccc", "dddd"]
        assert sent.message.is_doubtful
        assert len(sent.message.sent) == 2


@pytest.mark.spec("D-n")
async def test_what_nobody_will_get_is_told_to_the_model_once(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform(failures=[DeliveryError("the bot may not write here", is_permanent=True)])
    model = ScriptedModel(*(Call("reply", content=f"answer {n}") for n in range(3)))
    courier = FakeCourier(platform)
    async with open_test_agent(tmp_path, model, courier=courier) as opened:
        for count in (1, 2, 3):
            await take(opened, platform, "Ann", f"question {count}")
            await opened.ended(count)
            await opened.settled()
        told = ["the bot may not write here" in request.messages[-1].text for request in model.requests]
        assert told == [False, True, False]
        assert '"answer 0"' in model.requests[1].messages[-1].text
        assert (courier.delivered, courier.failed) == (2, 1)


async def test_a_platform_that_only_fails_is_given_up_some_time(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform(failures=[DeliveryError("no", is_permanent=False) for _ in range(ATTEMPTS)])
    model = ScriptedModel(Call("reply", content="lost"), Call("reply", content="kept"))
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        await take(opened, platform, "Ann", "one")
        for _ in range(ATTEMPTS):
            await opened.advance(61)
        assert platform.failures == []
        await take(opened, platform, "Ann", "two")
        assert [sent.text for sent in await platform.went_out(1)] == ["kept"]


async def test_an_adapter_that_breaks_over_a_message_does_not_hold_up_the_next(
    clock: MockClock, tmp_path: Path, logs: Logs
) -> None:
    platform = FakePlatform(failures=[ValueError("a bug") for _ in range(BREAKS)])
    model = ScriptedModel(Call("reply", content="poison"), Call("reply", content="fine"))
    logs.expect("adapter broke while sending")
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        await take(opened, platform, "Ann", "one")
        for _ in range(BREAKS):
            await opened.advance(1.1)
        await take(opened, platform, "Ann", "two")
        assert [sent.text for sent in await platform.went_out(1)] == ["fine"]


async def test_an_answer_waits_for_its_adapter_and_other_rooms_do_not(clock: MockClock, tmp_path: Path) -> None:
    here, there = FakePlatform(), FakePlatform(key="other", platform="other")
    courier = FakeCourier(here, there)
    courier.take_away("fake")
    model = ScriptedModel(Call("reply", content="later"), Call("reply", content="now"))
    async with open_test_agent(tmp_path, model, courier=courier) as opened:
        await take(opened, here, "Ann", "one")
        await opened.ended(1)
        await take(opened, there, "Bob", "two", room="other:dm:bob")
        assert [sent.text for sent in await there.went_out(1)] == ["now"]
        assert here.sent == []
        courier.bring_back("fake")
        assert [sent.text for sent in await here.went_out(1)] == ["later"]


async def test_a_day_without_its_adapter_is_too_long(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform()
    courier = FakeCourier(platform)
    courier.take_away("fake")
    model = ScriptedModel(Call("reply", content="old news"))
    async with open_test_agent(tmp_path, model, courier=courier) as opened:
        await take(opened, platform, "Ann", "one")
        await opened.ended(1)
        await opened.advance(90_000)
        (event,) = await opened.events_of(EventKind.UNDELIVERED, 1)
        assert "not connected" in str(event.fields["reason"])


async def test_what_a_killed_program_had_not_sent_goes_out_at_the_next_start(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform()
    courier = FakeCourier(platform)
    courier.take_away("fake")
    model = ScriptedModel(Call("reply", content="one"), Call("reply", content="two"))
    async with open_test_agent(tmp_path, model, courier=courier) as opened:
        for count, text in enumerate(("a", "b"), 1):
            await take(opened, platform, "Ann", text)
            await opened.ended(count)
    courier.bring_back("fake")
    async with open_test_agent(tmp_path, ScriptedModel(), courier=courier):
        sent = await platform.went_out(2)
        assert [one.text for one in sent] == ["one", "two"]
        assert not any(one.message.is_doubtful for one in sent)  # nobody had begun to send them
    async with open_test_agent(tmp_path, ScriptedModel(), courier=courier) as opened:
        await opened.settled()
        assert len(platform.sent) == 2


async def test_a_line_about_a_failure_goes_out_too(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform()
    model = ScriptedModel(Fail(ModelUnavailableError("down", model="m")))
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        await take(opened, platform, "Ann", "hi")
        (sent,) = await platform.went_out(1)
        assert sent.message.kind is OutboundKind.NOTICE
        assert "could not answer" in sent.text


async def test_a_reaction_goes_to_the_message_that_caused_it(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform()
    model = ScriptedModel(Calls(Call("react", emoji="👍"), Call("skip", reason="enough said")))
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        await take(opened, platform, "Ann", "done!", platform_id="m7")
        (sent,) = await platform.went_out(1)
        assert (sent.message.kind, sent.text, sent.target.message_id) == (OutboundKind.REACTION, "👍", "m7")


@pytest.mark.spec("D-22")
async def test_typing_begins_with_the_turn_and_always_ends(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform()
    gate = trio.Event()

    class Slow(ScriptedModel):
        async def complete(self, *arguments: object, **named: object) -> object:
            await gate.wait()
            return await super().complete(*arguments, **named)  # type: ignore[arg-type]

    model = Slow(Fail(ModelUnavailableError("down", model="m")))
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        await take(opened, platform, "Ann", "hi")
        await platform.until(lambda: platform.typing == ["on"])
        await opened.advance(4.1)
        assert platform.typing == ["on", "on"]
        gate.set()
        await platform.went_out(1)
        await platform.until(lambda: platform.typing[-1] == "off")
        await opened.advance(60)
        assert platform.typing == ["on", "on", "off"]


class Slowly:
    """Writes a reply a word at a time, half a second each."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)

    def context_window(self, process: ProcessKind) -> int:
        return 100_000

    async def complete(self, request: ModelRequest, on_delta: OnDelta | None = None) -> ModelReply:
        content = self.answers.pop(0)
        name = "skip" if content is None else "reply"
        final = json.dumps({"content": content} if content is not None else {"reason": "no"})
        if on_delta is not None and content is not None:
            for word in re.findall(r"\S+\s*|\s+", final):
                on_delta(ArgumentsDelta(index=0, name="reply", fragment=word))
                await trio.sleep(0.5)
        call = ToolCall(id="c1", name=name, arguments=json.loads(final), raw_arguments=final)
        return ModelReply(parts=(call,), finish_reason=FinishReason.TOOL_CALLS, model="slowly")


LONG = " ".join(f"word{n} and some more letters" for n in range(8))


async def test_a_long_answer_grows_before_peoples_eyes_and_ends_whole(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform()
    async with open_test_agent(tmp_path, Slowly(LONG), courier=FakeCourier(platform)) as opened:
        await take(opened, platform, "Ann", "tell me", platform_id="m1")
        for _ in range(45):
            await opened.advance(0.5)
        (sent,) = await platform.went_out(1)
        assert sent.text == LONG
        texts = [text for _, text in platform.drafts]
        assert len(texts) >= 3
        assert all(LONG.startswith(text) for text in texts)
        assert texts == sorted(texts, key=len)
        assert {draft_id for draft_id, _ in platform.drafts} == {sent.message.draft_id}
        assert platform.dropped == []


async def test_a_draft_survives_the_program_and_becomes_the_answer(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform()
    async with open_test_agent(tmp_path, Slowly(LONG), courier=FakeCourier(platform)) as opened:
        await take(opened, platform, "Ann", "tell me", platform_id="m1")
        while not platform.drafts:
            await opened.advance(0.5)
    again = ScriptedModel(Call("reply", content="short"))
    async with open_test_agent(tmp_path, again, courier=FakeCourier(platform)):
        (sent,) = await platform.went_out(1)
        assert (sent.text, sent.message.draft_id) == ("short", platform.drafts[0][0])


async def test_a_draft_that_no_answer_comes_of_goes_away(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform()

    class Refused(Slowly):
        """Its first words are refused as a whole, and then it would rather say nothing."""

    key = "sk-ant-api03-" + "aB3dE5gH7jK9" * 8
    model = Refused(f"{LONG} {key}", None)
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        room = platform.message("Ann", "tell me", room="fake:room", platform_id="m1")
        await opened.agent.take(room, observe=False, may_control=True)
        for _ in range(60):
            await opened.advance(0.5)
        assert await opened.ended(1) == ["skipped"]
        await platform.until(lambda: bool(platform.dropped))
        assert set(platform.dropped) == {draft_id for draft_id, _ in platform.drafts}
        assert not any("sk-ant" in text for _, text in platform.drafts)
        assert platform.sent == []


async def test_answers_are_fetched_where_nothing_is_pushed(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform(traits=without(is_pulled=True))
    model = ScriptedModel(Call("reply", content="come and get it"))
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        message = platform.message("Ann", "hi", room="fake:dm:ann", is_direct=True)
        await opened.agent.take(message, observe=False, may_control=True)
        await opened.ended(1)
        await opened.settled()
        assert platform.sent == []
        (parcel,) = await opened.agent.delivery.outbox.waiting(message.conversation_id, 10)
        assert parcel.message.text == "come and get it"
        await opened.agent.delivery.fetched([parcel.message.id])
        assert await opened.agent.delivery.outbox.waiting(message.conversation_id, 10) == []


@pytest.mark.spec("D-27")
async def test_a_file_of_the_workspace_is_sent_as_it_was(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform()
    platform.stalls = trio.Event()
    model = ScriptedModel(
        Calls(Call("send_file", file_path="report.txt", caption="here"), Call("reply", content="There you are."))
    )
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        report = tmp_path / "agents" / "main" / "workspace" / "report.txt"
        report.write_text("figures")
        await take(opened, platform, "Ann", "the report please")
        await opened.ended(1)
        report.write_text("changed since")
        copies = list((tmp_path / "agents" / "main" / "data" / "outgoing").iterdir())
        assert [copy.read_text() for copy in copies] == ["figures"]
        platform.stalls.set()
        sent = await platform.went_out(2)
        assert [(one.message.kind, one.text) for one in sent] == [
            (OutboundKind.FILE, "here"),
            (OutboundKind.TEXT, "There you are."),
        ]
        assert sent[0].message.file is not None
        assert (sent[0].message.file.filename, sent[0].message.file.media_type) == ("report.txt", "text/plain")
        await opened.events_of(EventKind.DELIVERED, 2)
        assert not copies[0].exists()


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        ("../../config.toml", None, "parent"),
        ("/etc/passwd", None, "denied"),
        ("link", None, "link"),
        ("gone.txt", None, "does not exist"),
        ("empty.txt", b"", "empty"),
        ("big.bin", b"x" * (2**20 + 1), "larger than"),
        ("key.txt", b"token sk-ant-api03-" + b"aB3dE5gH7jK9" * 8, "secret"),
    ],
)
@pytest.mark.spec("D-27")
async def test_files_that_must_not_go_out_do_not(
    clock: MockClock, tmp_path: Path, path: str, content: bytes | None, reason: str
) -> None:
    platform = FakePlatform()
    model = ScriptedModel(Call("send_file", file_path=path), Call("reply", content="I cannot send that."))
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        workspace = tmp_path / "agents" / "main" / "workspace"
        (workspace / "link").symlink_to("/etc/passwd")
        if content is not None:
            (workspace / path).write_bytes(content)
        await take(opened, platform, "Ann", "send it")
        (sent,) = await platform.went_out(1)
        assert sent.text == "I cannot send that."
        assert reason in str(model.requests[1].messages[-1].parts)


@pytest.mark.spec("D-24", "D-25")
async def test_parts_beside_the_words_travel_through_the_log(clock: MockClock, tmp_path: Path) -> None:
    platform = FakePlatform()
    model = ScriptedModel(
        Call(
            "reply",
            content="Choose.",
            cards=[{"title": "Menu", "footer": {"text": "today", "icon_url": None}, "color": "#ff8800"}],
            interactive_elements=[{"buttons": [{"label": "Soup", "custom_id": "soup", "style": "odd"}]}],
            poll={"question": " ", "answers": ["a"]},
        )
    )
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        await take(opened, platform, "Ann", "what is there?")
        (sent,) = await platform.went_out(1)
        rich = sent.message.rich
        assert rich is not None
        assert (rich.cards[0].title, rich.cards[0].footer, rich.cards[0].color) == ("Menu", "today", 0xFF8800)
        assert rich.rows[0].buttons[0].custom_id == "soup"
        assert rich.poll is None  # nobody could vote on that


KEY = "sk-ant-api03-" + "aB3dE5gH7jK9" * 8


@pytest.mark.spec("D-28")
@pytest.mark.parametrize(
    "parts",
    [
        {"cards": [{"title": "key", "description": KEY}]},
        {"blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": KEY}}]},
        {"interactive_elements": [{"options": [{"label": KEY}]}]},
    ],
)
async def test_secrets_in_parts_are_refused(clock: MockClock, tmp_path: Path, parts: dict[str, object]) -> None:
    platform = FakePlatform()
    model = ScriptedModel(Call("reply", content="Here.", **parts), Call("reply", content="No."))
    async with open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        await take(opened, platform, "Ann", "show me the key")
        assert [sent.text for sent in await platform.went_out(1)] == ["No."]


async def test_nothing_is_queued_where_readers_follow_the_log(clock: MockClock, tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, ScriptedModel(Say("hello"))) as opened:
        await opened.say("Ann", "hi")
        await opened.said(1)
        assert await opened.agent.delivery.outbox.open_channels() == []


PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.mark.spec("P30", "D-30")
async def test_what_people_attach_reaches_the_model_once_and_the_history_as_a_line(
    clock: MockClock, tmp_path: Path
) -> None:
    asked: list[str] = []

    async def answer(request: Request, connection: Connection) -> None:
        asked.append(request.path)
        if request.path == "/gone.png":
            await connection.send(b"not here", status=404, content_type="text/html")
        else:
            await connection.send(PNG, content_type="image/png")

    platform = FakePlatform()
    model = ScriptedModel(Call("reply", content="a dot"), Call("reply", content="as I said"))
    async with serve(answer) as server, open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        files = tuple(
            Attachment(filename=name, media_type="image/png", url=f"{server.url}/{name}")
            for name in ("dot.png", "gone.png")
        )
        await take(opened, platform, "Ann", "what is this?", attachments=files)
        await platform.went_out(1)
        await take(opened, platform, "Ann", "sure?")
        await platform.went_out(2)
        first, second = model.requests
        pictures = [part for message in first.messages for part in message.parts if isinstance(part, Image)]
        assert [(one.media_type, base64.b64decode(one.data)) for one in pictures] == [("image/png", PNG)]
        assert "gone.png could not be fetched" in str(first.messages[-1].parts)
        assert not [part for message in second.messages for part in message.parts if isinstance(part, Image)]
        assert any("dot.png" in message.text and "attachments/" in message.text for message in second.messages)
        assert sorted(asked) == ["/dot.png", "/gone.png"]
        (kept,) = (tmp_path / "agents" / "main" / "workspace" / "attachments").rglob("dot.png")
        assert kept.read_bytes() == PNG


async def test_who_is_forgotten_takes_files_and_unsent_answers_along(clock: MockClock, tmp_path: Path) -> None:
    async def answer(request: Request, connection: Connection) -> None:
        await connection.send(b"my diary", content_type="text/plain")

    platform = FakePlatform()
    model = ScriptedModel(Call("reply", content="what a diary"))
    async with serve(answer) as server, open_test_agent(tmp_path, model, courier=FakeCourier(platform)) as opened:
        diary = Attachment(filename="diary.txt", media_type="text/plain", url=f"{server.url}/d")
        room = platform.message("Ann", "read this", attachments=(diary,), mentions_bot=True)
        others = platform.message("Bob", "hello all")
        await opened.agent.take(others, observe=True, may_control=False)
        platform.failures.append(DeliveryError("busy", is_permanent=False, retry_after_s=30))
        await opened.agent.take(room, observe=False, may_control=False)
        await opened.ended(1)
        folder = tmp_path / "agents" / "main" / "workspace" / "attachments"
        assert [file.read_text() for file in folder.rglob("*.*")] == ["my diary"]
        await opened.agent.forget_person("fake:ann", reason="asked")
        assert not any(path.is_file() for path in folder.rglob("*"))
        await opened.advance(31)
        assert (platform.failures, platform.sent) == ([], [])
