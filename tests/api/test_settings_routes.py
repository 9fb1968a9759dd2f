"""Settings over HTTP: they change the owner's file with its comments, count at once, and show no key."""

import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from spacebot.config.model import AgentSettings
from spacebot.storage.live_secrets import LiveSecrets
from tests.api.serving import UNREAD, Served, open_server

pytestmark = pytest.mark.filterwarnings(UNREAD)
KEY = "plain-key-of-the-owner"
FILE = f"""\
# mine
[llm]
groq_key = "{KEY}"  # do not show
openai_key = 'secret:openai'

[defaults]
max_turns = 7  # enough
[defaults.routing]
channel = "demo/demo"

[[agents]]
id = "main"  # the one
max_turns = 9

[agents.routing]
worker = "demo/w"

[[mcp_servers]]
name = "one"
transport = "http"
url = "http://127.0.0.1:1"
headers = {{ Authorization = "Bearer {KEY}-2" }}
"""


class Page:
    """A server over a configuration file."""

    def __init__(self, served: Served, file: Path) -> None:
        self.served = served
        self.program = served.program
        self.file = file

    async def ask(self, method: str, path: str, code: int = 200, **body: Any) -> dict[str, Any]:
        response = await self.served.client.request(method, f"/api/{path}", json=body if method != "GET" else None)
        assert response.status_code == code, response.text
        assert KEY not in response.text
        answer: dict[str, Any] = response.json()
        return answer

    def tables(self) -> dict[str, Any]:
        return tomllib.loads(self.file.read_text())


@asynccontextmanager
async def page(folder: Path, text: str = FILE) -> AsyncIterator[Page]:
    file = folder / "config.toml"
    file.write_text(text)
    async with open_server(folder, secrets=LiveSecrets.open(folder)) as served:
        yield Page(served, file)


@pytest.mark.spec("control 4.3", "control 5.5")
async def test_an_agents_settings_are_shown_and_changed_in_its_own_table(tmp_path: Path) -> None:
    async with page(tmp_path) as api:
        shown = await api.ask("GET", "agents/config?agent_id=main")
        assert (shown["tuning"]["max_turns"], shown["routing"]["worker"]) == (9, "demo/w")
        assert shown["routing"]["channel_thinking_effort"] == "auto"
        assert shown["sources"]["max_turns"] == "agent main"
        assert shown["sources"]["routing.channel"] == "defaults"
        sections = {*shown} - {"agent_id", "tuning", "routing_profile", "discord", "sources"}
        assert sections | {*shown["tuning"], "routing_profile"} == AgentSettings.model_fields.keys() - {
            "cron", "mcp", "brave_search_key", "brave_search_url",
        }  # fmt: skip

        changed = await api.ask(
            "PUT", "agents/config", agent_id="main", routing_profile="eco", tuning={"max_turns": None},
            routing={
                "channel_thinking_effort": "high",
                "task_overrides": {"coding": "demo/c"},
                "prompt_routing": {"enabled": True, "tiers": {"light": "demo/l"}},
            },
            budget={"daily_usd": 2.5}, discord={},
        )  # fmt: skip
        assert changed["tuning"]["max_turns"] == 7  # null: the level below counts again
        assert changed["requires_restart"] is False
        (agent,) = api.tables()["agents"]
        assert agent == {
            "id": "main",
            "routing_profile": "eco",
            "budget": {"daily_usd": 2.5},
            "routing": {
                "worker": "demo/w", "channel_thinking_effort": "high", "task_overrides": {"coding": "demo/c"},
                "prompt_routing": {"enabled": True, "tiers": {"light": "demo/l"}},
            },
        }  # fmt: skip
        assert "# the one" in api.file.read_text()
        assert "# enough" in api.file.read_text()
        settings = api.program.config.agents[0]
        assert settings.routing.prompt_routing.tiers.light == "demo/l"

        await api.ask("PUT", "agents/config", routing={"fallbacks": {"demo/a": ["demo/b"]}})
        assert api.tables()["agents"][0]["routing"]["fallbacks"] == {"demo/a": ["demo/b"]}
        await api.ask("PUT", "agents/config", routing={"fallbacks": None, "prompt_routing": None})
        assert "fallbacks" not in api.tables()["agents"][0]["routing"]
        assert not api.program.config.agents[0].routing.prompt_routing.enabled


@pytest.mark.spec("control 5.4", "C-78")
@pytest.mark.parametrize(
    ("section", "values", "code", "words"),
    [
        ("tuning", {"max_turns": 51}, 400, "from 1 to 50"),
        ("tuning", {"max_concurrent_workers": 21}, 422, "at most 20"),
        ("coalesce", {"debounce_ms": 99}, 400, "from 100 to 10000"),
        ("cortex", {"bulletin_interval_secs": 59}, 400, "at least 60"),
        ("compaction", {"background_threshold": 0.9}, 422, "must rise"),
        ("routing", {"chanel": "demo/x"}, 404, "did you mean defaults.routing.channel"),
        ("routing", {"channel_thinking_effort": "huge"}, 422, "'auto', 'max'"),
        ("tuning", {"max_turn": 1}, 400, "tuning has no"),
        ("discord", {"token": "x"}, 400, "discord has no"),
    ],
)
async def test_a_wrong_value_changes_nothing_and_says_what_is_allowed(
    tmp_path: Path, section: str, values: dict[str, Any], code: int, words: str
) -> None:
    async with page(tmp_path) as api:
        refused = await api.ask("PUT", "agents/config", code, **{section: values})
        assert words in refused["error"]
        assert api.file.read_text() == FILE


