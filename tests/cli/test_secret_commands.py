"""`spacebot secret`: the same words do the same whether the program runs or not, and no value is ever shown."""

import json
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from spacebot.base.errors import RefusedError
from spacebot.cli.secret import PASSPHRASE_VARIABLE
from spacebot.storage.keyring import open_keyring
from spacebot.storage.secrets import SecretStore
from tests.cli.conftest import ROOT, Instance
from tests.cli.test_commands import HEAVY, loaded_by

VALUE = "correct-horse-battery-staple"
PASSPHRASE = "a phrase that is long enough"
CONFIG = '[llm]\nanthropic_key = "secret:MY_KEY"\n'


@pytest.fixture(params=["closed", "running"])
def door(request: pytest.FixtureRequest, instance: Instance) -> Instance:
    """An instance that does not run, and one that does; its configuration names a secret that is not there."""
    configured(instance)
    if request.param == "running":
        assert instance.run("start").returncode == 0
    return instance


def configured(instance: Instance) -> Instance:
    instance.root.mkdir(exist_ok=True)
    (instance.root / "config.toml").write_text(CONFIG)
    return instance


def is_running(instance: Instance) -> bool:
    return instance.run("status").returncode == 0


def secret(instance: Instance, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    done = instance.run("secret", *words, text=text)
    assert "Traceback" not in done.stderr
    assert VALUE not in done.stdout + done.stderr
    return done


def names(instance: Instance) -> dict[str, str]:
    listed = json.loads(secret(instance, "list", "--json").stdout)
    return {entry["name"]: entry["category"] for entry in listed["secrets"]}


def warnings(instance: Instance) -> list[str]:
    """What the owner is told of the configuration: by the running program, or by a look at the file."""
    if is_running(instance):
        found: list[str] = json.loads(instance.run("status", "--json").stdout)["warnings"]
        return found
    return instance.run("config", "check").stderr.splitlines()


def written(instance: Instance) -> str:
    """Everything in the instance directory."""
    files = (path for path in instance.root.rglob("*") if path.is_file())
    return "".join(path.read_bytes().decode("latin-1") for path in files)


def test_a_secret_is_stored_used_changed_and_removed(door: Instance) -> None:
    assert any("the secret store has no MY_KEY" in warning for warning in warnings(door))

    done = secret(door, "set", "my_key", text=f"{VALUE}\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "MY_KEY is stored (system: no command gets it); in the configuration: secret:MY_KEY\n"
    assert not any("MY_KEY" in warning for warning in warnings(door))

    assert "MY_KEY is changed" in secret(door, "set", "MY_KEY", text="another value").stdout
    assert "variable" in secret(door, "set", "--tool", "DEPLOY_TOKEN", text=VALUE).stdout
    assert names(door) == {"DEPLOY_TOKEN": "tool", "MY_KEY": "system"}
    assert "another" not in secret(door, "list").stdout

    done = secret(door, "rm", "MY_KEY")
    assert done.stdout == "MY_KEY is removed\n"
    assert ("the secret store has no MY_KEY" in done.stderr) == is_running(door)
    assert any("the secret store has no MY_KEY" in warning for warning in warnings(door))
    assert names(door) == {"DEPLOY_TOKEN": "tool"}
    assert VALUE not in written(door)


def test_all_is_encrypted_with_a_new_key(door: Instance) -> None:
    secret(door, "set", "MY_KEY", text=VALUE)
    before = (door.root / "secret.key").read_text()
    assert secret(door, "rotate").stdout == "1 secret is encrypted with a new key\n"
    assert (door.root / "secret.key").read_text() != before
    assert SecretStore(door.root).read()["MY_KEY"].value == VALUE
    assert not any("MY_KEY" in warning for warning in warnings(door))


@pytest.mark.parametrize("text", ["", "\n", "one\ntwo\n", "x" * 3000, "a\0bcdefghij"])
def test_a_bad_value_changes_nothing(door: Instance, text: str) -> None:
    done = secret(door, "set", "MY_KEY", text=text)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the value ")
    assert not (door.root / "secrets.db").exists()


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (("set", "MY_KEY", VALUE), "does not belong into the command line"),
        (("set", "--tool", "MY_KEY", VALUE), "does not belong into the command line"),
        (("set", f"MY_KEY={VALUE}"), "a secret's name is"),
        (("set", "--tool", "PATH"), "cannot be a variable"),
        (("set", "--tool", "LD_PRELOAD"), "cannot be a variable"),
        (("rm", "MY_KEI"), "has no MY_KEI"),
        (("rotate",), "no secrets yet"),
        (("rotate", "--passphrase"), "no secrets yet"),
        (("unlock",), "needs no passphrase"),
    ],
)
def test_what_cannot_be_done_is_said(instance: Instance, words: tuple[str, ...], phrase: str) -> None:
    done = secret(configured(instance), *words, text="a value of some length")
    assert done.returncode == 1
    assert phrase in done.stderr
    assert not (instance.root / "secrets.db").exists()


