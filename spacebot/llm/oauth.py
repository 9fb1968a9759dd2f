"""Signing in at Anthropic instead of using a key: PKCE, the file of tokens, and the answers of the authority.

Nothing here talks to the network: `credentials.py` does, with what this module gives it. Whoever changes the file, or
renews a token of it, holds its lock: a refresh token counts once, so two programs must never show the same one.

Flow:    Login.begin -> a person brings back code#state -> exchange_body -> read_answer -> TokenFile.save
Floor:   llm; standard library only, as the command line asks for the state without loading anything heavy
Source:  control spec 2.11; RFC 7636 (PKCE), RFC 6749 section 5.2 (errors)
"""

import base64
import fcntl
import hashlib
import hmac
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from spacebot.base.errors import BusyError, ConfigError, RefusedError, SpacebotError, StorageError
from spacebot.base.redaction import register_secret

CLIENT_ID = "9d1c250a-e61b-44d9-88ed-5944d1962f5e"
AUTHORIZE_URL = "https://claude.ai/oauth/authorize"  # of people with a subscription
CONSOLE_URL = "https://console.anthropic.com/oauth/authorize"  # of people who pay by use
TOKEN_URL = "https://console.anthropic.com/v1/oauth/token"
REDIRECT_URI = "https://console.anthropic.com/oauth/code/callback"  # shows a code to copy
SCOPES = "org:create_api_key user:profile user:inference"
AUTHORIZE_VARIABLE = "SPACEBOT_OAUTH_AUTHORIZE_URL"  # another authority, such as a stand-in of tests
TOKEN_VARIABLE = "SPACEBOT_OAUTH_TOKEN_URL"
MARGIN_S = 300.0  # a token is renewed so long before it ends
LIFETIME_S = 3600.0  # of a token whose answer names none
MAX_FILE = 65_536  # bytes
LOGIN_COMMAND = "spacebot auth login"
NOTICE = (
    "Note: with a login Spacebot presents itself to Anthropic as its own coding tool, which the provider's terms may "
    "not allow for subscriptions. Read them before you go on; an API key is the plain way."
)
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_WHY = 200  # characters of an authority's own words


class LoginState(StrEnum):
    """How a login stands."""

    NONE = "none"
    VALID = "valid"
    EXPIRED = "expired"  # renewed with the next call
    REFUSED = "refused"  # the authority takes neither token any more
    UNREADABLE = "unreadable"


class RevokedError(SpacebotError):
    """The authority does not accept the refresh token, and will not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What `anthropic_oauth.json` holds.

    Args:
        expires_at: Unix milliseconds.
        refused_at: when the authority refused the refresh token, in Unix milliseconds; None while it is good.
    """

    access_token: str
    refresh_token: str
    expires_at: int
    refused_at: int | None = None

    def __repr__(self) -> str:
        return f"Tokens({mask(self.access_token)}, expires_at={self.expires_at}, refused_at={self.refused_at})"

    def seconds_left(self, now_s: float) -> float:
        """Until the access token ends; below zero afterwards."""
        return self.expires_at / 1000 - now_s

    def state(self, now_s: float) -> LoginState:
        """How it stands at a moment (Unix seconds)."""
        if self.refused_at is not None:
            return LoginState.REFUSED
        return LoginState.VALID if self.seconds_left(now_s) > 0 else LoginState.EXPIRED


def mask(token: str) -> str:
    """The beginning of a token for people: eight characters, fewer of a short one."""
    return f"{token[: min(8, len(token) // 4)]}…"


def authorize_url(*, is_console: bool, environ: Mapping[str, str] = os.environ) -> str:
    """Where a person signs in. Errors: ConfigError when the environment names an unsafe address."""
    return _address(environ, AUTHORIZE_VARIABLE, CONSOLE_URL if is_console else AUTHORIZE_URL)


