"""Agents that come, go, fail and pause while the others go on: by the file, as in the running program."""

import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked, wait_all_threads_completed

from spacebot.agent.agent import Agent
from spacebot.agent.opening import open_agent
from spacebot.agent.parts import AgentModel
from spacebot.agent.roster import AgentState, Roster, open_roster
from spacebot.agent.router import Router
from spacebot.base.clock import Clock
from spacebot.base.errors import BusyError, NotFoundError, RefusedError, StorageError
from spacebot.base.events import EventBus, EventKind, ProcessEvent
from spacebot.base.fetch import open_fetcher
from spacebot.base.ids import AgentId, ConversationId
from spacebot.base.paths import InstancePaths
from spacebot.base.supervise import BackOff
from spacebot.base.tree import NodeKind, Tree
from spacebot.config.edit import ConfigEditor
from spacebot.config.model import AgentConfig
from spacebot.config.store import ConfigStore
from spacebot.conversations.records import Fate, LedgerState
from spacebot.llm.messages import ModelRequest, ProcessKind, last_user_text
from spacebot.messaging.adapter import Receipt
from spacebot.tools.sandbox import Backend
from tests.conftest import Logs
from tests.fakes.fake_embedder import FakeEmbedder
from tests.fakes.opened import DIRECT, LLM, NO_SANDBOX, NO_TABLE, open_test_agent, text_from
from tests.fakes.scripted_model import Call, Gate, ScriptedModel

SOON = BackOff(first_s=1.0, longest_s=8.0, permanent_s=8.0)


class Town:
    """Several agents as the program keeps them, each with a model of its own."""

    def __init__(self, folder: Path, store: ConfigStore, models: Mapping[str, Any]) -> None:
        self.folder = folder
        self.store = store
        self.models = models
        self.editor = ConfigEditor(folder / "config.toml")
        self.tree, self.events = Tree(), EventBus()
        self.roster: Roster
        self.happened: list[ProcessEvent] = []
        self._more = trio.Event()

    def for_agent(self, settings: Callable[[], AgentConfig]) -> AgentModel:
        model: AgentModel = self.models[settings().id]
        return model

    def agent(self, agent_id: str) -> Agent:
        return self.roster.live[AgentId(agent_id)]

    def states(self) -> dict[str, AgentState]:
        return {view.id: view.state for view in self.roster.views()}

    async def take_over(self) -> None:
        """What the watcher does when the file changed."""
        assert self.store.reload().error is None
        await self.roster.settled()

    async def write(self, text: str) -> None:
        (self.folder / "config.toml").write_text(text)
        await self.take_over()

    async def answer(self, agent_id: str, text: str, **fields: Any) -> Fate:
        """Say something; returns what became of it once its turn has ended."""
        accepted = await self.agent(agent_id).accept(text_from("Ann", text, **fields))
        return await self.fate(agent_id, accepted.message_id)

    async def fate(self, agent_id: str, message_id: str) -> Fate:
        while True:
            more = self._more = trio.Event()  # before the look: what happens meanwhile must not be missed
            fate = await self.agent(agent_id).conversations.fate(message_id)
            if fate is not None and fate.state not in (LedgerState.ACCEPTED, LedgerState.IN_TURN):
                await wait_all_tasks_blocked()  # so that `happened` has it too
                return fate
            await more.wait()

    async def record(self) -> None:
        with self.events.subscribe(buffer=10_000) as events:
            async for event in events:
                self.happened.append(event)
                self._more.set()

    async def quiet(self) -> None:
        """Wait until nothing moves any more: all writes done, all tasks waiting."""
        for _ in range(5):
            for agent in self.roster.live.values():
                await agent.usage.log.record([])
            await wait_all_threads_completed()
            await wait_all_tasks_blocked()

    def nodes_of(self, agent_id: str) -> list[str]:
        return [view.id for view in self.tree.view() if view.agent_id == agent_id]


