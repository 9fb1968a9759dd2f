"""Requests, targets and configurations for the tests of this folder."""

from pydantic import SecretStr

from spacebot.config.model import ApiType, LlmConfig, ProviderConfig
from spacebot.config.provider_table import provider_table
from spacebot.llm.dialect import Target
from spacebot.llm.messages import (
    Image,
    ModelMessage,
    ModelRequest,
    ProcessKind,
    Reasoning,
    Role,
    SystemBlock,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
)
from spacebot.llm.routing import resolve

KEY = SecretStr("key-of-the-owner-1234567890")

REPLY = ToolSpec("reply", "Say something.", {"type": "object", "properties": {"content": {"type": "string"}}})
BRANCH = ToolSpec("branch", "Think.", {"type": "object", "properties": {"description": {"type": "string"}}})
SHELL = ToolSpec("shell", "Run a command.", {"type": "object", "properties": {"command": {"type": "string"}}})


def providers(*names: str, url: str = "") -> LlmConfig:
    """A configuration with built-in providers, each with a key."""
    table = provider_table()
    return LlmConfig(
        provider={
            name: ProviderConfig(api_type=table[name].api_type, base_url=url or table[name].base_url, api_key=KEY)
            for name in names
        }
    )


def target(model: str, url: str = "") -> Target:
    """One model of a built-in provider."""
    return resolve(model, providers(model.partition("/")[0], url=url))


def custom(name: str, api_type: ApiType, url: str) -> LlmConfig:
    """A configuration with one provider of the owner's own."""
    return LlmConfig(provider={name: ProviderConfig(api_type=api_type, base_url=url, api_key=KEY)})


def ask(text: str = "hello", *tools: ToolSpec, process: ProcessKind = ProcessKind.CHANNEL) -> ModelRequest:
    """A short request."""
    return ModelRequest(process=process, system=(), messages=(ModelMessage.user(text),), tools=tools)


def long_talk() -> ModelRequest:
    """A request with everything in it: two system blocks, a picture, thinking, parallel calls, an error, odd text."""
    return ModelRequest(
        process=ProcessKind.CHANNEL,
        system=(SystemBlock("stable"), SystemBlock("  "), SystemBlock("volatile", is_stable=False)),
        messages=(
            ModelMessage.user("ann: hi"),
            ModelMessage(
                Role.ASSISTANT,
                (
                    Reasoning("hm", signature="proof"),
                    Text("one moment"),
                    ToolCall("a.1", "branch", {"description": "über"}, ""),
                    ToolCall("b", "reply", None, "{broken"),
                ),
            ),
            ModelMessage(
                Role.USER, (Text("and more"), ToolResult("a.1", "done"), ToolResult("b", "bad", is_error=True))
            ),
            ModelMessage(Role.ASSISTANT, (Text(""),)),
            ModelMessage(Role.USER, (Text("look \ud800"), Image("image/png", "QUJD"))),
        ),
        tools=(REPLY, BRANCH),
        max_output_tokens=500,
    )
