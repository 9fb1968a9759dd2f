"""The owner can read what a model saw: every piece, once kept, without secrets, bounded, and erased with its people."""

import gc
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

from trio.testing import MockClock

from spacebot.agent.captures import BATCH, ReadCapture
from spacebot.base.errors import ModelUnavailableError
from spacebot.base.events import EventKind
from spacebot.base.redaction import MASK, register_secret
from spacebot.conversations.captures import SWEEP
from spacebot.llm.messages import Image, ModelMessage, ModelRequest, ProcessKind, Role, Text, Usage
from tests.conftest import Logs
from tests.fakes.opened import DIRECT, ROOM, Opened, broken, healed, open_test_agent
from tests.fakes.scripted_model import Call, Calls, Fail, Say, ScriptedModel

OTHER = "test:other"
HUSHED = "hushed-value-0123456789"


async def newest(opened: Opened, **which: str) -> ReadCapture:
    """The newest kept request."""
    (capture,) = await opened.agent.captures.page(limit=1, **which)
    shown = await opened.agent.captures.find(capture.id)
    assert shown is not None
    return shown


def rows(opened: Opened, table: str) -> int:
    with closing(sqlite3.connect(opened.database())) as connection:
        count: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return count


async def test_a_turn_can_be_read_as_its_model_saw_it(tmp_path: Path, clock: MockClock) -> None:
    register_secret(HUSHED)
    usage = Usage(input_tokens=900, cache_read_tokens=100, output_tokens=7)
    model = ScriptedModel(
        Calls(Call("branch", description="look it up"), Call("reply", content="I shall look")),
        Say(""),
        branch=[Say(f"the word is {HUSHED}")],
        usage=usage,
    )
    async with open_test_agent(tmp_path, model) as opened:
        accepted = await opened.say("Ann", "What is the word?")
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.settled()
        fate = await opened.fate(accepted)
        shown = await newest(opened, process_id=str(fate.turn_id))
        request = model.requests[0]
        # Every word of the request is there, in its order.
        texts = {kind: [b.text for b in shown.blocks if b.kind == kind] for kind in ("system", "tools", "message")}
        assert "".join(texts["system"]) == "".join(block.text for block in request.system)
        assert [b.name for b in shown.blocks if b.kind == "tools"] == [tool.name for tool in request.tools]
        assert all(tool.description in text for tool, text in zip(request.tools, texts["tools"], strict=True))
        assert texts["message"] == [part.text for m in request.messages for part in m.parts]  # type: ignore[union-attr]
        assert "What is the word?" in texts["message"][-1]
        assert shown.blocks[0].name
        assert shown.blocks[-1].role == "user"
        # A tenth was read from the provider's cache: from the front, where the tools are.
        cached = [block for block in shown.blocks if block.is_cached]
        assert cached
        assert {block.kind for block in cached} == {"tools"}
        assert len(cached) < len(texts["tools"])
        capture = shown.capture
        assert (capture.process_type, capture.step, capture.channel_id) == ("channel", 1, DIRECT)
        assert capture.usage == usage
        assert capture.blocks == len(shown.blocks)
        assert [call["name"] for call in shown.reply["calls"]] == ["branch", "reply"]
        # The branch has its own, by its id; what it said is kept without the secret.
        run = next(run for run in fate.runs if run["kind"] == "branch")
        of_branch = await newest(opened, process_id=str(run["id"]))
        assert of_branch.capture.process_type == "branch"
        assert of_branch.reply["text"] == f"the word is {MASK}"
        # Pieces that several requests hold are kept once.
        held = sum(capture.blocks for capture in await opened.agent.captures.page(limit=100))
        assert rows(opened, "prompt_blocks") < held


