"""The rim around all routes: who may call from where, what every answer carries, and what a failure looks like.

A loopback bind needs no token, so two things must be impossible: a foreign page calling us through its
visitor's browser (Origin check), and a foreign name that resolves to this machine (Host check, DNS rebinding).
With a token the Host does not matter: a page that rebinds a name still lacks the token.
A page that may show the chat in a frame is as foreign as any: the frame is our own page, its scripts are not.

Flow:    host -> origin -> token -> route; then headers on the answer, JSON for every error under /api/
Floor:   api
Source:  control spec 4.1, 4.11, 8.3; Fetch standard (Origin, CORS); Fetch Metadata (Sec-Fetch-Site)
"""

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spacebot.base.clock import monotonic_s
from spacebot.config.model import ApiConfig

log = logging.getLogger(__name__)

TICKET_S = 300  # seconds that a ticket opens event streams
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


class Tickets:
    """Short-lived words for readers that cannot send a header (EventSource); nothing is stored."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def revoke(self) -> None:
        """Make all that were issued worthless."""
        self._key = secrets.token_bytes(32)

    def issue(self) -> str:
        """A ticket that is valid from now on for `TICKET_S` seconds."""
        until = str(int(monotonic_s()) + TICKET_S)
        return f"{until}.{self._sign(until)}"

    def is_valid(self, ticket: str) -> bool:
        """Whether this process issued it and its time has not run out."""
        until, _, signature = ticket.partition(".")
        right = hmac.compare_digest(self._sign(until).encode(), signature.encode(errors="replace"))
        return right and int(until) > monotonic_s()

    def _sign(self, until: str) -> str:
        return hmac.new(self._key, until.encode(errors="replace"), hashlib.sha256).hexdigest()


class Rim:
    """ASGI middleware; see the module."""

    def __init__(
        self, app: ASGIApp, config: ApiConfig, tickets: Tickets, live: Callable[[], ApiConfig] | None = None
    ) -> None:
        """Guard an app.

        Args:
            config: as the port was opened.
            live: as the configuration is now; token and origins count from the next request on.
        """
        self._app = app
        self._tickets = tickets
        self._is_loopback = config.is_loopback
        self._live = live or (lambda: config)
        self._token: bytes | None = None
        self._read(config)

    def _read(self, config: ApiConfig) -> None:
        self._config = config
        before = self._token
        if config.auth_token is not None:
            self._token = config.auth_token.get_secret_value().encode()
        elif self._is_loopback or config.allow_without_token:  # else others reach the port until a restart
            self._token = None
        if self._token != before:
            self._tickets.revoke()  # whoever lost the token must not read on with what it gave
        origins = frozenset(_origins(config))
        self._hosts = frozenset(urlsplit(origin).netloc for origin in origins)
        self._page_headers = _page_headers(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return
        if (config := self._live()) is not self._config:
            self._read(config)
        has_started = False
        headers = Headers(scope=scope)

        async def send_guarded(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                self._complete(MutableHeaders(scope=message))
            await send(message)

        try:
            refusal = self._refusal(HTTPConnection(scope), headers)
            await (self._app if refusal is None else refusal)(scope, receive, send_guarded)
        except Exception as error:  # boundary: request
            log.error("request failed", exc_info=error, extra={"kv": {"path": scope["path"]}})
            if not has_started:
                answer = JSONResponse({"error": "internal error; the log has the details"}, 500)
                await answer(scope, receive, send_guarded)

    def _refusal(self, request: HTTPConnection, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if self._token is None and not self._is_known_host(host):
            return _error(403, f"host {host[:100]!r} is not allowed; use localhost or one of api.allowed_origins")
        path = request.scope["path"]
        if not (path == "/api" or path.startswith("/api/")):
            return None
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site")
        if origin is None and request.scope["method"] not in _SAFE:  # an old browser may say it in this way only
            origin = headers.get("referer")
        if not _is_own_origin(origin, host, site):
            named = repr(origin[:100]) if origin else "of another site"
            return _error(403, f"origin {named} is not allowed; the API answers its own pages only")
        if self._token is None or path == "/api/health" or self._has_token(request, headers, self._token):
            return None
        return _error(401, "unauthorized", {"www-authenticate": "Bearer"})

    def _is_known_host(self, host: str) -> bool:
        if not _ORIGIN.fullmatch(f"http://{host}"):
            return False
        try:
            name = urlsplit(f"//{host}").hostname or ""
            # The port counts too: a framing page that rebinds its own name to us has to name our port with it.
            if host.lower() in self._hosts or name == "localhost" or name.endswith(".localhost"):
                return True
            return ip_address(name).is_loopback
        except ValueError:  # neither a loopback name nor an address
            return False

    def _has_token(self, request: HTTPConnection, headers: Headers, token: bytes) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(errors="replace"), token):
            return True
        ticket = request.query_params.get("ticket")
        return ticket is not None and request.scope["method"] == "GET" and self._tickets.is_valid(ticket)

    def _complete(self, headers: MutableHeaders) -> None:
        for name, value in self._page_headers.items():
            headers.setdefault(name, value)
        headers.setdefault("cache-control", "no-store")


def _is_own_origin(origin: str | None, host: str, site: str | None) -> bool:
    if origin is None:
        return site != "cross-site"  # no browser, or one that says it is our own page
    return origin.lower().partition("://")[2].partition("/")[0] == host.lower() != ""


def _error(status_code: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    log.warning("request refused", extra={"kv": {"status": status_code, "reason": text}})
    return JSONResponse({"error": text}, status_code, headers)


def _origins(config: ApiConfig) -> list[str]:
    origins = []
    for text in config.allowed_origins:
        origin = text.strip().rstrip("/").lower()
        if _ORIGIN.fullmatch(origin):
            origins.append(origin)
        else:
            log.warning("allowed origin ignored: not of the form https://host", extra={"kv": {"origin": text}})
    return origins


def _page_headers(origins: frozenset[str]) -> dict[str, str]:
    ancestors = ("'self'", *sorted(origins))
    headers = {
        "content-security-policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
            f"manifest-src 'self'; base-uri 'none'; form-action 'none'; "
            f"frame-ancestors {' '.join(ancestors)}"
        ),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
    }
    if not origins:
        headers["x-frame-options"] = "SAMEORIGIN"  # for browsers without frame-ancestors
    return headers
