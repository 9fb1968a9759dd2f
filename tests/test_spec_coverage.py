"""Each item of the spec's index is proved by a test, or waits for something that does not exist yet."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.spec import ELSEWHERE, ITEMS, LATER

TESTS = Path(__file__).parent


def marked() -> Iterator[tuple[str, str]]:
    """All ids of process items in `pytest.mark.spec(...)`, with the file."""
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "spec":
                for argument in node.args:
                    if isinstance(argument, ast.Constant) and str(argument.value)[:1] in "PS":
                        yield str(argument.value), str(file.relative_to(TESTS))


def test_the_index_holds_every_pitfall() -> None:
    assert list(ITEMS) == [f"P{n}" for n in range(1, 75)] + [f"S{n}" for n in range(1, 11)]


def test_markers_name_items_of_the_index() -> None:
    assert [(name, file) for name, file in marked() if name not in ITEMS] == []


def test_every_item_is_proved_or_waits_but_not_both() -> None:
    proved = {name for name, _ in marked()} | set(ELSEWHERE)
    assert sorted(set(ITEMS) - proved - set(LATER)) == [], "neither proved nor marked as waiting"
    assert sorted(proved & set(LATER)) == [], "proved: take them out of LATER"


def test_what_is_proved_elsewhere_exists() -> None:
    for place in ELSEWHERE.values():
        file, _, test = place.partition("::")
        assert f"def {test}(" in (TESTS.parent / file).read_text(encoding="utf-8"), place
