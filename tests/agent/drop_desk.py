"""A desk for tests of the drop folder: an open agent, files as old as the test says, rows, and how documents ended."""

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from trio.testing import MockClock

from spacebot.base.errors import ModelUnavailableError
from spacebot.base.events import EventKind
from spacebot.config.model import IngestionConfig
from spacebot.conversations.ingestion_log import IngestedFile
from spacebot.llm.messages import ModelRequest, ProcessKind, last_user_text
from spacebot.memory.types import EVERYTHING, Memory, Query, SearchMode
from tests.fakes.opened import EPOCH, Opened, open_test_agent
from tests.fakes.scripted_model import Call, Say, ScriptedModel

DOWN = ModelUnavailableError("nobody answers", model="scripted/model")


def body(text: str) -> str:
    """What stands inside of the document's frame."""
    match = re.search(r"<document[^>]*>\n(.*)\n</document>", text, re.DOTALL)
    assert match is not None, text
    return match[1]


def save_all(request: ModelRequest) -> Any:
    """A model that saves its part in one memory, word by word."""
    if len(request.messages) > 1:
        return Say("saved")
    return Call("memory_save", content=body(last_user_text(request.messages)).strip()[:200], memory_type="fact")


class Desk:
    """An open agent and its drop folder."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.folder = opened.folder / "agents" / "main" / "workspace" / "ingest"

    def drop(self, name: str, data: bytes | str, *, age: float = 10) -> Path:
        """Put a file there that was last written to `age` seconds ago."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        self.touch(path, age)
        return path

    def touch(self, path: Path, age: float) -> None:
        assert isinstance(self.opened.clock, MockClock)
        moment = EPOCH.timestamp() + self.opened.clock.current_time() - age
        os.utime(path, (moment, moment))

    def here(self) -> list[str]:
        """The names in the folder."""
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*"))

    async def ends(self, count: int) -> list[tuple[str, str]]:
        """Wait until so many times a document was done with, for now; says which and how."""
        found: list[tuple[str, str]] = []
        while len(found) < count:
            events = await self.opened.events_of(EventKind.INGESTION_PROGRESS, self._seen + 1)
            self._seen += 1
            if events[self._seen - 1].fields["status"] != "processing":
                found.append(
                    (str(events[self._seen - 1].fields["filename"]), str(events[self._seen - 1].fields["status"]))
                )
        await self.rest()
        return found

    _seen = 0

    async def rest(self) -> None:
        """Wait until nothing moves."""
        for _ in range(4):
            await self.opened.settled()

    async def poll(self, seconds: float = 30) -> None:
        await self.opened.advance(seconds)
        await self.rest()

    async def rows(self) -> list[IngestedFile]:
        return await self.opened.agent.ingestion.files()

    async def row(self) -> IngestedFile:
        (row,) = await self.rows()
        return row

    async def memories(self) -> list[Memory]:
        """All memories, in the order of their contents."""
        query = Query(viewer=EVERYTHING, mode=SearchMode.RECENT, limit=1000, counts_as_access=False)
        return sorted(
            (hit.memory for hit in (await self.opened.agent.memory.recall(query)).hits), key=lambda m: m.content
        )

    async def contents(self) -> list[str]:
        return [memory.content for memory in await self.memories()]

    def set(self, **ingestion: Any) -> None:
        """Change the settings while it runs."""
        config = self.opened.config[0]
        self.opened.config[0] = config.model_copy(
            update={"ingestion": IngestionConfig(**{**config.ingestion.model_dump(), **ingestion})}
        )

    @property
    def prompts(self) -> list[str]:
        """What each run was first asked."""
        return [
            last_user_text(request.messages)
            for request in self.opened.model.requests_of(ProcessKind.BRANCH)
            if len(request.messages) == 1
        ]


@asynccontextmanager
async def open_desk(
    folder: Path, branch: Any = save_all, *, demo: bool = False, **ingestion: Any
) -> AsyncIterator[Desk]:
    model = ScriptedModel(branch=branch)
    routing = {} if demo else {"routing": {"branch": "scripted/model"}}
    async with open_test_agent(folder, model, ingestion=ingestion, **routing) as opened:
        desk = Desk(opened)
        await desk.rest()
        yield desk


def lines(count: int) -> str:
    """A text whose parts of 200 characters are one line each."""
    return "".join(f"{number:03d} ".ljust(149, "x") + "\n" for number in range(count))


def numbers(texts: list[str]) -> list[int]:
    return [int(text[:3]) for text in texts]
