"""What a call shows to its provider: the key of the configuration, or the token of `spacebot auth login`.

The login wins over a key. Its token is renewed five minutes before it ends, by one task of one program at a time; the
file is looked at before each call, so that signing in and out count at once in a program that runs.

Flow:   Credentials.complete -> _choose -> _renewed -> oauth_identity.Dressed -> Dialect.complete
Floor:  llm
Source: control spec 2.11; pitfalls 19 and 65
"""

import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import httpx2
import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import (
    BusyError,
    ModelRejectedError,
    ModelUnavailableError,
    RefusedError,
    SpacebotError,
    StorageError,
)
from spacebot.base.telemetry import kv
from spacebot.llm.dialect import AuthKind, Dialect, Target
from spacebot.llm.messages import ModelReply, ModelRequest, OnDelta
from spacebot.llm.oauth import (
    LOGIN_COMMAND,
    MARGIN_S,
    Login,
    LoginState,
    RevokedError,
    TokenFile,
    Tokens,
    read_answer,
    refresh_body,
    token_url,
)
from spacebot.llm.oauth_identity import Dressed
from spacebot.llm.transport import Transport

log = logging.getLogger(__name__)

ANSWER_S = 15.0  # for the authority; a call waits behind it
LOCK_S = 20.0  # longer than another program needs for the same
LOCK_STEP_S = 0.1
PAUSE_S = 30.0  # after the authority could not be reached
MAX_ANSWER = 65_536  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginView:
    """How the login stands, for its owner; no token.

    Args:
        expires_at: Unix seconds; None without a login.
        problem: what went wrong with it last, and what to do; None when all is well.
    """

    state: LoginState
    expires_at: float | None = None
    problem: str | None = None


