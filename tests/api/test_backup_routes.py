"""Backup and restore over a real connection, and what is known of updates."""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot import __version__
from spacebot.agent.updates import UpdateCheck, how_to_update
from spacebot.base.clock import Clock
from spacebot.base.fetch import Answer, open_fetcher
from spacebot.base.paths import InstancePaths, package_file
from spacebot.config.model import UpdateConfig
from spacebot.storage.database import migrate
from spacebot.storage.restore import finish_restore
from tests.api.serving import UNREAD, open_server

SQL = package_file("storage", "sql")


def instance(root: Path) -> InstancePaths:
    paths = InstancePaths(root, root / "config.toml")
    paths.create()
    paths.config.write_text("[api]\nport = 5000\n")
    agent = paths.agent("main")
    agent.create()
    migrate(agent.database, SQL, Clock())
    (agent.root / "SOUL.md").write_text("a soul")
    return paths


async def test_what_is_exported_can_be_restored_and_waits_for_the_next_start(tmp_path: Path) -> None:
    paths = instance(tmp_path)
    (paths.agent("main").workspace / "large.bin").write_bytes(os.urandom(3 << 20))
    async with open_server(tmp_path) as served:
        answer = await served.client.get("/api/system/backup/export")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
        assert answer.headers["content-disposition"].startswith('attachment; filename="spacebot-backup-')
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.testzip() is None
            assert "agents/main/workspace/large.bin" in archive.namelist()
        small = await served.client.get("/api/system/backup/export", params={"workspace": 0})
        assert len(small.content) < 1 << 20

        (paths.agent("main").root / "SOUL.md").write_text("another soul")
        done = await served.client.post("/api/system/backup/restore", content=answer.content)
        said = done.json()
        assert (done.status_code, said["restored"], said["requires_restart"]) == (200, True, True)
        assert (said["files_restored"], said["version"]) == (4, __version__)
        assert "spacebot restart" in said["message"]
        assert (paths.agent("main").root / "SOUL.md").read_text() == "another soul"
    assert finish_restore(paths) is not None
    assert (paths.agent("main").root / "SOUL.md").read_text() == "a soul"
    assert (paths.agent("main").workspace / "large.bin").stat().st_size == 3 << 20


@pytest.mark.parametrize(
    ("body", "kind", "status", "reason"),
    [
        (b"", "application/zip", 400, "the body is empty"),
        (b"PK no zip at all", "application/zip", 400, "no zip"),
        (b"{}", "text/plain", 415, "send the zip itself"),
    ],
)
async def test_what_is_no_backup_is_refused_and_changes_nothing(
    tmp_path: Path, body: bytes, kind: str, status: int, reason: str
) -> None:
    paths = instance(tmp_path)
    async with open_server(tmp_path) as served:
        answer = await served.client.post("/api/system/backup/restore", content=body, headers={"content-type": kind})
        assert (answer.status_code, reason in answer.json()["error"]) == (status, True)
    assert finish_restore(paths) is None
    assert not list(tmp_path.glob("restore-*"))


@pytest.mark.filterwarnings(UNREAD)
async def test_a_reader_who_leaves_ends_the_packing_and_the_next_one_is_served(tmp_path: Path) -> None:
    paths = instance(tmp_path)
    (paths.agent("main").workspace / "large.bin").write_bytes(os.urandom(24 << 20))
    async with open_server(tmp_path) as served:
        async with served.client.stream("GET", "/api/system/backup/export") as response:
            assert response.status_code == 200
            second = await served.client.get("/api/system/backup/export")
            assert (second.status_code, "at work already" in second.json()["error"]) == (409, True)
        while list(tmp_path.glob("backup-*")):
            await trio.sleep(0.01)
        for _ in range(100):
            answer = await served.client.get("/api/system/backup/export", params={"workspace": 0})
            if answer.status_code == 200:
                break
            await trio.sleep(0.01)
        assert answer.status_code == 200


