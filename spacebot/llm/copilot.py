"""GitHub Copilot's models: the owner's key buys a token that lives for half an hour, and the host that it counts at.

One exchange serves all who wait for it. The token is kept in a file beside the configuration, readable by the owner
alone and under a hash of the key, so that a restart does not ask again and a new key never shows an old token.

Flow:   OpenAiChatDialect.complete -> CopilotTokens.exchange -> a Target with token and host
Floor:  llm
Source: control spec 2.1
"""

import hashlib
import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import ModelRejectedError, ModelUnavailableError
from spacebot.base.redaction import register_secret
from spacebot.config.provider_table import provider_table
from spacebot.llm.dialect import Target
from spacebot.llm.messages import Image, ModelRequest
from spacebot.llm.transport import Transport, key_advice, status_error

TOKEN_URL = "https://api.github.com/copilot_internal/v2/token"
FILE_NAME = "github_copilot_token.json"
DOMAIN = ".githubcopilot.com"
MARGIN_S = 300.0  # a token that ends sooner is not begun with
ANSWER_S = 15.0  # for the exchange; a call waits behind it
MAX_ANSWER = 65_536  # bytes
PROVIDER = "github-copilot"

_HEADERS = {"accept": "application/json", "user-agent": "GitHubCopilotChat/0.26.7"}


@dataclass(frozen=True, slots=True)
class _Token:
    key_hash: str
    token: str
    expires_at: float  # Unix seconds
    base_url: str

    def __repr__(self) -> str:
        return f"_Token(expires_at={self.expires_at})"


class CopilotTokens:
    """Exchanges keys for tokens, and keeps the newest.

    Args:
        file: where it is kept between runs; None: in memory only.
    """

    def __init__(self, transport: Transport, file: Path | None = None, *, clock: Clock | None = None) -> None:
        self._transport = transport
        self._file = file
        self._clock = clock or Clock()
        self._lock = trio.Lock()
        self._known: dict[str, _Token] = {}  # by hash of the key
        self._has_read = False

    async def exchange(self, target: Target, *, refused: str | None = None) -> Target:
        """The target with a token in place of the key, at the token's own host unless the owner names another.

        Args:
            refused: a token that the host does not accept though its time is not over.

        Errors: ModelRejectedError when GitHub gives none; ModelBusyError, ModelUnavailableError when it may later.
        """
        usual = provider_table()[PROVIDER].base_url
        try:
            own = None if target.base_url == usual else _checked(target.base_url)
        except ValueError as error:
            text = f"{target.model}: base_url of {target.provider} leads elsewhere; {error}"
            raise ModelRejectedError(text, model=target.model) from error
        key_hash = hashlib.sha256(target.api_key.encode()).hexdigest()
        async with self._lock:
            if not self._has_read:
                self._has_read = True
                await trio.to_thread.run_sync(self._read)
            token = self._known.get(key_hash)
            now_s = self._clock.now().timestamp()
            if token is None or token.expires_at - now_s < MARGIN_S or token.token == refused:
                token = await self._ask(target, key_hash)
                self._known[key_hash] = token
                await trio.to_thread.run_sync(self._write, token)
        return replace(target, api_key=token.token, base_url=own or token.base_url)

    async def _ask(self, target: Target, key_hash: str) -> _Token:
        headers = {**_HEADERS, **target.entry.headers, "authorization": f"token {target.api_key}"}
        model = target.model
        try:
            with trio.fail_after(ANSWER_S):
                async with self._transport.shard() as shard:
                    response = await shard.http.get(TOKEN_URL, headers=headers)
        except UnicodeError as error:  # headers hold ASCII only
            text = f"{model}: the key holds characters that no key has; check {key_advice(target)}"
            raise ModelRejectedError(text, model=model) from error
        except (httpx2.HTTPError, trio.TooSlowError) as error:
            text = f"{model}: GitHub cannot be asked for a token ({type(error).__name__}); check the network"
            raise ModelUnavailableError(text, model=model) from error
        status, body = response.status_code, response.content[:MAX_ANSWER]
        if status == 404:  # what GitHub says to accounts without Copilot, and to tokens of the wrong kind
            text = f"{model}: GitHub gives this key no Copilot token; check {key_advice(target)} and the subscription"
            raise ModelRejectedError(text, model=model, status_code=status)
        if status != 200:
            raise status_error(status, body, target, response.headers)
        try:
            return _read_answer(json.loads(body), key_hash)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            text = f"{model}: GitHub's answer holds no usable token ({error or type(error).__name__})"
            raise ModelUnavailableError(text, model=model) from error

    def _read(self) -> None:
        """Take what an earlier run kept; a file that cannot be used is as good as none."""
        if self._file is None:
            return
        with suppress(OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            fields = json.loads(self._file.read_bytes()[:MAX_ANSWER])
            token = _Token(
                str(fields["key_hash"]), str(fields["token"]), float(fields["expires_at"]), _checked(fields["base_url"])
            )
            register_secret(token.token)
            self._known[token.key_hash] = token

    def _write(self, token: _Token) -> None:
        """Keep a token in one step, readable by the owner alone. Without a place for it the next run asks again."""
        if self._file is None:
            return
        fields = {
            "key_hash": token.key_hash,
            "token": token.token,
            "expires_at": token.expires_at,
            "base_url": token.base_url,
        }
        draft = self._file.with_name(f".{self._file.name}.{secrets.token_hex(4)}.tmp")
        with suppress(OSError):
            try:
                descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with open(descriptor, "w", encoding="utf-8") as file:
                    json.dump(fields, file)
                draft.replace(self._file)
            finally:
                draft.unlink(missing_ok=True)


def copilot_headers(request: ModelRequest) -> dict[str, str]:
    """What a single request has to say of itself: pictures are refused unannounced."""
    has_pictures = any(isinstance(part, Image) for message in request.messages for part in message.parts)
    return {"copilot-vision-request": "true"} if has_pictures else {}


def _read_answer(fields: dict[str, Any], key_hash: str) -> _Token:
    """Errors: ValueError, KeyError, TypeError, AttributeError when the answer has another shape."""
    token = fields["token"]
    if not isinstance(token, str) or not token.isascii() or not token:
        raise ValueError("the token is no text")
    register_secret(token)
    endpoints = fields.get("endpoints") or {}
    base_url = endpoints.get("api") or _host_in(token) or provider_table()[PROVIDER].base_url
    return _Token(key_hash, token, float(fields["expires_at"]), _checked(base_url))


def _host_in(token: str) -> str | None:
    """The host that some tokens name in themselves: `…;proxy-ep=proxy.business.githubcopilot.com;…`."""
    named = next((part[9:] for part in token.split(";") if part.startswith("proxy-ep=")), "")
    return f"https://api.{named.removeprefix('proxy.')}" if named else None


def _checked(base_url: str) -> str:
    """An address that a token may be shown to. Errors: ValueError."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    if parts.scheme != "https" or not host.endswith(DOMAIN) or parts.username or parts.query or parts.fragment:
        raise ValueError(f"its host is not one of https://*{DOMAIN}")
    return base_url.rstrip("/")
