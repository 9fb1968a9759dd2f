"""The document of the API holds for a real program with something in every store, and nothing brings that down.

`python -m tests.fuzz --minutes 10` does the second for longer.
"""

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import requests

from tests.fuzz.fuzzing import Fuzz
from tests.fuzz.instance import OUTSIDE, Known, fill, leaked, make_daemon
from tests.real_daemon import Daemon, running

SLOW = ("/api/agents/memories/maintain",)
WORDS = {"q": "tea", "content_hash": "none", "thread_id": "none"}


class Filled:
    """A running daemon with something in it."""

    def __init__(self, daemon: Daemon) -> None:
        self.url = f"http://127.0.0.1:{daemon.port}"
        self.known: Known = fill(self.url)
        self.document: dict[str, Any] = self.get("/api/openapi.json").json()

    def get(self, path: str, **params: str) -> requests.Response:
        return requests.get(f"{self.url}{path}", params=params, timeout=20)

    def ask(self, path: str, operation: dict[str, Any]) -> requests.Response:
        """The answer of a GET route that is asked for things that exist."""
        params = {}
        for parameter in operation["parameters"]:
            name = parameter["name"]
            value = WORDS.get(name) or next(iter(self.known.get(name, ())), None)
            if parameter["in"] == "path":
                path = path.replace(f"{{{name}}}", value or "none")
            elif parameter["required"]:
                params[name] = value or "none"
        return self.get(path, **params)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    with running(make_daemon(tmp_path_factory.mktemp("fuzz") / "instance")) as daemon:
        yield Filled(daemon)


@pytest.mark.spec("CA-12")
def test_every_answer_is_as_the_document_says_and_shows_no_secret(filled: Filled) -> None:
    problems, looked_at = [], []
    for path, operations in filled.document["paths"].items():
        content = operations.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
        if path in OUTSIDE or "application/json" not in content:
            continue
        answer = filled.ask(path, operations["get"])
        if found := leaked(answer.content):
            problems.append(f"{path} shows {found}")
        schema = content["application/json"]["schema"]
        if answer.status_code != 200:
            schema = {"$ref": "#/components/schemas/Error"}
        else:
            looked_at.append(path)
        checker = jsonschema.Draft202012Validator({**schema, "components": filled.document["components"]})
        problems += [f"{path} {error.json_path}: {error.message[:200]}" for error in checker.iter_errors(answer.json())]
    assert problems == []
    assert len(looked_at) >= 30, looked_at


def test_what_no_route_describes_does_no_harm(filled: Filled) -> None:
    fuzz = Fuzz(filled.url, filled.document, filled.known, SLOW)
    fuzz.sweep()
    assert fuzz.complaints == []
    assert sum(fuzz.counts.values()) > 20
    assert filled.get("/api/health").json() == {"status": "ok"}