def token_url(environ: Mapping[str, str] = os.environ) -> str:
    """Where codes and refresh tokens are exchanged. Errors: ConfigError when the environment names an unsafe one."""
    return _address(environ, TOKEN_VARIABLE, TOKEN_URL)


def _address(environ: Mapping[str, str], variable: str, usual: str) -> str:
    url = environ.get(variable, "").strip() or usual
    with suppress(ValueError):  # one that is no address at all
        parts = urlsplit(url)
        if parts.hostname and (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)):
            return url
    raise ConfigError(f"{variable} must be an https address, or http on this machine alone; correct or unset it")


# Signing in


@dataclass(frozen=True, slots=True)
class Login:
    """One attempt to sign in: the address to open, and the verifier, which this authority wants as the state too."""

    url: str
    verifier: str

    @classmethod
    def begin(cls, authorize: str) -> "Login":
        """Make the address that a person opens."""
        verifier = _base64url(secrets.token_bytes(64))
        query = {
            "code": "true",
            "client_id": CLIENT_ID,
            "response_type": "code",
            "redirect_uri": REDIRECT_URI,
            "scope": SCOPES,
            "code_challenge": challenge_of(verifier),
            "code_challenge_method": "S256",
            "state": verifier,
        }
        return cls(f"{authorize}{'&' if urlsplit(authorize).query else '?'}{urlencode(query)}", verifier)

    def read(self, pasted: str) -> str:
        """The code in what a person copied: `code#state`, or the address of the page that showed it.

        Errors: RefusedError, which says what to copy.
        """
        text = "".join(pasted.split())  # terminals break long lines
        code, sign, state = text.partition("#")
        if "://" in text and (fields := parse_qs(text.partition("#")[0].partition("?")[2])).get("code"):
            code, state = fields["code"][0], fields.get("state", [state])[0]
        elif not sign:
            raise RefusedError("the code is not whole: copy all of it, with the '#' and what follows")
        if not hmac.compare_digest(state.encode(), self.verifier.encode()):
            raise RefusedError("this code belongs to another login; open the address above and copy its code")
        if not code:
            raise RefusedError("there is no code before the '#'; copy all of it")
        return code

    def exchange_body(self, code: str) -> bytes:
        """What the token address gets for a code."""
        return _body(
            grant_type="authorization_code",
            code=code,
            state=self.verifier,
            client_id=CLIENT_ID,
            redirect_uri=REDIRECT_URI,
            code_verifier=self.verifier,
        )


def challenge_of(verifier: str) -> str:
    """The S256 challenge: SHA-256 of the verifier, base64url without padding."""
    return _base64url(hashlib.sha256(verifier.encode()).digest())


def refresh_body(refresh_token: str) -> bytes:
    """What the token address gets for a refresh token."""
    return _body(grant_type="refresh_token", refresh_token=refresh_token, client_id=CLIENT_ID)


def _body(**fields: str) -> bytes:
    return json.dumps(fields).encode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def read_answer(status: int, body: bytes, now_s: float, *, known: Tokens | None = None) -> Tokens:
    """The tokens in an answer of the token address.

    Args:
        known: what was renewed; a refresh token that the answer leaves out goes on.

    Errors: RevokedError when the grant is refused for good; SpacebotError for all else, without a token.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    fields = fields if isinstance(fields, dict) else {}
    if status != 200:
        why = _why(fields)
        # A 403 without words of the authority's own is a wall on the way, and no word about the grant.
        if status == 401 or (status == 403 and "error" in fields) or (status == 400 and _is_refused(fields)):
            raise RevokedError(f"the authority refused it ({status}{why})")
        raise SpacebotError(f"the authority answered with status {status}{why}")
    access, refresh = fields.get("access_token"), fields.get("refresh_token") or (known and known.refresh_token)
    if not _is_token(access) or not _is_token(refresh):
        raise SpacebotError("the authority's answer holds no tokens")
    lasts = fields.get("expires_in")
    is_number = isinstance(lasts, int | float) and not isinstance(lasts, bool) and math.isfinite(lasts) and lasts > 0
    lasts_s = min(float(lasts), 366 * 86_400.0) if is_number and isinstance(lasts, int | float) else LIFETIME_S
    register_secret(str(access))
    register_secret(str(refresh))
    return Tokens(access_token=str(access), refresh_token=str(refresh), expires_at=int((now_s + lasts_s) * 1000))


def _is_token(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value.isascii() and value.isprintable() and " " not in value


def _is_refused(fields: Mapping[str, Any]) -> bool:
    """Whether a 400 speaks of the grant, and not of a request that another try might mend."""
    error = fields.get("error")
    code = error.get("type") if isinstance(error, dict) else error
    return code in ("invalid_grant", "unauthorized_client", "invalid_client", "access_denied")


def _why(fields: Mapping[str, Any]) -> str:
    """The authority's own words, on one line; they are about the request and hold no token of ours."""
    error = fields.get("error")
    words = error.get("message") if isinstance(error, dict) else fields.get("error_description") or error
    line = " ".join(str(words).split())[:_WHY] if isinstance(words, str) else ""
    return f": {line}" if line else ""


