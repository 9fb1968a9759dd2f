"""What a tool is: a name, typed arguments, one asynchronous call, a text for the model.

Flow:    ToolCall -> parse -> Tool.call -> ToolOutput
Floor:   tools
Source:  tools spec 1
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from spacebot.base.errors import ToolError
from spacebot.base.text import head_and_tail
from spacebot.base.tree import Node
from spacebot.llm.messages import JsonObject, ToolCall

RESULT_CAP = 50_000  # bytes of one result that a model sees; tools spec 1


class ToolArguments(BaseModel):
    """Base of all argument records: unknown fields are ignored, numbers may come as text; built when first used."""

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True, defer_build=True)


def _lenient_int(value: object) -> object:
    if isinstance(value, str) and value.strip().lstrip("+").isdigit():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


LenientInt = Annotated[int, BeforeValidator(_lenient_int)]


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a call came to.

    Args:
        text: for the model; capped by the engine.
        is_error: the call failed; the model is told so and may try again.
        ends_turn: the process ends after the batch of calls that holds this one has run.
        supersedes: what it shows the newest state of; earlier results that showed the same become a word in the
            transcript, which would fill up with them.
    """

    text: str
    is_error: bool = False
    ends_turn: bool = False
    supersedes: str | None = None

    @classmethod
    def of(cls, **fields: Any) -> "ToolOutput":
        """A result as a JSON object; fields that are None are left out."""
        return cls(json.dumps({k: v for k, v in fields.items() if v is not None}, ensure_ascii=False))


class Tool(Protocol):
    """One thing that a model may do. An instance belongs to one process (or one turn) and holds what it needs.

    `name` and `arguments` never change; the description comes from `prompts/tools/<name>.md`.
    """

    name: ClassVar[str]
    arguments: ClassVar[type[ToolArguments]]

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        """Do it.

        Args:
            arguments: an instance of `arguments`.
            node: the process that calls; `node.progress()` marks life.

        Errors: ToolError, whose text reaches the model. Anything else is a defect: it is logged and the
            model gets a plain sentence.
        Cancel: must end everything that the call started, operating-system processes included.
        """
        ...


def parse_arguments(tool: Tool, call: ToolCall) -> ToolArguments:
    """Turn what a model sent into a tool's record.

    Errors: ToolError that names each wrong field and what it should be.
    """
    if call.arguments is None:
        raise ToolError(f"the arguments of {call.name!r} are not a JSON object; send one that fits the tool's schema")
    try:
        return tool.arguments.model_validate(dict(call.arguments))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'arguments'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise ToolError(f"wrong arguments for {call.name!r}: {problems}") from error


def schema_of(arguments: type[ToolArguments]) -> JsonObject:
    """The JSON schema of an argument record, without the titles that only cost tokens and with references inlined."""
    schema = arguments.model_json_schema()
    definitions: Mapping[str, Any] = schema.pop("$defs", {})

    def slim(node: Any) -> Any:
        if isinstance(node, list):
            return [slim(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return slim(
                {**definitions[node["$ref"].rsplit("/", 1)[1]], **{k: v for k, v in node.items() if k != "$ref"}}
            )
        if "anyOf" in node and {"type": "null"} in node["anyOf"]:
            options = [option for option in node["anyOf"] if option != {"type": "null"}]
            rest = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
            return slim({**options[0], **rest} if len(options) == 1 else {"anyOf": options, **rest})
        return {
            key: ({name: slim(value) for name, value in node[key].items()} if key == "properties" else slim(node[key]))
            for key in node
            if key != "title" or not isinstance(node[key], str)
        }

    slimmed: JsonObject = slim(schema)
    return {key: value for key, value in slimmed.items() if key != "description"}


def capped(text: str, limit: int = RESULT_CAP) -> str:
    """A result within the cap, head and tail kept."""
    return head_and_tail(text, limit)