async def test_an_agent_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    async with page(tmp_path) as api:
        await api.ask("GET", "agents/config?agent_id=nobody", 404)
        await api.ask("PUT", "agents/config", 404, agent_id="nobody", tuning={"max_turns": 3})


async def test_settings_of_the_program_and_the_key_of_the_search(tmp_path: Path) -> None:
    async with page(tmp_path) as api:
        assert (await api.ask("GET", "settings"))["brave_search_key"] is None
        saved = await api.ask(
            "PUT", "settings", brave_search_key=f"{KEY}-3", api_port=4321, worker_log_mode="all_separate",
            opencode={"max_servers": 2, "permissions": {"bash": "ask"}},
        )  # fmt: skip
        assert saved["requires_restart"] is True
        assert saved["restart_keys"] == ["api.port"]
        tables = api.tables()
        assert tables["defaults"]["brave_search_key"] == "secret:brave_search_key"
        assert tables["defaults"]["opencode"] == {"max_servers": 2, "permissions": {"bash": "ask"}}
        assert tables["api"] == {"port": 4321}
        assert LiveSecrets.open(tmp_path).resolve("brave_search_key") == f"{KEY}-3"

        await api.ask("PUT", "settings", brave_search_key="********", api_port=None)  # stars mean: as it is
        assert api.tables()["defaults"]["brave_search_key"] == "secret:brave_search_key"
        assert "api" not in api.tables() or api.tables()["api"] == {}
        await api.ask("PUT", "settings", brave_search_key=None)
        assert "brave_search_key" not in api.tables()["defaults"]
        await api.ask("PUT", "settings", 422, api_port=80)
        refused = await api.ask("PUT", "settings", 422, api_bind="0.0.0.0")
        assert "needs api.auth_token" in refused["error"]


@pytest.mark.spec("control 4.2: config/raw", "C-67")
async def test_the_raw_file_hides_its_keys_and_keeps_them(tmp_path: Path) -> None:
    async with page(tmp_path) as api:
        raw = await api.ask("GET", "config/raw")
        assert "secret:openai" in raw["content"]
        assert raw["content"].count("********-") == 2
        text = raw["content"].replace("max_turns = 9", "max_turns = 8").replace("groq_key", "mistral_key")
        await api.ask("PUT", "config/raw", content=text, revision=raw["revision"])
        expected = FILE.replace("max_turns = 9", "max_turns = 8").replace("groq_key", "mistral_key")
        assert api.file.read_text() == expected  # the key moved with its line
        assert (tmp_path / "config.toml.bak").read_text() == FILE
        assert api.program.config.agents[0].max_turns == 8

        late = await api.ask("PUT", "config/raw", 409, content=text, revision=raw["revision"])
        assert "load it again" in late["error"]
        broken = await api.ask("PUT", "config/raw", 422, content="[defaults]\nmax_turns = 'many'\n")
        assert "must be a whole number" in broken["error"]
        stale = await api.ask("PUT", "config/raw", 400, content='[llm]\ngroq_key = "********-0123456789ab"\n')
        assert "mean no secret any more" in stale["error"]
        assert api.file.read_text() == expected


async def test_a_broken_file_is_shown_without_its_keys_and_can_be_mended(tmp_path: Path) -> None:
    async with page(tmp_path) as api:
        api.file.write_text(FILE + "\n[defaults]\nmax_turns = \n")
        raw = await api.ask("GET", "config/raw")
        mended = raw["content"].removesuffix("\n[defaults]\nmax_turns = \n")
        await api.ask("PUT", "config/raw", content=mended)
        assert api.file.read_text() == FILE


async def test_schema_and_explanations_for_the_page(tmp_path: Path) -> None:
    async with page(tmp_path) as api:
        schema = await api.ask("GET", "config/schema")
        jsonschema.validate(api.tables(), schema)
        everything = await api.ask("GET", "config/explain?agent_id=main")
        by_key = {value["key"]: value for value in everything["values"]}
        assert by_key["llm.groq_key"]["value"] == "********"
        assert (by_key["defaults.max_turns"]["value"], by_key["defaults.max_turns"]["source"]) == (9, "agent")
        assert by_key["mcp_servers[1].headers"]["value"] == {"Authorization": "********"}
        assert all(value["description"] for value in everything["values"])
        (one,) = (await api.ask("GET", "config/explain?key=defaults.routing.channel"))["values"]
        assert (one["value"], one["source"]) == ("demo/demo", "defaults")
        assert "did you mean" in (await api.ask("GET", "config/explain?key=max_trns", 404))["error"]
