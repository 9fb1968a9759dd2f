"""The form of `config.toml`, made from the models: a JSON Schema for editors, and a record of every key.

The models are the one source. What they do not know is added here: the shorthand keys of providers, the instances of
platforms, and that a number or a switch may be given as `env:NAME` or `secret:NAME` too. Draft 7, because that is what
editors of TOML understand.

Flow:   models -> config_schema -> key_specs -> explain.py, the reference in docs/, GET /api/config/schema
Floor:  config; may import base
Source: control spec 1.4 to 1.7, 8.1.1 and 8.1.2
"""

import copy
import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from spacebot.base.errors import NotFoundError
from spacebot.config.messaging import PLATFORMS, BindingConfig
from spacebot.config.model import AgentConfig, AgentSettings, Config, ProviderConfig
from spacebot.config.provider_table import ProviderEntry, provider_table
from spacebot.config.tables import FORM, RESTART
from spacebot.config.wording import to_toml

Schema = dict[str, Any]

SCHEMA_URL = "http://json-schema.org/draft-07/schema#"
_REFERENCE = {"$ref": "#/definitions/Reference"}
PROCESS_TABLES = tuple(name for name in Config.model_fields if name not in ("llm", "messaging", "bindings", "agents"))
_OWN_KEYS = ("id", "default", "workspace")  # of an agent; all others are inherited
_BY_READER = {"BindingConfig": ("is_served",), "ProviderConfig": ("has_login", "is_bearer")}  # no file sets them
_ONCE = ("mcp",)  # lists of tables that are described under another name


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySpec:
    """What is known about a key before anybody has said anything.

    Args:
        name: `defaults.routing.channel`; without the numbers of lists, and `<id>` where the owner chooses a name.
        header: of its table, `[defaults.routing]`.
        kind: what its value is, in words; `limits` too.
        default: as it would stand in the file; empty where there is none.
        example: a line for the file.
        is_inherited: whether an agent's own table may repeat it.
        form: the narrower limits of forms and the API; (None, None) where there are none.
    """

    name: str
    header: str
    key: str
    description: str
    kind: str
    limits: str
    default: str
    example: str
    is_secret: bool
    is_required: bool
    is_inherited: bool
    at_restart: bool
    form: tuple[float | None, float | None] = (None, None)
    schema: Mapping[str, Any]

    @property
    def parts(self) -> tuple[str, ...]:
        """The name as a key path."""
        return tuple(self.name.split("."))


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """A table with its keys."""

    name: str
    header: str
    description: str
    keys: tuple[KeySpec, ...]


def config_schema() -> Schema:
    """A JSON Schema of the whole file."""
    return copy.deepcopy(_schema())


def key_specs() -> Mapping[str, KeySpec]:
    """Every key by its name, in the order of the reference."""
    return _specs()


@cache
def table_specs() -> tuple[TableSpec, ...]:
    """Every table with its keys, in the order of the reference."""
    described = dict(_tables(_schema()))
    keys: dict[str, list[KeySpec]] = {name: [] for name in described}
    for spec in key_specs().values():
        keys[spec.name.rpartition(".")[0]].append(spec)
    headers = {name: _header(name, node) for name, (node, _) in described.items()}
    return tuple(
        TableSpec(name=name, header=headers[name], description=text, keys=tuple(keys[name]))
        for name, (_, text) in described.items()
        if keys[name]
    )


def find_key(name: str) -> KeySpec:
    """The key that somebody means: by its whole name, as one of an agent, or by the end of its name.

    Errors: NotFoundError with what may have been meant.
    """
    parts = key_parts(name)
    for candidate in _spellings(parts):
        if (spec := key_specs().get(candidate)) is not None:
            return spec
    plain = ".".join(parts)
    ends: list[KeySpec] = []
    for end in (plain, ".".join(parts[:-1])):  # the latter for an entry of a map
        ends = ends or [spec for known, spec in key_specs().items() if end and known.endswith(f".{end}")]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise NotFoundError(f"{plain[:80]!r} may be {_either([spec.name for spec in ends])}; say the whole name")
    raise NotFoundError(f"there is no key {plain[:80]!r}{_near(plain)}")


def key_parts(name: str) -> tuple[str, ...]:
    """A dotted name as a key path; parts with dots or blanks in quotes, as in the file.

    Errors: NotFoundError when it is no name.
    """
    try:
        found: Any = tomllib.loads(f"{name.strip().strip('[]')} = 0") if len(name) < 500 and "\n" not in name else {}
    except tomllib.TOMLDecodeError:
        found = {}
    parts: list[str] = []
    while isinstance(found, dict) and len(found) == 1:
        ((part, found),) = found.items()
        parts.append(part)
    if not parts or found != 0:
        raise NotFoundError(
            f"{name[:80]!r} is no name of a key; names look like defaults.routing.channel, and a part with other signs "
            "than letters, digits, '-' and '_' stands in quotes"
        )
    return tuple(parts)


