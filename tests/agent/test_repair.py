"""A history that a stop has cut between a call and its result: what the model gets, and what observers hear."""

from spacebot.agent.engine import Engine
from spacebot.base.events import EventBus, EventKind, ProcessEvent
from spacebot.base.tree import NodeKind, Tree
from spacebot.llm.history import LOST_RESULT
from spacebot.llm.messages import ModelMessage, ProcessKind, Role, ToolCall, ToolResult
from tests.fakes.scripted_model import Say, ScriptedModel

CALL = ModelMessage(Role.ASSISTANT, (ToolCall("c1", "shell", {"command": "ls"}, ""),))
ANSWERED = ModelMessage(Role.USER, (ToolResult("c1", "a.txt"),))


async def heard(*messages: ModelMessage) -> tuple[list[ProcessEvent], ScriptedModel]:
    events, told = EventBus(), list[ProcessEvent]()
    model = ScriptedModel(worker=[Say("done")])
    engine = Engine(
        model=model,
        kind=ProcessKind.WORKER,
        node=Tree().add(NodeKind.WORKER, "count the files", agent_id="main"),
        events=events,
        system=(),
        tools={},
        specs=(),
        window=lambda: 100_000,
        overflow_note="shortened",
    )
    with events.counted(frozenset({EventKind.HISTORY_REPAIRED}), told.append):
        await engine.run([ModelMessage.user("count the files"), *messages], budget=1)
    return told, model


async def test_a_lost_result_is_told_to_the_model_and_to_observers() -> None:
    told, model = await heard(CALL, ModelMessage.user("and now?"))
    assert [result.text for result in model.results_of(ProcessKind.WORKER)] == [LOST_RESULT]
    (event,) = told
    assert (event.agent_id, event.fields["process_type"], event.fields["lost"]) == ("main", "worker", 1)


async def test_a_whole_history_is_nothing_to_tell() -> None:
    told, model = await heard(CALL, ANSWERED)
    assert [result.text for result in model.results_of(ProcessKind.WORKER)] == ["a.txt"]
    assert told == []
