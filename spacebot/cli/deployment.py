"""What a container needs at its first start: a token, because its API listens on every address.

Whoever gives none by the configuration or by SPACEBOT_API_TOKEN gets one, made at random, in a file that only the
owner can read. It stays the same from then on, and goes when a token of the owner's takes its place.

Flow:    main -> read_token; start -> make_token -> SPACEBOT_API_TOKEN -> config/environment.py
Floor:   cli; standard library only
Source:  control spec 6.6, 8.1.26
"""

import os
import secrets
import sys
from contextlib import suppress

from spacebot.base.errors import ConfigError
from spacebot.base.paths import InstancePaths

VARIABLE = "SPACEBOT_API_TOKEN"
TOKEN_FILE = "api_token"
_OPEN_KINDS = frozenset({"docker", "hosted"})


def read_token(paths: InstancePaths) -> None:
    """Let commands see the token that a start has made, as the program does."""
    if _is_wanted():
        with suppress(OSError):
            _remember((paths.root / TOKEN_FILE).read_text(encoding="ascii", errors="replace"))


def make_token(paths: InstancePaths) -> None:
    """Make the token if this start needs one, and say where it is.

    Errors: ConfigError when it cannot be written.
    """
    if not _is_wanted() or _has_own(paths):
        return
    file = paths.root / TOKEN_FILE
    unfinished = file.with_name(f"{TOKEN_FILE}.new")
    try:
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as writing:
            writing.write(token := secrets.token_urlsafe(32))
            writing.flush()
            os.fsync(descriptor)
        unfinished.rename(file)
    except OSError as error:
        raise ConfigError(f"cannot write {file} ({error.strerror}); give a token by {VARIABLE}") from error
    _remember(token)
    print(f"the web app asks for a token; one was made, it stands in {file}", file=sys.stderr)


def _is_wanted() -> bool:
    kind = os.environ.get("SPACEBOT_DEPLOYMENT", "").strip().lower()
    return kind in _OPEN_KINDS and not os.environ.get(VARIABLE) and not os.environ.get("SPACEBOT_API_WITHOUT_TOKEN")


def _has_own(paths: InstancePaths) -> bool:
    """Whether the owner's file names a token; one that cannot be read is told by who reads it next."""
    import tomllib

    with suppress(OSError, ValueError):
        api = tomllib.loads(paths.config.read_text(encoding="utf-8-sig")).get("api")
        return isinstance(api, dict) and bool(api.get("auth_token"))
    return False


def _remember(token: str) -> None:
    if token.strip():
        os.environ[VARIABLE] = token.strip()
