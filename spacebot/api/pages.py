"""The web pages: read once, put into one shell, named by their content so that browsers may keep them for ever.

A page is `NAME.html` (its own part only), `NAME.js` and, where it has looks of its own, `NAME.css`. Head, navigation,
banners and dialogs stand once, in `shell.html`. A page whose file is not there has no entry in the navigation.

Flow:    read_files -> shell + parts -> whole pages; a request -> kept body, packed if the browser takes gzip
Floor:   api
Source:  control spec 4.11, 5.1; RFC 9110 sections 8.8.3 and 12.5.3
"""

import gzip
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from html import escape
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
_VERSION = b"__VERSION__"  # stands in the files after each file name
FOREVER = "public, max-age=31536000, immutable"
SHELL, CHAT, EMBED = "shell.html", "chat", "embed.js"
_IMPORT = re.compile(rb'from "\./([\w.]+\.js)\?v=')
_SKIP = re.compile(r"<!-- skip #([\w-]+): (.+?) -->\s*")
_MAIN = "<!-- main -->"  # what stands above it goes into the header
_GZIP = re.compile(r"(?:^|,)\s*(?:gzip|\*)\s*(?:;\s*q=(?!0(?:\.0*)?\s*(?:,|$))[\d.]+\s*)?(?=,|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the navigation."""

    name: str  # of its files, and its address; the chat's is `/`
    title: str
    key: str  # goes there when typed after `g`
    group: int  # pages of one group stand together; 0 is left out of the navigation
    is_scoped: bool = True  # shows one agent at a time, so there is a choice of agents
    is_heavy: bool = False  # whoever opens it will want the slow parts soon

    @property
    def path(self) -> str:
        """Its address."""
        return "/" if self.name == CHAT else f"/{self.name}"


_ICONS = {  # strokes in a box of 20 by 20
    "overview": "M3 3h6v8H3zM11 3h6v5h-6zM11 10h6v7h-6zM3 13h6v4H3z",
    "chat": "M3 4h14v10H9l-4 3.5V14H3z",
    "conversations": "M2.5 3.5h11v8H7L4 14v-2.5H2.5zM16 7h1.5v7.5H16V17l-3-2.5H9",
    "memory": "M10 3v14M10 4a3 3 0 0 0-5 2 3 3 0 0 0-1.5 5A3 3 0 0 0 6 16a3 3 0 0 0 4 0"
    "M10 4a3 3 0 0 1 5 2 3 3 0 0 1 1.5 5 3 3 0 0 1-2.5 5 3 3 0 0 1-4 0",
    "workers": "M12 3a4.5 4.5 0 0 0-4 6.4L3 14.5 5.5 17l5.1-5A4.5 4.5 0 0 0 17 8l-3 1.5L11.5 8l.5-2.5z",
    "schedules": "M10 3a7 7 0 1 0 0 14 7 7 0 0 0 0-14M10 6v4l3 2",
    "cortex": "M10 6.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7M10 2.5v2M10 15.5v2M2.5 10h2M15.5 10h2",
    "skills": "M4 3.5h9a3 3 0 0 1 3 3v10H7a3 3 0 0 1-3-3zM4 13.5a2.5 2.5 0 0 1 2.5-2.5H16M8 6.5h4.5",
    "mcp": "M7 2.5v5M13 2.5v5M5 7.5h10V10a5 5 0 0 1-10 0zM10 15v3",
    "connections": "M8.5 11.5a3 3 0 0 0 4.2 0l3-3a3 3 0 0 0-4.2-4.2l-1 1"
    "M11.5 8.5a3 3 0 0 0-4.2 0l-3 3a3 3 0 0 0 4.2 4.2l1-1",
    "usage": "M3 17h14M5 17v-5M10 17V4M15 17V9",
    "settings": "M3 6h8M15 6h2M3 14h2M9 14h8M13 4v4M7 12v4",
    "secrets": "M12.5 3a4.5 4.5 0 0 0-4.3 5.8L3 14v3h3l.5-1.5H8V14h1.5l1.7-1.7A4.5 4.5 0 1 0 12.5 3M13.5 6.4v.1",
    "logs": "M3 4.5h14M3 8.2h9M3 11.8h14M3 15.5h7",
}
PAGES = (
    Page("overview", "Overview", "o", 1, is_scoped=False),
    Page(CHAT, "Chat", "c", 1, is_heavy=True),
    Page("conversations", "Conversations", "v", 1),
    Page("memory", "Memory", "m", 2, is_heavy=True),
    Page("workers", "Workers", "w", 2),
    Page("schedules", "Schedules", "s", 2),
    Page("cortex", "Cortex", "x", 2, is_heavy=True),
    Page("skills", "Skills", "k", 3),
    Page("mcp", "MCP", "p", 3),
    Page("connections", "Connections", "n", 3, is_scoped=False),
    Page("usage", "Usage", "u", 4, is_scoped=False),
    Page("settings", "Settings", "e", 4, is_scoped=False),
    Page("secrets", "Secrets", "r", 4, is_scoped=False),
    Page("logs", "Logs", "l", 4, is_scoped=False),
    Page("prompts", "Prompts", "i", 0),
)


class PageRoutes:
    """Everything that is not under `/api`."""

    def __init__(self, program: Program, files: Mapping[str, bytes]) -> None:
        self._program = program
        digest = hashlib.sha256(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()[:12]
        self._pages = {page.name: page for page in PAGES if f"{page.name}.html" in files}
        whole = {f"{name}.html": body for name, body in _put_together(files, self._pages)}
        self._files = {
            name: body.replace(_VERSION, digest.encode()) for name, body in {**files, **whole}.items() if name != SHELL
        }
        self._packed: dict[str, bytes] = {}
        self._tag = digest

    def routes(self) -> list[Route]:
        """The table; the last one takes what no other did."""
        pages = [Route(page.path, partial(self.page, page)) for page in self._pages.values()]
        return [
            *pages,
            Route(f"/{EMBED}", self.embed),
            Route("/static/{name}", self.static),
            Route("/{path:path}", self.other),
        ]

    async def page(self, page: Page, request: Request) -> Response:
        """A page; slow parts may warm up while the person looks around."""
        if page.is_heavy:
            self._program.note_visitor()
        return self._answer(request, f"{page.name}.html", "no-cache")

    async def embed(self, request: Request) -> Response:
        """The script that other sites include; its address must stay."""
        return self._answer(request, EMBED, "public, max-age=600")

    async def static(self, request: Request) -> Response:
        """A file of the pages."""
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
        is_packed = _GZIP.search(request.headers.get("accept-encoding", "")) is not None
        tag = f'"{self._tag}-gzip"' if is_packed else f'"{self._tag}"'
        headers = {"cache-control": keep, "etag": tag, "vary": "accept-encoding"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        headers["content-type"] = _TYPES[Path(name).suffix]
        if not is_packed:
            return Response(self._files[name], headers=headers)
        if name not in self._packed:  # once, when it is asked for: packing all would make every start longer
            self._packed[name] = gzip.compress(self._files[name], 9, mtime=0)
        return Response(self._packed[name], headers={**headers, "content-encoding": "gzip"})


def _put_together(files: Mapping[str, bytes], pages: Mapping[str, Page]) -> Iterator[tuple[str, bytes]]:
    """Each page's part in the shell."""
    if SHELL not in files:
        return
    shell = files[SHELL].decode()
    for page in pages.values():
        part = files[f"{page.name}.html"].decode()
        skip = _SKIP.match(part) or _SKIP.match("<!-- skip #main: Skip to the content -->")
        assert skip is not None
        part = _SKIP.sub("", part, count=1)
        header, _, main = part.rpartition(_MAIN)
        places = {
            "name": page.name,
            "title": escape(page.title),
            "window": "Spacebot" if page.name == CHAT else f"{escape(page.title)} · Spacebot",
            "links": "\n".join(_head_links(files, page)),
            "skip": f'<a class="skip" href="#{skip[1]}">{skip[2]}</a>',
            "pages": "\n".join(_entry(one, one is page, pages) for one in pages.values() if one.group),
            "scope": " data-scoped" if page.is_scoped else "",
            "header": header.strip(),
            "main": main.strip(),
        }
        yield page.name, _fill(shell, places).encode()


def _fill(text: str, places: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: places[found[1]], text)


def _head_links(files: Mapping[str, bytes], page: Page) -> Iterator[str]:
    """Looks and scripts of a page; what its script imports is fetched beside it, not after it."""
    if f"{page.name}.css" in files:
        yield f'<link rel="stylesheet" href="static/{page.name}.css?v=__VERSION__">'
    script = f"{page.name}.js"
    if script not in files:
        return
    yield f'<script type="module" src="static/{script}?v=__VERSION__"></script>'
    for name in sorted(_imported(files, script, set()) - {script}):
        yield f'<link rel="modulepreload" href="static/{name}?v=__VERSION__">'


def _imported(files: Mapping[str, bytes], name: str, known: set[str]) -> set[str]:
    known.add(name)
    for found in _IMPORT.findall(files.get(name, b"")):
        if (other := found.decode()) not in known:
            _imported(files, other, known)
    return known


def _entry(page: Page, is_here: bool, pages: Mapping[str, Page]) -> str:
    """One line of the navigation."""
    first = next(one for one in pages.values() if one.group == page.group)
    mark = ' class="first"' if first is page else ""
    here = ' aria-current="page"' if is_here else ""
    href = "./" if page.name == CHAT else page.name
    return (
        f'<li{mark}><a href="{href}" data-page="{page.name}" data-key="{page.key}" title="{escape(page.title)}"{here}>'
        f'<svg viewBox="0 0 20 20" aria-hidden="true"><path d="{_ICONS[page.name]}"/></svg>'
        f'<span>{escape(page.title)}</span><b class="count-badge" hidden></b></a></li>'
    )


def read_files(folder: Path) -> dict[str, bytes]:
    """Read the pages' files; a missing folder gives pages that say so."""
    if not folder.is_dir():
        missing = b"<!doctype html><title>Spacebot</title>The web page is not part of this build."
        return {f"{page.name}.html": missing for page in PAGES} | {EMBED: b""}
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.suffix in _TYPES}
