"""Messaging is set up over HTTP: what is changed stands in the owner's file, and counts at once."""

import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from spacebot.api import messaging_control
from spacebot.base.errors import DeliveryError, NotFoundError
from spacebot.messaging.states import AdapterState, Connection
from tests.api.serving import UNREAD, Served, open_server

pytestmark = pytest.mark.filterwarnings(UNREAD)
TOKEN = "MTA5NDQ2NzE4MjQ1Njc4OTAxMg.GabcdE.abcdefghijklmnopqrstuvwxyz0123456789AB"
FILE = f"""\
# mine
[messaging.discord]
token = "{TOKEN}"  # do not show

[[messaging.discord.instances]]
name = "ops"
token = "env:NOT_SET_HERE"

[messaging.telegram]
token = "12:abcdef-secret"
enabled = false

[[bindings]]
agent_id = "main"
channel = "discord"
guild_id = 5
require_mention = true

[[bindings]]
agent_id = "gone"
channel = "telegram"
"""


class Setup:
    """A server over a configuration file."""

    def __init__(self, served: Served, file: Path) -> None:
        self.served = served
        self.program = served.program
        self.file = file

    async def ask(self, method: str, path: str, code: int = 200, **body: Any) -> dict[str, Any]:
        response = await self.served.client.request(method, f"/api/{path}", json=body if method != "GET" else None)
        assert response.status_code == code, response.text
        assert "-secret" not in response.text
        assert TOKEN not in response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def status(self) -> dict[str, Any]:
        return await self.ask("GET", "messaging/status")

    async def instances(self) -> dict[str, dict[str, Any]]:
        return {instance["key"]: instance for instance in (await self.status())["instances"]}

    def tables(self) -> dict[str, Any]:
        return tomllib.loads(self.file.read_text())


@asynccontextmanager
async def open_setup(folder: Path, text: str | None = FILE) -> AsyncIterator[Setup]:
    file = folder / "config.toml"
    if text is not None:
        file.write_text(text)
    async with open_server(folder) as served:
        yield Setup(served, file)


@pytest.mark.spec("messaging 16: status")
async def test_the_status_names_every_account_with_its_connection(tmp_path: Path) -> None:
    moment = datetime(2026, 3, 1, 8, 30, tzinfo=UTC)
    async with open_setup(tmp_path) as setup:
        setup.program.messaging.known["discord"] = AdapterState(
            key="discord", platform="discord", state=Connection.RETRYING, detail="the token was refused", since=moment,
            attempts=3, next_attempt_at=moment, received=7, sent=5, failed=1, queued=2,
        )  # fmt: skip
        status = await setup.status()

    assert status["warnings"] == ["'bindings[#2]' leads nowhere: there is no agent 'gone'; there are: main"]
    assert {name: status[name] for name in status if name not in ("instances", "warnings")} == {
        "discord": {"configured": True, "enabled": True},
        "slack": {"configured": False, "enabled": False},
        "telegram": {"configured": True, "enabled": False},
        "twitch": {"configured": False, "enabled": False},
        "webhook": {"configured": False, "enabled": False},
    }
    discord, telegram, ops = status["instances"]
    assert discord == {
        "key": "discord", "platform": "discord", "name": None, "configured": True, "enabled": True,
        "state": "retrying", "detail": "the token was refused", "who": "", "since": "2026-03-01T08:30:00.000Z",
        "attempts": 3, "next_attempt_at": "2026-03-01T08:30:00.000Z", "received": 7, "sent": 5, "failed": 1,
        "queued": 2, "binding_count": 1,
    }  # fmt: skip
    assert (telegram["state"], telegram["enabled"], telegram["binding_count"]) == ("disabled", False, 1)
    assert (ops["key"], ops["name"], ops["configured"], ops["state"]) == ("discord:ops", "ops", False, "stopped")
    assert ops["detail"] == ("not connected: token is given, but environment variable NOT_SET_HERE is not set")