@asynccontextmanager
async def open_town(folder: Path, text: str, **models: Any) -> AsyncIterator[Town]:
    """Open all agents of a configuration."""
    instance = InstancePaths(folder, folder / "config.toml")
    instance.create()
    instance.config.write_text(text)
    town = Town(folder, ConfigStore.open(instance.config), models)
    parent = town.tree.add(NodeKind.DAEMON, "test", node_id="daemon")

    async def probe() -> Backend:
        return NO_SANDBOX

    with trio.fail_after(30):
        async with (
            open_fetcher() as fetcher,
            trio.open_nursery() as nursery,
            open_roster(
                lambda: town.store.current.agents,
                lambda settings: open_agent(
                    settings,
                    llm=lambda: LLM,
                    instance=instance,
                    models=town,
                    embedder=FakeEmbedder(),
                    probe=probe,
                    tree=town.tree,
                    parent=parent,
                    events=town.events,
                    clock=Clock(),
                    fetcher=fetcher,
                    index=NO_TABLE,
                ),
                events=town.events,
                clock=Clock(),
                back_off=SOON,
            ) as roster,
        ):
            town.roster = roster
            town.store.listen(lambda report: roster.reconcile())
            nursery.start_soon(town.record)
            await roster.settled()
            yield town
            nursery.cancel_scope.cancel()


def talker(name: str) -> ScriptedModel:
    return ScriptedModel(lambda request: Call("reply", content=f"{name}: {last_user_text(request.messages)[-5:]}"))


def named(*ids: str) -> str:
    return "".join(f'[[agents]]\nid = "{agent_id}"\n' for agent_id in ids)


def said(fate: Fate) -> list[str]:
    return [reply.content for reply in fate.replies]


async def test_agents_come_and_go_with_the_file_and_the_others_notice_nothing(tmp_path: Path) -> None:
    async with open_town(tmp_path, named("ann"), ann=talker("ann"), bob=talker("bob")) as town:
        ann = town.agent("ann")
        await town.write(named("bob", "ann"))
        assert list(town.roster.live) == ["bob", "ann"], "in the order of the file"
        assert said(await town.answer("bob", "hello"))[0].startswith("bob:")
        await town.write(named("ann"))
        assert town.states() == {"ann": AgentState.RUNNING}
        assert town.agent("ann") is ann
        assert town.nodes_of("bob") == [], "nothing of it is left"
        assert (tmp_path / "agents" / "bob" / "data" / "spacebot.db").exists(), "its files stay"
        assert isinstance(town.roster.why_absent("bob"), NotFoundError)
        await town.write(named("ann", "bob"))
        rows = await town.agent("bob").conversations.recent(ConversationId(DIRECT), 5)
        assert rows[0].content == "hello", "it comes back with its past"


@pytest.mark.spec("P50")
async def test_an_agent_that_leaves_may_finish_its_sentence_and_its_work_is_settled(tmp_path: Path) -> None:
    gate, never = Gate(trio.Event(), Call("reply", content="my last words")), Gate(trio.Event())
    bob = ScriptedModel(Call("spawn_worker", task="dig"), Call("reply", content="it digs"), gate, worker=[never])
    async with open_town(tmp_path, named("ann", "bob"), ann=talker("ann"), bob=bob) as town:
        await town.answer("bob", "dig")
        await never.arrived.wait()
        agent = town.agent("bob")
        last = await agent.accept(text_from("Ann", "bye"))
        await gate.arrived.wait()
        (tmp_path / "config.toml").write_text(named("ann"))
        town.store.reload()
        while "bob" in town.roster.live:
            await trio.lowlevel.checkpoint()
        assert town.states()["bob"] is AgentState.STOPPING
        with pytest.raises(NotFoundError):
            await town.roster.wait_live(AgentId("nobody"))
        gate.event.set()
        await town.roster.settled()
        assert town.nodes_of("bob") == []
        with sqlite3.connect(tmp_path / "agents" / "bob" / "data" / "spacebot.db") as file:
            (answer,) = file.execute("SELECT content FROM conversation_messages WHERE reply_to = ?", (last.message_id,))
            (state,) = file.execute("SELECT state FROM worker_runs")
        file.close()
        assert answer == ("my last words",)
        assert state == ("interrupted",), "no run is shown as running that is not"


