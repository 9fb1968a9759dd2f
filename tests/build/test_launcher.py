"""The launcher with a tiny program for the real one: where it unpacks, when, and what it says when it cannot."""

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

NO_START = 70
SCRIPT = """#!/bin/sh
case "$1" in
    hold) echo held; read -r line ;;
    where) stat -c %i "$(dirname "$0")" ;;
    *) echo "$$|$SPACEBOT_EXECUTABLE|$0|$*|$(cat "$(dirname "$0")/lib/link")"; exit 3 ;;
esac
"""

Pack = Callable[..., Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def code() -> bytes:
    """What looks like a library of 2.5 MB: calls and jumps in and out of it, at the ends of blocks too."""
    random_ = random.Random(2)
    size = 2_500_001
    content = bytearray(random_.randbytes(size))
    content[:20] = b"\x7fELF" + bytes(14) + (62).to_bytes(2, "little")
    for place in [*range(40, size - 8, 37), 2**20 - 5, 2**20 - 4, 2**20 - 1, 2**20, 2**21 - 3, size - 5]:
        distance = random_.choice(
            [0, 1, -1, -place, size - place, size - place - 1, size - 1, size, -size, 2**31 - 1, -(2**31), 500]
        )
        content[place : place + 5] = bytes([random_.choice([0xE8, 0xE9])]) + distance.to_bytes(4, "little", signed=True)
    return bytes(content[:size])


@pytest.fixture(scope="session")
def launcher(make_script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        compiled: Path = make_script.compile_launcher(tmp_path_factory.mktemp("launcher") / "launcher")
    except make_script.MakeError as error:
        pytest.skip(str(error))
    return compiled


@pytest.fixture(scope="session")
def translator(make_script: ModuleType, launcher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiled: Path = make_script.compile_translator(tmp_path_factory.mktemp("translator") / "x86.so")
    return compiled


@pytest.fixture
def pack(make_script: ModuleType, launcher: Path, translator: Path, tmp_path: Path) -> Pack:
    """Pack a tiny tree; another `version` is another content."""

    def pack(version: str = "1.2.3", *, name: str = "tiny-exe", program: str = "tiny") -> Path:
        tree = tmp_path / f"tree-{version}-{name}"
        (tree / "lib" / "empty").mkdir(parents=True)
        (tree / program).write_text(SCRIPT)
        (tree / program).chmod(0o755)
        (tree / "lib" / "data").write_text(f"data of {version}")
        (tree / "lib" / "noise").write_bytes(random.Random(1).randbytes(300_000))
        (tree / "lib" / "code.so").write_bytes(code())
        (tree / "lib" / "nothing").touch()
        (tree / "lib" / "link").symlink_to("data")
        deep = tree / "lib" / ("d" * 60) / ("e" * 60)
        deep.mkdir(parents=True)
        (deep / "file..name").write_text("long names are split in the archive")
        make_script.pack(launcher, tree, version, tmp_path / name, program=program, translator=translator)
        return tmp_path / name

    return pack


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def run(cache: Path) -> Run:
    def run(executable: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        variables = environment or {"SPACEBOT_CACHE": str(cache)}
        return subprocess.run(
            [executable, *arguments],
            env={"PATH": os.environ["PATH"], **variables},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    return run


@pytest.fixture
def hold(cache: Path) -> Iterator[Callable[[Path], None]]:
    """Keep a program running until the test ends."""
    running: list[subprocess.Popen[bytes]] = []

    def hold(executable: Path) -> None:
        process = subprocess.Popen(
            [executable, "hold"],
            env={"PATH": os.environ["PATH"], "SPACEBOT_CACHE": str(cache)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"

    yield hold
    for process in running:
        process.communicate()


def folders(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir() if entry.is_dir())


def test_version_is_answered_without_unpacking(pack: Pack, run: Run, cache: Path) -> None:
    done = run(pack("4.5.6"), "--version")

    assert (done.returncode, done.stdout) == (0, "tiny 4.5.6\n")
    assert not cache.exists()


def test_the_program_runs_in_the_same_process_with_its_arguments(pack: Pack, cache: Path) -> None:
    executable = pack()
    process = subprocess.Popen(
        [executable, "one", "two words"],
        env={"PATH": os.environ["PATH"], "SPACEBOT_CACHE": str(cache)},
        stdout=subprocess.PIPE,
    )
    output, _ = process.communicate()

    pid, own_file, program, arguments, content = output.decode().strip().split("|")
    assert process.returncode == 3
    assert int(pid) == process.pid
    assert Path(own_file) == executable
    assert Path(program).parent.parent == cache
    assert (arguments, content) == ("one two words", "data of 1.2.3")


def test_the_unpacked_tree_is_the_packed_one(pack: Pack, run: Run, cache: Path, tmp_path: Path) -> None:
    run(pack(), "where")
    (name,) = folders(cache)

    compared = subprocess.run(
        ["diff", "-r", "--no-dereference", tmp_path / "tree-1.2.3-tiny-exe", cache / name], check=False
    )
    assert compared.returncode == 0
    assert (cache / name / "lib" / "link").is_symlink()
    assert (cache / name / "lib" / "empty").is_dir()


def test_packing_twice_gives_the_same_bytes(pack: Pack) -> None:
    first, second = pack(name="first"), pack(name="second")

    assert first.read_bytes() == second.read_bytes()


def test_eight_first_starts_at_once_unpack_once(pack: Pack, cache: Path) -> None:
    executable = pack()
    environment = {"PATH": os.environ["PATH"], "SPACEBOT_CACHE": str(cache)}
    processes = [subprocess.Popen([executable, "where"], env=environment, stdout=subprocess.PIPE) for _ in range(8)]
    outputs = {process.communicate()[0] for process in processes}

    assert [process.returncode for process in processes] == [0] * 8
    assert len(outputs) == 1  # a second unpacking would have put another folder in place
    assert len(folders(cache)) == 1


@pytest.mark.parametrize("damage", ["missing", "shorter", "another kind"])
def test_a_damaged_tree_is_unpacked_again(damage: str, pack: Pack, run: Run, cache: Path) -> None:
    executable = pack()
    before = run(executable, "where").stdout
    noise = cache / folders(cache)[0] / "lib" / "noise"
    noise.unlink()
    if damage == "shorter":
        noise.write_bytes(b"half")
    elif damage == "another kind":
        noise.mkdir()

    assert run(executable, "where").stdout != before
    assert noise.stat().st_size == 300_000
    assert len(folders(cache)) == 1


def test_a_damaged_tree_is_repaired_under_a_running_program(
    pack: Pack, run: Run, cache: Path, hold: Callable[[Path], None]
) -> None:
    """The running one holds the version's lock, and for days: nobody may wait for it."""
    executable = pack()
    hold(executable)
    noise = cache / folders(cache)[0] / "lib" / "noise"
    noise.unlink()

    assert run(executable, "where").returncode == 0
    assert noise.exists()


def test_an_interrupted_unpacking_is_cleared_away(pack: Pack, run: Run, cache: Path) -> None:
    executable = pack()
    run(executable, "where")
    (name,) = folders(cache)
    (cache / name).rename(cache / f"{name}.new")

    assert run(executable, "where").returncode == 0
    assert folders(cache) == [name]


def test_an_old_version_is_removed_when_nothing_runs_it(pack: Pack, run: Run, cache: Path) -> None:
    old, new = pack("1.0", name="old"), pack("2.0", name="new")
    run(old, "where")
    before = folders(cache)
    run(new, "where")

    assert len(folders(cache)) == 1
    assert folders(cache) != before
    assert len(list(cache.glob("*.lock"))) == 2  # the new version's and the one for unpacking


def test_an_old_version_stays_while_it_runs(pack: Pack, run: Run, cache: Path, hold: Callable[[Path], None]) -> None:
    old, new = pack("1.0", name="old"), pack("2.0", name="new")
    hold(old)
    run(new, "where")

    assert len(folders(cache)) == 2


@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_a_damaged_payload_is_told(place: float, pack: Pack, run: Run, cache: Path, launcher: Path) -> None:
    executable = pack()
    content = bytearray(executable.read_bytes())
    begin, end = launcher.stat().st_size, len(content) - 700  # index and trailer are shorter than that
    at = int(begin + 16 + (end - begin - 16) * place)
    content[at] ^= 0x40
    executable.write_bytes(content)

    done = run(executable, "where")

    assert done.returncode == NO_START
    assert "is damaged" in done.stderr
    assert "Download it again" in done.stderr
    assert folders(cache) == []


@pytest.mark.parametrize("missing", [1, 100, 100_000, 300_000])
def test_a_file_cut_short_is_told(missing: int, pack: Pack, run: Run) -> None:
    executable = pack()
    os.truncate(executable, executable.stat().st_size - missing)

    for arguments in (["--version"], ["where"]):
        done = run(executable, *arguments)
        assert done.returncode == NO_START
        assert "is damaged" in done.stderr


def test_a_cache_that_cannot_be_written_is_told_with_the_way_out(pack: Pack, run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    done = run(pack(), "where", SPACEBOT_CACHE=str(tmp_path / "file" / "cache"))

    assert done.returncode == NO_START
    assert f"cannot make {tmp_path / 'file' / 'cache'}: Not a directory" in done.stderr
    assert "Set SPACEBOT_CACHE to a folder of your own" in done.stderr


def test_a_read_only_cache_serves_once_it_is_filled(pack: Pack, run: Run, cache: Path, tmp_path: Path) -> None:
    """A container image may bring the unpacked program along. Root may write anywhere, so a mount must say no."""
    executable = pack()
    run(executable, "where")
    inside = f'mount --bind "{cache}" "{cache}" && mount -o remount,ro,bind "{cache}" && "{executable}" where'

    done = in_own_mounts(inside, cache)

    assert (done.returncode, done.stderr) == (0, "")
    cache.rename(tmp_path / "elsewhere")
    cache.mkdir()
    refused = in_own_mounts(inside, cache)
    assert refused.returncode == NO_START
    assert "cannot write to it" in refused.stderr


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_cache_that_others_can_write_to_is_refused(mode: int, pack: Pack, run: Run, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(mode)

    done = run(pack(), "where")

    assert done.returncode == NO_START
    assert "others can write to it" in done.stderr


def test_the_next_place_is_tried(pack: Pack, run: Run, tmp_path: Path) -> None:
    program = f"tiny-{random.randrange(10**9)}"
    last = Path("/var/tmp") / f"{program}-{os.geteuid()}"
    (tmp_path / "file").touch()
    home = tmp_path / "home"
    home.mkdir()
    executable = pack(program=program)
    try:
        for environment, expected in (
            ({"XDG_CACHE_HOME": str(tmp_path / "xdg"), "HOME": str(home)}, tmp_path / "xdg" / program),
            ({"XDG_CACHE_HOME": str(tmp_path / "file"), "HOME": str(home)}, home / ".cache" / program),
            ({"XDG_CACHE_HOME": str(tmp_path / "file"), "HOME": str(tmp_path / "file")}, last),
        ):
            done = run(executable, **environment)
            assert done.returncode == 3, done.stderr
            assert Path(done.stdout.split("|")[2]).parent.parent == expected
    finally:
        shutil.rmtree(last, ignore_errors=True)


def test_a_link_in_the_common_folder_is_not_followed(pack: Pack, run: Run, tmp_path: Path) -> None:
    program = f"tiny-{random.randrange(10**9)}"
    last = Path("/var/tmp") / f"{program}-{os.geteuid()}"
    (tmp_path / "mine").mkdir()
    last.symlink_to(tmp_path / "mine")
    try:
        done = run(pack(program=program), HOME="/nowhere")
        assert done.returncode == NO_START
        assert "is not a folder" in done.stderr
    finally:
        last.unlink()


@pytest.mark.parametrize(
    ("options", "expected"),
    [("noexec,size=8m", "mounted noexec"), ("size=64k", "the disk is full: 0 MB free, 3 MB needed")],
)
def test_an_unfit_file_system_is_told(options: str, expected: str, pack: Pack, cache: Path) -> None:
    cache.mkdir()

    done = in_own_mounts(f'mount -t tmpfs -o mode=700,{options} none "{cache}" && "{pack()}" where', cache)

    assert done.returncode == NO_START
    assert expected in done.stderr


def in_own_mounts(command: str, cache: Path) -> "subprocess.CompletedProcess[str]":
    """Run a shell command that may mount what nobody else sees; skips where the system does not allow it."""
    wrapped = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c"]
    try:
        allowed = (
            subprocess.run([*wrapped, "mount -t tmpfs none /mnt"], capture_output=True, check=False).returncode == 0
        )
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("no private mounts on this system")
    return subprocess.run(
        [*wrapped, command],
        env={"PATH": os.environ["PATH"], "SPACEBOT_CACHE": str(cache)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
