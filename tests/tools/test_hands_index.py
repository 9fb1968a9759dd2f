"""The index of the hands: no item is forgotten, every named test exists."""

from pathlib import Path

from tests.tools.hands_index import ITEMS, PROVED, REASONS

TESTS = Path(__file__).parent.parent
SECTIONS = {"tools": 16, "shell": 24, "browser": 21, "cron": 20, "skills": 11, "mcp": 20, "workers": 13}


def test_the_index_holds_every_check_and_pitfall() -> None:
    checks = [f"22.{number}" for number in range(1, 26)]
    pitfalls = [f"23.{name}.{number}" for name, count in SECTIONS.items() for number in range(1, count + 1)]
    assert list(ITEMS) == [*checks, *pitfalls]


def test_every_item_has_tests_or_a_reason_and_not_both() -> None:
    assert sorted(set(ITEMS) - set(PROVED) - set(REASONS)) == [], "neither proved nor reasoned"
    assert sorted(set(PROVED) & set(REASONS)) == []
    assert sorted((set(PROVED) | set(REASONS)) - set(ITEMS)) == [], "no such item"
    assert all(tests for tests in PROVED.values())
    assert all(len(reason) > 20 for reason in REASONS.values())


def test_every_named_test_exists() -> None:
    places = {place for tests in PROVED.values() for place in tests}
    texts = {
        file: (TESTS / file).read_text(encoding="utf-8") for file in {place.partition("::")[0] for place in places}
    }
    missing = [
        place for place in sorted(places) if f"def {place.partition('::')[2]}(" not in texts[place.partition("::")[0]]
    ]
    assert missing == []