async def test_what_arrives_while_an_agent_closes_waits_on_disk(tmp_path: Path) -> None:
    """Somebody found the agent just before it left; the message is kept and answered by its next life."""
    silent = talker("ann")
    async with open_test_agent(tmp_path, silent) as opened:
        await opened.agent.drain(0)
        accepted = await opened.agent.accept(text_from("Ann", "anybody there?"))
        assert not list(opened.tree.of_kind(NodeKind.CHANNEL))
        fate = await opened.agent.conversations.fate(accepted.message_id)
        assert fate is not None
        assert fate.state is LedgerState.ACCEPTED
    async with open_test_agent(tmp_path, talker("ann")) as opened:
        await opened.said(1)
        assert (await opened.fate(accepted)).state is LedgerState.ANSWERED


async def test_another_workspace_closes_and_opens_the_agent(tmp_path: Path) -> None:
    async with open_town(tmp_path, named("ann"), ann=talker("ann")) as town:
        await town.answer("ann", "hello")
        before = town.agent("ann")
        await town.write(f'[[agents]]\nid = "ann"\nworkspace = "{tmp_path / "elsewhere"}"\n')
        assert town.agent("ann") is not before
        assert (tmp_path / "elsewhere" / "skills").is_dir()
        assert said(await town.answer("ann", "again"))
        rows = await town.agent("ann").conversations.recent(ConversationId(DIRECT), 9)
        assert [row.content for row in rows if row.role == "user"] == ["hello", "again"]


async def test_one_that_cannot_be_opened_is_shown_with_its_reason_and_harms_nobody(tmp_path: Path) -> None:
    data = tmp_path / "agents" / "bob" / "data"
    data.mkdir(parents=True)
    (data / "spacebot.db").write_bytes(b"this is no database" * 100)
    file = tmp_path / "a-file"
    file.write_text("in the way")
    text = named("bob", "ann") + f'[[agents]]\nid = "cid"\nworkspace = "{file / "below"}"\n'
    async with open_town(tmp_path, text, ann=talker("ann"), bob=talker("bob"), cid=talker("cid")) as town:
        bob, ann, cid = town.roster.views()
        assert (bob.state, ann.state, cid.state) == (AgentState.FAILED, AgentState.RUNNING, AgentState.FAILED)
        assert "not a database" in bob.reason
        assert "a-file" in cid.reason
        assert bob.next_attempt_at is not None
        assert said(await town.answer("ann", "hello"))
        with pytest.raises(BusyError, match="not a database"):
            await town.roster.wait_live(AgentId("bob"))
        (data / "spacebot.db").unlink()
        await town.write(text + "max_turns = 7\n")  # any change of the file is a reason to try again
        assert town.states() == {"bob": AgentState.RUNNING, "ann": AgentState.RUNNING, "cid": AgentState.FAILED}


@pytest.mark.parametrize("place", ["agents/ann", "agents/ann/data", "agents"])
async def test_what_belongs_to_one_agent_is_no_workspace_of_another(tmp_path: Path, place: str) -> None:
    text = named("ann") + f'[[agents]]\nid = "bob"\nworkspace = "{place}"\n'
    async with open_town(tmp_path, text, ann=talker("ann"), bob=talker("bob")) as town:
        assert town.states() == {"ann": AgentState.RUNNING, "bob": AgentState.FAILED}
        assert "name another" in town.roster.views()[1].reason


