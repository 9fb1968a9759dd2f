"""The live snapshot and the watch over the files."""

import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from spacebot.base.errors import ConfigError
from spacebot.base.paths import InstancePaths
from spacebot.config.store import ConfigStore, FileChange, FileKind, ReloadReport, open_watcher


@pytest.fixture
def paths(tmp_path: Path) -> InstancePaths:
    return InstancePaths(tmp_path, tmp_path / "config.toml")


def test_a_reload_changes_what_readers_see_and_tells_listeners(paths: InstancePaths) -> None:
    store = ConfigStore.open(paths.config)
    reports: list[ReloadReport] = []
    store.listen(reports.append)
    paths.config.write_text("[defaults]\nmax_turns = 9\n")

    report = store.reload()

    assert store.current.default_agent.max_turns == 9
    assert report.changed
    assert reports == [report]
    assert not store.reload().changed
    assert reports == [report]


@pytest.mark.spec("CA-8")
def test_a_broken_file_leaves_the_old_values(paths: InstancePaths) -> None:
    paths.config.write_text("[defaults]\nmax_turns = 9\n")
    store = ConfigStore.open(paths.config)
    paths.config.write_text("[defaults]\nmax_turns = \n")

    report = store.reload()

    assert report.error is not None
    assert "line 2" in report.error
    assert store.current.default_agent.max_turns == 9
    with pytest.raises(ConfigError):
        ConfigStore.open(paths.config)


def test_what_needs_a_restart_is_named_until_it_is_taken_back(paths: InstancePaths) -> None:
    store = ConfigStore.open(paths.config)
    paths.config.write_text(
        '[api]\nport = 1234\nbind = "::1"\nauth_token = "a-secret-of-the-owner"\n'
        'allowed_origins = ["https://example.org"]\n[metrics]\nenabled = true\nbind = "0.0.0.0"\nport = 9999\n'
        '[[agents]]\nid = "new"\n'
    )

    assert store.reload().requires_restart == ("api.port", "api.bind")
    paths.config.write_text("")
    assert store.reload().requires_restart == ()


class _Seen:
    """What the watcher called back, for a test to wait on."""

    def __init__(self) -> None:
        self.send, self.receive = trio.open_memory_channel[tuple[FileKind, str]](100)

    async def note(self, changes: Sequence[FileChange]) -> None:
        for change in changes:
            await self.send.send((change.kind, change.path.name))

    async def next(self) -> tuple[FileKind, str]:
        with trio.fail_after(10):
            return await self.receive.receive()


@asynccontextmanager
async def watching(paths: InstancePaths) -> AsyncIterator[_Seen]:
    seen = _Seen()
    callbacks, skills = dict.fromkeys(FileKind, seen.note), [paths.skills, paths.agent("main").skills]
    async with open_watcher(
        paths, lambda: ["main"], callbacks, skill_folders=lambda: skills, step_ms=20, debounce_ms=100
    ):
        yield seen


async def test_a_new_an_edited_and_a_renamed_file_are_seen(paths: InstancePaths) -> None:
    async with watching(paths) as seen:
        paths.config.write_text("a = 1")
        assert await seen.next() == (FileKind.CONFIG, "config.toml")
        paths.config.write_text("a = 2")
        assert await seen.next() == (FileKind.CONFIG, "config.toml")
        written = paths.root / ".config.toml.swp"
        written.write_text("a = 3")
        written.replace(paths.config)
        assert await seen.next() == (FileKind.CONFIG, "config.toml")
        paths.config.unlink()
        assert await seen.next() == (FileKind.CONFIG, "config.toml")


@pytest.mark.spec("C-14")
async def test_folders_that_appear_later_are_watched(paths: InstancePaths) -> None:
    async with watching(paths) as seen:
        deep = paths.agent("main").prompts / "fragments"
        deep.mkdir(parents=True)
        (deep / "status.md").write_text("hello")
        assert await seen.next() == (FileKind.PROMPT, "status.md")
        (paths.agent("main").root / "SOUL.md").write_text("kind")
        assert await seen.next() == (FileKind.IDENTITY, "SOUL.md")
        (deep / "status.md").write_text("bye")
        assert await seen.next() == (FileKind.PROMPT, "status.md")


@pytest.mark.spec("C-14")
async def test_skills_are_watched_where_they_lie_and_nowhere_else(paths: InstancePaths) -> None:
    """Folders that appear later, and categories; a folder whose path only sounds like one is none."""
    async with watching(paths) as seen:
        own = paths.agent("main").skills / "pdf"
        own.mkdir(parents=True)
        (own / "SKILL.md").write_text("one")
        assert await seen.next() == (FileKind.SKILL, "SKILL.md")
        elsewhere = paths.root / "my-skills" / "pdf"
        elsewhere.mkdir(parents=True)
        (elsewhere / "SKILL.md").write_text("not ours")
        (own / "notes.md").write_text("not its text")
        deep = paths.skills / "office" / "word"
        deep.mkdir(parents=True)
        (deep / "SKILL.md").write_text("two")
        assert await seen.next() == (FileKind.SKILL, "SKILL.md")
        own.rename(own.with_name(".gone"))
        assert await seen.next() == (FileKind.SKILL, "SKILL.md")
        assert seen.receive.statistics().current_buffer_used == 0


@pytest.mark.spec("CA-8")
async def test_a_save_without_a_change_calls_nobody(paths: InstancePaths) -> None:
    paths.config.write_text("a = 1")
    async with watching(paths) as seen:
        paths.config.write_text("a = 1")
        (paths.root / "notes.txt").write_text("not ours")
        paths.prompts.mkdir()
        (paths.prompts / "CHANNEL.md").write_text("x")
        assert await seen.next() == (FileKind.PROMPT, "CHANNEL.md")
        assert seen.receive.statistics().current_buffer_used == 0


async def test_a_callback_that_refuses_does_not_end_the_watch(paths: InstancePaths) -> None:
    seen = _Seen()

    async def refuse(changes: Sequence[FileChange]) -> None:
        await seen.note(changes)
        raise ConfigError("broken")

    async with open_watcher(paths, lambda: [], {FileKind.CONFIG: refuse}, step_ms=20, debounce_ms=100):
        for i in range(2):
            paths.config.write_text(f"a = {i}")
            assert await seen.next() == (FileKind.CONFIG, "config.toml")


@pytest.mark.skipif(sys.platform != "linux", reason="inotify")
def test_without_watchers_left_the_program_lives_and_watches_later(tmp_path: Path) -> None:
    """A process of its own, since the number of open files is a limit of the process."""
    program = f"""
import os, resource, trio
from pathlib import Path
from spacebot.base.paths import InstancePaths
from spacebot.config import store
from spacebot.config.store import FileKind, open_watcher

store.RETRY_S = 0.05

async def main():
    seen = trio.Event()
    async def note(changes):
        seen.set()
    paths = InstancePaths(Path({str(tmp_path)!r}), Path({str(tmp_path)!r}, "config.toml"))
    await trio.to_thread.run_sync(int)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        os.close(taken.pop())
    async with open_watcher(paths, lambda: [], {{FileKind.CONFIG: note}}, step_ms=20, debounce_ms=100):
        for descriptor in taken:
            os.close(descriptor)
        paths.config.write_text("a = 1")
        with trio.fail_after(10):
            await seen.wait()

trio.run(main)
"""
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=root)
    assert ended.returncode == 0, ended.stderr
    assert "files are not watched for now" in ended.stderr
