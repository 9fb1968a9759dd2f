"""Start, stop, restart: real processes."""

import json
import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from tests.cli.conftest import Instance


@pytest.mark.spec("control 8.1.25", "C-25", "CA-9")
def test_start_returns_when_messages_are_accepted_and_a_second_one_is_refused(instance: Instance) -> None:
    started = instance.run("start")
    assert (started.returncode, started.stdout) == (0, "")
    assert started.stderr.splitlines() == [
        f"spacebot started (pid {instance.pid})",
        "web chat: http://127.0.0.1:1/",
        "model: demo/demo (no provider key found; set one up with: spacebot init)",
    ]
    again = instance.run()
    assert again.returncode == 1
    assert f"already running (pid {instance.pid})" in again.stderr
    assert stat.S_IMODE(instance.root.stat().st_mode) == 0o700
    for name in ("spacebot.pid", "spacebot.lock", "spacebot.sock", "logs/spacebot.out", "logs/spacebot.err"):
        assert stat.S_IMODE((instance.root / name).stat().st_mode) == 0o600, name

    stopped = instance.run("stop")
    assert (stopped.returncode, stopped.stderr) == (0, "spacebot stopped\n")
    assert not (instance.root / "spacebot.pid").exists()
    assert not (instance.root / "spacebot.sock").exists()
    assert instance.run("stop").returncode == 1


def test_the_daemon_is_on_its_own(instance: Instance) -> None:
    instance.run("start")
    pid = instance.pid

    assert os.getsid(pid) not in (os.getsid(0), pid)
    assert os.readlink(f"/proc/{pid}/cwd") == str(instance.root)
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    assert os.readlink(f"/proc/{pid}/fd/2") == str(instance.root / "logs/spacebot.err")
    umask = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Umask"))
    assert umask.split() == ["Umask:", "0077"]


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (
            lambda i: (i.root / "fail").write_text("the disk of agent 'main' is full"),
            "the disk of agent 'main' is full",
        ),
        (lambda i: (i.root / "config.toml").write_text("[api]\nport = 99999\n"), "api.port = 99999: must be at most"),
        (lambda i: (i.root / "config.toml").mkdir(), "is a directory"),
        (lambda i: (i.root / "bug").touch(), "internal error (ZeroDivisionError)"),
        (lambda i: (i.root / "crash").touch(), "spacebot ended while it was starting"),
    ],
    ids=["refused", "wrong value", "directory", "bug", "death"],
)
def test_start_fails_with_the_reason(instance: Instance, prepare, reason: str) -> None:
    instance.root.mkdir()
    prepare(instance)

    done = instance.run("start")
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert instance.run("start", "--foreground").returncode != 0
    assert instance.run("status").returncode == 1


def test_a_directory_that_cannot_be_written_is_told(instance: Instance) -> None:
    instance.environ["SPACEBOT_DIR"] = "/proc/spacebot"
    done = instance.run("start")

    assert done.returncode == 1
    assert "cannot write to the instance directory '/proc/spacebot'" in done.stderr


@pytest.mark.spec("control 8.1.22", "C-22", "CA-9")
def test_what_a_killed_daemon_leaves_behind_is_no_obstacle(instance: Instance) -> None:
    instance.run("start")
    os.kill(instance.pid, signal.SIGKILL)
    instance.wait_for(lambda: instance.run("status").returncode == 1, "the end of the daemon")
    assert not (instance.root / "spacebot.sock").exists()

    (instance.root / "spacebot.pid").write_text(f"{os.getpid()}\n")  # alive, but something else
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(instance.root / "spacebot.sock"))
    assert instance.run("status").returncode == 1
    assert instance.run("start").returncode == 0
    assert instance.run("stop").returncode == 0


def test_eight_starts_at_once_make_one_daemon(instance: Instance) -> None:
    starts = [instance.popen("start") for _ in range(8)]
    for start in starts:
        start.communicate(timeout=30)
    codes = sorted(start.returncode for start in starts)

    assert codes == [0] + [1] * 7
    shown = instance.run("status")
    assert shown.returncode == 0
    assert "rights:    main: profile standard" in shown.stdout


