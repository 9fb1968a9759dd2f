"""Hostile archives, folders and headers: none gets in, none leaves a trace, none touches the skill that was there."""

import io
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from spacebot.base.errors import SpacebotError
from spacebot.tools import skill_archive
from spacebot.tools.skill_install import Installer
from spacebot.tools.skill_sources import install_path
from spacebot.tools.skill_text import MAX_SKILL_FILE
from tests.stand_ins.skill_hub import archive, skill_text

GOOD = {"pdf/SKILL.md": skill_text(), "pdf/scripts/run.py": "print(1)"}
MIB = 2**20


def packed(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of a good skill and these entries, as they are."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as made:
        for name, text in GOOD.items():
            made.writestr(name, text)
        for entry, content in entries:
            made.writestr(entry, content)
    return held.getvalue()


def entry(name: str, *, mode: int = stat.S_IFREG | 0o644, method: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = method
    return info


def twice(first: str, second: str) -> bytes:
    return packed((first, b"one"), (second, b"two"))


def patched(find: bytes, put: bytes, *, whole: bytes | None = None, last: bool = False) -> bytes:
    """An archive with some bytes changed, as no honest program writes it."""
    raw = packed(("pdf/extra.txt", b"extra")) if whole is None else whole
    assert find in raw
    place = raw.rfind(find) if last else raw.find(find)
    return raw[:place] + put + raw[place + len(find) :]


def directory_says(*, entries: int | None = None, size: int | None = None) -> bytes:
    raw = bytearray(packed())
    place = raw.rfind(b"PK\5\6")
    if entries is not None:
        struct.pack_into("<HH", raw, place + 8, entries, entries)
    if size is not None:
        struct.pack_into("<L", raw, place + 12, size)
    return bytes(raw)


def zip64() -> bytes:
    raw = packed()
    place = raw.rfind(b"PK\5\6")
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, place, 1)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 10**9, 10**9, 0, 0)
    return raw[:place] + record + locator + raw[place:]


