"""Versions in the order of semantic versioning."""

import itertools

import pytest

from spacebot.base.versions import is_newer, parse_version

ORDER = ["0.9", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
         "1.0.0-rc.1", "1.0.0", "1.0.1", "1.10.0", "2.0.0"]  # fmt: skip


def test_the_order_is_that_of_the_standard() -> None:
    for older, newer in itertools.combinations(ORDER, 2):
        assert is_newer(newer, older)
        assert not is_newer(older, newer)
    assert not is_newer("v1.2.0+build.7", "1.2.0")


@pytest.mark.parametrize("text", ["", "v", "1", "1.x", "latest", "1.2.3.4", "1" * 30 + ".0.0", "1.0.0-"])
def test_what_is_no_version_is_never_newer(text: str) -> None:
    assert parse_version(text) is None
    assert not is_newer(text, "0.0.1")
