"""A real daemon with something in every store, and secrets that must never be seen again."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from tests.real_daemon import Daemon

SECRETS = {
    "provider": "sk-fuzz-7f3a91c2e58b4d6690aa17",
    "search": "fuzzed-search-key-5521097734",
    "telegram": "7301944821:AAFuzzFuzzFuzzFuzzFuzzFuzzFuzzFuzzFu",
    "store": "stored-value-90317755-never-shown",
    "mcp": "mcp-token-1182639955-never-shown",
}
CONFIG = f"""
[llm.provider.spare]
api_type = "openai_completions"
base_url = "http://127.0.0.1:9"
api_key = "{SECRETS["provider"]}"

[defaults]
brave_search_key = "{SECRETS["search"]}"

[messaging.telegram]
enabled = false
token = "{SECRETS["telegram"]}"

[[bindings]]
agent_id = "main"
channel = "telegram"

[[mcp_servers]]
name = "spare"
transport = "http"
enabled = false
url = "http://127.0.0.1:9/mcp"
headers = {{ Authorization = "Bearer {SECRETS["mcp"]}" }}
"""
OUTSIDE = (  # these ask other machines; whether those answer is not what is looked at here
    "/api/skills/registry/browse",
    "/api/skills/registry/search",
    "/api/agents/skills/install",
    "/api/providers/test",
    "/api/providers/login",
    "/api/models/refresh",
    "/api/update/check",
    "/api/update/apply",
)
Known = Mapping[str, list[str]]


def make_daemon(folder: Path) -> Daemon:
    """A daemon of the demo model, not started yet."""
    return Daemon(folder, model_url=None, extra=CONFIG)


def fill(url: str) -> Known:
    """Put something into every store; returns ids that routes know, by the name of their parameter."""
    with requests.Session() as session:

        def send(method: str, path: str, **how: Any) -> Any:
            answer = session.request(method, f"{url}{path}", timeout=60, **how)
            assert answer.status_code < 300, (method, path, answer.status_code, answer.text[:500])
            return answer.json() if answer.headers["content-type"].startswith("application/json") else answer.text

        for session_id in ("s2", "s1", "s0"):
            body = {"session_id": session_id, "message": "Hello. What is 2 + 2?"}
            send("POST", "/api/webchat/send?wait=false", json=body)
        first = send("POST", "/api/agents/memories", json={"content": "Ann likes green tea", "importance": 0.7})
        edge = [{"target_id": first["memory"]["id"], "relation_type": "related_to"}]
        more = {"content": "Green tea comes from Uji", "associations": edge}
        second = send("POST", "/api/agents/memories", json=more)
        job = {"id": "daily", "prompt": "Say good morning", "interval_secs": 86400, "delivery_target": "webchat:s2"}
        send("POST", "/api/agents/cron", json=job)
        send("POST", "/api/agents/cron/trigger", json={"cron_id": "daily"})
        send("PUT", "/api/secrets/FUZZ_KEY", json={"value": SECRETS["store"]})
        files = {"file": ("notes.txt", b"The harbour of Oslo freezes seldom.", "text/plain")}
        send("POST", "/api/agents/ingest/upload", files=files)
        send("POST", "/api/cortex-chat/send", json={"message": "What do you know?"})
        listed = send("GET", "/api/channels")["channels"]
        captures = send("GET", "/api/prompts/captures")["captures"]
        messages = send("GET", "/api/webchat/history", params={"session_id": "s0"})
        return {
            "agent_id": ["main"],
            "session_id": ["s0", "s1"],
            "channel_id": [channel["id"] for channel in listed],
            "memory_id": [first["memory"]["id"], second["memory"]["id"]],
            "message_id": [message["id"] for message in messages],
            "capture_id": [str(capture["id"]) for capture in captures],
            "process_id": [str(capture["process_id"]) for capture in captures],
            "cron_id": ["daily"],
            "name": ["FUZZ_KEY", "spare"],
        }


def leaked(content: bytes) -> list[str]:
    """Which secrets stand in an answer, plainly or in the codings that are tried first."""
    found = []
    for name, value in SECRETS.items():
        raw = value.encode()
        if any(form in content for form in (raw, base64.b64encode(raw).rstrip(b"=")[:-1], raw.hex().encode())):
            found.append(name)
    return found
