"""What one worker sees and another does not: files of direct chats, temporary files, and no way round either."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from spacebot.agent.attachment_parts import private_folder
from spacebot.base.errors import ToolError
from spacebot.base.events import EventKind
from spacebot.base.ids import ConversationId
from spacebot.base.tree import NodeKind, Tree
from spacebot.config.model import SandboxConfig
from spacebot.llm.messages import ProcessKind
from spacebot.messaging.messages import Attachment
from spacebot.tools.files import FileArguments, FileTool
from spacebot.tools.sandbox import Backend, BackendKind, Containment, probe_backend
from spacebot.tools.subprocesses import run_command
from tests.agent.test_rooms import AT_ONCE, House
from tests.fakes.fake_platform import FakeCourier, FakePlatform
from tests.fakes.opened import open_test_agent
from tests.fakes.scripted_model import Call, Calls, ScriptedModel
from tests.stand_ins.serving import Connection, Request, serve

DIARY = "dear diary"


@pytest.fixture(scope="module")
def found() -> Backend:
    return trio.run(probe_backend)


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


@pytest.fixture
def contained(found: Backend) -> Backend:
    if found.kind is not BackendKind.BUBBLEWRAP:
        pytest.skip(f"no usable bubblewrap here: {found.note}")
    return found


class Agent:
    """A workspace in which Ann and Bob have sent a file each, with a view for the worker of either, and of a room."""

    def __init__(self, tmp_path: Path, backend: Backend) -> None:
        root = tmp_path / "inst"
        for folder in ("tools/bin", "agents/main/workspace", "agents/main/data"):
            (root / folder).mkdir(parents=True)
        workspace = root / "agents/main/workspace"
        self.private = workspace / "attachments/_direct"
        self.all = Containment(
            workspace=workspace,
            instance_root=root,
            data_dir=root / "agents/main/data",
            tools_bin=root / "tools/bin",
            private=self.private,
            settings=SandboxConfig,
            backend=backend,
            inherited={"PATH": os.environ["PATH"]},
        )
        self.all.prepare()
        self.views = {}
        for name in ("ann", "bob"):
            (self.private / name).mkdir()
            (self.private / name / "diary").write_text(f"{DIARY} of {name}")
            self.views[name] = self.all.view(f"worker-{name}", opened=[self.private / name])
        (workspace / "attachments/poster").write_text("for everybody")
        self.views["room"] = self.all.view("worker-room", opened=[self.private / "room"])
        self.views["owner"] = self.all.view("console", sees_private=True)

    async def sh(self, name: str, command: str) -> str:
        invocation = await trio.to_thread.run_sync(lambda: self.views[name].wrap(["sh", "-c", command]))
        report = await run_command(invocation, timeout_s=30)
        return report.stdout + report.stderr

    async def file(self, name: str, operation: str, path: str, **rest: object) -> str:
        arguments = FileArguments.model_validate({"operation": operation, "path": path, **rest})
        tool = FileTool(containment=self.views[name])
        try:
            return (await tool.call(arguments, Tree().add(NodeKind.WORKER, "test"))).text
        except ToolError as error:
            return f"refused: {error}"


@pytest.fixture
def agent(tmp_path: Path, contained: Backend) -> Iterator[Agent]:
    agent = Agent(tmp_path, contained)
    yield agent
    for view in agent.views.values():
        view.remove()


async def test_a_worker_sees_the_files_of_its_own_chat_and_of_rooms(agent: Agent) -> None:
    assert await agent.sh("ann", "cat attachments/_direct/*/diary attachments/poster") == f"{DIARY} of annfor everybody"
    assert await agent.sh("room", "ls attachments/_direct attachments") == (
        "attachments:\n_direct\nposter\n\nattachments/_direct:\nroom\n"
    )
    everything = await agent.sh("owner", "cat attachments/_direct/*/diary")
    assert everything == f"{DIARY} of ann{DIARY} of bob"


@pytest.mark.parametrize(
    "command",
    [
        "cat attachments/_direct/ann/diary",
        "ln -s $PWD/attachments/_direct/ann/diary link; cat link",
        "ln attachments/_direct/ann/diary hard; cat hard",
        "mv attachments/_direct moved; cat moved/ann/diary",
        "mv attachments moved; cat moved/_direct/ann/diary",
        "mv attachments/_direct/ann attachments/mine; cat attachments/mine/diary",
        "umount attachments/_direct; cat attachments/_direct/ann/diary",
        "mkdir attachments/_direct/x && mv attachments/_direct/x ../; cat attachments/_direct/ann/diary",
        "cat /proc/1/root$PWD/attachments/_direct/ann/diary /proc/*/cwd/attachments/_direct/ann/diary",
        "grep -rs diary . /tmp /var/tmp; find $PWD /tmp -name diary -exec cat {} +",
        "unshare -rm sh -c 'umount attachments/_direct; cat attachments/_direct/ann/diary'",
    ],
)
async def test_no_command_of_another_chat_reaches_a_file(command: str, agent: Agent) -> None:
    for name in ("bob", "room"):
        said = await agent.sh(name, command)
        assert f"{DIARY} of ann" not in said
    assert (agent.private / "ann/diary").read_text() == f"{DIARY} of ann"


async def test_the_file_tool_of_another_chat_reaches_it_no_more(agent: Agent) -> None:
    await agent.sh("bob", "ln -s $PWD/attachments/_direct/ann inside; ln -s $PWD/attachments/_direct/ann/diary file")
    path = "attachments/_direct/ann/diary"
    for target in (path, str(agent.private / "ann/diary"), "inside/diary", "file", f"./{path}", f"~/{path}"):
        for operation in ("read", "edit", "write", "search", "list"):
            said = await agent.file(
                "bob", operation, target, pattern="diary", old_string=DIARY, new_string="x", content="x"
            )
            assert said.startswith("refused")
            assert DIARY not in said
    assert "direct chat" in await agent.file("bob", "read", path)
    for said in (
        await agent.file("bob", "search", ".", pattern="diary of"),
        await agent.file("bob", "search", ".", glob="diary"),
        await agent.file("bob", "list", "attachments"),
    ):
        assert "ann" not in said
    assert f"{DIARY} of bob" in await agent.file("bob", "search", ".", pattern="diary of")
    assert await agent.file("ann", "read", path) == f"{DIARY} of ann"


async def test_what_comes_while_a_worker_runs_is_hidden_from_it_too(agent: Agent) -> None:
    """A program that lives long sees the folder as it began: nothing of a chat that came later."""
    wait = "while [ ! -e go ]; do sleep 0.02; done; ls attachments/_direct; cat attachments/_direct/*/diary"
    seen: list[str] = []

    async def look() -> None:
        seen.append(await agent.sh("room", f"touch started; {wait}"))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            while not (agent.all.workspace / "started").exists():
                await trio.sleep(0.02)
            (agent.private / "zoe").mkdir()
            (agent.private / "zoe/diary").write_text(f"{DIARY} of zoe")
            (agent.all.workspace / "go").touch()
    assert seen[0].startswith("room\n")
    assert DIARY not in seen[0]


async def test_temporary_files_are_a_workers_own_and_go_with_it(agent: Agent) -> None:
    await agent.sh("ann", "echo secret > /tmp/note; mkdir -p /tmp/locked/in; chmod 0 /tmp/locked/in /tmp/locked")
    assert "secret" not in await agent.sh("bob", "cat /tmp/note /var/tmp/note; ls -A /tmp")
    assert (await agent.file("bob", "read", "/tmp/note")).startswith("refused")
    assert await agent.file("ann", "read", "/tmp/note") == "secret\n"
    temporary = agent.views["ann"].temporary
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
    agent.views["ann"].remove()
    assert not temporary.exists()


async def test_a_tree_too_deep_for_a_recursion_is_removed_too(agent: Agent) -> None:
    deep = "import os\nos.chdir('/tmp')\nfor n in range(1200):\n    os.mkdir('d')\n    os.chdir('d')\n"
    (agent.all.workspace / "deep.py").write_text(deep)
    await agent.sh("ann", "python3 deep.py")
    view = agent.views["ann"]
    assert (view.temporary / "d/d/d").exists()
    view.remove()
    assert not view.temporary.exists()


async def test_a_worker_of_a_room_cannot_have_what_somebody_sent_directly(
    clock: MockClock, tmp_path: Path, contained: Backend
) -> None:
    """The whole way: a file comes in a direct chat, and workers of either conversation look for it."""

    async def answer(request: Request, connection: Connection) -> None:
        await connection.send(DIARY.encode(), content_type="text/plain")

    path = f"attachments/{private_folder('fake:dm:ann')}/diary.txt"
    looking = [
        Call("shell", command="find $PWD/.. /tmp -name 'diary*' -exec cat {} +; echo looked > /tmp/mine; ls /tmp"),
        Call("file", operation="read", path=path),
        Call("file", operation="search", pattern="dear"),
        Call("set_status", kind="outcome", status="looked"),
    ]
    steps = [
        Call("reply", content="I keep it"),
        Calls(Call("spawn_worker", task="find her diary"), Call("reply", content="on it")),
        Calls(Call("spawn_worker", task="read my diary"), Call("reply", content="on it")),
    ]
    model, platform = ScriptedModel(*steps, worker=[*looking, *looking]), FakePlatform()
    courier = FakeCourier(platform)
    async with (
        serve(answer) as server,
        open_test_agent(tmp_path, model, courier=courier, coalesce=AT_ONCE, backend=contained) as opened,
    ):
        house = House(opened, platform, courier)
        mine = {"room": "fake:dm:ann", "is_direct": True}
        diary = Attachment(filename="diary.txt", media_type="text/plain", url=f"{server.url}/d")
        await house.say("Ann", "keep this", attachments=(diary,), **mine)
        await house.platform.went_out(1)
        await house.say("Eve", "find her diary")
        await house.opened.events_of(EventKind.WORKER_COMPLETED, 1)
        await house.say("Ann", "read my diary", **mine)
        await house.opened.events_of(EventKind.WORKER_COMPLETED, 2)

    requests = model.requests_of(ProcessKind.WORKER)
    strangers, own = (str(requests[number].messages) for number in (3, 7))
    assert DIARY not in strangers
    assert "direct chat" in strangers
    assert own.count(DIARY) >= 3
    for said in (strangers, own):
        assert "mine" in said  # each has its own /tmp, which is empty at first
    left = tmp_path / "agents/main/data/tmp"
    assert [folder.name for folder in left.iterdir() if folder.name != "shared"] == []


async def test_a_file_of_a_room_that_became_a_direct_chat_is_put_away(clock: MockClock, tmp_path: Path) -> None:
    """As files are that an earlier version has kept: they lie where every worker looks, until one begins."""

    async def answer(request: Request, connection: Connection) -> None:
        await connection.send(DIARY.encode(), content_type="text/plain")

    model, platform = ScriptedModel(*(Call("reply", content="kept") for _ in range(2))), FakePlatform()
    async with (
        serve(answer) as server,
        open_test_agent(tmp_path, model, courier=FakeCourier(platform), coalesce=AT_ONCE) as opened,
    ):
        house = House(opened, platform, FakeCourier(platform))
        for name, room in (("plan.txt", "fake:both"), ("poster.txt", "fake:room")):
            sent = Attachment(filename=name, media_type="text/plain", url=f"{server.url}/d")
            await house.say("Ann", "here", room=room, attachments=(sent,))
        await house.platform.went_out(2)
        folder = tmp_path / "agents/main/workspace/attachments"
        assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["plan.txt", "poster.txt"]
        await opened.agent.conversations.accept(
            platform.message("Ann", "now just us", room="fake:both", is_direct=True), observe=True
        )
        desk = opened.agent._parts.attachments
        await desk.put_away()
        await desk.put_away()  # nothing is left to do
        assert [path.name for path in folder.iterdir() if path.is_file()] == ["poster.txt"]
        assert (desk.folder_of(ConversationId("fake:both")) / "plan.txt").read_text() == DIARY
        parts = ("attachments", *private_folder("fake:both").split("/"), "plan.txt")
        assert await desk.is_open_to(ConversationId("fake:both"), parts)
        assert not await desk.is_open_to(ConversationId("fake:room"), parts)


async def test_a_link_in_place_of_the_folder_opens_nothing(agent: Agent, tmp_path: Path) -> None:
    """As a command without a sandbox could have left it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "diary").write_text(DIARY)
    attachments = agent.private.parent
    attachments.rename(tmp_path / "away")
    attachments.symlink_to(outside)
    said = await agent.sh("bob", "cat attachments/diary; echo x > attachments/new; echo works")
    assert "works" in said
    assert DIARY not in said
    assert [path.name for path in outside.iterdir()] == ["diary"]
    assert (await agent.file("bob", "read", "attachments/diary")).startswith("refused")
