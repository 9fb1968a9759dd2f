"""Observers: all of it once and in order, taken up again where they left, told what they missed."""

from pathlib import Path
from typing import Any

import pytest

from spacebot.api.feed import RING
from spacebot.base.events import EventKind
from tests.api.serving import CONVERSATION, UNREAD, Event, Reader, Served, open_server

pytestmark = pytest.mark.filterwarnings(UNREAD)


def emit(served: Served, number: int, agent: str = "main") -> None:
    served.program.events.emit(
        EventKind.TOOL_OUTPUT, agent_id=agent, channel_id=CONVERSATION, process_id="p", line=str(number)
    )


async def read(served: Served, count: int, after: str | None = None, **params: Any) -> list[Event]:
    """So many events from the stream; without `after` those from now on, which are sent here."""
    headers = {} if after is None else {"last-event-id": after}
    async with served.client.stream("GET", "/api/events", params=params, headers=headers) as response:
        reader = Reader(response)
        if after is None:
            async for line in reader._lines:
                if line == ": open":
                    break
            for number in range(count):
                emit(served, number)
        found = []
        while len(found) < count:
            event = await reader.next()
            assert event is not None
            found.append(event)
        return found


def lines(events: list[Event]) -> list[str]:
    return [event.data["line"] for event in events]


async def test_who_was_away_gets_what_came_meanwhile_and_nothing_twice(tmp_path: Path) -> None:
    async with open_server(tmp_path, agents=("main", "other")) as served:
        first = await read(served, 3)
        assert lines(first) == ["0", "1", "2"]
        for number in range(3, 6):
            emit(served, number)
            emit(served, 100 + number, "other")
        again = await read(served, 6, first[1].id)
        assert lines(again) == ["2", "3", "103", "4", "104", "5"]
        assert len({event.id for event in first + again[1:]}) == 8
        assert lines(await read(served, 3, first[2].id, agent_id="main")) == ["3", "4", "5"]
        served.program.events.emit(EventKind.CONFIG_RELOADED, what="config")
        (only,) = await read(served, 1, first[0].id, types="config_reloaded")
        assert only.name == "config_reloaded"


@pytest.mark.spec("C-80")
async def test_who_was_away_for_too_long_or_in_another_life_is_told(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        (first,) = await read(served, 1)
        for number in range(1, 2 * RING + 2):
            emit(served, number)
        lagged, following = await read(served, 2, first.id)
        assert (lagged.name, following.data["line"]) == ("lagged", str(1 + lagged.data["skipped"]))
        for stranger in ("other-ru-5", "nonsense", "5", f"{first.id}0000000"):
            (told,) = await read(served, 1, stranger)
            assert (told.name, told.data["type"]) == ("lagged", "lagged")


async def test_many_observers_get_the_same_bytes(tmp_path: Path) -> None:
    import trio

    async with open_server(tmp_path) as served:
        found: list[list[str]] = []
        opened = trio.Event()
        count = 0

        async def follow() -> None:
            nonlocal count
            async with served.client.stream("GET", "/api/events") as response:
                reader = Reader(response)
                async for line in reader._lines:
                    if line == ": open":
                        break
                count += 1
                if count == 20:
                    opened.set()
                events = []
                while len(events) < 50:
                    event = await reader.next()
                    assert event is not None
                    events.append(event)
                found.append(lines(events))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(follow)
            await opened.wait()
            for number in range(50):
                emit(served, number)
    assert found == [[str(number) for number in range(50)]] * 20