def _spellings(parts: tuple[str, ...]) -> Iterator[str]:
    yield ".".join(parts)
    if parts[0] in ("agents", "agent"):
        yield ".".join(("defaults", *parts[1:]))
        yield ".".join(("defaults", *parts[2:]))  # agents.<id>.…
    if parts[:2] in (("llm", "provider"), ("llm", "providers")) and len(parts) > 3:
        yield ".".join(("llm", "provider", "<id>", *parts[3:]))
    if "instances" in parts:
        yield ".".join(part for part in parts if part != "instances")
    for start in ("defaults", "defaults.routing"):
        yield ".".join((start, *parts))
    yield ".".join(parts[:-1])  # an entry of a map: task_overrides.coding
    yield ".".join(("defaults", *parts[:-1]))
    if parts[0] in ("agents", "agent"):
        yield ".".join(("defaults", *parts[1:-1]))


def _near(name: str) -> str:
    known = list(key_specs())
    last = name.rpartition(".")[2]
    by_end = {spec.key: spec.name for spec in key_specs().values()}
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    near += [by_end[key] for key in difflib.get_close_matches(last, by_end, n=2, cutoff=0.7)]
    found = list(dict.fromkeys(near))[:3]
    return f"; did you mean {_either(found)}?" if found else "; `spacebot config show` lists all keys"


def _either(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


# The schema


@cache
def _schema() -> Schema:
    models: list[type[BaseModel]] = [Config, AgentSettings, AgentConfig, BindingConfig, ProviderConfig]
    _, made = models_json_schema([(model, "validation") for model in models], ref_template="#/definitions/{model}")
    definitions: dict[str, Schema] = made["$defs"]
    for definition in definitions.values():
        _tidy_definition(definition)
    root = definitions.pop("Config")["properties"]
    accounts = {platform: _account(definitions, root["messaging"], platform) for platform in PLATFORMS}
    definitions["ProviderConfig"].pop("required", None)  # built-in providers know theirs
    for name, fields in _BY_READER.items():
        for field in fields:
            definitions[name]["properties"].pop(field, None)
    definitions["AgentSettings"].pop("required", None)
    definitions["Reference"] = {
        "type": "string",
        "pattern": "^(env|secret):",
        "description": "env:NAME is the value of a variable, secret:NAME one of the secret store.",
    }
    messaging = {"type": "object", "additionalProperties": False, "properties": accounts}
    messaging["description"] = "Accounts at platforms."
    servers = _list("McpServerConfig", "MCP servers for all agents.")
    return {
        "$schema": SCHEMA_URL,
        "title": "Spacebot configuration",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **{name: root[name] for name in PROCESS_TABLES},
            "llm": _llm(definitions),
            "defaults": _of("AgentSettings"),
            "agents": _list("AgentConfig", root["agents"]["description"]),
            "mcp_servers": servers,
            "messaging": messaging,
            "bindings": _list("BindingConfig", root["bindings"]["description"]),
        },
        "definitions": {name: definitions[name] for name in sorted(_used(definitions, root, accounts))},
    }


def _used(definitions: Mapping[str, Schema], *roots: Any) -> set[str]:
    """Names of all definitions that something refers to."""
    names = {"AgentSettings", "AgentConfig", "McpServerConfig", "BindingConfig", "ProviderConfig", "Reference"}
    queue: list[Any] = [*(definitions[name] for name in names), *(root for root in roots)]
    while queue:
        node = queue.pop()
        if isinstance(node, list):
            queue += node
        elif isinstance(node, dict):
            name = str(node.get("$ref", "")).removeprefix("#/definitions/")
            if name and name not in names and name in definitions:
                names.add(name)
                queue.append(definitions[name])
            queue += node.values()
    return names - {"MessagingConfig", "LlmConfig"}


def _tidy_definition(node: Schema) -> None:
    node.pop("title", None)
    if "enum" in node:
        node.pop("description", None)  # it speaks of the code
    elif "description" in node:
        node["description"] = _sentence(node["description"])
    for name, field in node.get("properties", {}).items():
        node["properties"][name] = _tidy_field(field)


def _sentence(docstring: str) -> str:
    """What a class is for, without the header of its table: its first paragraph."""
    text = " ".join(docstring.split("\n\n")[0].split())
    if text.startswith("`["):
        text = text.partition("`: ")[2]
    return text[:1].upper() + text[1:]


