"""Tools of MCP servers as a worker's model sees and calls them.

Schema and description are the server's; the description is framed as its words, and what goes out is looked through
for secrets. A tool stays the worker's own for its whole life: when the server is away, it says so.

Flow:    RemoteToolSpec -> make_tool -> RemoteTool.call -> Port.call -> the server
Floor:   tools
Source:  tools spec 11
"""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import trio
from pydantic import model_validator

from spacebot.base.errors import ToolError
from spacebot.base.redaction import find_secret, scrub
from spacebot.base.telemetry import kv
from spacebot.base.text import preview
from spacebot.base.tree import Node
from spacebot.llm.messages import JsonObject, ToolSpec
from spacebot.tools.contract import ToolArguments, ToolOutput

log = logging.getLogger(__name__)

DESCRIPTION = 2000  # characters of a description
FIRST_LINE = 120  # of a description in a list
SCHEMA = 30_000  # characters of a schema; each of a worker's model calls carries it
LARGE = 4096  # characters from which on a thread looks for secrets

_PROPERTY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_COMBINATIONS = ("anyOf", "oneOf", "allOf")  # model providers refuse them at the top, and the whole request with them
_IN_FRAME = str.maketrans({"<": "‹", ">": "›"})


@dataclass(frozen=True, slots=True)
class RemoteToolSpec:
    """A tool as its server lists it."""

    name: str
    description: str
    schema: JsonObject

    @property
    def first_line(self) -> str:
        """What it does, for a list; harmless in a prompt."""
        return label(self.description, FIRST_LINE)


@dataclass(frozen=True, slots=True)
class CallResult:
    """What a server answered; scrubbed and capped."""

    text: str
    is_error: bool


class Port(Protocol):
    """The way to a server, whatever becomes of its connection."""

    async def call(self, tool: str, arguments: dict[str, Any], on_progress: Callable[[], None]) -> CallResult:
        """Call a tool of it. Errors: ToolError."""
        ...


class RemoteArguments(ToolArguments):
    """Whatever the model sent: the server checks it against its own schema."""

    value: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _take_all(cls, data: Any) -> Any:
        return {"value": data}


class RemoteTool:
    """One tool of a server; made by `make_tool`, as a class of its own, because each has its own name."""

    name: ClassVar[str]
    arguments: ClassVar[type[ToolArguments]] = RemoteArguments
    spec: ClassVar[ToolSpec]  # instead of a description among the prompts

    def __init__(self, port: Port, remote_name: str) -> None:
        self._port = port
        self._remote_name = remote_name

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        """Have the server do it. Errors: ToolError."""
        value: dict[str, Any] = arguments.value
        text = json.dumps(value, ensure_ascii=False)
        kind = find_secret(text) if len(text) < LARGE else await trio.to_thread.run_sync(find_secret, text)
        if kind is not None:
            log.warning("call of an MCP tool refused", extra=kv(tool=self.name, process=node.id, reason=kind))
            raise ToolError(
                f"the arguments hold a secret ({kind}), which no server is sent by a tool call; leave it out. "
                "Credentials of a server are the owner's matter."
            )
        result = await self._port.call(self._remote_name, value, node.progress)
        return ToolOutput(result.text, is_error=result.is_error)


def make_tool(name: str, description: str, remote: RemoteToolSpec, port: Port) -> RemoteTool:
    """A tool for models.

    Args:
        name: as models see it.
        description: the server's words in our frame.
    """
    spec = ToolSpec(name, description, remote.schema)
    own = type("RemoteTool", (RemoteTool,), {"name": name, "spec": spec, "__doc__": RemoteTool.__doc__})
    made: RemoteTool = own(port, remote.name)
    return made


def harmless(text: str) -> str:
    """A server's words that cannot close the frame they stand in."""
    return scrub(text.translate(_IN_FRAME))


def label(text: str, limit: int) -> str:
    """A server's words as a label: its first line, printable, unable to end what it stands in."""
    first = "".join(sign if sign.isprintable() else " " for sign in text.strip().split("\n", 1)[0])
    return harmless(preview(" ".join(first.split()).replace("`", "'"), limit))


def check_schema_form(schema: JsonObject) -> str:
    """Why models cannot be given a tool with this schema; empty when they can."""
    if schema.get("type") != "object":
        return "its input schema is not of the type object"
    if any(key in schema for key in _COMBINATIONS):
        return "its input schema is a combination of others"
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        return "its input schema is no JSON schema"
    if any(not _PROPERTY.fullmatch(name) for name in properties):
        return "an argument has a name that model providers refuse"
    if len(json.dumps(schema, ensure_ascii=False)) > SCHEMA:
        return f"its input schema is longer than {SCHEMA} characters"
    return ""
