"""Changes of `config.toml` by the program itself: accounts, bindings, MCP servers; comments and order are kept.

A change is made to the plain values, and the owner's text is made to follow. Only if the text then says the same, and
is a valid configuration, the file is replaced in one step; otherwise nothing has happened.

Flow:    HTTP -> ConfigEditor -> read, change, follow, load_config, rename -> the caller has the file read again
Floor:   config
Source:  control spec 1.11 and 4.7; messaging spec 16
"""

import copy
import fcntl
import os
import secrets
import stat
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spacebot.base.errors import BusyError, ConfigError, NotFoundError, RefusedError
from spacebot.config.environment import read_environment
from spacebot.config.lists import SERVER_LISTS, Tables, lists, server_lists
from spacebot.config.load import LoadedConfig, load_config, parse_source, read_bytes, read_source
from spacebot.config.messaging import BindingConfig
from spacebot.config.wording import to_toml

Value = str | int | bool | list[str]
Change = Callable[[Tables], None]

_IDENTITY = ("agent_id", "channel", "guild_id", "workspace_id", "chat_id")
_FIELDS = tuple(name for name in BindingConfig.model_fields if name != "is_served")
_TRIES = 3  # somebody may save the file in the same blink


class UnsoundChangeError(ConfigError):
    """The file was sound, and would no longer be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BindingIdentity:
    """Which binding is meant.

    Args:
        guild_id: as `workspace_id` and `chat_id`: None means that the key is not in the file.
        adapter: compared only when it is given.
        index: its place in the file, from 0; None leaves it to the rest, which must then be unmistakable.
    """

    agent_id: str
    channel: str
    guild_id: str | None = None
    workspace_id: str | None = None
    chat_id: str | None = None
    adapter: str | None = None
    index: int | None = None


class ConfigEditor:
    """Edits one file; its methods block for some milliseconds and may be called from several threads.

    Errors of all changes: ConfigError when the file, or what would become of it, is broken, or cannot be written.

    Args:
        load: checks what would become of the file.
        environ: what a first file is made of; None means the environment of the program.
    """

    def __init__(
        self,
        path: Path,
        *,
        load: Callable[[Path], LoadedConfig] = load_config,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._path = path
        self._load = load
        self._environ = os.environ if environ is None else environ
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def has_file(self) -> bool:
        """Whether there is a file; without one the environment alone decides."""
        return self._path.exists()

    def bindings(self) -> list[dict[str, Any]]:
        """The bindings as they stand in the file, those that lead nowhere too. Errors: ConfigError."""
        entries = read_source(self._path).tables.get("bindings", [])
        return [dict(entry) for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []

    def set_account(self, key: str, values: Mapping[str, Value | None]) -> None:
        """Set keys of an account, None takes one away; an account that is not there yet is added."""
        self._edit(lambda tables: _set_account(tables, key, values))

    def remove_account(self, key: str) -> None:
        """Take an account away with all bindings to it; a platform's own account takes its instances with it."""
        self._edit(lambda tables: _remove_account(tables, key))

    def add_binding(
        self, fields: Mapping[str, Any], *, accounts: Mapping[str, Mapping[str, Value | None]] | None = None
    ) -> None:
        """Add a binding behind the others, and in the same step set keys of accounts."""

        def change(tables: Tables) -> None:
            for key, values in (accounts or {}).items():
                _set_account(tables, key, values)
            _list(tables, "bindings", create=True).append(_clean(fields))

        self._edit(change)

    def replace_binding(self, identity: BindingIdentity, fields: Mapping[str, Any]) -> None:
        """Give a binding new values in its place. Errors: NotFoundError; RefusedError when several may be meant."""

        def change(tables: Tables) -> None:
            binding = _list(tables, "bindings")[_find(tables, identity)]
            for name in _FIELDS:
                binding.pop(name, None)
            binding |= _clean(fields)

        self._edit(change)

    def remove_binding(self, identity: BindingIdentity) -> None:
        """Take a binding away. Errors: NotFoundError; RefusedError when several may be meant."""

        def change(tables: Tables) -> None:
            del _list(tables, "bindings")[_find(tables, identity)]
            _drop_empty(tables)

        self._edit(change)

    def text(self) -> str:
        """The file as it is; empty when there is none. Errors: ConfigError when it cannot be read as text."""
        raw = read_bytes(self._path.resolve())
        try:
            return "" if raw is None else raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self._path} is not UTF-8 text; save it in that encoding") from error

    def replace_text(self, text: str, *, before: str) -> Path | None:
        """Put another text in the file's place; what was there is kept beside it, as `config.toml.bak`.

        Args:
            before: the text that the new one was made from.

        Returns the copy, None when there was no file.

        Errors: BusyError when the file was changed meanwhile.
        """
        target = self._path.resolve()
        with self._lock:
            if (there := self.text()) != before:
                raise BusyError(f"{self._path} was changed meanwhile; look at it again, then change it")
            raw = read_bytes(target)
            mark = b"\xef\xbb\xbf" if raw is not None and raw.startswith(b"\xef\xbb\xbf") else b""
            if there == text and raw is not None:
                return None
            if not self._replace(target, raw, mark + text.encode(), backup=True):
                raise BusyError(f"{self._path} was changed meanwhile; look at it again, then change it")
        return None if raw is None else target.with_name(f"{target.name}.bak")

    def change_tables(self, change: Change) -> None:
        """Make any change to the values of the file, in one step.

        Tables, the tables inside them and inside agents, accounts, bindings, agents and MCP servers are followed;
        a change of anything else is refused.
        """
        self._edit(change)

    def add_agent(self, fields: Mapping[str, Any]) -> None:
        """Add an agent. Errors: RefusedError when there is one of that id."""

        def change(tables: Tables) -> None:
            agents = _list(tables, "agents", create=True)
            if not agents:  # without a list there is one, called main; a list has to name it
                agents.append({"id": "main", "default": True})
            if _agent_place(agents, str(fields["id"])) is not None:
                raise RefusedError(f"there is an agent {fields['id']!r} already; choose another id")
            agents.append(dict(fields))

        self._edit(change)

    def remove_agent(self, agent_id: str, *, give_to: str | None = None) -> int:
        """Take an agent away with its bindings, or give these to another agent; returns how many there were.

        Errors: NotFoundError; RefusedError for the default agent, and when an account would be open to everybody
            without these bindings.
        """
        count = 0

        def change(tables: Tables) -> None:
            nonlocal count
            agents = _list(tables, "agents")
            place = _agent_place(agents, agent_id)
            default = next((entry for entry in agents if entry.get("default") is True), next(iter(agents), None))
            if place is None:
                if agent_id == "main" and not agents:
                    raise RefusedError("the only agent cannot be deleted; make another first")
                raise NotFoundError(f"the configuration file has no agent {agent_id[:80]!r}")
            if agents[place] is default:
                raise RefusedError(f"{agent_id!r} is the default agent; set default = true for another one first")
            if give_to is not None and (give_to == agent_id or _agent_place(agents, give_to) is None):
                raise RefusedError(f"bindings cannot go to {give_to[:80]!r}: there is no such agent")
            del agents[place]
            bindings = _list(tables, "bindings")
            mine = [binding for binding in bindings if str(binding.get("agent_id")) == agent_id]
            count = len(mine)
            for binding in mine if give_to is not None else ():
                binding["agent_id"] = give_to
            if give_to is None:
                kept = [binding for binding in bindings if str(binding.get("agent_id")) != agent_id]
                _refuse_opening(mine, kept)
                bindings[:] = kept
                _drop_empty(tables)

        self._edit(change)
        return count

    def mcp_servers(self) -> list[dict[str, Any]]:
        """The MCP servers of all agents as they stand in the file, a later one of a name in place of an earlier.

        Errors: ConfigError.
        """
        tables = read_source(self._path).tables
        found = {str(entry.get("name")): dict(entry) for entries in server_lists(tables) for entry in entries}
        return list(found.values())

    def add_mcp_server(self, fields: Mapping[str, Any]) -> None:
        """Add an MCP server for all agents. Errors: RefusedError when there is one of that name."""

        def change(tables: Tables) -> None:
            if _find_server(tables, str(fields.get("name"))) is not None:
                raise RefusedError(f"there is an MCP server {fields.get('name')!r} already; change or remove it")
            _list(tables, "mcp_servers", create=True).append(dict(fields))

        self._edit(change)

    def replace_mcp_server(self, fields: Mapping[str, Any]) -> None:
        """Give an MCP server new values. Errors: NotFoundError."""

        def change(tables: Tables, *, in_place: bool) -> None:
            entries, place = _server_place(tables, str(fields.get("name")))
            if in_place:
                entry = entries[place]
                for key in [key for key in entry if key not in fields]:
                    del entry[key]
                for key, value in fields.items():
                    if entry.get(key) != value:
                        entry[key] = value
            else:
                entries[place:] = [*entries[place + 1 :], dict(fields)]

        try:
            self._edit(lambda tables: change(tables, in_place=True))
        except ConfigError:  # a table of its own below it, say; whatever else is wrong is said again
            self._edit(lambda tables: change(tables, in_place=False))

    def remove_mcp_server(self, name: str) -> None:
        """Take an MCP server away. Errors: NotFoundError."""

        def change(tables: Tables) -> None:
            entries, place = _server_place(tables, name)
            del entries[place]
            for path in SERVER_LISTS:
                table = tables if len(path) == 1 else tables.get(path[0], {})
                if table.get(path[-1]) == []:
                    del table[path[-1]]

        self._edit(change)

    def _edit(self, change: Change) -> None:
        with self._lock:
            for _ in range(_TRIES):
                if self._try_edit(change):
                    return
        raise ConfigError(f"{self._path} is being changed by somebody else; try again")

    def _try_edit(self, change: Change) -> bool:
        """Make a change; False when the file was saved by somebody else meanwhile."""
        target = self._path.resolve()  # a link stays a link
        raw = read_bytes(target)
        if raw is None:
            text = self._first_text()
            values = tomllib.loads(text)
        else:  # the very bytes that are changed; somebody may save the file at any time
            values = parse_source(target, raw).tables  # says in words what is wrong with a broken file
            text = raw.decode("utf-8-sig")
        before = copy.deepcopy(values)
        places = {id(entry): i for entries in lists(values) for i, entry in enumerate(entries)}
        change(values)
        changed = self._followed(text, before, values, places)
        if changed == text and raw is not None:
            return True
        mark = b"\xef\xbb\xbf" if raw is not None and raw.startswith(b"\xef\xbb\xbf") else b""
        return self._replace(target, raw, mark + changed.encode())

    def _followed(self, text: str, before: Tables, after: Tables, places: Mapping[int, int]) -> str:
        """The owner's text with the change that was made to its values."""
        from spacebot.config.following import follow  # brings the library that only changes need

        if (changed := follow(text, before, after, places)) is None:
            raise ConfigError(f"{self._path} is laid out in a way that only a person can change; edit it by hand")
        return changed

    def _first_text(self) -> str:
        """A file to begin with: what the environment alone has connected so far stays connected, and as narrow."""
        found = read_environment(self._environ, has_file=False).below
        lines = ["# Written by Spacebot; change what you like.\n"]
        for _, key, _ in self._load(self._path).config.messaging.accounts():
            lines.append(f"\n[messaging.{key}]  # its credentials come from the environment\n")
            table = found.get("messaging", {}).get(key, {})
            lines += [f"{name} = {to_toml(value)}\n" for name, value in table.items() if name != "auth_token"]
            if "auth_token" in table:
                lines.append('auth_token = "env:WEBHOOK_AUTH_TOKEN"\n')
        for binding in found.get("bindings", []):
            lines.append("\n[[bindings]]\n")
            lines += [f"{name} = {to_toml(value)}\n" for name, value in binding.items()]
        return "".join(lines)

    def _replace(self, target: Path, before: bytes | None, after: bytes, *, backup: bool = False) -> bool:
        draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            mode = stat.S_IMODE(target.stat().st_mode) if before is not None else 0o600
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(after)
                file.flush()
                os.fsync(file.fileno())
            self._check(draft)
            with _alone_in(target.parent):
                if read_bytes(target) != before:
                    return False
                if backup and before is not None:
                    self._keep(target, before, mode)
                draft.replace(target)
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be written ({error.strerror}); check its permissions") from error
        finally:
            draft.unlink(missing_ok=True)
        return True

    @staticmethod
    def _keep(target: Path, before: bytes, mode: int) -> None:
        """Put what was there beside the file, in one step too."""
        copy_of = target.with_name(f"{target.name}.bak")
        draft = target.with_name(f".{copy_of.name}.{secrets.token_hex(4)}.tmp")
        try:
            draft.touch(mode=0o600, exist_ok=False)
            draft.write_bytes(before)
            draft.chmod(mode)
            draft.replace(copy_of)
        finally:
            draft.unlink(missing_ok=True)

    def _check(self, draft: Path) -> None:
        try:
            self._load(draft)
        except ConfigError as error:
            reason = str(error).replace(str(draft), str(self._path))
            raise UnsoundChangeError(f"nothing was changed, because then: {reason}") from error


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other programs of ours from changing the file meanwhile; at the end the folder is on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _agent_place(agents: list[Tables], agent_id: str) -> int | None:
    return next((i for i, entry in enumerate(agents) if str(entry.get("id")) == agent_id), None)


