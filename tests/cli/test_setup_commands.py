"""`spacebot init`, `provider` and `auth status`: what they write, what they refuse, that they leave no half of it."""

import json
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spacebot.base.errors import RefusedError
from spacebot.config.load import load_config
from spacebot.llm.oauth import TokenFile, Tokens
from spacebot.messaging.forms import FORMS
from spacebot.storage.secrets import SecretStore
from tests.cli.conftest import ROOT, Instance
from tests.cli.test_commands import HEAVY, loaded_by
from tests.flows.terminal import Terminal

KEY = "sk-correct-horse-battery-staple"
BOT = "MTA5NDQ2NzE4MjQ1Njc4OTAxMg.GabcdE.abcdefghijklmnopqrstuvwxyz0123456789AB"
QUIET = ("init", "--no-test")  # without trials over the network


@contextmanager
def terminal(instance: Instance, *words: str, **environ: str) -> Iterator[Terminal]:
    opened = Terminal(instance.words(*words), instance.environ | environ, ROOT)
    try:
        yield opened
    finally:
        opened.close()


def tables(instance: Instance) -> Any:
    return tomllib.loads(instance.paths.config.read_text())


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_the_first_steps_make_a_private_file_and_keep_the_keys_in_the_store(instance: Instance) -> None:
    with terminal(instance, *QUIET) as person:
        person.answer("Provider, by name or number [anthropic]: ", "openai")
        person.answer("Key for OpenAI (not shown", "")
        person.expect("a key is needed")
        person.answer("Key for OpenAI (not shown", KEY)
        person.answer("Model [openai/gpt-4.1]: ")
        person.answer("Name of the agent [main]: ", "Bad/Name")
        person.answer("Name of the agent [main]: ")
        person.answer("Platform [none]: ", "telegram")
        person.answer("Bot token (not shown", "12345:abcdefgh-abcdefgh")
        person.answer("Chat's id", "home")
        person.expect("a chat's id is a number")
        person.answer("Chat's id", "-100")
        person.answer("People who may write directly", "7, 8")
        person.answer("Another platform [none]: ")
        person.answer("Start Spacebot now?", "n")
        person.expect("begin with: spacebot start; the web chat is then at http://127.0.0.1:5738/")
        assert person.end() == 0
        assert KEY not in person.shown
    file = tables(instance)
    assert file["llm"] == {"openai_key": "secret:OPENAI_API_KEY"}
    assert file["agents"] == [{"id": "main", "default": True}]
    assert file["defaults"]["routing"]["worker"] == "openai/gpt-4.1-mini"
    assert file["messaging"]["telegram"] == {
        "token": "secret:TELEGRAM_BOT_TOKEN", "dm_allowed_users": ["7", "8"], "enabled": True,
    }  # fmt: skip
    assert file["bindings"] == [{"agent_id": "main", "channel": "telegram", "chat_id": "-100"}]
    assert stat.S_IMODE(instance.paths.config.stat().st_mode) == 0o600
    secrets = {name: secret.value for name, secret in SecretStore(instance.root).read().items()}
    assert secrets == {"OPENAI_API_KEY": KEY, "TELEGRAM_BOT_TOKEN": "12345:abcdefgh-abcdefgh"}
    loaded = load_config(instance.paths.config, environ={}, resolve_secret=secrets.get)
    assert loaded.warnings == ()
    assert not loaded.config.llm.needs_setup


@pytest.mark.spec("C-17")
def test_a_file_that_is_there_keeps_its_words_and_is_changed_only_when_the_owner_says_so(instance: Instance) -> None:
    instance.root.mkdir()
    before = (
        '# my own words\n[api]\nport = 4711  # mine\n\n[[agents]]\nid = "old"\n\n[agents.routing]\nworker = "x/y"\n'
    )
    instance.paths.config.write_text(before)
    for answer in ("n", "y"):
        with terminal(instance, *QUIET, GROQ_API_KEY=KEY) as person:
            person.answer("Provider, by name or number [groq]: ", "ollama")
            person.answer("Address [http://localhost:11434]: ")
            person.answer("Model [ollama/llama3.2]: ", "mistral")
            person.answer("Name of the agent [old]: ")
            person.answer("Platform [none]: ")
            person.answer("(y/n) [y]: ", answer)
            if answer == "y":
                person.answer("Start Spacebot now?", "n")
            assert person.end() == (0 if answer == "y" else 1), person.shown
        if answer == "n":
            assert instance.paths.config.read_text() == before
    text = instance.paths.config.read_text()
    assert text.startswith("# my own words\n[api]\nport = 4711  # mine\n")
    assert tables(instance)["agents"] == [{"id": "old", "routing": {"worker": "ollama/mistral"}}]
    assert tables(instance)["llm"] == {"ollama_base_url": "http://localhost:11434"}
    assert KEY not in text


