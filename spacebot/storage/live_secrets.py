"""The secrets in the memory of the running program: for the configuration, and for workers' commands.

Flow:    LiveSecrets.refresh (SecretStore.read) -> resolve, tool_environment
Floor:   storage; may import base
Source:  tools spec 14.3: references are resolved from any task
"""

import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from spacebot.base.errors import StorageError
from spacebot.base.redaction import register_secret
from spacebot.base.telemetry import kv
from spacebot.storage.secrets import MAX_NAME, Category, LockedError, Secret, SecretStore, unknown_name

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsState:
    """How the store stands, for its owner: no names, no values.

    Args:
        is_locked: its key is not at hand, so nothing that names a secret works.
        key: where the key comes from; None while nothing was ever stored.
        counts: how many secrets there are of each category.
    """

    is_locked: bool
    key: str | None
    counts: Mapping[Category, int]

    def to_json_object(self) -> dict[str, Any]:
        """For the API and the command line."""
        state = "empty" if self.key is None else "locked" if self.is_locked else "unlocked"
        return {"state": state, "key": self.key, "counts": {str(name): count for name, count in self.counts.items()}}


class LiveSecrets:
    """What the running program knows of the store: a copy in memory, replaced as a whole by `refresh`.

    Reading it is quick and allowed from every thread and task.
    """

    def __init__(self, store: SecretStore) -> None:
        self._store = store
        self._secrets: Mapping[str, Secret] = {}
        self._tools: Mapping[str, str] = MappingProxyType({})
        self._trouble: str | None = None

    @classmethod
    def open(cls, root: Path, passphrase: str | None = None) -> "LiveSecrets":
        """Read the store for the first time. What is wrong with it stands in `warnings`: the program runs without."""
        live = cls(SecretStore(root, passphrase=passphrase))
        with suppress(StorageError):
            live.refresh()
        return live

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the owner should know."""
        return (*([self._trouble] if self._trouble else []), *self._store.warnings)

    @property
    def passphrase(self) -> str | None:
        """What opened the store; a restart in place needs it."""
        return self._store.passphrase

    def refresh(self, passphrase: str | None = None) -> None:
        """Read the store again; blocking. When that fails, what was known stays in use.

        Args:
            passphrase: a new one to try; None keeps the one that is known.

        Errors: LockedError, StorageError.
        """
        store = SecretStore(self._store.path.parent, passphrase=passphrase or self._store.passphrase)
        try:
            secrets = store.read()
        except StorageError as error:
            if not self._secrets:
                self._trouble = _advice(error)
            raise
        for secret in secrets.values():
            register_secret(secret.value or "")
        damaged = [name for name, secret in secrets.items() if secret.value is None]
        self._trouble = f"the record of {', '.join(damaged)} in the secret store is damaged" if damaged else None
        tools = {
            name: secret.value
            for name, secret in secrets.items()
            if secret.category is Category.TOOL and secret.value is not None
        }
        self._store, self._secrets, self._tools = store, secrets, MappingProxyType(tools)
        log.info("secrets read", extra=kv(count=len(secrets), tools=len(tools), damaged=len(damaged)))

    def store(self) -> SecretStore:
        """The store itself, with the passphrase that is known; `refresh` after a change."""
        return SecretStore(self._store.path.parent, passphrase=self._store.passphrase)

    def state(self) -> SecretsState:
        """How the store stands now. Blocking. Errors: StorageError when the file cannot be read."""
        store = self.store()
        counts = Counter(info.category for info in store.list())
        is_locked = bool(counts) and not self._secrets
        return SecretsState(
            is_locked=is_locked, key=store.kind(), counts={category: counts[category] for category in Category}
        )

    def resolve(self, name: str) -> str:
        """The value behind `secret:NAME`.

        Errors: NotFoundError with the nearest name; LockedError; StorageError for a damaged record.
        """
        wanted = name.strip().upper()
        secret = self._secrets.get(wanted)
        if secret is None and self._trouble is not None and not self._secrets:
            raise LockedError(self._trouble)
        if secret is None:
            raise unknown_name(wanted[:MAX_NAME], list(self._secrets))
        if secret.value is None:
            raise StorageError(f"the record of {wanted} in the secret store is damaged; set it again")
        return secret.value

    def tool_environment(self) -> Mapping[str, str]:
        """Variables for workers' commands."""
        return self._tools


def _advice(error: StorageError) -> str:
    if isinstance(error, LockedError) and "passphrase" in str(error):
        return f"{error}; open it with: spacebot secret unlock"
    return str(error)
