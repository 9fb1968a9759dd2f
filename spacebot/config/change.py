"""Changes of single keys: which place in the file a name means, what a word on the command line is as a value.

Flow:   `config set|unset`, PUT /api/settings, PUT /api/agents/config -> a `Change` -> ConfigEditor.change_tables
Floor:  config; may import base
Source: control spec 1.3, 4.2, 4.3, 5.4 (ranges of forms), 5.5 (absent is not null)
"""

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from spacebot.base.errors import NotFoundError, RefusedError
from spacebot.config.edit import Change
from spacebot.config.explain import is_reference
from spacebot.config.lists import Tables
from spacebot.config.schema import KeySpec, find_key, key_parts
from spacebot.config.wording import brief, to_toml

_BY_COMMAND = {
    "agents": "spacebot agent", "bindings": "spacebot config edit, or the page Connections",
    "mcp_servers": "spacebot mcp", "defaults.cron": "spacebot cron", "messaging.slack.commands": "spacebot config edit",
    "defaults.mcp": "spacebot mcp",
}  # fmt: skip

Place = tuple[str, ...]


def place_of(name: str, agent_id: str | None = None) -> tuple[KeySpec, Place, str | None]:
    """The key that a name means, where it stands in its table, and whose table that is.

    The place begins below `[defaults]` or the agent when the key is one of those; the last part is then None's or the
    agent's id.

    Errors: NotFoundError with what may have been meant; RefusedError for what stands in lists.
    """
    spec, parts = find_key(name), key_parts(name)
    for start, command in _BY_COMMAND.items():
        if spec.name == start or spec.name.startswith(f"{start}."):
            raise RefusedError(f"{spec.name} stands in a list of tables; change it with {command}")
    if parts[0] in ("agents", "agent") and len(parts) > 2 and agent_id is None:
        agent_id = parts[1]
    if not spec.is_inherited and agent_id is not None:
        raise RefusedError(f"{spec.name} is no setting of an agent; leave --agent out")
    if "<id>" in spec.parts:
        place: Place = ("llm", "provider", *parts[2:])
    else:
        place = spec.parts
        if parts[-1] != spec.key:  # an entry of a map
            place = (*place, parts[-1])
    return spec, place[1:] if spec.is_inherited else place, agent_id


def parse_value(spec: KeySpec, text: str) -> Any:
    """What was typed, as a value of the key: TOML, or bare words where a text or a list of texts is wanted.

    Errors: RefusedError for a secret in plain, which would stay in the shell's history.
    """
    if is_reference(text):
        return text
    if spec.is_secret:
        raise RefusedError(
            f"{spec.name} is a secret and does not belong into the command line, where others can read it; store it "
            f"with: spacebot secret set NAME, then: spacebot config set {spec.name} secret:NAME"
        )
    value: Any = text
    try:
        value = tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except tomllib.TOMLDecodeError:
        words = spec.kind.partition("one of ")[2].partition(" or ")[0].split(", ")
        if "list of" in spec.kind and not text.lstrip().startswith("[") and text not in words:
            return [word for part in text.split(",") if (word := part.strip())]
    is_plain = isinstance(value, int | float | bool)
    if (
        is_plain
        and not {"whole number", "number", "true or false"} & set(spec.kind.split(" or "))
        and not _switch(spec)
    ):
        return text
    return value


def _switch(spec: KeySpec) -> bool:
    return "true or false" in spec.kind


def check_form(spec: KeySpec, value: Any) -> None:
    """Hold a number within what forms accept, which may be less than what the file does. Errors: RefusedError."""
    low, high = spec.form
    if not isinstance(value, int | float) or isinstance(value, bool) or (low is None and high is None):
        return
    if (low is not None and value < low) or (high is not None and value > high):
        limits = f"from {low:g} to {high:g}" if low is not None and high is not None else f"at least {low:g}"
        raise RefusedError(f"{spec.name} = {brief(value)}: must be {limits} here; the file itself may go further")


def setting(changes: Mapping[Place, Any], *, agent_id: str | None = None, is_inherited: bool = False) -> Change:
    """A change that sets keys, or takes those away whose value is None.

    Args:
        changes: places with their values; below `[defaults]` or the agent with `is_inherited`.
        agent_id: None means `[defaults]`.
    """

    def change(tables: Tables) -> None:
        for place, value in changes.items():
            table = tables
            if is_inherited:
                table = _sub(tables, "defaults") if agent_id is None else _of_agent(tables, agent_id)
            if value is None:
                _remove(table, place)
            else:
                for part in place[:-1]:
                    table = _sub(table, part)
                table[place[-1]] = value
        if tables.get("defaults") == {}:
            del tables["defaults"]

    return change


def unsetting(place: Place, name: str, *, agent_id: str | None, is_inherited: bool) -> Change:
    """A change that takes one key away. Errors, when it is made: NotFoundError where there is none."""

    def change(tables: Tables) -> None:
        table: Any = tables
        if is_inherited:
            table = tables.get("defaults", {}) if agent_id is None else _of_agent(tables, agent_id)
        if not _remove(table, place):
            where = "the file" if agent_id is None else f"agent {agent_id!r}"
            raise NotFoundError(f"{name} does not stand in {where}; `spacebot config explain {name}` says what counts")

    return change


def _remove(table: Any, place: Sequence[str]) -> bool:
    """Take a key away, and tables that hold nothing then; whether it was there."""
    if not isinstance(table, dict) or place[0] not in table:
        return False
    if len(place) == 1:
        del table[place[0]]
        return True
    found = _remove(table[place[0]], place[1:])
    if found and table[place[0]] == {}:
        del table[place[0]]
    return found


def _sub(table: Tables, name: str) -> Tables:
    found = table.setdefault(name, {})
    if not isinstance(found, dict):
        raise RefusedError(f"{name!r} is no table in the configuration file; edit it by hand")
    return found


def _of_agent(tables: Tables, agent_id: str) -> Tables:
    agents = tables.setdefault("agents", [])
    if not isinstance(agents, list) or not all(isinstance(entry, dict) for entry in agents):
        raise RefusedError("'agents' is no list of tables in the configuration file; edit it by hand")
    if not agents and agent_id == "main":  # without a list there is one
        agents.append({"id": "main"})
    found: Tables | None = next((entry for entry in agents if entry.get("id") == agent_id), None)
    if found is None:
        known = ", ".join(str(entry.get("id")) for entry in agents) or "main"
        raise NotFoundError(f"the configuration file has no agent {agent_id[:80]!r}; there are: {known}")
    return found


def shown(value: Any) -> str:
    """A value as it would stand in the file, for people."""
    return "(not set)" if value is None else to_toml(value)
