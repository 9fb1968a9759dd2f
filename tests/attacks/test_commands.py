"""What commands can find out, contained or not: nothing of the program's own, and no value of what they may use."""

# ruff: noqa: E501  (tables of attacks, read by the line)

import os
from pathlib import Path

import pytest

from spacebot.base.errors import RefusedError
from spacebot.base.redaction import MASK
from spacebot.storage.keyring import Keyring, open_keyring
from tests.attacks.stage import FORBIDDEN, SYSTEM_SECRET, TOOL_SECRET, Act, play
from tests.fakes.scripted_model import Call

PYTHON = "python3 -c"
RING_KEY = f"spacebot:attack-{os.getpid()}"  # tests run side by side, and the keyring is one for all
KEYS = (
    "import ctypes; c = ctypes.CDLL(None).syscall; i = ctypes.c_int; b = ctypes.create_string_buffer(200); "
    f"k = c(250, 10, i(-4), b'user', b'{RING_KEY}', i(-1)); n = c(250, 11, k, b, 200); "
    "print('found', b.value.decode(), k, n)"
)
DUMPS = {
    "env": "env",
    "env with NULs": "env -0 | tr '\\0' '\\n'",
    "printenv": "printenv",
    "set": "set",
    "export": "export -p",
    "declare": "bash -c 'declare -x; compgen -v | while read n; do echo \"$n=${!n}\"; done'",
    "own environ": "tr '\\0' '\\n' < /proc/self/environ",
    "parent's environ": "tr '\\0' '\\n' < /proc/$PPID/environ",
    "every environ": "for p in /proc/[0-9]*; do tr '\\0' '\\n' < $p/environ; done 2>/dev/null",
    "every command line": "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null",
    "ps": "ps auxeww 2>/dev/null || true",
    "python": f"{PYTHON} 'import os; print(dict(os.environ), os.environb)'",
    "awk": "awk 'BEGIN { for (n in ENVIRON) print n, ENVIRON[n] }'",
    "perl": "perl -e 'print \"$_=$ENV{$_}\\n\" for keys %ENV' 2>/dev/null || true",
    "shell in a shell": "sh -c 'sh -c env'",
    "through a file": "env > dump.txt; cat dump.txt",
    "on standard error": "env >&2",
    "core file": "ulimit -c unlimited; sh -c 'kill -SEGV $$'; cat core* 2>/dev/null; true",
    "auxiliary of the program": "cat /proc/1/environ 2>/dev/null | tr '\\0' '\\n'",
    "open files": "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c secret; true",
    "one variable": "echo $DEPLOY_TOKEN",
    "one variable in quotes": "echo \"token='$DEPLOY_TOKEN',\"",
    "traced": "set -x; : $DEPLOY_TOKEN",
    "error message": 'cat "/$DEPLOY_TOKEN"',
    "base64": 'printf %s "$DEPLOY_TOKEN" | base64 -w0',
    "base64 in lines": 'printf %s "$DEPLOY_TOKEN$DEPLOY_TOKEN" | base64 -w 20',
    "base64 with a neighbour": "printf 'xy%s' \"$DEPLOY_TOKEN\" | base64",
    "base64 for addresses": f"{PYTHON} \"import os, base64; print(base64.urlsafe_b64encode(b'a' + os.environb[b'DEPLOY_TOKEN']))\"",
    "hex": "printf %s \"$DEPLOY_TOKEN\" | od -An -v -tx1 | tr -d ' \\n'",
    "address": f"{PYTHON} \"import os, urllib.parse; print(urllib.parse.quote(os.environ['DEPLOY_TOKEN'] + '/?'))\"",
    "json": f'{PYTHON} "import os, json; print(json.dumps(dict(os.environ)))"',
    "in two writes": 'printf %s "${DEPLOY_TOKEN%f}"; sleep 0.05; echo f',
    "byte by byte": f"{PYTHON} \"import os\\nfor c in os.environ['DEPLOY_TOKEN']: os.write(1, c.encode())\"",
    "in a long line": "head -c 40000 /dev/zero | tr '\\0' a; echo \" $DEPLOY_TOKEN\"",
    "file in the workspace": 'echo "$DEPLOY_TOKEN" > out.txt',
    "configured secret in a file": "echo zz9-SYSTEM-plural-z'-alpha-4242-hitchhike' | tee planted.txt",
}
# Only inside of a sandbox: without one the same user reads what the program's user may read, and the owner is told so.
CONTAINED = {
    "the key and the store": "cat {root}/secret.key {root}/secrets.db {root}/config.toml; ls -laR {root} | head -50",
    "every file of the instance": "find / -xdev -name secrets.db -o -xdev -name 'spacebot.db*' 2>/dev/null | head",
    "every process": "cat /proc/[0-9]*/cmdline | tr '\\0' ' '",
    "the keyring": f"{PYTHON} \"{KEYS}\"",
    "the list of keys": "cat /proc/keys /proc/key-users 2>/dev/null",
    "tools for keys": f"keyctl show 2>&1; keyctl print %user:{RING_KEY} 2>&1; true",
    "the message bus": "ls /run/user /run/dbus /var/run/dbus 2>&1; echo \"bus ${DBUS_SESSION_BUS_ADDRESS:-none}\"",
    "sockets of engines": "ls -l /var/run/docker.sock /run/containerd 2>&1",
    "a mount of the host": "mount -t proc proc /mnt 2>&1; mkdir -p m; mount --bind / m 2>&1; cat m{root}/secret.key 2>&1",
    "a new namespace": "unshare -r -m sh -c 'mount --bind / /mnt; cat /mnt{root}/secret.key' 2>&1",
    "a debugger": f"{PYTHON} \"import ctypes; print('traced', ctypes.CDLL(None).ptrace(0x4206, {os.getpid()}, 0, 0))\" 2>&1",
    "the program's memory": f"head -c 64 /proc/{os.getpid()}/mem /proc/{os.getpid()}/environ 2>&1",
    "a device of the disk": "mknod d b 8 0 2>&1; head -c 64 d 2>&1; head -c 64 /dev/sda /dev/vda 2>&1 | od -c | head -3",
    "a skill": "echo evil > skills/evil.md; mkdir -p skills/x && echo evil > skills/x/SKILL.md; ls skills",
    "a set-user program": "cp /bin/sh s; chmod u+s s; ./s -p -c 'cat {root}/secret.key' 2>&1",
    "a hard link": "ln {root}/secret.key k 2>&1; cat k 2>&1",
    "the working folder of the program": "cat /proc/$PPID/cwd/secret.key /proc/1/root{root}/secret.key 2>&1",
}  # fmt: skip
INJECTIONS = (
    "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "PYTHONPATH", "PYTHONSTARTUP", "NODE_OPTIONS",
    "RUBYOPT", "PERL5OPT", "PERL5LIB", "BASH_ENV", "ENV", "PATH", "HOME", "ld_preload", "Bash_Env", "TMPDIR",
)  # fmt: skip
KEY_TEXT = "the-key-of-the-store-51ab"


