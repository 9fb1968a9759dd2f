"""A whole memory over real SQLite and real LanceDB; only the model is a fake."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from spacebot.base.events import EventBus
from spacebot.base.paths import package_file
from spacebot.memory.index import IndexPolicy
from spacebot.memory.memory import AgentMemory, open_memory
from spacebot.storage.database import open_database
from tests.fakes.fake_embedder import FakeEmbedder

OpenMemory = Callable[..., AbstractAsyncContextManager[AgentMemory]]


@pytest.fixture
def open_test_memory(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> OpenMemory:
    @asynccontextmanager
    async def open_it(**settings: Any) -> AsyncIterator[AgentMemory]:
        settings.setdefault("embedder", FakeEmbedder())
        settings.setdefault("events", EventBus())
        settings.setdefault("index", IndexPolicy(uses_child=False))  # 3 s each; the child has tests of its own
        settings.setdefault("verdicts", tmp_path_factory.getbasetemp() / "native.json")  # one trial run for all tests
        async with open_database(tmp_path / "spacebot.db", package_file("storage", "sql")) as database:
            async with open_memory(database, tmp_path / "lancedb", agent_id="main", **settings) as memory:
                yield memory

    return open_it