def test_leaving_in_between_leaves_nothing(instance: Instance) -> None:
    with terminal(instance, *QUIET) as person:
        person.answer("Provider, by name or number", "1")
        person.answer("key, login or console [key]: ")
        person.answer("Key for Anthropic (not shown", KEY)
        person.answer("Model [anthropic/")
        person.expect("Name of the agent")
        person.interrupt()
        person.expect("nothing was changed")
        assert person.end() == 130
        assert "Traceback" not in person.shown
    assert written(instance.root) == []


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        ((), "this is no terminal"),
        (("--provider", "openai"), "needs a key"),
        (("--provider", "openai", "--key-env", "NOT_SET"), "NOT_SET is not set"),
        (("--provider", "nothing/at/all"), "is no provider"),
        (("--provider", "openai", "--key-env", "MY_KEY", "--agent", "A/B"), "agent"),
        (("--provider", "openai", "--key-env", "MY_KEY", "--platform", "pigeon"), "must be one of"),
        (("--provider", "openai", "--key-env", "MY_KEY", "--platform", "discord"), "Bot token is needed"),
        (("--provider", "openai", "--key-env", "MY_KEY", "--platform", "discord", "--answer", "x"), "KEY=VALUE"),
    ],
)
def test_what_machines_say_wrongly_is_told_and_writes_nothing(
    words: tuple[str, ...], phrase: str, instance: Instance
) -> None:
    instance.environ["MY_KEY"] = KEY
    done = instance.run(*QUIET, *words)
    assert done.returncode == 1
    assert phrase in done.stderr
    assert "Traceback" not in done.stderr
    assert written(instance.root) == []


def test_machines_say_it_all_at_once_and_a_running_program_takes_it_over(instance: Instance) -> None:
    instance.environ |= {"MY_KEY": KEY, "BOT": BOT}
    assert instance.run("start").returncode == 0
    words = (
        *QUIET, "--provider", "anthropic", "--key-env", "MY_KEY", "--agent", "helper", "--platform", "discord",
        "--answer", "token=env:BOT", "--answer", "guild_id=12", "--answer", "channel_ids=1,2",
    )  # fmt: skip
    done = instance.run(*words)
    assert done.returncode == 0, done.stderr
    assert "the running program has taken it over" in done.stderr
    file = tables(instance)
    assert file["llm"] == {"anthropic_key": "env:MY_KEY"}
    assert file["messaging"]["discord"] == {"token": "env:BOT", "enabled": True}
    assert file["bindings"] == [
        {"agent_id": "helper", "channel": "discord", "guild_id": "12", "channel_ids": ["1", "2"]}
    ]
    assert not (instance.root / "secrets.db").exists()
    again = instance.run(*words)
    assert (again.returncode, "add --yes" in again.stderr) == (1, True)
    assert instance.run(*words, "--yes").returncode == 0
    assert tables(instance) == file


def test_a_further_agent_does_not_take_the_place_of_the_first(instance: Instance) -> None:
    """Without a mark the first of the list is the default one."""
    instance.root.mkdir(parents=True, exist_ok=True)
    instance.paths.config.write_text('[[agents]]\nid = "old"\n')
    done = instance.run(*QUIET, "--provider", "ollama", "--agent", "new", "--no-test", "--yes")
    assert done.returncode == 0, done.stderr
    assert tables(instance)["agents"] == [{"id": "old"}, {"id": "new"}]


def test_providers_are_set_up_shown_and_taken_away(instance: Instance) -> None:
    assert "no provider is set up" in instance.run("provider", "list").stderr
    done = instance.run("provider", "set", "groq", "--no-test", text=f"{KEY}\n")
    assert done.returncode == 0, done.stderr
    assert "groq is set up" in done.stderr
    assert tables(instance)["llm"] == {"groq_key": "secret:GROQ_API_KEY"}
    listed = json.loads(instance.run("provider", "list", "--json").stdout)
    assert (listed["providers"]["groq"], listed["needs_setup"], listed["running"]) == (True, False, False)
    assert "key in the secret store" in instance.run("provider", "list").stdout
    instance.environ["MY_KEY"] = KEY
    mine = ("--api-type", "anthropic", "--url", "http://127.0.0.1:9", "--model", "mine/a", "--keep-routes")
    done = instance.run("provider", "set", "mine", *mine, "--key-env", "MY_KEY", "--no-test")
    assert done.returncode == 0, done.stderr
    assert tables(instance)["defaults"]["routing"]["channel"].startswith("groq/")
    refused = instance.run("provider", "test", "mine", "--model", "mine/a")
    assert (refused.returncode, "cannot be reached" in refused.stderr) == (1, True)
    assert "set it up with" in instance.run("provider", "test", "openai").stderr
    assert instance.run("provider", "rm", "groq").returncode == 0
    assert "defaults" not in tables(instance)
    assert [info.name for info in SecretStore(instance.root).list()] == []
    assert KEY not in instance.paths.config.read_text()


@pytest.mark.parametrize("words", [("auth", "status"), ("auth", "status", "--json"), ("provider", "--help")])
def test_looking_at_the_login_loads_nothing_heavy(words: tuple[str, ...], instance: Instance) -> None:
    instance.root.mkdir()
    TokenFile(instance.paths.login).save(Tokens(access_token="a" * 40, refresh_token="r" * 40, expires_at=1))
    if "--help" in words:
        assert instance.run(*words).returncode == 0
        return
    assert not loaded_by(instance, *words) & {*HEAVY, "anthropic", "jinja2", "starlette"}
    shown = instance.run(*words)
    assert shown.returncode == 0  # the next call renews it
    assert "a" * 9 not in shown.stdout
    assert "expired" in shown.stdout


def test_every_question_has_an_answer_that_is_taken_and_one_that_is_not() -> None:
    for form in FORMS.values():
        for question in form.questions:
            if question.is_needed:
                with pytest.raises(RefusedError, match="is needed"):
                    question.read(" ")
            else:
                assert question.read("  ") is None
            if question.shape is not None:
                with pytest.raises(RefusedError) as caught:
                    question.read("this is, not one")
                assert str(caught.value) == question.wanted
        assert form.binding_of({}, "main") == {"agent_id": "main", "channel": form.platform}
