"""`init`: the first steps, asked one by one: a provider of models, an agent, a place where people talk.

Nothing is written before everything was answered: then the keys go into the secret store, and the file changes in one
step, which keeps what its owner wrote. A wrong answer is asked again with the reason. Leaving in between leaves things
as they were. With `--provider` all is said in the command line, for machines.

Flow:    run_init -> _Talk (ask, try) -> ProviderDesk.save -> start
Floor:   cli; standard library only until a command runs
Source:  control spec 1.9; pitfall 17
"""

import getpass
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from spacebot.base.errors import RefusedError, SpacebotError
from spacebot.base.paths import InstancePaths
from spacebot.cli.provider import Workbench, open_workbench, read_again, tell, try_plan

if TYPE_CHECKING:
    from spacebot.api.provider_desk import Plan
    from spacebot.cli.daemon import Program
    from spacebot.config.provider_table import ProviderEntry
    from spacebot.messaging.forms import Form, Question

CUSTOM = "custom"
LOGINS = ("login", "console")
MAX_LINE = 4096  # characters

T = TypeVar("T")
Tables = dict[str, Any]


def add_init_options(init: ArgumentParser) -> None:
    """Describe the words of the command."""
    init.add_argument("--provider", metavar="ID", help="do not ask: set this provider up")
    init.add_argument("--key-env", metavar="NAME", help="its key stays in this environment variable")
    init.add_argument("--model", metavar="ID/MODEL", help="for everything; left out: the provider's usual models")
    init.add_argument("--url", metavar="URL", help="address of the provider, where it is not the usual one")
    init.add_argument("--api-type", metavar="TYPE", help="wire format, of a provider of your own")
    init.add_argument("--agent", metavar="ID", help="the agent's name (default: main)")
    init.add_argument("--platform", metavar="NAME", help="connect this platform too")
    init.add_argument(
        "--answer", metavar="KEY=VALUE", action="append", default=[], help="what it needs: token=env:NAME, guild_id=1"
    )
    init.add_argument("--no-test", action="store_true", help="write keys and tokens down without a trial")
    init.add_argument("--start", action="store_true", help="start the program afterwards")
    init.add_argument("-y", "--yes", action="store_true", help="change a file that is there without asking")


def run_init(paths: InstancePaths, program: "Program", options: Namespace) -> int:
    """Ask, write, and offer to start. Errors: SpacebotError; nothing has been written then."""
    os.umask(0o077)
    if options.provider is None and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise RefusedError(
            "this is no terminal, so nothing can be asked; say it all: spacebot init --provider ID --key-env NAME "
            "[--agent ID] --yes, or write the file by hand"
        )
    try:
        wishes = _gather(paths, options) if options.provider is not None else _Talk(paths, options).run()
        if wishes is None:
            print("nothing was changed", file=sys.stderr)
            return 1
        paths.create()
        message = wishes.write()
    except (KeyboardInterrupt, EOFError) as leaving:
        print("\nnothing was changed", file=sys.stderr)
        raise KeyboardInterrupt from leaving
    print(f"\n{message}\nwritten to {paths.config}; keys that were typed are in the secret store", file=sys.stderr)
    return _start(paths, program, options, wishes)


@dataclass(slots=True)
class _Wishes:
    """Everything that was answered."""

    bench: Workbench
    plan: "Plan"
    agent_id: str
    platforms: "list[tuple[Form, dict[str, Any]]]" = field(default_factory=list)

    def write(self) -> str:
        """Write it all, or nothing; returns what was done. Errors: StorageError, ConfigError."""
        secrets: dict[str, str] = {}
        accounts: list[tuple[Form, dict[str, Any]]] = []
        for form, answers in self.platforms:
            named = dict(answers)
            for question in form.questions:
                value = named.get(question.key)
                if question.variable is not None and isinstance(value, _Referenced):
                    named[question.key] = value.reference
                elif question.variable is not None and isinstance(value, str):
                    secrets[question.variable] = value
                    named[question.key] = f"secret:{question.variable}"
            accounts.append((form, named))

        def change(tables: Tables) -> None:
            _set_agent(tables, self.agent_id)
            for form, named in accounts:
                _set_platform(tables, form, named, self.agent_id)

        return self.bench.desk.save(self.plan, more=change, secrets=secrets)


class _Referenced(str):
    """A value that the file names by its variable."""

    reference: str


