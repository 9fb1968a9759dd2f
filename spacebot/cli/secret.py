"""`secret`: store keys, list their names, remove them, change the key they are encrypted with.

The commands work on the store itself, whether the program runs or not; a running one is told to read it again. A
value is read from standard input or from a hidden prompt: what stands in a command line can be seen by every user of
the machine and stays in the shell's history.

Flow:    run_secret -> SecretStore -> control command `secrets_reload`
Floor:   cli; standard library only, until there is something to do
Source:  tools spec 14.3; the other side is `api/secret_control.py`
"""

import getpass
import json
import os
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from spacebot.base.errors import RefusedError
from spacebot.base.paths import InstancePaths
from spacebot.cli.client import NoDaemonError, ask
from spacebot.cli.liveness import lock_holder

if TYPE_CHECKING:
    from spacebot.storage.live_secrets import LiveSecrets
    from spacebot.storage.secrets import SecretStore

PASSPHRASE_VARIABLE = "SPACEBOT_SECRET_PASSPHRASE"
HANDED_OVER = "SPACEBOT_SECRET_FD"  # the pipe by which a program that starts itself again keeps the passphrase
TRIES = 3
RELOAD_S = 60.0  # deriving a key, reading the configuration, connecting anew
MAX_INPUT = 1_000_000  # bytes of standard input; the store says what is too long

T = TypeVar("T")


def add_secret_commands(secret: ArgumentParser, add: Callable[..., ArgumentParser]) -> None:
    """Describe the words of the secret commands.

    Args:
        secret: the parser of `secret` itself.
        add: makes the parser of one command: name, description, the group it goes into.
    """
    group = secret.add_subparsers(metavar="set|list|rm|rotate|unlock|lock", required=True)
    command = add("set", "Store a value; it is asked for, or read from standard input.", group)
    command.set_defaults(secret_command=_set)
    command.add_argument("name", metavar="NAME", help="what the configuration calls it: secret:NAME")
    command.add_argument("surplus", nargs="*", help=SUPPRESS)
    who = command.add_mutually_exclusive_group()
    who.add_argument("--system", action="store_true", help="for the configuration alone (the default)")
    who.add_argument("--tool", action="store_true", help="also for workers' commands, as the variable NAME")
    command = add("list", "Show all names, never a value.", group)
    command.set_defaults(secret_command=_list)
    command.add_argument("--json", action="store_true", help="for programs")
    command = add("rm", "Remove a secret.", group)
    command.set_defaults(secret_command=_remove)
    command.add_argument("name", metavar="NAME")
    command = add("rotate", "Encrypt everything with a new key.", group)
    command.set_defaults(secret_command=_rotate)
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--passphrase", action="store_true", help="ask for a new passphrase, and keep no key file")
    kind.add_argument("--key-file", action="store_true", help="keep the key in a file, and ask for no passphrase")
    command = add("unlock", "Give the running program the passphrase.", group)
    command.set_defaults(secret_command=_unlock)
    command.add_argument(
        "--remember", action="store_true", help="keep it in the kernel's keyring, so that no start asks for it"
    )
    command = add("lock", "Take the passphrase out of the kernel's keyring.", group)
    command.set_defaults(secret_command=_lock)


def run_secret(paths: InstancePaths, options: Namespace) -> int:
    """Run one of the commands. Errors: SpacebotError, never with a value."""
    os.umask(0o077)
    run: Callable[[InstancePaths, Namespace], int] = options.secret_command
    return run(paths, options)


def open_secrets(paths: InstancePaths) -> "LiveSecrets":
    """The secrets of this instance for a program that begins; the passphrase leaves the environment.

    Whatever the program starts must not find it there.
    """
    from spacebot.storage.live_secrets import LiveSecrets

    passphrase = os.environ.pop(PASSPHRASE_VARIABLE, None) or None
    if (pipe := os.environ.pop(HANDED_OVER, "")).isdecimal():
        with suppress(OSError), open(int(pipe), encoding="utf-8") as reading:
            passphrase = reading.read() or passphrase
    return LiveSecrets.open(paths.root, passphrase or _remembered(paths))


def hand_over(passphrase: str | None) -> None:
    """Keep the passphrase for the program that takes this one's place; an environment could be read from outside."""
    if passphrase is not None:
        reading, writing = os.pipe()
        os.write(writing, passphrase.encode())
        os.close(writing)
        os.set_inheritable(reading, True)
        os.environ[HANDED_OVER] = str(reading)


