"""A stand-in for models.dev, and for what an Ollama server says it has.

Flow: open_models_dev() -> ModelsDev; what is published is in `vendors`, what comes instead is set in `next`
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from tests.stand_ins.serving import Connection, Request, Server, serve

PATH = "/api.json"


def published(model_id: str, **facts: Any) -> dict[str, Any]:
    """A model as models.dev has it: reads and writes text, calls tools."""
    return {
        "id": model_id,
        "name": model_id.upper(),
        "tool_call": True,
        "reasoning": False,
        "modalities": {"input": ["text"], "output": ["text"]},
        "limit": {"context": 100_000, "output": 8_000},
        "cost": {"input": 1, "output": 2},
        **facts,
    }


@dataclass(slots=True)
class ModelsDev:
    """The running stand-in."""

    vendors: dict[str, dict[str, Any]] = field(default_factory=dict)
    tags: list[dict[str, Any]] = field(default_factory=list)  # of Ollama
    next: list[tuple[int, bytes]] = field(default_factory=list)  # said instead, one for each request
    stalls: trio.Event | None = None  # while set to an event, answers wait for it
    asked: list[str] = field(default_factory=list)
    server: Server | None = None

    @property
    def url(self) -> str:
        """The address of the catalogue."""
        assert self.server is not None
        return f"{self.server.url}{PATH}"

    def publish(self, vendor: str, *models: dict[str, Any]) -> None:
        """Put models of a vendor into the catalogue."""
        self.vendors[vendor] = {"id": vendor, "name": vendor, "models": {model["id"]: model for model in models}}

    async def handle(self, request: Request, connection: Connection) -> None:
        self.asked.append(request.path)
        if self.stalls is not None:
            await self.stalls.wait()
        if self.next:
            status, body = self.next.pop(0)
            await connection.send(body, status=status)
        elif request.path == PATH:
            await connection.send(json.dumps(self.vendors).encode())
        elif request.path == "/api/tags":
            await connection.send(json.dumps({"models": self.tags}).encode())
        else:
            await connection.send(b"{}", status=404)


@asynccontextmanager
async def open_models_dev() -> AsyncIterator[ModelsDev]:
    """Serve an empty catalogue on loopback while the block runs."""
    models_dev = ModelsDev()
    async with serve(models_dev.handle) as server:
        models_dev.server = server
        yield models_dev
