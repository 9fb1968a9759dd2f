"""`provider`: hosts of models, set up, tried and taken away, whether the program runs or not.

A key is read from a hidden prompt, from standard input, or named by its variable; it is tried before anything is
written. Changes are made in the file and the secret store, and a running program is told.

Flow:    run_provider -> api/provider_desk.py, llm/manager.py for a trial -> control command
Floor:   cli; standard library only until a command runs
Source:  control spec 3.1 and 4.7; the other side is `api/providers.py`
"""

import getpass
import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from spacebot.base.errors import NotFoundError, RefusedError, SpacebotError
from spacebot.base.paths import InstancePaths
from spacebot.cli.client import NoDaemonError, ask

if TYPE_CHECKING:
    from spacebot.api.provider_desk import Plan, ProviderDesk
    from spacebot.config.model import Config, LlmConfig
    from spacebot.storage.live_secrets import LiveSecrets

MAX_INPUT = 10_000  # characters of standard input
RELOAD_S = 60.0  # reading secrets and the configuration, connecting anew


def add_provider_commands(provider: ArgumentParser, add: Callable[..., ArgumentParser]) -> None:
    """Describe the words of the commands.

    Args:
        provider: the parser of `provider` itself.
        add: makes the parser of one command: name, description, the group it goes into.
    """
    group = provider.add_subparsers(metavar="list|set|test|rm", required=True)

    def command(name: str, run: Callable[[InstancePaths, Namespace], int], text: str) -> ArgumentParser:
        parser = add(name, text, group)
        parser.set_defaults(provider_command=run)
        return parser

    command("list", _list, "Show every provider and whether it can be used.").add_argument(
        "--json", action="store_true", help="for programs"
    )
    new = command("set", _set, "Set a provider up; its key is asked for, or read from standard input.")
    new.add_argument("id", metavar="ID", help="as `provider list` names it, or an id of your own")
    new.add_argument("--key-env", metavar="NAME", help="the key stays in this environment variable")
    new.add_argument("--model", metavar="ID/MODEL", help="for everything; left out: the provider's usual models")
    new.add_argument("--url", metavar="URL", help="address of the host, where it is not the usual one")
    new.add_argument("--api-type", metavar="TYPE", help="wire format, of a provider of your own")
    new.add_argument("--name", metavar="NAME", help="how people see it")
    new.add_argument("--keep-routes", action="store_true", help="the agents go on with their models")
    new.add_argument("--no-test", action="store_true", help="write it down without a trial")
    test = command("test", _test, "Ask a provider one word, now.")
    test.add_argument("id", metavar="ID")
    test.add_argument("--model", metavar="ID/MODEL", help="left out: its usual model")
    command("rm", _remove, "Take a provider out of the configuration, with its key.").add_argument("id", metavar="ID")


def run_provider(paths: InstancePaths, options: Namespace) -> int:
    """Run one of the commands; returns the exit code. Errors: SpacebotError, never with a key."""
    os.umask(0o077)
    run: Callable[[InstancePaths, Namespace], int] = options.provider_command
    return run(paths, options)


@dataclass(frozen=True, slots=True)
class Workbench:
    """What is set up here: the file as it is, and what changes it."""

    desk: "ProviderDesk"
    config: "Config"
    secrets: "LiveSecrets"


def open_workbench(paths: InstancePaths) -> Workbench:
    """Read the file and the secrets; asks for the passphrase where somebody is there. Errors: ConfigError."""
    from spacebot.api.provider_desk import ProviderDesk
    from spacebot.cli.secret import ask_for_start, open_secrets
    from spacebot.config.edit import ConfigEditor
    from spacebot.config.load import load_config

    ask_for_start(paths)
    secrets = open_secrets(paths)
    config = load_config(paths.config, resolve_secret=secrets.resolve).config
    return Workbench(ProviderDesk(ConfigEditor(paths.config), secrets.store, secrets.resolve), config, secrets)


def read_again(paths: InstancePaths, bench: Workbench) -> Workbench:
    """The same after the file, or what lies beside it, has changed. Errors: ConfigError."""
    from spacebot.config.load import load_config

    return replace(bench, config=load_config(paths.config, resolve_secret=bench.secrets.resolve).config)


def try_plan(paths: InstancePaths, plan: "Plan", llm: "LlmConfig") -> str:
    """Ask the provider of a plan one word; returns its answer on one line. Errors: ModelError."""
    import trio

    from spacebot.llm.opening import open_models

    candidate = plan.candidate(llm)

    async def ask_once() -> str:
        async with open_models(lambda: candidate, login=paths.login) as models:
            reply = await models.try_model(plan.model, candidate)
            return " ".join(reply.message.text.split())[:80]

    return trio.run(ask_once)


def tell(paths: InstancePaths) -> bool:
    """Have a running program take a change over; returns whether one runs."""
    with suppress(NoDaemonError):
        try:
            ask(paths, "secrets_reload", timeout_s=RELOAD_S)
        except NoDaemonError:
            raise
        except SpacebotError as error:
            print(f"warning: the running program did not take it over: {error}", file=sys.stderr)
        return True
    return False


