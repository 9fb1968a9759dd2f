"""The model catalogue as data: from what models.dev publishes to rows, and the compact file that rows are kept in.

Flow:   api.json -> to_rows -> pack -> file -> unpack -> rows
Floor:  llm; may import base
Source: control spec 2.14; the format of https://models.dev/api.json, MIT license
"""

import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from spacebot.base.clock import from_text, to_text
from spacebot.llm.prices import Price

MAX_UNPACKED = 32 * 2**20  # bytes; a larger file is not ours
MAX_NAME = 200  # characters of a model's id or name
FORMAT = 1

# models.dev's names of providers, and ours. Others are left out: what OpenRouter serves of them stands under
# `openrouter`, and nobody can ask the rest. Where two have the same model, the first counts.
VENDORS: Mapping[str, str] = MappingProxyType(
    {
        "anthropic": "anthropic", "openrouter": "openrouter", "openai": "openai", "deepseek": "deepseek",
        "google": "gemini", "gemini": "gemini", "xai": "xai", "groq": "groq", "togetherai": "together",
        "fireworks-ai": "fireworks", "mistral": "mistral", "zhipuai": "zhipu", "zai": "zhipu",
        "opencode": "opencode-zen", "opencode-go": "opencode-go", "nvidia": "nvidia", "minimax": "minimax",
        "minimax-cn": "minimax-cn", "moonshotai": "moonshot", "zai-coding-plan": "zai-coding-plan",
        "github-copilot": "github-copilot", "azure": "azure", "kilo": "kilo",
    }
)  # fmt: skip
SUBSCRIPTIONS = frozenset({"github-copilot", "zai-coding-plan"})  # a price of 0 there means: paid by the month


class CatalogueError(ValueError):
    """The data is not a catalogue."""


class Row(NamedTuple):
    """A model as the file has it; prices in USD per million tokens.

    Args:
        flags: `t` calls tools, `r` reasons, `i` sees pictures, `a` hears.
        window: tokens; 0 where it is not known.
    """

    id: str
    name: str
    window: int
    flags: str
    input: float | None = None
    output: float | None = None
    cached: float | None = None
    write: float | None = None
    reasoning: float | None = None

    @property
    def price(self) -> Price | None:
        """What it costs, where that is known."""
        if self.input is None or self.output is None:
            return None
        return Price(
            input=self.input, output=self.output, cached=self.cached, write=self.write, reasoning=self.reasoning
        )


@dataclass(frozen=True, slots=True)
class CatalogueData:
    """All rows by provider, and when they were fetched."""

    at: datetime
    rows: Mapping[str, Sequence[Row]]


# What providers offer beside, without a price; control spec 2.14.
EXTRAS: Mapping[str, Sequence[Row]] = MappingProxyType(
    {
        "opencode-zen": tuple(
            Row(name, name, 0, "t")
            for name in (
                "kimi-k2.5", "kimi-k2", "kimi-k2-thinking", "glm-5", "minimax-m2.5", "qwen3-coder", "big-pickle",
            )
        ),
        "zai-coding-plan": tuple(Row(name, name, 0, "t") for name in ("glm-4.7", "glm-5", "glm-4.5-air")),
        "minimax": (Row("MiniMax-M1-80k", "MiniMax-M1-80k", 80_000, "t"),),
        "moonshot": (Row("kimi-k2.5", "kimi-k2.5", 0, "t"), Row("moonshot-v1-8k", "moonshot-v1-8k", 8_000, "t")),
    }
)  # fmt: skip


def to_rows(published: bytes, *, only_with_tools: bool = False) -> dict[str, list[Row]]:
    """The rows of what models.dev publishes, by our names of providers; deprecated and wordless models are left out.

    Errors: CatalogueError when it is something else.
    """
    found: dict[str, dict[str, Row]] = {}
    for vendor, facts in _vendors(published):
        provider = VENDORS.get(vendor)
        models = facts.get("models") if isinstance(facts, dict) else None
        if provider is None or not isinstance(models, dict):
            continue
        rows = found.setdefault(provider, {})
        for model in models.values():
            row = _to_row(model, is_paid_monthly=provider in SUBSCRIPTIONS)
            if row is not None and (not only_with_tools or "t" in row.flags):
                rows.setdefault(row.id, row)
    if not any(found.values()):
        raise CatalogueError("it names no model of a known provider")
    return {provider: list(rows.values()) for provider, rows in found.items() if rows}


