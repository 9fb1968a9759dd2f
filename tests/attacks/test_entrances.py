"""Hostile configuration through every entrance that writes the owner's file: it stays as it was, and says no secret.

What a file may hold at all is judged by `tests/config/test_hostile.py`; here it comes by the API and by `init`.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.config.load import MAX_FILE_BYTES
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.storage.secrets import SecretStore
from tests.api.serving import UNREAD, open_server
from tests.attacks.stage import FORBIDDEN, SYSTEM_SECRET, TOOL_SECRET, noted, with_secrets
from tests.cli.conftest import Instance

pytestmark = pytest.mark.filterwarnings(UNREAD)
FILE = f"""\
# the owner's own words
[llm]
groq_key = "{SYSTEM_SECRET}"  # plain, as people do
openai_key = "secret:MY_KEY"

[messaging.telegram]
token = "12:abcdefgh-abcdefgh"
enabled = false

[[bindings]]
agent_id = "main"
channel = "telegram"
chat_id = "-100"

[[agents]]
id = "main"
max_turns = 9

[[mcp_servers]]
name = "one"
transport = "http"
url = "http://127.0.0.1:1/mcp"
enabled = false
headers = {{ Authorization = "Bearer {TOOL_SECRET}" }}
"""
BREAKS = '"\n[api]\nauth_token = "mine"\n#'  # ends a text and begins a table, were it pasted into one
WORDS = {
    "a line of its own": BREAKS,
    "a table in a name": 'x"]\n[api]\nport = 1\n["y',
    "NUL": "a\0b",
    "half a character": "\ud800",
    "control characters": "a\x1b[2J\x7fb",
    "parents": "../../other",
    "without an end": "x" * 300_000,
}
TEXTS = {
    "no TOML": "[defaults",
    "nested": "x = " + "[" * 100_000,
    "nested tables": "x = " + "{a=" * 50_000 + "1" + "}" * 50_000,
    "dots": "[x" + ".x" * 100_000 + "]",
    "too long": "#" * (MAX_FILE_BYTES + 1),
    "NUL": "[defaults]\nmax_turns = 3\0",
    "half a character": '[defaults]\nuser_timezone = "\ud800"\n',
    "twice": "[defaults]\nmax_turns = 3\nmax_turns = 4\n",
    "no number": "[defaults]\nmax_turns = nan\n",
    "a name out of the folder": '[[agents]]\nid = "../x"\n',
    "two of one name": '[[agents]]\nid = "a"\n[[agents]]\nid = "a"\n',
    "open to all without a token": '[api]\nbind = "0.0.0.0"\n',
    "a number out of range": "[defaults]\nmax_concurrent_workers = 99999999999999999999\n",
    "a mask for a key": '[llm]\nanthropic_key = "********-0123456789ab"\n',
}
SECTIONS = ("routing", "tuning", "budget", "compaction", "worker", "permissions", "browser", "opencode", "sandbox")
Ask = tuple[str, str, Any]


def asks() -> dict[str, Ask]:
    """What is sent, by name; each has to be refused."""
    found: dict[str, Ask] = {}
    for name, text in TEXTS.items():
        found[f"raw: {name}"] = ("PUT", "/api/config/raw", {"content": text})
    for name, word in WORDS.items():
        for section in SECTIONS:
            found[f"{section}, a key: {name}"] = ("PUT", "/api/agents/config", {section: {word: 1}})
        found[f"agent: {name}"] = ("POST", "/api/agents", {"agent_id": word})
        found[f"provider: {name}"] = ("PUT", "/api/providers", {"provider": word, "api_key": "k" * 20})
        found[f"platform: {name}"] = ("POST", "/api/messaging/toggle", {"platform": word, "enabled": True})
        found[f"account: {name}"] = (
            "POST", "/api/messaging/disconnect", {"platform": "telegram", "adapter": f"telegram:{word}"},
        )  # fmt: skip
        found[f"binding's agent: {name}"] = ("POST", "/api/bindings", {"agent_id": word, "channel": "telegram"})
        found[f"binding's platform: {name}"] = ("POST", "/api/bindings", {"agent_id": "main", "channel": word})
        found[f"MCP server: {name}"] = (
            "PUT", "/api/mcp/servers", {"name": word, "transport": "stdio", "command": "true"},
        )  # fmt: skip
        found[f"zone: {name}"] = ("PUT", "/api/agents/config", {"tuning": {"user_timezone": word}})
        found[f"profile: {name}"] = ("PUT", "/api/agents/config", {"permissions": {"profile": word}})
        found[f"bind: {name}"] = ("PUT", "/api/settings", {"api_bind": word})
        found[f"what workers leave: {name}"] = ("PUT", "/api/settings", {"worker_log_mode": word})
    for name, value in {
        "no number": float("nan"), "too large": 10**30, "below nothing": -1, "a text": "many", "a list": [1],
        "a table": {"a": 1}, "deep": [[[[[[[[[[1]]]]]]]]]],
    }.items():  # fmt: skip
        found[f"turns: {name}"] = ("PUT", "/api/agents/config", {"tuning": {"max_turns": value}})
        found[f"port: {name}"] = ("PUT", "/api/settings", {"api_port": value})
    return found


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each of them asked once of one server; what it said, and what is different afterwards."""

    async def run(folder: Path) -> dict[str, Any]:
        file = folder / "config.toml"
        file.write_text(FILE)
        SecretStore(folder).set("MY_KEY", SYSTEM_SECRET)
        found: dict[str, Any] = {"answers": {}, "changed": []}
        async with open_server(folder, secrets=LiveSecrets.open(folder), patience_s=90.0) as served:
            before = served.program.config
            for name, (method, path, body) in asks().items():
                answer = await served.client.request(
                    method, path, content=json.dumps(body).encode(), headers={"content-type": "application/json"}
                )
                found["answers"][name] = (answer.status_code, answer.text)
                if file.read_text() != FILE:
                    found["changed"].append(name)
                    file.write_text(FILE)
            found["same"] = served.program.config == before
            found["health"] = (await served.client.get("/api/status")).status_code
        found["left"] = sorted(path.name for path in folder.iterdir() if path.name.startswith("config.toml"))
        return found

    with with_secrets(), noted() as notes:
        found = trio.run(run, tmp_path_factory.mktemp("entrances"))
    found["log"] = "\n".join(notes.lines())
    return found


