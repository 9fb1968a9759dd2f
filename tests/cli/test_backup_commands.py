"""`backup`, `restore`, `doctor` and the first start in a container, as a person runs them."""

import json
import os
import socket
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from spacebot.cli.main import main
from tests.cli.conftest import Instance


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An instance directory with a configuration and an agent, and the present folder."""
    root = tmp_path / "instance"
    (root / "agents" / "main").mkdir(parents=True)
    (root / "agents" / "main" / "SOUL.md").write_text("a soul")
    (root / "config.toml").write_text("[api]\nport = 5000\n")
    monkeypatch.setenv("SPACEBOT_DIR", str(root))
    monkeypatch.chdir(tmp_path)
    umask = os.umask(0o022)  # which the commands change
    yield root
    os.umask(umask)


def test_a_backup_goes_into_a_private_file_and_is_never_written_over(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backup", "mine.zip"]) == 0
    out = capsys.readouterr()
    file = folder.parent / "mine.zip"
    assert out.out == f"{file}\n"
    assert out.err.startswith("2 files of 1 agents")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "agents/main/SOUL.md" in zipfile.ZipFile(file).namelist()
    assert main(["backup", "mine.zip"]) == 1
    assert "already" in capsys.readouterr().err
    assert main(["backup"]) == 0
    assert Path(capsys.readouterr().out.strip()).name.startswith("spacebot-backup-2")
    assert main(["backup", "no/such/folder.zip"]) == 1


def test_a_disk_that_is_full_leaves_no_half_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import resource

    (folder / "agents" / "main" / "large").write_bytes(os.urandom(1 << 20))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert main(["backup", "mine.zip"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "make room" in capsys.readouterr().err
    assert [path.name for path in folder.parent.iterdir()] == ["instance"]


def test_a_restore_does_not_take_the_place_of_an_instance_by_mistake(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["backup", "mine.zip"]) == 0
    (folder / "agents" / "main" / "SOUL.md").write_text("another soul")
    assert main(["restore", "mine.zip"]) == 1
    assert "With --force it is put aside" in capsys.readouterr().err
    assert main(["restore", "mine.zip", "--force"]) == 0
    said = capsys.readouterr().err
    assert (folder / "agents" / "main" / "SOUL.md").read_text() == "a soul"
    (old,) = folder.glob("restore-*/old")
    assert str(old) in said
    assert (old / "agents" / "main" / "SOUL.md").read_text() == "another soul"
    assert main(["restore", "instance/config.toml", "--force"]) == 1
    assert "no zip" in capsys.readouterr().err
    assert main(["restore", "gone.zip", "--force"]) == 1

    monkeypatch.setenv("SPACEBOT_DIR", str(folder.parent / "fresh"))
    assert main(["restore", "mine.zip"]) == 0
    assert (folder.parent / "fresh" / "config.toml").read_text() == "[api]\nport = 5000\n"


def test_a_running_program_is_backed_up_and_restored_at_its_restart(instance: Instance, tmp_path: Path) -> None:
    instance.run("start")
    instance.run("secret", "set", "TOKEN", text="value-of-mine")
    soul = instance.root / "agents" / "main" / "SOUL.md"
    soul.parent.mkdir(parents=True)
    soul.write_text("a soul")
    made = instance.run("backup", str(tmp_path / "b.zip"))
    assert made.returncode == 0, made.stderr
    assert "the stored secrets are not in it" in made.stderr
    soul.write_text("another soul")

    refused = instance.run("restore", str(tmp_path / "b.zip"))
    assert (refused.returncode, "spacebot is running here" in refused.stderr) == (1, True)
    waiting = instance.run("restore", "--force", str(tmp_path / "b.zip"))
    assert (waiting.returncode, "at the next start" in waiting.stderr) == (0, True)
    assert soul.read_text() == "another soul"
    assert instance.run("restart").returncode == 0
    assert soul.read_text() == "a soul"
    assert "TOKEN" in instance.run("secret", "list").stdout, "what is not in the backup stays"


def test_the_end_of_the_log_reaches_into_the_file_before(
    folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (folder / "logs").mkdir()
    (folder / "logs" / "spacebot.log.2026-11-02").write_text("".join(f"old {n}\n" for n in range(5)))
    (folder / "logs" / "spacebot.log.2026-11-01").write_text("older\n")
    (folder / "logs" / "spacebot.log").write_text("new\n")
    assert main(["logs", "-n", "3"]) == 0
    assert capfdbinary.readouterr().out == b"old 3\nold 4\nnew\n"
    assert main(["logs", "-n", "1"]) == 0
    assert capfdbinary.readouterr().out == b"new\n"


@pytest.mark.slow
def test_the_doctor_prints_lines_and_fails_when_something_does(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        (folder / "config.toml").write_text(
            f"[api]\nport = {other.getsockname()[1]}\n[defaults.browser]\nenabled = false\n"
        )
        assert main(["doctor"]) == 1
        out = capsys.readouterr().out
        assert f"fail  ports        port {other.getsockname()[1]} on 127.0.0.1: taken by another program" in out
        assert "→ stop what uses it, or set api.port" in out
        assert out.splitlines()[-1].endswith(" 1 to mend")
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["counts"]["fail"]) == (True, 0)
    (folder / "config.toml").write_text("[api\n")
    assert main(["doctor"]) == 1
    assert "fail  config" in capsys.readouterr().out


def test_the_first_start_in_a_container_makes_a_token(instance: Instance) -> None:
    instance.environ["SPACEBOT_DEPLOYMENT"] = "docker"
    started = instance.run("start")
    token = instance.root / "api_token"
    assert started.returncode == 0, started.stderr
    assert f"it stands in {token}" in started.stderr
    made = token.read_text()
    assert len(made) >= 40
    assert made not in started.stderr
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert "0.0.0.0" in instance.run("config", "check").stdout
    again = instance.run("restart")
    assert (again.returncode, "token" in again.stderr, token.read_text()) == (0, False, made)


def test_an_own_token_needs_none_to_be_made(instance: Instance) -> None:
    instance.root.mkdir()
    (instance.root / "config.toml").write_text('[api]\nauth_token = "a-token-of-the-owner"\n')
    instance.environ["SPACEBOT_DEPLOYMENT"] = "docker"
    assert instance.run("start").returncode == 0
    assert not (instance.root / "api_token").exists()


@pytest.mark.spec("control 8.1.27")
def test_a_restart_in_place_does_not_tell_the_service_manager_that_it_ends(instance: Instance, tmp_path: Path) -> None:
    """systemd ends a program that said it was stopping, also when it has become ready again."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(15)
        daemon = instance.popen("start", "-f", NOTIFY_SOCKET=str(tmp_path / "notify"))
        while not manager.recv(500).startswith(b"READY=1"):
            pass
        assert instance.run("restart").returncode == 0
        heard = [manager.recv(500).split(b"\n")[0]]
        while heard[-1] != b"READY=1":
            heard.append(manager.recv(500).split(b"\n")[0])
        assert heard == [b"RELOADING=1", b"READY=1"]
        daemon.terminate()
        assert manager.recv(500) == b"STOPPING=1"
    daemon.communicate(timeout=15)
