from pathlib import Path

import trio

from spacebot.api.sessions import SessionEvent, SessionStream, conversation_of, open_session_stream
from spacebot.base.clock import Clock
from spacebot.base.events import BUFFER, EventKind
from spacebot.base.tree import NodeKind
from spacebot.conversations.records import Accepted
from spacebot.messaging.messages import Author, InboundMessage, OutboundKind
from tests.fakes.fake_program import FakeAgent, open_fake_program

CHAT = conversation_of("one")


async def say(agent: FakeAgent, text: str, session_id: str = "one") -> Accepted:
    return await agent.accept(
        InboundMessage(
            platform="webchat",
            conversation_id=conversation_of(session_id),
            author=Author(id="ann", name="Ann"),
            text=text,
            sent_at=Clock().now(),
            is_direct=True,
        )
    )


async def take(stream: SessionStream, count: int) -> list[SessionEvent]:
    events = []
    while len(events) < count:
        event = await stream.receive()
        assert event is not None
        events.append(event)
    return events


async def messages(stream: SessionStream, count: int) -> list[tuple[int | None, str]]:
    found: list[tuple[int | None, str]] = []
    while len(found) < count:
        (event,) = await take(stream, 1)
        if event.name == "message":
            found.append((event.seq, event.data["content"]))
    return found


async def test_a_stream_begins_with_hello_and_gives_only_what_follows(tmp_path: Path) -> None:
    async with open_fake_program(tmp_path) as program:
        await say(program.main, "before")
        async with open_session_stream(program.main, program.events, CHAT, after_seq=None) as stream:
            (hello,) = await take(stream, 1)
            await say(program.main, "after")
            assert (hello.name, hello.data["last_seq"], hello.data["skipped"]) == ("hello", 1, 0)
            assert await messages(stream, 1) == [(2, "after")]


async def test_replay_and_live_messages_join_without_gap_or_double(tmp_path: Path) -> None:
    """The live events arrive while the replay is still being read: those that the log gave are dropped."""
    async with open_fake_program(tmp_path) as program:
        for n in range(1, 451):  # more than two pages of the log
            await say(program.main, f"m{n}")
        async with open_session_stream(program.main, program.events, CHAT, after_seq=3) as stream:
            for n in range(451, 461):
                await say(program.main, f"m{n}")
            assert await messages(stream, 457) == [(n, f"m{n}") for n in range(4, 461)]


async def test_a_reader_that_lags_gets_every_message_once_and_the_state_anew(tmp_path: Path) -> None:
    async with open_fake_program(tmp_path) as program:
        agent = program.main
        async with open_session_stream(agent, program.events, CHAT, after_seq=0, tree=program.tree) as stream:
            await take(stream, 1)
            first = await say(agent, "question")
            async with agent.turn(CHAT, first) as turn:
                for n in range(BUFFER + 10):
                    turn.delta("x" * n)
                await turn.say("answer")
            await say(agent, "next")
            events = await take(stream, 4)
            found = [(event.name, event.seq) for event in events]
            while (rest := await take(stream, 1))[0].name != "turn_ended":
                found += [(event.name, event.seq) for event in rest]
    assert found[:3] == [("message", 1), ("message", 2), ("message", 3)]
    assert found[3] == ("hello", None)
    assert events[3].data["skipped"] > 0
    assert [name for name, _ in found].count("message") == 3


async def test_a_message_without_an_event_is_found_when_the_next_one_comes(tmp_path: Path) -> None:
    async with open_fake_program(tmp_path) as program:
        agent = program.main
        async with open_session_stream(agent, program.events, CHAT, after_seq=0) as stream:
            await say(agent, "one")
            async with agent.turn(CHAT) as turn:
                await turn.say("two", announce=False)
                await turn.say("three")
            assert await messages(stream, 3) == [(1, "one"), (2, "two"), (3, "three")]


async def test_live_and_replayed_messages_look_alike(tmp_path: Path) -> None:
    async with open_fake_program(tmp_path) as program:
        agent = program.main
        async with open_session_stream(agent, program.events, CHAT, after_seq=None) as live:
            first = await say(agent, "hello")
            async with agent.turn(CHAT, first) as turn:
                await turn.say("hi")
                await turn.say("that failed", OutboundKind.NOTICE)
            seen = [event for event in await take(live, 6) if event.name == "message"]
        async with open_session_stream(agent, program.events, CHAT, after_seq=0) as replay:
            again = (await take(replay, 4))[1:]
    assert [set(event.data) for event in seen] == [set(event.data) for event in again]
    assert [event.data["id"] for event in seen] == [event.data["id"] for event in again]
    assert [dict(event.data) for event in seen[1:]] == [dict(event.data) for event in again[1:]]


async def test_a_cancelled_receive_loses_nothing(tmp_path: Path) -> None:
    async with open_fake_program(tmp_path) as program:
        await say(program.main, "one")
        async with open_session_stream(program.main, program.events, CHAT, after_seq=0) as stream:
            await take(stream, 1)
            for _ in range(3):
                with trio.move_on_after(0):
                    await stream.receive()
            await say(program.main, "two")
            with trio.CancelScope() as scope:
                scope.cancel()
                await stream.receive()
            rest = await messages(stream, 1)
    assert rest[0][0] in (1, 2)


async def test_agents_and_sessions_do_not_see_each_other(tmp_path: Path) -> None:
    async with open_fake_program(tmp_path, ("main", "other")) as program:
        main, other = program.agents.values()
        async with open_session_stream(main, program.events, CHAT, after_seq=None) as stream:
            await say(other, "to the other agent")
            await say(main, "to another session", "two")
            await say(main, "to us")
            assert await messages(stream, 1) == [(1, "to us")]


async def test_hello_shows_what_runs_in_this_channel(tmp_path: Path) -> None:
    async with open_fake_program(tmp_path) as program:
        program.tree.add(NodeKind.WORKER, "count stars", agent_id="main", channel_id=CHAT)
        program.tree.add(NodeKind.WORKER, "elsewhere", agent_id="main", channel_id="webchat:two")
        async with open_session_stream(program.main, program.events, CHAT, after_seq=0, tree=program.tree) as stream:
            (hello,) = await take(stream, 1)
    assert [process["description"] for process in hello.data["processes"]] == ["count stars"]


async def test_a_number_that_the_log_never_reached_counts_as_its_last(tmp_path: Path) -> None:
    """A restored backup is older than the page that reconnects: it must not wait for ever."""
    async with open_fake_program(tmp_path) as program:
        await say(program.main, "one")
        async with open_session_stream(program.main, program.events, CHAT, after_seq=99) as stream:
            await say(program.main, "two")
            assert await messages(stream, 1) == [(2, "two")]


async def test_streams_end_when_the_bus_closes(tmp_path: Path) -> None:
    async with open_fake_program(tmp_path) as program:
        async with open_session_stream(program.main, program.events, CHAT, after_seq=None) as stream:
            await take(stream, 1)
            program.events.close()
            assert await stream.receive() is None


async def test_passing_events_keep_their_names(tmp_path: Path) -> None:
    async with open_fake_program(tmp_path) as program:
        async with open_session_stream(program.main, program.events, CHAT, after_seq=None) as stream:
            program.main.emit(EventKind.WORKER_STATUS, CHAT, worker_id="w", status="reading")
            _, event = await take(stream, 2)
    assert (event.name, event.data["status"]) == ("worker_status", "reading")