async def test_an_account_is_switched_and_the_program_follows_at_once(tmp_path: Path) -> None:
    async with open_setup(tmp_path) as setup:
        answer = await setup.ask("POST", "messaging/toggle", platform="telegram", enabled=True)
        assert answer == {"success": True, "restart_required": False, "message": "telegram is switched on"}
        assert (await setup.instances())["telegram"]["state"] == "connected"
        await setup.ask("POST", "messaging/toggle", platform="telegram", enabled=False)
        assert (await setup.instances())["telegram"]["state"] == "disabled"
        assert setup.file.read_text() == FILE

        await setup.ask("POST", "messaging/toggle", platform="webhook", enabled=True)
        assert (await setup.instances())["webhook"]["state"] == "connected"
        unknown = await setup.ask("POST", "messaging/toggle", platform="slack", enabled=True)
        assert (unknown["success"], unknown["message"]) == (
            False, "slack is not configured; add it with its credentials first"
        )  # fmt: skip
        absent = await setup.ask("POST", "messaging/toggle", platform="discord", adapter="OPS", enabled=True)
        assert not absent["success"]
        assert "discord:ops is switched on, but discord:ops is not connected: token is given" in absent["message"]


async def test_a_platform_is_disconnected_with_its_bindings(tmp_path: Path) -> None:
    async with open_setup(tmp_path) as setup:
        await setup.ask("POST", "messaging/disconnect", platform="discord", adapter="discord:ops")
        assert list(await setup.instances()) == ["discord", "telegram"]
        assert (await setup.ask("POST", "messaging/disconnect", platform="discord"))["success"]
        assert list(await setup.instances()) == ["telegram"]
        assert [binding["channel"] for binding in setup.tables()["bindings"]] == ["telegram"]
        assert setup.file.read_text().startswith("# mine\n")
        assert not (await setup.ask("POST", "messaging/disconnect", platform="discord"))["success"]


@pytest.mark.spec("control 4.7: bindings")
async def test_bindings_are_listed_added_changed_and_removed(tmp_path: Path) -> None:
    async with open_setup(tmp_path) as setup:
        first, second = (await setup.ask("GET", "bindings"))["bindings"]
        assert first == {
            "index": 0, "agent_id": "main", "channel": "discord", "guild_id": "5", "workspace_id": None,
            "chat_id": None, "adapter": None, "channel_ids": [], "require_mention": True, "dm_allowed_users": [],
            "authority": None,
        }  # fmt: skip
        assert (await setup.ask("GET", "bindings?agent_id=gone"))["bindings"] == [second]

        await setup.ask(
            "POST", "bindings", agent_id="main", channel="telegram", chat_id=-100, channel_ids=[], guild_id=""
        )
        added = (await setup.ask("GET", "bindings"))["bindings"][2]
        assert (added["chat_id"], setup.program.config.bindings[2].chat_id) == ("-100", "-100")
        original = {f"original_{k}": v for k, v in (("agent_id", "main"), ("channel", "telegram"), ("chat_id", -100))}
        await setup.ask("PUT", "bindings", agent_id="main", channel="telegram", dm_allowed_users=["7"], **original)
        assert setup.program.config.bindings[2].dm_allowed_users == ("7",)
        nobody = await setup.ask("PUT", "bindings", agent_id="main", channel="telegram", **original)
        assert (nobody["success"], "may have been changed meanwhile" in nobody["message"]) == (False, True)
        await setup.ask("DELETE", "bindings", agent_id="main", channel="telegram", index=2)
        await setup.ask("DELETE", "bindings", agent_id="gone", channel="telegram")
        await setup.ask("DELETE", "bindings", agent_id="main", channel="discord", guild_id="5")
        assert (await setup.ask("GET", "bindings"))["bindings"] == []
        assert "bindings" not in setup.tables()


