"""Providers as their owner sets them up: what may be written, where the key goes, which models answer from then on.

A key goes into the secret store and the configuration names it; the plain key never stands in the file. The same
functions serve HTTP, `spacebot provider` and `spacebot init`; they block, and do not look at the running program.

Flow:    ProviderForm -> ProviderDesk.plan -> Plan (candidate for a trial) -> ProviderDesk.save
Floor:   api
Source:  control spec 1.5.1, 1.5.2, 2.3 and 4.7
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from spacebot.base.errors import ConfigError, NotFoundError, RefusedError
from spacebot.base.redaction import register_secret
from spacebot.config.edit import ConfigEditor
from spacebot.config.load import read_source
from spacebot.config.model import ApiType, LlmConfig, ProviderConfig
from spacebot.config.provider_table import ProviderEntry, provider_table
from spacebot.config.tables import is_url
from spacebot.storage.secrets import SecretStore, check_value

DEMO = "demo"
ROLES = ("channel", "branch", "worker", "compactor", "cortex")
FIRST_ROLES = ("channel", "branch")
MAX_MODEL = 200  # characters
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_REFERENCE = re.compile(r"(env|secret):[A-Za-z_][A-Za-z0-9_]{0,127}")

Tables = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderForm:
    """What an owner says of a provider.

    Args:
        provider: id of the table, with `-` or `_`; any other id is one of the owner's own.
        api_key: the key itself, or `env:NAME` or `secret:NAME`. Where no key is needed (Ollama), an address given
            here is taken as `base_url`. None keeps what is there.
        model: full name, `provider/model`, for every role; None: the provider's own models.
        base_url, api_type, name: of the owner's own providers; a built-in one knows them.
        sets_routes: whether the roles of all agents go to this provider.
    """

    provider: str
    api_key: str | None = field(default=None, repr=False)
    model: str | None = None
    base_url: str | None = None
    api_type: str | None = None
    name: str | None = None
    sets_routes: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A form that was checked.

    Args:
        key: what the provider gets; None where it is not known yet, or none is needed.
        secret: name in the store under which `key` goes; None when it is a reference already, or there is none.
        reference: what the configuration says; None leaves it as it is.
        models: role -> full name.
    """

    provider: str
    entry: ProviderEntry | None
    api_type: ApiType
    base_url: str
    key: str | None = field(repr=False)
    secret: str | None
    reference: str | None
    models: Mapping[str, str]
    sets_routes: bool
    name: str | None = None
    has_own_url: bool = False

    @property
    def model(self) -> str:
        """The model of conversations, which a trial asks."""
        return self.models["channel"]

    def candidate(self, llm: LlmConfig) -> LlmConfig:
        """The providers as they would be. Errors: RefusedError for an address that is none."""
        old = llm.provider.get(self.provider)
        key = SecretStr(self.key) if self.key else old.api_key if old is not None and self.reference is None else None
        try:
            made = ProviderConfig(
                api_type=self.api_type,
                base_url=self.base_url,
                api_key=key,
                name=self.name,
                has_login=old is not None and old.has_login and self.key is None,
            )
        except ValidationError as error:
            raise RefusedError("the address must be an absolute http or https URL") from error
        return llm.model_copy(update={"provider": {**llm.provider, self.provider: made}})


