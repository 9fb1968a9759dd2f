"""Ways out of the workspace: through names, through links, through a swap in the middle. None leads anywhere."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.llm.messages import ProcessKind
from tests.attacks.stage import Act, play
from tests.fakes.opened import Opened
from tests.fakes.scripted_model import Call

INSIDE = "the words of another agent's diary"
LONG = "a/" * 2500 + "x"

# What is written where a path belongs; `{root}` is the instance, `{work}` the workspace.
NAMES = {
    "parent": "../../../config.toml",
    "parent behind a folder that is missing": "missing/../../outside.txt",
    "parent behind a folder": "folder/../../data/spacebot.db",
    "parent alone": "..",
    "parent with a slash at the end": "folder/../../",
    "parent through an absolute path": "{work}/../data/spacebot.db",
    "absolute": "/etc/passwd",
    "absolute with two slashes": "//etc/passwd",
    "absolute configuration": "{root}/config.toml",
    "absolute key": "{root}/secret.key",
    "identity of the agent": "{root}/agents/main/SOUL.md",
    "database of the agent": "{root}/agents/main/data/spacebot.db",
    "another agent": "{root}/agents/other/workspace/diary.txt",
    "sibling with the same beginning": "{work}-evil/diary.txt",
    "home": "/root/.ssh/id_rsa",
    "process root": "/proc/self/root/etc/passwd",
    "process folder": "/proc/self/cwd/pyproject.toml",
    "environment of the program": "/proc/self/environ",
    "memory of the program": "/proc/self/mem",
    "open files of the program": "/proc/self/fd/0",
    "open files by their device": "/dev/fd/0",
    "device": "/dev/zero",
    "system folder": "/sys/kernel/notes",
    "link to a file": "link.txt",
    "link to a folder": "linked/diary.txt",
    "link to the root": "slash/etc/passwd",
    "link to a link": "chain/diary.txt",
    "link to the process": "self/environ",
    "link into the data": "database",
    "dangling link": "dangling",
    "loop of links": "loop/x",
    "NUL in the middle": "folder\0/../../x",
    "NUL at the end": "/etc/passwd\0.txt",
    "too long": LONG,
    "one name too long": "n" * 300,
    "letters that look like dots": "\N{ONE DOT LEADER}\N{ONE DOT LEADER}/\N{TWO DOT LEADER}/config.toml",
    "letters that look like a slash": "..\N{FULLWIDTH SOLIDUS}..\N{DIVISION SLASH}config.toml",
    "backslashes": "..\\..\\..\\config.toml",
    "drive": "C:\\Windows\\win.ini",
    "coded dots": "%2e%2e/%2e%2e/config.toml",
    "tilde": "~/.ssh/id_rsa",
    "tilde of somebody": "~root/.bashrc",
    "variable": "$HOME/../../../config.toml",
    "address": "file:///etc/passwd",
    "other case": "{work_upper}/../DATA/spacebot.db",
    "dots at the end": ".../.../config.toml",
    "blank at the end": "../ /config.toml",
    "half of a character": "\udcff/../config.toml",
    "named pipe": "pipe",
    "socket": "socket",
}
# Nothing lies there, and a name that cannot exist outside is not made inside either.
HARMLESS = {
    "letters that look like dots", "letters that look like a slash", "backslashes", "drive", "coded dots", "tilde",
    "tilde of somebody", "address", "dots at the end", "one name too long", "named pipe", "socket",
}  # fmt: skip
OPERATIONS: dict[str, dict[str, Any]] = {
    "read": {},
    "write": {"content": "stolen"},
    "edit": {"old_string": "words", "new_string": "stolen"},
    "list": {},
    "search": {"pattern": "diary|root|key", "regex": True},
}


def furnish(workspace: Path) -> None:
    """What the attacks aim at, and the traps that a command could have laid before."""
    root = workspace.parents[2]
    other = root / "agents/other/workspace"
    other.mkdir(parents=True)
    (other / "diary.txt").write_text(INSIDE)
    sibling = workspace.with_name(workspace.name + "-evil")
    sibling.mkdir()
    (sibling / "diary.txt").write_text(INSIDE)
    (root / "config.toml").write_text(f"# {INSIDE}")
    (root / "secret.key").write_text(INSIDE)
    (workspace / "folder").mkdir()
    for name, target in {
        "link.txt": other / "diary.txt",
        "linked": other,
        "slash": Path("/"),
        "chain": Path("linked"),
        "self": Path("/proc/self"),
        "database": root / "agents/main/data/spacebot.db",
        "dangling": root / "made-by-attack.txt",
        "loop": Path("loop"),
    }.items():
        (workspace / name).symlink_to(target)
    os.mkfifo(workspace / "pipe")
    import socket

    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(workspace, os.O_RDONLY)
        try:
            listening.bind(f"/proc/self/fd/{here}/socket")
        finally:
            os.close(here)


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> Act:
    folder = tmp_path_factory.mktemp("paths") / "inst"
    work = folder / "agents/main/workspace"
    calls = {}
    for name, text in NAMES.items():
        path = text.replace("{root}", str(folder)).replace("{work}", str(work))
        path = path.replace("{work_upper}", str(work).upper())
        for operation, fields in OPERATIONS.items():
            calls[f"{name}: {operation}"] = Call("file", operation=operation, path=path, **fields)
        calls[f"{name}: shell"] = Call("shell", command="cat diary.txt passwd; pwd", working_dir=path)
    return play(folder, calls, prepare=furnish)


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out(name: str, act: Act) -> None:
    for way in (*OPERATIONS, "shell"):
        played = act.played[f"{name}: {way}"]
        assert INSIDE not in played.text, (way, played)
        assert "root:x:0" not in played.text, (way, played)
        if name not in HARMLESS:
            assert played.is_error, (way, played)
            assert "call denied" in "".join(played.log) or "is not a folder" in played.text, (way, played)
        elif played.is_error:
            assert played.text


def test_nothing_outside_was_made_or_changed(act: Act) -> None:
    assert (act.folder / "config.toml").read_text() == f"# {INSIDE}"
    assert (act.folder / "agents/other/workspace/diary.txt").read_text() == INSIDE
    assert not (act.folder / "made-by-attack.txt").exists()
    stray = [path for path in act.folder.parent.rglob("*") if path.is_file() and path.read_bytes()[:6] == b"stolen"]
    assert all((act.folder / "agents/main/workspace") in path.parents for path in stray)


def test_nothing_of_it_is_in_the_log_or_the_database(act: Act) -> None:
    assert INSIDE not in act.everything


# Swaps in the middle


@contextmanager
def swapping(workspace: Path, target: Path) -> Iterator[None]:
    """A thread that turns `door` from a folder into a link and back, as quickly as it can, until the block ends."""
    door, aside, stop = workspace / "door", workspace / "aside", threading.Event()
    trap = workspace / "trap"
    trap.symlink_to(target)

    def swap() -> None:
        while not stop.is_set():
            os.rename(door, aside)
            os.rename(trap, door)
            os.rename(door, trap)
            os.rename(aside, door)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


ROUNDS = 10
RACES: dict[str, dict[str, Any]] = {
    "read": {"operation": "read", "path": "door/diary.txt"},
    "write": {"operation": "write", "path": "door/diary.txt", "content": "stolen", "create_dirs": False},
    "edit": {"operation": "edit", "path": "door/diary.txt", "old_string": "words", "new_string": "stolen"},
    "list": {"operation": "list", "path": "door"},
    "search by name": {"operation": "search", "path": "door", "glob": "*"},
}


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Act:
    folder = tmp_path_factory.mktemp("race") / "inst"
    other = folder / "agents/other/workspace"
    ready = trio.Event()

    def prepare(workspace: Path) -> None:
        other.mkdir(parents=True)
        (other / "diary.txt").write_text(INSIDE)
        (other / "only-there.txt").write_text(INSIDE)
        (workspace / "door").mkdir()

    async def during(opened: Opened) -> None:
        with swapping(folder / "agents/main/workspace", other):
            ready.set()
            await trio.sleep_forever()

    calls = {
        f"{name} {n}": Call("file", **fields, limit=1000 + n)
        for n in range(ROUNDS)
        for name, fields in RACES.items()
    }  # fmt: skip
    return play(folder, calls, prepare=prepare, during=during)


@pytest.mark.parametrize("name", RACES)
def test_no_swap_in_the_middle_leads_out(name: str, race: Act) -> None:
    for n in range(ROUNDS):
        played = race.played[f"{name} {n}"]
        assert INSIDE not in played.text
        assert "only-there" not in played.text
    assert (race.folder / "agents/other/workspace/diary.txt").read_text() == INSIDE


# Files by the way to people


FILES = {
    "parent": "../data/spacebot.db",
    "absolute": "/etc/passwd",
    "key": "{root}/secret.key",
    "identity": "{root}/agents/main/SOUL.md",
    "link": "link.txt",
    "folder through a link": "linked/diary.txt",
    "process": "/proc/self/environ",
    "device": "/dev/zero",
    "pipe": "pipe",
    "NUL": "x\0y",
    "sibling": "{work}-evil/diary.txt",
}


@pytest.fixture(scope="module")
def posted(tmp_path_factory: pytest.TempPathFactory) -> Act:
    folder = tmp_path_factory.mktemp("posted") / "inst"
    work = folder / "agents/main/workspace"
    calls = {
        name: Call("send_file", file_path=text.replace("{root}", str(folder)).replace("{work}", str(work)))
        for name, text in FILES.items()
    }
    return play(folder, calls, by=ProcessKind.CHANNEL, prepare=furnish)


@pytest.mark.parametrize("name", FILES)
def test_no_file_from_outside_is_sent(name: str, posted: Act) -> None:
    played = posted.played[name]
    assert played.is_error
    assert name == "pipe" or any(line.startswith("call denied") for line in played.log), played
    assert posted.said == []
