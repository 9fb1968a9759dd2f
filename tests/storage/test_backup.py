"""Backups of real instances, archives of enemies, and restores that are cut off at every step."""

import io
import json
import os
import random
import shutil
import sqlite3
import stat
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spacebot.base.clock import Clock
from spacebot.base.errors import RefusedError, StorageError
from spacebot.base.paths import InstancePaths, package_file
from spacebot.storage.backup import BackupReport, held, write_backup
from spacebot.storage.database import migrate
from spacebot.storage.restore import finish_restore, forget_old_states, pending_restore, stage_backup
from spacebot.storage.secrets import SecretStore

SQL = package_file("storage", "sql")
SECRET = "a-value-that-nobody-may-see"


class Pipe(io.RawIOBase):
    """Takes bytes as a connection does: no seeking, no telling."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.parts.append(bytes(data))
        return len(data)


def pack(paths: InstancePaths, **how: Any) -> tuple[bytes, BackupReport]:
    pipe = Pipe()
    report = write_backup(paths, pipe, **how)
    return b"".join(pipe.parts), report


def names(archive: bytes) -> set[str]:
    return set(zipfile.ZipFile(io.BytesIO(archive)).namelist())


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def paths(tmp_path: Path) -> InstancePaths:
    """An instance with an agent, as a program leaves it."""
    root = tmp_path / "instance"
    made = InstancePaths(root, root / "config.toml")
    made.create()
    made.config.write_text("[api]\nport = 5000\n")
    agent = made.agent("main")
    agent.create()
    migrate(agent.database, SQL, Clock())
    with closing(sqlite3.connect(agent.database)) as database:
        database.execute("CREATE TABLE said (n INTEGER PRIMARY KEY, text TEXT)")
        database.executemany("INSERT INTO said (text) VALUES (?)", [(f"message {n}",) for n in range(2000)])
        database.commit()
    (agent.root / "SOUL.md").write_text("a soul")
    (agent.vectors / "t").mkdir(parents=True)
    (agent.vectors / "t" / "derived").write_text("x")
    (agent.logs / "worker.log").write_text("x")
    (made.skills / "maps").mkdir()
    (made.skills / "maps" / "SKILL.md").write_text("skill")
    (made.logs / "spacebot.log").write_text("x")
    (root / "anthropic_oauth.json").write_text(SECRET)
    SecretStore(root).set("TOKEN", SECRET)
    return made


def restore(into: InstancePaths, archive: bytes) -> None:
    stage_backup(into, io.BytesIO(archive), migrations=SQL)
    assert finish_restore(into) is not None


def test_a_backup_holds_the_instance_and_nothing_that_belongs_to_the_machine(
    paths: InstancePaths, tmp_path: Path
) -> None:
    workspace = paths.agent("main").workspace
    (workspace / "run.sh").write_text("#!/bin/sh\n")
    (workspace / "run.sh").chmod(0o755)
    (workspace / "leak").symlink_to(paths.root / "secret.key")
    (workspace / "out").symlink_to(tmp_path)
    os.mkfifo(workspace / "pipe")
    archive, report = pack(paths)

    assert names(archive) == {
        "manifest.json", "config.toml", "agents/main/SOUL.md", "agents/main/data/spacebot.db",
        "agents/main/workspace/run.sh", "skills/maps/SKILL.md",
    }  # fmt: skip
    assert (report.files, report.agents, report.has_secrets) == (5, ["main"], False)
    assert any("2 symbolic links" in note for note in report.notes)
    assert not list(paths.root.glob("backup-*"))

    fresh = InstancePaths(tmp_path / "new", tmp_path / "new" / "my.toml")
    restore(fresh, archive)
    assert fresh.config.read_text() == "[api]\nport = 5000\n"
    assert stat.S_IMODE((fresh.agent("main").workspace / "run.sh").stat().st_mode) == 0o700
    assert stat.S_IMODE(fresh.agent("main").database.stat().st_mode) == 0o600
    with closing(sqlite3.connect(fresh.agent("main").database)) as database:
        assert database.execute("SELECT count(*) FROM said").fetchone() == (2000,)


def test_a_workspace_is_kept_as_git_would_keep_it(paths: InstancePaths) -> None:
    workspace = paths.agent("main").workspace
    for name in (
        ".git/config", "a.log", "keep.log", "node_modules/x/y", "deep/node_modules/z", "deep/build/out", "build/out",
        "deep/er/local.txt", "deep/er/other.txt", "docs/a/b/page.tmp", "logs/mine.txt",
    ):  # fmt: skip
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text(name)
    (workspace / ".gitignore").write_text("# no comment\n*.log\n!keep.log\nnode_modules/\n/build\ndocs/**/*.tmp\n")
    (workspace / "deep" / ".gitignore").write_text("er/local.*\n" + "*a" * 100 + "\n")
    archive, _ = pack(paths)

    inside = {name.removeprefix("agents/main/workspace/") for name in names(archive) if "/workspace/" in name}
    assert inside == {
        ".gitignore", "keep.log", "deep/.gitignore", "deep/build/out", "deep/er/other.txt", "logs/mine.txt",
    }  # fmt: skip


def test_a_hostile_gitignore_costs_no_time() -> None:
    from spacebot.storage.ignored import Rules

    rules = Rules("*a" * 100 + "b\n" + "/".join(["**"] * 19 + ["x"]) + "\n")
    assert rules.verdict((*["a" * 200] * 60, "a" * 250), is_folder=False) is None


def test_secrets_are_left_out_unless_they_are_asked_for_and_their_key_always(
    paths: InstancePaths, tmp_path: Path
) -> None:
    assert SECRET.encode() not in pack(paths)[0]
    archive, report = pack(paths, with_secrets=True)
    assert "secrets.db" in names(archive)
    assert not names(archive) & {"secret.key", "anthropic_oauth.json", "secrets.lock"}
    assert any("the key is not" in note for note in report.notes)

    SecretStore(paths.root).set("TOKEN", "another value of later")
    restore(paths, archive)
    assert SecretStore(paths.root).read()["TOKEN"].value == SECRET


def test_keys_in_the_configuration_are_told_of(paths: InstancePaths) -> None:
    paths.config.write_text('[llm]\nopenai_key = "sk-proj-' + "a1B2" * 10 + '"\n')
    assert any("keys in plain text" in note for note in pack(paths)[1].notes)


@pytest.mark.spec("C-29")
def test_what_is_written_meanwhile_does_not_disturb_the_backup(paths: InstancePaths, tmp_path: Path) -> None:
    """Rows come two by two in one transaction; a copy of one moment has an even number, and all that were there."""
    database = paths.agent("main").database
    written, done = [0], threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(database, timeout=10)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            while not done.is_set():
                connection.execute("INSERT INTO said (text) VALUES ('one')")
                connection.execute("INSERT INTO said (text) VALUES ('two')")
                connection.commit()
                written[0] += 2

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not written[0]:
            pass
        before = 2000 + written[0]
        archive, _ = pack(paths)
        after = 2000 + written[0] + 2
    finally:
        done.set()
        writer.join()
    fresh = InstancePaths(tmp_path / "new", tmp_path / "new" / "config.toml")
    restore(fresh, archive)
    with closing(sqlite3.connect(fresh.agent("main").database)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM said").fetchone()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert before <= count <= after
    assert count % 2 == 0


def test_a_full_disk_ends_a_backup_and_leaves_nothing(paths: InstancePaths) -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(StorageError, match="make room on the disk"):
        write_backup(paths, full)
    assert not list(paths.root.glob("backup-*"))


def test_a_damaged_database_makes_no_backup_that_looks_good(paths: InstancePaths) -> None:
    database = paths.agent("main").database
    with database.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(6 * 4096))
    with pytest.raises(StorageError, match=r"damaged|cannot be copied"):
        pack(paths)


def test_nothing_to_keep_is_said(tmp_path: Path) -> None:
    empty = InstancePaths(tmp_path, tmp_path / "config.toml")
    with pytest.raises(RefusedError, match="nothing in"):
        pack(empty)


def test_without_workspaces_a_restore_leaves_those_that_are_there(paths: InstancePaths) -> None:
    agent = paths.agent("main")
    archive, _ = pack(paths, with_workspace=False)
    (agent.workspace / "work.txt").write_text("newer work")
    (agent.root / "SOUL.md").write_text("another soul")
    restore(paths, archive)

    assert (agent.workspace / "work.txt").read_text() == "newer work"
    assert (agent.root / "SOUL.md").read_text() == "a soul"


@pytest.mark.spec("control 8.1.29", "C-29")
def test_a_restore_that_is_killed_at_any_step_is_finished_by_the_next_start(
    paths: InstancePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, _ = pack(paths, with_workspace=False, with_secrets=True)
    wanted = None
    rename = Path.rename

    class Killed(BaseException):
        pass

    for step in range(40):
        root = tmp_path / f"try{step}"
        one = InstancePaths(root, root / "config.toml")
        one.create()
        one.config.write_text("[api]\nport = 1\n")
        agent = one.agent("main")
        agent.create()
        (agent.workspace / "work.txt").write_text("work")
        (one.agent("other").root / "data").mkdir(parents=True)
        SecretStore(root).set("TOKEN", "old")
        stage_backup(one, io.BytesIO(archive), migrations=SQL)
        left = step

        def killing(self: Path, target: Path) -> Path:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return rename(self, target)

        was_killed = False
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killing)
            try:
                finish_restore(one)
            except Killed:
                was_killed = True
        one.create()  # as the next start does first
        if was_killed:
            finish_restore(one)
        assert pending_restore(root) is None
        found = {
            name: data
            for name, data in tree(root).items()
            if name.startswith(("agents/", "skills/", "config.toml", "secrets.db"))
        }
        wanted = wanted or found
        assert found == wanted, step
        assert (one.agent("main").workspace / "work.txt").read_text() == "work"
        assert not one.agent("other").root.exists()
        if not was_killed:
            break
    else:
        pytest.fail("the restore has more steps than the test")
    assert step > 6


def test_a_folder_on_another_disk_is_refused_before_anything_happens(paths: InstancePaths, tmp_path: Path) -> None:
    archive, _ = pack(paths)
    (paths.root / "agents").rename(tmp_path / "elsewhere")
    (paths.root / "agents").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="a link or a disk of its own"):
        stage_backup(paths, io.BytesIO(archive), migrations=SQL)


def test_a_configuration_that_is_mounted_by_itself_gets_the_content(
    paths: InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, _ = pack(paths)
    paths.config.write_text("[api]\nport = 7000\n")
    stage_backup(paths, io.BytesIO(archive), migrations=SQL)
    rename = Path.rename

    def busy(self: Path, target: Path) -> Path:
        if self == paths.config:
            raise OSError(16, "Device or resource busy", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", busy)
    restored = finish_restore(paths)
    assert restored is not None
    assert paths.config.read_text() == "[api]\nport = 5000\n"
    assert (restored.old / "config.toml").read_text() == "[api]\nport = 7000\n"


def test_what_is_elsewhere_or_never_kept_is_told(paths: InstancePaths) -> None:
    paths.config.write_text('[[agents]]\nid = "main"\nworkspace = "/srv/mine"\n')
    notes = "; ".join(pack(paths)[1].notes)
    assert "'/srv/mine' lies elsewhere" in notes
    assert "sign in again" in notes


def test_what_killed_programs_left_goes_after_a_good_start_and_what_is_at_work_stays(paths: InstancePaths) -> None:
    for name in ("backup-dead", "restore-dead", "backup-alive"):
        (paths.root / name).mkdir()
    with held(paths.root / "backup-alive"):
        forget_old_states(paths, now=0)
        assert sorted(path.name for path in paths.root.glob("*-*")) == ["backup-alive"]


def test_what_a_cut_exchange_moved_aside_is_never_cleared_away(
    paths: InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when its owner gives it up, as the message says, nor when another backup is taken over meanwhile."""
    archive, _ = pack(paths)
    (paths.agent("main").root / "SOUL.md").write_text("the newest soul")
    folder = stage_backup(paths, io.BytesIO(archive), migrations=SQL).folder
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self == folder / "new" / "agents":
            raise OSError(28, "No space left on device", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(StorageError, match="remove 'ready'"):
        finish_restore(paths)
    with pytest.raises(RefusedError, match="half done"):
        stage_backup(paths, io.BytesIO(archive), migrations=SQL)
    (folder / "ready").unlink()
    forget_old_states(paths, now=time.time() + 1e9)
    stage_backup(paths, io.BytesIO(archive), migrations=SQL)
    assert (folder / "old" / "agents" / "main" / "SOUL.md").read_text() == "the newest soul"


def test_what_was_there_before_is_kept_for_a_day(paths: InstancePaths) -> None:
    archive, _ = pack(paths)
    (paths.agent("main").root / "SOUL.md").write_text("another soul")
    restore(paths, archive)
    (old,) = paths.root.glob("restore-*/old/agents/main/SOUL.md")
    assert old.read_text() == "another soul"
    moment = old.parents[3].stat().st_mtime
    assert forget_old_states(paths, now=moment + 3600) == []
    assert forget_old_states(paths, now=moment + 90_000) == [old.parents[3]]
    assert not list(paths.root.glob("restore-*"))


def test_a_later_backup_takes_the_place_of_one_that_waits(paths: InstancePaths) -> None:
    first, _ = pack(paths)
    paths.config.write_text("[api]\nport = 7000\n")
    second, _ = pack(paths)
    stage_backup(paths, io.BytesIO(second), migrations=SQL)
    stage_backup(paths, io.BytesIO(first), migrations=SQL)
    finish_restore(paths)
    assert paths.config.read_text() == "[api]\nport = 5000\n"
    assert finish_restore(paths) is None


# Archives of enemies


def rewritten(archive: bytes, change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> bytes:
    """The archive with other files or another list of them."""
    with zipfile.ZipFile(io.BytesIO(archive)) as old:
        files = {name: old.read(name) for name in old.namelist()}
    manifest = json.loads(files.pop("manifest.json"))
    change(files, manifest)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        for name, data in files.items():
            new.writestr(name, data)
        new.writestr("manifest.json", json.dumps(manifest))
    return out.getvalue()


def add(name: str) -> Callable[[dict[str, bytes], dict[str, Any]], None]:
    import hashlib

    def change(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
        files[name] = b"evil"
        entry = {"path": name, "size": 4, "sha256": hashlib.sha256(b"evil").hexdigest(), "executable": False}
        manifest["files"].append(entry)

    return change


def put(key: str, value: Any) -> Callable[[dict[str, bytes], dict[str, Any]], None]:
    def change(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
        manifest[key] = value

    return change


def other_text(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
    files["config.toml"] = b"[api]\nport = 6666\n"


def newer_database(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
    import hashlib
    import tempfile

    name = "agents/main/data/spacebot.db"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "db"
        file.write_bytes(files[name])
        with closing(sqlite3.connect(file)) as database:
            database.execute("INSERT INTO schema_migrations VALUES (9000, 'future', 'x', 'x')")
            database.commit()
        files[name] = file.read_bytes()
    entry = next(entry for entry in manifest["files"] if entry["path"] == name)
    entry |= {"size": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (add("../outside"), "leads elsewhere"),
        (add("agents/main/../../outside"), "leads elsewhere"),
        (add("/etc/passwd"), "leads elsewhere"),
        (add("agents\\main\\x"), "leads elsewhere"),
        (add("C:/x"), "leads elsewhere"),
        (add("agents/main/a\nb"), "leads elsewhere"),
        (add("secret.key"), "no place in an instance"),
        (add("tools/bin/git"), "no place in an instance"),
        (add("restore-1/ready"), "no place in an instance"),
        (add("agents/main"), "no place in an instance"),
        (add("agents/../x/y"), "leads elsewhere"),
        (add("agents/A B/x"), "in the folder of no agent"),
        (add("agents/main/data/spacebot.db-wal"), "part of a database"),
        (add("agents/main/SOUL.md/x"), "a file and a folder"),
        (add("agents/main/" + "x" * 300), "too long"),
        (other_text, "another size|checksum"),
        (put("format", 2), "form"),
        (put("version", "99.0.0"), "newer than this program"),
        (put("files", [{"path": "config.toml"}]), "not right"),
        (put("files", []), "differ"),
        (put("surprise", 1), "not right"),
        (newer_database, "newer than this program"),
    ],
)
def test_an_archive_of_an_enemy_changes_nothing(
    paths: InstancePaths, change: Callable[[dict[str, bytes], dict[str, Any]], None], reason: str, tmp_path: Path
) -> None:
    archive = rewritten(pack(paths)[0], change)
    before = tree(tmp_path)
    with pytest.raises(RefusedError, match=reason):
        stage_backup(paths, io.BytesIO(archive), migrations=SQL)
    assert tree(tmp_path) == before
    assert finish_restore(paths) is None


def test_links_bombs_and_broken_archives_are_refused(paths: InstancePaths) -> None:
    good, _ = pack(paths)

    def refuse(archive: bytes, reason: str) -> None:
        with pytest.raises(RefusedError, match=reason):
            stage_backup(paths, io.BytesIO(archive), migrations=SQL)
        assert not list(paths.root.glob("restore-*"))

    link = io.BytesIO()
    with zipfile.ZipFile(link, "w") as archive:
        info = zipfile.ZipInfo("agents/main/workspace/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc")
    refuse(link.getvalue(), "no plain file")

    def huge(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
        manifest["files"][0]["size"] = 1 << 45

    refuse(rewritten(good, huge), "another size")
    # An entry that says 4 bytes and unpacks to 64 MiB: local header and directory are made to agree.
    bomb = bytearray(rewritten(good, add("agents/main/workspace/bomb")))
    zeros = zipfile.ZipInfo("agents/main/workspace/bomb")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        with zipfile.ZipFile(io.BytesIO(bytes(bomb))) as old:
            for name in old.namelist():
                if name != zeros.filename:
                    archive.writestr(name, old.read(name))
        zeros.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(zeros, b"\0" * (64 << 20))
        archive.filelist[-1].file_size = 4
    refuse(packed.getvalue(), "damaged|larger")
    refuse(good[:-100], "damaged|no zip")
    refuse(good[: len(good) // 2], "no zip")
    refuse(b"", "no zip")
    refuse(b"PK\5\6" + b"\0" * 18, "no manifest")
    torn = bytearray(good)
    torn[len(good) // 3] ^= 0xFF
    refuse(bytes(torn), "damaged|checksum|differ|two names|no plain|elsewhere")


def test_whatever_is_wrong_with_an_archive_it_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    """Bytes are changed at random, most of them in the headers; what is accepted all the same is what was packed."""
    one = InstancePaths(tmp_path / "one", tmp_path / "one" / "config.toml")
    one.agent("main").create()
    one.config.write_text("[api]\n")
    (one.agent("main").root / "SOUL.md").write_text("a soul " * 20)
    good, _ = pack(one)
    chance, refused = random.Random(7), 0
    other = InstancePaths(tmp_path / "other", tmp_path / "other" / "config.toml")
    for _ in range(150):
        torn = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            torn[chance.randrange(len(torn) // 3 if chance.random() < 0.3 else 0, len(torn))] = chance.randrange(256)
        (tmp_path / "torn.zip").write_bytes(torn)
        with (tmp_path / "torn.zip").open("rb") as file:
            try:
                staged = stage_backup(other, file, migrations=SQL)
            except RefusedError:
                refused += 1
                assert not list(other.root.glob("restore-*/new"))
            else:
                assert (staged.folder / "new" / "agents" / "main" / "SOUL.md").read_text() == "a soul " * 20
                shutil.rmtree(staged.folder)
    assert refused > 100
