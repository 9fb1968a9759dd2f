"""Secrets: found plain and encoded, scrubbed, and never shown piece by piece while they are written."""

import base64
import html
import json
import re
import threading
from collections.abc import Callable
from urllib.parse import quote, quote_plus

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
    monkeypatch.setattr(redaction, "_known", redaction._Known([LITERAL]))


@pytest.mark.spec("P69")
@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_shape_are_found_and_scrubbed(kind: str) -> None:
    text = f"the key is {KEYS[kind]} and that is all"
    assert find_secret(text) == kind
    assert scrub(text) == f"the key is {MASK} and that is all"
    assert find_secret(scrub(text)) is None


@pytest.mark.spec("P69", "C-83")
@pytest.mark.parametrize("encode", [
    lambda key: base64.b64encode(key.encode()).decode(),
    lambda key: key.encode().hex(),
    lambda key: quote(key.replace("-", "%2D"), safe="%"),
])  # fmt: skip
def test_encoded_keys_are_found(encode: object) -> None:
    assert find_secret(f"take {encode(KEYS['anthropic key'])} now")  # type: ignore[operator]


@pytest.mark.spec("C-91")
@pytest.mark.usefixtures("_literal")
def test_a_configured_secret_is_found_without_a_shape() -> None:
    assert find_secret(f"say {LITERAL}!") == "configured secret"
    assert scrub(f"say {LITERAL}!") == f"say {MASK}!"


def test_short_values_are_not_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", redaction._Known())
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


# Configured secrets in other writings

TRICKY = 'p"ass/w+rd <&> \\ é%20=?'  # every coding writes it differently
VALUES = [LITERAL, TRICKY, "c0ffee" * 6, "short+/8", "ключ-и-пароль", "a" * 30, "x" * 1990 + "yz"]


def as_known(value: str) -> "redaction._Known":
    return redaction._Known([value])


def basic(value: str) -> str:
    return base64.b64encode(f"ann:{value}".encode()).decode()


WRITINGS: dict[str, Callable[[str], str]] = {
    "plain": lambda value: value,
    "url": lambda value: quote(value, safe=""),
    "url path": quote,
    "url form": quote_plus,
    "url in lower case": lambda value: re.sub(r"%..", lambda match: match.group().lower(), quote(value, safe="")),
    "json": lambda value: json.dumps(value)[1:-1],
    "json, utf-8": lambda value: json.dumps(value, ensure_ascii=False)[1:-1],
    "json with its slashes": lambda value: json.dumps(value)[1:-1].replace("/", r"\/"),
    "json in json": lambda value: json.dumps(json.dumps(value))[3:-3],
    "html": html.escape,
    "hex": lambda value: value.encode().hex(),
    "HEX": lambda value: value.encode().hex().upper(),
    "base64": lambda value: base64.b64encode(value.encode()).decode(),
    "base64 for urls": lambda value: base64.urlsafe_b64encode(value.encode()).decode(),
    "base64, one before": lambda value: base64.b64encode(b"u" + value.encode() + b"tail").decode(),
    "base64, two before": lambda value: base64.b64encode(b"u:" + value.encode()).decode(),
    "basic authorization": basic,
}


@pytest.mark.spec("P69")
@pytest.mark.parametrize("writing", WRITINGS)
@pytest.mark.parametrize("value", VALUES)
def test_a_configured_secret_is_removed_in_every_writing(
    value: str, writing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redaction, "_known", as_known(value))
    written = WRITINGS[writing](value)
    text = f"before {written}\nafter, {written}."
    assert find_secret(text)
    cleaned = scrub(text)
    assert cleaned.count(MASK) == 2
    assert find_secret(cleaned) is None
    assert cleaned.startswith("before ")
    assert "\nafter, " in cleaned
    assert not any(written[i : i + 8] in cleaned for i in range(len(written) - 7))


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("before", ["", "x", "ab", "abc/"])
def test_coded_keys_of_every_shape_are_removed_wherever_their_code_begins(kind: str, before: str) -> None:
    raw = KEYS[kind].encode()
    url = quote(raw).replace("-", "%2D").replace("_", "%5f").replace("I", "%49")
    for code in (f"{before}{base64.b64encode(raw).decode()}", raw.hex(), url):
        if code == KEYS[kind]:
            continue
        cleaned = scrub(f"take {code} now")
        assert MASK in cleaned, code
        assert find_secret(cleaned) is None
        assert code[:HARMLESS] not in cleaned


