"""What the owner lets workers do: the one object that every tool asks, at each call.

A denied tool stays in the list of tools and answers why it is denied and what would change that; a model that
meets a silent gap looks for a way round it instead. The values are read anew each time, so a change of the file holds
for the next call of a running worker.

Flow:    tool -> Gate.require | check_url | check_page -> NotPermittedError, or nothing
Floor:   tools
Source:  control spec 6.4
"""

import fnmatch
import json
import re
from collections.abc import Callable
from enum import StrEnum
from typing import NoReturn
from urllib.parse import urlsplit

from spacebot.base.errors import DeniedError, ExternalError, RefusedError, ToolError
from spacebot.base.url_guard import Resolved, host_key, resolve_public, split_url
from spacebot.config.hands import ExecRule, Permissions, PermissionsConfig, Reach
from spacebot.config.model import AgentConfig, Config

TABLE = "[agents.permissions]"
INACTIVE = "inactive"  # how a status begins that says why nothing contains commands
REMEDY = "Do not look for a way round it; tell the user what you could not do and that the owner may change "


class Right(StrEnum):
    """What may be denied as a whole; the values are the owner's keys."""

    FILE_READ = "file_read"
    FILE_WRITE = "file_write"
    SHELL = "shell"
    EXEC = "exec"
    BROWSER = "browser"
    JS_EVAL = "browser_js_eval"
    NETWORK = "network_outbound"


_ONLINE = frozenset({Right.BROWSER, Right.JS_EVAL})  # make no sense without the network


class NotPermittedError(DeniedError):
    """The owner's permissions do not allow it. The text is a JSON object, so that a model cannot take it for output.

    Args:
        tool: which tool was asked.
        reason: what is not allowed, and why.
        key: the owner's key that decides.
    """

    def __init__(self, tool: str, reason: str, key: str) -> None:
        remedy = f"{REMEDY}{key} in {TABLE}."
        text = json.dumps({"denied": True, "tool": tool, "reason": reason, "remedy": remedy}, ensure_ascii=False)
        super().__init__(text, about=f"not permitted: {key}")
        self.tool = tool
        self.reason = reason


class Gate:
    """The permissions of one agent.

    Args:
        settings: the live `[agents.permissions]` table, read at every question.
    """

    def __init__(self, settings: Callable[[], PermissionsConfig] = PermissionsConfig) -> None:
        self._settings = settings

    @property
    def permissions(self) -> Permissions:
        """What holds now."""
        return self._settings().effective

    def allows(self, right: Right | str) -> bool:
        """Whether something is not denied as a whole; paths, programs and addresses may still be."""
        return self._denying(Right(right)) is None

    def require(self, right: Right | str, *, tool: str = "") -> None:
        """Refuse what is denied as a whole. Call it at the start of every call of a tool, not once.

        Args:
            right: a `Right` or its text, such as "browser"; the browser's rights are denied without the network too.
            tool: for the answer and the log; the right's own name when empty.

        Errors: NotPermittedError, a ToolError that the tool lets pass.
        """
        right = Right(right)
        if key := self._denying(right):
            profile = self.permissions.profile
            self.refuse(tool or str(right), f"{key} is denied to this agent (profile {profile})", key=key)

    def refuse(self, tool: str, reason: str, *, key: str) -> NoReturn:
        """Refuse something that the owner's permissions do not allow. Whoever runs the tool logs it.

        Args:
            reason: for the model; without secrets and without the contents of anything.
            key: the owner's key that decides, such as "exec_allowlist".

        Errors: NotPermittedError, always.
        """
        raise NotPermittedError(tool, reason, key)

    def _denying(self, right: Right) -> Right | None:
        """The key that denies a right; None when none does."""
        if getattr(self.permissions, right) in (False, Reach.DENY, ExecRule.DENY):
            return right
        return Right.NETWORK if right in _ONLINE and not self.permissions.network_outbound else None

    # Addresses

    @property
    def allow_private(self) -> bool | frozenset[str]:
        """What the URL guard and the fetcher take: whether, or which hosts, may lie in private networks."""
        allowed = self.permissions.network_allow_private
        return allowed if isinstance(allowed, bool) else frozenset(host.lower() for host in allowed)

    async def check_url(self, url: str, *, tool: str) -> Resolved:
        """Whether a worker may have this address opened, redirects' targets included: resolved and judged.

        Args:
            tool: for the answer and the log.

        Returns where it is. Whoever connects uses these addresses and asks nobody again.

        Errors: NotPermittedError when it is not allowed; ToolError when the name cannot be resolved.
        """
        self.require(Right.NETWORK, tool=tool)
        try:
            return await resolve_public(url, allow_private=self.allow_private)
        except RefusedError as error:
            self.refuse(tool, str(error), key="network_allow_private")
        except ExternalError as error:
            raise ToolError(str(error)) from error

    async def check_page(self, url: str, *, tool: str = "browser") -> Resolved:
        """As `check_url`, for a page: it must fit `browser_url_allowlist` too. Other requests of it need not."""
        self.require(Right.BROWSER, tool=tool)
        if not self.fits_allowlist(url):
            allowed = ", ".join(self.permissions.browser_url_allowlist)
            self.refuse(tool, f"only pages of {allowed} may be opened", key="browser_url_allowlist")
        return await self.check_url(url, tool=tool)

    def fits_allowlist(self, url: str) -> bool:
        """Whether the pages that the owner listed include this address; every address when none is listed."""
        patterns = self.permissions.browser_url_allowlist
        if not patterns:
            return True
        try:
            scheme, host, port = split_url(url)
        except RefusedError:
            return False
        parts = urlsplit(url)
        path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        return any(_fits(pattern, scheme, host, port, path) for pattern in patterns)