def _set_agent(tables: Tables, agent_id: str) -> None:
    agents = tables.setdefault("agents", [])
    if not isinstance(agents, list):
        raise RefusedError("'agents' is no list of tables in the configuration file; edit it by hand")
    if any(isinstance(entry, dict) and entry.get("id") == agent_id for entry in agents):
        return
    agents.append({"id": agent_id} | ({} if agents else {"default": True}))


def _set_platform(tables: Tables, form: "Form", answers: Mapping[str, Any], agent_id: str) -> None:
    messaging = tables.setdefault("messaging", {})
    account = messaging.setdefault(form.platform, {}) if isinstance(messaging, dict) else None
    bindings = tables.setdefault("bindings", [])
    if not isinstance(account, dict) or not isinstance(bindings, list):
        raise RefusedError("the tables of platforms in the configuration file have another form; edit it by hand")
    account |= form.account_of(answers)
    binding = form.binding_of(answers, agent_id)
    if binding not in bindings:
        bindings.append(binding)


# Without questions


def _gather(paths: InstancePaths, options: Namespace) -> _Wishes:
    """What the command line says. Errors: RefusedError."""
    if paths.config.exists() and not options.yes:
        raise RefusedError(f"{paths.config} is there already; add --yes to change it")
    from spacebot.api.provider_desk import ProviderForm
    from spacebot.messaging.forms import FORMS

    bench = open_workbench(paths)
    form = ProviderForm(
        provider=options.provider,
        api_key=f"env:{options.key_env}" if options.key_env else None,
        model=options.model,
        base_url=options.url,
        api_type=options.api_type,
    )
    plan = bench.desk.plan(form, bench.config.llm)
    if not options.no_test:
        try_plan(paths, plan, bench.config.llm)
    wishes = _Wishes(bench, plan, _agent_id(options.agent or bench.config.default_agent.id))
    if options.platform is not None:
        if (platform := FORMS.get(options.platform)) is None:
            raise RefusedError(f"--platform must be one of: {', '.join(FORMS)}")
        answers = _answers(platform, options.answer)
        if not options.no_test:
            _try_platform(platform, answers)
        wishes.platforms.append((platform, answers))
    return wishes


def _answers(form: "Form", words: Sequence[str]) -> dict[str, Any]:
    given = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or key not in {question.key for question in form.questions}:
            known = ", ".join(question.key for question in form.questions)
            raise RefusedError(f"--answer {key[:40]!r} is not understood; write KEY=VALUE with one of: {known}")
        given[key] = value
    return {question.key: _read(question, given.get(question.key, "")) for question in form.questions}


def _read(question: "Question", text: str) -> Any:
    """An answer; a secret may be named by its variable. Errors: RefusedError."""
    if question.variable is None or not text.strip().startswith("env:"):
        return question.read(text)
    name = text.strip().removeprefix("env:")
    value = os.environ.get(name, "").strip()
    if not value:
        raise RefusedError(f"the environment variable {name[:60]!r} is not set here")
    named = _Referenced(question.read(value))
    named.reference = f"env:{name}"
    return named


def _agent_id(text: str) -> str:
    """An id as people mean it. Errors: ConfigError when it can be none."""
    from spacebot.base.ids import parse_agent_id

    return str(parse_agent_id("-".join(text.lower().split())))


def _try_platform(form: "Form", answers: Mapping[str, Any]) -> str:
    """Ask a platform who the bot is. Errors: RefusedError, ExternalError."""
    import trio

    from spacebot.base.fetch import open_fetcher
    from spacebot.messaging.forms import try_account

    async def ask() -> str:
        async with open_fetcher() as fetcher:
            return await try_account(form.platform, answers, fetcher)

    return trio.run(ask)


def _start(paths: InstancePaths, program: "Program", options: Namespace, wishes: _Wishes) -> int:
    """Have a running program take it over, or start it; print where the web chat is."""
    from spacebot.cli.client import ask
    from spacebot.cli.secret import PASSPHRASE_VARIABLE

    if tell(paths):
        print("the running program has taken it over", file=sys.stderr)
        for url in ask(paths, "status").get("urls", ()):
            print(f"web chat: {url}", file=sys.stderr)
        return 0
    is_wanted = options.start or (options.provider is None and _yes("Start Spacebot now?"))
    if not is_wanted:
        api = wishes.bench.config.api
        print(f"begin with: spacebot start; the web chat is then at http://{api.bind}:{api.port}/", file=sys.stderr)
        return 0
    import subprocess  # a process of its own: this one has loaded what a fork would not survive

    passphrase = wishes.bench.secrets.passphrase
    known = {} if passphrase is None else {PASSPHRASE_VARIABLE: passphrase}  # was asked for already
    words = [*program.command(), "--config", str(paths.config), *(["--debug"] if options.debug else []), "start"]
    return subprocess.run(words, env=os.environ | known, check=False).returncode


