"""The bus: it never waits, a slow reader loses the oldest, and it ends cleanly."""

import pytest
import trio

from spacebot.base.events import EventBus, EventKind


@pytest.mark.spec("P7")
async def test_a_slow_reader_loses_the_oldest_and_is_told_how_many() -> None:
    bus = EventBus()
    with bus.subscribe(buffer=3) as reader, bus.subscribe() as other:
        for number in range(10):
            bus.emit(EventKind.TOOL_OUTPUT, line=number)
        assert reader.take_skipped() == 7
        assert reader.take_skipped() == 0
        assert [(await reader.receive()).fields["line"] for _ in range(3)] == [7, 8, 9]  # type: ignore[union-attr]
        assert other.take_skipped() == 0


@pytest.mark.spec("P8")
async def test_readers_get_what_they_asked_for() -> None:
    bus = EventBus()
    with bus.subscribe(frozenset({EventKind.TURN_ENDED}), channel_id="a") as reader:
        bus.emit(EventKind.TURN_ENDED, channel_id="b")
        bus.emit(EventKind.TYPING_STATE, channel_id="a")
        bus.emit(EventKind.TURN_ENDED, agent_id="main", channel_id="a", outcome="done", kind="a field of that name")
        bus.close()
        events = [event async for event in reader]

    assert [event.to_json_object() for event in events] == [
        {"type": "turn_ended", "agent_id": "main", "channel_id": "a", "outcome": "done", "kind": "a field of that name"}
    ]


async def test_closing_the_bus_ends_who_waits() -> None:
    bus = EventBus()
    with bus.subscribe() as reader:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.receive)
            await trio.testing.wait_all_tasks_blocked()
            bus.close()
        assert await reader.receive() is None


async def test_one_who_left_gets_nothing_more() -> None:
    bus = EventBus()
    with bus.subscribe() as reader:
        pass
    bus.emit(EventKind.TURN_ENDED)
    assert await reader.receive() is None
