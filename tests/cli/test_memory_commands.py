"""`spacebot memory`: the same words do the same whether the program runs or not."""

import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spacebot.cli import main as cli
from spacebot.cli.liveness import hold_instance, lock_holder
from tests.cli.conftest import Instance

UNKNOWN = "123e4567-e89b-42d3-a456-426614174000"
EVIL = "x' OR 1=1; DROP TABLE memories; -- \" NEAR(a b) content:* {ls} \x1b[2J\u202e 😀"


@pytest.fixture(params=["closed", "running"])
def door(request: pytest.FixtureRequest, instance: Instance) -> Instance:
    """An instance that does not run, and one that does."""
    if request.param == "running":
        assert instance.run("start").returncode == 0
    return instance


@pytest.fixture
def running(instance: Instance) -> Instance:
    """An instance that runs: there a command loads next to nothing."""
    assert instance.run("start").returncode == 0
    return instance


@pytest.fixture(scope="module")
def with_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """An instance that runs and has something to refuse."""
    made = Instance(tmp_path_factory.mktemp("refusals") / "instance")
    assert made.run("start").returncode == 0
    made.run("memory", "add", "one thing")
    yield made
    made.kill()


def wait_long(condition: Callable[[], object]) -> None:
    """Wait for a process that embeds, which takes its time on a busy machine."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ask(instance: Instance, *words: str, text: str = "") -> Any:
    """A command's answer as JSON."""
    done = instance.run("memory", *words, "--json", text=text, timeout_s=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(instance: Instance, *words: str, text: str = "") -> str:
    """What a command that fails says."""
    done = instance.run("memory", *words, text=text, timeout_s=120)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert any(line.startswith("error: ") for line in done.stderr.splitlines())
    assert "Traceback" not in done.stderr
    return done.stderr


def line(content: str, **fields: Any) -> str:
    return json.dumps({"content": content, **fields}) + "\n"


def test_a_memory_is_added_found_shown_and_forgotten(door: Instance) -> None:
    saved = ask(door, "add", "Ann", "likes green tea", "--type", "preference", "--user", "webchat:terminal:ann")
    found = ask(door, "search", "green", "tea")["memories"]
    assert [memory["id"] for memory in found] == [saved["memory"]["id"]]
    assert saved["memory"]["subject"] == "webchat:terminal:ann"

    text = door.run("memory", "search", "tea").stdout
    assert found[0]["id"][:8] in text
    assert "words" in text
    assert all(len(part) <= 80 for part in text.splitlines())

    shown = door.run("memory", "show", found[0]["id"][:6]).stdout
    assert found[0]["id"] in shown
    assert "Ann likes green tea" in shown
    assert ask(door, "stats")["counts_by_type"]["preference"] == 1
    listed = door.run("memory", "stats").stdout.splitlines()
    assert "preference             1" in listed
    assert "engine             exact" in listed

    ask(door, "forget", found[0]["id"][:8], "--reason", "she changed her mind")
    assert ask(door, "search", "tea")["memories"] == []
    assert "she changed her mind" in door.run("memory", "show", found[0]["id"]).stdout
    assert "forgotten before" in refused(door, "forget", found[0]["id"])


def test_what_is_exported_comes_back_to_the_byte(running: Instance, tmp_path: Path) -> None:
    given = tmp_path / "given.jsonl"
    ids = [UNKNOWN, UNKNOWN[:-1] + "1"]
    edge = {"id": UNKNOWN[:-1] + "9", "source_id": ids[1], "target_id": ids[0], "relation_type": "updates"}
    given.write_text(
        line("The café is 😀 \u202e open", id=ids[0], importance=0.123456789012345, created_at="2020-02-29T01:02:03Z")
        + line("It is closed", id=ids[1], is_private=True, owner="x:y", channel_id="x:1", forgotten=True)
        + json.dumps(edge) + "\n"
    )  # fmt: skip
    assert ask(running, "import", str(given))["memories"] == 2
    first, again = tmp_path / "first.jsonl", tmp_path / "again.jsonl"
    assert ask(running, "export", str(first), "--private") == {"memories": 2, "associations": 1, "left_out": 0}
    assert ask(running, "import", str(first)) | {"known": 2, "memories": 0, "associations": 0} == ask(
        running, "import", "-", text=first.read_text()
    )
    assert running.run("memory", "export", str(again), "--private").returncode == 0
    assert first.read_bytes() == again.read_bytes()
    assert first.stat().st_mode & 0o077 == 0

    public = running.run("memory", "export")
    assert len(public.stdout.splitlines()) == 2
    assert "left out: 1 private" in public.stderr


def test_a_file_that_is_not_right_changes_nothing(door: Instance, tmp_path: Path) -> None:
    wrong = refused(door, "import", "-", text=line("good") + line("bad", memory_type="fakt") + '{"content": "cut')
    assert "line 2: memory_type" in wrong
    assert "line 3" in wrong
    assert "was it cut off?" in wrong
    assert "nothing was imported" in wrong
    assert "cannot read" in refused(door, "import", str(tmp_path / "none.jsonl"))
    assert "cannot read" in refused(door, "import", str(tmp_path))
    door.run("memory", "add", "one thing")
    assert ask(door, "stats")["total"] == 1


def test_an_export_does_not_write_over_files_nor_leave_halves(running: Instance, tmp_path: Path) -> None:
    running.run("memory", "add", "one thing")
    target = tmp_path / "there.jsonl"
    target.write_text("mine")
    assert "--force" in refused(running, "export", str(target))
    assert target.read_text() == "mine"
    assert "cannot write" in refused(running, "export", str(tmp_path / "no" / "where"))
    assert "No space left" in refused(running, "export", "/dev/full", "--force")
    assert Path("/dev/full").is_char_device()
    assert running.run("memory", "export", str(target), "--force").returncode == 0
    assert "one thing" in target.read_text()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["there.jsonl"]


def test_nothing_in_an_argument_is_an_order(running: Instance) -> None:
    running.run("memory", "add", "a harmless memory")
    assert ask(running, "search", EVIL)["memories"] is not None
    assert ask(running, "search", "--mode", "recent", EVIL)["memories"]
    for words in (["show", EVIL], ["forget", EVIL], ["show", "%%%%"], ["show", "____"], ["show", "12"]):
        assert "no memory id" in refused(running, *words)
    assert "there is no memory" in refused(running, "show", UNKNOWN)
    assert "there is no agent" in refused(running, "stats", "--agent", EVIL)
    assert "PLATFORM:USER" in refused(running, "forget", "--person", "nobody", "--yes")
    assert ask(running, "forget", "--person", f"webchat:{EVIL}", "--yes")["memories"] == 0
    saved = ask(running, "add", EVIL, "--user", f"webchat:{EVIL}")
    shown = running.run("memory", "show", saved["memory"]["id"]).stdout
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    ask(running, "forget", saved["memory"]["id"], "--reason", EVIL)
    assert ask(running, "stats")["total"] == 1


def test_an_ambiguous_beginning_is_explained(running: Instance) -> None:
    ask(running, "import", "-", text=line("one", id=UNKNOWN) + line("two", id=UNKNOWN[:-1] + "1"))
    said = refused(running, "show", "123e4567")
    assert "several memories begin with '123e4567'" in said
    assert UNKNOWN in said
    assert "two" in said


def test_everything_about_a_person_is_erased_only_after_a_yes(door: Instance) -> None:
    door.run("memory", "add", "Ann likes tea", "--user", "webchat:terminal:ann")
    assert "--yes" in refused(door, "forget", "--person", "webchat:terminal:ann").splitlines()[-1]
    assert ask(door, "stats")["total"] == 1
    done = door.run("memory", "forget", "--person", "webchat:terminal:ann", "--yes", timeout_s=120)
    assert done.stdout.startswith("erased 1 memories")
    assert ask(door, "stats")["total"] == 0


def test_upkeep_says_what_it_did(running: Instance) -> None:
    running.run("memory", "add", "one thing")
    assert "this would be done" in running.run("memory", "maintain", "--dry-run", timeout_s=120).stdout
    assert ask(running, "maintain")["scored"] == 1
    assert ask(running, "rebuild")["rows"] == 1


@pytest.mark.parametrize(
    "words",
    [("memory",), ("memory", "serch"), ("memory", "search", "x", "--type", "fakt"), ("memory", "add"),
     ("memory", "search", "x", "--limit", "many"), ("memory", "import")],
    ids=" ".join,
)  # fmt: skip
def test_wrong_words_end_with_2(instance: Instance, words: tuple[str, ...]) -> None:
    done = instance.run(*words)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    "words",
    [("search",), ("search", "x", "--limit", "0"), ("add", " "), ("add", "x", "--importance", "2"),
     ("add", "x", "--importance", "nan"), ("add", "x" * 50_001), ("forget",), ("forget", UNKNOWN, "--person", "a:b")],
    ids=lambda words: " ".join(words)[:40],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_a_reason(with_memory: Instance, words: tuple[str, ...]) -> None:
    assert len(refused(with_memory, *words)) > 20


def test_a_memory_of_one_byte_and_of_the_greatest_length_come_and_go(instance: Instance) -> None:
    ask(instance, "import", "-", text=line("x") + line("é" * 25_000))
    out = instance.run("memory", "export").stdout.splitlines()
    assert [len(json.loads(one)["content"].encode()) for one in out[1:]] == [1, 50_000]
    assert "longer than 50000 bytes" in refused(instance, "import", "-", text=line("é" * 25_001))


def test_an_agent_without_memories_is_told_of_and_not_made(instance: Instance) -> None:
    assert "no memories yet" in refused(instance, "stats")
    assert not instance.root.exists()


def test_two_never_open_one_store(instance: Instance) -> None:
    """While a command has the store, the program does not start; and a program that does not answer keeps it."""
    instance.run("memory", "add", "one thing")
    with hold_instance(instance.paths, is_background=False):  # as a command does that has the store open
        assert "already running" in instance.run("start").stderr
        assert "already running" in refused(instance, "stats")
    assert instance.run("start").returncode == 0
    os.kill(instance.pid, signal.SIGSTOP)
    try:
        instance.paths.socket.unlink()
        assert "already running" in refused(instance, "stats")
    finally:
        os.kill(instance.pid, signal.SIGCONT)


def test_an_import_that_was_killed_goes_on(instance: Instance, tmp_path: Path) -> None:
    instance.run("memory", "add", "one thing")
    file = tmp_path / "many.jsonl"
    file.write_text("".join(line(f"memory number {n}", created_at="2021-05-05T05:05:05Z") for n in range(1500)))
    database = instance.paths.agent("main").database

    def count() -> int:
        with closing(sqlite3.connect(database, timeout=30)) as c:
            return int(c.execute("SELECT count(*) FROM memories").fetchone()[0])

    with instance.popen("memory", "import", str(file)) as first:
        wait_long(lambda: count() > 1 or first.poll() is not None)
        first.kill()
        first.communicate(timeout=120)
    before = count()
    with instance.popen("memory", "import", str(file)) as second:  # Ctrl-C is no harm either
        wait_long(lambda: count() > before or second.poll() is not None)
        second.send_signal(signal.SIGINT)
        _, said = second.communicate(timeout=120)
    if second.returncode != 0:
        assert second.returncode == 130
        assert "run the same command again to go on" in said
    report = ask(instance, "import", str(file))
    assert report["memories"] + report["known"] == 1500
    assert report["known"] >= before - 1
    assert count() == 1501


def test_the_end_of_the_daemon_during_an_import_is_told(instance: Instance, tmp_path: Path) -> None:
    instance.run("start")
    file = tmp_path / "many.jsonl"
    file.write_text("".join(line(f"memory number {n}") for n in range(20_000)))
    with instance.popen("memory", "import", str(file)) as command:
        with closing(sqlite3.connect(instance.root / "main.db", timeout=30)) as c:
            sql = "SELECT count(*) FROM memories"
            wait_long(lambda: c.execute(sql).fetchone()[0] > 0 or command.poll() is not None)
        instance.kill()
        _, said = command.communicate(timeout=120)
    assert command.returncode == 1
    assert "run the same command again to go on" in said


def test_an_upload_that_breaks_off_changes_nothing(instance: Instance) -> None:
    instance.run("start")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(instance.paths.socket))
        client.sendall(json.dumps({"command": "memory_import", "size": 1000}).encode() + b"\n" + line("half").encode())
        client.shutdown(socket.SHUT_WR)
        assert b"nothing was done" in client.recv(65536)
    for size in (-1, 1 << 60, "x", None, True, 1e3):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(instance.paths.socket))
            client.sendall(json.dumps({"command": "memory_import", "size": size}).encode() + b"\n")
            assert b"error" in client.recv(65536)
    assert ask(instance, "stats")["total"] == 0


def test_a_reader_that_leaves_ends_an_export(instance: Instance) -> None:
    ask(instance, "import", "-", text="".join(line(f"{n} " + "long " * 2000) for n in range(30)))
    words = " ".join([*instance.words("memory", "export"), "| head -c 100"])
    done = subprocess.run(
        ["bash", "-c", words], capture_output=True, text=True, env=instance.environ, timeout=120, check=False
    )
    assert len(done.stdout) == 100
    assert "Traceback" not in done.stderr
    assert lock_holder(instance.paths) is None


def test_the_commands_of_the_readme_are_right() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^spacebot (memory .*)$", readme, re.MULTILINE)
    assert len(lines) >= 6
    for words in lines:
        assert cli._parse(shlex.split(words, comments=True)).memory_command