@pytest.mark.slow
def test_a_daemon_that_does_not_stop_is_described_and_can_be_forced(instance: Instance) -> None:
    instance.run("start")
    (instance.root / "stuck").touch()

    stopped = instance.run("stop")
    assert stopped.returncode == 1
    assert "still stopping after 10 seconds" in stopped.stderr
    assert "endless work" in stopped.stderr
    forced = instance.run("stop", "--force")
    assert forced.returncode == 0
    assert "was killed" in forced.stderr
    assert instance.run("status").returncode == 1


@pytest.mark.spec("CA-9")
def test_restart_in_the_background_makes_a_new_process(instance: Instance) -> None:
    instance.run("start")
    before = instance.pid
    done = instance.run("restart")

    assert done.returncode == 0
    assert instance.pid != before
    assert instance.run("restart").returncode == 0


@pytest.mark.spec("C-27")
def test_a_mistake_in_the_configuration_does_not_cost_the_running_daemon(instance: Instance) -> None:
    instance.run("start")
    (instance.root / "config.toml").write_text("[api]\nport = 'x'\n")
    done = instance.run("restart")

    assert done.returncode == 1
    assert "api.port = 'x': must be a whole number" in done.stderr
    assert "goes on with the configuration that it has" in done.stderr
    assert instance.run("status").returncode == 0


@pytest.mark.spec("C-27")
def test_a_foreground_daemon_restarts_in_place_and_speaks_to_its_service_manager(
    instance: Instance, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(15)
        daemon = instance.popen("start", "-f", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="600000")
        while manager.recv(500) != b"READY=1\nSTATUS=model demo/demo":
            pass
        first = json.loads(instance.run("status", "--json").stdout)
        done = instance.run("restart")
        second = json.loads(instance.run("status", "--json").stdout)
        assert done.returncode == 0, done.stderr
        assert second["pid"] == first["pid"] == daemon.pid
        assert second["run_id"] != first["run_id"]

        while manager.recv(500) != b"READY=1\nSTATUS=model demo/demo":
            pass
        os.kill(daemon.pid, signal.SIGHUP)
        heard = {manager.recv(500).split(b"\n")[0] for _ in range(8)}
        assert heard == {b"WATCHDOG=1", b"RELOADING=1", b"READY=1"}
        daemon.send_signal(signal.SIGTERM)
        while manager.recv(500) != b"STOPPING=1":
            pass
    out, err = daemon.communicate(timeout=15)
    assert (daemon.returncode, out) == (0, "")
    assert "web chat: http://127.0.0.1:1/" in err


def test_a_second_signal_cuts_everything_off(instance: Instance) -> None:
    daemon = instance.popen("start", "-f")
    instance.wait_until_up()
    (instance.root / "stuck").touch()
    daemon.send_signal(signal.SIGINT)
    instance.wait_for(lambda: "endless work" in instance.run("top").stdout, "the drain")
    daemon.send_signal(signal.SIGINT)

    daemon.communicate(timeout=10)
    assert daemon.returncode == 130
    assert instance.run("status").returncode == 1


@pytest.mark.spec("control 8.1.23", "C-23", "CA-9")
def test_another_configuration_means_another_instance(instance: Instance, tmp_path: Path) -> None:
    instance.run("start")
    other = tmp_path / "other" / "my.toml"
    other.parent.mkdir()
    other.write_text("")

    assert instance.run("status", "-c", str(other)).returncode == 1
    assert instance.run("-c", str(other), "start").returncode == 0
    assert instance.run("--config", str(other), "stop").returncode == 0
    assert instance.run("status").returncode == 0


def test_a_very_long_instance_path_works(instance: Instance, tmp_path: Path) -> None:
    instance.environ["SPACEBOT_DIR"] = str(tmp_path / ("deep" * 20) / ("deep" * 20))

    assert instance.run("start").returncode == 0
    assert instance.run("status").returncode == 0
    assert instance.run("stop").returncode == 0
