"""Events of one conversation one after the other, those of different conversations side by side.

Flow:    adapter's events -> run_lanes -> handle
Floor:   messaging
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

LANES = 16  # events dealt with at once; they share one commit of the database
LANE_BUFFER = 64  # events that wait in one lane before the others have to wait too

T = TypeVar("T")


async def run_lanes(
    events: trio.MemoryReceiveChannel[T],
    handle: Callable[[T], Awaitable[None]],
    key: Callable[[T], object],
    *,
    lanes: int = LANES,
) -> None:
    """Handle events until their channel is closed and the last one is dealt with.

    Args:
        handle: an error that it raises ends all lanes.
        key: events of the same key keep their order.
    """
    async with trio.open_nursery() as nursery:
        sends: list[trio.MemorySendChannel[T]] = []
        for _ in range(lanes):
            send, receive = trio.open_memory_channel[T](LANE_BUFFER)
            sends.append(send)
            nursery.start_soon(_run_lane, receive, handle)
        try:
            async for event in events:
                await sends[hash(key(event)) % lanes].send(event)
        finally:
            for send in sends:
                send.close()


async def _run_lane(events: trio.MemoryReceiveChannel[T], handle: Callable[[T], Awaitable[None]]) -> None:
    async with events:
        async for event in events:
            await handle(event)