# The file


class TokenFile:
    """The login of one instance. Its methods block for a blink, except `locked`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path.with_suffix(".lock")

    def stamp(self) -> tuple[int, int, int] | None:
        """Changes whenever the file does; None while there is none."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def load(self) -> Tokens | None:
        """The tokens; None when nobody has signed in. Errors: StorageError when the file cannot be used."""
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o077:  # copied by hand, say
                    os.fchmod(file.fileno(), 0o600)
                raw = file.read(MAX_FILE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self.path} cannot be read ({error.strerror}); check its permissions") from error
        try:
            fields = json.loads(raw) if len(raw) <= MAX_FILE else None
        except (ValueError, RecursionError):
            fields = None
        return self._tokens(fields)

    def _tokens(self, fields: object) -> Tokens:
        if isinstance(fields, dict):
            access, refresh, refused = (fields.get(name) for name in ("access_token", "refresh_token", "refused_at"))
            ends: Any = fields.get("expires_at")
            if (
                _is_token(access)
                and _is_token(refresh)
                and _is_moment(ends)
                and (refused is None or _is_moment(refused))
            ):
                register_secret(str(access))
                register_secret(str(refresh))
                return Tokens(
                    access_token=str(access), refresh_token=str(refresh), expires_at=int(ends), refused_at=refused
                )
        raise StorageError(f"{self.path} is damaged; sign in again: {LOGIN_COMMAND}")

    def save(self, tokens: Tokens) -> None:
        """Replace the file in one step, readable by its owner alone. Errors: StorageError; the old one stays."""
        fields = {
            "access_token": tokens.access_token,
            "refresh_token": tokens.refresh_token,
            "expires_at": tokens.expires_at,
        }
        if tokens.refused_at is not None:
            fields["refused_at"] = tokens.refused_at
        draft = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(fields, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
            self._sync_folder()
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written ({error.strerror}); check its permissions") from error
        finally:
            with suppress(OSError):
                draft.unlink()

    def note_refusal(self, tokens: Tokens, now_s: float) -> Tokens:
        """Keep in the file that the authority refused these tokens. Errors: StorageError."""
        refused = replace(tokens, refused_at=int(now_s * 1000))
        self.save(refused)
        return refused

    def delete(self) -> bool:
        """Forget the login; False when there was none. Errors: StorageError."""
        try:
            self.path.unlink()
            self._sync_folder()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(f"{self.path} cannot be removed ({error.strerror}); check its permissions") from error
        return True

    @contextmanager
    def try_lock(self) -> Iterator[None]:
        """Hold the file against all other programs. Errors: BusyError when one of them holds it; StorageError."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"{self._lock} cannot be opened ({error.strerror}); check its permissions") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError("another program is renewing the login; try again in a moment") from error
            yield
        finally:
            os.close(descriptor)

    def _sync_folder(self) -> None:
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_moment(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53
