"""The supervision tree: one registry, one end for each node, settled before anybody hears of it."""

import pytest
import trio

from spacebot.base.errors import LimitReachedError, ToolError
from spacebot.base.tree import Node, NodeKind, NodeState, Outcome, Tree, describe
from tests.conftest import Logs


class Owner:
    """Notes how its child ended."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.node = self.tree.add(NodeKind.CHANNEL, "the parent", node_id="parent", agent_id="main", channel_id="c")
        self.child = self.tree.add(NodeKind.WORKER, "the work", parent=self.node)
        self.settled: list[Outcome] = []

    async def settle(self, outcome: Outcome) -> None:
        await trio.lowlevel.checkpoint()  # runs although the node is cancelled
        assert self.tree.get(self.child.id) is self.child
        self.settled.append(outcome)


async def test_the_end_is_what_the_work_returned() -> None:
    owner = Owner()

    async def work() -> Outcome:
        assert owner.child.state is NodeState.RUNNING
        return Outcome(NodeState.PARTIAL, "half")

    outcome = await owner.tree.supervise(owner.child, work, settle=owner.settle)
    assert owner.settled == [outcome] == [Outcome(NodeState.PARTIAL, "half")]
    assert owner.tree.get(owner.child.id) is None
    assert owner.node.children == {}


@pytest.mark.spec("P11")
async def test_a_crash_becomes_one_failed_end(logs: Logs) -> None:
    logs.expect("process failed")
    owner = Owner()

    async def work() -> Outcome:
        raise ZeroDivisionError("inner detail")

    outcome = await owner.tree.supervise(owner.child, work, settle=owner.settle)
    assert outcome.state is NodeState.FAILED
    assert "ZeroDivisionError" in outcome.text
    assert "inner detail" not in outcome.text
    assert owner.settled == [outcome]


@pytest.mark.spec("P57")
async def test_the_first_wish_to_end_names_the_end_and_finished_work_stays_finished() -> None:
    owner = Owner()
    owner.child.cancel("too slow", NodeState.TIMED_OUT)
    owner.child.cancel("not wanted")
    outcome = await owner.tree.supervise(owner.child, lambda: trio.sleep_forever(), settle=owner.settle)  # type: ignore[arg-type]
    assert outcome == Outcome(NodeState.TIMED_OUT, "too slow")

    owner = Owner()

    async def work() -> Outcome:
        owner.child.cancel("too late")
        return Outcome(NodeState.DONE, "finished")

    assert await owner.tree.supervise(owner.child, work, settle=owner.settle) == Outcome(NodeState.DONE, "finished")
    assert [outcome.state for outcome in owner.settled] == [NodeState.DONE]


async def test_a_stop_from_above_interrupts_and_settles() -> None:
    owner = Owner()
    with trio.CancelScope() as scope:
        scope.cancel()
        await owner.tree.supervise(owner.child, lambda: trio.sleep_forever(), settle=owner.settle)  # type: ignore[arg-type]
    assert scope.cancelled_caught
    assert [outcome.state for outcome in owner.settled] == [NodeState.INTERRUPTED]


async def test_an_end_that_cannot_be_committed_in_time_is_left(
    autojump_clock: trio.testing.MockClock, logs: Logs
) -> None:
    logs.expect("not committed in time")
    owner = Owner()

    async def work() -> Outcome:
        return Outcome(NodeState.DONE)

    async def settle(outcome: Outcome) -> None:
        await trio.sleep_forever()

    await owner.tree.supervise(owner.child, work, settle=settle)
    assert owner.tree.get(owner.child.id) is None


@pytest.mark.spec("P5", "P6")
async def test_a_place_is_taken_from_registration_to_the_end() -> None:
    tree = Tree()
    parent = tree.add(NodeKind.CHANNEL, "parent")
    one = tree.add(NodeKind.WORKER, "one", parent=parent, limit=1)
    tree.add(NodeKind.BRANCH, "another kind", parent=parent, limit=1)
    with pytest.raises(LimitReachedError) as caught:
        tree.add(NodeKind.WORKER, "two", parent=parent, limit=1)
    assert caught.value.limit == 1
    tree.remove(one)
    tree.add(NodeKind.WORKER, "two", parent=parent, limit=1)


@pytest.mark.spec("P61")
async def test_a_stale_node_does_not_remove_a_newer_one() -> None:
    tree = Tree()
    old = tree.add(NodeKind.CHANNEL, "old", node_id="c")
    with pytest.raises(ValueError, match="registered already"):
        tree.add(NodeKind.CHANNEL, "too early", node_id="c")
    tree.remove(old)
    new = tree.add(NodeKind.CHANNEL, "new", node_id="c")
    tree.remove(old)
    assert tree.get("c") is new


async def test_observers_see_parents_before_children() -> None:
    owner = Owner()
    owner.child.progress("counting")
    owner.child.model_calls = 3
    first, second = owner.tree.view()
    assert (first.id, second.parent_id, second.status, second.model_calls) == ("parent", "parent", "counting", 3)
    assert (second.agent_id, second.channel_id) == ("main", "c")
    assert owner.tree.cancel(owner.child.id, "enough")
    assert not owner.tree.cancel("nobody", "enough")


def test_an_outcome_is_an_end() -> None:
    with pytest.raises(ValueError, match="not a terminal state"):
        Outcome(NodeState.WAITING)


def test_errors_of_ours_speak_others_are_named() -> None:
    assert describe(ToolError("try again")) == "try again"
    assert "KeyError" in describe(ExceptionGroup("x", [KeyError("secret path")]))
    assert "secret path" not in describe(KeyError("secret path"))


def test_nodes_inherit_who_they_belong_to() -> None:
    async def main() -> Node:
        owner = Owner()
        return owner.tree.add(NodeKind.BRANCH, "x", parent=owner.child)

    node = trio.run(main)
    assert (node.agent_id, node.channel_id) == ("main", "c")
