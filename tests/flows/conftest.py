"""Time for flows that play with a virtual clock."""

import pytest
from trio.testing import MockClock


@pytest.fixture
def clock() -> MockClock:
    return MockClock()
