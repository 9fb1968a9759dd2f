"""Skills over HTTP, with a whole agent behind it and a stand-in for repositories and registry."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from spacebot.api.server import serve_api
from spacebot.base.events import EventKind
from spacebot.config.model import ApiConfig
from spacebot.tools.skill_sources import GITHUB_VARIABLE, REGISTRY_VARIABLE
from tests.api.serving import UNREAD
from tests.api.test_ingestion_routes import Program
from tests.fakes.opened import Opened, open_test_agent
from tests.fakes.scripted_model import ScriptedModel
from tests.stand_ins.skill_hub import Hub, archive, open_hub, skill_text

pytestmark = pytest.mark.filterwarnings(UNREAD)


@asynccontextmanager
async def serving(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Opened, Hub, httpx2.AsyncClient]]:
    stop = trio.Event()
    async with open_hub() as hub, open_test_agent(folder, ScriptedModel()) as opened, trio.open_nursery() as nursery:
        assert hub.server is not None
        monkeypatch.setenv(GITHUB_VARIABLE, hub.server.url)
        monkeypatch.setenv(REGISTRY_VARIABLE, hub.server.url)
        serve = partial(
            serve_api, Program(opened.agent), ApiConfig(port=0), events=opened.events, tree=opened.tree, run_id="r",
            stop=stop,
        )  # fmt: skip
        (url,) = await nursery.start(serve)
        async with httpx2.AsyncClient(base_url=url, timeout=10.0) as client:
            yield opened, hub, client
        stop.set()


@pytest.mark.spec("C-71")
async def test_installed_listed_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, monkeypatch) as (opened, hub, client):
        hub.repositories["me/mine"] = archive({"pdf/SKILL.md": skill_text(), "maps/SKILL.md": skill_text("maps")})

        async def install(**body: Any) -> httpx2.Response:
            return await client.post("/api/agents/skills/install", json=body)

        async def remove(**body: Any) -> httpx2.Response:
            return await client.request("DELETE", "/api/agents/skills/remove", json=body)

        async def listed() -> list[dict[str, Any]]:
            skills: list[dict[str, Any]] = (await client.get("/api/agents/skills?agent_id=main")).json()["skills"]
            return skills

        assert await listed() == []
        done = await install(spec="me/mine/pdf", agent_id="main")
        assert (done.status_code, done.json()) == (200, {"installed": ["pdf"]})
        (event,) = await opened.events_of(EventKind.CONFIG_RELOADED, 1)
        assert event.fields["what"] == "skills"
        assert (await install(spec="me/mine/maps", instance=True)).json() == {"installed": ["maps"]}
        folder = opened.folder / "agents/main/workspace/skills/pdf"
        maps, pdf = await listed()
        assert {
            key: pdf[key] for key in ("name", "description", "file_path", "base_dir", "source", "from", "state")
        } == {
            "name": "pdf",
            "description": "Works with PDF files.",
            "file_path": str(folder / "SKILL.md"),
            "base_dir": str(folder),
            "source": "workspace",
            "from": "me/mine/pdf",
            "state": "installed",
        }
        assert (maps["source"], maps["base_dir"]) == ("instance", str(opened.folder / "skills/maps"))
        refused = await remove(agent_id="main", name="maps")
        assert (refused.status_code, (opened.folder / "skills/maps").is_dir()) == (403, True)
        assert (await remove(name="maps", instance=True)).json()["success"]
        gone = await remove(agent_id="main", name="PDF")
        assert gone.json() == {"success": True, "path": str(folder)}
        assert not folder.exists()
        assert (await remove(name="pdf")).status_code == 404
        assert await listed() == []


@pytest.mark.spec("C-71")
async def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, monkeypatch) as (opened, hub, client):
        hub.repositories["me/evil"] = archive({"pdf/SKILL.md": "no header"})
        hub.repositories["me/mine"] = archive({"pdf/SKILL.md": skill_text()})
        (tmp_path / "local").mkdir()
        (tmp_path / "local/SKILL.md").write_text(skill_text())
        for spec, status in (
            ("me/evil", 400),
            ("me/none", 404),
            ("me/mine/none", 404),
            ("somewhere", 400),
            (str(tmp_path / "local"), 400),
            ("../local", 400),
        ):
            answer = await client.post("/api/agents/skills/install", json={"spec": spec})
            assert (answer.status_code, spec) == (status, spec)
            assert answer.json()["error"]
        assert (await client.post("/api/agents/skills/install", json={"spec": 1})).status_code == 422
        answer = await client.post("/api/agents/skills/install", json={"spec": "me/mine", "agent_id": "nobody"})
        assert answer.status_code == 404
        assert list((opened.folder / "agents/main/workspace/skills").iterdir()) == []


async def test_the_registry_is_asked_for_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, monkeypatch) as (_, hub, client):
        hub.listed = [{"source": "me/mine", "skillId": "pdf", "name": "pdf", "installs": 7}]
        found = await client.get("/api/skills/registry/search?q=pdf&limit=500")
        assert found.json() == {"skills": hub.listed, "query": "pdf", "count": 1}
        page = await client.get("/api/skills/registry/browse?view=hot&page=0")
        assert page.json() == {"skills": hub.listed, "has_more": True}
        assert hub.asked == ["/api/search?q=pdf&limit=100", "/api/skills/hot/0"]
        assert (await client.get("/api/skills/registry/search?q=x")).status_code == 400
        assert (await client.get("/api/skills/registry/search")).status_code == 400
        hub.status = 500
        assert (await client.get("/api/skills/registry/browse")).status_code == 502
        assert (await client.get("/api/skills/registry/search?q=pdf")).status_code == 502