async def test_one_that_breaks_is_brought_back_with_growing_pauses(
    autojump_clock: MockClock, logs: Logs, tmp_path: Path
) -> None:
    """What breaks is anything below it; the double stands for an agent whose service raised."""
    logs.expect("agent failed")
    opened: list[float] = []

    class Double:
        id = AgentId("ann")
        is_paused = False

        def take_over(self) -> None:
            pass

    @asynccontextmanager
    async def open_double(settings: Callable[[], AgentConfig]) -> AsyncIterator[Any]:
        opened.append(trio.current_time())
        async with trio.open_nursery() as nursery:

            async def break_soon() -> None:
                await trio.sleep(2)
                raise ValueError("a bug")

            if len(opened) < 4:
                nursery.start_soon(break_soon)
            yield Double()

    configs = [AgentConfig(id="ann")]
    async with open_roster(lambda: configs, open_double, events=EventBus(), clock=Clock(), back_off=SOON) as roster:
        await roster.settled()
        assert roster.live
        await trio.sleep(2.5)
        assert not roster.live
        (view,) = roster.views()
        assert (view.state, view.reason) == (
            AgentState.FAILED, "internal error (ValueError); the log has the details",
        )  # fmt: skip
        await trio.sleep(60)
        assert roster.live
        (view,) = roster.views()
        assert (view.state, view.reason) == (AgentState.RUNNING, "")
    pauses = [later - earlier - 2 for earlier, later in pairwise(opened)]
    assert pauses == pytest.approx([1, 2, 4])


async def test_rooms_of_an_agent_that_cannot_run_are_nobody_elses(tmp_path: Path) -> None:
    """The platform keeps the message and tries again, instead of the default agent answering in its place."""
    data = tmp_path / "agents" / "bob" / "data"
    data.mkdir(parents=True)
    (data / "spacebot.db").write_bytes(b"this is no database" * 100)
    text = named("ann", "bob") + (
        '[messaging.telegram]\ntoken = "1:a"\n[[bindings]]\nagent_id = "bob"\nchannel = "telegram"\nchat_id = "7"\n'
    )
    async with open_town(tmp_path, text, ann=talker("ann"), bob=talker("bob")) as town:
        router = Router(
            lambda: town.roster.live, lambda: town.store.current, lambda: AgentId("ann"), find=town.roster.wait_live
        )
        message = text_from("Ann", "hi", conversation="telegram:7", server_id="7", room_ids=("7",), adapter="telegram")
        with pytest.raises(StorageError, match="bob"):
            await router.take(message)
        (data / "spacebot.db").unlink()
        await town.write(text + "[api]\nport = 5739\n")
        assert await router.take(message) is Receipt.ACCEPTED
        assert await town.agent("bob").conversations.recent(ConversationId("telegram:7"), 5)
        assert not await town.agent("ann").conversations.channels()


async def test_a_paused_agent_keeps_what_is_said_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with open_town(tmp_path, named("ann"), ann=talker("ann")) as town:
        await town.roster.pause("ann", is_on=True)
        assert town.states() == {"ann": AgentState.PAUSED}
        accepted = await town.agent("ann").accept(text_from("Ann", "one"))
        fate = await town.agent("ann").conversations.fate(accepted.message_id)
        assert fate is not None
        assert fate.state is LedgerState.ACCEPTED
    model = talker("ann")
    async with open_town(tmp_path, named("ann"), ann=model) as town:
        assert town.states() == {"ann": AgentState.PAUSED}
        second = await town.agent("ann").accept(text_from("Ann", "two"))
        await town.quiet()
        assert model.requests == []
        await town.roster.pause("ann", is_on=False)
        assert said(await town.fate("ann", accepted.message_id)) or said(await town.fate("ann", second.message_id))
        states = [(await town.fate("ann", one.message_id)).state for one in (accepted, second)]
        assert states == [LedgerState.ANSWERED] * 2
        changes = [str(e.fields["state"]) for e in town.happened if e.kind is EventKind.AGENT_STATE]
        assert changes[-1] == "running"


async def test_nothing_begins_while_an_agent_is_paused(clock: MockClock, tmp_path: Path) -> None:
    """No schedule's run, no duty of the cortex, no document; afterwards all of it goes on."""
    model = talker("sunny")
    async with open_test_agent(tmp_path, model) as opened:
        await opened.agent.pause()
        await opened.agent.ingestion.receive([("notes.txt", b"Ann likes tea.\n")])
        await opened.agent.schedules.save({"id": "w", "prompt": "weather", "interval_secs": 600})
        await opened.advance(2000)
        assert model.requests == []
        assert not await opened.agent.schedules.history()
        with pytest.raises(RefusedError, match="paused"):
            await opened.agent.schedules.trigger("w")
        assert opened.agent.ingestion.state().status == "paused"
        await opened.agent.resume()
        await opened.advance(700)
        assert model.requests_of(ProcessKind.CHANNEL)


