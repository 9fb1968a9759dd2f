"""Tables about what workers may do and with which programs: permissions, browser, OpenCode, MCP servers.

The models hold values only; `Permissions` is what a profile and the owner's own keys come to.

Floor:  config; may import base
Source: control spec 1.5.7 to 1.5.10 and 6.4
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from spacebot.config.tables import Table, is_url


class Profile(StrEnum):
    """How far an owner trusts the people who talk with an agent."""

    TRUSTED = "trusted"
    STANDARD = "standard"
    RESTRICTED = "restricted"


class Reach(StrEnum):
    """How far something goes: nowhere, within the workspace, everywhere but in the program's own files."""

    DENY = "deny"
    WORKSPACE = "workspace"
    ALLOW = "allow"


class ExecRule(StrEnum):
    """Which programs the exec tool starts."""

    DENY = "deny"
    ALLOWLIST = "allowlist"
    ALLOW = "allow"


Globs = tuple[Annotated[str, Field(min_length=1)], ...]


class Permissions(Table):
    """What holds for an agent: its profile, with the owner's own keys over it.

    Args:
        file_read, file_write: a reach, or patterns of absolute paths (`*`, `**`) beside the workspace.
        network_allow_private: True, or hosts (`host` or `host:port`) in private networks that may be opened.
    """

    profile: Profile
    file_read: Reach | Globs
    file_write: Reach | Globs
    shell: Reach
    exec: ExecRule
    exec_allowlist: tuple[str, ...] = ("git", "cargo", "npm", "node", "python3", "curl", "jq")
    browser: bool
    browser_js_eval: bool
    browser_url_allowlist: tuple[str, ...] = ()  # empty: every address of the public internet
    network_outbound: bool
    network_allow_private: bool | tuple[str, ...] = False


PROFILES = {
    Profile.TRUSTED: Permissions(
        profile=Profile.TRUSTED,
        file_read=Reach.ALLOW,
        file_write=Reach.ALLOW,
        shell=Reach.ALLOW,
        exec=ExecRule.ALLOW,
        browser=True,
        browser_js_eval=True,
        network_outbound=True,
    ),
    Profile.STANDARD: Permissions(
        profile=Profile.STANDARD,
        file_read=Reach.WORKSPACE,
        file_write=Reach.WORKSPACE,
        shell=Reach.WORKSPACE,
        exec=ExecRule.ALLOWLIST,
        browser=True,
        browser_js_eval=False,
        network_outbound=True,
    ),
    Profile.RESTRICTED: Permissions(
        profile=Profile.RESTRICTED,
        file_read=Reach.DENY,
        file_write=Reach.DENY,
        shell=Reach.DENY,
        exec=ExecRule.DENY,
        browser=False,
        browser_js_eval=False,
        network_outbound=False,
    ),
}


class PermissionsConfig(Table):
    """`[agents.permissions]`: a profile, and keys that differ from it. None means: as the profile says."""

    profile: Profile = Profile.STANDARD
    file_read: Reach | Globs | None = None
    file_write: Reach | Globs | None = None
    shell: Reach | None = None
    exec: ExecRule | None = None
    exec_allowlist: tuple[str, ...] | None = None  # base names of programs
    browser: bool | None = None
    browser_js_eval: bool | None = None
    browser_url_allowlist: tuple[str, ...] | None = None  # patterns with *
    network_outbound: bool | None = None
    network_allow_private: bool | tuple[str, ...] | None = None

    @property
    def effective(self) -> Permissions:
        """What holds."""
        own = {key: value for key, value in self if value is not None}
        return PROFILES[self.profile].model_copy(update=own)


class ClosePolicy(StrEnum):
    """What becomes of a browser when its worker is done with it."""

    CLOSE_BROWSER = "close_browser"
    CLOSE_TABS = "close_tabs"
    DETACH = "detach"


class BrowserConfig(Table):
    """`[defaults.browser]`: the browser of workers."""

    enabled: bool = True
    headless: bool = True
    evaluate_enabled: bool = False  # scripts of the model in pages
    executable_path: Path | None = None  # None: CHROME, CHROME_PATH, then the usual places
    screenshot_dir: Path | None = None  # None: screenshots/ in the workspace
    persist_session: bool = False  # one browser for all workers of an agent, which keeps its cookies
    close_policy: ClosePolicy = ClosePolicy.CLOSE_BROWSER  # with persist_session


Answer = Literal["allow", "ask", "deny"]


class OpenCodePermissions(Table):
    """`[defaults.opencode.permissions]`: what OpenCode may do without asking."""

    edit: Answer = "allow"
    bash: Answer = "allow"
    webfetch: Answer = "allow"


class OpenCodeConfig(Table):
    """`[defaults.opencode]`: the coding agent that workers may be."""

    enabled: bool = False
    path: str = Field(default="opencode", min_length=1)
    max_servers: int = Field(default=5, ge=1, le=100)
    server_startup_timeout_secs: float = Field(default=30, gt=0, le=600)
    max_restart_retries: int = Field(default=5, ge=0, le=100)
    permissions: OpenCodePermissions = OpenCodePermissions()


class McpServerConfig(Table):
    """`[[mcp_servers]]`, `[[defaults.mcp]]`, `[[agents.mcp]]`: a server whose tools workers get.

    `${NAME}` in command, args, env, url and headers is filled in when a connection is made.
    """

    name: str = Field(min_length=1, max_length=64)
    transport: Literal["stdio", "http"]
    enabled: bool = True
    command: str | None = None
    args: tuple[str, ...] = ()
    env: dict[str, SecretStr] = Field(default={})
    url: str | None = None
    headers: dict[str, SecretStr] = Field(default={})
    call_timeout_secs: float = Field(default=60, gt=0, le=3600)  # of one call; news of its progress begin it again

    @field_validator("name")
    @classmethod
    def _is_not_blank(cls, value: str) -> str:
        if not value.strip() or not value.isprintable():
            raise ValueError("must have a letter or digit and no control characters")
        return value.strip()

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.transport == "stdio" and not (self.command or "").strip():
            raise ValueError("transport 'stdio' needs a command, the program to start")
        if self.transport == "http":
            if not (self.url or "").strip():
                raise ValueError("transport 'http' needs a url")
            if "${" not in (self.url or ""):
                is_url(self.url)
        return self
