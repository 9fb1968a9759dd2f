"""Making of the executable: checkout in, `dist/spacebot` out.

    python build/executable/make.py                # about a minute
    python build/executable/make.py --level 19     # for a release: smaller, some minutes longer

Needs the environment of `build/requirements/dev.txt`, the exported model (`build/model/export.py`), a C compiler, and
zstd as a static library with its header. The result runs on systems with the glibc of the building one, or newer.

Flow:    check_tools -> compile_launcher -> freeze -> strip -> write_licences -> compile_translator -> pack
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from pack import LEVEL, Packed, pack

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / ".freeze"  # not in build/, which holds sources
MODEL = ROOT / ".model" / "all-minilm-l6-v2"

# Libraries that lose much when stripped, 80 MB together. The others lose nothing, and numpy's BLAS does not survive it.
STRIPPED = (
    "libcrypto.so*",
    "libpython3*.so*",
    "libsqlite3.so*",
    "libssl.so*",
    "_rust.abi3.so",
    "aiohttp/*.so",
    "aiohttp/*/*.so",
    "frozenlist/*.so",
    "jiter/*.so",
    "multidict/*.so",
    "propcache/*.so",
    "python3*/lib-dynload/*.so",
    "pyarrow/*.so*",
    "tokenizers/*.so",
    "watchfiles/*.so",
    "yarl/*.so",
)


LICENCE_FILE = re.compile(r"(licen[cs]e|copying|notice|authors)[^/]*(?<!\.py)(?<!\.pyc)$", re.IGNORECASE)


class MakeError(Exception):
    """The executable cannot be made; the message says what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the one-file executable.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "spacebot")
    parser.add_argument("--level", type=int, default=LEVEL, help=f"compression, 1 to 19 (default: {LEVEL})")
    options = parser.parse_args()
    try:
        packed = make(options.output, level=options.level)
    except MakeError as error:
        print(f"executable: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: {packed}")
    return 0


def make(output: Path, *, level: int = LEVEL) -> Packed:
    """Freeze the checkout and pack it.

    Errors: MakeError when a tool is missing or fails.
    """
    check_tools()
    WORK.mkdir(exist_ok=True)
    launcher = compile_launcher(WORK / "launcher")
    tree = freeze()
    strip(tree)
    write_licences(tree / "lib" / "licences.txt")
    return pack(launcher, tree, read_version(), output, level=level, translator=compile_translator(WORK / "x86.so"))


def check_tools() -> None:
    """Say at once, and all together, what is missing."""
    missing = []
    if shutil.which(compiler()) is None:
        missing.append(f"a C compiler ({compiler()}): apt-get install gcc libc6-dev")
    if shutil.which("strip") is None:
        missing.append("strip: apt-get install binutils")
    if importlib.util.find_spec("PyInstaller") is None:
        missing.append("PyInstaller: python -m pip install --require-hashes -r build/requirements/dev.txt")
    if not (MODEL / "manifest.json").is_file():
        missing.append(f"the embedding model in {MODEL.relative_to(ROOT)}: see build/model/export.py")
    if missing:
        raise MakeError("missing:\n  " + "\n  ".join(missing))


def compiler() -> str:
    return os.environ.get("CC", "cc")


def compile_launcher(output: Path) -> Path:
    """Compile the launcher, linked statically.

    Errors: MakeError when there is no compiler or no static zstd.
    """
    options = ["-O2", "-std=c11", "-Wall", "-Wextra", "-static", "-s"]
    try:
        done = subprocess.run(
            [compiler(), *options, str(HERE / "launcher.c"), "-lzstd", "-o", str(output)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise MakeError(f"no C compiler {compiler()!r}: apt-get install gcc libc6-dev, or name one in CC") from error
    if "zstd" in done.stderr and done.returncode != 0:
        raise MakeError(f"zstd's header or static library is missing: apt-get install libzstd-dev\n{done.stderr}")
    if done.returncode != 0:
        raise MakeError(f"the launcher does not compile:\n{done.stderr}")
    return output


def compile_translator(output: Path) -> Path:
    """Compile what makes machine code pack better, for `pack`.

    Errors: MakeError when it does not compile.
    """
    command = [
        compiler(),
        "-O2",
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-shared",
        "-fPIC",
        str(HERE / "x86.c"),
        "-o",
        str(output),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MakeError(f"x86.c does not compile:\n{done.stderr}")
    return output


def freeze() -> Path:
    """Run PyInstaller and give the folder it made. Its report stands in `.freeze/log.txt`."""
    log = WORK / "log.txt"
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--workpath", str(WORK / "work")]
    command += ["--distpath", str(WORK / "dist"), str(ROOT / "spacebot.spec")]
    with log.open("w") as report:
        # PYTHONHASHSEED: sets written into the archives of modules come out in the same order each time.
        # Modules are not compressed one by one: the whole folder is, which is smaller by some megabytes.
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=report,
            stderr=subprocess.STDOUT,
            check=False,
            env={**os.environ, "PYTHONHASHSEED": "0", "PYINSTALLER_ZLIB_COMPRESSION_LEVEL": "0"},
        )
    if done.returncode != 0:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise MakeError(f"freezing failed; the whole report is in {log}\n{end}")
    return WORK / "dist" / "spacebot"


def strip(tree: Path) -> None:
    """Drop symbol tables from the libraries that are worth it."""
    for pattern in STRIPPED:
        for path in sorted(tree.rglob(pattern)):
            if path.is_file() and not path.is_symlink():
                subprocess.run(["strip", "--strip-unneeded", str(path)], check=True)


def write_licences(output: Path) -> None:
    """Gather the licence texts of Python and of the libraries, which ask to go along with every copy.

    The embedding model has its own beside it. A library that is not installed is for another system.
    """
    texts = [("Python", Path(os.__file__).with_name("LICENSE.txt").read_text())]
    requirements = (ROOT / "build" / "requirements" / "runtime.txt").read_text()
    for name in re.findall(r"^([A-Za-z0-9._-]+)==", requirements, re.MULTILINE):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found = [path for path in distribution.files or [] if LICENCE_FILE.match(path.name)]
        text = "\n\n".join(Path(str(path.locate())).read_text(errors="replace") for path in found)
        stated = [
            value.removeprefix("License :: ")
            for field in ("License-Expression", "License", "Classifier")
            for value in distribution.metadata.get_all(field, [])
            if field != "Classifier" or value.startswith("License :: ")
        ]
        texts.append(
            (f"{name} {distribution.version}", text or f"Licence as its package states it: {', '.join(stated)}")
        )
    output.write_text("\n\n".join(f"==== {name} ====\n\n{text.strip()}" for name, text in texts) + "\n")


def read_version() -> str:
    """Read the version from its only place, without importing the program."""
    text = (ROOT / "spacebot" / "__init__.py").read_text()
    if (found := re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)) is None:
        raise MakeError("spacebot/__init__.py states no __version__")
    return found[1]


if __name__ == "__main__":
    sys.exit(main())
