"""Setting up providers over HTTP: what the file and the secret store hold afterwards, and that no key comes out."""

import stat
import tomllib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from spacebot.base.redaction import scrub
from spacebot.config.load import load_config
from spacebot.config.store import ConfigStore
from spacebot.llm.choice import choose_models
from spacebot.llm.messages import ProcessKind
from spacebot.llm.oauth import TokenFile, Tokens
from spacebot.llm.opening import open_models
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.storage.secrets import SecretStore
from tests.api.serving import Served, open_server
from tests.stand_ins.openai import serve_openai
from tests.stand_ins.serving import Answer, Refusal, Reply

VALUE = "sk-correct-horse-battery-staple"
FILE = """\
# mine
[defaults.routing]
channel = "groq/old"  # for now
voice = "gemini/gemini-2.5-flash"

[[agents]]
id = "main"
[agents.routing]
worker = "groq/older"

[[agents]]
id = "side"
[agents.routing]
channel = "groq/own"
"""


@asynccontextmanager
async def opened(folder: Path, text: str | None = None) -> AsyncIterator[Served]:
    """A server whose every answer is looked through for the key."""
    if text is not None:
        (folder / "config.toml").write_text(text)
    secrets = LiveSecrets.open(folder)
    login = folder / "anthropic_oauth.json"
    async with open_server(folder, secrets=secrets) as served:
        program = served.program
        program.store = ConfigStore.open(folder / "config.toml", resolve_secret=secrets.resolve)
        async with open_models(lambda: program.config.llm, login=login) as models:
            program.models = models

            async def look(response: httpx2.Response) -> None:
                assert VALUE not in (await response.aread()).decode()

            served.client.event_hooks["response"].append(look)
            yield served


def tables(folder: Path) -> Any:
    return tomllib.loads((folder / "config.toml").read_text())


def models_of(served: Served) -> list[str]:
    """The first model of channels and workers as things are now."""
    config = served.program.config
    kinds = (ProcessKind.CHANNEL, ProcessKind.WORKER)
    return [choose_models(kind, None, config.default_agent, config.llm)[0].model for kind in kinds]


async def details(served: Served, name: str) -> Any:
    answer = (await served.client.get("/api/providers")).json()
    return next(one for one in answer["details"] if one["id"] == name)


@pytest.mark.spec("CA-11")
async def test_the_first_key_ends_the_demo_and_stands_in_the_store_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as served:
        before = (await served.client.get("/api/providers")).json()
        assert (before["has_any"], before["needs_setup"], set(before["providers"].values())) == (False, True, {False})
        assert {"zai_coding_plan", "opencode_zen", "anthropic", "ollama"} <= set(before["providers"])
        assert models_of(served) == ["demo/demo", "demo/demo"]

        put = await served.client.put("/api/providers", json={"provider": "openai", "api_key": f" {VALUE} "})
        assert (put.status_code, put.json()["success"]) == (200, True)
        assert models_of(served) == ["openai/gpt-4.1", "openai/gpt-4.1-mini"]
        assert tables(tmp_path)["llm"] == {"openai_key": "secret:OPENAI_API_KEY"}
        assert SecretStore(tmp_path).read()["OPENAI_API_KEY"].value == VALUE
        assert stat.S_IMODE((tmp_path / "config.toml").stat().st_mode) == 0o600
        assert VALUE not in scrub(f"the key is {VALUE}")
        after = (await served.client.get("/api/providers")).json()
        assert (after["needs_setup"], after["providers"]["openai"]) == (False, True)
        shown = await details(served, "openai")
        assert (shown["state"], shown["auth"], shown["key_source"]) == ("ready", "key", "secret")

        gone = await served.client.delete("/api/providers/openai")
        assert gone.json() == {"success": True, "message": "openai is removed"}
        assert models_of(served) == ["demo/demo", "demo/demo"]
        assert SecretStore(tmp_path).list() == []
        assert (await served.client.delete("/api/providers/openai")).status_code == 404
        monkeypatch.setenv("GROQ_API_KEY", VALUE)
        unset = await served.client.delete("/api/providers/groq")
        assert (unset.status_code, "GROQ_API_KEY" in unset.json()["error"]) == (400, True)


