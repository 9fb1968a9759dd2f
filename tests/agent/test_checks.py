"""The doctor finds what was broken on purpose, says the mend, and never fails itself."""

import os
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from spacebot import __version__
from spacebot.agent import checks_machine, checks_program
from spacebot.agent.checks import Finding, Grade, Report, Scene, examine, summary
from spacebot.agent.checks_machine import MACHINE
from spacebot.agent.checks_program import PROGRAM
from spacebot.base.clock import Clock
from spacebot.base.paths import InstancePaths, package_file
from spacebot.base.redaction import register_secret
from spacebot.config.load import load_config
from spacebot.llm.oauth import TokenFile, Tokens
from spacebot.storage.database import migrate

SQL = package_file("storage", "sql")


@pytest.fixture
def paths(tmp_path: Path) -> InstancePaths:
    root = tmp_path / "instance"
    made = InstancePaths(root, root / "config.toml")
    old = os.umask(0o077)
    made.create()
    made.agent("main").create()
    migrate(made.agent("main").database, SQL, Clock())
    os.umask(old)
    return made


def scene(paths: InstancePaths, config: str = "", **fields: object) -> Scene:
    paths.config.write_text(config)
    paths.config.chmod(0o600)
    loaded = load_config(paths.config, environ={})
    made = Scene(
        paths=paths, config=loaded.config, warnings=loaded.warnings, environ=dict(os.environ),
        secrets={"state": "empty"},
    )  # fmt: skip
    return replace(made, **fields)


def found(findings: Iterable[Finding]) -> tuple[Grade, str]:
    """The worst of them, as its grade and all its words."""
    order = [Grade.OK, Grade.WARN, Grade.FAIL]
    worst = max(findings, key=lambda finding: order.index(finding.grade))
    assert worst.mend or worst.grade is Grade.OK, "what is not well says its mend"
    return worst.grade, f"{worst.said} | {worst.mend}"


async def test_a_sound_instance_is_well_and_each_finding_has_its_check(paths: InstancePaths) -> None:
    findings = await examine(scene(paths, "[defaults.browser]\nenabled = false\n"), {**PROGRAM, **MACHINE})
    report = summary(findings)
    assert report["ok"], [finding for finding in findings if finding.grade is Grade.FAIL]
    assert {finding.check for finding in findings} == {*PROGRAM, *MACHINE}
    assert [finding.check for finding in findings if finding.grade is Grade.WARN and finding.check in PROGRAM] == [
        "models"
    ]
    assert report["counts"]["ok"] > 12


async def test_a_check_that_fails_is_a_finding(paths: InstancePaths) -> None:
    register_secret("a-secret-in-the-words-of-an-error")

    def broken(_: Scene) -> Iterator[Finding]:
        raise ZeroDivisionError("a-secret-in-the-words-of-an-error")
        yield

    async def well(_: Scene) -> list[Finding]:
        await trio.lowlevel.checkpoint()
        return [Report("well").ok("fine")]

    findings = await examine(scene(paths), {"broken": broken}, {"well": well})
    assert [(finding.check, finding.grade) for finding in findings] == [("broken", Grade.WARN), ("well", Grade.OK)]
    assert "ZeroDivisionError" in findings[0].said
    assert "a-secret" not in findings[0].said


async def test_a_check_that_hangs_is_a_finding(paths: InstancePaths, autojump_clock: trio.testing.MockClock) -> None:
    async def hanging(_: Scene) -> list[Finding]:
        await trio.sleep_forever()
        return []

    (finding,) = await examine(scene(paths), {}, {"hanging": hanging})
    assert (finding.check, "longer than 60 s" in finding.said) == ("hanging", True)


def test_a_broken_file_and_its_warnings(paths: InstancePaths) -> None:
    made = scene(paths, "[api]\nprot = 1\n")
    assert found(PROGRAM["config"](made))[0] is Grade.WARN
    broken = replace(made, config=None, trouble="line 3: no TOML")
    assert found(PROGRAM["config"](broken)) == (
        Grade.FAIL, f"line 3: no TOML | correct {paths.config}; spacebot config check shows all of it",
    )  # fmt: skip
    for check in (*PROGRAM.values(), *MACHINE.values()):
        list(check(broken))