def ask_for_start(paths: InstancePaths) -> None:
    """Ask for the passphrase if the program will need it and somebody is there; it goes on in the environment.

    Without an answer the program starts locked, and says so.
    """
    if not (paths.root / "secrets.db").exists() or os.environ.get(PASSPHRASE_VARIABLE) or not _has_terminal():
        return
    from spacebot.storage.secrets import KeyKind

    store = _store(paths)
    if store.passphrase is None and store.kind() is KeyKind.PASSPHRASE:  # else the keyring knows it
        _unlocked(store, store.read)
        os.environ[PASSPHRASE_VARIABLE] = store.passphrase or ""


def _set(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.storage.secrets import Category, check_name, check_value

    if options.surplus:
        raise RefusedError(
            "a value does not belong into the command line, where others can read it and the shell keeps it; "
            "type it when you are asked, or: spacebot secret set NAME < FILE. Treat the one you typed as known"
        )
    name = check_name(options.name)
    if options.tool:
        _check_variable(name)
    value = check_value(_read_value(name))
    paths.create()
    store = _store(paths)
    category = Category.TOOL if options.tool else Category.SYSTEM if options.system else None
    info, is_new = _unlocked(store, lambda: store.set(name, value, category))
    if info.category is Category.TOOL:
        _check_variable(name)
    _warn(store)
    if len(value) < 8:
        print("warning: so short a value is not recognised, and not removed, in texts and logs", file=sys.stderr)
    elif value != value.strip():
        print("warning: the value begins or ends with a blank", file=sys.stderr)
    who = "workers' commands have it as a variable" if info.category is Category.TOOL else "no command gets it"
    print(
        f"{name} is {'stored' if is_new else 'changed'} ({info.category}: {who}); in the configuration: secret:{name}"
    )
    return _tell(paths)


def _list(paths: InstancePaths, options: Namespace) -> int:
    store = _store(paths)
    infos, kind = store.list(), store.kind()
    _warn(store)
    if options.json:
        secrets = [
            {"name": info.name, "category": info.category, "created_at": info.created_at, "updated_at": info.updated_at}
            for info in infos
        ]
        print(json.dumps({"secrets": secrets, "key": kind}))
        return 0
    width = max((len(info.name) for info in infos), default=0)
    for info in infos:
        print(f"{info.name:{width}}  {info.category:6}  {info.updated_at[:16].replace('T', ' ')} UTC")
    if not infos:
        print("there are no secrets; spacebot secret set NAME stores one", file=sys.stderr)
    return 0


def _remove(paths: InstancePaths, options: Namespace) -> int:
    store = _store(paths)
    store.remove(options.name)
    _warn(store)
    print(f"{options.name.strip().upper()} is removed")
    return _tell(paths)


def _rotate(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.storage.secrets import KeyKind

    store = _store(paths)
    _unlocked(store, store.read)  # a wrong passphrase is told before a new one is asked for
    new = _ask_new_passphrase() if options.passphrase and store.exists else None
    kind = KeyKind.PASSPHRASE if options.passphrase else KeyKind.FILE if options.key_file else None
    was_remembered = _remembered(paths) is not None
    count = store.rotate(kind=kind, passphrase=new)
    _warn(store)
    if was_remembered:
        _remember(paths, store)
    print(f"{count} {'secret is' if count == 1 else 'secrets are'} encrypted with a new key")
    return _tell(paths, passphrase=store.passphrase)


def _unlock(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.storage.secrets import KeyKind

    store = _store(paths)
    if store.kind() is not KeyKind.PASSPHRASE:
        raise RefusedError("the secret store here needs no passphrase")
    _unlocked(store, store.read)
    _warn(store)
    if options.remember:
        _remember(paths, store)
        print("the kernel's keyring keeps the passphrase until this machine is restarted, or: spacebot secret lock")
        with suppress(NoDaemonError):
            ask(paths, "secrets_reload", timeout_s=RELOAD_S, passphrase=store.passphrase)
        return 0
    ask(paths, "secrets_reload", timeout_s=RELOAD_S, passphrase=store.passphrase)
    print("the secret store is open")
    return 0


def _lock(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.storage.keyring import open_keyring

    if not open_keyring().forget(paths.root):
        print("the kernel's keyring has no passphrase of this instance", file=sys.stderr)
        return 0
    print("the kernel's keyring has forgotten the passphrase; a running program keeps it until it ends")
    return 0


def _remember(paths: InstancePaths, store: "SecretStore") -> None:
    """Have the keyring know what opens the store now. Errors: RefusedError where there is no keyring; StorageError."""
    from spacebot.storage.keyring import open_keyring
    from spacebot.storage.secrets import KeyKind

    keyring = open_keyring()
    if store.passphrase is None or store.kind() is not KeyKind.PASSPHRASE:
        keyring.forget(paths.root)
    else:
        keyring.remember(paths.root, store.passphrase)


def _remembered(paths: InstancePaths) -> str | None:
    """What the keyring knows, as long as it fits: a passphrase that was changed elsewhere is as good as none."""
    if not (paths.root / "secrets.db").exists():
        return None
    from spacebot.storage.keyring import recall
    from spacebot.storage.secrets import LockedError, SecretStore

    passphrase = recall(paths.root)
    if passphrase is not None:
        try:
            SecretStore(paths.root, passphrase=passphrase).read()
        except LockedError:
            return None
    return passphrase


def _store(paths: InstancePaths) -> "SecretStore":
    from spacebot.storage.secrets import SecretStore

    return SecretStore(paths.root, passphrase=os.environ.get(PASSPHRASE_VARIABLE) or _remembered(paths))


def _unlocked(store: "SecretStore", work: Callable[[], T]) -> T:
    """Do what needs the key; ask for the passphrase where one is missing or wrong.

    Errors: LockedError when nobody can be asked, or after three wrong ones.
    """
    from spacebot.storage.secrets import KeyKind, LockedError, WrongPassphraseError

    tries = 0
    while True:
        try:
            return work()
        except LockedError as error:
            if store.kind() is not KeyKind.PASSPHRASE or tries == TRIES:
                raise
            if not _has_terminal():
                wrong = isinstance(error, WrongPassphraseError)
                raise type(error)(
                    f"{error}; {'correct' if wrong else 'set'} {PASSPHRASE_VARIABLE}, or call this in a terminal"
                ) from error
            if tries:
                print("that is not the passphrase", file=sys.stderr)
        tries += 1
        store.passphrase = getpass.getpass("Passphrase of the secret store: ")


def _ask_new_passphrase() -> str:
    """A new passphrase, typed twice; without a terminal, one line of standard input."""
    from spacebot.storage.secrets import check_passphrase

    if not _has_terminal():
        return check_passphrase(sys.stdin.readline(MAX_INPUT).rstrip("\r\n"))
    new = check_passphrase(getpass.getpass("New passphrase: "))
    if getpass.getpass("The same again: ") != new:
        raise RefusedError("these are two different passphrases; nothing has changed")
    return new


def _has_terminal() -> bool:
    """Whether somebody can be asked without being seen; `getpass` talks to this device, not to standard input."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _read_value(name: str) -> str:
    if sys.stdin.isatty():
        return getpass.getpass(f"Value of {name} (not shown): ")
    raw = sys.stdin.buffer.read(MAX_INPUT)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise RefusedError("the value is not UTF-8 text; encode it first (base64 -w0)") from error.with_traceback(None)
    return text.removesuffix("\n").removesuffix("\r")


def _check_variable(name: str) -> None:
    """Refuse a name that no command's environment may have. Errors: RefusedError."""
    from spacebot.base.errors import ToolError
    from spacebot.tools.sandbox import check_environment

    try:
        check_environment({name: ""})
    except ToolError as error:
        raise RefusedError(f"{name} cannot be a variable of commands; choose another name") from error


def _warn(store: "SecretStore") -> None:
    for warning in dict.fromkeys(store.warnings):
        print(f"warning: {warning}", file=sys.stderr)


def _tell(paths: InstancePaths, *, passphrase: str | None = None) -> int:
    """Have a running program read the store and its configuration again; the change itself is done already."""
    try:
        answer = ask(paths, "secrets_reload", timeout_s=RELOAD_S, passphrase=passphrase)
    except NoDaemonError:
        if lock_holder(paths) is not None:
            print("warning: the program does not answer; it has this from its next start on", file=sys.stderr)
        return 0
    except RefusedError as error:
        print(f"warning: the running program goes on with what it had: {error}", file=sys.stderr)
        return 0
    for warning in answer["warnings"]:
        if "secret store" in warning:  # the others are no consequence of this
            print(f"warning: {warning}", file=sys.stderr)
    if keys := answer["requires_restart"]:
        print(f"a restart is needed for: {', '.join(keys)}", file=sys.stderr)
    return 0
