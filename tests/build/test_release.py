"""A release: the archive, its checksums, the list of its parts."""

import json
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.build.conftest import ROOT, load_script


@pytest.fixture(scope="module")
def release_script() -> ModuleType:
    return load_script(ROOT / "build" / "release.py")


@pytest.fixture
def executable(tmp_path: Path) -> Path:
    path = tmp_path / "spacebot"
    path.write_bytes(b"the executable")
    path.chmod(0o755)
    return path


def test_the_archive_holds_all_that_an_owner_needs_and_its_checksums_are_right(
    release_script: ModuleType, executable: Path, tmp_path: Path
) -> None:
    archive, parts, sums = release_script.release(executable, tmp_path, "1.2.3")

    checked = subprocess.run(["sha256sum", "--check", sums.name], cwd=tmp_path, capture_output=True, check=False)
    assert checked.returncode == 0
    folder = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as tar:
        entries = {entry.name.removeprefix(f"{folder}/"): entry for entry in tar}
    assert entries["spacebot"].mode == 0o755
    assert {"README.md", "LICENSE", "spacebot.service", "grafana/spacebot.json", "docs/metrics.md"} <= entries.keys()
    assert {(entry.uid, entry.uname, entry.mtime) for entry in entries.values()} == {(0, "", release_script.MTIME)}
    assert json.loads(parts.read_text())["metadata"]["component"]["version"] == "1.2.3"


def test_the_same_checkout_gives_the_same_bytes(release_script: ModuleType, executable: Path, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in release_script.release(executable, tmp_path, "1.2.3")]
    assert [path.read_bytes() for path in release_script.release(executable, tmp_path, "1.2.3")] == first


def test_every_pinned_library_stands_in_the_list_of_parts(release_script: ModuleType) -> None:
    parts = list(release_script.pinned(release_script.RUNTIME.read_text()))
    document = release_script.parts_list("1.2.3", parts, "0" * 64)

    libraries = {each["name"]: each for each in document["components"] if each["type"] == "library"}
    trio = libraries["trio"]
    assert trio["purl"] == f"pkg:pypi/trio@{trio['version']}"
    assert trio["externalReferences"][0]["hashes"]
    assert trio["licenses"][0]["license"]["name"] == "MIT OR Apache-2.0"
    assert {"lancedb", "onnxruntime", "hikari", "cryptography"} <= libraries.keys()
    assert len(libraries) > 60
    assert [name for name, each in libraries.items() if "licenses" not in each] == []
    assert document["dependencies"][0]["dependsOn"] == [each["bom-ref"] for each in document["components"]]
