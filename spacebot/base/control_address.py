"""Where the control socket really lies: Unix sockets have no room for long paths.

The daemon and the commands that talk to it compute the same, from the path alone: a change of the
environment between them must not part them.

Floor: base; standard library only, because every short command loads it
"""

import hashlib
import os
import stat
from pathlib import Path

from spacebot.base.errors import ConfigError

MAX_BYTES = 100  # sockaddr_un holds 108 bytes on Linux and 104 on macOS, with a closing zero
SHORT_ROOT = Path("/tmp")  # guarded below; a user's own runtime folder ends with the login, the daemon does not


def control_address(path: Path) -> Path:
    """The path to bind or connect: `path` itself, or a short one that stands for it."""
    if len(os.fsencode(path)) <= MAX_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:24]
    return _short_folder() / f"{name}.sock"


def check_address(address: Path, *, create: bool = False) -> None:
    """Make sure that a short address lies in a folder of ours that nobody else can write to.

    Args:
        create: make the folder when it is missing.

    Errors: ConfigError when somebody else owns the folder.
    """
    folder = _short_folder()
    if address.parent != folder:
        return
    if create:
        folder.mkdir(mode=0o700, exist_ok=True)
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ConfigError(f"{folder} is not a private folder of yours; remove it, or use a shorter instance directory")


def _short_folder() -> Path:
    return SHORT_ROOT / f"spacebot-{os.getuid()}"
