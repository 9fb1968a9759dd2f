"""What the doctor asks of the instance: configuration, keys, models, databases, ports, the program that runs.

Floor:   agent
Source:  agent/checks.py
"""

import errno
import os
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from spacebot import __version__
from spacebot.agent.checks import Asking, Blocking, Finding, Report, Scene
from spacebot.base.control_address import control_address
from spacebot.base.errors import ModelError, ModelRejectedError, SpacebotError, StorageError
from spacebot.base.paths import package_file
from spacebot.config.load_llm import DEMO
from spacebot.config.model import Config
from spacebot.llm.choice import choose_models
from spacebot.llm.manager import ModelManager
from spacebot.llm.messages import ProcessKind
from spacebot.llm.oauth import LOGIN_COMMAND, LoginState, TokenFile
from spacebot.llm.opening import open_models
from spacebot.storage.backup import check_database
from spacebot.storage.database import Error, connect
from spacebot.storage.restore import old_states, pending_restore

MOST = 8  # lines of one kind; more would hide the rest
TRY_S = 40.0  # for one model
PRIVATE = ("secrets.db", "secret.key", "anthropic_oauth.json", "github_copilot_token.json", "api_token", "config.toml")
KINDS = (ProcessKind.CHANNEL, ProcessKind.BRANCH, ProcessKind.WORKER, ProcessKind.COMPACTOR, ProcessKind.CORTEX)


def check_config(scene: Scene) -> Iterator[Finding]:
    """The owner's file."""
    say, file = Report("config"), scene.paths.config
    if scene.config is None:
        yield say.fail(scene.trouble or "it cannot be read", f"correct {file}; spacebot config check shows all of it")
        return
    for warning in scene.warnings[:MOST]:
        yield say.warn(warning, f"see {file}")
    if len(scene.warnings) > MOST:
        yield say.warn(f"{len(scene.warnings) - MOST} more warnings", "spacebot config check shows all")
    if not scene.warnings:
        agents = len(scene.config.agents)
        place = str(file) if file.exists() else "no file: the environment decides"
        yield say.ok(f"{place}, {agents} {'agent' if agents == 1 else 'agents'}")


def check_permissions(scene: Scene) -> Iterator[Finding]:
    """Files with secrets: ours, and nobody else's."""
    say, count = Report("permissions"), 0
    for path in (*(scene.paths.root / name for name in PRIVATE if name != "config.toml"), scene.paths.config):
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        count += 1
        if found.st_mode & 0o077 and stat.S_ISREG(found.st_mode):
            yield say.warn(f"{path} can be read by others (mode {stat.S_IMODE(found.st_mode):o})", f"chmod 600 {path}")
            count = -len(PRIVATE)
        elif found.st_uid != os.geteuid() and os.geteuid() != 0:
            yield say.warn(f"{path} belongs to another user", f"sudo chown {os.geteuid()} {path}")
            count = -len(PRIVATE)
    if count >= 0:
        yield say.ok(
            f"files with secrets: {count}, readable by their owner alone" if count else "no files with secrets yet"
        )


def check_secrets(scene: Scene) -> Iterator[Finding]:
    """The secret store."""
    say, state = Report("secrets"), scene.secrets.get("state", "unknown")
    if problem := scene.secrets.get("problem"):
        yield say.fail(str(problem), "put the store's file back from a backup made with --with-secrets")
    elif state == "locked":
        yield say.fail("the store is locked, so nothing that names a secret works", "spacebot secret unlock")
    elif state == "empty":
        yield say.ok("none are stored")
    else:
        yield say.ok(f"{state}, key: {scene.secrets.get('key')}")


def check_login(scene: Scene) -> Iterator[Finding]:
    """The login at Anthropic, if there is one."""
    say = Report("login")
    try:
        tokens = TokenFile(scene.paths.login).load()
    except SpacebotError as error:
        yield say.fail(str(error), f"sign in again: {LOGIN_COMMAND}")
        return
    if tokens is None:
        yield say.ok("nobody is signed in; keys are used")
    elif (state := tokens.state(time.time())) is LoginState.REFUSED:
        yield say.fail("the login was revoked", f"sign in again: {LOGIN_COMMAND}, or: spacebot auth logout")
    else:
        yield say.ok("signed in" if state is LoginState.VALID else "signed in, renewed with the next call")