# With questions


class _Talk:
    """Asks a person."""

    def __init__(self, paths: InstancePaths, options: Namespace) -> None:
        self._paths = paths
        self._options = options
        self._bench = open_workbench(paths)

    def run(self) -> _Wishes | None:
        """Everything that was answered; None when the person would rather change nothing."""
        _say("Spacebot: first steps. An empty answer takes what stands in [brackets]; Ctrl-C leaves all as it is.")
        plan = self._ask_provider()
        default = self._bench.config.default_agent.id
        agent_id = _until(lambda: _agent_id(_line("\nName of the agent", default)))
        wishes = _Wishes(self._bench, plan, agent_id)
        self._ask_platforms(wishes)
        if self._paths.config.exists() and not self._options.yes and not _yes(f"\nChange {self._paths.config}?"):
            return None
        return wishes

    def _ask_provider(self) -> "Plan":
        from spacebot.config.provider_table import provider_table

        entries = [entry for entry in provider_table().values() if entry.id != "demo"]
        _say("\nWhich provider of models?")
        for number, entry in enumerate(entries, 1):
            _say(f"  {number:2}  {entry.id:18} {entry.name}")
        _say(f"  {len(entries) + 1:2}  {CUSTOM:18} one of your own, or any other with the same wire format")
        by_word = {entry.id: entry for entry in entries}
        by_word |= {str(number): entry for number, entry in enumerate(entries, 1)}
        usable = next((name for name in self._bench.config.llm.provider if name in by_word), entries[0].id)
        while True:
            word = _line("Provider, by name or number", usable).lower()
            if word in (CUSTOM, str(len(entries) + 1)):
                plan = self._ask_custom()
            elif word in by_word:
                plan = self._ask_builtin(by_word[word])
            else:
                _say(f"  there is no {word[:40]!r}; type one of the names or numbers above")
                continue
            if plan is not None:
                return plan

    def _ask_builtin(self, entry: "ProviderEntry") -> "Plan | None":
        key, url = None, None
        if not entry.needs_key or not entry.base_url:
            url = _line("Address", entry.base_url)
        if entry.needs_key and (entry.id != "anthropic" or not self._ask_login()):
            key = self._ask_key(entry.name, entry.env)
        usual = f"{entry.id}/{entry.first}" if entry.first else ""
        model = _until(lambda: _whole(entry.id, _line("Model", usual)))
        return self._ask_plan(provider=entry.id, api_key=key, base_url=url, model=None if model == usual else model)

    def _ask_custom(self) -> "Plan | None":
        from spacebot.api.provider_desk import normal_id
        from spacebot.config.model import ApiType

        kinds = [str(kind) for kind in ApiType if kind is not ApiType.DEMO]
        provider = _until(lambda: normal_id(_line("Name for it", "my-provider")))
        kind = _until(lambda: _one_of(_line(f"Wire format ({', '.join(kinds)})", "openai_completions"), kinds))
        url = _line("Address, without /v1", "http://127.0.0.1:8080")
        key = self._ask_key(provider, None, is_needed=False)
        model = _until(lambda: _whole(provider, _line("Model, as the provider calls it", None)))
        return self._ask_plan(provider=provider, api_key=key, base_url=url, api_type=kind, model=model)

    def _ask_login(self) -> bool:
        """Whether a person is signed in now instead of giving a key."""
        from spacebot.cli.auth import sign_in
        from spacebot.llm.oauth import NOTICE

        provider = self._bench.config.llm.provider.get("anthropic")
        if provider is not None and provider.has_login and _yes("Go on with the login that is there?"):
            return True
        _say(f"  key: an API key; login: a Pro or Max subscription; console: an account that pays by use\n  {NOTICE}")
        way = _until(lambda: _one_of(_line("key, login or console", "key").lower(), ("key", *LOGINS)))
        while way in LOGINS:
            try:
                sign_in(self._paths, is_console=way == "console")
            except SpacebotError as error:
                _say(f"  {error}")
                if not _yes("Try again?"):
                    return False
                continue
            self._bench = read_again(self._paths, self._bench)
            return True
        return False

    def _ask_key(self, name: str, variable: str | None, *, is_needed: bool = True) -> str | None:
        """A key, typed unseen, or the name of its variable."""
        hint = f"env:{variable}" if variable else "env:NAME"
        has_variable = bool(variable and os.environ.get(variable))
        if has_variable and _yes(f"Use the key in the variable {variable}?"):
            return f"env:{variable}"
        while True:
            key = getpass.getpass(f"Key for {name} (not shown; {hint} names a variable): ", sys.stderr).strip()
            if key or not is_needed:
                return key or None
            _say("  a key is needed; it stands on the provider's page for API keys")

    def _ask_plan(self, **fields: Any) -> "Plan | None":
        """Check and try what was answered; None when another provider is wanted."""
        from spacebot.api.provider_desk import ProviderForm

        llm = self._bench.config.llm
        try:
            plan = self._bench.desk.plan(ProviderForm(**fields), llm)
        except SpacebotError as error:
            _say(f"  {error}")
            return None
        while not self._options.no_test:
            _say(f"  asking {plan.model} …")
            try:
                words = try_plan(self._paths, plan, llm)
            except SpacebotError as error:
                _say(f"  that did not work: {error}")
                way = _until(
                    lambda: _one_of(_line("again, keep or other", "again").lower(), ("again", "keep", "other"))
                )
                if way == "again":
                    continue
                return plan if way == "keep" else None
            _say(f"  it answers{f': {words}' if words else ''}")
            break
        return plan

    def _ask_platforms(self, wishes: _Wishes) -> None:
        from spacebot.messaging.forms import FORMS

        _say("\nThe web chat is always there. Connect a platform too?")
        for form in FORMS.values():
            _say(f"      {form.platform:18} {form.name}")
        while len(wishes.platforms) < len(FORMS):
            done = {form.platform for form, _ in wishes.platforms}
            word = _line("Platform" if not done else "Another platform", "none").lower()
            if word == "none":
                return
            if word not in FORMS or word in done:
                _say(f"  type one of: {', '.join(name for name in FORMS if name not in done)}, none")
            elif (answers := self._ask_platform(FORMS[word])) is not None:
                wishes.platforms.append((FORMS[word], answers))

    def _ask_platform(self, form: "Form") -> dict[str, Any] | None:
        _say(f"  {form.how}")
        answers: dict[str, Any] = {}
        for question in form.questions:
            answers[question.key] = _until(partial(_ask, question))
        while not self._options.no_test:
            try:
                _say(f"  signed in as {_try_platform(form, answers)}")
                break
            except SpacebotError as error:
                _say(f"  that did not work: {error}")
            way = _until(lambda: _one_of(_line("again, keep or none", "again").lower(), ("again", "keep", "none")))
            if way == "none":
                return None
            if way == "keep":
                break
            if _yes("Type the answers anew?"):
                return self._ask_platform(form)
        return answers