class Credentials:
    """Chooses what each call shows, and asks the dialect with it.

    Args:
        file: where the login is kept; None: nobody can be signed in.
    """

    def __init__(self, file: TokenFile | None, transport: Transport, *, clock: Clock | None = None) -> None:
        self._file = file
        self._transport = transport
        self._clock = clock or Clock()
        self._lock = trio.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._tokens: Tokens | None = None
        self._problem: str | None = None
        self._told: str | None = None
        self._pause_until = -1.0

    async def complete(self, dialect: Dialect, request: ModelRequest, target: Target, on_delta: OnDelta) -> ModelReply:
        """Ask once with the right credential; a token that was revoked is renewed, and the call sent once more.

        Errors: as the dialect's; ModelRejectedError and ModelUnavailableError when there is neither token nor key.
        """
        if target.auth is not AuthKind.OAUTH:
            return await dialect.complete(request, target, on_delta)
        chosen = await self._choose(target)
        if chosen.auth is AuthKind.OAUTH:
            try:
                return await _ask_dressed(dialect, request, chosen, on_delta)
            except ModelRejectedError as error:
                if error.status_code != 401:
                    raise
            chosen = await self._choose(target, refused=chosen.api_key)
            if chosen.auth is AuthKind.OAUTH:
                return await _ask_dressed(dialect, request, chosen, on_delta)
        return await dialect.complete(request, chosen, on_delta)

    async def _choose(self, target: Target, *, refused: str | None = None) -> Target:
        """The target with a good token, else with its key.

        Args:
            refused: a token that the provider does not accept though its time is not over.
        """
        problem = f"nobody is signed in; {LOGIN_COMMAND}"
        try:
            if (tokens := await self._good(refused)) is not None:
                return replace(target, api_key=tokens.access_token)
        except SpacebotError as error:
            problem = self._problem = str(error)
            if self._told != problem:  # once, not with every call
                self._told = problem
                log.warning("login not usable", extra=kv(reason=problem, has_key=bool(target.api_key)))
            is_over = not isinstance(error, _UnreachableError)
        else:
            is_over = True
        if target.api_key:
            return replace(target, auth=target.key_auth)
        text = f"{target.model}: {problem}"
        if is_over:
            raise ModelRejectedError(text, model=target.model)
        raise ModelUnavailableError(text, model=target.model)

    async def _good(self, refused: str | None) -> Tokens | None:
        """Tokens that a call can be made with; None when nobody is signed in. Errors: SpacebotError."""
        tokens = await self._current()
        if tokens is None:
            return None
        if tokens.refused_at is not None:
            raise _revoked()
        left_s = tokens.seconds_left(self._now_s)
        if left_s > MARGIN_S and tokens.access_token != refused:
            return tokens
        try:
            return await self._renewed(tokens)
        except _UnreachableError as error:
            if left_s > 0 and tokens.access_token != refused:
                self._problem = str(error)
                return tokens  # it still counts for a while
            raise

    async def login(self) -> LoginView:
        """How the login stands."""
        try:
            tokens = await self._current()
        except StorageError as error:
            return LoginView(state=LoginState.UNREADABLE, problem=str(error))
        if tokens is None:
            return LoginView(state=LoginState.NONE)
        state = tokens.state(self._now_s)
        problem = str(_revoked()) if state is LoginState.REFUSED else self._problem
        return LoginView(state=state, expires_at=tokens.expires_at / 1000, problem=problem)

    async def sign_in(self, login: Login, pasted: str) -> Tokens:
        """Exchange what a person brought back, and keep the tokens in place of older ones.

        Errors: RefusedError for a code that is not right; SpacebotError when the authority cannot be reached.
        """
        file = self._needs_file()
        body = login.exchange_body(login.read(pasted))
        async with self._locked(file):
            with trio.CancelScope(shield=True):
                try:
                    tokens = await self._exchange(body)
                except RevokedError as error:
                    raise RefusedError(f"the code was not accepted: {error}; begin again") from error
                await trio.to_thread.run_sync(file.save, tokens)
        return tokens

    async def renew(self) -> Tokens:
        """Renew the token now. Errors: RefusedError when nobody is signed in; SpacebotError."""
        self._needs_file()
        tokens = await self._current()
        if tokens is None:
            raise RefusedError(f"nobody is signed in; {LOGIN_COMMAND}")
        self._pause_until = -1.0
        return await self._renewed(tokens)

    async def sign_out(self) -> bool:
        """Forget the login; False when there was none. Errors: StorageError."""
        file = self._needs_file()
        async with self._locked(file):
            return await trio.to_thread.run_sync(file.delete)

    @property
    def _now_s(self) -> float:
        return self._clock.now().timestamp()

    def _needs_file(self) -> TokenFile:
        if self._file is None:
            raise RefusedError("there is no place for a login here")
        return self._file

    async def _current(self) -> Tokens | None:
        """What the file holds now; it is read again when it has changed. Errors: StorageError."""
        if self._file is None:
            return None
        stamp = self._file.stamp()
        if stamp is None or stamp != self._stamp:
            tokens = None if stamp is None else await trio.to_thread.run_sync(self._file.load)
            self._take(tokens, stamp)
        return self._tokens

    def _take(self, tokens: Tokens | None, stamp: tuple[int, int, int] | None) -> None:
        if tokens != self._tokens:
            self._problem = self._told = None
            self._pause_until = -1.0
        self._tokens, self._stamp = tokens, stamp

    async def _renewed(self, tokens: Tokens) -> Tokens:
        """New tokens for old ones. What the authority sent is kept even when the call behind it is cancelled.

        Errors: SpacebotError that says what to do; `_UnreachableError` when another try may help.
        """
        async with self._lock:
            if (known := self._tokens) is not None and _stand_of(known) != _stand_of(tokens):
                return _usable(known)  # somebody did it while we waited, or was refused
            if trio.current_time() < self._pause_until:
                raise _UnreachableError(self._problem or "the login was not renewed; try again in a moment")
            file = self._needs_file()
            async with self._locked(file):
                with trio.CancelScope(shield=True):
                    renewed = await self._renew_alone(file, tokens)
            return renewed

    async def _renew_alone(self, file: TokenFile, tokens: Tokens) -> Tokens:
        current = await trio.to_thread.run_sync(file.load)
        if current is None:
            self._take(None, None)
            raise RefusedError(f"the login was removed; sign in again: {LOGIN_COMMAND}")
        if current.access_token != tokens.access_token:  # another program was quicker
            self._take(current, file.stamp())
            return _usable(current)
        revoked: RevokedError | None = None
        try:
            renewed = await self._exchange(refresh_body(current.refresh_token), known=current)
        except RevokedError as error:
            revoked = error
        except SpacebotError as error:
            self._pause_until = trio.current_time() + PAUSE_S
            raise _UnreachableError(f"the login was not renewed: {error}; it is tried again by itself") from error
        if revoked is not None:
            refused = await trio.to_thread.run_sync(file.note_refusal, current, self._now_s)
            self._take(refused, file.stamp())
            raise _revoked() from revoked
        try:
            await trio.to_thread.run_sync(file.save, renewed)
        except StorageError as error:  # the old refresh token is used up: what we have serves until the program ends
            log.error("login renewed, but not kept", extra=kv(reason=str(error)))
        self._take(renewed, file.stamp())
        log.info("login renewed", extra=kv(minutes=int(renewed.seconds_left(self._now_s) / 60)))
        return renewed

    @asynccontextmanager
    async def _locked(self, file: TokenFile) -> AsyncIterator[None]:
        """Hold the file against other programs. Errors: BusyError when one of them takes too long."""
        deadline = trio.current_time() + LOCK_S
        with ExitStack() as held:
            while True:
                try:
                    held.enter_context(file.try_lock())
                    break
                except BusyError:
                    if trio.current_time() > deadline:
                        raise
                    await trio.sleep(LOCK_STEP_S)
            yield

    async def _exchange(self, body: bytes, *, known: Tokens | None = None) -> Tokens:
        """Ask the authority. Errors: RevokedError, SpacebotError."""
        url = token_url()
        headers = {"content-type": "application/json", "accept": "application/json"}
        try:
            with trio.fail_after(ANSWER_S):
                async with self._transport.shard() as shard:
                    response = await shard.http.post(url, content=body, headers=headers)
        except (httpx2.HTTPError, httpx2.InvalidURL, trio.TooSlowError) as error:
            host = httpx2.URL(url).host
            raise SpacebotError(f"{host} cannot be reached ({type(error).__name__}); check the network") from error
        return read_answer(response.status_code, response.content[:MAX_ANSWER], self._now_s, known=known)


class _UnreachableError(SpacebotError):
    """The authority gave no answer that counts; another try may help."""


def _stand_of(tokens: Tokens) -> tuple[str, int | None]:
    return tokens.access_token, tokens.refused_at


def _usable(tokens: Tokens) -> Tokens:
    if tokens.refused_at is not None:
        raise _revoked()
    return tokens


def _revoked() -> RefusedError:
    return RefusedError(f"Anthropic does not accept the login any more; sign in again: {LOGIN_COMMAND}")


async def _ask_dressed(dialect: Dialect, request: ModelRequest, target: Target, on_delta: OnDelta) -> ModelReply:
    dressed = Dressed.of(request)
    reply = await dialect.complete(dressed.request, target, dressed.watch(on_delta))
    return replace(dressed.undress(reply), is_included=True)