async def test_an_empty_instance_has_nothing_to_export(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        answer = await served.client.get("/api/system/backup/export")
        assert answer.status_code == 400
        assert "nothing in" in answer.json()["error"]


@pytest.mark.slow
async def test_the_doctor_looks_at_the_running_program(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[api]\nprot = 1\n[defaults.browser]\nenabled = false\n")
    async with open_server(tmp_path, patience_s=60) as served:
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await served.client.get("/api/system/doctor", timeout=60))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
        first, second = sorted(answers, key=lambda answer: answer.status_code)
        assert (first.status_code, second.status_code) == (200, 409)
        report = first.json()
        found = {finding["check"]: finding for finding in report["findings"]}
        assert found["daemon"]["said"] == f"runs (pid {os.getpid()})"
        assert (found["config"]["grade"], "prot" in found["config"]["said"]) == ("warn", True)
        assert all(finding["mend"] for finding in report["findings"] if finding["grade"] != "ok")


# Updates


class Hub:
    """Stands in for GitHub."""

    def __init__(self) -> None:
        self.status = 200
        self.release: Any = {"tag_name": "v99.1.0", "html_url": "https://github.com/o/r/releases/1", "body": "news"}
        self.asked: list[str] = []

    async def serve(self, *, task_status: trio.TaskStatus[str]) -> None:
        async def handle(stream: trio.SocketStream) -> None:
            async with stream:
                request = await stream.receive_some(65536)
                self.asked.append(request.decode())
                body = json.dumps(self.release).encode()
                head = f"HTTP/1.1 {self.status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                await stream.send_all(head.encode() + body)

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
        await trio.serve_listeners(handle, [listener])


async def test_a_newer_release_is_known_and_trouble_keeps_what_was_known() -> None:
    hub, table = Hub(), [UpdateConfig()]
    async with trio.open_nursery() as nursery, open_fetcher() as fetcher:
        url = await nursery.start(hub.serve)

        async def get(url: str, *, headers: Mapping[str, str], max_bytes: int) -> Answer:
            return await fetcher.get(url, headers=headers, max_bytes=max_bytes, may_be_private=True)

        updates = UpdateCheck(lambda: table[0], get, base_url=url)
        assert (await updates.check()).error == "no repository is named; set update.repository to owner/name"
        assert hub.asked == [], "nothing calls home by itself"

        table[0] = UpdateConfig(repository="o/r")
        found = await updates.check()
        assert (found.latest_version, found.update_available, found.error) == ("99.1.0", True, None)
        assert (found.release_url, found.release_notes) == ("https://github.com/o/r/releases/1", "news")
        assert hub.asked[0].startswith("GET /repos/o/r/releases/latest ")
        assert f"user-agent: spacebot/{__version__}" in hub.asked[0].lower()
        for status, words in ((403, "fewer questions"), (500, "status 500"), (404, "knows no release"), (301, "moved")):
            hub.status = status
            found = await updates.check()
            assert words in (found.error or "")
            assert found.latest_version == "99.1.0"
        hub.status = 200
        for release, words in (
            ([], "could not be read"), ({"tag_name": 3}, "could not be read"), ({"tag_name": "nightly"}, "no version"),
        ):  # fmt: skip
            hub.release = release
            assert words in ((await updates.check()).error or "")
        hub.release = {"tag_name": f"v{__version__}", "html_url": "javascript:x"}
        found = await updates.check()
        assert (found.update_available, found.release_url) == (False, None)
        table[0] = UpdateConfig(repository="another/one")
        assert updates.state.latest_version is None
        nursery.cancel_scope.cancel()


async def test_the_looks_follow_the_clock_and_the_configuration(autojump_clock: trio.testing.MockClock) -> None:
    table, looks = [UpdateConfig()], []

    async def get(url: str, **_: Any) -> Answer:
        await trio.lowlevel.checkpoint()
        looks.append(trio.current_time())
        return Answer(404, {}, b"", "hub")

    updates = UpdateCheck(lambda: table[0], get)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(updates.run)
        await trio.sleep(100_000)
        assert looks == []
        table[0] = UpdateConfig(repository="o/r", check_interval_secs=600)
        began = trio.current_time()
        updates.reconsider()
        await trio.sleep(1500)
        assert [round(moment - began) for moment in looks] == [0, 600, 1200]
        table[0] = UpdateConfig()
        updates.reconsider()
        await trio.sleep(100_000)
        assert len(looks) == 3
        nursery.cancel_scope.cancel()


@pytest.mark.spec("C-79")
async def test_updates_over_http_and_the_program_does_not_replace_itself(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[update]\nrepository = "o/r"\n')
    async with open_server(tmp_path) as served:
        state = (await served.client.get("/api/update/check")).json()
        assert (state["current_version"], state["can_apply"], state["error"]) == (__version__, False, "not looked yet")
        state = (await served.client.post("/api/update/check")).json()
        assert "knows no release of o/r" in state["error"]
        applied = await served.client.post("/api/update/apply")
        assert (applied.status_code, applied.json()["status"]) == (409, "error")
        assert "spacebot restart" in applied.json()["error"]


@pytest.mark.spec("C-79")
def test_each_kind_of_installation_is_updated_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "same volume" in how_to_update("docker")
    assert "git pull" in how_to_update("native")
    monkeypatch.setenv("SPACEBOT_EXECUTABLE", "/usr/local/bin/spacebot")
    assert "/usr/local/bin/spacebot" in how_to_update("native")