class ProviderDesk:
    """Changes the file and the secret store.

    Args:
        store: gives the secret store, with the passphrase that is known.
        resolve: the value behind `secret:NAME`.
        environ: the environment of the program.
    """

    def __init__(
        self,
        editor: ConfigEditor,
        store: Callable[[], SecretStore],
        resolve: Callable[[str], str | None],
        *,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._editor = editor
        self._store = store
        self._resolve = resolve
        self._environ = environ

    def plan(self, form: ProviderForm, llm: LlmConfig) -> Plan:
        """Check a form. Errors: RefusedError, never with the key."""
        provider = normal_id(form.provider)
        entry = provider_table().get(provider)
        old = llm.provider.get(provider)
        given, base_url = (form.api_key or "").strip(), (form.base_url or "").strip()
        if entry is not None and not entry.needs_key and "://" in given:
            given, base_url = "", given
        api_type = _api_type(form.api_type, entry, old)
        url = base_url or (old.base_url if old is not None else "") or (entry.base_url if entry is not None else "")
        if not url:
            raise RefusedError(f"{provider} needs base_url, the address of the host")
        if not _is_url(url):
            raise RefusedError("base_url must be an absolute http or https URL, such as https://models.example.org")
        key, secret, reference = self._key(provider, entry, given)
        is_known = old is not None and (old.api_key is not None or old.has_login)
        if old is not None and is_known and key is None and _host(url) != _host(old.base_url):
            raise RefusedError(f"{url[:200]} is another host, which does not get the stored key; give api_key again")
        has_key = key is not None or is_known
        if entry is not None and entry.needs_key and not has_key:
            login = ", or sign in: spacebot auth login" if provider == "anthropic" else ""
            raise RefusedError(f"{entry.name} needs a key: give api_key{login}")
        return Plan(
            provider=provider,
            entry=entry,
            api_type=api_type,
            base_url=url,
            key=key,
            secret=secret,
            reference=reference,
            models=_models(provider, entry, form.model),
            sets_routes=form.sets_routes,
            name=form.name,
            has_own_url=bool(base_url),
        )

    def save(
        self, plan: Plan, *, more: Callable[[Tables], None] | None = None, secrets: Mapping[str, str] | None = None
    ) -> str:
        """Write a plan; returns what was done, for people.

        Args:
            more: a further change of the file in the same step.
            secrets: further values for the store, by name.

        Errors: LockedError, StorageError of the secret store; ConfigError of the file. Nothing has happened then.
        """
        left: list[str] = []

        def change(tables: Tables) -> None:
            left.clear()
            _write(tables, plan, left)
            if more is not None:
                more(tables)

        values = dict(secrets or {})
        if plan.secret is not None and plan.key is not None:
            values[plan.secret] = plan.key
        with self._stored(values):
            self._editor.change_tables(change)
        words = f"{plan.provider} is set up"
        if plan.sets_routes:
            words += f"; conversations go to {plan.model}"
        return words + "".join(f"; {note}" for note in left)

    def remove(self, provider: str) -> str:
        """Take a provider out of the file, with its key and the routes that lead to it; returns what was done.

        Errors: NotFoundError when the file has none; ConfigError.
        """
        provider = normal_id(provider)
        entry = provider_table().get(provider)
        gone: list[str] = []
        try:
            self._editor.change_tables(lambda tables: _erase(tables, provider, entry, gone))
        except NotFoundError:
            if entry is not None and entry.env and self._environ.get(entry.env):
                raise RefusedError(f"the key of {entry.name} stands in the variable {entry.env}; unset it") from None
            raise
        own = secret_name(provider, entry)
        if f"secret:{own}" in gone:
            store = self._store()
            if own in {info.name for info in store.list()}:
                store.remove(own)
        words = f"{provider} is removed"
        if entry is not None and entry.env and self._environ.get(entry.env):
            words += f"; the variable {entry.env} still holds a key"
        return words

    def sources(self) -> dict[str, str]:
        """Where the key of each provider in the file comes from: `secret`, `environment` or `file`.

        Errors: ConfigError.
        """
        llm = read_source(self._editor.path).tables.get("llm", {})
        found: dict[str, str] = {}
        if not isinstance(llm, dict):
            return found
        for entry in provider_table().values():
            value = llm.get(entry.key or "")
            if value is None and entry.env and self._environ.get(entry.env):
                value = f"env:{entry.env}"
            if isinstance(value, str) and value:
                found[entry.id] = _source(value)
        for name, table in _tables_of(llm):
            value = table.get("api_key")
            if isinstance(value, str) and value:
                found[name.lower()] = _source(value)
        return found

    @contextmanager
    def _stored(self, values: Mapping[str, str]) -> Iterator[None]:
        """Put values into the store; when the block fails, it is as it was."""
        store = self._store()
        before = store.read() if values and store.exists else {}
        done: list[str] = []
        try:
            for name, value in values.items():
                store.set(name, value)
                done.append(name)
            yield
        except BaseException:  # somebody who leaves in this moment included
            for name in done:
                old = before.get(name)
                if old is not None and old.value is not None:
                    store.set(name, old.value)
                else:
                    store.remove(name)
            raise

    def _key(self, provider: str, entry: ProviderEntry | None, given: str) -> tuple[str | None, str | None, str | None]:
        """The key, the name that it gets in the store, and what the file says."""
        if not given:
            return None, None, None
        if _REFERENCE.fullmatch(given):
            kind, _, name = given.partition(":")
            value = self._environ.get(name, "").strip() if kind == "env" else self._resolve(name)
            if not value:
                raise RefusedError(f"the environment variable {name} is not set here; set it, or give the key itself")
            return value, None, given
        check_value(given)
        if not given.isascii() or " " in given:
            raise RefusedError("that is no key: it holds blanks or letters that no key has; copy it once more")
        register_secret(given)
        name = secret_name(provider, entry)
        return given, name, f"secret:{name}"


def normal_id(provider: str) -> str:
    """An id as the table has it. Errors: RefusedError."""
    wanted = provider.strip().lower()
    if wanted not in provider_table() and (hyphened := wanted.replace("_", "-")) in provider_table():
        wanted = hyphened
    if wanted == DEMO or not _ID.fullmatch(wanted):
        known = ", ".join(name for name in provider_table() if name != DEMO)
        raise RefusedError(f"{provider[:64]!r} is no provider; there are {known}, or an id of your own")
    return wanted


def secret_name(provider: str, entry: ProviderEntry | None) -> str:
    """What the key of a provider is called in the secret store."""
    own = entry.env if entry is not None else None
    return own or f"PROVIDER_{re.sub('[^A-Z0-9]', '_', provider.upper())}_API_KEY"[:64]


def _is_url(url: str) -> bool:
    try:
        return bool(is_url(url))
    except ValueError:
        return False


def _host(url: str) -> tuple[str, str, int | None]:
    """What a key is shown to."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def _api_type(given: str | None, entry: ProviderEntry | None, old: ProviderConfig | None) -> ApiType:
    if given is not None:
        try:
            kind = ApiType(given)
        except ValueError:
            kind = ApiType.DEMO
        if kind is ApiType.DEMO:
            known = ", ".join(kind for kind in ApiType if kind is not ApiType.DEMO)
            raise RefusedError(f"api_type must be one of: {known}")
        return kind
    if old is not None:
        return old.api_type
    if entry is not None:
        return entry.api_type
    raise RefusedError("a provider of your own needs api_type, the wire format that it speaks, and base_url")


def _models(provider: str, entry: ProviderEntry | None, model: str | None) -> dict[str, str]:
    """The model of each role."""
    if model is not None and model.strip():
        name = model.strip()
        prefix, slash, rest = name.partition("/")
        if not slash or not rest or normal_id(prefix) != provider:
            raise RefusedError(f"the model must be one of this provider: {provider}/…")
        if len(name) > MAX_MODEL or not name.isprintable() or " " in name:
            raise RefusedError("this is no name of a model; write it as provider/model")
        return dict.fromkeys(ROLES, f"{provider}/{rest}")
    if entry is None or not entry.first:
        raise RefusedError(f"give the model that {provider} is to be asked for: {provider}/…")
    names = {role: entry.first if role in FIRST_ROLES else entry.second or entry.first for role in ROLES}
    return {role: f"{provider}/{name}" for role, name in names.items()}


# The tables of the file


def _write(tables: Tables, plan: Plan, left: list[str]) -> None:
    llm = _table(tables, "llm")
    own = next((table for name, table in _tables_of(llm) if name.lower() == plan.provider), None)
    entry = plan.entry
    is_custom = entry is None or plan.api_type is not entry.api_type
    needs_table = is_custom or (plan.has_own_url and entry is not None and entry.url_key is None)
    if own is None and needs_table:
        own = _table(_table(llm, "provider"), plan.provider)
    if own is not None:
        _fill(own, plan, is_custom=is_custom)
    elif entry is not None:
        if entry.key and plan.reference is not None:
            llm[entry.key] = plan.reference
        if entry.url_key and (plan.has_own_url or not entry.needs_key):
            llm[entry.url_key] = plan.base_url
    if plan.sets_routes:
        _route(tables, plan, left)
    if llm == {}:
        del tables["llm"]


def _fill(own: Tables, plan: Plan, *, is_custom: bool) -> None:
    """Write a provider's own table."""
    if is_custom:
        own["api_type"] = str(plan.api_type)
    if is_custom or plan.has_own_url:
        own["base_url"] = plan.base_url
    if plan.reference is not None:
        own["api_key"] = plan.reference
    if plan.name:
        own["name"] = plan.name


def _route(tables: Tables, plan: Plan, left: list[str]) -> None:
    """Send the five roles to the plan's models, those of the default agent too where it names its own."""
    routing = _table(_table(tables, "defaults"), "routing")
    routing |= plan.models
    first, second = plan.models["channel"], plan.models["worker"]
    if first != second:
        _table(routing, "task_overrides").setdefault("coding", first)
        fallbacks = _table(routing, "fallbacks")
        fallbacks.setdefault(first, [second])
    agents = tables.get("agents")
    entries = [entry for entry in agents if isinstance(entry, dict)] if isinstance(agents, list) else []
    default = next((entry for entry in entries if entry.get("default") is True), next(iter(entries), None))
    for entry in entries:
        own = entry.get("routing")
        if not isinstance(own, dict) or not any(role in own for role in ROLES):
            continue
        if entry is default:
            own |= {role: name for role, name in plan.models.items() if role in own}
        else:
            left.append(f"agent {entry.get('id')!r} goes on with the models of its own table")


def _erase(tables: Tables, provider: str, entry: ProviderEntry | None, gone: list[str]) -> None:
    """Take a provider out; `gone` gets what stood for its key. Errors: NotFoundError."""
    llm = tables.get("llm")
    found = _erase_tables(llm, provider, entry) if isinstance(llm, dict) else []
    if not found:
        raise NotFoundError(f"the configuration file has no provider {provider!r}")
    gone += found
    if llm == {}:
        del tables["llm"]
    agents, defaults = tables.get("agents"), tables.get("defaults")
    for holder in (defaults, *(agents if isinstance(agents, list) else ())):
        if isinstance(holder, dict) and isinstance(routing := holder.get("routing"), dict):
            _unroute(routing, f"{provider}/")
    if isinstance(defaults, dict) and defaults.get("routing") == {}:
        del defaults["routing"]
    if defaults == {}:
        del tables["defaults"]


def _erase_tables(llm: Tables, provider: str, entry: ProviderEntry | None) -> list[str]:
    """Take a provider's keys and tables out of `[llm]`; returns what they held for a key or an address."""
    found = [str(llm.pop(key)) for key in (entry.key, entry.url_key) if key in llm] if entry is not None else []
    for holder, prefix in ((llm.get("provider"), ""), (llm.get("providers"), ""), (llm, "provider.")):
        if not isinstance(holder, dict):
            continue
        for name in [name for name in holder if name.lower() == f"{prefix}{provider}"]:
            table = holder.pop(name)
            found.append(str(table.get("api_key")) if isinstance(table, dict) else "")
    for name in ("provider", "providers"):
        if llm.get(name) == {}:
            del llm[name]
    return found


def _unroute(routing: Tables, prefix: str) -> None:
    """Take routes away that lead to a provider."""
    for role in (*ROLES, "voice"):
        if str(routing.get(role, "")).lower().startswith(prefix):
            del routing[role]
    for name in ("task_overrides", "fallbacks"):
        table = routing.get(name)
        if not isinstance(table, dict):
            continue
        for key, value in list(table.items()):
            if isinstance(value, list):
                kept = [model for model in value if not str(model).lower().startswith(prefix)]
                is_gone = key.lower().startswith(prefix) or not kept
                if kept != value and not is_gone:
                    table[key] = kept
            else:
                is_gone = str(value).lower().startswith(prefix)
            if is_gone:
                del table[key]
        if table == {}:
            del routing[name]


def _table(tables: Tables, name: str) -> Tables:
    """A table inside another, made when it is missing. Errors: ConfigError when something else stands there."""
    found = tables.setdefault(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{name!r} is no table in the configuration file; edit it by hand")
    return found


def _tables_of(llm: Tables) -> list[tuple[str, Tables]]:
    """The explicit tables of providers, in the spellings that the reader knows."""
    holders = [llm.get("provider"), llm.get("providers")]
    named = {key.removeprefix("provider."): value for key, value in llm.items() if key.startswith("provider.")}
    every = [*(holder for holder in holders if isinstance(holder, dict)), named]
    return [(name, table) for holder in every for name, table in holder.items() if isinstance(table, dict)]


def _source(value: str) -> str:
    return {"secret": "secret", "env": "environment"}.get(value.partition(":")[0], "file")
