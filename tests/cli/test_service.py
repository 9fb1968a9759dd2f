"""The unit that is written: what systemd needs, nothing that breaks the sandbox, paths as they are."""

import os
import sys
from configparser import RawConfigParser
from pathlib import Path

import pytest

from spacebot.base.errors import RefusedError
from spacebot.base.paths import InstancePaths
from spacebot.cli import service
from spacebot.cli.main import main
from spacebot.cli.service import make_unit

ROOT = Path(__file__).resolve().parents[2]
EXE = ["/usr/local/bin/spacebot"]


def parse(text: str) -> RawConfigParser:
    """A unit as systemd reads it: sections, keys as they are written, the last value of each."""
    parser = RawConfigParser(strict=False, comment_prefixes=("#", ";"), delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string(text)
    return parser


def paths(root: Path) -> InstancePaths:
    return InstancePaths(root, root / "config.toml")


def test_the_unit_beside_the_sources_is_the_one_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACEBOT_DIR", raising=False)
    unit = make_unit(paths(Path("/var/lib/spacebot")), is_system=True, command=EXE, config=None)
    assert (ROOT / "build" / "spacebot.service").read_text() == unit.text
    assert unit.path == Path("/etc/systemd/system/spacebot.service")
    assert unit.user == "spacebot"


@pytest.mark.parametrize("is_system", [True, False])
def test_the_unit_says_what_systemd_needs_and_nothing_that_breaks_the_sandbox(is_system: bool) -> None:
    unit = make_unit(paths(Path("/srv/bot")), is_system=is_system, command=EXE, config=Path("/srv/bot/config.toml"))
    parsed = parse(unit.text)
    assert parsed.sections() == ["Unit", "Service", "Install"]
    told = parsed["Service"]
    assert told["ExecStart"] == "/usr/local/bin/spacebot --config /srv/bot/config.toml start --foreground"
    wanted = {
        "Type": "notify", "Restart": "on-failure", "KillSignal": "SIGTERM", "KillMode": "mixed", "TimeoutStopSec": "30",
        "NoNewPrivileges": "yes", "OOMPolicy": "continue", "UMask": "0077",
    }  # fmt: skip
    assert {key: told[key] for key in wanted} == wanted
    assert int(told["WatchdogSec"]) >= 30
    breaking = {
        "RestrictNamespaces", "SystemCallFilter", "ProtectKernelTunables", "ProtectKernelLogs", "ProtectProc",
        "ProcSubset", "MemoryDenyWriteExecute", "PrivateUsers", "PrivateNetwork", "PrivateDevices",
    }  # fmt: skip
    assert not breaking & set(told)
    assert ("ProtectSystem" in told) is is_system
    if is_system:
        assert told["ReadWritePaths"] == "/srv/bot"
        assert "StateDirectory" not in told
        assert "AF_NETLINK" in told["RestrictAddressFamilies"]


def test_paths_with_signs_of_their_own_are_quoted() -> None:
    config = Path('/srv/a b/50%/x"$y/config.toml')
    unit = make_unit(paths(config.parent), is_system=True, command=["/opt/my bot/spacebot"], config=config)
    told = parse(unit.text)["Service"]
    assert told["ExecStart"] == (
        '"/opt/my bot/spacebot" --config "/srv/a b/50%%/x\\"$$y/config.toml" start --foreground'
    )
    assert told["ReadWritePaths"] == '"/srv/a b/50%%/x\\"$y"'


def test_folders_elsewhere_that_workers_may_write_to_are_writable(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        '[[agents]]\nid = "main"\nworkspace = "/srv/work"\n[agents.sandbox]\nwritable_paths = ["/data/x"]\n'
    )
    unit = make_unit(
        paths(tmp_path), is_system=True, command=EXE, config=config, writable=service._outside(paths(tmp_path))
    )
    lines = [line for line in unit.text.splitlines() if line.startswith("ReadWritePaths=")]
    assert lines == [f"ReadWritePaths={tmp_path}", "ReadWritePaths=/data/x", "ReadWritePaths=/srv/work"]


def test_a_system_service_cannot_run_a_program_in_a_home() -> None:
    with pytest.raises(RefusedError, match="install the program elsewhere"):
        make_unit(paths(Path("/srv/bot")), is_system=True, command=["/home/ann/spacebot"], config=None)


def test_the_program_is_named_as_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPACEBOT_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("SPACEBOT_EXECUTABLE", "/opt/bot/spacebot")  # and not the file in the cache, which changes
    assert main(["service", "install", "--user", "--dry-run"]) == 0
    out = capsys.readouterr()
    assert "ExecStart=/opt/bot/spacebot start --foreground" in out.out
    assert f"Environment=SPACEBOT_DIR={tmp_path}" in out.out
    assert "systemctl --user daemon-reload" in out.err
    assert not (tmp_path / "config").exists()

    monkeypatch.delenv("SPACEBOT_EXECUTABLE")
    assert main(["service", "install", "--user", "--dry-run"]) == 0
    assert f"ExecStart={sys.executable} -m spacebot start" in capsys.readouterr().out


def test_install_status_and_uninstall_speak_to_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs, said = tmp_path / "bin", tmp_path / "said"
    programs.mkdir()
    (programs / "systemctl").write_text(
        f'#!/bin/sh\necho "$@" >> {said}\n[ "$2" = show ] && printf "ActiveState=active\\nMainPID=7\\n"\nexit 0\n'
    )
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("SPACEBOT_DIR", str(tmp_path / "instance"))
    monkeypatch.setenv("SPACEBOT_EXECUTABLE", "/opt/bot/spacebot")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    unit = tmp_path / "config" / "systemd" / "user" / "spacebot.service"

    assert main(["service", "status", "--user"]) == 1
    assert main(["service", "install", "--user"]) == 0
    assert "ExecStart=/opt/bot/spacebot" in unit.read_text()
    assert main(["service", "install", "--user"]) == 0, "again, for another path"
    assert main(["service", "status", "--user"]) == 0
    assert "pid:    7" in capsys.readouterr().out
    assert main(["service", "uninstall", "--user"]) == 0
    assert not unit.exists()
    assert said.read_text().splitlines()[:3] == [
        "--user daemon-reload", "--user enable spacebot.service", "--user restart spacebot.service",
    ]  # fmt: skip
    assert "--user disable --now spacebot.service" in said.read_text()

    unit.write_text("[Service]\nExecStart=/somebody/else\n")
    assert main(["service", "install", "--user"]) == 1
    assert main(["service", "uninstall", "--user"]) == 1
    assert "written by somebody else" in capsys.readouterr().err
    unit.unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert main(["service", "install", "--user"]) == 1
    assert "there is no systemd" in capsys.readouterr().err
