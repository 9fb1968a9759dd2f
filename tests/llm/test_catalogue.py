"""The model catalogue: what ships, what is fetched when somebody asks, what is done with rubbish."""

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from spacebot.base.clock import Clock
from spacebot.base.errors import ExternalError
from spacebot.base.fetch import open_fetcher
from spacebot.base.paths import package_file
from spacebot.config.model import ApiType, LlmConfig, ProviderConfig
from spacebot.llm.catalogue import FILE, URL_VARIABLE, ModelCatalogue, load_catalogue
from spacebot.llm.catalogue_data import CatalogueData, CatalogueError, Row, pack, to_rows, unpack
from spacebot.llm.libraries import Libraries
from spacebot.llm.manager import ModelManager
from spacebot.llm.messages import ProcessKind
from spacebot.llm.prices import FREE, Price
from tests.llm.given import providers
from tests.llm.test_manager import ALONE, ToldDialect
from tests.stand_ins.models_dev import ModelsDev, open_models_dev, published

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


class World:
    """A catalogue in a folder, the stand-in it is fetched from, and a clock that the test moves."""

    def __init__(self, folder: Path, catalogue: ModelCatalogue, models_dev: ModelsDev, moment: list[datetime]) -> None:
        self.folder = folder
        self.catalogue = catalogue
        self.models_dev = models_dev
        self.moment = moment


@asynccontextmanager
async def open_world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    moment = [NOW]
    async with open_models_dev() as models_dev, open_fetcher() as fetcher:
        monkeypatch.setenv(URL_VARIABLE, models_dev.url)
        models_dev.publish("openai", published("gpt-7", limit={"context": 500_000}))
        catalogue = await load_catalogue(folder, fetcher, Clock(now=lambda: moment[0]))
        yield World(folder, catalogue, models_dev, moment)


async def shipped() -> ModelCatalogue:
    return await load_catalogue(None, None, Clock(now=lambda: NOW))


async def test_the_copy_that_ships_is_small_and_knows_the_default_providers() -> None:
    packed = package_file("llm", "catalogue.json.gz").read_bytes()
    data = unpack(packed)
    assert len(packed) < 60 * 1024
    assert {"anthropic", "openai", "openrouter", "gemini", "deepseek", "groq", "mistral", "xai"} <= data.rows.keys()
    assert all("t" in row.flags for rows in data.rows.values() for row in rows)
    assert pack(data) == packed  # the same data make the same bytes, so that a build can be repeated


async def test_models_are_found_however_they_are_spelt() -> None:
    catalogue = await shipped()
    names = ("anthropic/claude-haiku-4.5", "anthropic/claude-haiku-4-5", "anthropic/claude-haiku-4-5-20251001",
             "claude-haiku-4.5", "openrouter/anthropic/claude-haiku-4.5:nitro")  # fmt: skip
    assert {catalogue.context_window(name) for name in names} == {200_000}
    assert {catalogue.price(name) for name in names[:4]} == {Price(input=1, output=5, cached=0.1, write=1.25)}
    assert catalogue.find("openai/gpt-of-tomorrow") is None
    assert catalogue.find("nobody/gpt-4.1") is None


async def test_free_models_are_openrouters_that_call_tools_largest_window_first(tmp_path: Path) -> None:
    rows = (
        Row("a/small:free", "A", 8_000, "t", 0, 0),
        Row("b/large:free", "B", 900_000, "tr", 0, 0),
        Row("c/mute:free", "C", 990_000, "r", 0, 0),
        Row("d/paid", "D", 990_000, "t", 0, 0.1),
        Row("e/unpriced", "E", 990_000, "t"),
    )
    data = CatalogueData(NOW, {"openrouter": rows, "nvidia": (Row("f", "F", 999_000, "t", 0, 0),)})
    catalogue = ModelCatalogue(data, Clock())
    assert catalogue.free_models() == ("openrouter/b/large:free", "openrouter/a/small:free")
    assert catalogue.price("openrouter/b/large:free") == FREE


