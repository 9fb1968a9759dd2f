"""What of the machine a server's program must see inside the sandbox: itself, and what its command line names.

Launchers and interpreters often lie in the owner's home folder (nvm, pyenv, pipx), which the sandbox does not show.
The owner wrote the command line, so it may read what stands there; it may write nothing of it.

Flow:    argv, PATH -> places_of -> Containment.wrap_program(readable=...)
Floor:   tools
Source:  tools spec 15 and 23: launchers need PATH
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

SYSTEM = tuple(map(Path, ("/bin", "/sbin", "/usr", "/lib", "/lib64", "/etc", "/opt", "/nix", "/dev", "/proc", "/sys")))


def places_of(argv: Sequence[str], search_path: str, *, hidden: Path) -> tuple[Path, ...]:
    """Folders and files to show. Blocking: looks at the disk.

    Args:
        search_path: where programs are looked for, as in PATH.
        hidden: the program's own folder, of which nothing is shown.
    """
    found: dict[Path, None] = {}
    program = shutil.which(argv[0], path=search_path)
    if program is not None:
        for path in (Path(os.path.abspath(program)), Path(os.path.realpath(program))):
            found[_installation(path)] = None
            for link in _links(path):
                found[_installation(link)] = None
    for word in argv[1:]:
        path = Path(word.partition("=")[2] if word.startswith("-") else word)
        if path.is_absolute() and len(path.parts) > 2 and path.exists():
            found[path] = None
    own = Path(os.path.realpath(hidden))
    return tuple(path for path in found if not _is_known(Path(os.path.realpath(path)), own))


def _links(path: Path) -> list[Path]:
    """The steps between a link and the program behind it: an environment's python is a link to a link."""
    steps: list[Path] = []
    while path.is_symlink() and len(steps) < 10:
        path = Path(os.path.abspath(path.parent / os.readlink(path)))
        steps.append(path)
    return steps


def _installation(program: Path) -> Path:
    """The folder that a program and its libraries were installed into; never a home folder as a whole."""
    folder = program.parent
    home = Path.home()
    if folder.name not in ("bin", ".bin") or folder.parent in (home, home / ".local", Path("/")):
        return folder if folder != home else program
    return folder.parent


def _is_known(real: Path, own: Path) -> bool:
    """Whether a place is shown anyway, or must not be."""
    return any(real.is_relative_to(folder) for folder in SYSTEM) or real.is_relative_to(own) or own.is_relative_to(real)
