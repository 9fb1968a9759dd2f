"""The secret store: names in the open, values encrypted, in one file of the instance.

Values are sealed one by one with AES-256-GCM: a nonce of its own each, with the store, the category and the name as
associated data, so that no record passes for another one or for a tool's. The key is 32 random bytes in a file beside
the store, or comes from a passphrase by Argon2id. A sealed sentence tells a wrong key from a damaged record.

A new key replaces the old one in three steps: the new key is on disk under a name of its own, one transaction seals
every record with it, its file takes the old one's place. Whoever opens the store next finishes what was cut off;
which of the two files holds the key is decided by the sentence.

Flow:    SecretStore.set | remove | rotate | read -> one locked connection, one transaction
Floor:   storage; may import base; the only importer of cryptography
Source:  tools spec 14.3; memory spec 16; control spec 6.2
"""

import difflib
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from spacebot.base.clock import Clock
from spacebot.base.errors import NotFoundError, RefusedError, StorageError
from spacebot.base.redaction import register_secret
from spacebot.storage.database import Connection, Error, connect

STORE_FILE = "secrets.db"
KEY_FILE = "secret.key"
NEXT_KEY_FILE = "secret.key.new"  # only while a new key replaces the old one
LOCK_FILE = "secrets.lock"
FORMAT = 1  # of the whole store; Argon2id's figures belong to it
KEY_BYTES = 32
NONCE_BYTES = 12
SALT_BYTES = 16
ARGON2_MEMORY_KIB = 64 * 1024  # with the next two: memory spec 16
ARGON2_PASSES = 3
ARGON2_LANES = 4
MIN_PASSPHRASE = 8  # characters
MAX_PASSPHRASE = 1024
MAX_NAME = 64
MAX_VALUE = 2048  # bytes; keys are shorter, and every form of every value is looked for in every text
MAX_SECRETS = 200
LOCK_S = 10.0  # another command holds the lock for well below a second
LOCK_STEP_S = 0.02

_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_SENTENCE = b"this store and this key belong together"
_NO_NAME = ""  # of the sentence
_SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT",
    "CREATE TABLE secrets (name TEXT PRIMARY KEY, category TEXT NOT NULL CHECK (category IN ('system', 'tool')), "
    "value BLOB NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL) STRICT",
)


class Category(StrEnum):
    """Who may have a value."""

    SYSTEM = "system"  # the program's own configuration; never a subprocess
    TOOL = "tool"  # commands of workers too, as an environment variable


class KeyKind(StrEnum):
    """Where the key comes from."""

    FILE = "file"
    PASSPHRASE = "passphrase"


class LockedError(StorageError):
    """The key is not at hand, or is the wrong one."""


