"""A stand-in for where skills come from: archives of repositories, and the registry that lists them.

Flow: open_hub() -> Hub; `hub.repositories["owner/repo"] = archive(...)`; `hub.addresses` is given to the program
"""

import io
import json
import stat
import zipfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from spacebot.tools.skill_sources import Addresses
from tests.stand_ins.serving import Connection, Request, Server, serve

TEXT = "---\nname: {name}\ndescription: {description}\n---\n{body}\n"


def skill_text(name: str = "pdf", description: str = "Works with PDF files.", body: str = "Do it well.") -> str:
    """A plain `SKILL.md`."""
    return TEXT.format(name=name, description=description, body=body)


def archive(files: Mapping[str, str | bytes], *, top: str = "repo-main/") -> bytes:
    """A zip as repositories are handed out: everything below one folder. Names ending in `*` are programs."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as packed:
        if top:
            packed.writestr(zipfile.ZipInfo(top), b"")
        for name, content in files.items():
            info = zipfile.ZipInfo(top + name.removesuffix("*"))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (stat.S_IFREG | (0o755 if name.endswith("*") else 0o644)) << 16
            packed.writestr(info, content)
    return held.getvalue()


@dataclass(slots=True)
class Hub:
    """The running stand-in; both services on one port."""

    server: Server | None = None
    repositories: dict[str, bytes] = field(default_factory=dict)
    listed: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    raw: bytes | None = None  # said by the registry instead
    status: int = 200  # of the registry

    @property
    def addresses(self) -> Addresses:
        """For the program under test."""
        assert self.server is not None
        return Addresses(github=self.server.url, registry=self.server.url)

    async def handle(self, request: Request, connection: Connection) -> None:
        self.asked.append(request.path)
        path, _, query = request.path.partition("?")
        if path.startswith("/api/"):
            parameters = dict(parse_qsl(query))
            found = [one for one in self.listed if parameters.get("q", "") in str(one.get("name"))]
            body = {"skills": found[: int(parameters.get("limit", 200))], "hasMore": path.endswith("/0")}
            await connection.send(self.raw or json.dumps(body).encode(), status=self.status)
            return
        repository, _, rest = path[1:].partition("/zip/")
        if rest == "HEAD" and (content := self.repositories.get(repository)) is not None:
            await connection.send(content, content_type="application/zip")
        else:
            await connection.send(b"404: Not Found", status=404)


@asynccontextmanager
async def open_hub() -> AsyncIterator[Hub]:
    """Serve on loopback while the block runs."""
    hub = Hub()
    async with serve(hub.handle) as server:
        hub.server = server
        yield hub
