"""The loop guard: how patient it is with each kind of process, and what it takes for looking or waiting."""

import json
from typing import Any

import pytest

from spacebot.agent.guard import LIMITS, LoopGuard
from spacebot.llm.messages import ProcessKind, ToolCall

WORKER, BRANCH, CHANNEL = ProcessKind.WORKER, ProcessKind.BRANCH, ProcessKind.CHANNEL
SNAPSHOT = ("browser", {"action": "snapshot"})
CLICK = ("browser", {"action": "act", "act_kind": "click", "element_ref": "e3"})


class Played:
    """A process that calls tools; `blocked` has the numbers of its calls that were not run."""

    def __init__(self, kind: ProcessKind) -> None:
        self.guard = LoopGuard(kind)
        self.blocked: list[int] = []
        self.warned: list[int] = []
        self.count = 0

    def call(self, name: str, arguments: dict[str, Any], result: str | None = None) -> str | None:
        """One call; without a result of its own each gives another."""
        self.count += 1
        call = ToolCall(f"c{self.count}", name, arguments, json.dumps(arguments))
        if (refusal := self.guard.before(call)) is not None:
            self.blocked.append(self.count)
            return refusal
        given = f"result {self.count}" if result is None else result
        if self.guard.after(call, given) != given:
            self.warned.append(self.count)
        return None


@pytest.mark.parametrize(
    ("kind", "warned", "blocked"), [(WORKER, 4, 7), (BRANCH, 3, 5), (ProcessKind.CORTEX, 3, 5), (CHANNEL, 2, 4)]
)
def test_the_same_call_in_a_row_is_warned_of_then_stopped(kind: ProcessKind, warned: int, blocked: int) -> None:
    played = Played(kind)
    for _ in range(blocked + 1):
        played.call("shell", {"command": "make"})
    assert played.warned == list(range(warned, blocked))
    assert played.blocked == [blocked, blocked + 1]
    assert played.call("shell", {"command": "make -k"}) is None
    assert played.call("shell", {"command": "make"}) is None, "another call in between starts the count anew"


@pytest.mark.parametrize(("kind", "blocked"), [(WORKER, 21), (BRANCH, 10), (CHANNEL, 8)])
def test_waiting_for_something_may_take_longer(kind: ProcessKind, blocked: int) -> None:
    played = Played(kind)
    for _ in range(blocked):
        played.call("shell", {"command": "kubectl get pods"})
    assert played.blocked == [blocked]
    long = Played(kind)
    for _ in range(blocked):
        long.call("shell", {"command": "wait; " + "echo on; " * 40})
    assert long.blocked[0] < blocked


@pytest.mark.parametrize(("kind", "stopped"), [(WORKER, 5), (BRANCH, 4), (CHANNEL, 4)])
def test_the_same_call_with_the_same_result_is_stopped_sooner_and_stays_so(kind: ProcessKind, stopped: int) -> None:
    played = Played(kind)
    for _ in range(stopped):
        played.call("shell", {"command": "make"}, "Error 2")
    assert played.blocked == [stopped]
    assert played.call("file", {"operation": "list"}) is None
    assert played.call("shell", {"command": "make"}, "Error 2") is not None


def test_fifty_same_snapshots_between_clicks_pass_and_eight_same_commands_do_not() -> None:
    played = Played(WORKER)
    for _ in range(50):
        assert played.call(*SNAPSHOT, "the same page") is None
        assert played.call(*CLICK) is None
    assert played.warned == []
    for number in range(8):
        played.call("shell", {"command": "make"}, f"{number}")
    assert len(played.blocked) == 2
    assert played.blocked[-1] == played.count


def test_a_page_that_does_not_change_is_not_stared_at_and_may_be_looked_at_after_something_was_done() -> None:
    played = Played(WORKER)
    for _ in range(13):
        played.call(*SNAPSHOT, "the same page")
    assert played.blocked == [13]
    assert played.call(*CLICK) is None
    assert played.call(*SNAPSHOT, "the same page") is None


@pytest.mark.parametrize(("kind", "repeats"), [(WORKER, 4), (BRANCH, 3)])
@pytest.mark.parametrize("length", [2, 3])
def test_calls_in_a_circle_are_stopped(kind: ProcessKind, repeats: int, length: int) -> None:
    played = Played(kind)
    for _ in range(repeats):
        for place in range(length):
            played.call("file", {"operation": "read", "path": f"{place}"})
    assert played.blocked == [repeats * length]
    assert (played.warned == []) == (kind is BRANCH)


def test_two_looks_in_turn_are_a_circle_too() -> None:
    played = Played(WORKER)
    for _ in range(4):
        played.call(*SNAPSHOT)
        played.call("browser", {"action": "tabs"})
    assert played.blocked == [8]


def test_every_kind_of_process_is_guarded() -> None:
    assert set(LIMITS) == set(ProcessKind)
