"""`auth`: sign in at Anthropic instead of using a key.

login shows an address, tries to open it, and takes what the page there gives to copy; it works over any terminal. A
running program sees a login, and its end, by itself.

Flow:    run_auth -> llm/oauth.py (file, PKCE), llm/credentials.py (exchange, renewal) -> control command
Floor:   cli; standard library only until something goes over the network
Source:  control spec 2.11
"""

import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from spacebot.base.errors import RefusedError, SpacebotError, StorageError
from spacebot.base.paths import InstancePaths
from spacebot.cli.client import NoDaemonError, ask

if TYPE_CHECKING:
    from spacebot.llm.credentials import Credentials
    from spacebot.llm.oauth import Tokens

TRIES = 3
MAX_PASTED = 8192  # characters
# All that a program with a window needs; keys and tokens of this program's environment are not for it.
_FOR_BROWSERS = frozenset(
    {"BROWSER", "DBUS_SESSION_BUS_ADDRESS", "DESKTOP_SESSION", "DISPLAY", "HOME", "LANG", "LOGNAME", "PATH", "SHELL",
     "TMPDIR", "USER", "WAYLAND_DISPLAY", "XAUTHORITY"}
)  # fmt: skip
_OPENERS = ("xdg-open", "open", "wslview")

T = TypeVar("T")


def add_auth_commands(auth: ArgumentParser, add: Callable[..., ArgumentParser]) -> None:
    """Describe the words of the commands.

    Args:
        auth: the parser of `auth` itself.
        add: makes the parser of one command: name, description, the group it goes into.
    """
    group = auth.add_subparsers(metavar="login|status|refresh|logout", required=True)
    command = add("login", "Sign in at Anthropic.", group)
    command.set_defaults(auth_command=_login)
    command.add_argument("--console", action="store_true", help="with an account that pays by use")
    command.add_argument("--no-browser", action="store_true", help="only print the address")
    command = add("status", "Show how the login stands; 1 when there is none that counts.", group)
    command.set_defaults(auth_command=_status)
    command.add_argument("--json", action="store_true", help="for programs")
    add("refresh", "Renew the login now.", group).set_defaults(auth_command=_refresh)
    add("logout", "Forget the login.", group).set_defaults(auth_command=_logout)


def run_auth(paths: InstancePaths, options: Namespace) -> int:
    """Run one of the commands; returns the exit code. Errors: SpacebotError, never with a token."""
    os.umask(0o077)
    run: Callable[[InstancePaths, Namespace], int] = options.auth_command
    return run(paths, options)


def _login(paths: InstancePaths, options: Namespace) -> int:
    sign_in(paths, is_console=options.console, with_browser=not options.no_browser)
    return 0


def sign_in(paths: InstancePaths, *, is_console: bool, with_browser: bool = True) -> None:
    """Have a person sign in, and keep the tokens.

    Errors: RefusedError when the code is wrong three times, or nobody answers; SpacebotError.
    """
    from spacebot.llm.oauth import LOGIN_COMMAND, NOTICE, Login, authorize_url

    login = Login.begin(authorize_url(is_console=is_console))
    print(NOTICE, file=sys.stderr)
    print("\nOpen this address, sign in, and copy the code that you are shown:\n", file=sys.stderr)
    print(login.url, flush=True)
    if with_browser and open_browser(login.url, os.environ):
        print("\n(a browser was asked to open it)", file=sys.stderr)
    for left in reversed(range(TRIES)):
        print("\nCode: ", end="", file=sys.stderr, flush=True)
        pasted = sys.stdin.readline(MAX_PASTED)
        if not pasted.strip():
            raise RefusedError(f"there was no code, and nothing has changed; begin again: {LOGIN_COMMAND}")
        try:
            login.read(pasted)
            break
        except RefusedError as error:
            if not left or not sys.stdin.isatty():
                raise
            print(f"{error}", file=sys.stderr)

    async def exchange(credentials: "Credentials") -> "Tokens":
        return await credentials.sign_in(login, pasted)

    tokens = _run(paths, exchange)
    print(f"\nsigned in; the login is kept in {paths.login} ({_time_words(tokens)})", file=sys.stderr)
    _tell(paths)