def test_nothing_hostile_gets_into_the_file(played: dict[str, Any]) -> None:
    assert played["changed"] == []
    assert played["same"]
    assert played["left"] == ["config.toml"]


def test_each_is_refused_in_words_that_show_no_secret(played: dict[str, Any]) -> None:
    wrong = {name: found for name, found in played["answers"].items() if not 400 <= found[0] < 500}
    assert {name: found for name, found in wrong.items() if '"success":false' not in found[1]} == {}
    for name, (_, text) in played["answers"].items():
        assert not any(secret in text for secret in FORBIDDEN), name
        assert '"error"' in text or '"message"' in text, (name, text[:200])
        assert "Traceback" not in text, name
    assert not any(secret in played["log"] for secret in FORBIDDEN)
    assert played["health"] == 200


LOOKS = (
    "/api/config/raw", "/api/settings", "/api/config/explain", "/api/agents/config", "/api/agents", "/api/providers",
    "/api/mcp/servers", "/api/bindings", "/api/messaging/status", "/api/overview",
)  # fmt: skip
CHANGES: tuple[Ask, ...] = (
    ("PUT", "/api/agents/config", {"tuning": {"max_turns": 5}}),
    ("PUT", "/api/settings", {"worker_log_mode": "failed_only"}),
    ("POST", "/api/agents", {"agent_id": "bob"}),
    ("DELETE", "/api/agents?agent_id=bob", None),
    ("PUT", "/api/providers", {"provider": "openai", "api_key": "k" * 20}),
    ("DELETE", "/api/providers/groq", None),
    ("POST", "/api/bindings", {"agent_id": "main", "channel": "telegram"}),
    ("POST", "/api/messaging/toggle", {"platform": "telegram", "enabled": True}),
    ("POST", "/api/messaging/disconnect", {"platform": "telegram"}),
    ("POST", "/api/mcp/servers", {"name": "two", "transport": "stdio", "command": "true"}),
    ("PUT", "/api/mcp/servers", {"name": "one", "enabled": True}),
    ("DELETE", "/api/mcp/servers/one", None),
)
IN_PLACE = ("no TOML", "nested", "NUL", "dots")


async def test_a_file_that_somebody_broke_is_told_at_every_route_and_left_alone(tmp_path: Path) -> None:
    """The owner, or a program of his, wrote it while we run: no route breaks over it, shows keys of it or mends it."""
    file = tmp_path / "config.toml"
    file.write_text(FILE)
    wrong = []
    with with_secrets():
        async with open_server(tmp_path, secrets=LiveSecrets.open(tmp_path), patience_s=60.0) as served:
            for name in IN_PLACE:
                broken = f"{FILE}\n{TEXTS[name]}"
                file.write_text(broken)
                for method, path, body in (*(("GET", look, None) for look in LOOKS), *CHANGES):
                    answer = await served.client.request(method, path, json=body)
                    is_refused = 400 <= answer.status_code < 500 or '"success":false' in answer.text
                    if answer.status_code >= 500 or (method != "GET" and not is_refused):
                        wrong.append((name, method, path, answer.status_code, answer.text[:200]))
                    if any(secret in answer.text for secret in FORBIDDEN):
                        wrong.append((name, method, path, "shows a secret"))
                    if file.read_text() != broken:
                        wrong.append((name, method, path, "changed the file"))
                        file.write_text(broken)
    assert wrong == []


INIT: dict[str, tuple[str, ...]] = {
    "an agent that ends a text": ("--provider", "openai", "--key-env", "MY_KEY", "--agent", BREAKS),
    "a model that ends a text": ("--provider", "openai", "--key-env", "MY_KEY", "--model", BREAKS),
    "an address that is none": ("--provider", "mine", "--url", f"http://x/{BREAKS}", "--api-type", "anthropic"),
}


@pytest.mark.parametrize("name", INIT)
def test_init_writes_nothing_that_it_was_tricked_into(name: str, tmp_path: Path) -> None:
    instance = Instance(tmp_path / "instance")
    instance.environ["MY_KEY"] = SYSTEM_SECRET
    done = instance.run("init", "--no-test", "-y", *INIT[name])
    assert SYSTEM_SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    file = instance.root / "config.toml"
    if done.returncode == 0:  # then it is one text, kept as one
        assert tomllib.loads(file.read_text()).get("api") is None
        assert SYSTEM_SECRET not in file.read_text()
    else:
        assert not file.exists()