class WrongPassphraseError(LockedError):
    """A passphrase was given, and it does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretInfo:
    """What may be told of a secret."""

    name: str
    category: Category
    created_at: str
    updated_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """An opened secret; `value` is None when its record is damaged."""

    category: Category
    value: str | None = field(repr=False)


def check_name(text: str) -> str:
    """The form in which a name is stored. Errors: RefusedError, which does not repeat it: it might be a value."""
    name = text.strip().upper()
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise RefusedError(
            f"a secret's name is a letter, then letters, digits and _, at most {MAX_NAME} characters; "
            "the value is read from standard input"
        )
    return name


def check_value(value: str) -> str:
    """Refuse what cannot be a key. Errors: RefusedError, without the value."""
    if not value.strip():
        raise RefusedError("the value is empty")
    if "\n" in value or "\r" in value:
        raise RefusedError("the value has several lines; encode it (base64 -w0) or keep it in a file of its own")
    if any(ord(character) < 32 or ord(character) == 127 or "\ud800" <= character <= "\udfff" for character in value):
        raise RefusedError("the value holds control characters, or is not text")
    if (size := len(value.encode())) > MAX_VALUE:
        raise RefusedError(f"the value has {size} bytes; at most {MAX_VALUE} are kept")
    return value


def check_passphrase(text: str) -> str:
    """Refuse what protects nothing. Errors: RefusedError."""
    if not MIN_PASSPHRASE <= len(text) <= MAX_PASSPHRASE:
        raise RefusedError(f"a passphrase has {MIN_PASSPHRASE} to {MAX_PASSPHRASE} characters")
    return text


class SecretStore:
    """The store of one instance. Every call opens the file, does its work and closes it; all of them block.

    Several processes may use one store: each call holds the lock.

    Args:
        root: the instance directory.
        passphrase: used when the store has one, and for a new store; None means a key file.
    """

    def __init__(self, root: Path, *, passphrase: str | None = None, clock: Clock | None = None) -> None:
        self.path = root / STORE_FILE
        self._root = root
        self._key_file = root / KEY_FILE
        self._next_key_file = root / NEXT_KEY_FILE
        self.passphrase = passphrase
        self._clock = clock or Clock()
        self.warnings: list[str] = []  # what the owner should know, such as permissions that were mended

    @property
    def exists(self) -> bool:
        """Whether anything was ever stored."""
        return self.path.exists()

    def kind(self) -> KeyKind | None:
        """Where the key comes from; None while there is no store. Errors: StorageError."""
        if not self.exists:
            return None
        with self._open() as connection:
            meta = _read_meta(connection, self.path)
            return KeyKind(meta["kind"].decode()) if meta else None

    def list(self) -> "list[SecretInfo]":
        """All names, in order; needs no key. Errors: StorageError."""
        if not self.exists:
            return []
        with self._open() as connection:
            if not _read_meta(connection, self.path):
                return []
            return _infos(connection)

    def read(self) -> dict[str, Secret]:
        """Everything, opened. Errors: LockedError, StorageError."""
        if not self.exists:
            return {}
        with self._open() as connection:
            if not _read_meta(connection, self.path):
                return {}
            return _opened(connection, self._unlock(connection))

    def set(self, name: str, value: str, category: Category | None = None) -> tuple[SecretInfo, bool]:
        """Store a value; returns what is known of it and whether the name is new.

        Args:
            category: None keeps that of the name, and is `SYSTEM` for a new one.

        Errors: RefusedError for a bad name or value; LockedError, StorageError.
        """
        name, value = check_name(name), check_value(value)
        register_secret(value)
        with self._open(create=True) as connection:
            box = self._unlock(connection) if _read_meta(connection, self.path) else self._create(connection)
            known = {info.name: info for info in _infos(connection)}
            old = known.get(name)
            if old is None and len(known) >= MAX_SECRETS:
                raise RefusedError(f"the store holds {MAX_SECRETS} secrets, the most it can; remove some")
            now = self._clock.text()
            info = SecretInfo(
                name=name,
                category=category or (old.category if old else Category.SYSTEM),
                created_at=old.created_at if old else now,
                updated_at=now,
            )
            with _transaction(connection):
                connection.execute(
                    "INSERT OR REPLACE INTO secrets (name, category, value, created_at, updated_at) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (name, info.category, box.seal(name, info.category, value), info.created_at, now),
                )
        return info, old is None

    def remove(self, name: str) -> None:
        """Forget a secret; needs no key. Errors: NotFoundError with the nearest name; StorageError."""
        name = check_name(name)
        if self.exists:
            with self._open() as connection:
                known = [info.name for info in _infos(connection)] if _read_meta(connection, self.path) else []
                if name in known:
                    with _transaction(connection):
                        connection.execute("DELETE FROM secrets WHERE name = ?", (name,))
                    return
        else:
            known = []
        raise unknown_name(name, known)

    def rotate(self, *, kind: KeyKind | None = None, passphrase: str | None = None) -> int:
        """Seal everything with a new key; returns how many records there are. A crash leaves the old key or the new.

        Args:
            kind: where the new key comes from; None keeps it.
            passphrase: the new one; None keeps it, with a new salt.

        Errors: NotFoundError without a store; LockedError; StorageError, also when a record is damaged: it is not
            thrown away silently.
        """
        if not self.exists:
            raise NotFoundError("there are no secrets yet; spacebot secret set NAME stores the first one")
        with self._open() as connection:
            meta = _read_meta(connection, self.path)
            if not meta:
                raise NotFoundError("there are no secrets yet; spacebot secret set NAME stores the first one")
            secrets = _opened(connection, self._unlock(connection))
            damaged = ", ".join(name for name, secret in secrets.items() if secret.value is None)
            if damaged:
                raise StorageError(f"the record of {damaged} is damaged; set it again or remove it, then rotate")
            kind = kind or KeyKind(meta["kind"].decode())
            passphrase = passphrase or self.passphrase
            box, fields = self._new_key(meta["store"], kind, passphrase)
            with _transaction(connection):
                for name, secret in secrets.items():
                    sealed = box.seal(name, secret.category, secret.value or "")
                    connection.execute("UPDATE secrets SET value = ? WHERE name = ?", (sealed, name))
                _write_meta(connection, fields)
            self._settle(kind, is_next=kind is KeyKind.FILE)
            self.passphrase = passphrase if kind is KeyKind.PASSPHRASE else self.passphrase
            return len(secrets)

    # Keys

    def _create(self, connection: Connection) -> "_Box":
        """Make an empty store. A key file that is there already is used: it is left by a crash, or the owner's copy."""
        kind = KeyKind.FILE if self.passphrase is None else KeyKind.PASSPHRASE
        if kind is KeyKind.PASSPHRASE and self._key_file.exists():
            raise RefusedError(f"{str(self._key_file)!r} belongs to a store that is gone; move it away first")
        store = os.urandom(SALT_BYTES)
        if kind is KeyKind.FILE and (key := self._read_key(self._key_file)) is not None:
            box = _Box(key, store)
            fields = box.meta(kind)
        else:
            box, fields = self._new_key(store, kind, self.passphrase)
            self._settle(kind, is_next=kind is KeyKind.FILE)
        with _transaction(connection):
            for statement in _SCHEMA:
                connection.execute(statement)
            _write_meta(connection, fields)
        return box

    def _new_key(self, store: bytes, kind: KeyKind, passphrase: str | None) -> tuple["_Box", dict[str, bytes]]:
        if kind is KeyKind.FILE:
            key = os.urandom(KEY_BYTES)
            self._write_key(key)
            box = _Box(key, store)
            return box, box.meta(kind)
        if passphrase is None:
            raise LockedError("a passphrase is needed")
        salt = os.urandom(SALT_BYTES)
        box = _Box(_derive(check_passphrase(passphrase), salt), store)
        return box, box.meta(kind) | {"salt": salt}

    def _unlock(self, connection: Connection) -> "_Box":
        """The box that opens this store's records; finishes a change of keys that was cut off."""
        meta = _read_meta(connection, self.path)
        kind = KeyKind(meta["kind"].decode())
        if kind is KeyKind.PASSPHRASE:
            if self.passphrase is None:
                raise LockedError("the secret store is locked by a passphrase")
            box = _Box(_derive(self.passphrase, meta["salt"]), meta["store"])
            if not box.fits(meta["sentence"]):
                raise WrongPassphraseError("the passphrase of the secret store is wrong")
            register_secret(self.passphrase)
            self._settle(kind, is_next=False)
            return box
        present = False
        for path in (self._key_file, self._next_key_file):
            key = self._read_key(path)
            present = present or path.exists()
            if key is not None and (box := _Box(key, meta["store"])).fits(meta["sentence"]):
                self._settle(kind, is_next=path == self._next_key_file)
                return box
        what = "does not belong to the secret store, or is damaged" if present else "is missing"
        raise LockedError(
            f"the key file {str(self._key_file)!r} {what}; put back a copy of it, or move {STORE_FILE} away and set "
            "every secret again"
        )

    def _read_key(self, path: Path) -> bytes | None:
        """The key in a file; None when it is missing or holds something else."""
        try:
            self._guard(path)
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"the key file {str(path)!r} cannot be read ({error.strerror})") from error
        with suppress(ValueError):
            key = bytes.fromhex(text.decode("ascii").strip())
            register_secret(key.hex())  # a command that nothing contains can read the file, but not tell of it
            return key if len(key) == KEY_BYTES else None
        return None

    def _write_key(self, key: bytes) -> None:
        """Put a new key on disk beside the one in use."""
        with suppress(FileNotFoundError):
            self._next_key_file.unlink()
        try:
            file = os.open(self._next_key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(file, key.hex().encode() + b"\n")
                os.fsync(file)
            finally:
                os.close(file)
            self._sync_folder()
        except OSError as error:
            raise StorageError(
                f"the key file {str(self._next_key_file)!r} cannot be written ({error.strerror})"
            ) from error

    def _settle(self, kind: KeyKind, *, is_next: bool) -> None:
        """Leave exactly the key files that belong to the store as it stands."""
        try:
            if is_next:
                os.replace(self._next_key_file, self._key_file)
            else:
                unneeded = [self._next_key_file, *([self._key_file] if kind is KeyKind.PASSPHRASE else [])]
                if not any(path.exists() for path in unneeded):
                    return
                for path in unneeded:
                    path.unlink(missing_ok=True)
            self._sync_folder()
        except OSError as error:
            raise StorageError(f"the key files in {str(self._root)!r} cannot be changed ({error.strerror})") from error

    def _sync_folder(self) -> None:
        folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    # Files

    @contextmanager
    def _open(self, *, create: bool = False) -> Iterator[Connection]:
        with self._lock():
            self._guard(self.path, create=create)
            connection = connect(self.path)
            try:
                yield connection
            except Error as error:
                raise StorageError(
                    f"the secret store {str(self.path)!r} cannot be used ({error}); check free space and permissions, "
                    "or put back a copy"
                ) from error
            finally:
                connection.close()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            file = os.open(self._root / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"the secret store in {str(self._root)!r} cannot be locked ({error.strerror}); make the folder writable"
            ) from error
        try:
            deadline = time.monotonic() + LOCK_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise StorageError("another command is using the secret store; try again") from error
                    time.sleep(LOCK_STEP_S)
            yield
        finally:
            os.close(file)

    def _guard(self, path: Path, *, create: bool = False) -> None:
        """See to it that a file is ours alone. Errors: StorageError when it is somebody else's; FileNotFoundError."""
        if create and not path.exists():
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise StorageError(f"{str(path)!r} is not a plain file; move it away")
        if found.st_uid != os.geteuid():
            raise StorageError(f"{str(path)!r} belongs to another user; make it yours (chown) or move it away")
        if found.st_mode & 0o077:
            try:
                path.chmod(0o600)
            except OSError as error:
                raise StorageError(f"others may read {str(path)!r}; do: chmod 600 {path}") from error
            self.warnings.append(
                f"others could read {str(path)!r}, which is mended; spacebot secret rotate makes a new key"
            )


class _Box:
    """Seals and opens the records of one store with one key."""

    def __init__(self, key: bytes, store: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # who has no secrets does not load it

        self._cipher = AESGCM(key)
        self._store = store

    def seal(self, name: str, category: str, value: str) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return bytes([FORMAT]) + nonce + self._cipher.encrypt(nonce, value.encode(), self._about(name, category))

    def open(self, name: str, category: str, sealed: bytes) -> str | None:
        """The value; None when the record, its name or its category is not what was sealed."""
        from cryptography.exceptions import InvalidTag

        nonce, body = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        if sealed[:1] != bytes([FORMAT]) or len(nonce) != NONCE_BYTES:
            return None
        try:
            return self._cipher.decrypt(nonce, body, self._about(name, category)).decode()
        except (InvalidTag, ValueError):
            return None

    def meta(self, kind: KeyKind) -> dict[str, bytes]:
        sentence = self.seal(_NO_NAME, "", _SENTENCE.decode())
        return {"format": b"%d" % FORMAT, "kind": kind.encode(), "store": self._store, "sentence": sentence}

    def fits(self, sentence: bytes) -> bool:
        return self.open(_NO_NAME, "", sentence) == _SENTENCE.decode()

    def _about(self, name: str, category: str) -> bytes:
        return b"\0".join(
            (b"spacebot secret", bytes([FORMAT]), self._store.hex().encode(), category.encode(), name.encode())
        )


def _derive(passphrase: str, salt: bytes) -> bytes:
    """A key from a passphrase; about a third of a second and 64 MiB."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    try:
        kdf = Argon2id(
            salt=salt,
            length=KEY_BYTES,
            iterations=ARGON2_PASSES,
            lanes=ARGON2_LANES,
            memory_cost=ARGON2_MEMORY_KIB,
        )
        return kdf.derive(passphrase.encode(errors="surrogatepass"))
    except UnsupportedAlgorithm as error:
        raise StorageError("the cryptographic library here has no Argon2id; use a key file") from error


def _read_meta(connection: Connection, path: Path) -> dict[str, bytes]:
    """What the store says of itself; empty when it was never finished. Errors: StorageError."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone() is None:
        return {}
    meta = {str(row["key"]): bytes(row["value"]) for row in connection.execute("SELECT key, value FROM meta")}
    if meta.get("format") != b"%d" % FORMAT:
        raise StorageError(f"the secret store {str(path)!r} was made by another version of the program")
    kind = meta.get("kind", b"").decode(errors="replace")
    needed = {"store", "sentence", *(["salt"] if kind == KeyKind.PASSPHRASE else [])}
    if kind not in set(KeyKind) or needed - meta.keys():
        raise StorageError(f"the secret store {str(path)!r} is damaged; put back a copy, or move it away")
    return meta


def _write_meta(connection: Connection, fields: Mapping[str, bytes]) -> None:
    connection.execute("DELETE FROM meta")
    connection.executemany("INSERT INTO meta (key, value) VALUES (?, ?)", list(fields.items()))


def _infos(connection: Connection) -> list[SecretInfo]:
    rows = connection.execute("SELECT name, category, created_at, updated_at FROM secrets ORDER BY name")
    return [
        SecretInfo(
            name=row["name"],
            category=Category(row["category"]),
            created_at=row["created_at"],
            updated_at=row["updated_at"],
        )
        for row in rows
    ]


def _opened(connection: Connection, box: _Box) -> dict[str, Secret]:
    rows = connection.execute("SELECT name, category, value FROM secrets ORDER BY name")
    return {
        row["name"]: Secret(
            category=Category(row["category"]), value=box.open(row["name"], row["category"], bytes(row["value"]))
        )
        for row in rows
    }


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def unknown_name(name: str, known: list[str]) -> NotFoundError:
    """The error for a name that is not there, with the nearest one that is."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]}?" if near else f" (spacebot secret set {name} stores it)"
    return NotFoundError(f"the secret store has no {name}{hint}")