def open_browser(url: str, environ: Mapping[str, str]) -> bool:
    """Ask the desktop to show an address; False where there is none. The program that does gets no secret."""
    import shutil
    import subprocess

    has_screen = sys.platform == "darwin" or any(environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    opener = next((found for name in _OPENERS if (found := shutil.which(name, path=environ.get("PATH")))), None)
    if not has_screen or opener is None:
        return False
    passed = {name: text for name, text in environ.items() if name in _FOR_BROWSERS or name.startswith(("LC_", "XDG_"))}
    try:
        subprocess.Popen(
            [opener, url], env=passed, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, close_fds=True,
        )  # fmt: skip
    except OSError:
        return False
    return True


def _status(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.llm.oauth import LOGIN_COMMAND, NOTICE, LoginState, TokenFile, mask

    problem = None
    try:
        tokens = TokenFile(paths.login).load()
        state = LoginState.NONE if tokens is None else tokens.state(time.time())
    except StorageError as error:
        tokens, state, problem = None, LoginState.UNREADABLE, str(error)
    if state is LoginState.REFUSED:
        problem = f"Anthropic does not accept the login any more; sign in again: {LOGIN_COMMAND}"
    if options.json:
        fields: dict[str, str | int | None] = {"state": state, "file": str(paths.login), "problem": problem}
        if tokens is not None:
            fields |= {
                "expires_at": tokens.expires_at // 1000,
                "access_token": mask(tokens.access_token),
                "refresh_token": mask(tokens.refresh_token),
            }
        print(json.dumps(fields))
    elif tokens is None:
        print(problem or f"nobody is signed in; {LOGIN_COMMAND}", file=sys.stderr)
    else:
        print(f"login:         {state}{'' if state is LoginState.REFUSED else f', {_time_words(tokens)}'}")
        print(f"access token:  {mask(tokens.access_token)}")
        print(f"refresh token: {mask(tokens.refresh_token)}")
        print(f"file:          {paths.login}")
        print(problem or NOTICE, file=sys.stderr)
    return 0 if state in (LoginState.VALID, LoginState.EXPIRED) else 1


def _time_words(tokens: "Tokens") -> str:
    minutes = int(tokens.seconds_left(time.time()) // 60)
    if minutes >= 0:
        return f"renewed by itself in {max(0, minutes - 5)} minutes"
    return f"its time ended {-minutes} minutes ago; the next call renews it"


def _refresh(paths: InstancePaths, options: Namespace) -> int:
    async def renew(credentials: "Credentials") -> "Tokens":
        return await credentials.renew()

    print(f"the login is renewed ({_time_words(_run(paths, renew))})", file=sys.stderr)
    return 0


def _logout(paths: InstancePaths, options: Namespace) -> int:
    async def sign_out(credentials: "Credentials") -> bool:
        return await credentials.sign_out()

    if not paths.login.exists():
        print("nobody is signed in", file=sys.stderr)
        return 0
    _run(paths, sign_out)
    print("the login is forgotten; a key counts again, if there is one", file=sys.stderr)
    _tell(paths)
    return 0


def _run(paths: InstancePaths, work: "Callable[[Credentials], Awaitable[T]]") -> T:
    """Do something with the login, outside of the running program."""
    import trio

    from spacebot.llm.credentials import Credentials
    from spacebot.llm.oauth import TokenFile
    from spacebot.llm.transport import open_transport

    async def run() -> T:
        async with open_transport() as transport:
            return await work(Credentials(TokenFile(paths.login), transport))

    return trio.run(run)


def _tell(paths: InstancePaths) -> None:
    """Have a running program look at once; by itself it would within seconds."""
    with suppress(NoDaemonError):
        try:
            ask(paths, "config_reload")
        except SpacebotError as error:
            print(f"warning: the running program did not take it over: {error}", file=sys.stderr)
