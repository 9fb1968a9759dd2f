"""What an owner should know about permissions that are wider, or hold less, than they look.

Nothing here is refused: each line says what it means and what would change it.

Floor:  config; may import base
Source: control spec 6.4
"""

from collections.abc import Iterator
from pathlib import Path

from spacebot.config.hands import ExecRule, Permissions, Reach
from spacebot.config.messaging import ANYBODY, AnyAccount, BindingConfig, WebhookAccount
from spacebot.config.model import AgentConfig, Config

_CLOSED = frozenset({"discord", "slack"})  # direct chats are off until somebody is listed
_EVERYWHERE = frozenset({"0.0.0.0", "::"})
_WIDE = frozenset({"/", "/home", "/root", "/etc", "/usr", "/var", "/opt", "/Users", "~"})


def risks(config: Config) -> Iterator[str]:
    """One line for each combination that is likely not meant."""
    yield from _shared_ports(config)
    strangers = _strangers(config)
    for agent in config.agents:
        where = f"agent {agent.id!r}"
        permissions = agent.permissions.effective
        for risk in (*_risks_of_rights(agent, permissions), *_risks_of_paths(agent, permissions)):
            yield f"{where}: {risk}"
        if (open_to := strangers.get(agent.id)) and (wide := _wide_rights(agent, permissions)):
            yield (
                f"{where}: anybody may write to it ({', '.join(open_to)}), and its workers have {', '.join(wide)}; "
                "list people under dm_allowed_users, or choose a narrower profile"
            )


def _shared_ports(config: Config) -> Iterator[str]:
    """Servers of ours that would listen at the same place; the second would fail."""
    places = [("api.port", config.api.bind, config.api.port)] if config.api.enabled else []
    if config.metrics.enabled:
        places.append(("metrics.port", config.metrics.bind, config.metrics.port))
    for account in config.messaging.webhook:
        if account.enabled:
            name = "" if account.name is None else f" of instance {account.name!r}"
            places.append((f"messaging.webhook.port{name}", account.bind, account.port))
    by_port: dict[int, list[tuple[str, str]]] = {}
    for name, bind, port in places:
        for other, other_bind in by_port.get(port, []):
            if port and (bind == other_bind or {bind, other_bind} & _EVERYWHERE):
                yield f"{other} and {name} are both {port}; only the first can listen there, give each its own"
        by_port.setdefault(port, []).append((name, bind))


def _risks_of_rights(agent: AgentConfig, permissions: Permissions) -> Iterator[str]:
    runs = permissions.shell is not Reach.DENY or permissions.exec is not ExecRule.DENY
    if agent.sandbox.mode == "disabled":
        yield (
            "sandbox.mode = 'disabled' lets commands and the file tool reach every path of the program's user, "
            "this file and the secrets included; leave it 'enabled' and name folders under writable_paths"
        )
        if runs and not permissions.network_outbound:
            yield "network_outbound = false cannot be kept without the sandbox, so shell and exec will refuse to start"
    if runs and permissions.shell is Reach.WORKSPACE and permissions.file_read is Reach.DENY:
        yield "file_read = 'deny' hides the workspace from commands too; they can only work in their /tmp"
    if permissions.exec is ExecRule.ALLOWLIST and permissions.file_write is Reach.ALLOW:
        yield "file_write = 'allow' lets a worker replace the very programs of exec_allowlist; narrow file_write"
    if permissions.network_allow_private is True:
        yield (
            "network_allow_private = true opens every address of private networks and of this machine to workers; "
            "list the hosts that they need instead"
        )


def _risks_of_paths(agent: AgentConfig, permissions: Permissions) -> Iterator[str]:
    for path in agent.sandbox.writable_paths:
        if str(path).rstrip("/") in _WIDE or path == Path("/"):
            yield f"writable_paths holds {str(path)!r}, so commands may change nearly everything; name single folders"
    for key, value in (("file_read", permissions.file_read), ("file_write", permissions.file_write)):
        for pattern in () if isinstance(value, Reach) else value:
            lead = pattern.split("*")[0].rsplit("/", 1)[0] or "/"
            if not pattern.startswith(("/", "~")):
                yield f"{key} holds {pattern!r}, which is no absolute path; the workspace is open already"
            elif lead in _WIDE and "*" in pattern:
                yield (
                    f"{key} holds {pattern!r}: commands know no patterns and see everything below {lead}; "
                    "begin the pattern with a narrower folder"
                )


def _wide_rights(agent: AgentConfig, permissions: Permissions) -> list[str]:
    wide = [key for key in ("shell", "file_read", "file_write") if getattr(permissions, key) is Reach.ALLOW]
    named = [f"{key} = 'allow'" for key in wide]
    if permissions.exec is ExecRule.ALLOW:
        named.append("exec = 'allow'")
    return [*named, "no sandbox"] if agent.sandbox.mode == "disabled" else named


def _strangers(config: Config) -> dict[str, list[str]]:
    """Agents with the accounts on which anybody may open a direct chat with them."""
    bound: dict[str, list[BindingConfig]] = {}
    for binding in config.bindings:
        bound.setdefault(binding.adapter_key, []).append(binding)
    found: dict[str, list[str]] = {}
    for platform, key, account in config.messaging.accounts():
        bindings = bound.get(key, [])
        people = [person for binding in bindings for person in binding.dm_allowed_users]
        if account.enabled and _is_open(platform, account, people):
            # Where nothing binds it, the default agent answers.
            for agent_id in {binding.agent_id for binding in bindings} or {config.default_agent.id}:
                found.setdefault(agent_id, []).append(key)
    return found


def _is_open(platform: str, account: AnyAccount, bound: list[str]) -> bool:
    if isinstance(account, WebhookAccount):
        return False  # its token decides, or only this machine connects
    people = [*account.dm_allowed_users, *bound]
    return ANYBODY in people or (not people and platform not in _CLOSED)
