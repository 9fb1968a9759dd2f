"""Each item of an index is proved by a test, or waits for something, or is not ours; no item is forgotten."""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import spec
from tests.config import pitfalls as control_pitfalls
from tests.memory import pitfalls
from tests.messaging import pitfalls as messaging_pitfalls

TESTS = Path(__file__).parent


class Index(NamedTuple):
    """One table of items; `waiting` names those that no test proves, with the reason."""

    ids: list[str]
    items: Mapping[str, str]
    elsewhere: Mapping[str, tuple[str, ...]]
    waiting: Mapping[str, str]

    def owns(self, name: str) -> bool:
        """Whether a marker speaks of this table."""
        return _prefix(name) in {_prefix(known) for known in self.ids}


def _prefix(name: str) -> str:
    """What an id has before its number or its single letter."""
    return re.sub(r"\d+$|(?<=-)[a-z]$", "", name)


PROCESSES = Index(
    [f"P{n}" for n in range(1, 75)] + [f"S{n}" for n in range(1, 11)],
    spec.ITEMS,
    {name: (place,) for name, place in spec.ELSEWHERE.items()},
    spec.LATER,
)
MEMORY = Index([f"M-P{n:02}" for n in range(1, 48)], pitfalls.ITEMS, pitfalls.ELSEWHERE, pitfalls.NOT_OURS)
MESSAGING = Index(
    [f"D-{n}" for n in range(1, 43)] + [f"D-{letter}" for letter in "abcdefghijklmno"],
    messaging_pitfalls.ITEMS,
    messaging_pitfalls.ELSEWHERE,
    messaging_pitfalls.NOT_OURS,
)
CONTROL = Index(
    [f"C-{n}" for n in range(1, 92)] + [f"CA-{n}" for n in range(1, 14)],
    control_pitfalls.ITEMS,
    control_pitfalls.ELSEWHERE,
    control_pitfalls.NOT_OURS,
)
every_index = pytest.mark.parametrize(
    "index", [PROCESSES, MEMORY, MESSAGING, CONTROL], ids=["processes", "memory", "messaging", "control"]
)


@cache
def marked() -> tuple[tuple[str, str], ...]:
    """All ids in `pytest.mark.spec(...)`, with the file."""
    return tuple(_marked())


def _marked() -> Iterator[tuple[str, str]]:
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "spec":
                for argument in node.args:
                    if isinstance(argument, ast.Constant):
                        yield str(argument.value), str(file.relative_to(TESTS))


@every_index
def test_the_index_holds_every_pitfall(index: Index) -> None:
    assert list(index.items) == index.ids
    assert set(index.elsewhere) | set(index.waiting) <= set(index.items)


@every_index
def test_markers_name_items_of_the_index(index: Index) -> None:
    assert [(name, file) for name, file in marked() if index.owns(name) and name not in index.items] == []


@every_index
def test_every_item_is_proved_or_waits_but_not_both(index: Index) -> None:
    proved = {name for name, _ in marked()} | set(index.elsewhere)
    assert sorted(set(index.items) - proved - set(index.waiting)) == [], "neither proved nor marked as waiting"
    assert sorted(proved & set(index.waiting)) == [], "proved: take them out of those that wait"


@every_index
def test_what_is_proved_elsewhere_exists(index: Index) -> None:
    for place in (place for places in index.elsewhere.values() for place in places):
        file, _, test = place.partition("::")
        assert f"def {test}(" in (TESTS.parent / file).read_text(encoding="utf-8"), place
