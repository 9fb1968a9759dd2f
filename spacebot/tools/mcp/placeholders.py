"""`${NAME}` in the configuration of a server: filled in when a connection is made, so that the file holds no secret.

A name is looked up in the program's environment, then among the secrets that are meant for tools. Keys of the
program itself (category `system`) never go to a server.

Flow:    McpServerConfig -> fill_in -> Filled, whose secrets are registered with the scrubber
Floor:   tools
Source:  tools spec 11; control spec 1.4
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import SecretStr

from spacebot.base.errors import ConfigError
from spacebot.base.redaction import register_secret
from spacebot.config.hands import McpServerConfig

_PLACE = re.compile(r"\$\{([^${}]+)\}")
_SECRET = re.compile(
    r"(?:^|[_.-])(?:api|pg|db|my|access)?(?:keys?|tokens?|secrets?|pass|passwd|password|passphrase|pat|pwd|auth|bearer"
    r"|cookie|authorization|credentials?|dsn|signature)(?:$|[_.-])",
    re.IGNORECASE,
)
# Of these the machine is full: masking them everywhere would take words out of every text.
_PLAIN = frozenset({"HOME", "USER", "LOGNAME", "PATH", "PWD", "SHELL", "LANG", "TERM", "TMPDIR", "HOSTNAME", "DISPLAY"})

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)\s+(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A server's configuration as a connection uses it: full values, which belong into no text and no log.

    Args:
        missing: names that nothing is known of; they became empty.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    url: str
    headers: Mapping[str, str]
    missing: tuple[str, ...]


def looks_secret(name: str) -> bool:
    """Whether a variable or header of this name usually holds a credential."""
    return _SECRET.search(name) is not None


def register_secrets(server: McpServerConfig) -> None:
    """Have what stands in a configuration and looks like a credential scrubbed from every text."""
    for name, value in (*server.env.items(), *server.headers.items()):
        text = value.get_secret_value()
        if looks_secret(name) and "${" not in text:
            _register(text)


def fill_in(server: McpServerConfig, lookup: Callable[[str], str | None]) -> Filled:
    """Resolve all placeholders of a server; what came out of one is registered as a secret.

    Args:
        lookup: the value behind a name, or None.

    Errors: ConfigError when the `Authorization` header is empty or of another kind than a bearer token.
    """
    missing: dict[str, None] = {}

    def fill(text: str, *, is_secret: bool) -> str:
        def value(match: re.Match[str]) -> str:
            name = match.group(1)
            found = lookup(name)
            if found is None:
                missing[name] = None
                return ""
            if name.upper() not in _PLAIN and (is_secret or looks_secret(name)):
                _register(found)
            return found

        return _PLACE.sub(value, text)

    def fill_all(table: Mapping[str, SecretStr]) -> dict[str, str]:
        return {name: fill(value.get_secret_value(), is_secret=True) for name, value in table.items()}

    env, headers = fill_all(server.env), fill_all(server.headers)
    for name in list(headers):
        if name.lower() == "authorization":
            headers[name] = f"Bearer {bearer_token(headers[name], server.name)}"
    for name, text in (*env.items(), *headers.items()):
        if looks_secret(name):
            _register(text)
    return Filled(
        argv=tuple(fill(word, is_secret=False) for word in (server.command or "", *server.args)),
        env=env,
        url=fill(server.url or "", is_secret=False),
        headers=headers,
        missing=tuple(missing),
    )


def bearer_token(value: str, server: str) -> str:
    """The token of an `Authorization` header, written with or without its scheme.

    Errors: ConfigError.
    """
    token = value.strip()
    while (match := _SCHEME.fullmatch(token)) is not None:  # a variable may hold the scheme as well
        scheme, token = match.group(1), match.group(2).strip()
        if scheme.lower() != "bearer":
            raise ConfigError(
                f"the Authorization header of MCP server {server!r} has the scheme {scheme[:20]!r}; only bearer "
                'tokens are sent, so write: Authorization = "Bearer ${NAME}"'
            )
    if not token or token.lower() == "bearer":
        raise ConfigError(
            f"the Authorization header of MCP server {server!r} is empty; set the variable or secret that it names"
        )
    return token


def _register(text: str) -> None:
    register_secret(text)
    if (match := _SCHEME.fullmatch(text.strip())) is not None and match.group(1).lower() == "bearer":
        register_secret(match.group(2).strip())