def overlapping() -> bytes:
    """Many names for the same bytes."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("pdf/SKILL.md", skill_text())
        made.writestr("pdf/0", b"\0" * 4 * MIB)
        first = made.filelist[-1]
        for number in range(1, 100):
            twin = zipfile.ZipInfo(f"pdf/{number}")
            twin.compress_type, twin.CRC = first.compress_type, first.CRC
            twin.compress_size, twin.file_size, twin.header_offset = (
                first.compress_size, first.file_size, first.header_offset,
            )  # fmt: skip
            made.filelist.append(twin)
    return held.getvalue()


def headed(header: str, body: str = "Do it.") -> bytes:
    return archive({"SKILL.md": f"---\n{header}\n---\n{body}"}, top="pdf/")


ZEROS = b"\0" * (skill_archive.MAX_FILE + 1)
LINK = stat.S_IFLNK | 0o777
ARCHIVES: dict[str, Callable[[], bytes]] = {
    "parent path": lambda: packed(("../evil", b"x")),
    "parent path below": lambda: packed(("pdf/../../evil", b"x")),
    "parent path in another skill": lambda: packed(("other/SKILL.md/../../../evil", b"x")),
    "absolute path": lambda: packed(("/etc/evil", b"x")),
    "doubled slash": lambda: packed(("pdf//evil", b"x")),
    "step of one dot": lambda: packed(("pdf/./evil", b"x")),
    "backslashes": lambda: packed(("pdf\\..\\..\\evil", b"x")),
    "drive letter": lambda: packed(("C:/evil", b"x")),
    "stream of a file": lambda: packed(("pdf/SKILL.md:evil", b"x")),
    "device name": lambda: packed(("pdf/con.txt", b"x")),
    "line break in a name": lambda: packed(("pdf/a\nb", b"x")),
    "escape sequence in a name": lambda: packed(("pdf/\x1b[2Jx", b"x")),
    "text that runs backwards": lambda: packed(("pdf/\u202etxt.exe", b"x")),
    "unseen sign": lambda: packed(("pdf/a\u200b", b"x")),
    "blank at the end": lambda: packed(("pdf/a ", b"x")),
    "dot at the end": lambda: packed(("pdf/a.", b"x")),
    "NUL in a name": lambda: patched(b"pdf/extra.txt", b"pdf/ext\0a.txt", last=True),
    "two names for one entry": lambda: patched(b"pdf/extra.txt", b"pdf/other.txt", last=True),
    "link to a file": lambda: packed((entry("pdf/link", mode=LINK), b"/etc/passwd")),
    "link to a folder": lambda: packed((entry("pdf/scripts2", mode=LINK), b"../../..")),
    "link as SKILL.md": lambda: packed((entry("other/SKILL.md", mode=LINK), b"/etc/passwd")),
    "device": lambda: packed((entry("pdf/dev", mode=stat.S_IFCHR | 0o666), b"")),
    "named pipe": lambda: packed((entry("pdf/pipe", mode=stat.S_IFIFO | 0o666), b"")),
    "same name twice": lambda: packed((entry("pdf/a"), b"1"), (entry("pdf/A"), b"2")),
    "same name in two forms": lambda: twice("pdf/caf\u00e9", "pdf/cafe\u0301"),
    "SKILL.md twice": lambda: twice("pdf/a", "pdf/skill.md"),
    "folder and file": lambda: twice("pdf/x/", "pdf/x"),
    "file as folder": lambda: twice("pdf/x", "pdf/x/y"),
    "one large file": lambda: packed(("pdf/zeros", ZEROS)),
    "many files of zeros": lambda: packed(*((f"pdf/{n}", ZEROS[:-1]) for n in range(5))),
    "overlapping entries": overlapping,
    "size that lies": lambda: patched(
        struct.pack("<L", len(ZEROS)), struct.pack("<L", 5), whole=packed(("pdf/z", ZEROS)), last=True
    ),
    "too many files": lambda: packed(*((f"pdf/{n}", b"") for n in range(skill_archive.MAX_FILES + 1))),
    "too many entries": lambda: directory_says(entries=60_000),
    "large directory": lambda: directory_says(size=2**31),
    "zip64 that lies": zip64,
    "deep folders": lambda: packed(("pdf/" + "d/" * 30 + "x", b"x")),
    "long name": lambda: packed(("pdf/" + "x" * 300, b"x")),
    "encrypted": lambda: patched(b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\1\0", last=True),
    "unusual packing": lambda: packed((entry("pdf/x", method=zipfile.ZIP_BZIP2), b"x" * 100)),
    "wrong checksum": lambda: patched(b"extra", b"EXTRA", whole=packed((entry("pdf/x"), b"extra"))),
    "cut off": lambda: packed()[:-30],
    "cut in the middle": lambda: packed()[:80] + packed()[-60:],
    "not a zip": lambda: b"\x1f\x8b" + b"x" * 1000,
    "tar": lambda: b"pdf/SKILL.md".ljust(257, b"\0") + b"ustar\0" + b"\0" * 1000,
    "empty": lambda: b"",
    "hooks of git": lambda: packed(("pdf/.git/hooks/post-checkout", b"x")),
    "no skill": lambda: archive({"README.md": "nothing"}),
    "name that is a path": lambda: archive({"SKILL.md": skill_text()}, top="..pdf/").replace(b"..pdf/", b"../pd/"),
    "namesake in another folder": lambda: archive({"x/SKILL.md": skill_text("good"), "y/SKILL.md": skill_text("GOOD")}),
    "takes the name of an installed one": lambda: archive({"SKILL.md": skill_text("precious")}, top="other/"),
    "takes the place of an installed one": lambda: archive({"SKILL.md": skill_text("new")}, top="precious/"),
    "takes the place in capitals": lambda: archive({"SKILL.md": skill_text("new")}, top="PRECIOUS/"),
    "lock file as a skill": lambda: archive({"SKILL.md": skill_text("lock")}, top="skills.lock.json/"),
    "too many skills": lambda: archive({f"s{n}/SKILL.md": skill_text(f"s{n}") for n in range(101)}),
    "one bad among good ones": lambda: archive({"a/SKILL.md": skill_text("a"), "b/SKILL.md": "no header"}),
    # Headers
    "no header": lambda: archive({"SKILL.md": "# Just text"}, top="pdf/"),
    "header not closed": lambda: archive({"SKILL.md": "---\nname: x\ndescription: y\n\nbody"}, top="pdf/"),
    "no description": lambda: headed("name: x"),
    "description of blanks": lambda: headed('description: "  \\n "'),
    "no instructions": lambda: headed("description: d", body=" \n "),
    "laughing aliases": lambda: headed("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\ndescription: *b"),
    "object": lambda: headed("!!python/object/apply:os.system ['touch /tmp/evil']"),
    "list for a table": lambda: headed("- description: x"),
    "deep header": lambda: headed("description: d\nx: " + "[" * 400 + "]" * 400),
    "large header": lambda: headed("description: d\nx: " + "y" * 17_000),
    "large file": lambda: headed("description: d", body="x" * MAX_SKILL_FILE),
    "not UTF-8": lambda: archive({"SKILL.md": b"---\ndescription: \xff\xfe\n---\nx"}, top="pdf/"),
    "UTF-16": lambda: archive({"SKILL.md": skill_text().encode("utf-16")}, top="pdf/"),
    "NUL in the text": lambda: headed("description: d", body="x\0y"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of skills with one that was installed before."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/precious").mkdir()
    (tmp_path / "mine/precious/SKILL.md").write_text(skill_text("precious"))
    install_path(tmp_path / "mine", Installer(tmp_path / "skills"))
    return tmp_path / "skills"


def seen(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_is_refused_before_anything_changes(
    name: str, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "evil.skill"
    file.write_bytes(ARCHIVES[name]())
    before = seen(tmp_path)

    with pytest.raises(SpacebotError) as caught:
        install_path(file, Installer(root))

    assert seen(tmp_path) == before
    assert caplog.messages.count("skill refused") == 1
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


def test_the_archive_that_the_attacks_grow_from_is_good(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "good.skill"
    file.write_bytes(packed(("pdf/extra.txt", b"extra"), (entry("pdf/.hidden", mode=0), b"x")))

    assert install_path(file, Installer(root)) == ["pdf"]
    assert sorted(path.name for path in (root / "pdf").iterdir()) == [".hidden", "SKILL.md", "extra.txt", "scripts"]


def link(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/passwd")


def link_to_folder(folder: Path) -> None:
    (folder / "scripts").symlink_to("/etc")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def pipe_as_skill(folder: Path) -> None:
    (folder / "SKILL.md").unlink()
    os.mkfifo(folder / "SKILL.md")


def link_as_skill(folder: Path) -> None:
    (folder / "SKILL.md").rename(folder.parent / "elsewhere.md")
    (folder / "SKILL.md").symlink_to(folder.parent / "elsewhere.md")


def large(folder: Path) -> None:
    with (folder / "zeros").open("wb") as file:
        file.truncate(10**10)


def many(folder: Path) -> None:
    for number in range(skill_archive.MAX_FILES + 1):
        (folder / str(number)).touch()


def deep(folder: Path) -> None:
    (folder / "/".join("d" * 12)).mkdir(parents=True)
    (folder / "/".join("d" * 12) / "x").touch()


def odd_name(folder: Path) -> None:
    (folder / "a\x1b[2J").touch()


@pytest.mark.parametrize(
    "spoil", [link, link_to_folder, pipe, pipe_as_skill, link_as_skill, large, many, deep, odd_name]
)
def test_a_hostile_folder_is_refused(spoil: Callable[[Path], None], root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "SKILL.md").write_text(skill_text("evil"))
    spoil(folder)
    before = seen(root)

    with pytest.raises(SpacebotError):
        install_path(folder, Installer(root))

    assert seen(root) == before


def test_a_skills_folder_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/SKILL.md").write_text(skill_text())
    (tmp_path / "outside").mkdir()
    (tmp_path / "skills").symlink_to(tmp_path / "outside")

    with pytest.raises(SpacebotError):
        install_path(tmp_path / "mine", Installer(tmp_path / "skills"))

    assert list((tmp_path / "outside").iterdir()) == []
