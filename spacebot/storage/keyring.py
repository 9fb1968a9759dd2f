"""The kernel's keyring of this user: where the passphrase of the secret store may lie until the machine is restarted.

It lives in the kernel's memory and on no disk. Only processes of this user can ask for it, and not the commands of
workers: their sandbox lets no call through to keyrings (`tools/sandbox.py`).

A library for desktop keyrings was looked at and left out: it costs nine packages and a fifth of a second, and finds
nothing on a machine where nobody is logged in to a desktop. The Mac's keychain would give what the program keeps there
to any command that runs the same tool, so it is not used.

Flow:    open_keyring -> Keyring.remember | recall | forget
Floor:   storage; standard library only
Source:  keyrings(7), keyctl(2); tools spec 14.3
"""

import ctypes
import errno
import hashlib
import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from spacebot.base.errors import RefusedError, StorageError

# Numbers of the calls add_key and keyctl; the same on every kernel of an architecture.
_CALLS = {"x86_64": (248, 250), "aarch64": (217, 219)}
_UNLINK, _SEARCH, _READ, _SETPERM, _REVOKE = 9, 10, 11, 5, 3
_THREAD, _USER = -1, -4  # keyrings: of this thread, of this user
_POSSESSOR_ALL = 0x3F000000  # nobody else may see that there is such a key
_KIND = b"user"
_MOST = 4096  # bytes read of a key

Call = Callable[..., int]


class Keyring:
    """Keeps one text for each instance."""

    def __init__(self, add: Call, control: Call) -> None:
        self._add = add
        self._control = control

    def remember(self, root: Path, text: str) -> None:
        """Keep a text for an instance until the machine is restarted. Errors: StorageError."""
        self.forget(root)
        data = text.encode(errors="surrogatepass")
        key = self._add(_KIND, _name(root), data, ctypes.c_size_t(len(data)), ctypes.c_int(_USER))
        if key < 0:
            raise StorageError(f"the kernel's keyring does not take it ({_reason()}); use a key file")
        with self._held(root) as found:
            self._control(_SETPERM, found, ctypes.c_uint32(_POSSESSOR_ALL))

    def recall(self, root: Path) -> str | None:
        """What is kept for an instance."""
        with self._held(root) as key:
            if key is None:
                return None
            buffer = ctypes.create_string_buffer(_MOST)
            size = self._control(_READ, key, buffer, ctypes.c_size_t(_MOST))
            return buffer.raw[:size].decode(errors="surrogatepass") if 0 <= size <= _MOST else None

    def forget(self, root: Path) -> bool:
        """Forget it; returns whether there was something."""
        with self._held(root) as key:
            if key is None:
                return False
            is_gone = self._control(_REVOKE, key) == 0
            self._control(_UNLINK, key, ctypes.c_int(_USER))
            return is_gone

    def _held(self, root: Path) -> "_Held":
        return _Held(self._control, _name(root))


class _Held:
    """A key while this thread possesses it, without which the kernel does not let it be read."""

    def __init__(self, control: Call, name: bytes) -> None:
        self._control = control
        self._name = name
        self._key = -1

    def __enter__(self) -> int | None:
        self._key = self._control(_SEARCH, ctypes.c_int(_USER), _KIND, self._name, ctypes.c_int(_THREAD))
        return self._key if self._key >= 0 else None

    def __exit__(self, *_: object) -> None:
        if self._key >= 0:
            self._control(_UNLINK, self._key, ctypes.c_int(_THREAD))


def open_keyring() -> Keyring:
    """The keyring of this user, once it has answered.

    Errors: RefusedError with the reason when there is none here: another system, or a container that forbids it.
    """
    numbers = _CALLS.get(platform.machine()) if sys.platform == "linux" else None
    if numbers is None:
        raise RefusedError("this system has no keyring that workers' commands cannot open; use a key file")
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int) -> Call:
        def made(*arguments: object) -> int:
            ctypes.set_errno(0)
            return int(libc.syscall(ctypes.c_long(number), *arguments))

        return made

    keyring = Keyring(*map(call, numbers))
    if keyring._control(0, ctypes.c_int(_USER), ctypes.c_int(1)) < 0:  # its number, made if need be
        raise RefusedError(f"the kernel's keyring cannot be used here ({_reason()}); use a key file")
    return keyring


def recall(root: Path) -> str | None:
    """What the keyring keeps for an instance; None where there is no keyring either."""
    with suppress(RefusedError):
        return open_keyring().recall(root)
    return None


def _name(root: Path) -> bytes:
    """What a key is called: one for each instance directory, which its name does not tell."""
    return b"spacebot:" + hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32].encode()


def _reason() -> str:
    number = ctypes.get_errno()
    return "forbidden" if number in (errno.EPERM, errno.EACCES) else os.strerror(number)