def _list(paths: InstancePaths, options: Namespace) -> int:
    answer, is_running = _providers(paths)
    if options.json:
        print(json.dumps({**answer, "running": is_running}, ensure_ascii=False))
        return 0
    rows = [one for one in answer["details"] if one["state"] != "absent"]
    for one in rows:
        print(_row(one))
    if not rows:
        print("no provider is set up; spacebot init does it, or: spacebot provider set ID", file=sys.stderr)
    others = ", ".join(one["id"] for one in answer["details"] if one["state"] == "absent")
    print(f"also there: {others}", file=sys.stderr)
    return 0


def _row(one: Mapping[str, Any]) -> str:
    words = {"key": "key", "login": "login", "none": "no key needed", None: ""}[one["auth"]]
    source = {"secret": "in the secret store", "environment": "in the environment", "file": "plain in the file"}
    where = f" {source[one['key_source']]}" if one["auth"] == "key" and one["key_source"] in source else ""
    about = f"{words}{where}" + (f": {one['reason']}" if one["reason"] else "")
    return f"{one['id']:18} {one['state']:9} {about}".rstrip(" :")


def _providers(paths: InstancePaths) -> tuple[dict[str, Any], bool]:
    """All providers, as the running program sees them, or as it would."""
    with suppress(NoDaemonError):
        answer = ask(paths, "providers")
        answer.pop("result", None)
        return answer, True
    import time

    from spacebot.api.providers import providers_object
    from spacebot.base.errors import StorageError
    from spacebot.llm.credentials import LoginView
    from spacebot.llm.oauth import LoginState, TokenFile

    bench = open_workbench(paths)
    try:
        tokens = TokenFile(paths.login).load()
        state = LoginState.NONE if tokens is None else tokens.state(time.time())
        login = LoginView(state=state, expires_at=None if tokens is None else tokens.expires_at / 1000)
    except StorageError as error:
        login = LoginView(state=LoginState.UNREADABLE, problem=str(error))
    return providers_object(bench.config.llm, login, bench.desk.sources()), False


def _set(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.api.provider_desk import ProviderForm, normal_id
    from spacebot.config.provider_table import provider_table

    provider = normal_id(options.id)
    entry = provider_table().get(provider)
    bench = open_workbench(paths)
    old = bench.config.llm.provider.get(provider)
    has_login = old is not None and old.has_login
    needs_key = (entry is None or entry.needs_key) and not has_login
    key = f"env:{options.key_env}" if options.key_env else _read_key(provider) if needs_key else None
    form = ProviderForm(
        provider=provider,
        api_key=key,
        model=options.model,
        base_url=options.url,
        api_type=options.api_type,
        name=options.name,
        sets_routes=not options.keep_routes,
    )
    plan = bench.desk.plan(form, bench.config.llm)
    if not options.no_test:
        print(f"asking {plan.model} …", file=sys.stderr)
        try_plan(paths, plan, bench.config.llm)
    paths.create()
    message = bench.desk.save(plan)
    is_running = tell(paths)
    print(message if is_running else f"{message}; it counts from the next start on", file=sys.stderr)
    return 0


def _read_key(provider: str) -> str | None:
    """The key; nothing typed keeps what is there, or is no key."""
    if sys.stdin.isatty():
        return getpass.getpass(f"Key for {provider} (not shown): ").strip() or None
    return sys.stdin.read(MAX_INPUT).strip() or None


def _test(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.api.provider_desk import ProviderForm, normal_id

    bench, provider = open_workbench(paths), normal_id(options.id)
    llm = bench.config.llm
    if provider not in llm.provider:
        why = llm.absent.get(provider)
        raise NotFoundError(f"{provider} is not usable: {why or f'set it up with: spacebot provider set {provider}'}")
    model = options.model or _model_in_use(bench.config, provider)
    plan = bench.desk.plan(ProviderForm(provider=provider, model=model), llm)
    words = try_plan(paths, plan, llm)
    print(f"{plan.model} answers: {words}" if words else f"{plan.model} answers")
    return 0


def _model_in_use(config: "Config", provider: str) -> str | None:
    """A model of this provider that an agent is configured for; a provider of one's own has no usual one."""
    for agent in (config.default_agent, *config.agents):
        routing = agent.routing
        for name in (routing.channel, routing.branch, routing.worker, routing.compactor, routing.cortex):
            if name is not None and name.lower().startswith(f"{provider}/"):
                return name
    return None


def _remove(paths: InstancePaths, options: Namespace) -> int:
    if not paths.config.exists():
        raise RefusedError(f"there is no file {paths.config}, so there is nothing to remove")
    message = open_workbench(paths).desk.remove(options.id)
    tell(paths)
    print(message, file=sys.stderr)
    return 0