async def test_a_binding_brings_its_account_along_also_when_there_is_no_file_yet(tmp_path: Path) -> None:
    async with open_setup(tmp_path, None) as setup:
        await setup.ask("DELETE", "bindings", 404, agent_id="main", channel="slack")
        await setup.ask(
            "POST", "bindings", agent_id="main", channel="slack", workspace_id="T1",
            platform_credentials={"slack_bot_token": " xoxb-secret-1 ", "slack_app_token": "xapp-secret-2"},
        )  # fmt: skip
        await setup.ask(
            "POST", "bindings", agent_id="main", channel="telegram", adapter="Team",
            platform_credentials={"telegram_token": "1:secret-3"},
        )  # fmt: skip

        assert [instance["key"] for instance in (await setup.status())["instances"]] == ["slack", "telegram:Team"]
        assert setup.tables()["messaging"] == {
            "slack": {"bot_token": "xoxb-secret-1", "app_token": "xapp-secret-2", "enabled": True},
            "telegram": {"instances": [{"name": "Team", "token": "1:secret-3", "enabled": True}]},
        }
        assert (setup.file.stat().st_mode & 0o777) == 0o600
        answer = await setup.ask(
            "POST",
            "bindings",
            agent_id="main",
            channel="discord",
            platform_credentials={"discord_token": "client secret"},
        )
        assert not answer["success"]
        assert "its token has not the form of a bot token" in answer["message"]


@pytest.mark.spec("C-6")
@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"agent_id": "nobody", "channel": "discord"}, 404, "no agent 'nobody'"),
        ({"agent_id": "main", "channel": "icq"}, 400, "channel must be one of discord"),
        ({"agent_id": "main", "channel": "slack"}, 400, "slack is not configured; give platform_credentials"),
        ({"agent_id": "main", "channel": "discord", "adapter": "x"}, 400, "discord:x is not configured"),
        ({"agent_id": "main", "channel": "slack", "platform_credentials": {"telegram_token": "x"}}, 400,
         "'telegram_token' is no credential of slack; it has slack_bot_token, slack_app_token"),
        ({"agent_id": "main"}, 422, "channel"),
        ({"agent_id": "main", "channel": "discord", "guild": "1"}, 422, "guild"),
        ({"agent_id": "main", "channel": "discord", "channel_ids": ["x" * 300]}, 409, "nothing was changed, because"),
    ],
)  # fmt: skip
async def test_what_would_lead_nowhere_is_refused_in_words(
    tmp_path: Path, body: dict[str, Any], code: int, words: str
) -> None:
    async with open_setup(tmp_path) as setup:
        assert words in (await setup.ask("POST", "bindings", code, **body))["error"]
        assert setup.file.read_text() == FILE


async def test_a_broken_file_is_not_touched(tmp_path: Path) -> None:
    async with open_setup(tmp_path) as setup:
        setup.file.write_text("[messaging\n")
        answer = await setup.ask("POST", "messaging/toggle", 409, platform="discord", enabled=False)
        assert "line 1: not valid TOML" in answer["error"]
        assert setup.file.read_text() == "[messaging\n"


async def test_an_adapter_is_tested_and_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messaging_control, "PATIENCE_S", 0.01)
    async with open_setup(tmp_path) as setup:
        answers, sent = setup.program.messaging.answers, setup.program.messaging.sent
        good = {"success": True, "message": "discord is well"}
        assert await setup.ask("POST", "messaging/test", adapter=" Discord ") == good
        placed = await setup.ask("POST", "messaging/test", adapter="discord", target="1:2", text="hello")
        assert (placed, sent) == (
            {"success": True, "message": "sent to the room discord:1:2"}, [("discord:1:2", "hello")]
        )  # fmt: skip
        answers["discord"] = DeliveryError("the token was refused: make a new one", is_permanent=True)
        refused = {"success": False, "message": "the token was refused: make a new one"}
        assert await setup.ask("POST", "messaging/test", adapter="discord") == refused
        answers["discord"] = "never"
        silent = await setup.ask("POST", "messaging/test", adapter="discord")
        assert (silent["success"], "did not answer within" in silent["message"]) == (False, True)
        answers["discord:9"] = NotFoundError("no room 9")

        for code, words, body in (
            (404, "there is no adapter 'slack'; there are: discord, telegram", {"adapter": "slack"}),
            (400, "discord:ops is not connected: token is given", {"adapter": "discord:ops"}),
            (400, "needs both a target and a text", {"adapter": "discord", "target": "1"}),
            (400, "at most 2000 characters", {"adapter": "discord", "target": "1", "text": "x" * 2001}),
            (404, "no room 9", {"adapter": "discord", "target": "9", "text": "x"}),
        ):
            assert words in (await setup.ask("POST", "messaging/test", code, **body))["error"]