def _fits(pattern: str, scheme: str, host: str, port: int, path: str) -> bool:
    """Part by part, so that a star for a host cannot be met by a path that looks like one.

    A pattern without a scheme is for both, without a port for the usual one, without a path for all.
    """
    wanted_scheme, separator, rest = pattern.strip().lower().rpartition("://")
    if separator and wanted_scheme not in ("*", scheme):
        return False
    wanted_host, slash, _ = rest.partition("/")
    keys = (host_key(scheme, host, port), *((host,) if wanted_host.endswith(":*") else ()))
    if not any(fnmatch.fnmatchcase(key, wanted_host.removesuffix(":*")) for key in keys):
        return False
    wanted_path = slash + pattern.strip()[len(pattern.strip()) - len(rest) :].partition("/")[2]
    # Only the star has a meaning: brackets and question marks stand in ordinary addresses.
    expression = ".*".join(re.escape(piece) for piece in wanted_path.split("*"))
    return not slash or re.fullmatch(expression, path, re.DOTALL) is not None


def rights_of(config: Config, sandbox: str) -> dict[str, str]:
    """`words_of` each agent.

    Args:
        sandbox: what contains commands, as the program's status says it.
    """
    is_contained = not sandbox.startswith(INACTIVE)
    return {agent.id: words_of(agent, is_contained=is_contained) for agent in config.agents}


def words_of(config: AgentConfig, *, is_contained: bool) -> str:
    """What holds for an agent, for its owner: the profile, the keys that differ from it, what does not hold.

    Args:
        is_contained: something on this machine can contain commands.
    """
    own = {key: value for key, value in config.permissions if value is not None and key != "profile"}
    words = f"profile {config.permissions.profile}"
    if own:
        words += " with " + ", ".join(f"{key} = {_shown(value)}" for key, value in own.items())
    runs_commands = any(Gate(lambda: config.permissions).allows(right) for right in (Right.SHELL, Right.EXEC))
    if config.sandbox.mode == "disabled":
        words += "; NOT contained, the sandbox is switched off: what is not denied reaches every path"
    elif runs_commands and not is_contained:
        words += "; commands are NOT contained, they run with all rights of the program's user"
    return words


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