def _vendors(published: bytes) -> Iterator[tuple[str, Any]]:
    """Each vendor with its models. They are read one by one, because reading all at once would hold the
    interpreter, and so everybody, for too long."""
    decoder = json.JSONDecoder()
    try:
        text = published.decode()
        place = _skip(text, 0)
        if text[place : place + 1] != "{":
            raise CatalogueError("it is no JSON object")
        place = _skip(text, place + 1)
        while text[place : place + 1] != "}":
            vendor, place = decoder.raw_decode(text, place)
            place = _skip(text, place)
            if not isinstance(vendor, str) or text[place : place + 1] != ":":
                raise CatalogueError("it is no JSON object")
            facts, place = decoder.raw_decode(text, _skip(text, place + 1))
            yield vendor, facts
            place = _skip(text, place)
            if text[place : place + 1] == ",":
                place = _skip(text, place + 1)
            elif text[place : place + 1] != "}":
                raise CatalogueError("it ends in the middle")
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CatalogueError(f"it is no JSON ({type(error).__name__})") from error


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _to_row(model: Any, *, is_paid_monthly: bool) -> Row | None:
    if not isinstance(model, dict) or model.get("status") == "deprecated":
        return None
    model_id, name = model.get("id"), model.get("name")
    kinds = model.get("modalities")
    heard, said = (_words(kinds.get(way)) for way in ("input", "output")) if isinstance(kinds, dict) else ((), ())
    if not isinstance(model_id, str) or not 0 < len(model_id) <= MAX_NAME or not model_id.isprintable():
        return None
    if "text" not in said or "text" not in heard:
        return None
    can = {"t": bool(model.get("tool_call")), "r": bool(model.get("reasoning")), "i": "image" in heard}
    flags = "".join(flag for flag, is_so in {**can, "a": "audio" in heard}.items() if is_so)
    cost, limit = model.get("cost"), model.get("limit")
    window = limit.get("context") if isinstance(limit, dict) else None
    prices = [_amount(cost.get(key)) for key in _COSTS] if isinstance(cost, dict) else [None] * len(_COSTS)
    if is_paid_monthly and not any(prices):
        prices = [None] * len(_COSTS)
    shown = name.strip()[:MAX_NAME] if isinstance(name, str) and name.isprintable() else ""
    return Row(model_id, shown or model_id, window if isinstance(window, int) and window > 0 else 0, flags, *prices)


_COSTS = ("input", "output", "cache_read", "cache_write", "reasoning")


def _words(value: Any) -> tuple[str, ...]:
    return tuple(word for word in value if isinstance(word, str)) if isinstance(value, list) else ()


def _amount(value: Any) -> float | None:
    is_amount = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6
    return value if is_amount else None


def pack(data: CatalogueData) -> bytes:
    """The file of a catalogue; the same data make the same bytes."""
    models = {provider: [_short(row) for row in rows] for provider, rows in sorted(data.rows.items())}
    form = {"format": FORMAT, "at": to_text(data.at), "models": models}
    text = json.dumps(form, ensure_ascii=False, separators=(",", ":"))
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


def unpack(packed: bytes) -> CatalogueData:
    """Read what `pack` made. Errors: CatalogueError."""
    try:
        form = json.loads(_inflate(packed))
        if form["format"] != FORMAT:
            raise CatalogueError("another version of the program wrote it")
        rows = {provider: tuple(Row(*facts) for facts in models) for provider, models in form["models"].items()}
        return CatalogueData(from_text(form["at"]), rows)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CatalogueError(f"the file of the model catalogue is damaged ({type(error).__name__})") from error


def _inflate(packed: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        text = file.read(MAX_UNPACKED + 1)
    if len(text) > MAX_UNPACKED:
        raise CatalogueError("it is too large")
    return text


def _short(row: Row) -> list[Any]:
    """A row without the empty end."""
    fields = [int(value) if isinstance(value, float) and value.is_integer() else value for value in row]
    while fields[-1] is None:
        del fields[-1]
    return fields
