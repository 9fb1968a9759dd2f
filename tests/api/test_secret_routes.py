"""The secret store over HTTP: what goes in, what is told, and that no value ever comes out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from spacebot.base.redaction import scrub
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.storage.secrets import SecretStore
from tests.api.serving import Served, open_server

VALUE = "correct-horse-battery-staple"


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[Served, LiveSecrets]]:
    """A server whose every answer is looked through for the value."""
    secrets = LiveSecrets.open(folder)
    async with open_server(folder, secrets=secrets) as served:

        async def look(response: httpx2.Response) -> None:
            assert VALUE not in (await response.aread()).decode()

        served.client.event_hooks["response"].append(look)
        yield served, secrets


async def test_a_secret_goes_in_and_is_in_use_and_its_value_never_comes_out(tmp_path: Path) -> None:
    async with opened(tmp_path) as (served, secrets):
        assert (await served.client.get("/api/secrets/status")).json()["state"] == "empty"
        put = await served.client.put("/api/secrets/my_key", json={"value": VALUE})
        assert (put.status_code, put.json()["name"], put.json()["is_new"]) == (200, "MY_KEY", True)
        assert secrets.resolve("MY_KEY") == VALUE
        assert VALUE not in scrub(f"the key is {VALUE}")
        put = await served.client.put("/api/secrets/TOKEN", json={"value": VALUE + "2", "category": "tool"})
        assert secrets.tool_environment() == {"TOKEN": VALUE + "2"}

        listed = (await served.client.get("/api/secrets")).json()["secrets"]
        assert [(one["name"], one["category"]) for one in listed] == [("MY_KEY", "system"), ("TOKEN", "tool")]
        status = (await served.client.get("/api/secrets/status")).json()
        assert (status["state"], status["key"]) == ("unlocked", "file")
        assert status["counts"] == {"system": 1, "tool": 1}

        assert (await served.client.delete("/api/secrets/MY_KEY")).json() == {"success": True}
        assert SecretStore(tmp_path).list()[0].name == "TOKEN"


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("PUT", "/api/secrets/MY_KEY", {"value": ""}, 400),
        ("PUT", "/api/secrets/MY_KEY", {"value": "two\nlines"}, 400),
        ("PUT", "/api/secrets/MY_KEY", {"value": VALUE, "category": "public"}, 400),
        ("PUT", "/api/secrets/MY_KEY", {"value": 5}, 422),
        ("PUT", "/api/secrets/MY_KEY", {"value": [VALUE]}, 422),
        ("PUT", "/api/secrets/MY_KEY", {"secret": VALUE}, 422),
        ("PUT", "/api/secrets/1_KEY", {"value": VALUE}, 400),
        ("PUT", "/api/secrets/LD_PRELOAD", {"value": VALUE, "category": "tool"}, 400),
        ("DELETE", "/api/secrets/MY_KEY", None, 404),
        ("GET", "/api/secrets/MY_KEY", None, 405),
    ],
)
async def test_what_cannot_be_done_is_said(method: str, path: str, body: Any, code: int, tmp_path: Path) -> None:
    async with opened(tmp_path) as (served, _):
        answer = await served.client.request(method, path, json=body)
        assert answer.status_code == code
        assert answer.json()["error"]
        assert not SecretStore(tmp_path).list()


async def test_a_locked_store_takes_nothing_and_says_how_it_is_opened(tmp_path: Path) -> None:
    SecretStore(tmp_path, passphrase="a phrase that is long enough").set("MY_KEY", VALUE)
    async with opened(tmp_path) as (served, _):
        answer = await served.client.put("/api/secrets/OTHER", json={"value": VALUE})
        assert (answer.status_code, "spacebot secret unlock" in answer.json()["error"]) == (423, True)
        status = (await served.client.get("/api/secrets/status")).json()
        assert (status["state"], status["counts"]["system"]) == ("locked", 1)
