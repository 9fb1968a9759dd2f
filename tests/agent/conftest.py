"""Time for agents: it stands still until the test moves it, because SQLite's threads count as idle."""

import pytest
from trio.testing import MockClock


@pytest.fixture
def clock() -> MockClock:
    return MockClock()
