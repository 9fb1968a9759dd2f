"""Services that are kept running."""

from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from spacebot.base.errors import ConfigError, DeliveryError
from spacebot.base.supervise import BackOff, run_service
from spacebot.base.tree import Node, NodeKind, NodeState, Tree


def failing(times: int, error: Exception, started: list[float]) -> Callable[[Node], Awaitable[None]]:
    async def run(node: Node) -> None:
        started.append(trio.current_time())
        if len(started) <= times:
            raise error

    return run


def pauses(moments: list[float]) -> list[float]:
    return [round(later - earlier, 3) for earlier, later in pairwise(moments)]


async def test_pauses_double_up_to_the_longest(autojump_clock: MockClock) -> None:
    started: list[float] = []
    outcome = await run_service(Tree(), "adapter", failing(6, OSError("no network"), started))

    assert pauses(started) == [5, 10, 20, 40, 60, 60]
    assert outcome.state is NodeState.DONE


async def test_a_steady_run_begins_again_with_the_first_pause(autojump_clock: MockClock) -> None:
    started: list[float] = []

    async def run(node: Node) -> None:
        started.append(trio.current_time())
        if len(started) == 3:
            await trio.sleep(100)
        if len(started) < 5:
            raise OSError

    await run_service(Tree(), "adapter", run)

    assert pauses(started) == [5, 10, 105, 10]


@pytest.mark.parametrize("error", [ConfigError("no token"), DeliveryError("banned", is_permanent=True)])
async def test_what_will_not_heal_is_retried_slowly(autojump_clock: MockClock, error: Exception) -> None:
    started: list[float] = []
    await run_service(Tree(), "adapter", failing(2, error, started), back_off=BackOff(permanent_s=600))

    assert pauses(started) == [600, 600]


async def test_the_tree_shows_a_service_and_cancelling_its_node_ends_it(autojump_clock: MockClock) -> None:
    tree = Tree()
    async with trio.open_nursery() as nursery:
        node = await nursery.start(partial(run_service, tree, "adapter", failing(99, ConfigError("no token"), [])))
        await trio.sleep(1)
        (view,) = tree.view()
        assert (view.kind, view.state) == (NodeKind.SERVICE, NodeState.WAITING)
        assert view.status == "failed 1×, next attempt after 600 s: no token"
        node.cancel("switched off")
    assert node.state is NodeState.CANCELLED
    assert tree.view() == []