def check_routes(scene: Scene) -> Iterator[Finding]:
    """A model for every kind of process."""
    say, config = Report("models"), scene.config
    if config is None:
        return
    faults, names = _routes(config)
    for fault in list(faults)[:MOST]:
        yield say.fail(fault, "set a key for that provider, or another model under [defaults.routing]")
    if not faults and all(name.startswith(f"{DEMO}/") for name in names):
        mend = "spacebot init sets one up; or: export OPENROUTER_API_KEY=… before the start"
        yield say.warn("no provider has a key: built-in rules answer", mend)
    elif not faults:
        yield say.ok(", ".join(names))


def _routes(config: Config) -> tuple[dict[str, None], list[str]]:
    """What is wrong with the routes, and every model that is asked first somewhere."""
    faults: dict[str, None] = {}
    names: dict[str, None] = {}
    for agent in config.agents:
        for process in KINDS:
            try:
                names[choose_models(process, None, agent, config.llm)[0].model] = None
            except ModelRejectedError as error:
                faults[f"agent {agent.id}, {process}: {error}"] = None
    return faults, list(names)


def check_databases(scene: Scene) -> Iterator[Finding]:
    """Every agent's database: whole, and of a form that this program knows."""
    say, root = Report("databases"), scene.paths.root / "agents"
    newest = max(int(file.name[:4]) for file in package_file("storage", "sql").glob("[0-9]*.sql"))
    total = count = 0
    troubled = False
    for database in sorted(root.glob("*/data/spacebot.db")):
        count, total = count + 1, total + database.stat().st_size
        try:
            connection = connect(database, read_only=scene.is_running)
            try:
                schema = check_database(connection, database)
            finally:
                connection.close()
        except (Error, StorageError) as error:
            troubled = True
            yield say.fail(str(error), "stop the program and restore a backup: spacebot restore FILE")
            continue
        if schema > newest:
            troubled = True
            yield say.fail(f"{database} is newer than this program (migration {schema})", "update the program")
    if not troubled:
        yield say.ok(f"{count} whole, {total / 2**20:.0f} MiB" if count else "none yet")


def check_ports(scene: Scene) -> Iterator[Finding]:
    """Ports are free, or ours."""
    say, config = Report("ports"), scene.config
    if config is None:
        return
    wanted = [("api", config.api.bind, config.api.port)] if config.api.enabled else []
    if config.metrics.enabled:
        wanted.append(("metrics", config.metrics.bind, config.metrics.port))
    for platform, key, account in config.messaging.accounts():
        if platform == "webhook" and account.enabled:
            wanted.append((f"messaging.{key}", str(getattr(account, "bind", "")), int(getattr(account, "port", 0))))
    troubled = False
    for table, bind, port in wanted:
        reason = _why_not(bind, port) if port and not scene.is_running else None
        if reason is not None:
            troubled = True
            yield say.fail(
                f"port {port} on {bind}: {reason}", f"stop what uses it, or set {table}.port to another number"
            )
    if not troubled:
        shown = ", ".join(f"{table} {port}" for table, _, port in wanted) or "none are wanted"
        yield say.ok(f"{shown} ({'ours' if scene.is_running else 'free'})")


def _why_not(bind: str, port: int) -> str | None:
    host = "127.0.0.1" if bind == "localhost" else bind.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return "taken by another program" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return None


def check_daemon(scene: Scene) -> Iterator[Finding]:
    """The program that runs, and what one that died has left."""
    say, paths = Report("daemon"), scene.paths
    if scene.status is not None:
        running = scene.status.get("version")
        if running != __version__:
            yield say.warn(f"version {running} runs, this is {__version__}", "spacebot restart")
        else:
            yield say.ok(f"runs (pid {scene.status.get('pid')})")
    elif scene.pid is not None:
        mend = "wait for its start or its end; if it stays so: spacebot stop --force, then look into spacebot logs"
        yield say.fail(f"pid {scene.pid} holds the instance and does not answer", mend)
    elif left := [path.name for path in (paths.pid, control_address(paths.socket)) if os.path.lexists(path)]:
        yield say.ok(f"does not run; {' and '.join(left)} of a killed one are removed by the next start")
    else:
        yield say.ok("does not run; spacebot start")


