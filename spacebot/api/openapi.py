"""The document of the API, made from the tables of routes: `GET /api/openapi.json`, and the same as Markdown.

It is built when somebody first asks for it. What a route says of itself stands in its `RouteSpec`; a route without one
is described as far as its handler can be: what it is for by its docstring, its body by the form that it reads.

Flow:    tables of routes -> document -> JSON, Markdown
Floor:   api
Source:  OpenAPI 3.1.0; control spec 4.1 and 8.3 (70, 78)
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from spacebot import __version__
from spacebot.api.requests import ApiRoute, Body, Either, Maybe, Param, RouteSpec, route

PATH = "/api/openapi.json"
ERROR = {"$ref": "#/components/schemas/Error"}
_BASIC: Mapping[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    None: {"type": "null"},
    Any: {},
}
_REFUSALS = {
    400: "what was sent cannot be used; `error` says what to send instead",
    401: "the token is missing or wrong",
    403: "the request comes from another site, or names a host that is not ours",
    404: "there is no such thing",
    409: "not now: what is asked for is busy, or collides with what is there",
    503: "a part of the program cannot do it now; the log has more",
}
_OF_BODIES = {
    408: "the body did not arrive in time",
    413: "the body is too long",
    415: "the body is of another type",
    422: "fields of the body are wrong, missing or unknown",
}


class OpenApiRoutes:
    """The route under `/api/openapi.json`."""

    def __init__(self, tables: Sequence[Route]) -> None:
        self._tables = tables
        self._made: bytes | None = None

    def routes(self) -> list[Route]:
        """The table."""
        return [route(PATH, self.document, answer={"*": Any})]

    async def document(self, _: Request) -> Response:
        """This document: every route with what it takes and gives, as OpenAPI 3.1."""
        if self._made is None:
            self._made = json.dumps(document([*self._tables, *self.routes()])).encode()
        return Response(self._made, media_type="application/json")


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The whole document, as JSON values."""
    book = _Book()
    paths: dict[str, dict[str, Any]] = {}
    for one in routes:
        if not one.path.startswith("/api/") or not one.include_in_schema:
            continue
        for method in sorted((one.methods or set()) - {"HEAD"}):
            paths.setdefault(_plain(one.path), {})[method.lower()] = _operation(one, method, book)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Spacebot",
            "version": __version__,
            "description": "For the owner. Failures are JSON: `error` says what to do.",
        },
        "security": [{}, {"token": []}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(book.schemas.items())),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "`api.auth_token`"}},
        },
    }


def schema_of(shape: Any) -> dict[str, Any]:
    """The JSON schema of a shape, complete in itself; see `RouteSpec` for how shapes are written."""
    book = _Book()
    schema = book.schema(shape)
    return {**schema, "components": {"schemas": book.schemas}}


def spec_of(one: Route) -> RouteSpec:
    """What is known of a route: what it says itself, and the form that its handler reads."""
    spec = one.spec if isinstance(one, ApiRoute) else RouteSpec()
    if spec.body is None and (form := _form_of(one.endpoint)) is not None:
        return RouteSpec(
            query=spec.query, body=form, answer=spec.answer, status=spec.status, answers=spec.answers,
            stream=spec.stream, media=spec.media, upload=spec.upload,
        )  # fmt: skip
    return spec


class _Book:
    """Schemas that have names."""

    def __init__(self) -> None:
        self.schemas: dict[str, Any] = {
            "Error": {
                "type": "object",
                "properties": {"error": {"type": "string", "description": "what was wrong and what to do"}},
                "required": ["error"],
            }
        }

    def schema(self, shape: Any) -> dict[str, Any]:
        """The schema of a shape."""
        match shape:
            case Maybe(inner):
                return {"anyOf": [self.schema(inner), {"type": "null"}]}
            case Either(shapes):
                return {"anyOf": [self.schema(one) for one in shapes]}
            case list():
                return {"type": "array", "items": self.schema(shape[0] if shape else Any)}
            case dict():
                return self._object(shape)
        if shape in _BASIC:
            return dict(_BASIC[shape])
        return self._named(shape)

    def _object(self, shape: Mapping[str, Any]) -> dict[str, Any]:
        named = {name: inner for name, inner in shape.items() if name != "*"}
        made: dict[str, Any] = {
            "type": "object",
            "additionalProperties": self.schema(shape["*"]) if "*" in shape else False,
        }
        if named:
            made["properties"] = {name.rstrip("?"): self.schema(inner) for name, inner in named.items()}
            made["required"] = [name for name in named if not name.endswith("?")]
        return made

    def _named(self, kind: type) -> dict[str, Any]:
        """A model, a dataclass or an enumeration, under a name of its own."""
        if issubclass(kind, Enum):
            return {"type": "string", "enum": [str(one.value) for one in kind]}
        assert is_dataclass(kind) or issubclass(kind, BaseModel), f"{kind!r} has no shape"
        name = _name_of(kind)
        if name not in self.schemas:
            mode: Any = "validation" if issubclass(kind, BaseModel) else "serialization"
            made = TypeAdapter(kind).json_schema(mode=mode, ref_template="#/components/schemas/{model}")
            self.schemas.update(made.pop("$defs", {}))
            made.pop("title", None)
            self.schemas[name] = made
        return {"$ref": f"#/components/schemas/{name}"}