def _ask(question: "Question") -> Any:
    """One answer, a secret typed unseen. Errors: RefusedError."""
    if question.variable is None:
        return question.read(_line(question.text, ""))
    hint = f"not shown; env:{question.variable} names a variable"
    return _read(question, getpass.getpass(f"{question.text} ({hint}): ", sys.stderr))


def _whole(provider: str, model: str) -> str:
    """A model's full name. Errors: RefusedError for none."""
    if not model:
        raise RefusedError("the name of a model is needed")
    return model if model.lower().startswith(f"{provider}/") else f"{provider}/{model}"


def _one_of(word: str, words: Sequence[str]) -> str:
    if word not in words:
        raise RefusedError(f"type one of: {', '.join(words)}")
    return word


def _until(read: Callable[[], T]) -> T:
    """Ask until the answer is good."""
    while True:
        try:
            return read()
        except SpacebotError as error:
            _say(f"  {error}")


def _yes(question: str) -> bool:
    answer = _until(lambda: _one_of(_line(f"{question} (y/n)", "y").lower()[:1], ("y", "n")))
    return answer == "y"


def _line(question: str, default: str | None) -> str:
    """One line; an empty one is the default. Errors: EOFError when nobody is there any more."""
    print(f"{question}{f' [{default}]' if default else ''}: ", end="", file=sys.stderr, flush=True)
    text = sys.stdin.readline(MAX_LINE)
    if not text:
        raise EOFError
    return text.strip() or default or ""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