def _refuse_opening(gone: list[Tables], kept: list[Tables]) -> None:
    """Errors: RefusedError when what narrows an account down, to places or to people, would be gone altogether."""
    narrowing = (("guild_id", "workspace_id", "chat_id", "channel_ids"), ("dm_allowed_users",))
    for binding in gone:
        account = (binding.get("channel"), binding.get("adapter") or "")
        same = [other for other in kept if (other.get("channel"), other.get("adapter") or "") == account]
        for keys in narrowing:
            if any(binding.get(key) for key in keys) and not any(other.get(key) for other in same for key in keys):
                raise RefusedError(
                    f"without this agent's bindings {account[0]} would be open to everybody; name another agent that "
                    "gets them (--give-to, give_to), or change them first"
                )


def _find_server(tables: Tables, name: str) -> tuple[list[Any], int] | None:
    """The list and the place of an MCP server; the later list counts, as it does for the reader."""
    for entries in reversed(server_lists(tables)):
        for place, entry in enumerate(entries):
            if str(entry.get("name")).strip() == name.strip():
                return entries, place
    return None


def _server_place(tables: Tables, name: str) -> tuple[list[Any], int]:
    found = _find_server(tables, name)
    if found is None:
        raise NotFoundError(
            f"the configuration file has no MCP server {name[:80]!r} for all agents; one under [[agents.mcp]] is "
            "changed by hand"
        )
    return found


