"""The configurations that the product promises in its description load without a warning and do what they say.

Keys and values are the promise; the rest of each file is ours.
"""

import tomllib
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import pytest
import trio

from spacebot.config.load import LoadedConfig, load_config
from spacebot.config.model import ApiType
from spacebot.config.schema import config_schema
from spacebot.llm.choice import choose_models
from spacebot.llm.messages import ProcessKind
from spacebot.llm.openai_chat import OpenAiChatDialect
from spacebot.llm.transport import open_transport
from tests.llm.given import ask
from tests.stand_ins.openai import serve_openai
from tests.stand_ins.serving import Answer

SONNET, HAIKU = "anthropic/claude-sonnet-4", "anthropic/claude-haiku-4.5"
DISCORD = "MTA5NDQ2NzE4MjQ1Njc4OTAxMg.GabcdE.abcdefghijklmnopqrstuvwxyz0123456789AB"
ENVIRON = {
    "OPENROUTER_API_KEY": "router-key-12345678", "ANTHROPIC_API_KEY": "anthropic-key-1234",
    "DISCORD_BOT_TOKEN": DISCORD, "ZHIPU_API_KEY": "zhipu-key-12345678", "MY_PROVIDER_KEY": "provider-key-1234",
}  # fmt: skip
ROUTING = f"""
[defaults.routing]
channel = "{SONNET}"
worker = "{HAIKU}"

[defaults.routing.task_overrides]
coding = "{SONNET}"

[defaults.routing.prompt_routing]
enabled = true
process_types = ["channel", "branch"]

[defaults.routing.fallbacks]
"{SONNET}" = ["{HAIKU}"]
"""
GLM = """
[llm]
zhipu_key = "env:ZHIPU_API_KEY"

[defaults.routing]
channel = "zhipu/glm-4.7"
worker = "zhipu/glm-4.7"

[defaults.routing.task_overrides]
coding = "zhipu/glm-4.7"
"""
OLLAMA = """
[llm]
ollama_base_url = "http://localhost:11434"

[defaults.routing]
channel = "ollama/gemma3"
worker = "ollama/gemma3"

[defaults.routing.task_overrides]
coding = "ollama/qwen3"
"""
OWN_PROVIDER = """
[llm.provider.my-provider]
api_type = "openai_completions"
base_url = "https://my-llm-host.example.com"
api_key = "env:MY_PROVIDER_KEY"

[defaults.routing]
channel = "my-provider/my-model"
"""
MCP = """
[[mcp_servers]]
name = "filesystem"
transport = "stdio"
command = "npx"
args = ["-y", "@modelcontextprotocol/server-filesystem", "/workspace"]

[[mcp_servers]]
name = "sentry"
transport = "http"
url = "https://mcp.sentry.io"
headers = { Authorization = "Bearer ${SENTRY_TOKEN}" }
"""
QUICK_START = f"""
[llm]
openrouter_key = "env:OPENROUTER_API_KEY"

[defaults.routing]
channel = "{SONNET}"
worker = "{SONNET}"

[[agents]]
id = "my-agent"

[messaging.discord]
token = "env:DISCORD_BOT_TOKEN"

[[bindings]]
agent_id = "my-agent"
channel = "discord"
guild_id = "your-discord-guild-id"
"""
EVERY = {
    "routing": ROUTING, "glm": GLM, "ollama": OLLAMA, "own-provider": OWN_PROVIDER, "mcp": MCP,
    "quick-start": QUICK_START.replace("your-discord-guild-id", "123456789012345678"),
}  # fmt: skip


def load(folder: Path, text: str, *without: str) -> LoadedConfig:
    file = folder / "config.toml"
    file.write_text(text)
    return load_config(file, environ={name: value for name, value in ENVIRON.items() if name not in without})


def chosen(loaded: LoadedConfig, process: ProcessKind, task: str | None = None) -> list[tuple[str, str]]:
    """The models in the order in which they are tried, and the hosts that get the request."""
    targets = choose_models(process, task, loaded.config.agents[0], loaded.config.llm)
    return [(target.model, urlsplit(target.base_url).netloc) for target in targets]


@pytest.mark.spec("control 7: README config blocks", "CA-1")
@pytest.mark.parametrize("text", EVERY.values(), ids=EVERY)
def test_it_loads_without_a_warning_and_fits_the_schema(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text).warnings == ()
    jsonschema.validate(tomllib.loads(text), config_schema())