def _tidy_field(field: Schema) -> Schema:
    """A field without what TOML has not (null) and with references where only numbers and switches would be allowed."""
    field = {name: value for name, value in field.items() if name != "title"}
    default = field.pop("default", None)
    shapes = [shape for shape in field.pop("anyOf", []) if shape != {"type": "null"}]
    if "$ref" in field:
        shapes = [{"$ref": field.pop("$ref")}]
    if "allOf" in field:
        shapes = field.pop("allOf")
    if not shapes:
        shapes = [{key: field.pop(key) for key in list(field) if key not in _WORDS_OF_FIELD}]
    if default is not None and not (isinstance(default, dict) and default) and not _holds_tables(default):
        field["default"] = default
    if not any(_takes_any_text(shape) for shape in shapes):
        shapes = [*shapes, _REFERENCE]
    return {**(shapes[0] if len(shapes) == 1 and "$ref" not in shapes[0] else {"anyOf": shapes}), **field}


_WORDS_OF_FIELD = frozenset({"description", "examples", "default", RESTART, FORM})


def _holds_tables(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)


def _takes_any_text(shape: Schema) -> bool:
    """Whether a reference fits already, or where a table or list stands, none can."""
    kind = shape.get("type")
    if kind in ("object", "array"):
        return True
    if "$ref" in shape:
        return not shape["$ref"].endswith(tuple(_ENUMERATIONS))
    return kind == "string" and "enum" not in shape and "const" not in shape and "pattern" not in shape


_ENUMERATIONS = ("Effort", "Profile", "Mode", "Reach", "Rule", "Policy", "Type")


def _of(name: str) -> Schema:
    return {"anyOf": [{"$ref": f"#/definitions/{name}"}]}


def _list(name: str, description: str) -> Schema:
    return {"type": "array", "items": {"$ref": f"#/definitions/{name}"}, "description": description}


def _account(definitions: dict[str, Schema], messaging: Any, platform: str) -> Schema:
    """A platform's own table, and its instances; credentials may come from the environment."""
    whole = definitions[f"{platform.capitalize()}Account"]
    whole.pop("required", None)
    own = copy.deepcopy(whole)
    own["properties"].pop("name")
    instance = copy.deepcopy(whole) | {"required": ["name"]}
    own["properties"]["instances"] = {
        "type": "array",
        "items": instance,
        "description": f"Further accounts: [[messaging.{platform}.instances]] with a name and the same keys.",
    }
    return own


def _llm(definitions: dict[str, Schema]) -> Schema:
    providers = {"type": "object", "additionalProperties": {"$ref": "#/definitions/ProviderConfig"}}
    properties: dict[str, Schema] = {}
    for entry in provider_table().values():
        properties.update(_shorthands(entry))
    properties["provider"] = providers | {"description": "Hosts of models of your own: [llm.provider.<id>]."}
    properties["providers"] = providers | {"description": "Another spelling of provider."}
    return {
        "type": "object",
        "description": "Which providers of models may be used: a key each, or tables of your own.",
        "properties": properties,
        "patternProperties": {"^provider\\.": {"$ref": "#/definitions/ProviderConfig"}},
        "additionalProperties": False,
    }


def _shorthands(entry: ProviderEntry) -> Iterator[tuple[str, Schema]]:
    if entry.key:
        instead = f"; the variable {entry.env} stands in for it" if entry.env else ""
        yield (
            entry.key,
            {
                "type": "string",
                "format": "password",
                "writeOnly": True,
                "description": f"Key for {entry.name}{instead}.",
                "examples": [f"env:{entry.env}" if entry.env else f"secret:{entry.key}"],
            },
        )
    if entry.url_key:
        instead = f"; the variable {entry.url_env} stands in for it" if entry.url_env else ""
        yield (
            entry.url_key,
            {
                "type": "string",
                "description": f"Address of {entry.name}{instead}.",
                **({"default": entry.base_url} if entry.base_url else {}),
                "examples": [entry.base_url or "http://127.0.0.1:8080"],
            },
        )


# The keys


def _tables(schema: Schema) -> Iterator[tuple[str, tuple[Schema, str]]]:
    """Every table that holds plain keys, with its node and what it is for, from the top down."""
    yield from _below(schema, schema, "", "")


def _below(schema: Schema, node: Schema, name: str, text: str) -> Iterator[tuple[str, tuple[Schema, str]]]:
    if name:
        yield name, (node, text or node.get("description", ""))
    for key, field in node.get("properties", {}).items():
        if key in ("instances", "providers") or (name == "defaults" and key in _ONCE):
            continue
        if name == "agents" and key not in _OWN_KEYS:
            continue
        inner, words = _table_in(schema, field), field.get("description", "")
        if inner is not None:
            place = f"{name}.{key}" if name else key
            yield from _below(schema, inner, f"{place}.<id>" if _is_map_of_tables(field) else place, words)