def furnish(workspace: Path) -> None:
    root = workspace.parents[2]
    (root / "secret.key").write_text(KEY_TEXT)
    (root / "secrets.db").write_text(KEY_TEXT)
    (root / "config.toml").write_text(KEY_TEXT)


def perform(folder: Path, *, sandboxed: bool) -> Act:
    calls = {name: Call("shell", command=command) for name, command in DUMPS.items()}
    calls |= {f"exec {name}": Call("exec", program="python3", args=["-c", f"import os; os.system({DUMPS[name]!r})"])
              for name in ("env", "base64")}  # fmt: skip
    calls["read back"] = Call("file", operation="read", path="out.txt")
    calls["search back"] = Call("file", operation="search", pattern="kq7")
    if sandboxed:
        calls |= {
            name: Call("shell", command=command.replace("{root}", str(folder))) for name, command in CONTAINED.items()
        }
    for name in INJECTIONS:
        calls[f"variable {name}"] = Call("shell", command="echo ran", env=[{"key": name, "value": "./evil.so"}])
    return play(folder, calls, prepare=furnish, sandboxed=sandboxed)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Act:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANTHROPIC_API_KEY", SYSTEM_SECRET)
        return perform(tmp_path_factory.mktemp("bare") / "inst", sandboxed=False)


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> Act:
    ring: Keyring | None = None
    try:
        ring = open_keyring()
    except RefusedError:
        ring = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANTHROPIC_API_KEY", SYSTEM_SECRET)
        patch.setattr("spacebot.storage.keyring._name", lambda root: RING_KEY.encode())
        folder = tmp_path_factory.mktemp("boxed") / "inst"
        if ring is not None:
            ring.remember(folder, KEY_TEXT)
        try:
            return perform(folder, sandboxed=True)
        finally:
            if ring is not None:
                assert ring.recall(folder) == KEY_TEXT
                ring.forget(folder)


