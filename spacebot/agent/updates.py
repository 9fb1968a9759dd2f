"""Looking for newer releases, when the owner names a repository; nothing calls home by itself.

The program does not exchange itself: whoever installed it, a package manager, a container engine or a person, also
replaces it. It says what is to be done for its own kind of installation.

Flow:    UpdateCheck.run -> GitHub's latest release -> UpdateState -> status, API, doctor
Floor:   agent
Source:  control spec 3.5; GitHub REST, "Get the latest release"
"""

import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import trio

import spacebot
from spacebot import __version__
from spacebot.base.clock import Clock
from spacebot.base.errors import ExternalError, RefusedError, SpacebotError
from spacebot.base.fetch import Answer
from spacebot.base.telemetry import kv
from spacebot.base.versions import is_newer, parse_version
from spacebot.config.environment import deployment
from spacebot.config.model import UpdateConfig

log = logging.getLogger(__name__)

FIRST_S = 10.0  # after the start
MAX_BYTES = 1 << 20  # of GitHub's answer
MAX_NOTES = 20_000  # characters
GITHUB = "https://api.github.com"
OFF = "no repository is named; set update.repository to owner/name"


class Get(Protocol):
    """`Fetcher.get` with its limits."""

    def __call__(self, url: str, *, headers: Mapping[str, str], max_bytes: int) -> Awaitable[Answer]:
        """Ask a service. Errors: RefusedError, ExternalError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateState:
    """What is known of newer releases.

    Args:
        deployment: docker, hosted or native.
        cannot_apply_reason: what to do instead of letting the program replace itself.
    """

    current_version: str = __version__
    latest_version: str | None = None
    update_available: bool = False
    release_url: str | None = None
    release_notes: str | None = None
    deployment: str = "native"
    can_apply: bool = False
    cannot_apply_reason: str = ""
    checked_at: str | None = None
    error: str | None = None


class UpdateCheck:
    """Knows the newest release. `run` looks from time to time, `check` at once.

    Args:
        config: the live table.
        get: asks GitHub, or a stand-in at `base_url`.
    """

    def __init__(
        self, config: Callable[[], UpdateConfig], get: Get, *, clock: Clock | None = None, base_url: str = GITHUB
    ) -> None:
        self._config = config
        self._get = get
        self._clock = clock or Clock()
        self._base_url = base_url
        self._lock = trio.Lock()
        self._changed = trio.Event()
        self._of: str | None = None  # the repository that the state speaks of
        kind = deployment(os.environ)
        self._state = UpdateState(deployment=kind, cannot_apply_reason=how_to_update(kind), error=OFF)

    @property
    def state(self) -> UpdateState:
        """What is known now."""
        if self._config().repository != self._of:
            kind = self._state.deployment
            error = OFF if self._config().repository is None else "not looked yet"
            return UpdateState(deployment=kind, cannot_apply_reason=how_to_update(kind), error=error)
        return self._state

    def reconsider(self) -> None:
        """The configuration has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Look ten seconds after the start, then as often as the owner wants; sleep while no repository is named."""
        pause = FIRST_S
        while True:
            self._changed = trio.Event()
            repository = self._config().repository
            with trio.move_on_after(pause if repository is not None else float("inf")) as scope:
                await self._changed.wait()
            if scope.cancelled_caught or self._config().repository not in (None, self._of):
                await self.check()
                pause = self._config().check_interval_secs

    async def check(self) -> UpdateState:
        """Look now. What goes wrong stands in the state, beside what was known before."""
        async with self._lock:
            repository = self._config().repository
            if repository is None:
                return self.state
            known = self.state
            try:
                found = await self._latest(repository)
            except SpacebotError as error:
                log.info("no word about releases", extra=kv(reason=str(error)))
                found = {"error": str(error)}
            else:
                found["error"] = None
            self._state = UpdateState(**{**asdict(known), **found, "checked_at": self._clock.text()})
            self._of = repository
            return self._state

    async def _latest(self, repository: str) -> dict[str, Any]:
        """Errors: RefusedError, ExternalError."""
        answer = await self._get(
            f"{self._base_url}/repos/{repository}/releases/latest",
            headers={
                "user-agent": f"spacebot/{__version__}",
                "accept": "application/vnd.github+json",
                "x-github-api-version": "2022-11-28",
            },
            max_bytes=MAX_BYTES,
        )
        if answer.status == 404:
            raise ExternalError(f"GitHub knows no release of {repository}; look at update.repository")
        if answer.status in (403, 429):
            raise ExternalError("GitHub wants fewer questions for a while; the next look may succeed")
        if 300 <= answer.status < 400:
            raise ExternalError(f"{repository} has moved; name its new place in update.repository")
        if answer.status != 200:
            raise ExternalError(f"GitHub answered with status {answer.status}; the next look may succeed")
        try:
            release = json.loads(answer.body)
            version, url, notes = release["tag_name"], release.get("html_url"), release.get("body")
            if parse_version(version) is None:
                raise RefusedError(
                    f"the latest release of {repository} is called {version[:40]!r}, which is no version"
                )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ExternalError("GitHub's answer could not be read; the next look may succeed") from error
        return {
            "latest_version": version.strip().removeprefix("v"),
            "update_available": is_newer(version, __version__),
            "release_url": url if isinstance(url, str) and url.startswith("https://") else None,
            "release_notes": notes[:MAX_NOTES] if isinstance(notes, str) else None,
        }


def how_to_update(kind: str) -> str:
    """What the owner does to update this installation."""
    if kind == "docker":
        return "pull or build the new image and create the container anew with the same volume: /data holds everything"
    if kind == "hosted":
        return "the host of this instance updates it"
    if launcher := os.environ.get("SPACEBOT_EXECUTABLE"):
        return (
            f"put the new executable in the place of {launcher} (write beside it, then rename), then: spacebot restart"
        )
    if getattr(sys, "frozen", False):
        return f"unpack the new version in the place of {Path(sys.executable).parent}, then: spacebot restart"
    folder = Path(spacebot.__file__).parents[1]
    if (folder / "pyproject.toml").exists():
        return f"in {folder}: git pull, then make venv model, then: spacebot restart"
    return f"with the pip of {sys.prefix}: install the new version of the package, then: spacebot restart"