def _sub(tables: Tables, name: str) -> Tables | None:
    """A table inside another; None when there is none. Errors: RefusedError when it is something else."""
    found = tables.get(name)
    if found is not None and not isinstance(found, dict):
        raise RefusedError(f"{name!r} is no table in the configuration file; edit it by hand")
    return found


def _list(tables: Tables, name: str, *, create: bool = False) -> list[Tables]:
    """A list of tables; empty when there is none. Errors: RefusedError when it is something else."""
    found = tables.setdefault(name, []) if create else tables.get(name, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise RefusedError(f"{name!r} is no list of tables in the configuration file; edit it by hand")
    return found


def _set_account(tables: Tables, key: str, values: Mapping[str, Value | None]) -> None:
    platform, _, name = key.partition(":")
    _sub(tables, "messaging")
    messaging = tables.setdefault("messaging", {})
    _sub(messaging, platform)
    own = messaging.setdefault(platform, {})
    if name:
        instances = _list(own, "instances", create=True)
        own = next((entry for entry in instances if str(entry.get("name")).lower() == name.lower()), None)
        if own is None:
            own = {"name": name}
            instances.append(own)
    for field, value in values.items():
        if value is not None:
            own[field] = value
        else:
            own.pop(field, None)


def _remove_account(tables: Tables, key: str) -> None:
    platform, _, name = key.partition(":")
    messaging = _sub(tables, "messaging") or {}
    own = _sub(messaging, platform)
    instances = _list(own, "instances") if own is not None else []
    place = next((i for i, entry in enumerate(instances) if str(entry.get("name")).lower() == name.lower()), None)
    if own is None or (name and place is None):
        raise NotFoundError(f"there is no [messaging.{platform}]{f' instance {name!r}' if name else ''} in the file")
    if place is None:
        del messaging[platform]
    else:
        del instances[place]
        if not instances:
            del own["instances"]
    bindings = _list(tables, "bindings")
    bindings[:] = [binding for binding in bindings if not _is_bound_to(binding, platform, name)]
    _drop_empty(tables)


def _is_bound_to(binding: Tables, platform: str, name: str) -> bool:
    if str(binding.get("channel")).strip().lower() != platform:
        return False
    adapter = str(binding.get("adapter") or "").lower().removeprefix(f"{platform}:")
    return not name or adapter == name.lower()


def _drop_empty(tables: Tables) -> None:
    if tables.get("bindings") == []:
        del tables["bindings"]


def _find(tables: Tables, identity: BindingIdentity) -> int:
    """Where a binding stands. Errors: NotFoundError; RefusedError."""
    found = [i for i, binding in enumerate(_list(tables, "bindings")) if _is_it(binding, identity)]
    if identity.index is not None:
        found = [i for i in found if i == identity.index]
    if not found:
        raise NotFoundError("no such binding is in the file; it may have been changed meanwhile")
    if len(found) > 1:
        raise RefusedError(f"{len(found)} bindings look like that (numbers {found}); name one by its 'index'")
    return found[0]


def _is_it(binding: Mapping[str, Any], identity: BindingIdentity) -> bool:
    for name in _IDENTITY:
        wanted, there = getattr(identity, name), binding.get(name)
        if (None if there is None or there == "" else str(there)) != (wanted or None):
            return False
    return identity.adapter is None or (binding.get("adapter") or "") == identity.adapter


def _clean(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth writing: no empty values, except an empty `authority`, which means everybody."""
    kept = {name: fields[name] for name in _FIELDS if fields.get(name) not in (None, "", False)}
    kept = {name: list(value) if isinstance(value, tuple | list) else value for name, value in kept.items()}
    return {name: value for name, value in kept.items() if value != [] or name == "authority"}