def test_the_folder_and_its_secret_files(paths: InstancePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    made = scene(paths)
    assert found(MACHINE["folder"](made))[0] is Grade.OK
    paths.root.chmod(0o755)
    assert found(MACHINE["folder"](made)) == (
        Grade.WARN, f"{paths.root} can be entered by others (mode 755) | chmod 700 {paths.root}",
    )  # fmt: skip
    (paths.root / "secret.key").touch(mode=0o644)
    (paths.root / "secret.key").chmod(0o644)
    assert "chmod 600" in found(PROGRAM["permissions"](made))[1]
    full = shutil.disk_usage("/")._replace(free=1 << 20)
    monkeypatch.setattr(checks_machine.shutil, "disk_usage", lambda _: full)
    assert found(MACHINE["folder"](made))[0] is Grade.FAIL
    gone = InstancePaths(paths.root / "no", paths.root / "no" / "config.toml")
    assert "the first start makes it" in found(MACHINE["folder"](replace(made, paths=gone)))[1]


def test_databases_that_are_damaged_or_of_a_newer_program(paths: InstancePaths) -> None:
    made, database = scene(paths), paths.agent("main").database
    assert found(PROGRAM["databases"](made))[0] is Grade.OK
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (9000, 'x', 'x', 'x')")
        connection.commit()
    assert "newer than this program" in found(PROGRAM["databases"](made))[1]
    database.write_bytes(b"SQLite format 3\0" + os.urandom(8192))
    grade, words = found(PROGRAM["databases"](made))
    assert (grade, "spacebot restore" in words) == (Grade.FAIL, True)


def test_ports_of_others_and_of_our_own(paths: InstancePaths) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        made = scene(paths, f"[api]\nport = {other.getsockname()[1]}\n")
        grade, words = found(PROGRAM["ports"](made))
        assert (grade, "taken by another program" in words, "api.port" in words) == (Grade.FAIL, True, True)
        assert found(PROGRAM["ports"](replace(made, pid=1)))[0] is Grade.OK


def test_the_program_that_runs_and_what_a_killed_one_left(paths: InstancePaths) -> None:
    made = scene(paths)
    assert "spacebot restart" in found(PROGRAM["daemon"](replace(made, status={"version": "0.0.1", "pid": 5})))[1]
    assert found(PROGRAM["daemon"](replace(made, status={"version": __version__, "pid": 5})))[0] is Grade.OK
    assert found(PROGRAM["daemon"](replace(made, pid=5)))[0] is Grade.FAIL
    paths.pid.write_text("1\n")
    assert "spacebot.pid of a killed one" in found(PROGRAM["daemon"](made))[1]


def test_keys_models_logins_platforms(paths: InstancePaths) -> None:
    made = scene(paths, '[defaults.routing]\nchannel = "openai/gpt-5"\n')
    assert found(PROGRAM["models"](made))[0] is Grade.FAIL
    assert "secret unlock" in found(PROGRAM["secrets"](replace(made, secrets={"state": "locked"})))[1]
    TokenFile(paths.login).save(
        Tokens(access_token="a" * 30, refresh_token="b" * 30, expires_at=int(time.time() * 1000), refused_at=5)
    )
    assert "auth login" in found(PROGRAM["login"](made))[1]
    status = {"version": __version__, "adapters": [{"key": "webhook", "state": "retrying", "detail": "no route"}]}
    made = scene(paths, '[messaging.webhook]\nenabled = true\nauth_token = "long-enough-token"\n', status=status)
    assert found(PROGRAM["platforms"](made)) == (Grade.FAIL, "webhook: no route | spacebot messaging test webhook")


def test_programs_that_the_configuration_names(paths: InstancePaths) -> None:
    made = scene(paths, '[[mcp_servers]]\nname = "files"\ntransport = "stdio"\ncommand = "npx"\n')
    made = replace(made, environ={"PATH": "/nowhere"})
    grade, words = found(MACHINE["programs"](made))
    assert (grade, "install Node.js" in words) == (Grade.FAIL, True)
    assert "no browser is installed" in found(MACHINE["browser"](made))[1]


def test_programs_that_are_asked_for_their_version_see_no_key(
    paths: InstancePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_PROVIDER_API_KEY", "a-key-of-the-owner")
    for name in ("chromium", "chromedriver"):
        (tmp_path / name).write_text(f'#!/bin/sh\nenv > {tmp_path}/{name}.env\necho "{name} 150.0.1"\n')
        (tmp_path / name).chmod(0o755)
    made = scene(paths, f'[defaults.browser]\nexecutable_path = "{tmp_path / "chromium"}"\n')
    made = replace(made, environ={**os.environ, "CHROMEDRIVER": str(tmp_path / "chromedriver")})
    assert found(MACHINE["browser"](made))[0] is Grade.OK
    for name in ("chromium", "chromedriver"):
        assert "a-key-of-the-owner" not in (tmp_path / f"{name}.env").read_text()


def test_a_browser_and_a_driver_that_do_not_fit(paths: InstancePaths, tmp_path: Path) -> None:
    for name, version in (("chromium", "150.0.1"), ("chromedriver", "149.0.7")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} {version}\n")
        (tmp_path / name).chmod(0o755)
    made = replace(scene(paths), environ={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert found(MACHINE["browser"](made)) == (
        Grade.FAIL,
        "Chromium is 150.0.1, its driver 149.0.7 | "
        "install both from the same source, so that they have the same first number",
    )


def test_the_clock_the_network_and_the_limits(paths: InstancePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    made = scene(paths)
    log = paths.logs / "spacebot.log"
    log.touch()
    os.utime(log, (time.time() + 90_000,) * 2)
    assert "come from the future, by 25.0 hours" in found(MACHINE["clock"](made))[1]
    log.unlink()
    assert found(MACHINE["clock"](made))[0] is Grade.OK
    proxied = replace(made, environ={"HTTPS_PROXY": "http://user:pass@proxy:1", "SSL_CERT_FILE": "/nowhere.pem"})
    words = [f"{finding.said} {finding.mend}" for finding in MACHINE["network"](proxied)]
    assert any("HTTPS_PROXY is set" in word for word in words)
    assert any("/nowhere.pem" in word for word in words)
    assert not any("pass@" in word for word in words), "an address of a proxy may hold a password"
    monkeypatch.setattr(checks_machine, "_memory", lambda: 200 << 20)
    assert "200 MiB" in found(MACHINE["limits"](made))[1]


def test_backups_that_wait_and_releases_that_are_known(paths: InstancePaths) -> None:
    waiting = paths.root / "restore-1"
    waiting.mkdir()
    (waiting / "ready").write_text("{}")
    made = scene(paths, '[update]\nrepository = "o/r"\n')
    assert "restore-1" in found(PROGRAM["leftovers"](made))[1]
    status = {"version": __version__, "update": {"update_available": True, "latest_version": "9.0"}}
    assert "9.0 is there" in found(checks_program.PROGRAM["update"](replace(made, status=status)))[1]
