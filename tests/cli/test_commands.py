"""What the commands print, and what they load."""

import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from spacebot import __version__
from spacebot.cli import main as cli
from spacebot.cli.groups import GROUPS
from spacebot.cli.top import format_table, in_order
from tests.cli.conftest import ROOT, Instance

HEAVY = ("trio", "pydantic", "httpx2", "sqlite3", "asyncio", "ssl", "spacebot.app", "spacebot.config.model")


def loaded_by(instance: Instance, *words: str) -> set[str]:
    """Names of all modules that a command has loaded by its end."""
    code = (
        "import sys; from spacebot.cli.main import main; code = main(sys.argv[1:])\n"
        "print('MODULES', *sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=instance.environ, cwd=ROOT, check=True
    )
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("top",),
        ("stop",),
        ("chat", "hi"),
        ("logs",),
        ("why", "x"),
        ("prompts", "reload"),
        ("top", "--json"),
    ],
    ids=" ".join,
)
def test_a_command_that_talks_to_the_daemon_loads_nothing_heavy(instance: Instance, words: tuple[str, ...]) -> None:
    modules = loaded_by(instance, *words)

    assert not modules & set(HEAVY)
    assert len(modules) < 160


def test_version_and_help_load_next_to_nothing(instance: Instance) -> None:
    for word in ("--version", "--help"):
        modules = loaded_by(instance, word)
        assert not modules & {"argparse", "json", "socket", "dataclasses", *HEAVY}


def test_version_and_help_speak_to_stdout(instance: Instance) -> None:
    assert instance.run("--version").stdout == f"spacebot {__version__}\n"
    assert instance.run("--help").stdout == cli.HELP
    assert "--foreground" in instance.run("start", "--help").stdout


def test_every_command_stands_in_the_help() -> None:
    parser = cli._parser([group.name for group in GROUPS])
    choices = next(a.choices for a in parser._actions if a.choices)
    for name in choices:
        assert re.search(rf"^  {name} ", cli.HELP, re.MULTILINE), name


@pytest.mark.parametrize("words", [("strat",), ("status", "--jsn"), ("config",), ("logs", "-n", "x")], ids=" ".join)
def test_wrong_words_end_with_2(instance: Instance, words: tuple[str, ...]) -> None:
    done = instance.run(*words)

    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: spacebot" in done.stderr


@pytest.mark.parametrize(
    "words", [("status",), ("top",), ("chat", "x"), ("why", "x"), ("prompts", "reload")], ids=" ".join
)
def test_without_a_daemon_a_command_says_so(instance: Instance, words: tuple[str, ...]) -> None:
    done = instance.run(*words)

    assert (done.returncode, done.stdout) == (1, "")
    assert f"spacebot is not running in {instance.root}" in done.stderr


def test_status_for_people_and_for_programs(instance: Instance) -> None:
    assert json.loads(instance.run("status", "--json").stdout) == {"running": False, "instance": str(instance.root)}
    instance.run("start")
    text = instance.run("status").stdout
    status = json.loads(instance.run("status", "--json").stdout)

    assert re.match(rf"spacebot {__version__} is running \(pid {instance.pid}, 0h 0m \d+s\)", text)
    assert (status["running"], status["responding"], status["pid"]) == (True, True, instance.pid)


def test_chat_answers_a_message_and_the_lines_of_a_pipe(instance: Instance) -> None:
    instance.run("start")

    assert instance.run("chat", "hello", "you").stdout == "you said: hello you\n"
    assert instance.run("chat", text="one\n\ntwo\n").stdout == "you said: one\nyou said: two\n"
    assert instance.run("chat", "--agent", "nobody", "x").returncode == 1


def test_a_question_survives_the_restart_of_the_daemon(instance: Instance) -> None:
    instance.run("start")
    with instance.popen("chat", "slow question") as question:
        instance.wait_for(lambda: _accepted(instance), "the question")
        instance.kill()
        instance.wait_for(lambda: instance.run("start").returncode == 0, "a new daemon")
        out, err = question.communicate(timeout=30)

    assert (out, question.returncode) == ("you said: slow question\n", 0), err


def _accepted(instance: Instance) -> bool:
    with closing(sqlite3.connect(instance.root / "main.db")) as database:
        return bool(database.execute("SELECT count(*) FROM ledger").fetchone()[0])


def test_why_tells_the_fate_of_a_message(instance: Instance) -> None:
    instance.run("start")
    instance.run("chat", "hello")
    with closing(sqlite3.connect(instance.root / "main.db")) as database:
        (message_id,) = database.execute("SELECT message_id FROM ledger").fetchone()
    text = instance.run("why", message_id).stdout
    fate = json.loads(instance.run("why", "--json", message_id).stdout)

    assert "state    answered" in text
    assert "you said: hello" in text
    assert fate["replies"][0]["content"] == "you said: hello"
    assert "no agent's log has" in instance.run("why", "unknown").stderr


