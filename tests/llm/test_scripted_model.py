"""The in-memory twin keeps the promises of the manager that callers rely on."""

import pytest
import trio

from spacebot.base.errors import ModelUnavailableError
from spacebot.base.tree import NodeKind, Tree
from spacebot.llm.messages import (
    ArgumentsDelta,
    FinishReason,
    ModelMessage,
    ModelRequest,
    ProcessKind,
    Restart,
    StreamDelta,
    TextDelta,
)
from tests.fakes.scripted_model import Again, Call, Calls, Fail, Gate, Say, ScriptedModel
from tests.llm.given import ask


async def test_each_kind_of_process_has_a_script_of_its_own() -> None:
    model = ScriptedModel(Call("branch", description="x"), "hello", branch=[Say("found")])
    assert (await model.complete(ask("a"))).message.tool_calls[0].arguments == {"description": "x"}
    assert (await model.complete(ask("b", process=ProcessKind.BRANCH))).message.text == "found"
    assert (await model.complete(ask("c"))).message.text == "hello"
    assert model.texts_of(ProcessKind.CHANNEL) == ["a", "c"]
    assert model.is_used_up


async def test_a_used_up_script_says_who_asked_for_what() -> None:
    with pytest.raises(AssertionError, match=r"worker script .* ran out at call 1"):
        await ScriptedModel().complete(ask("do it", process=ProcessKind.WORKER))


async def test_answers_are_streamed_and_counted() -> None:
    deltas: list[StreamDelta] = []
    node = Tree().add(NodeKind.WORKER, "work")
    model = ScriptedModel(worker=[Calls(Call("a", x=1), Call("b"), text="first")])
    request = ModelRequest(process=ProcessKind.WORKER, system=(), messages=(ModelMessage.user("go"),), node=node)
    reply = await model.complete(request, deltas.append)
    assert reply.finish_reason is FinishReason.TOOL_CALLS
    assert len({call.id for call in reply.message.tool_calls}) == 2
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == "first"
    assert "".join(d.fragment for d in deltas if isinstance(d, ArgumentsDelta) and d.index == 0) == '{"x": 1}'
    assert (node.model_calls, node.input_tokens, node.output_tokens) == (1, 10, 5)


async def test_failures_come_after_their_words_and_restarts_void_them() -> None:
    deltas: list[StreamDelta] = []
    model = ScriptedModel(Fail(ModelUnavailableError("down", model="m"), after="half"), Again("half", Say("whole")))
    with pytest.raises(ModelUnavailableError):
        await model.complete(ask(), deltas.append)
    assert deltas == [TextDelta("half")]
    await model.complete(ask(), deltas.append)
    assert deltas[1:3] == [TextDelta("half"), Restart()]


async def test_a_gate_holds_the_answer_back() -> None:
    gate = Gate(trio.Event(), Say("at last"))
    model = ScriptedModel(gate)
    answers: list[str] = []

    async def complete() -> None:
        answers.append((await model.complete(ask())).message.text)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(complete)
            await gate.arrived.wait()
            assert answers == []
            gate.event.set()
    assert answers == ["at last"]


async def test_a_function_answers_from_the_request() -> None:
    model = ScriptedModel(lambda request: Say(request.messages[-1].text.upper()), branch=lambda request: "b")
    assert (await model.complete(ask("hey"))).message.text == "HEY"
    assert (await model.complete(ask(process=ProcessKind.BRANCH))).message.text == "b"
    assert (await model.complete(ask(process=ProcessKind.BRANCH))).message.text == "b"