async def test_roles_move_to_the_model_and_the_owners_text_stays(tmp_path: Path) -> None:
    async with opened(tmp_path, FILE) as served:
        form = {"provider": "openrouter", "api_key": VALUE, "model": "openrouter/qwen/qwen3-coder"}
        put = await served.client.put("/api/providers", json=form)
        assert "agent 'side' goes on with the models of its own table" in put.json()["message"]
        assert models_of(served) == ["openrouter/qwen/qwen3-coder"] * 2
        text = (tmp_path / "config.toml").read_text()
        assert text.startswith("# mine\n")
        assert 'channel = "openrouter/qwen/qwen3-coder"  # for now' in text
        routing = tables(tmp_path)["defaults"]["routing"]
        assert {routing[role] for role in ("channel", "branch", "worker", "compactor", "cortex")} == {form["model"]}
        agents = tables(tmp_path)["agents"]
        assert [agent["routing"] for agent in agents] == [{"worker": form["model"]}, {"channel": "groq/own"}]

        kept = {"provider": "groq", "api_key": VALUE, "sets_routes": False}
        await served.client.put("/api/providers", json=kept)
        assert tables(tmp_path)["defaults"]["routing"] == routing
        await served.client.delete("/api/providers/openrouter")
        assert tables(tmp_path)["defaults"]["routing"] == {"voice": "gemini/gemini-2.5-flash"}


