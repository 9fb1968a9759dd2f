"""Sends to every route what its description allows, and what it does not; the answers have to stay in order."""

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import requests
import schemathesis
from hypothesis.errors import HypothesisException
from schemathesis import GenerationMode

from tests.fuzz.instance import OUTSIDE, Known, leaked

TIMEOUT_S = 30.0
READ = 65536  # bytes of a stream that are looked at
_QUIET = tuple(hypothesis.HealthCheck)


class Complaint(AssertionError):
    """An answer that must not be."""


@dataclass
class Fuzz:
    """One run against one server."""

    url: str
    document: Mapping[str, Any]
    known: Known
    skip: Sequence[str] = ()  # routes that take long
    counts: Counter[int] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def __post_init__(self) -> None:
        schema = schemathesis.openapi.from_dict(dict(self.document))
        found = [result.ok() for result in schema.get_all_operations()]
        self.operations = [operation for operation in found if operation.path not in (*OUTSIDE, *self.skip)]
        self._session = requests.Session()

    def run(self, *, until: float, examples: int, start: int = 0) -> None:
        """Go round all routes until the monotonic clock says so."""
        turn = start
        while time.monotonic() < until:
            for operation in self.operations:
                for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                    if time.monotonic() >= until:
                        return
                    self._try(operation, mode, examples, turn)
            turn += 1

    def sweep(self) -> None:
        """Send something that is not allowed to each route that changes something."""
        for operation in self.operations:
            if operation.method.upper() != "GET":
                self._try(operation, GenerationMode.NEGATIVE, 1, 0)

    def _try(self, operation: Any, mode: GenerationMode, examples: int, turn: int) -> None:
        settings = hypothesis.settings(
            max_examples=examples, deadline=None, database=None, suppress_health_check=_QUIET,
            phases=[hypothesis.Phase.generate], report_multiple_bugs=False,
        )  # fmt: skip

        @hypothesis.seed(turn)
        @settings
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def once(case: Any) -> None:
            self._send(case)

        try:
            with contextlib.suppress(
                HypothesisException, schemathesis.errors.SchemathesisError
            ):  # nothing can be made for it
                once()
        except Complaint as error:
            self.complaints.append(str(error))

    def _send(self, case: Any) -> None:
        how = case.as_transport_kwargs(base_url=self.url)
        how["url"] = self._with_known(case, how)
        where = f"{how['method']} {how['url']} {how.get('params')} {str(how.get('json', how.get('data')))[:300]}"
        began = time.monotonic()
        try:
            with self._session.request(**how, timeout=TIMEOUT_S, stream=True, allow_redirects=False) as answer:
                content = self._content(answer)
        except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, UnicodeError):
            return  # the client itself cannot say that
        except requests.exceptions.Timeout:
            raise Complaint(f"no answer within {TIMEOUT_S} s: {where}") from None
        except requests.exceptions.ConnectionError as error:
            if "timed out" not in str(error).lower():
                self._session.close()  # what is not HTTP is answered by closing
            self.counts[0] += 1
            return
        self.counts[answer.status_code] += 1
        self.slowest = max(self.slowest, (time.monotonic() - began, where))
        if answer.status_code >= 500:
            raise Complaint(f"{answer.status_code}: {where}: {content[:300]!r}")
        if found := leaked(content):
            raise Complaint(f"the secret {found} in the answer to {where}")
        if answer.status_code >= 400 and "/api/" in how["url"] and not _is_error(answer, content):
            raise Complaint(f"{answer.status_code} without `error`: {where}: {content[:300]!r}")

    def _content(self, answer: requests.Response) -> bytes:
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            return answer.content
        with contextlib.suppress(requests.exceptions.RequestException):
            return next(answer.iter_content(READ), b"")
        return b""

    def _with_known(self, case: Any, how: dict[str, Any]) -> str:
        """Every other request names things that exist."""
        digest = hashlib.sha256(repr((case.path_parameters, case.query, case.body)).encode(errors="replace")).digest()
        if digest[0] % 2:
            return str(how["url"])
        params = how.get("params")
        if isinstance(params, dict):
            for name in params.keys() & self.known.keys():
                params[name] = self._pick(name, digest)
        if isinstance(how.get("json"), dict):
            for name in how["json"].keys() & self.known.keys():
                how["json"][name] = self._pick(name, digest)
        path = case.path
        if not case.path_parameters or not all(self.known.get(name) for name in case.path_parameters):
            return str(how["url"])
        for name in case.path_parameters:
            path = path.replace(f"{{{name}}}", self._pick(name, digest))
        return f"{self.url}{path}"

    def _pick(self, name: str, digest: bytes) -> str:
        values = self.known[name]
        return values[digest[1] % len(values)] if values else "none"


def _is_error(answer: requests.Response, content: bytes) -> bool:
    if not content and answer.request.method == "HEAD":
        return True
    try:
        body = answer.json()
    except ValueError:
        return False
    return isinstance(body, dict) and isinstance(body.get("error"), str) and bool(body["error"])