def test_a_name_that_nearly_exists_is_suggested(instance: Instance) -> None:
    secret(configured(instance), "set", "MY_KEY", text=VALUE)
    assert "did you mean MY_KEY?" in secret(instance, "rm", "MY_KEI").stderr
    (instance.root / "config.toml").write_text(CONFIG.replace("MY_KEY", "MY_KEI"))
    checked = instance.run("config", "check")
    assert "llm.anthropic_key is given, but the secret store has no MY_KEI; did you mean MY_KEY?" in checked.stderr


def test_nobody_can_be_asked_without_a_terminal(instance: Instance) -> None:
    configured(instance).environ[PASSPHRASE_VARIABLE] = PASSPHRASE
    assert secret(instance, "set", "MY_KEY", text=VALUE).returncode == 0
    assert not (instance.root / "secret.key").exists()
    assert json.loads(secret(instance, "list", "--json").stdout)["key"] == "passphrase"
    for wrong in ("", "not the phrase"):
        instance.environ[PASSPHRASE_VARIABLE] = wrong
        done = alone(instance, "secret", "rotate")
        assert done.returncode == 1
        assert PASSPHRASE_VARIABLE in done.stderr
        assert "not the phrase" not in done.stderr


def alone(instance: Instance, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """A command without a terminal, whatever runs the tests."""
    return subprocess.run(
        instance.words(*words), input=text, capture_output=True, text=True, timeout=60, env=instance.environ, cwd=ROOT,
        check=False, start_new_session=True,
    )  # fmt: skip


def test_the_program_is_unlocked_while_it_runs(instance: Instance) -> None:
    configured(instance).environ[PASSPHRASE_VARIABLE] = PASSPHRASE
    secret(instance, "set", "MY_KEY", text=VALUE)
    del instance.environ[PASSPHRASE_VARIABLE]
    started = alone(instance, "start")
    assert started.returncode == 0
    assert "the secret store is locked" in started.stderr
    assert "llm.anthropic_key is given, but the secret store is locked by a passphrase; open it" in started.stderr

    instance.environ[PASSPHRASE_VARIABLE] = "not the phrase"
    assert alone(instance, "secret", "unlock").returncode == 1
    assert any("locked" in warning for warning in warnings(instance))
    instance.environ[PASSPHRASE_VARIABLE] = PASSPHRASE
    assert secret(instance, "unlock").stdout == "the secret store is open\n"
    assert warnings(instance) == []

    changed = alone(instance, "secret", "rotate", "--passphrase", text="quite another phrase\n")
    assert (changed.returncode, changed.stderr) == (0, "")
    instance.environ[PASSPHRASE_VARIABLE] = "quite another phrase"
    secret(instance, "set", "OTHER", text="another value")
    assert warnings(instance) == []  # it was told the new phrase
    assert PASSPHRASE not in written(instance)
    environment = Path(f"/proc/{instance.pid}/environ")
    if environment.exists():
        assert b"phrase" not in environment.read_bytes()


def test_a_restart_in_place_keeps_the_store_open(instance: Instance) -> None:
    configured(instance).environ[PASSPHRASE_VARIABLE] = PASSPHRASE
    secret(instance, "set", "MY_KEY", text=VALUE)
    daemon = instance.popen("start", "--foreground")
    try:
        instance.wait_until_up()
        assert warnings(instance) == []
        assert instance.run("restart").returncode == 0
        assert warnings(instance) == []
        environment = Path(f"/proc/{daemon.pid}/environ")
        assert not environment.exists() or PASSPHRASE.encode() not in environment.read_bytes()
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.communicate(timeout=15)


def test_a_damaged_store_is_told_and_does_not_keep_the_program_from_running(instance: Instance) -> None:
    secret(configured(instance), "set", "MY_KEY", text=VALUE)
    (instance.root / "secrets.db").write_bytes(b"no database " * 1000)
    assert "secrets.db" in secret(instance, "list").stderr
    started = instance.run("start")
    assert started.returncode == 0
    assert "secrets.db" in started.stderr
    done = secret(instance, "set", "MY_KEY", text=VALUE)
    assert done.returncode == 1
    assert "secrets.db" in done.stderr


def test_a_broken_configuration_does_not_undo_the_change(instance: Instance) -> None:
    configured(instance)
    assert instance.run("start").returncode == 0
    (instance.root / "config.toml").write_text("[llm\n")
    done = secret(instance, "set", "MY_KEY", text=VALUE)
    assert done.returncode == 0
    assert "warning: the running program goes on with what it had" in done.stderr
    assert names(instance) == {"MY_KEY": "system"}


def test_permissions_that_were_opened_are_mended(instance: Instance) -> None:
    secret(configured(instance), "set", "MY_KEY", text=VALUE)
    key = instance.root / "secret.key"
    key.chmod(0o640)
    done = secret(instance, "set", "OTHER", text="another value")
    assert done.returncode == 0
    assert f"warning: others could read '{key}'" in done.stderr
    assert key.stat().st_mode & 0o777 == 0o600


class Terminal:
    """A command with a terminal of its own; what is typed without echo must not come back."""

    def __init__(self, instance: Instance, *words: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            argv = instance.words(*words)
            os.execve(argv[0], argv, instance.environ)
        self.shown = ""

    def expect(self, phrase: str) -> None:
        start = len(self.shown)
        deadline = time.monotonic() + 30
        while phrase not in self.shown[start:]:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._fd], [], [], 1)[0]:
                self.shown += self._read()

    def type(self, line: str) -> None:
        os.write(self._fd, line.encode() + b"\n")

    def end(self) -> int:
        while chunk := self._read():
            self.shown += chunk
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._fd)
        return code

    def _read(self) -> str:
        try:
            return os.read(self._fd, 4096).decode(errors="replace")
        except OSError:  # the other end is closed
            return ""