async def test_only_models_of_configured_providers_are_listed() -> None:
    catalogue = await shipped()
    assert await catalogue.models(LlmConfig()) == []
    found = await catalogue.models(providers("anthropic", "moonshot"))
    assert {model.provider for model in found} == {"anthropic", "moonshot"}
    extra = next(model for model in found if model.id == "moonshot/moonshot-v1-8k")
    assert (extra.context_window, extra.price) == (8_000, None)
    routed = await catalogue.models(providers("openrouter"))
    assert all(model.id.startswith("openrouter/") for model in routed)
    assert any(model.is_voice for model in routed)


async def test_nothing_is_fetched_until_somebody_asks_and_then_it_outlives_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tmp_path, monkeypatch) as world:
        catalogue, llm = world.catalogue, providers("openai")
        world.moment[0] += timedelta(days=400)
        assert await catalogue.models(llm)
        assert catalogue.is_stale
        assert world.models_dev.asked == []
        await catalogue.refresh()
        assert [model.id for model in await catalogue.models(llm)] == ["openai/gpt-7"]
        assert catalogue.context_window("openai/gpt-7") == 500_000
        assert not catalogue.is_stale
        world.moment[0] += timedelta(hours=1, seconds=1)
        assert catalogue.is_stale
        again = await load_catalogue(tmp_path, None, Clock(now=lambda: world.moment[0]))
        assert again.context_window("openai/gpt-7") == 500_000
    assert world.models_dev.asked == ["/api.json"]


async def test_those_who_ask_at_once_share_one_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_world(tmp_path, monkeypatch) as world:
        world.models_dev.stalls = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(world.catalogue.refresh)
            await trio.testing.wait_all_tasks_blocked(0.02)
            world.models_dev.stalls.set()
        assert len(world.models_dev.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"{}"),
        (200, b"<html>maintenance</html>"),
        (200, b"{}"),
        (200, b'{"openai": {"models": {"gpt-7": {"id": "gpt-7"'),
        (200, b'{"openai": ' + b"[" * 100_000),
        (200, b'{"openai": {"models": []}, "\xff": 1}'),
        (302, b""),
    ],
)
async def test_when_it_cannot_be_fetched_the_copy_in_use_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, bytes]
) -> None:
    async with open_world(tmp_path, monkeypatch) as world:
        before = world.catalogue.fetched_at
        world.models_dev.next.append(answer)
        with pytest.raises(ExternalError, match="the catalogue in use stays"):
            await world.catalogue.refresh()
        assert world.catalogue.fetched_at == before
        assert world.catalogue.context_window("openai/gpt-4.1")
        assert not (tmp_path / FILE).exists()
        await world.catalogue.refresh()
        assert world.catalogue.context_window("openai/gpt-7") == 500_000


async def test_a_silent_server_is_waited_for_fifteen_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_world(tmp_path, monkeypatch) as world:
        world.models_dev.stalls = trio.Event()
        began = trio.current_time()
        with pytest.raises(ExternalError, match="no answer within 15 seconds"):
            await world.catalogue.refresh()
        assert trio.current_time() - began == pytest.approx(15, abs=0.5)


@pytest.mark.parametrize(
    "damage",
    [b"", b"not gzip", gzip.compress(b"[]"), gzip.compress(b'{"format": 2}'), None],
    ids=["empty", "no gzip", "no table", "another format", "missing"],
)
async def test_a_damaged_copy_gives_way_to_the_one_that_ships(tmp_path: Path, damage: bytes | None) -> None:
    data = damage if damage is not None else gzip.compress(b" " * (33 * 2**20))
    (tmp_path / FILE).write_bytes(data)
    catalogue = await load_catalogue(tmp_path, None, Clock())
    assert catalogue.fetched_at == (await shipped()).fetched_at


async def test_a_copy_older_than_the_one_that_ships_does_not_count(tmp_path: Path) -> None:
    old = CatalogueData(datetime(2020, 1, 1, tzinfo=UTC), {"openai": (Row("gpt-7", "G", 1, "t"),)})
    (tmp_path / FILE).write_bytes(pack(old))
    assert (await load_catalogue(tmp_path, None, Clock())).find("openai/gpt-7") is None