@pytest.mark.spec("C-3")
@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"provider": "ollama", "api_key": "http://127.0.0.1:9/"}, {"ollama_base_url": "http://127.0.0.1:9/"}),
        ({"provider": "ollama"}, {"ollama_base_url": "http://localhost:11434"}),
        ({"provider": "zai_coding_plan", "api_key": "env:MY_KEY"}, {"zai_coding_plan_key": "env:MY_KEY"}),
        (
            {"provider": "openai", "api_key": "env:MY_KEY", "base_url": "http://127.0.0.1:9"},
            {"provider": {"openai": {"base_url": "http://127.0.0.1:9", "api_key": "env:MY_KEY"}}},
        ),
        (
            {
                "provider": "Mine", "api_key": VALUE, "model": "mine/big", "base_url": "http://127.0.0.1:9",
                "api_type": "openai_completions",
            },
            {"provider": {"mine": {"api_type": "openai_completions", "base_url": "http://127.0.0.1:9",
                                   "api_key": "secret:PROVIDER_MINE_API_KEY"}}},
        ),
    ],
)  # fmt: skip
async def test_each_kind_of_provider_stands_in_the_file_as_the_reader_wants_it(
    form: dict[str, str], expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", VALUE)
    async with opened(tmp_path) as served:
        put = await served.client.put("/api/providers", json=form)
        assert put.status_code == 200, put.text
        assert tables(tmp_path)["llm"] == expected
        assert served.program.warnings == ()
        name = form["provider"].lower().replace("_", "-")
        assert (await details(served, name))["state"] == "ready"
        assert models_of(served)[0].startswith(f"{name}/")


REFUSED = (
    ({"provider": "openai"}, "needs a key"),
    ({"provider": "anthropic"}, "spacebot auth login"),
    ({"provider": "openai", "api_key": VALUE, "model": "groq/x"}, "openai/"),
    ({"provider": "openai", "api_key": VALUE, "model": "gpt-4.1"}, "openai/"),
    ({"provider": "openai", "api_key": "two\nlines"}, "several lines"),
    ({"provider": "openai", "api_key": "a key"}, "no key"),
    ({"provider": "openai", "api_key": "env:NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE"),
    ({"provider": "openai", "api_key": "secret:NOTHING"}, "NOTHING"),
    ({"provider": "demo"}, "no provider"),
    ({"provider": "../x"}, "no provider"),
    ({"provider": "mine", "api_key": VALUE}, "api_type"),
    ({"provider": "mine", "api_type": "demo", "base_url": "http://127.0.0.1:9"}, "api_type"),
    ({"provider": "mine", "api_type": "anthropic", "base_url": "file:///x", "model": "mine/a"}, "http"),
    ({"provider": "ollama", "api_key": "ftp://x"}, "http"),
    ({"provider": "ollama", "api_key": "http://[x"}, "http"),
    ({"provider": "ollama", "base_url": "http://x:99999"}, "http"),
)


async def test_what_cannot_be_is_said_and_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        for form, words in REFUSED:
            for answer in (
                await served.client.put("/api/providers", json=form),
                await served.client.post("/api/providers/test", json=form),
            ):
                assert answer.status_code in (400, 404), answer.text
                assert words in answer.json()["error"], form
        assert not (tmp_path / "config.toml").exists()
        assert SecretStore(tmp_path).list() == []


async def test_a_stored_key_goes_to_no_other_address_than_it_was_given_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        first = {"provider": "openai", "api_key": VALUE, "base_url": "https://one.example.org/v1"}
        assert (await served.client.put("/api/providers", json=first)).status_code == 200
        before = (tmp_path / "config.toml").read_text()
        other = {"provider": "openai", "base_url": "https://two.example.org/v1"}
        for answer in (
            await served.client.post("/api/providers/test", json=other),
            await served.client.put("/api/providers", json=other),
        ):
            assert answer.status_code == 400
            assert "give api_key again" in answer.json()["error"]
        assert (tmp_path / "config.toml").read_text() == before
        same = {"provider": "openai", "base_url": "https://one.example.org/v2"}
        assert (await served.client.put("/api/providers", json=same)).status_code == 200


async def test_a_file_that_is_broken_costs_no_secret(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        (tmp_path / "config.toml").write_text("[api\n")
        SecretStore(tmp_path).set("OPENAI_API_KEY", "the-key-of-before")
        answer = await served.client.put("/api/providers", json={"provider": "openai", "api_key": VALUE})
        assert (answer.status_code, "config.toml, line 1" in answer.json()["error"]) == (409, True)
        assert SecretStore(tmp_path).read()["OPENAI_API_KEY"].value == "the-key-of-before"


async def test_a_locked_store_takes_no_key_and_the_file_neither(tmp_path: Path) -> None:
    SecretStore(tmp_path, passphrase="a phrase that is long enough").set("OTHER", VALUE)
    async with opened(tmp_path) as served:
        answer = await served.client.put("/api/providers", json={"provider": "openai", "api_key": VALUE})
        assert (answer.status_code, "spacebot secret unlock" in answer.json()["error"]) == (423, True)
        assert not (tmp_path / "config.toml").exists()


@pytest.mark.parametrize(
    ("replies", "is_good", "words"),
    [
        ([Answer(text="Good day")], True, "mine/big answers"),
        ([Refusal(401, b'{"error":{"message":"bad key %s"}}' % VALUE.encode())], False, "refused the credentials"),
        ([Refusal(404, b"{}")], False, "does not know this model"),
    ],
)
async def test_a_trial_asks_the_provider_and_stores_nothing(
    replies: Sequence[Reply], is_good: bool, words: str, tmp_path: Path
) -> None:
    async with serve_openai(replies) as model, opened(tmp_path) as served:
        form = {
            "provider": "mine", "api_key": VALUE, "model": "mine/big", "base_url": model.url,
            "api_type": "openai_completions",
        }  # fmt: skip
        answer = await served.client.post("/api/providers/test", json=form)
        assert answer.status_code == 200
        body = answer.json()
        assert (body["success"], body["provider"], body["model"]) == (is_good, "mine", "mine/big")
        assert words in body["message"]
        assert body["sample"] == ("Good day" if is_good else "")
        assert model.requests[0].headers["authorization"] == f"Bearer {VALUE}"
        assert model.bodies[0]["max_tokens"] <= 16
        assert not (tmp_path / "config.toml").exists()
        assert SecretStore(tmp_path).list() == []


@pytest.mark.spec("C-19", "C-65", "CA-11")
async def test_a_login_survives_and_its_state_is_told(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "anthropic_oauth.json")
    tokens = Tokens(access_token="sk-ant-oat-x", refresh_token="sk-ant-ort-x", expires_at=4_000_000_000_000)
    file.save(tokens)
    async with opened(tmp_path) as served:
        shown = await details(served, "anthropic")
        assert (shown["state"], shown["auth"], shown["login"]["state"]) == ("ready", "login", "valid")
        assert not (await served.client.get("/api/providers")).json()["needs_setup"]
        await served.client.put("/api/providers", json={"provider": "openai", "api_key": VALUE})
        await served.client.put("/api/providers", json={"provider": "anthropic", "model": "anthropic/claude-opus-4"})
        assert (await details(served, "anthropic"))["auth"] == "login"
        assert models_of(served) == ["anthropic/claude-opus-4"] * 2
        assert file.load() == tokens

        file.note_refusal(tokens, 1.0)
        shown = await details(served, "anthropic")
        assert (shown["state"], shown["login"]["state"]) == ("disabled", "refused")
        assert "spacebot auth login" in shown["reason"]


@pytest.mark.spec("C-5", "C-18")
async def test_a_provider_whose_key_leads_nowhere_says_why(tmp_path: Path) -> None:
    async with opened(tmp_path, '[llm]\ngroq_key = "env:NOT_SET_ANYWHERE"\n') as served:
        shown = await details(served, "groq")
        assert (shown["state"], shown["key_source"]) == ("disabled", "environment")
        assert "NOT_SET_ANYWHERE is not set" in shown["reason"]
        assert load_config(tmp_path / "config.toml", environ={}).config.llm.needs_setup
