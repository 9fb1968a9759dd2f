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
    """`[defaults.permissions]`: what workers may do: a profile, and keys that differ from it."""

    profile: Profile = Field(
        default=Profile.STANDARD, description="How far the people are trusted who talk with the agent."
    )
    file_read: Reach | Globs | None = Field(
        default=None,
        description="What workers may read: nothing, the workspace, everything, or patterns of paths beside the "
        "workspace. Left out, as the profile says.",
        examples=[["/srv/docs/**"]],
    )
    file_write: Reach | Globs | None = Field(
        default=None, description="What workers may write, in the same words.", examples=["workspace"]
    )
    shell: Reach | None = Field(
        default=None, description="Where the shell may work. Left out, as the profile says.", examples=["deny"]
    )
    exec: ExecRule | None = Field(
        default=None,
        description="Which programs may be started. Left out, as the profile says.",
        examples=["allowlist"],
    )
    exec_allowlist: tuple[str, ...] | None = Field(
        default=None, description="Names of the programs that exec = 'allowlist' means.", examples=[["git", "make"]]
    )
    browser: bool | None = Field(
        default=None, description="Whether workers have a browser. Left out, as the profile says.", examples=[False]
    )
    browser_js_eval: bool | None = Field(
        default=None,
        description="Whether workers may run scripts in pages. Left out, as the profile says.",
        examples=[False],
    )
    browser_url_allowlist: tuple[str, ...] | None = Field(
        default=None,
        description="Addresses that the browser may open, with * as a pattern. Left out or empty: the public internet.",
        examples=[["https://*.example.org/*"]],
    )
    network_outbound: bool | None = Field(
        default=None, description="Whether commands reach the network. Left out, as the profile says.", examples=[False]
    )
    network_allow_private: bool | tuple[str, ...] | None = Field(
        default=None,
        description="Hosts in private networks that may be opened, as host or host:port; true opens all of them.",
        examples=[["wiki.lan:8080"]],
    )

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

    enabled: bool = Field(default=True, description="Whether workers have a browser.")
    headless: bool = Field(default=True, description="Whether it runs without a window.")
    evaluate_enabled: bool = Field(
        default=False, description="Whether workers may run scripts of their own in pages; the permissions must too."
    )
    executable_path: Path | None = Field(
        default=None,
        description="The browser's program; left out, the variables CHROME and CHROME_PATH, then the usual places.",
        examples=["/usr/bin/chromium"],
    )
    screenshot_dir: Path | None = Field(
        default=None,
        description="Where pictures of pages go; left out, screenshots/ in the workspace.",
        examples=["/srv/shots"],
    )
    persist_session: bool = Field(
        default=False, description="Whether one browser serves all workers of an agent and keeps its cookies."
    )
    close_policy: ClosePolicy = Field(
        default=ClosePolicy.CLOSE_BROWSER, description="What becomes of it when a worker ends, with persist_session."
    )


Answer = Literal["allow", "ask", "deny"]


class OpenCodePermissions(Table):
    """`[defaults.opencode.permissions]`: what OpenCode may do without asking."""

    edit: Answer = Field(default="allow", description="Changing files.")
    bash: Answer = Field(default="allow", description="Running commands.")
    webfetch: Answer = Field(default="allow", description="Fetching pages.")


class OpenCodeConfig(Table):
    """`[defaults.opencode]`: the coding agent that workers may be."""

    enabled: bool = Field(default=False, description="Whether workers may be OpenCode.")
    path: str = Field(default="opencode", min_length=1, description="The program: a name in PATH, or a path.")
    max_servers: int = Field(default=5, ge=1, le=100, description="Servers of it that run at a time.")
    server_startup_timeout_secs: float = Field(
        default=30, gt=0, le=600, description="Seconds that a server has to begin."
    )
    max_restart_retries: int = Field(
        default=5, ge=0, le=100, description="How often a server that ended is started again."
    )
    permissions: OpenCodePermissions = OpenCodePermissions()


class McpServerConfig(Table):
    """`[[mcp_servers]]`: an MCP server whose tools workers get; also `[[defaults.mcp]]` and `[[agents.mcp]]`.

    `${NAME}` in command, args, env, url and headers is filled in when a connection is made.
    """

    name: str = Field(min_length=1, max_length=64, description="Name of the server, with which its tools' names begin.")
    transport: Literal["stdio", "http"] = Field(
        description="How it is reached: as a program that is started, or at an address."
    )
    enabled: bool = Field(default=True, description="Whether it is connected.")
    command: str | None = Field(default=None, description="The program to start, for stdio.", examples=["npx"])
    args: tuple[str, ...] = Field(default=(), description="Words behind the command.", examples=[["-y", "a-server"]])
    env: dict[str, SecretStr] = Field(
        default={}, description="Variables of the program.", examples=[{"API_KEY": "${MY_API_KEY}"}]
    )
    url: str | None = Field(
        default=None, description="Address of the server, for http.", examples=["https://mcp.example.org"]
    )
    headers: dict[str, SecretStr] = Field(
        default={},
        description="Headers of every request, for http.",
        examples=[{"Authorization": "Bearer ${MY_TOKEN}"}],
    )
    call_timeout_secs: float = Field(
        default=60, gt=0, le=3600, description="Seconds that one call has; news of its progress begin them anew."
    )

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
