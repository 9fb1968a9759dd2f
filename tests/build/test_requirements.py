"""The pinned requirements: complete, hashed, and in agreement with each other."""

import re
from pathlib import Path

import pytest

PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+?)(?= |\\|$)", re.MULTILINE)
LOCKED = ("runtime", "dev", "model")


@pytest.fixture(scope="module")
def folder(checkout: Path) -> Path:
    return checkout / "build" / "requirements"


def pins(path: Path) -> dict[str, str]:
    return {name.lower(): version for name, version in PIN.findall(path.read_text())}


@pytest.mark.parametrize("name", LOCKED)
def test_what_is_stated_is_what_is_locked(name: str, folder: Path) -> None:
    locked = pins(folder / f"{name}.txt")
    stated = pins(folder / f"{name}.in")

    assert stated
    assert {package: locked.get(package) for package in stated} == stated


def test_the_developers_versions_are_the_programs(folder: Path) -> None:
    developer = pins(folder / "dev.txt")
    program = pins(folder / "runtime.txt")

    assert {package: developer.get(package) for package in program} == program


@pytest.mark.parametrize("name", [*LOCKED, "model-weights", "model-weights-fallback"])
def test_everything_locked_has_a_hash_and_no_place_of_one_machine(name: str, folder: Path) -> None:
    text = (folder / f"{name}.txt").read_text()
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]

    assert entries
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert not re.search(r"file:|index-url|find-links", text)
