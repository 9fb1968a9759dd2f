"""Every route that changes something, as a page of another site could ask for it through its visitor's browser.

The routes come from the document of the API, so one that is added later is tried too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.config.model import ApiConfig
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.storage.secrets import SecretStore
from tests.api.serving import UNREAD, Served, logged, open_server
from tests.attacks.stage import SYSTEM_SECRET, noted, with_secrets

pytestmark = [pytest.mark.filterwarnings(UNREAD), pytest.mark.spec("C-67")]
FILE = '# mine\n[defaults]\nmax_turns = 7\n[[agents]]\nid = "main"\n'
EVIL = "http://evil.test"
# By header alone: whatever the body, nobody reads it.
REFUSED: dict[str, Mapping[str, str]] = {
    "foreign origin that claims to be our own site": {"origin": EVIL, "sec-fetch-site": "same-origin"},
    "origin without a name": {"origin": "null"},
    "no origin, but across sites": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    "no origin, but a foreign referer": {"referer": f"{EVIL}/page"},
    "rebound name of its own site": {
        "host": "evil.test:{port}", "origin": "http://evil.test:{port}", "sec-fetch-site": "same-origin",
    },
}  # fmt: skip
# What a page may send without asking first, once it has passed for somebody at this machine (an old browser's form).
FORMS = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "text/json")
SHARED = {"application/zip", "multipart/form-data"}  # uploads have types of their own


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All of it against one server: what was let through, and what is different afterwards."""

    async def run(folder: Path) -> dict[str, Any]:
        (folder / "config.toml").write_text(FILE)
        store = SecretStore(folder)
        store.set("MY_KEY", SYSTEM_SECRET)
        found: dict[str, Any] = {"passed": [], "forms": [], "tried": 0, "streams": []}
        async with open_server(
            folder, config=ApiConfig(port=0), secrets=LiveSecrets.open(folder), patience_s=60.0
        ) as served:
            document = (await served.client.get("/api/openapi.json")).json()
            await cross(served, document, found)
            await post_forms(served, document, found)
            await listen(served, document, found)
            found["said"] = await logged(served.agent)
            found["stops"] = served.program.stops
        found["file"] = (folder / "config.toml").read_text()
        found["secrets"] = {name: secret.value for name, secret in store.read().items()}
        found["names"] = sorted(path.name for path in folder.iterdir() if path.suffix in (".bak", ".zip", ".toml"))
        return found

    with with_secrets(), noted():
        return trio.run(run, tmp_path_factory.mktemp("crossings"))


def changing(document: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    return [
        (method.upper(), path.replace("{", "").replace("}", ""), operation)
        for path, methods in sorted(document["paths"].items())
        for method, operation in methods.items()
        if method != "get"
    ]


async def cross(served: Served, document: Mapping[str, Any], found: dict[str, Any]) -> None:
    port = served.url.rpartition(":")[2]
    for method, path, _ in changing(document):
        for name, headers in REFUSED.items():
            sent = {key: value.replace("{port}", port) for key, value in headers.items()}
            answer = await served.client.request(method, path, headers=sent, json={"value": SYSTEM_SECRET})
            found["tried"] += 1
            if answer.status_code != 403 or SYSTEM_SECRET in answer.text:
                found["passed"].append((method, path, name, answer.status_code))


async def post_forms(served: Served, document: Mapping[str, Any], found: dict[str, Any]) -> None:
    for method, path, operation in changing(document):
        if "requestBody" not in operation:
            continue
        for kind in FORMS:
            if kind.partition(";")[0] in SHARED & set(operation["requestBody"]["content"]):
                continue
            headers = {"content-type": kind}
            answer = await served.client.request(method, path, headers=headers, content=b'{"value": "x"}')
            if answer.status_code != 415:
                found["forms"].append((method, path, kind, answer.status_code, answer.text[:100]))


async def listen(served: Served, document: Mapping[str, Any], found: dict[str, Any]) -> None:
    """Streams and downloads: what a page could read, were it let in."""
    for path, methods in sorted(document["paths"].items()):
        if "get" in methods:
            for headers in ({"sec-fetch-site": "cross-site"}, {"host": "evil.test"}):
                place = path.replace("{", "").replace("}", "")
                async with served.client.stream("GET", place, headers=headers) as answer:
                    if answer.status_code != 403:
                        found["streams"].append((path, headers, answer.status_code))


def test_no_header_of_another_site_gets_through(tried: dict[str, Any]) -> None:
    assert tried["passed"] == []
    assert tried["tried"] > 200


def test_no_form_of_another_site_is_taken_for_a_request(tried: dict[str, Any]) -> None:
    assert tried["forms"] == []


def test_nothing_is_read_across_sites(tried: dict[str, Any]) -> None:
    assert tried["streams"] == []


def test_nothing_is_different_afterwards(tried: dict[str, Any]) -> None:
    assert tried["said"] == []
    assert tried["file"] == FILE
    assert tried["secrets"] == {"MY_KEY": SYSTEM_SECRET}
    assert tried["names"] == ["config.toml"]
    assert tried["stops"] == []
