"""The drop folder over HTTP, with a whole agent behind it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import trio

from spacebot.agent.agent import Agent
from spacebot.agent.updates import UpdateState
from spacebot.api.server import serve_api
from spacebot.api.tally import HttpFigures
from spacebot.base.errors import NotFoundError, SpacebotError
from spacebot.base.ids import AgentId
from spacebot.config.model import ApiConfig, Config
from tests.agent.test_documents import make_pdf
from tests.api.serving import UNREAD
from tests.fakes.opened import Opened, open_test_agent
from tests.fakes.scripted_model import Gate, Say, ScriptedModel

pytestmark = pytest.mark.filterwarnings(UNREAD)
MIB = 1024 * 1024


class Program:
    """As much of the program as the server asks for."""

    sandbox = "not tried"
    config = Config()
    warnings: tuple[str, ...] = ()
    messaging = SimpleNamespace(states=list)
    updates = SimpleNamespace(state=UpdateState())
    http = HttpFigures()
    roster = SimpleNamespace(views=list)
    models = SimpleNamespace(credentials=None)

    def __init__(self, agent: Agent) -> None:
        self.agents: Mapping[AgentId, Agent] = {agent.id: agent}
        self.default_agent_id = agent.id

    async def reload_prompts(self) -> list[str]:
        return []

    def why_absent(self, agent_id: str) -> SpacebotError:
        return NotFoundError(f"there is no agent {agent_id!r}")

    def note_visitor(self) -> None:
        pass

    def request_stop(self, *, restart: bool = False) -> None:
        pass


class Caller:
    def __init__(self, opened: Opened, client: httpx2.AsyncClient) -> None:
        self.opened = opened
        self.client = client
        self.folder = opened.folder / "agents" / "main" / "workspace" / "ingest"

    async def upload(self, *files: tuple[str, bytes], **params: str) -> httpx2.Response:
        parts = [("files", file) for file in files]
        return await self.client.post("/api/agents/ingest/upload", params=params, files=parts)

    async def files(self) -> list[dict[str, Any]]:
        response = await self.client.get("/api/agents/ingest/files")
        assert response.status_code == 200
        listed: list[dict[str, Any]] = response.json()["files"]
        return listed

    async def remove(self, content_hash: str) -> httpx2.Response:
        return await self.client.delete("/api/agents/ingest/files", params={"content_hash": content_hash})

    async def until(self, filename: str, status: str) -> None:
        await self.opened.until(lambda e: e.fields.get("filename") == filename and e.fields.get("status") == status)

    def here(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@asynccontextmanager
async def open_caller(
    folder: Path, branch: Any = lambda request: Say("read"), **ingestion: Any
) -> AsyncIterator[Caller]:
    stop = trio.Event()
    settings = {"ingestion": ingestion, "routing": {"branch": "scripted/model"}}
    async with (
        open_test_agent(folder, ScriptedModel(branch=branch), **settings) as opened,
        trio.open_nursery() as nursery,
    ):
        serve = partial(
            serve_api,
            Program(opened.agent),
            ApiConfig(port=0),
            events=opened.events,
            tree=opened.tree,
            run_id="run-1",
            stop=stop,
        )
        (url,) = await nursery.start(serve)
        async with httpx2.AsyncClient(base_url=url, timeout=10.0) as client:
            yield Caller(opened, client)
        stop.set()


async def test_an_upload_is_kept_read_and_listed(tmp_path: Path) -> None:
    async with open_caller(tmp_path) as caller:
        answer = await caller.upload(("notes.md", b"Ann likes tea"), ("plan.pdf", make_pdf("Bob likes milk")))
        assert (answer.status_code, answer.json()) == (200, {"uploaded": ["notes.md", "plan.pdf"]})
        await caller.until("plan.pdf", "completed")
        newest, oldest = await caller.files()
        assert (oldest["filename"], oldest["status"], oldest["total_chunks"], oldest["chunks_completed"]) == (
            "notes.md", "completed", 1, 1,
        )  # fmt: skip
        assert (newest["filename"], newest["status"], newest["attempts"]) == ("plan.pdf", "completed", 0)
        assert caller.here() == []


async def test_a_text_is_listed_at_once_also_while_ingestion_is_off(tmp_path: Path) -> None:
    async with open_caller(tmp_path, enabled=False) as caller:
        await caller.upload(("notes.md", b"Ann likes tea"), agent_id="main")
        (row,) = await caller.files()
        assert (row["status"], row["filename"], row["file_size"]) == ("queued", "notes.md", 13)
        state = (await caller.client.get("/api/agents/ingest/files")).json()["state"]
        assert state["status"] == "disabled"
        assert state["folder"] == str(caller.folder)


async def test_names_are_made_harmless_and_never_clash(tmp_path: Path) -> None:
    sent = ["../../escape.txt", "C:\\temp\\win.txt", ".hidden.md", "a.txt", "a.txt", "x" * 300 + ".md", "b\u202etxt.md",
            "c.reason.txt", "dir/"]  # fmt: skip
    async with open_caller(tmp_path, enabled=False) as caller:
        answer = await caller.upload(*((name, f"text {n}".encode()) for n, name in enumerate(sent)))
        names = answer.json()["uploaded"]
        assert names[:4] == ["escape.txt", "win.txt", "hidden.md", "a.txt"]
        stem, ending = names[4].split(".")
        assert (stem[:2], len(stem), ending) == ("a-", 10, "txt")
        assert (len(names[5]), names[5][-3:]) == (200, ".md")
        assert names[6:] == ["btxt.md", "c-reason.txt", "document"]
        assert caller.here() == sorted(names)
        assert [(caller.folder / name).read_text() for name in names] == [f"text {n}" for n in range(len(sent))]


@pytest.mark.parametrize(
    ("files", "status", "words"),
    [
        ([("tool.exe", b"MZ")], 400, "kind that cannot be read"),
        ([("good.txt", b"good"), ("bad.txt", b"\0\0\0\0\0")], 400, "binary data"),
        ([("empty.txt", b"")], 400, "no file"),
        ([], 415, "multipart"),
        ([("big.txt", b"x" * (10 * MIB + 65537))], 413, "larger than 10 MiB"),
        ([("a.txt", b"x" * (6 * MIB)), ("b.txt", b"x" * (6 * MIB))], 413, "larger than 10 MiB"),
    ],
)
@pytest.mark.spec("M-P39")
async def test_what_cannot_be_read_is_refused_and_nothing_is_kept(
    files: list[tuple[str, bytes]], status: int, words: str, tmp_path: Path
) -> None:
    async with open_caller(tmp_path, enabled=False) as caller:
        answer = await caller.upload(*files)
        assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text
        assert (caller.here(), await caller.files()) == ([], [])


async def test_empty_parts_are_skipped_and_ten_mebibytes_are_taken(tmp_path: Path) -> None:
    async with open_caller(tmp_path, enabled=False) as caller:
        answer = await caller.upload(("empty.txt", b""), ("full.txt", b"words \n" * (10 * MIB // 7)))
        assert answer.json() == {"uploaded": ["full.txt"]}


async def test_a_body_that_is_no_form_is_refused(tmp_path: Path) -> None:
    async with open_caller(tmp_path) as caller:
        for content_type in ("multipart/form-data", "multipart/form-data; boundary=x"):
            answer = await caller.client.post(
                "/api/agents/ingest/upload", content=b"--y\r\nno", headers={"content-type": content_type}
            )
            assert answer.status_code == 400
            assert answer.json()["error"]


async def test_a_document_can_be_removed_but_not_while_it_is_read(tmp_path: Path) -> None:
    gate = trio.Event()
    waiting = Gate(gate, Say("read"))
    async with open_caller(tmp_path, [waiting]) as caller:
        await caller.upload(("notes.md", b"Ann likes tea"))
        await waiting.arrived.wait()
        (row,) = await caller.files()
        refused = await caller.remove(row["content_hash"])
        assert (refused.status_code, "being read" in refused.json()["error"]) == (400, True)
        gate.set()
        await caller.until("notes.md", "completed")
        assert (await caller.remove(row["content_hash"])).json() == {"success": True}
        assert await caller.files() == []
        assert (await caller.remove(row["content_hash"])).status_code == 404
        assert (await caller.client.delete("/api/agents/ingest/files")).status_code == 400


async def test_a_waiting_document_is_removed_with_its_file(tmp_path: Path) -> None:
    async with open_caller(tmp_path, enabled=False) as caller:
        await caller.upload(("notes.md", b"Ann likes tea"))
        (row,) = await caller.files()
        await caller.remove(row["content_hash"])
        assert (caller.here(), await caller.files()) == ([], [])


async def test_foreign_pages_and_unknown_agents_are_refused(tmp_path: Path) -> None:
    async with open_caller(tmp_path) as caller:
        answer = await caller.client.post(
            "/api/agents/ingest/upload", files={"f": ("a.txt", b"x")}, headers={"origin": "https://evil.example"}
        )
        assert answer.status_code == 403
        assert (await caller.upload(("a.txt", b"x"), agent_id="nobody")).status_code == 404
        assert caller.here() == []
