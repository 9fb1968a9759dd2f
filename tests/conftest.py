"""Guards that hold for every test: silence in the log, no network but loopback.

A test that provokes an error record claims it: `logs.expect("turn failed")`.
"""

import logging
import signal
import socket
from collections.abc import Iterator
from copy import copy
from ipaddress import ip_address
from typing import Any

import hypothesis
import pytest

from spacebot.base import redaction

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; programs under test must be stoppable
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("spacebot", deadline=None, max_examples=100, database=None)
hypothesis.settings.load_profile("spacebot")


WHOLE_PROGRAMS = frozenset({"instance", "door", "running", "with_memory"})  # fixtures that start the program


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of commands start whole programs, which the quick part of the tests does without."""
    for item in items:
        if item.path.parent.name == "cli" and WHOLE_PROGRAMS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


class Logs(logging.Handler):
    """Error records of one test; those that nobody expected fail it, and so do expected ones that never came."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []
        self._expected: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def expect(self, phrase: str) -> None:
        """Allow, and demand, error records whose message holds this phrase."""
        self._expected.append(phrase)

    def check(self) -> None:
        """Compare what came with what was expected."""
        messages = [record.getMessage() for record in self.records]
        surprises = [m for m in messages if not any(phrase in m for phrase in self._expected)]
        missing = [phrase for phrase in self._expected if not any(phrase in m for m in messages)]
        assert not surprises, f"error records that the test did not expect: {surprises}"
        assert not missing, f"error records that did not come: {missing}"


@pytest.fixture(autouse=True)
def _own_secrets() -> Iterator[None]:
    """What one test registers as a secret must not be scrubbed from the texts of the next."""
    known = redaction._known
    redaction._known = copy(known)
    yield
    redaction._known = known


@pytest.fixture(autouse=True)
def logs() -> Iterator[Logs]:
    """Watches the error records of the test."""
    handler = Logs()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)
    handler.check()


@pytest.fixture(autouse=True, scope="session")
def _loopback_only() -> Iterator[None]:
    """Refuse connections to other machines: a test must not depend on them, nor tell them anything."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)), raising=False)
        yield


def _guarded(connect: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            raise AssertionError(f"the test wants to connect to {address!r}; only loopback is allowed")
        return connect(self, address)

    return guarded


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
