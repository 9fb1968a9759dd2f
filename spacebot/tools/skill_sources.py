"""Where skills come from: repositories on GitHub, files and folders of the owner's, and the registry.

Flow:    words -> parse_source -> fetch_and_install -> Installer;  search_registry, browse_registry -> Listing
Floor:   tools
Source:  tools spec 10.3; https://docs.github.com/rest/repos/contents (archives); https://skills.sh
"""

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import trio

from spacebot.base.errors import ExternalError, NotFoundError, RefusedError, SpacebotError
from spacebot.base.fetch import Fetcher
from spacebot.base.telemetry import kv
from spacebot.tools.skill_archive import MAX_ARCHIVE
from spacebot.tools.skill_install import Candidate, Installer, from_archive, from_folder
from spacebot.tools.skill_text import one_line

log = logging.getLogger(__name__)

REFUSED = "skill refused"
GITHUB_VARIABLE = "SPACEBOT_GITHUB_ARCHIVES"  # another address of the archives, such as a mirror's
REGISTRY_VARIABLE = "SPACEBOT_SKILLS_REGISTRY"
GITHUB = "https://codeload.github.com"
REGISTRY = "https://skills.sh"
DOWNLOAD_S = 120.0
REGISTRY_S = 10.0
REGISTRY_BYTES = 4 * 2**20
VIEWS = ("all-time", "trending", "hot")
PAGE = 200  # of the registry's lists
MIN_QUERY = 2  # characters
MAX_RESULTS = 100

_OWNER = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})"
_REPO = r"[A-Za-z0-9._-]{1,100}"
_SPEC = re.compile(rf"({_OWNER})/({_REPO})(?:[/@](.+))?")
_URL = re.compile(rf"https://github\.com/({_OWNER})/({_REPO})(?:/tree/[A-Za-z0-9._-]{{1,100}}(?:/(.+))?)?")
_STEP = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True, slots=True)
class Repository:
    """A place on GitHub.

    Args:
        skill: path or folder name of the one skill that is wanted; None for all.
    """

    owner: str
    name: str
    skill: str | None = None

    @property
    def shown(self) -> str:
        """As the lock file and people write it."""
        return f"{self.owner}/{self.name}" + (f"/{self.skill}" if self.skill else "")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where archives and registry are; other than the public ones only when the owner said so."""

    github: str = GITHUB
    registry: str = REGISTRY

    @classmethod
    def of(cls, environ: Mapping[str, str] | None = None) -> "Addresses":
        """Read them from the environment."""
        environ = os.environ if environ is None else environ
        github = environ.get(GITHUB_VARIABLE, "").strip().rstrip("/")
        registry = environ.get(REGISTRY_VARIABLE, "").strip().rstrip("/")
        return cls(github or GITHUB, registry or REGISTRY)


def parse_source(spec: str) -> Repository | Path:
    """What the owner named: a repository, a skill in one, or a path (which begins with `.`, `/` or `~`).

    Errors: RefusedError.
    """
    spec = spec.strip()
    if spec.startswith((".", "/", "~")):
        if "\0" in spec:
            raise RefusedError("the path holds a NUL character")
        return Path(spec)
    found = _URL.fullmatch(spec.removesuffix("/")) or _SPEC.fullmatch(spec.removesuffix("/"))
    name = found[2].removesuffix(".git") if found else ""
    steps = found[3].split("/") if found and found[3] else []
    if found is None or name in ("", ".", "..") or not all(_STEP.fullmatch(s) and s not in (".", "..") for s in steps):
        raise RefusedError(
            f"{spec[:100]!r} names no skills; write owner/repo, owner/repo/skill, or a path that begins with ./ or /"
        )
    return Repository(found[1], name, "/".join(steps) or None)


async def fetch_and_install(
    source: Repository,
    installer: Installer,
    fetcher: Fetcher,
    *,
    addresses: Addresses,
    replace: bool = False,
    only_list: bool = False,
) -> list[str]:
    """Fetch a repository's default branch and install what it holds; returns the names.

    Args:
        only_list: install nothing.

    Errors: NotFoundError, RefusedError, SkillError; ExternalError when GitHub fails.
    """
    passing = await trio.to_thread.run_sync(tempfile.mkdtemp, None, "spacebot-skill-")
    path = Path(passing) / "archive.zip"
    try:
        await _download(source, path, fetcher, addresses)

        def install() -> list[str]:
            with _told(source.shown), from_archive(path, wanted=source.skill, fallback=source.name) as candidates:
                return _names(candidates) if only_list else installer.install(candidates, source.shown, replace=replace)

        return await trio.to_thread.run_sync(install)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(partial(shutil.rmtree, passing, ignore_errors=True))


async def _download(source: Repository, path: Path, fetcher: Fetcher, addresses: Addresses) -> None:
    try:
        await fetcher.download(
            f"{addresses.github}/{source.owner}/{source.name}/zip/HEAD",  # HEAD: whatever the main branch is called
            path,
            may_be_private=addresses.github != GITHUB,
            max_bytes=MAX_ARCHIVE,
            timeout_s=DOWNLOAD_S,
        )
    except ExternalError as error:
        if "status 404" in str(error):
            raise NotFoundError(f"there is no public repository {source.owner}/{source.name}") from error
        raise


def install_path(path: Path, installer: Installer, *, replace: bool = False, only_list: bool = False) -> list[str]:
    """Install a folder's skills, or those of a `.skill` or `.zip` file. Blocking. Errors: as `fetch_and_install`."""
    whole = path.expanduser().resolve()
    with _told(str(whole)), from_archive(whole) if whole.is_file() else nullcontext(from_folder(whole)) as candidates:
        return _names(candidates) if only_list else installer.install(candidates, str(whole), replace=replace)


