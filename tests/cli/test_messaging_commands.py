"""`spacebot messaging`, with a program whose adapters say what they are told."""

import json

import pytest

from spacebot.cli.messaging import adapter_words
from tests.cli.conftest import Instance
from tests.cli.test_commands import HEAVY, loaded_by

CONFIG = """\
[messaging.telegram]
token = "12:abcdef"

[[messaging.telegram.instances]]
name = "off"
token = "13:abcdef"
enabled = false

[messaging.slack]
bot_token = "env:NOT_SET"

[[bindings]]
agent_id = "nobody"
channel = "telegram"
"""


@pytest.fixture
def running(instance: Instance) -> Instance:
    instance.root.mkdir()
    (instance.root / "config.toml").write_text(CONFIG)
    assert instance.run("start").returncode == 0
    return instance


def test_every_adapter_has_its_line_also_in_the_status(running: Instance) -> None:
    shown = running.run("messaging", "status")

    assert shown.stderr == "warning: 'bindings[#1]' leads nowhere: there is no agent 'nobody'; there are: main\n"
    assert shown.stdout.splitlines() == [
        "telegram      connected as bot of telegram; 0 in, 0 out",
        "telegram:off  switched off",
        "slack         not connected: bot_token is given, but environment variable NOT_SET is not set and it has no "
        "app_token (give it there or in SLACK_APP_TOKEN)",
    ]
    whole = running.run("status").stdout
    assert "telegram:  connected as bot of telegram; 0 in, 0 out\n" in whole
    assert "telegram:off: switched off\n" in whole
    known = json.loads(running.run("messaging", "status", "--json").stdout)
    assert [instance["key"] for instance in known["instances"]] == ["telegram", "telegram:off", "slack"]
    assert known["telegram"] == {"configured": True, "enabled": True}
    assert [a["key"] for a in json.loads(running.run("status", "--json").stdout)["adapters"]] == [
        "telegram", "telegram:off", "slack",
    ]  # fmt: skip


def test_an_adapter_is_tested(running: Instance) -> None:
    asked = running.run("messaging", "test", "telegram")
    assert (asked.returncode, asked.stdout) == (0, "telegram is well\n")
    sent = running.run("messaging", "test", "telegram", "-100", "hello", "there", "--json")
    assert json.loads(sent.stdout) == {"success": True, "message": "sent to the room telegram:-100"}
    unknown = running.run("messaging", "test", "discord")
    assert (unknown.returncode, unknown.stderr) == (
        1, "error: there is no adapter 'discord'; there are: telegram, telegram:off\n"
    )  # fmt: skip
    half = running.run("messaging", "test", "telegram", "-100")
    assert (half.returncode, "what shall be sent there?" in half.stderr) == (1, True)
    absent = running.run("messaging", "test", "slack")
    assert (absent.returncode, "slack is not connected: bot_token is given" in absent.stderr) == (1, True)


def test_without_a_program_and_without_a_platform_it_says_so(instance: Instance) -> None:
    stopped = instance.run("messaging", "status")
    assert (stopped.returncode, "spacebot is not running" in stopped.stderr) == (1, True)
    assert instance.run("start").returncode == 0
    empty = instance.run("messaging", "status")
    assert (empty.returncode, empty.stdout, "no platform is configured" in empty.stderr) == (0, "", True)


def test_it_loads_next_to_nothing(instance: Instance) -> None:
    modules = loaded_by(instance, "messaging", "status")
    assert not modules & set(HEAVY)
    assert len(modules) < 160


def test_a_failing_adapter_is_one_line_without_tricks() -> None:
    instance = {
        "key": "x", "configured": True, "enabled": True, "state": "retrying", "who": "bot", "attempts": 3,
        "since": "2026-03-01T08:30:00.000Z", "next_attempt_at": "2026-03-01T08:31:00.000Z", "received": 7, "sent": 5,
        "failed": 1, "queued": 2, "detail": "refused\n\x1b[2J\u202e" + "x" * 500,
    }  # fmt: skip
    words = adapter_words(instance)

    assert words.startswith(
        "retrying since 2026-03-01 08:30 UTC, attempt 4 at 2026-03-01 08:31 UTC; "
        "7 in, 5 out, 1 failed, 2 waiting; refused"
    )
    assert not set(words) & {"\n", "\x1b", "\u202e"}
    assert len(words) < 350
