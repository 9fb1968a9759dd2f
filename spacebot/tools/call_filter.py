"""Keeps contained commands from the kernel's keyrings.

The owner's keyring may hold the passphrase of the secret store, and a command runs as the same user, for whom the
kernel would open it. Bubblewrap takes a filter of system calls from an open descriptor.

Flow:    call_filter -> filtered(argv) -> Popen
Floor:   tools; standard library only
Source:  seccomp(2), keyctl(2); linux/audit.h for the architectures
"""

import errno
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# Architecture, and the first of add_key, request_key and keyctl, whose numbers follow each other on each of them.
_KEY_CALLS = (
    (0xC000003E, 248),  # x86-64
    (0x40000003, 286),  # i386, which a 64-bit kernel runs too
    (0xC00000B7, 217),  # arm64
    (0x40000028, 309),  # arm
)
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # instructions of classic BPF
_NUMBER, _ARCHITECTURE = 0, 4  # places in `seccomp_data`
_ALLOWED, _REFUSED = 0x7FFF0000, 0x00050000 | errno.ENOSYS  # as if this kernel had no keyrings


def call_filter() -> bytes:
    """A program for the kernel that refuses every call to its keyrings and lets all others pass."""
    words = [(_LOAD, 0, 0, _ARCHITECTURE)]
    for architecture, first in _KEY_CALLS:
        words += [
            (_EQUAL, 0, 7, architecture),  # another one: past the next seven
            (_LOAD, 0, 0, _NUMBER),
            (_AND, 0, 0, 0x3FFFFFFF),  # x32 marks its numbers with a high bit
            (_AT_LEAST, 0, 1, first + 3),
            (_RETURN, 0, 0, _ALLOWED),
            (_AT_LEAST, 0, 1, first),
            (_RETURN, 0, 0, _REFUSED),
            (_RETURN, 0, 0, _ALLOWED),
        ]
    return b"".join(struct.pack("=HBBI", *word) for word in [*words, (_RETURN, 0, 0, _ALLOWED)])


@contextmanager
def filtered(argv: Sequence[str], program: bytes) -> Iterator[tuple[Sequence[str], tuple[int, ...]]]:
    """A command line of bubblewrap that reads a filter, with the descriptors that it must inherit.

    Args:
        program: of `call_filter`; nothing changes when it is empty.
    """
    if not program:
        yield argv, ()
        return
    reading, writing = os.pipe()
    try:
        os.write(writing, program)  # some hundred bytes, which a pipe holds
    finally:
        os.close(writing)
    try:
        yield (argv[0], "--seccomp", str(reading), *argv[1:]), (reading,)
    finally:
        os.close(reading)
