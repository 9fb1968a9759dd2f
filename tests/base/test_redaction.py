"""Secrets: found plain and encoded, scrubbed, and never shown piece by piece while they are written."""

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacebot.base import redaction
from spacebot.base.redaction import MASK, find_secret, register_secret, safe_length, scrub

KEYS = {
    "anthropic key": "sk-ant-api03-" + "aB3dE5gH7jK9" * 3,
    "openrouter key": "sk-or-v1-" + "0a1b2c3d" * 4,
    "openai key": "sk-proj-" + "Zy9Xw8Vu7" * 4,
    "github token": "ghp_" + "a1B2c3D4e5F6" * 3,
    "google key": "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7"[:35],
    "chat bot token": "MTk4NjIyNDgzNDcxOTI1MjQ4.Cl2FMQ.ZnCjm1XVW7vRze4b7Cq4se7kKWs",
    "workspace token": "xoxb-123456789012-abcdefGHIJKL",
    "bot token": "123456789:AAF" + "b2C4d6E8" * 4,
    "search key": "BSA" + "q1W2e3R4t5" * 3,
    "aws key": "AKIAIOSFODNN7EXAMPLE",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
}
LITERAL = "correct horse battery staple"
HARMLESS = 20  # characters of a key that tell nothing: leads, a bot's public number, a key's header


@pytest.fixture
def _literal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_literals", {LITERAL})


@pytest.mark.spec("P69")
@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_shape_are_found_and_scrubbed(kind: str) -> None:
    text = f"the key is {KEYS[kind]} and that is all"
    assert find_secret(text) == kind
    assert scrub(text) == f"the key is {MASK} and that is all"
    assert find_secret(scrub(text)) is None


@pytest.mark.spec("P69")
@pytest.mark.parametrize("encode", [
    lambda key: base64.b64encode(key.encode()).decode(),
    lambda key: key.encode().hex(),
    lambda key: quote(key.replace("-", "%2D"), safe="%"),
])  # fmt: skip
def test_encoded_keys_are_found(encode: object) -> None:
    assert find_secret(f"take {encode(KEYS['anthropic key'])} now")  # type: ignore[operator]


@pytest.mark.usefixtures("_literal")
def test_a_configured_secret_is_found_without_a_shape() -> None:
    assert find_secret(f"say {LITERAL}!") == "configured secret"
    assert scrub(f"say {LITERAL}!") == f"say {MASK}!"


def test_short_values_are_not_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_literals", set())
    register_secret("tea")
    assert find_secret("a cup of tea") is None


@pytest.mark.parametrize("text", [
    "The risk-averse task-force, ghosts and BSAs walked through Nottingham at 12345678: hello",
    "a [link](https://example.org/a/b?c=d), `code` and sk-short",
])  # fmt: skip
def test_ordinary_words_are_left_alone(text: str) -> None:
    assert find_secret(text) is None
    assert scrub(text) == text


def shown(text: str) -> str:
    return scrub(text[: safe_length(text)])


@pytest.mark.usefixtures("_literal")
@given(
    key=st.sampled_from([*KEYS.values(), LITERAL]),
    before=st.text(alphabet="ab sk-M1\n.(", max_size=12),
    after=st.sampled_from([" and more", "\nnext", ", then"]),
)
def test_no_telling_part_of_a_key_is_ever_shown(key: str, before: str, after: str) -> None:
    """At each length that a stream may have: what is shown holds no more of the key than is harmless."""
    text = f"{before} {key}{after}"
    telling = "MIIEp" if key.startswith("-----") else key[: HARMLESS + 1]
    for length in range(len(text) + 1):
        assert telling not in shown(text[:length])


@given(text=st.text())
def test_what_is_held_back_is_a_tail(text: str) -> None:
    assert 0 <= safe_length(text) <= len(text)
    assert safe_length(text + " .") >= safe_length(text)
    assert safe_length(f"{text} .") == len(text) + 2


def test_harmless_words_are_shown_when_they_end() -> None:
    text = "through MNnevertheless "
    assert shown(text) == text