async def test_a_worker_that_a_restart_stopped_waits_until_its_agent_goes_on(tmp_path: Path) -> None:
    never = Gate(trio.Event())
    busy = ScriptedModel(Call("spawn_worker", task="dig"), Call("reply", content="it digs"), worker=[never])
    async with open_town(tmp_path, named("ann"), ann=busy) as town:
        await town.answer("ann", "dig")
        await never.arrived.wait()
        await town.roster.pause("ann", is_on=True)
        await town.roster.drain()
    done = ScriptedModel(
        lambda request: Call("reply", content="the hole is dug"),
        worker=[Call("set_status", status="dug", kind="outcome")],
    )
    async with open_town(tmp_path, named("ann"), ann=done) as town:
        await town.quiet()
        assert done.requests == []
        assert not list(town.tree.of_kind(NodeKind.WORKER))
        await town.roster.pause("ann", is_on=False)
        while not any(e.kind is EventKind.OUTBOUND_MESSAGE for e in town.happened):
            town._more = trio.Event()
            await town._more.wait()
        assert done.requests_of(ProcessKind.WORKER)


async def test_what_a_pause_held_back_does_not_come_back_for_somebody_who_was_forgotten(tmp_path: Path) -> None:
    never = Gate(trio.Event())
    busy = ScriptedModel(Call("spawn_worker", task="dig"), Call("reply", content="it digs"), worker=[never])
    async with open_town(tmp_path, named("ann"), ann=busy) as town:
        await town.answer("ann", "dig")
        await never.arrived.wait()
        await town.roster.pause("ann", is_on=True)
        await town.roster.drain()
    model = ScriptedModel(worker=[Call("set_status", status="dug", kind="outcome")])
    async with open_town(tmp_path, named("ann"), ann=model) as town:
        await town.agent("ann").forget_person("test:ann", reason="she asked")
        await town.roster.pause("ann", is_on=False)
        await town.quiet()
        assert not list(town.tree.of_kind(NodeKind.WORKER))
        assert model.requests == []


@pytest.mark.spec("C-8")
async def test_two_agents_in_one_conversation_know_nothing_of_each_other(tmp_path: Path) -> None:
    """The same conversation id, the same person: log, memory, prompts, files and events are each agent's own."""
    asked: dict[str, list[ModelRequest]] = {"ann": [], "bob": []}

    def model(name: str) -> ScriptedModel:
        def reply(request: ModelRequest) -> Call:
            asked[name].append(request)
            return Call("reply", content=f"I am {name}")

        return ScriptedModel(reply)

    async with open_town(tmp_path, named("ann", "bob"), ann=model("ann"), bob=model("bob")) as town:
        await town.agent("ann").write_identity({"soul": "You guard the lighthouse."})
        await town.agent("bob").write_identity({"soul": "You guard the bridge."})
        await town.answer("ann", "my word is xyzzy")
        await town.answer("bob", "what is my word?")
        whole = "\n".join(str(part) for request in asked["bob"] for part in (request.system, request.messages))
        assert "xyzzy" not in whole
        assert "lighthouse" not in whole
        assert "bridge" in whole
        rows = await town.agent("bob").conversations.recent(ConversationId(DIRECT), 9)
        assert [row.content for row in rows] == ["what is my word?", "I am bob"]
        assert {view.id for view in town.tree.view() if view.kind == "channel"} == {
            f"channel:ann:{DIRECT}",
            f"channel:bob:{DIRECT}",
        }
        spoken = [(e.agent_id, e.fields["text"]) for e in town.happened if e.kind is EventKind.OUTBOUND_MESSAGE]
        assert spoken == [("ann", "I am ann"), ("bob", "I am bob")]
        found = await town.agent("bob").memory.stats()
        assert found.total == 0
        assert (await town.agent("bob").identity())["soul"] == "You guard the bridge."
        shutil.rmtree(tmp_path / "agents" / "ann" / "workspace")
        assert said(await town.answer("bob", "still there?")) == ["I am bob"]