def _operation(one: Route, method: str, book: _Book) -> dict[str, Any]:
    spec = spec_of(one)
    words = (one.endpoint.__doc__ or "").strip()
    summary, _, rest = words.partition("\n")
    place = re.sub(r"[^a-z0-9]+", "_", one.path.removeprefix("/api/").lower()).strip("_")
    in_path = {"in": "path", "required": True, "schema": {"type": "string"}}
    made: dict[str, Any] = {
        "operationId": f"{method.lower()}_{place}",
        "summary": summary,
        "tags": [_plain(one.path).split("/")[2]],
        "parameters": [
            *({"name": name, **in_path} for name in one.param_convertors),
            *(_parameter(param) for param in spec.query),
        ],
        "responses": _responses(spec, book),
    }  # fmt: skip
    if rest.strip():
        made["description"] = re.sub(r"\s*\n\s*", " ", rest.strip())
    if spec.body is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": book.schema(spec.body)}}}
    elif spec.upload is not None:
        made["requestBody"] = {"required": True, "content": {spec.upload: {"schema": {}}}}
    return made


def _responses(spec: RouteSpec, book: _Book) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if spec.stream is not None:
        events = {name: book.schema(shape) for name, shape in spec.stream.items()}
        about = {"description": "events as they happen", "content": {"text/event-stream": {"x-events": events}}}
        made["200"] = about
    elif spec.media is not None:
        made[str(spec.status)] = {"description": "the file", "content": {spec.media: {}}}
    else:
        for status, shape in {spec.status: spec.answer, **(spec.answers or {})}.items():
            schema = {} if shape is None else book.schema(shape)
            made[str(status)] = {"description": "done", "content": {"application/json": {"schema": schema}}}
    refusals = _REFUSALS | (_OF_BODIES if spec.body or spec.upload else {})
    for status, words in sorted(refusals.items()):
        made.setdefault(str(status), {"description": words, "content": {"application/json": {"schema": ERROR}}})
    return made


def _parameter(param: Param) -> dict[str, Any]:
    schema = dict(_BASIC[param.kind])
    if param.default is not None:
        schema["default"] = param.default
    if param.one_of:
        schema["enum"] = list(param.one_of)
    return {
        "name": param.name,
        "in": param.place,
        "required": param.is_needed,
        "description": _range(param),
        "schema": schema,
    }


def _range(param: Param) -> str:
    """Numbers out of range are held within it, so the range is a matter of words and no rule of the schema."""
    if param.low is None and param.high is None:
        return param.summary
    span = f"{param.low if param.low is not None else ''} to {param.high if param.high is not None else ''}".strip()
    return f"{param.summary} ({span})"


def _plain(path: str) -> str:
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def _name_of(kind: type) -> str:
    return "".join(word.capitalize() for word in kind.__module__.rpartition(".")[2].split("_")) + kind.__name__


def _form_of(endpoint: Any) -> type[Body] | None:
    """The form that a handler reads, by the names it uses."""
    function = getattr(endpoint, "__func__", endpoint)
    names = getattr(getattr(function, "__code__", None), "co_names", ())
    if "read_body" not in names:
        return None
    found = (function.__globals__.get(name) for name in names)
    return next((one for one in found if isinstance(one, type) and issubclass(one, Body) and one is not Body), None)


def to_markdown(made: Mapping[str, Any]) -> str:
    """The document for people: a section per family of routes, an entry per route."""
    families: dict[str, list[str]] = {}
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            families.setdefault(operation["tags"][0], []).append(_entry(path, method, operation, made))
    parts = [f"# {made['info']['title']} API {made['info']['version']}", made["info"]["description"]]
    for family in sorted(families):
        parts += [f"## {family}", *families[family]]
    return "\n\n".join(parts) + "\n"


def _entry(path: str, method: str, operation: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    lines = [f"### {method.upper()} {path}", "", operation["summary"]]
    if "description" in operation:
        lines += ["", operation["description"]]
    rows = [(p["name"], p["in"], _words(p["schema"], made), p.get("description", "")) for p in operation["parameters"]]
    body = operation.get("requestBody", {}).get("content", {})
    for media, content in body.items():
        schema = _resolved(content.get("schema", {}), made)
        for name, inner in schema.get("properties", {}).items():
            need = "needed" if name in schema.get("required", ()) else ""
            rows.append((name, "body", _words(inner, made), need))
        if not schema.get("properties"):
            rows.append(("", "body", media, ""))
    if rows:
        lines += ["", "| Name | In | Type | |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    answers = [status for status in operation["responses"] if status < "400"]
    for status in answers:
        for media, content in operation["responses"][status]["content"].items():
            if "x-events" in content:
                lines += ["", f"Answer {status}: events {', '.join(f'`{name}`' for name in content['x-events'])}"]
            else:
                lines += ["", f"Answer {status}: `{_words(content.get('schema', {}), made) or media}`"]
    return "\n".join(lines)


def _resolved(schema: Mapping[str, Any], made: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return made["components"]["schemas"].get(name, schema) if name else schema


def _words(schema: Mapping[str, Any], made: Mapping[str, Any], depth: int = 0) -> str:
    """A schema on one line."""
    schema = _resolved(schema, made)
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(_words(one, made, depth) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"[{_words(schema.get('items', {}), made, depth)}]"
    if schema.get("type") == "object":
        if depth > 3:
            return "{…}"
        fields = schema.get("properties", {})
        return "{" + ", ".join(f"{name}: {_words(inner, made, depth + 1)}" for name, inner in fields.items()) + "}"
    return str(schema.get("type", ""))
