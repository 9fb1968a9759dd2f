"""`adapter:target`, as people and models write it."""

import pytest

from spacebot.base.errors import NotFoundError, RefusedError
from spacebot.messaging.addresses import parse_address

KEYS = ("discord", "discord:Ops", "slack:work", "telegram", "twitch", "webhook")


@pytest.mark.spec("messaging 5: targets", "D-j")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("discord:123", ("discord", "123")),
        ("  Discord : 123 ", ("discord", "123")),
        ("discord:1:2", ("discord", "1:2")),
        ("discord:dm:7", ("discord", "dm:7")),
        ("discord:discord:123", ("discord", "123")),
        ("discord:ops:1:2", ("discord:Ops", "1:2")),
        ("discord:discord:OPS:5", ("discord:Ops", "5")),
        ("discord:ops:discord:5", ("discord:Ops", "5")),
        ("discord:ops:discord:ops:5", ("discord:Ops", "5")),
        ("discord:other:5", ("discord", "other:5")),
        ("slack:work:C1#thread:1.2", ("slack:work", "C1#thread:1.2")),
        ("telegram:-100123", ("telegram", "-100123")),
        ("twitch:#ann", ("twitch", "#ann")),
        ("twitch:discord", ("twitch", "discord")),
        ("twitch:twitch", ("twitch", "twitch")),
        ("webhook:a:b:c", ("webhook", "a:b:c")),
    ],
)
def test_an_address_names_adapter_and_target(text: str, expected: tuple[str, str]) -> None:
    assert parse_address(text, KEYS) == expected


@pytest.mark.parametrize("text", ["", ":", "123", "slack:C1", "discordx:1", "slack"])
def test_an_unknown_adapter_is_told_with_those_there_are(text: str) -> None:
    with pytest.raises(NotFoundError, match="discord, discord:Ops, slack:work, telegram, twitch, webhook"):
        parse_address(text, KEYS)


@pytest.mark.parametrize("text", ["discord", "discord:", "discord: :", "discord:ops:"])
def test_an_address_without_a_target_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="no target"):
        parse_address(text, KEYS)
