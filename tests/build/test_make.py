"""What making the executable tells when something is missing, and where its version comes from."""

import subprocess
from pathlib import Path
from types import ModuleType

import pytest

import spacebot


def test_the_version_is_read_without_importing_the_program(make_script: ModuleType) -> None:
    assert make_script.read_version() == spacebot.__version__


def test_a_missing_compiler_is_told(make_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "none"))

    with pytest.raises(make_script.MakeError, match="apt-get install gcc"):
        make_script.compile_launcher(tmp_path / "launcher")


@pytest.mark.parametrize("complaint", ["zstd.h: No such file or directory", "/usr/bin/ld: cannot find -lzstd"])
def test_a_missing_library_is_told(
    complaint: str, make_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\necho '{complaint}' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))

    with pytest.raises(make_script.MakeError, match="apt-get install libzstd-dev"):
        make_script.compile_launcher(tmp_path / "launcher")


def test_the_launcher_compiles_without_warnings(make_script: ModuleType, checkout: Path, tmp_path: Path) -> None:
    try:
        make_script.compile_launcher(tmp_path / "launcher")
    except make_script.MakeError as error:
        pytest.skip(str(error))
    source = checkout / "build" / "executable" / "launcher.c"
    options = [
        "-std=c11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Wshadow",
        "-Wvla",
        "-Werror",
        "-c",
        "-o",
        str(tmp_path / "object"),
    ]

    done = subprocess.run([make_script.compiler(), *options, source], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
