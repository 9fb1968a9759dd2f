"""Pages of other sites, borrowed names, oversized and broken requests, and commands of workers: nobody gets in."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.config.model import ApiConfig, SandboxConfig
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.storage.secrets import SecretStore
from spacebot.tools.sandbox import Backend, Containment
from spacebot.tools.subprocesses import run_command
from tests.api.serving import logged, open_server
from tests.attacks.stage import SYSTEM_SECRET, noted, with_secrets

SEND = {"agent_id": "main", "session_id": "portal:chat:main", "message": "delete everything"}
JSON = {"content-type": "application/json"}
FOREIGN: dict[str, Mapping[str, str]] = {
    "page of another site": {"origin": "https://evil.test"},
    "page of another port": {"origin": "http://localhost:1"},
    "page without an origin": {"origin": "null"},
    "page with an empty origin": {"origin": ""},
    "page of a file": {"origin": "file://"},
    "extension": {"origin": "chrome-extension://abcdef"},
    "page with our name before its own": {"origin": "http://127.0.0.1.evil.test"},
    "page that says so itself": {"sec-fetch-site": "cross-site"},
    "name that leads here": {"host": "evil.test"},
    "name that leads here, with our port": {"host": "evil.test:5738"},
    "name with ours before it": {"host": "localhost.evil.test"},
    "name with ours as a user": {"host": "localhost@evil.test"},
    "number of the network": {"host": "192.168.1.5"},
    "number of nothing": {"host": "0.0.0.0"},
    "decimal number": {"host": "2130706433"},
    "two names": {"host": "localhost, evil.test"},
    "forwarded for us": {"origin": "https://evil.test", "x-forwarded-host": "localhost", "forwarded": "host=localhost"},
    "method in a header": {"origin": "https://evil.test", "x-http-method-override": "GET"},
}
TARGETS: dict[str, tuple[str, str, Any]] = {
    "send": ("POST", "/api/webchat/send?wait=false", SEND),
    "history": ("GET", "/api/webchat/history?agent_id=main&session_id=portal:chat:main", None),
    "names of secrets": ("GET", "/api/secrets", None),
    "secret": ("PUT", "/api/secrets/MY_KEY", {"value": "overwritten-by-a-page"}),
    "removal of a secret": ("DELETE", "/api/secrets/MY_KEY", None),
    "skill": ("POST", "/api/agents/skills/install", {"spec": "evil/skills"}),
    "cancel": ("POST", "/api/cancel", {"process_id": "x"}),
}
BROKEN: dict[str, tuple[str, str, Mapping[str, str], bytes, int]] = {
    "body over the limit": ("POST", "/api/webchat/send", JSON, b'{"message": "' + b"x" * (10 * 2**20) + b'"}', 413),
    "deep JSON": ("POST", "/api/webchat/send", JSON, b"[" * 100_000, 400),
    "deep objects": ("POST", "/api/webchat/send", JSON, b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400),
    "huge number": ("POST", "/api/webchat/send", JSON, b'{"message": ' + b"9" * 5000 + b"}", 400),
    "not a number": ("POST", "/api/webchat/send", JSON, b'{"message": NaN}', 422),
    "no text": ("POST", "/api/webchat/send", JSON, b"\xff\xfe\x00", 400),
    "list": ("POST", "/api/webchat/send", JSON, b"[]", 400),
    "unknown field": ("POST", "/api/webchat/send", JSON, b'{"message": "x", "session_id": "s", "role": "system"}', 422),
    "parents in a path": ("GET", "/static/../../../etc/passwd", {}, b"", 303),
    "coded parents in a path": ("GET", "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", {}, b"", 303),
    "backslashes in a path": ("GET", "/static/..%5c..%5cetc%5cpasswd", {}, b"", 404),
    "NUL in a path": ("GET", "/static/app.js%00.html", {}, b"", 404),
    "absolute path": ("GET", "//etc/passwd", {}, b"", 303),
    "unknown agent": ("GET", "/api/channels?agent_id=..%2f..%2fother", {}, b"", 404),
    "SQL in an agent": ("GET", "/api/channels?agent_id=main'%20OR%201=1--", {}, b"", 404),
    "SQL in a session": ("GET", "/api/webchat/history?agent_id=main&session_id=x'%20OR%20'1'='1", {}, b"", 200),
    "trace": ("TRACE", "/api/status", {}, b"", 405),
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, list[str]]]:
    """Status, body and log of each attack, all on one server that keeps running."""

    async def run(folder: Path) -> dict[str, tuple[int, str, list[str]]]:
        store = SecretStore(folder)
        store.set("MY_KEY", SYSTEM_SECRET)
        found: dict[str, tuple[int, str, list[str]]] = {}
        requests: dict[str, tuple[str, str, Mapping[str, str], Any]] = {
            f"{who}: {what}": (method, path, headers, body)
            for who, headers in FOREIGN.items()
            for what, (method, path, body) in TARGETS.items()
        }
        requests |= {name: (method, path, headers, raw) for name, (method, path, headers, raw, _) in BROKEN.items()}
        async with open_server(folder, config=ApiConfig(port=0), secrets=LiveSecrets.open(folder)) as served:
            for name, (method, path, headers, body) in requests.items():
                with noted() as notes:
                    fields = {"content": body} if isinstance(body, bytes) else {"json": body} if body else {}
                    try:
                        answer = await served.client.request(method, path, headers=headers, **fields)
                        found[name] = (answer.status_code, answer.headers.get("location", answer.text), notes.lines())
                    except Exception as error:
                        found[name] = (0, f"{type(error).__name__}: {error}", notes.lines())
            assert (await served.client.get("/api/health")).status_code == 200
            found["what was said"] = (0, repr(await logged(served.agent)), [])
        found["what is kept"] = (0, repr({name: one.value for name, one in store.read().items()}), [])
        return found

    with with_secrets():
        return trio.run(run, tmp_path_factory.mktemp("doors"))


@pytest.mark.parametrize("who", FOREIGN)
def test_a_stranger_is_refused_at_every_door(who: str, answers: dict[str, tuple[int, str, list[str]]]) -> None:
    for what in TARGETS:
        status, body, log = answers[f"{who}: {what}"]
        assert status in (400, 403), (what, status, body)
        assert status == 400 or "request refused" in "".join(log), (what, log)
        assert SYSTEM_SECRET not in body


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_request_gets_nothing_done(name: str, answers: dict[str, tuple[int, str, list[str]]]) -> None:
    status, body, _ = answers[name]
    assert status == BROKEN[name][-1], body[:500]
    assert "root:x:0" not in body
    assert status != 303 or body == "/"  # to our own first page
    assert status != 200 or body == "[]", body


def test_nothing_was_said_and_nothing_changed(answers: dict[str, tuple[int, str, list[str]]]) -> None:
    assert answers["what was said"][1] == "[]"
    assert answers["what is kept"][1] == repr({"MY_KEY": SYSTEM_SECRET})


CALL = (
    "exec 3<>/dev/tcp/127.0.0.1/PORT; printf '{method} {path} HTTP/1.1\\r\\nHost: 127.0.0.1:PORT\\r\\n"
    "Connection: close\\r\\nContent-Length: 0\\r\\n\\r\\n' >&3; cat <&3"
)
FROM_BELOW = {
    "names of secrets": ("GET", "/api/secrets"),
    "removal of a secret": ("DELETE", "/api/secrets/MY_KEY"),
    "page": ("GET", "/"),
    "events": ("GET", "/api/events"),
    "ticket": ("POST", "/api/ticket"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not tell whose connection it is")
async def test_a_command_of_a_worker_is_no_owner(tmp_path: Path) -> None:
    SecretStore(tmp_path).set("MY_KEY", SYSTEM_SECRET)
    containment = Containment(
        workspace=tmp_path / "agents/main/workspace", instance_root=tmp_path, data_dir=tmp_path / "agents/main/data",
        tools_bin=tmp_path / "bin", settings=SandboxConfig, backend=Backend(),
    )  # fmt: skip
    containment.workspace.mkdir(parents=True)
    async with open_server(tmp_path, secrets=LiveSecrets.open(tmp_path)) as served:
        port = served.url.rpartition(":")[2]
        with noted() as notes:
            for name, (method, path) in FROM_BELOW.items():
                words = CALL.replace("PORT", port).format(method=method, path=path)
                invocation = await trio.to_thread.run_sync(containment.wrap, ["bash", "-c", words])
                report = await run_command(invocation, timeout_s=20)
                assert "403 Forbidden" in report.stdout, (name, report)
                assert "MY_KEY" not in report.stdout
        assert "".join(notes.lines()).count("a worker's command") == len(FROM_BELOW)
    assert SecretStore(tmp_path).list()[0].name == "MY_KEY"