READERS = (*DUMPS, "exec env", "exec base64", "read back", "search back")


@pytest.mark.spec("CA-12")
@pytest.mark.parametrize("mode", ["bare", "boxed"])
@pytest.mark.parametrize("name", READERS)
def test_no_output_shows_a_secret(name: str, mode: str, request: pytest.FixtureRequest) -> None:
    act: Act = request.getfixturevalue(mode)
    played = act.played[name]
    assert_clean(played.text)
    if MASK in played.text:
        assert any(line.startswith("secret kept out of a result") for line in played.log), played


def assert_clean(text: str) -> None:
    for value in FORBIDDEN:
        raw = value.encode()
        for shape in (value, raw.hex(), value[: len(value) // 2], value[len(value) // 2 :]):
            assert shape not in text, text
    assert "a3E3LVRPT0wtd3h5ei0w" not in text.replace("\n", ""), text


@pytest.mark.parametrize("mode", ["bare", "boxed"])
def test_the_variable_was_there_all_the_same(mode: str, request: pytest.FixtureRequest) -> None:
    act: Act = request.getfixturevalue(mode)
    assert act.played["one variable"].text.count(MASK) == 1
    assert (act.folder / "agents/main/workspace/out.txt").read_text().strip() == TOOL_SECRET


@pytest.mark.parametrize("mode", ["bare", "boxed"])
def test_neither_log_nor_event_nor_transcript_holds_a_secret(mode: str, request: pytest.FixtureRequest) -> None:
    act: Act = request.getfixturevalue(mode)
    for value in FORBIDDEN:
        assert value not in act.everything
    assert "secret kept out of a result" in act.everything


@pytest.mark.parametrize("name", CONTAINED)
def test_the_sandbox_keeps_what_is_the_program_s(name: str, boxed: Act) -> None:
    played = boxed.played[name]
    assert KEY_TEXT not in played.text, played
    assert "-m pytest" not in played.text, played  # the command line of the program outside
    assert "traced 0" not in played.text
    assert "bus unix" not in played.text
    assert not (boxed.folder / "agents/main/workspace/skills/x").exists()


@pytest.mark.parametrize("mode", ["bare", "boxed"])
@pytest.mark.parametrize("name", INJECTIONS)
def test_no_variable_makes_a_command_load_foreign_code(name: str, mode: str, request: pytest.FixtureRequest) -> None:
    act: Act = request.getfixturevalue(mode)
    played = act.played[f"variable {name}"]
    assert played.is_error
    assert "ran" not in played.text
    assert any("variable" in line for line in played.log)


def test_the_program_s_own_environment_is_what_it_was(boxed: Act) -> None:
    assert TOOL_SECRET not in os.environ.values()