def _is_map_of_tables(field: Schema) -> bool:
    return "$ref" in str(field.get("additionalProperties", "")) and not field.get("properties")


def _table_in(schema: Schema, field: Schema) -> Schema | None:
    """The table that a field is, or holds a list of."""
    if _is_map_of_tables(field) and "ProviderConfig" in field["additionalProperties"]["$ref"]:
        return _resolve(schema, field["additionalProperties"])
    if field.get("type") == "array":
        inner = _resolve(schema, field.get("items", {}))
        return inner if inner.get("properties") else None
    for shape in field.get("anyOf", [field]):
        inner = _resolve(schema, shape)
        if inner.get("properties"):
            return inner
    return None


def _resolve(schema: Schema, node: Schema) -> Schema:
    while "$ref" in node:
        node = schema["definitions"][node["$ref"].rpartition("/")[2]]
    return node


@cache
def _specs() -> Mapping[str, KeySpec]:
    schema, found = _schema(), {}
    for name, (node, _) in _tables(schema):
        required = node.get("required", [])
        for key, field in node["properties"].items():
            is_left_out = (name == "agents" and key not in _OWN_KEYS) or (
                _table_in(schema, field) is not None and not (name == "defaults" and key in _ONCE)
            )
            if is_left_out or key in ("provider", "providers"):
                continue
            spec = _spec(schema, name, key, field, is_required=key in required, header=_header(name, node))
            found[spec.name] = spec
    return found


def _header(name: str, node: Schema) -> str:
    is_list = name in ("agents", "mcp_servers", "bindings") or name.endswith((".cron", ".commands"))
    return f"[[{name}]]" if is_list else f"[{name}]"


def _spec(schema: Schema, table: str, key: str, field: Schema, *, is_required: bool, header: str) -> KeySpec:
    shapes = [_resolve(schema, shape) for shape in field.get("anyOf", [field]) if shape != _REFERENCE]
    default = field.get("default")
    examples = field.get("examples") or ([default] if default not in (None, "", [], {}) else [])
    if not examples and not is_required:
        examples = [default if default is not None else ""]
    shown = examples[0] if examples else _any_value(shapes)
    low, high = field.get(FORM, (None, None))
    return KeySpec(
        name=f"{table}.{key}",
        header=header,
        key=key,
        description=field.get("description", ""),
        kind=" or ".join(dict.fromkeys(_kind(schema, shape) for shape in shapes)),
        limits="; ".join(dict.fromkeys(words for shape in shapes if (words := _limits(shape)))),
        default="" if default is None else to_toml(default),
        example=f"{key} = {to_toml(shown)}",
        is_secret=any(shape.get("format") == "password" for shape in shapes) or _holds_secrets(shapes),
        is_required=is_required,
        is_inherited=table == "defaults" or table.startswith("defaults."),
        at_restart=bool(field.get(RESTART)),
        form=(low, high),
        schema=field,
    )


def _holds_secrets(shapes: list[Schema]) -> bool:
    inner = (shape.get("additionalProperties") for shape in shapes)
    return any(isinstance(one, dict) and one.get("format") == "password" for one in inner)


def _any_value(shapes: list[Schema]) -> Any:
    shape = shapes[0]
    return shape["enum"][0] if "enum" in shape else "…"


def _kind(schema: Schema, shape: Schema) -> str:
    if "enum" in shape:
        return "one of " + ", ".join(str(value) for value in shape["enum"])
    if "const" in shape:
        return str(shape["const"])
    match shape.get("type"):
        case "array":
            inner = _resolve(schema, shape.get("items", {}))
            if inner.get("properties"):
                return "list of tables"
            if "enum" in inner:
                return "list of " + ", ".join(str(value) for value in inner["enum"])
            return "list of texts"
        case "object":
            of = shape.get("additionalProperties")
            return "table of lists" if isinstance(of, dict) and of.get("type") == "array" else "table of texts"
        case "boolean":
            return "true or false"
        case "integer":
            return "whole number"
        case "number":
            return "number"
    return {"password": "secret", "path": "path"}.get(shape.get("format", ""), "text")


def _limits(shape: Schema) -> str:
    low, high = shape.get("minimum"), shape.get("maximum")
    words = []
    if low is not None and high is not None:
        words.append(f"{low:g} to {high:g}" if high < 1e6 else f"{low:g} to {high:,}")
    elif low is not None:
        words.append(f"at least {low:g}")
    elif high is not None:
        words.append(f"at most {high:g}")
    if (above := shape.get("exclusiveMinimum")) is not None:
        words.insert(0, f"more than {above:g}")
    if (most := shape.get("maxLength")) is not None:
        words.append(f"at most {most} characters")
    return ", ".join(words)