def test_in_a_terminal_everything_is_asked_for_unseen(instance: Instance) -> None:
    configured(instance)
    terminal = Terminal(instance, "secret", "set", "MY_KEY")
    terminal.expect("Value of MY_KEY (not shown): ")
    terminal.type(VALUE)
    assert terminal.end() == 0
    assert VALUE not in terminal.shown

    terminal = Terminal(instance, "secret", "rotate", "--passphrase")
    terminal.expect("New passphrase: ")
    terminal.type(PASSPHRASE)
    terminal.expect("The same again: ")
    terminal.type("something else")
    assert terminal.end() == 1
    assert (instance.root / "secret.key").exists()

    terminal = Terminal(instance, "secret", "rotate", "--passphrase")
    for question in ("New passphrase: ", "The same again: "):
        terminal.expect(question)
        terminal.type(PASSPHRASE)
    assert terminal.end() == 0
    assert not (instance.root / "secret.key").exists()

    terminal = Terminal(instance, "start")
    for typed in ("a wrong phrase", PASSPHRASE):
        terminal.expect("Passphrase of the secret store: ")
        terminal.type(typed)
    assert terminal.end() == 0
    assert "that is not the passphrase" in terminal.shown
    assert PASSPHRASE not in terminal.shown
    assert warnings(instance) == []


def test_words_of_other_commands_load_nothing_of_it(instance: Instance) -> None:
    modules = loaded_by(configured(instance), "logs")
    assert not modules & {*HEAVY, "cryptography"}


def test_a_value_is_seen_in_no_process_list(instance: Instance) -> None:
    """While a command waits for its value, neither its words nor its environment have it: it comes by a pipe."""
    process = subprocess.Popen(
        configured(instance).words("secret", "set", "MY_KEY"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=instance.environ, cwd=ROOT,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(VALUE)
    process.stdin.flush()
    seen: dict[str, Any] = {
        name: path.read_bytes()
        for name in ("cmdline", "environ")
        if (path := Path(f"/proc/{process.pid}/{name}")).exists()
    }
    process.communicate(timeout=30)
    assert not any(VALUE.encode() in content for content in seen.values())
    assert names(instance) == {"MY_KEY": "system"}


def test_the_keyring_keeps_the_passphrase_until_it_is_locked(instance: Instance) -> None:
    try:
        ring = open_keyring()
    except RefusedError as error:
        pytest.skip(str(error))
    try:
        configured(instance).environ[PASSPHRASE_VARIABLE] = PASSPHRASE
        secret(instance, "set", "MY_KEY", text=VALUE)
        assert "until this machine is restarted" in secret(instance, "unlock", "--remember").stdout
        del instance.environ[PASSPHRASE_VARIABLE]

        started = alone(instance, "start")
        assert (started.returncode, "locked" in started.stderr) == (0, False)
        assert "secrets:   1 system; unlocked (key: passphrase)" in instance.run("status").stdout
        changed = alone(instance, "secret", "rotate", "--passphrase", text="quite another phrase\n")
        assert (changed.returncode, changed.stderr) == (0, "")
        assert ring.recall(instance.root) == "quite another phrase"

        assert "has forgotten" in secret(instance, "lock").stdout
        assert alone(instance, "secret", "rotate").returncode == 1
        assert ring.recall(instance.root) is None
    finally:
        ring.forget(instance.root)