def check_platforms(scene: Scene) -> Iterator[Finding]:
    """The connections to platforms, as the running program sees them."""
    say, config = Report("platforms"), scene.config
    if config is None:
        return
    absent = dict(config.messaging.absent)
    for key, reason in list(absent.items())[:MOST]:
        yield say.warn(f"{key} is not connected: {reason}", f"complete [messaging.{key}]")
    enabled = [key for _, key, account in config.messaging.accounts() if account.enabled]
    states = {one["key"]: one for one in (scene.status or {}).get("adapters", ())}
    down = [
        one for key, one in states.items() if key in enabled and one.get("state") not in ("connected", "connecting")
    ]
    for one in down[:MOST]:
        detail = one.get("detail") or one.get("state")
        yield say.fail(f"{one['key']}: {detail}", f"spacebot messaging test {one['key']}")
    if not down and not absent:
        how = "connected" if states else "not looked at: the program does not run"
        yield say.ok(f"{', '.join(enabled)} ({how})" if enabled else "only the web chat")


def check_leftovers(scene: Scene) -> Iterator[Finding]:
    """Backups that wait, states put aside, log files."""
    say, root = Report("leftovers"), scene.paths.root
    if (waiting := pending_restore(root)) is not None:
        yield say.warn(f"a backup in {waiting.name} waits to take its place", "spacebot restart")
    said = [f"{folder.name} holds what was there before a restore" for folder in old_states(root)]
    size = sum(file.stat().st_size for file in _files(scene.paths.logs))
    if size > 2 << 30:
        yield say.warn(f"logs take {size >> 20} MiB", "lower logs.keep or logs.max_mib")
    yield say.ok("; ".join([*said, f"logs take {size / 2**20:.1f} MiB"]))


def _files(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from (file for file in folder.iterdir() if file.is_file())


def check_update(scene: Scene) -> Iterator[Finding]:
    """Whether a newer release is known."""
    say, config = Report("update"), scene.config
    known = (scene.status or {}).get("update") or {}
    if config is None or config.update.repository is None:
        yield say.ok("not looked for (update.repository)")
    elif known.get("update_available"):
        yield say.warn(
            f"{known['latest_version']} is there", str(known.get("cannot_apply_reason") or "update the program")
        )
    elif error := known.get("error"):
        yield say.warn(f"no word of releases: {error}", "look at update.repository and the network")
    else:
        yield say.ok(f"{__version__} is the newest that is known")


async def check_answers(scene: Scene) -> Iterable[Finding]:
    """Ask every model that is in use for a word; costs a few tokens each."""
    say, config = Report("answers"), scene.config
    if config is None:
        return []
    names = [name for name in _routes(config)[1] if not name.startswith(f"{DEMO}/")]
    found: dict[str, Finding] = {}

    async def ask(manager: ModelManager, name: str) -> None:
        try:
            with trio.fail_after(TRY_S):
                await manager.try_model(name, config.llm)
            found[name] = say.ok(f"{name} answers")
        except ModelError as error:
            found[name] = say.fail(f"{name}: {error}", "correct the key or the model, then: spacebot doctor --online")
        except trio.TooSlowError:
            found[name] = say.fail(
                f"{name}: no answer within {TRY_S:.0f} s", "check the network, or choose another model"
            )

    async with open_models(lambda: config.llm, login=scene.paths.login) as manager, trio.open_nursery() as nursery:
        for name in names[:MOST]:
            nursery.start_soon(partial(ask, manager, name))
    return [found[name] for name in names if name in found] or [say.ok("no model with a key to ask")]


PROGRAM: Mapping[str, Blocking] = {
    "daemon": check_daemon,
    "config": check_config,
    "permissions": check_permissions,
    "secrets": check_secrets,
    "login": check_login,
    "models": check_routes,
    "databases": check_databases,
    "ports": check_ports,
    "platforms": check_platforms,
    "leftovers": check_leftovers,
    "update": check_update,
}
ONLINE: Mapping[str, Asking] = {"answers": check_answers}