async def test_only_the_newest_are_kept_with_the_pieces_they_hold(tmp_path: Path, clock: MockClock) -> None:
    model = ScriptedModel(lambda request: Call("reply", content="yes"))
    async with open_test_agent(tmp_path, model, prompt_captures=3) as opened:
        await opened.say("Ann", "a word about Xylocarp")
        await opened.said(1)
        await opened.agent.captures.flush()
        for number in range(SWEEP + BATCH):
            await opened.say("Ben", f"message number {number}", conversation=OTHER, is_direct=True)
            await opened.said(number + 1, OTHER)
            if number % 8 == 0:
                await opened.agent.captures.flush()
        await opened.settled()
        page = await opened.agent.captures.page(limit=100)
        assert len(page) == 3
        before = await opened.agent.captures.page(limit=2, before=page[0].id)
        assert [one.id for one in before] == [page[1].id, page[2].id]
        for capture in page:
            shown = await opened.agent.captures.find(capture.id)
            assert shown is not None
            assert "[no longer kept]" not in [block.text for block in shown.blocks]
        with closing(sqlite3.connect(opened.database())) as connection:
            bodies = [
                zlib.decompress(body).decode() for (body,) in connection.execute("SELECT body FROM prompt_blocks")
            ]
        assert not any("Xylocarp" in body for body in bodies)  # its request is gone, and its words with it
        opened.config[0] = opened.config[0].model_copy(update={"prompt_captures": 0})
        asked = len(model.requests)
        await opened.say("Ann", "unseen")
        await opened.said(2, DIRECT)
        assert len(model.requests) > asked
        assert [one.id for one in await opened.agent.captures.page(limit=100)] == [one.id for one in page]


async def test_no_byte_stays_of_a_person_who_is_forgotten(tmp_path: Path, clock: MockClock) -> None:
    model = ScriptedModel(*(Call("reply", content=words) for words in ("noted", "well", "again", "here")))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "I fear the vrondelak")
        await opened.said(1)
        await opened.advance(5)
        await opened.say("Ben", "hello", conversation=ROOM)
        await opened.advance(5)
        await opened.said(1, ROOM)
        await opened.agent.captures.flush()
        assert rows(opened, "prompt_captures") >= 2
        await opened.say("Ann", "and the vrondelak fears me")  # seen, and waiting to be kept
        await opened.said(2, DIRECT)
        await opened.agent.forget_person("test:ann", reason="a test")
        assert await opened.agent.captures.page(limit=10) == []
        assert rows(opened, "prompt_captures") == rows(opened, "prompt_blocks") == 0
        await opened.say("Ben", "still there?", conversation=ROOM)
        await opened.advance(5)
        shown = await newest(opened)
        assert "still there?" in shown.blocks[-1].text
        assert "[no longer kept]" not in [b.text for b in shown.blocks]


async def test_a_request_that_failed_is_kept_and_a_full_disk_costs_requests_only(
    tmp_path: Path, clock: MockClock, logs: Logs
) -> None:
    failure = Fail(ModelUnavailableError("the provider is away", model="m"))
    model = ScriptedModel(failure, Call("reply", content="one"), Call("reply", content="two"))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "first")
        await opened.said(1)
        shown = await newest(opened)
        assert (shown.capture.finish_reason, shown.reply["error"]) == ("error", "the provider is away")
        broken(opened, "INSERT", "prompt_captures")
        await opened.say("Ann", "second")
        await opened.said(2)
        await opened.agent.captures.flush()
        logs.expect("requests to models not kept")
        healed(opened)
        await opened.say("Ann", "third")
        await opened.said(3)
        shown = await newest(opened)
        assert shown.blocks[-1].text.endswith("third") or "third" in shown.blocks[-1].text
        assert "[no longer kept]" not in [block.text for block in shown.blocks]


async def test_they_go_with_their_conversation(tmp_path: Path, clock: MockClock) -> None:
    async with open_test_agent(tmp_path, ScriptedModel(Call("reply", content="noted"))) as opened:
        await opened.say("Ann", "hello")
        await opened.said(1)
        assert await opened.agent.captures.page(limit=10, channel_id=DIRECT)
        await opened.agent._parts.conversations._database.write(
            lambda c: c.execute("DELETE FROM channels WHERE id = ?", (DIRECT,))
        )
        assert await opened.agent.captures.page(limit=10, channel_id=DIRECT) == []


async def test_pictures_that_models_saw_do_not_gather_in_memory(tmp_path: Path, clock: MockClock) -> None:
    """They are no part of what is kept, and must not be held for it."""
    async with open_test_agent(tmp_path, ScriptedModel(Call("reply", content="noted"))) as opened:
        captures = opened.agent.captures
        for number in range(12):
            picture = Image("image/of-this-test", chr(ord("A") + number) * 1_000_000)
            message = ModelMessage(Role.USER, (Text("look"), picture))
            captures.note(ModelRequest(process=ProcessKind.WORKER, system=(), messages=(message,)), None, "away")
        await captures.flush()
        del message, picture
        gc.collect()
        held = [one for one in gc.get_objects() if isinstance(one, Image) and one.media_type == "image/of-this-test"]
        assert len(held) <= 5
