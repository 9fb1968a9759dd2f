"""The kernel's keyring: what it keeps for one instance, who gets it, and what is said where there is none."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spacebot.base.errors import RefusedError
from spacebot.storage import keyring
from spacebot.storage.keyring import Keyring, open_keyring, recall

PHRASE = "a phrase that is löng enough"
ASK = (
    "import pathlib, sys; from spacebot.storage.keyring import recall; "
    "print(ascii(recall(pathlib.Path(sys.argv[1]))))"
)  # fmt: skip


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Keyring]:
    try:
        found = open_keyring()
    except RefusedError as error:
        pytest.skip(str(error))
    yield found
    found.forget(tmp_path)


def test_each_instance_has_its_own_until_it_is_forgotten(ring: Keyring, tmp_path: Path) -> None:
    assert ring.recall(tmp_path) is None
    ring.remember(tmp_path, "the first one")
    ring.remember(tmp_path, PHRASE)
    assert recall(tmp_path) == PHRASE
    assert recall(tmp_path / "other") is None
    assert ring.forget(tmp_path)
    assert ring.recall(tmp_path) is None
    assert not ring.forget(tmp_path)


def test_another_process_of_this_user_finds_it_and_the_list_of_keys_names_nobody(ring: Keyring, tmp_path: Path) -> None:
    ring.remember(tmp_path, PHRASE)
    asked = subprocess.run([sys.executable, "-c", ASK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == ascii(PHRASE)
    listed = Path("/proc/keys")
    assert not listed.exists() or tmp_path.name not in listed.read_text()


def test_where_there_is_none_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(keyring, "_CALLS", {})
    with pytest.raises(RefusedError, match="use a key file"):
        open_keyring()
    assert recall(tmp_path) is None