def test_top_prints_once_without_a_terminal_and_cancels(instance: Instance) -> None:
    instance.run("start")
    text = instance.run("top").stdout

    assert text.startswith("KIND  ID  STATE  AGE  QUIET  CALLS  TOKENS  WHAT")
    assert json.loads(instance.run("top", "--json").stdout)["nodes"] == []
    assert "nothing with the id" in instance.run("top", "--cancel", "unknown").stderr


def test_the_tree_is_shown_with_parents_first_and_no_control_characters() -> None:
    common = {"state": "running", "status": "", "age_s": 61, "idle_s": 1, "model_calls": 0, "input_tokens": 1}
    common |= {"output_tokens": 2}
    nodes = [
        {"id": "b", "parent_id": "a", "kind": "worker", "description": "evil\x1b[2J", **common},
        {"id": "c", "parent_id": "gone", "kind": "turn", "description": "orphan", **common},
        {"id": "a", "parent_id": None, "kind": "channel", "description": "room", **common},
    ]
    ordered = list(in_order(nodes))

    assert [(node["id"], depth) for node, depth in ordered] == [("c", 0), ("a", 0), ("b", 1)]
    assert all("\x1b" not in line for line in format_table(ordered))


def test_top_in_a_terminal_refreshes_moves_and_quits(instance: Instance) -> None:
    instance.run("start")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, instance.words("top"), instance.environ | {"TERM": "xterm"})
    seen = _read_until(terminal, b"spacebot top:")
    os.write(terminal, b"\x1b[B\x1b[Ajkc")
    seen += _read_until(terminal, b"spacebot top:")
    os.write(terminal, b"q")
    seen += _read_until(terminal, b"\x1b[?1049l")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)


def test_chat_in_a_terminal_shows_answers_as_they_come_and_ends_with_control_d(instance: Instance) -> None:
    instance.run("start")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, instance.words("chat"), instance.environ | {"TERM": "xterm"})
    _read_until(terminal, b"> ")
    os.write(terminal, b"first\r")
    _read_until(terminal, b"you said: first")
    os.write(terminal, b"second\r")
    _read_until(terminal, b"you said: second")
    os.write(terminal, b"\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)


def test_control_c_is_quiet(instance: Instance) -> None:
    instance.run("start")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, instance.words("chat"), instance.environ | {"TERM": "xterm"})
    seen = _read_until(terminal, b"> ")
    ended, status, deadline = 0, 0, time.monotonic() + 15
    while not ended:  # the interpreter may miss one that comes just before it waits for a key; a person presses again
        assert time.monotonic() < deadline, seen
        os.write(terminal, b"\x03")
        select.select([terminal], [], [], 0.3)
        ended, status = os.waitpid(pid, os.WNOHANG)
    # A second one may meet the interpreter on its way out; a shell shows both as 130.
    assert os.waitstatus_to_exitcode(status) in (130, -signal.SIGINT)
    assert b"Traceback" not in seen
    os.close(terminal)


def _read_until(terminal: int, wanted: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + 15
    while wanted not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                seen += os.read(terminal, 4096)
            except OSError:
                break
    assert wanted in seen
    return seen


def test_logs_print_the_end_and_follow_into_the_next_file(instance: Instance) -> None:
    assert "there is no log yet" in instance.run("logs").stderr
    log = instance.paths.logs / "spacebot.log"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {i}\n" for i in range(5000)))

    assert instance.run("logs", "-n", "2").stdout == "line 4998\nline 4999\n"
    assert instance.run("logs", "-n", "0").stdout == ""
    assert len(instance.run("logs", "-n", "9999").stdout.splitlines()) == 5000
    follower = instance.popen("logs", "-n", "1", "-f")
    assert follower.stdout is not None
    assert follower.stdout.readline() == "line 4999\n"
    with log.open("a") as file:
        file.write("late\n")
    assert follower.stdout.readline() == "late\n"
    log.rename(log.with_name("spacebot.log.old"))
    log.write_text("new day\n")
    assert follower.stdout.readline() == "new day\n"
    follower.send_signal(2)
    follower.communicate(timeout=10)
    assert follower.returncode == 130


def test_config_check_shows_what_is_in_effect_or_all_that_is_wrong(instance: Instance, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('[llm]\ngroq_key = "long-enough-key"\nunknown = 1\n')
    good = instance.run("config", "check", "-c", str(file))
    file.write_text('[defaults.routing]\nchannel = "nobody/model"\n')
    useless = instance.run("config", "check", "-c", str(file))
    file.write_text("[api]\nport = -1\nenabled = 'perhaps'\n")
    bad = instance.run("-c", str(file), "config", "check")

    assert good.returncode == 0
    assert "providers: groq" in good.stdout
    assert "unknown key 'llm.unknown'" in good.stderr
    assert "model:     groq/" in good.stdout
    assert useless.returncode == 1
    assert "needs the provider 'nobody'" in useless.stderr
    assert (bad.returncode, bad.stdout) == (1, "")
    assert "api.port = -1: must be at least 0" in bad.stderr
    assert "api.enabled = 'perhaps': must be true or false" in bad.stderr


def test_prompts_reload_names_what_changed(instance: Instance) -> None:
    instance.run("start")

    assert instance.run("prompts", "reload").stdout == "CHANNEL.md\n"