@contextmanager
def _told(source: str) -> Iterator[None]:
    """Leave a line in the log of what was refused, and why."""
    try:
        yield
    except SpacebotError as error:
        log.warning(REFUSED, extra=kv(source=source, error=str(error)))
        raise


def _names(candidates: list[Candidate]) -> list[str]:
    return [candidate.name for candidate in candidates]


# The registry


@dataclass(frozen=True, slots=True)
class Listed:
    """A skill as the registry lists it; its texts are those of strangers, on one line each."""

    source: str
    skill_id: str
    name: str
    installs: int
    id: str | None = None

    def to_json_object(self) -> dict[str, Any]:
        """With the registry's own names."""
        fields = {"source": self.source, "skillId": self.skill_id, "name": self.name, "installs": self.installs}
        return fields | ({"id": self.id} if self.id else {})


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of the registry."""

    skills: tuple[Listed, ...]
    has_more: bool


async def search_registry(query: str, fetcher: Fetcher, *, addresses: Addresses, limit: int = 50) -> Listing:
    """Skills that fit some words. Errors: RefusedError for a query that is too short; ExternalError."""
    query = " ".join(query.split())
    if len(query) < MIN_QUERY or len(query) > 200:
        raise RefusedError(f"search with {MIN_QUERY} to 200 characters")
    parameters = urlencode({"q": query, "limit": max(1, min(MAX_RESULTS, limit))})
    return await _ask(f"{addresses.registry}/api/search?{parameters}", fetcher, addresses, MAX_RESULTS)


async def browse_registry(view: str, page: int, fetcher: Fetcher, *, addresses: Addresses) -> Listing:
    """A page of a list; an unknown list is that of all time, pages count from 0. Errors: ExternalError."""
    view = view if view in VIEWS else VIEWS[0]
    address = f"{addresses.registry}/api/skills/{view}/{max(0, min(10_000, page))}"
    return await _ask(address, fetcher, addresses, PAGE)


async def _ask(address: str, fetcher: Fetcher, addresses: Addresses, limit: int) -> Listing:
    answer = await fetcher.get(
        address,
        headers={"Accept": "application/json"},
        may_be_private=addresses.registry != REGISTRY,
        max_bytes=REGISTRY_BYTES,
        timeout_s=REGISTRY_S,
    )
    if answer.status != 200:
        raise ExternalError(f"the registry answered with status {answer.status}; try again later")
    try:
        body = json.loads(answer.body)
        items = body["skills"]
        found = [_listed(item) for item in items[:limit]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExternalError("the registry sent something unreadable; try again later") from error
    return Listing(tuple(item for item in found if item), bool(body.get("hasMore") or body.get("has_more")))


def _listed(item: Any) -> Listed | None:
    """One entry; None for one that could not be installed anyway."""
    if not isinstance(item, dict):
        return None
    source, name = one_line(item.get("source"), 200), one_line(item.get("name"), 200)
    skill_id = one_line(item.get("skillId"), 200) or name
    installs = item.get("installs")
    if not _SPEC.fullmatch(source) or not name:
        return None
    return Listed(
        source, skill_id, name, installs if isinstance(installs, int) else 0, one_line(item.get("id"), 300) or None
    )