@pytest.mark.spec("C-84")
@given(
    value=st.sampled_from(VALUES[:5])
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=8, max_size=40),
    writing=st.sampled_from(sorted(WRITINGS)),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    before=st.text(alphabet="ab sk-M1\n.(%=", max_size=12),
)
def test_a_secret_split_across_chunks_is_never_shown(value: str, writing: str, cuts: list[int], before: str) -> None:
    """Whatever the pieces: of a secret's writing no twelve characters in a row are ever shown, its end neither."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redaction, "_known", as_known(value))
        written = WRITINGS[writing](value)
        text = f"{before} {written}, and more to come."
        safe = shown(f"{before} , and more to come.")
        telling = {written[i : i + 12] for i in range(max(1, len(written) - 11))}
        telling = {part for part in telling if part not in safe}
        length, step = 0, 0
        while length < len(text):
            length = min(len(text), length + cuts[step % len(cuts)])
            step += 1
            assert not any(part in shown(text[:length]) for part in telling)
        assert not any(part in scrub(text) for part in telling)


@pytest.mark.parametrize("width", [60, 64, 76])
@pytest.mark.parametrize("value", ["github_pat_" + "aB3dE5gH7jK9_" * 7, "c0ffee-and-tea." * 9])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_code_that_is_broken_into_lines_is_removed(
    width: int, value: str, is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_known and not value.startswith("github"):
        return  # nothing tells that it is one
    monkeypatch.setattr(redaction, "_known", as_known(value) if is_known else redaction._Known())
    raw = f"user:{value} and more".encode()
    for code in (base64.b64encode(raw).decode(), value.encode().hex()):
        lines = [code[i : i + width] for i in range(0, len(code), width)]
        text = "before\n" + "\n".join(lines) + "\nafter"
        assert find_secret(text)
        cleaned = scrub(text)
        assert cleaned.startswith(f"before\n{MASK}")
        assert not any(line[:8] in cleaned for line in lines)
        assert cleaned.endswith("\nafter") or len(lines[-1]) == width  # there nothing tells where the code ends


def test_a_secret_that_ends_like_another_begins_is_not_cut_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", redaction._Known(["hunter2hunter-AK", "K-ing of the hill"]))
    for length in range(len("it is hunter2hunter-AK") + 1):
        assert "hunter2" not in shown("it is hunter2hunter-AK"[:length])


def test_the_shorter_of_two_secrets_does_not_uncover_the_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", redaction._Known(["hunter2hunter2", "hunter2hunter2-and-more"]))
    assert scrub("it is hunter2hunter2-and-more, or hunter2hunter2.") == f"it is {MASK}, or {MASK}."


def test_a_long_configured_secret_is_held_back_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    value = "".join(f"word{i} " for i in range(1500)).strip()
    monkeypatch.setattr(redaction, "_known", as_known(value))
    for length in range(0, len(value), 97):
        assert "word1 word2" not in shown(f"so: {value[:length]}")


def test_secrets_may_be_registered_while_texts_are_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", redaction._Known())
    ended = threading.Event()

    def register() -> None:
        for i in range(150):
            register_secret(f"secret number {i}")
        ended.set()

    thread = threading.Thread(target=register)
    thread.start()
    while not ended.is_set():
        assert scrub("secret number x") == "secret number x"
    thread.join()
    assert scrub("secret number 149") == MASK