@pytest.mark.spec("CA-1")
def test_the_four_levels_of_routing(tmp_path: Path) -> None:
    loaded = load(tmp_path, ROUTING, "OPENROUTER_API_KEY")
    assert chosen(loaded, ProcessKind.CHANNEL) == [(SONNET, "api.anthropic.com"), (HAIKU, "api.anthropic.com")]
    assert chosen(loaded, ProcessKind.WORKER)[0][0] == HAIKU
    assert chosen(loaded, ProcessKind.WORKER, "coding")[0][0] == SONNET
    prompt_routing = loaded.config.agents[0].routing.prompt_routing
    assert (prompt_routing.enabled, prompt_routing.process_types) == (True, ("channel", "branch"))


def test_glm_directly(tmp_path: Path) -> None:
    loaded = load(tmp_path, GLM)
    for process, task in ((ProcessKind.CHANNEL, None), (ProcessKind.WORKER, None), (ProcessKind.WORKER, "coding")):
        assert chosen(loaded, process, task) == [("zhipu/glm-4.7", "api.z.ai")]


@pytest.mark.spec("C-3")
def test_ollama_without_a_key(tmp_path: Path) -> None:
    loaded = load(tmp_path, OLLAMA, *ENVIRON)
    assert chosen(loaded, ProcessKind.CHANNEL) == [("ollama/gemma3", "localhost:11434")]
    assert chosen(loaded, ProcessKind.WORKER, "coding") == [("ollama/qwen3", "localhost:11434")]


@pytest.mark.spec("CA-1")
def test_a_provider_of_ones_own(tmp_path: Path) -> None:
    loaded = load(tmp_path, OWN_PROVIDER)
    provider = loaded.config.llm.provider["my-provider"]
    assert provider.api_type is ApiType.OPENAI_COMPLETIONS
    assert provider.api_key is not None
    assert provider.api_key.get_secret_value() == ENVIRON["MY_PROVIDER_KEY"]
    assert chosen(loaded, ProcessKind.CHANNEL) == [("my-provider/my-model", "my-llm-host.example.com")]
    anthropic = load(tmp_path, OWN_PROVIDER.replace("openai_completions", "anthropic"))
    assert anthropic.config.llm.provider["my-provider"].api_type is ApiType.ANTHROPIC
    unset = load(tmp_path, OWN_PROVIDER, "MY_PROVIDER_KEY")
    assert any("MY_PROVIDER_KEY" in warning for warning in unset.warnings)  # and the program goes on


@pytest.mark.spec("C-9")
def test_mcp_servers_of_all_agents(tmp_path: Path) -> None:
    loaded = load(tmp_path, MCP + '[[agents]]\nid = "a"\n[[agents]]\nid = "b"\n')
    for agent in loaded.config.agents:
        files, sentry = agent.mcp
        assert (files.name, files.transport, files.command, files.args) == (
            "filesystem", "stdio", "npx", ("-y", "@modelcontextprotocol/server-filesystem", "/workspace"),
        )  # fmt: skip
        assert (sentry.name, sentry.transport, sentry.url) == ("sentry", "http", "https://mcp.sentry.io")
        assert sentry.headers["Authorization"].get_secret_value() == "Bearer ${SENTRY_TOKEN}"


@pytest.mark.spec("CA-1")
def test_the_quick_start_connects_and_binds(tmp_path: Path) -> None:
    config = load(tmp_path, QUICK_START).config
    ((_, key, account),) = config.messaging.accounts()
    (binding,) = config.bindings
    assert (key, account.enabled) == ("discord", True)
    assert (binding.agent_id, binding.adapter_key, binding.guild_id, binding.is_served) == (
        "my-agent", "discord", "your-discord-guild-id", True,
    )  # fmt: skip
    assert config.default_agent.id == "my-agent"


@pytest.mark.spec("control 7: minimal config", "C-4", "CA-2")
async def test_the_quick_start_reaches_openrouter_at_the_wire(tmp_path: Path) -> None:
    """With an OpenRouter key alone, though the routes name Anthropic's models."""
    loaded = load(tmp_path, QUICK_START, "ANTHROPIC_API_KEY")
    for process in (ProcessKind.CHANNEL, ProcessKind.BRANCH, ProcessKind.WORKER, ProcessKind.CORTEX):
        assert chosen(loaded, process)[0][1] == "openrouter.ai"
    target = choose_models(ProcessKind.CHANNEL, None, loaded.config.agents[0], loaded.config.llm)[0]
    async with serve_openai([Answer(text="hello")]) as stand_in, open_transport() as transport:
        moved = replace(target, base_url=stand_in.url + urlsplit(target.base_url).path)
        with trio.fail_after(20):
            reply = await OpenAiChatDialect(transport).complete(ask(), moved, lambda delta: None)
    (request,) = stand_in.requests
    assert reply.message.text == "hello"
    assert request.path == "/api/v1/chat/completions"
    assert request.json()["model"] == SONNET
    assert request.headers["authorization"] == f"Bearer {ENVIRON['OPENROUTER_API_KEY']}"
