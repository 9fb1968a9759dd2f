"""Packing of a one-folder build behind the launcher, into one file.

    python build/executable/pack.py --launcher LAUNCHER --tree FOLDER --version 1.2.3 --output dist/spacebot

With `--translator` (x86.c as a library) machine code is written so that it packs better; x86.h says how.

Layout of the file: launcher, payload (a tar in one zstd frame), index (a line for each file and link), trailer. The
launcher reads it from the end. The same tree gives the same bytes, whoever packs it and when.

Flow:    pack -> write_tar through the compressor -> index_of -> trailer
Source:  POSIX ustar; RFC 8878 (zstd); the trailer is `struct trailer` in launcher.c
"""

from __future__ import annotations

import argparse
import ctypes
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
MAGIC = b"ONEFILE2"
CODE_MARK = "x86"  # as owner of a file in the tar: its code is translated
CODE_BLOCK = 1 << 20  # X86_BLOCK of x86.h
ELF_X86_64 = 62
LARGEST_CODE = 1 << 31
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
    launcher: Path,
    tree: Path,
    version: str,
    output: Path,
    *,
    program: str = PROGRAM,
    level: int = LEVEL,
    translator: Path | None = None,
) -> Packed:
    """Write the executable, replacing an old one in one step.

    Args:
        tree: folder that holds `program` and everything it needs; links in it are kept as links.
        version: what `--version` answers, at most 31 bytes.
        translator: the library of x86.c; None leaves machine code as it is.

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
            write_tar(hashed, tree, entries, _Translator(translator))
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


def write_tar(file: _Hashed, tree: Path, entries: list[Path], translator: _Translator) -> None:
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
                    if translator.takes(content, status.st_size):
                        entry.uname = CODE_MARK
                        archive.addfile(entry, _Translated(content, status.st_size, translator))
                    else:
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


class _Translator:
    """The library of x86.c, where there is one."""

    def __init__(self, library: Path | None) -> None:
        self._pack = None if library is None else ctypes.CDLL(str(library)).pack_block
        if self._pack is not None:
            self._pack.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int64]
            self._pack.restype = None

    def takes(self, content: BinaryIO, size: int) -> bool:
        """Whether a file holds code for x86-64."""
        head = content.read(20)
        content.seek(0)
        is_code = head[:4] == b"\x7fELF" and int.from_bytes(head[18:20], "little") == ELF_X86_64
        return self._pack is not None and is_code and size < LARGEST_CODE

    def __call__(self, block: bytearray, offset: int, size: int) -> None:
        assert self._pack is not None
        self._pack((ctypes.c_char * len(block)).from_buffer(block), len(block), offset, size)


class _Translated(io.RawIOBase):
    """Reads a file of code, block by block, translated."""

    def __init__(self, content: BinaryIO, size: int, translator: _Translator) -> None:
        self._content, self._size, self._translator = content, size, translator
        self._offset = 0
        self._ready = bytearray()

    def read(self, count: int = -1, /) -> bytes:
        while count < 0 or len(self._ready) < count:
            block = bytearray(self._content.read(CODE_BLOCK))
            if not block:
                break
            self._translator(block, self._offset, self._size)
            self._offset += len(block)
            self._ready += block
        count = len(self._ready) if count < 0 else count
        piece, self._ready = bytes(self._ready[:count]), self._ready[count:]
        return piece


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
    parser.add_argument("--translator", type=Path)
    options = parser.parse_args()
    packed = pack(
        options.launcher, options.tree, options.version, options.output,
        program=options.program, level=options.level, translator=options.translator,
    )  # fmt: skip
    print(f"{options.output}: {packed}")


if __name__ == "__main__":
    main()