def test_vendors_get_our_names_and_what_cannot_talk_is_left_out() -> None:
    text = {"input": ["text"], "output": ["text"]}
    models = {
        "google": [published("gemini-9", modalities={"input": ["text", "audio", "image"], "output": ["text"]})],
        "togetherai": [published("org/model")],
        "fireworks-ai": [published("accounts/fireworks/models/x")],
        "zhipuai": [published("glm-9", limit={"context": 1})],
        "zai": [published("glm-9", limit={"context": 2}), published("glm-10")],
        "openrouter": [published("vendor/model", cost=None)],
        "302ai": [published("whatever")],
        "github-copilot": [published("gpt-7", cost={"input": 0, "output": 0})],
        "openai": [
            published("old", status="deprecated"),
            published("painter", modalities={"input": ["text"], "output": ["image"]}),
            published("mute", tool_call=False, reasoning=True, modalities=text),
            published("\x1b[31mred"),
            published("x" * 500),
            {"id": 7},
            published("odd", limit=None, cost={"input": -1, "output": "free"}, name=None),
        ],
    }
    raw = {vendor: {"models": {str(n): model for n, model in enumerate(found)}} for vendor, found in models.items()}
    rows = to_rows(json.dumps(raw).encode())
    assert {provider: [row.id for row in found] for provider, found in rows.items()} == {
        "gemini": ["gemini-9"], "together": ["org/model"], "fireworks": ["accounts/fireworks/models/x"],
        "zhipu": ["glm-9", "glm-10"], "openrouter": ["vendor/model"], "github-copilot": ["gpt-7"],
        "openai": ["mute", "odd"],
    }  # fmt: skip
    assert rows["gemini"][0].flags == "tia"
    assert rows["zhipu"][0].window == 1
    assert rows["github-copilot"][0].price is None
    assert rows["openai"] == [Row("mute", "MUTE", 100_000, "r", 1, 2), Row("odd", "odd", 0, "t")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FACTS = st.dictionaries(
    st.sampled_from(["id", "name", "modalities", "limit", "cost", "status", "tool_call"]), JSON, max_size=7
)


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(["openai", "google", "x"]), st.builds(lambda m: {"models": m}, JSON | st.builds(
    lambda facts: {"m": published("m") | facts}, FACTS))))  # fmt: skip
def test_whatever_is_published_gives_rows_or_a_plain_error(raw: object) -> None:
    try:
        rows = to_rows(json.dumps(raw).encode())
    except CatalogueError:
        return
    data = CatalogueData(NOW, {provider: tuple(found) for provider, found in rows.items()})
    assert unpack(pack(data)) == data


async def test_ollama_is_asked_for_what_it_has_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    async with open_world(tmp_path, monkeypatch) as world:
        models_dev, catalogue = world.models_dev, world.catalogue
        models_dev.tags = [
            {"name": "llama3.2:latest", "model": "llama3.2:latest"},
            {"name": "qwen3", "capabilities": ["completion", "tools", "thinking"]},
            {"name": "bad\nname"},
        ]
        assert models_dev.server is not None
        own = ProviderConfig(api_type=ApiType.OPENAI_COMPLETIONS, base_url=models_dev.server.url + "/v1/")
        llm = LlmConfig(provider={"ollama": own})
        found = await catalogue.models(llm)
        assert [(m.id, m.name, m.tool_call, m.reasoning) for m in found] == [
            ("ollama/llama3.2:latest", "llama3.2", None, False),
            ("ollama/qwen3", "qwen3", True, True),
        ]
        assert await catalogue.models(llm) == found
        assert models_dev.asked == ["/api/tags"]
        mock_clock.jump(61)
        models_dev.next.append((500, b""))
        assert await catalogue.models(llm) == found  # what it had
        mock_clock.jump(61)
        models_dev.next.append((200, b'{"models": 3}'))
        assert await catalogue.models(llm) == found
        assert len(models_dev.asked) == 3


@pytest.mark.spec("C-56")
async def test_the_catalogue_caps_what_a_model_is_given_to_read() -> None:
    async with trio.open_nursery() as nursery:
        dialects = dict.fromkeys(ApiType, ToldDialect({}))
        manager = ModelManager(Libraries(dialects, nursery), lambda: providers("openai"))
        model = manager.for_agent(lambda: ALONE)
        assert model.context_window(ProcessKind.CHANNEL) == ALONE.context_window
        manager.known_window = {"openai/a": 32_000}.get
        assert model.context_window(ProcessKind.CHANNEL) == 32_000
        manager.known_window = {"openai/a": 1_000_000}.get
        assert model.context_window(ProcessKind.CHANNEL) == ALONE.context_window
