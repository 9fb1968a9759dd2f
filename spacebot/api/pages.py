"""The web page: a few files, read once, named by their content so that browsers may keep them for ever.

Floor:   api
Source:  control spec 4.11
"""

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from spacebot.api.contract import Program

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
_VERSION = b"__VERSION__"  # stands in the page after each file name
FOREVER = "public, max-age=31536000, immutable"
PAGE, MEMORY_PAGE, CORTEX_PAGE, EMBED = "index.html", "memory.html", "cortex.html", "embed.js"
CONNECTIONS_PAGE, SCHEDULES_PAGE, WORKERS_PAGE = "connections.html", "schedules.html", "workers.html"


class PageRoutes:
    """Everything that is not under `/api`."""

    def __init__(self, program: Program, files: dict[str, bytes]) -> None:
        self._program = program
        digest = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()[:12]
        self._files = {name: body.replace(_VERSION, digest.encode()) for name, body in files.items()}
        self._tag = f'"{digest}"'

    def routes(self) -> list[Route]:
        """The table; the last one takes what no other did."""
        return [
            Route("/", self.page),
            Route("/memory", self.memory_page),
            Route("/cortex", self.cortex_page),
            Route("/connections", self.connections_page),
            Route("/schedules", self.schedules_page),
            Route("/workers", self.workers_page),
            Route(f"/{EMBED}", self.embed),
            Route("/static/{name}", self.static),
            Route("/{path:path}", self.other),
        ]

    async def page(self, request: Request) -> Response:
        """The chat."""
        self._program.note_visitor()
        return self._answer(request, PAGE, "no-cache")

    async def memory_page(self, request: Request) -> Response:
        """What the agent remembers."""
        self._program.note_visitor()
        return self._answer(request, MEMORY_PAGE, "no-cache")

    async def cortex_page(self, request: Request) -> Response:
        """The owner's console."""
        self._program.note_visitor()
        return self._answer(request, CORTEX_PAGE, "no-cache")

    async def connections_page(self, request: Request) -> Response:
        """Where people talk to the agents."""
        return self._answer(request, CONNECTIONS_PAGE, "no-cache")

    async def schedules_page(self, request: Request) -> Response:
        """What the agents do by themselves."""
        return self._answer(request, SCHEDULES_PAGE, "no-cache")

    async def workers_page(self, request: Request) -> Response:
        """What the agents have set to work."""
        return self._answer(request, WORKERS_PAGE, "no-cache")

    async def embed(self, request: Request) -> Response:
        """The script that other sites include; its address must stay."""
        return self._answer(request, EMBED, "public, max-age=600")

    async def static(self, request: Request) -> Response:
        """A file of the page."""
        name = request.path_params["name"]
        if name not in self._files:
            return PlainTextResponse("not found", 404)
        return self._answer(request, name, FOREVER if "v" in request.query_params else "no-cache")

    async def other(self, request: Request) -> Response:
        """An unknown address is an old bookmark of the page, unless it looks like a file."""
        if "." in request.url.path.rsplit("/", 1)[-1]:
            return PlainTextResponse("not found", 404)
        return RedirectResponse("/", 303)

    def _answer(self, request: Request, name: str, keep: str) -> Response:
        headers = {"cache-control": keep, "etag": self._tag}
        if request.headers.get("if-none-match") == self._tag:
            return Response(status_code=304, headers=headers)
        return Response(self._files[name], headers={**headers, "content-type": _TYPES[Path(name).suffix]})


def read_files(folder: Path) -> dict[str, bytes]:
    """Read the page's files; a missing folder gives a page that says so."""
    if not folder.is_dir():
        missing = b"<!doctype html><title>Spacebot</title>The web page is not part of this build."
        pages = (PAGE, MEMORY_PAGE, CORTEX_PAGE, CONNECTIONS_PAGE, SCHEDULES_PAGE, WORKERS_PAGE)
        return dict.fromkeys(pages, missing) | {EMBED: b""}
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.suffix in _TYPES}
