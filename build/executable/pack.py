"""Packing of a one-folder build behind the launcher, into one file.

    python build/executable/pack.py --launcher LAUNCHER --tree FOLDER --version 1.2.3 --output dist/spacebot

Layout of the file: launcher, payload (a tar in one zstd frame), index (a line for each file and link), trailer. The
launcher reads it from the end. The same tree gives the same bytes, whoever packs it and when.

Flow:    pack -> write_tar through the compressor -> index_of -> trailer
Source:  POSIX ustar; RFC 8878 (zstd); the trailer is `struct trailer` in launcher.c
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import stat
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import zstandard

if TYPE_CHECKING:
    from typing_extensions import Buffer

PROGRAM = "spacebot"
LEVEL = 12  # 15 s to pack 450 MB; 9 takes half of that and gives 3 % more
WINDOW_LOG = 27  # repeats are found 128 MB back, the most a reader accepts unasked; saves 3 %
MAGIC = b"ONEFILE1"
TRAILER = struct.Struct(
    "<QQQ32s64s32s8s"
)  # payload offset, payload length, index length, version, hash, program, magic
MTIME = 315_532_800  # 1980-01-01; a constant, so that the bytes do not depend on the day


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What came out."""

    sha256: str  # of the tar: the name of the folder in the cache
    files: int
    tree_bytes: int
    file_bytes: int

    def __str__(self) -> str:
        return f"{self.file_bytes / 1e6:.0f} MB, unpacked {self.tree_bytes / 1e6:.0f} MB in {self.files} files"


def pack(
    launcher: Path, tree: Path, version: str, output: Path, *, program: str = PROGRAM, level: int = LEVEL
) -> Packed:
    """Write the executable, replacing an old one in one step.

    Args:
        tree: folder that holds `program` and everything it needs; links in it are kept as links.
        version: what `--version` answers, at most 31 bytes.

    Errors: ValueError when the tree lacks the program or holds what the launcher cannot unpack.
    """
    if not os.access(tree / program, os.X_OK):
        raise ValueError(f"{str(tree)!r} holds no program {program!r} that can be run")
    if len(version.encode()) > 31 or len(program.encode()) > 31:
        raise ValueError(f"version {version!r} and program {program!r} may have 31 bytes each")
    entries = sorted(tree.rglob("*"), key=lambda path: path.relative_to(tree).as_posix())
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(output.name + ".part")
    with unfinished.open("wb") as file:
        with launcher.open("rb") as source:
            shutil.copyfileobj(source, file)
        offset = file.tell()
        # The launcher tells a damaged file by the checksum. Packing with workers gives the same bytes for any number.
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level, window_log=WINDOW_LOG, enable_ldm=True, write_checksum=True, threads=os.cpu_count() or 1
        )
        with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(file, closefd=False) as compressed:
            hashed = _Hashed(compressed)
            write_tar(hashed, tree, entries)
        payload_length = file.tell() - offset
        index = index_of(tree, entries)
        file.write(index)
        digest = hashed.sha256.hexdigest()
        file.write(
            TRAILER.pack(offset, payload_length, len(index), version.encode(), digest.encode(), program.encode(), MAGIC)
        )
        size = file.tell()
    unfinished.chmod(0o755)
    unfinished.replace(output)
    regular = [path for path in entries if path.is_file() and not path.is_symlink()]
    return Packed(sha256=digest, files=len(regular), tree_bytes=sum(p.stat().st_size for p in regular), file_bytes=size)


def write_tar(file: _Hashed, tree: Path, entries: list[Path]) -> None:
    """Write files, folders and links in the given order, without owners, dates and other accidents.

    Errors: ValueError for anything else, and for a name that ustar has no room for.
    """
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
        for path in entries:
            entry = tarfile.TarInfo(path.relative_to(tree).as_posix())
            entry.mtime = MTIME
            if path.is_symlink():
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, os.readlink(path), 0o777
                archive.addfile(entry)
            elif path.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            elif path.is_file():
                status = path.stat()
                entry.size, entry.mode = status.st_size, 0o755 if status.st_mode & stat.S_IXUSR else 0o644
                with path.open("rb") as content:
                    archive.addfile(entry, content)
            else:
                raise ValueError(f"{str(path)!r} is neither a file, nor a folder, nor a link")


def index_of(tree: Path, entries: list[Path]) -> bytes:
    """List what a complete folder holds: kind, size in bytes, name; a link's size is the length of its target."""
    lines = []
    for path in entries:
        name = path.relative_to(tree).as_posix()
        if "\n" in name:
            raise ValueError(f"{name!r} has a line break in its name")
        if path.is_symlink() or path.is_file():
            lines.append(f"{'l' if path.is_symlink() else 'f'} {path.lstat().st_size} {name}\n")
    return "".join(lines).encode()


class _Hashed(io.RawIOBase):
    """Passes bytes on and hashes them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, content: Buffer, /) -> int:
        self.sha256.update(content)
        self._file.write(content)
        return memoryview(content).nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack a one-folder build into one file.")
    parser.add_argument("--launcher", type=Path, required=True)
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--program", default=PROGRAM)
    parser.add_argument("--level", type=int, default=LEVEL, help=f"1 to 19 (default: {LEVEL})")
    options = parser.parse_args()
    packed = pack(
        options.launcher, options.tree, options.version, options.output, program=options.program, level=options.level
    )
    print(f"{options.output}: {packed}")


if __name__ == "__main__":
    main()
