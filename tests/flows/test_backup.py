"""A backup taken while people talk becomes a working copy, and a restore beside a running program survives kill -9."""

import io
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
import trio

from tests.flows.stories import DIALECTS, Person, read_request, reply, run, up, wait_for
from tests.real_daemon import Daemon

TALKERS = 3


@pytest.mark.slow
@pytest.mark.spec("control 8.1.29", "C-29")
async def test_a_backup_taken_under_load_restores_to_a_working_copy(tmp_path: Path) -> None:
    async with DIALECTS["openai_completions"](
        lambda body: reply(f"Answer to {read_request(body).said.rpartition(': ')[2]}")
    ) as model:
        daemon = Daemon(tmp_path / "first", model_url=model.url)
        accepted: list[str] = []
        async with up(daemon) as person:
            (daemon.folder / "agents" / "main" / "workspace" / "notes.txt").write_text("work")
            for text in ("the ferry leaves at nine", "the cat is called Ada"):
                assert (await run(daemon, "memory", "add", text)).returncode == 0
            async with trio.open_nursery() as talking:

                async def talk(name: str) -> None:
                    mouth = Person(daemon)
                    try:
                        for number in range(10_000):
                            text = f"{name} {number}"
                            await mouth.say(text, session=name)
                            accepted.append(text)
                    finally:
                        with trio.CancelScope(shield=True):
                            await mouth.leave()

                for number in range(TALKERS):
                    talking.start_soon(talk, f"t{number}")
                while len(accepted) < 30:
                    await trio.sleep(0.01)
                before = list(accepted)
                by_command = await run(daemon, "backup", str(tmp_path / "b.zip"), "--no-workspace")
                assert by_command.returncode == 0, by_command.stderr
                between = list(accepted)
                by_http = await trio.to_thread.run_sync(_export, daemon)
                talking.cancel_scope.cancel()
            assert len(between) > len(before), "people were talking all the time"

            # What is restored beside the running program takes its place at its restart, even when that is a death.
            (daemon.folder / "agents" / "main" / "SOUL.md").write_text("A soul of later.")
            answer = await trio.to_thread.run_sync(_restore, daemon, by_http)
            assert answer["restored"] is True
            await trio.to_thread.run_sync(daemon.kill)
            await trio.to_thread.run_sync(daemon.start)
            assert not (daemon.folder / "agents" / "main" / "SOUL.md").read_text().startswith("A soul of later")
            assert set(between) <= said_in(daemon.folder)
            assert await person.answer("hello again", session="new") == "Answer to hello again"

        copy = Daemon(tmp_path / "second", model_url=model.url)
        restored = await run(copy, "restore", "--force", str(tmp_path / "b.zip"))
        assert restored.returncode == 0, restored.stderr
        text = (copy.folder / "config.toml").read_text()
        (copy.folder / "config.toml").write_text(text.replace(f"port = {daemon.port}", f"port = {copy.port}"))
        async with up(copy) as person:
            assert set(before) <= said_in(copy.folder)

            async def all_answered() -> bool:
                return not open_in(copy.folder)

            await wait_for(all_answered)  # what was accepted and not answered at that moment is answered now
            assert await person.answer("are you there", session="new") == "Answer to are you there"
            found = await run(copy, "memory", "search", "when does the ferry leave")
            assert "the ferry leaves at nine" in found.stdout


def _export(daemon: Daemon) -> bytes:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.port}/api/system/backup/export", timeout=60) as answer:
        archive = bytes(answer.read())
    assert zipfile.ZipFile(io.BytesIO(archive)).testzip() is None
    return archive


def _restore(daemon: Daemon, archive: bytes) -> dict[str, object]:
    import json
    import urllib.request

    request = urllib.request.Request(
        f"http://127.0.0.1:{daemon.port}/api/system/backup/restore",
        data=archive, headers={"content-type": "application/zip"}, method="POST",
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as answer:
        read: dict[str, object] = json.loads(answer.read())
    return read


def _rows(folder: Path, query: str) -> list[str]:
    with closing(sqlite3.connect(folder / "agents" / "main" / "data" / "spacebot.db", timeout=10)) as database:
        return [row[0] for row in database.execute(query)]


def said_in(folder: Path) -> set[str]:
    """What people said, as the log has it."""
    return set(_rows(folder, "SELECT content FROM conversation_messages WHERE role = 'user'"))


def open_in(folder: Path) -> list[str]:
    """Messages that nobody has dealt with."""
    return _rows(folder, "SELECT message_id FROM ledger WHERE state IN ('accepted', 'in_turn')")
