"""The secret store: what is on disk tells nothing, what was changed is noticed, and a key is never lost on the way."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spacebot.base import redaction
from spacebot.base.errors import NotFoundError, RefusedError, StorageError
from spacebot.storage.database import connect
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.storage.secrets import (
    MAX_SECRETS,
    MAX_VALUE,
    Category,
    KeyKind,
    LockedError,
    SecretInfo,
    SecretStore,
    WrongPassphraseError,
)

ROOT = Path(__file__).parents[2]
VALUE = "correct horse battery staple"
PASSPHRASE = "a phrase that is long enough"


@pytest.fixture(autouse=True)
def _no_other_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", redaction._Known())


@pytest.fixture
def store(tmp_path: Path) -> SecretStore:
    return SecretStore(tmp_path)


@pytest.fixture(params=["file", "passphrase"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> SecretStore:
    """A store of either kind with two secrets."""
    made = SecretStore(tmp_path, passphrase=PASSPHRASE if request.param == "passphrase" else None)
    made.set("API_KEY", VALUE)
    made.set("DEPLOY_TOKEN", "another value", Category.TOOL)
    return made


def values(store: SecretStore) -> dict[str, str | None]:
    return {name: secret.value for name, secret in store.read().items()}


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_value_comes_back_and_stands_nowhere_on_disk(kept: SecretStore, tmp_path: Path) -> None:
    again = SecretStore(tmp_path, passphrase=kept.passphrase)
    assert values(again) == {"API_KEY": VALUE, "DEPLOY_TOKEN": "another value"}
    assert [(info.name, info.category) for info in again.list()] == [
        ("API_KEY", Category.SYSTEM),
        ("DEPLOY_TOKEN", Category.TOOL),
    ]
    for path in tmp_path.iterdir():
        assert VALUE.encode() not in path.read_bytes()
        assert mode(path) == 0o600, path
    assert VALUE not in repr(again.read())
    assert VALUE not in repr(vars(again))


def test_names_are_told_without_the_key(kept: SecretStore, tmp_path: Path) -> None:
    (tmp_path / "secret.key").unlink(missing_ok=True)
    locked = SecretStore(tmp_path)
    assert [info.name for info in locked.list()] == ["API_KEY", "DEPLOY_TOKEN"]
    with pytest.raises(LockedError):
        locked.read()
    with pytest.raises(LockedError):
        locked.set("NEW", "a value of some length")
    locked.remove("API_KEY")
    assert [info.name for info in locked.list()] == ["DEPLOY_TOKEN"]


def test_changing_keeps_the_category_and_the_first_date(store: SecretStore) -> None:
    first, is_new = store.set("deploy_token", "first value", Category.TOOL)
    assert is_new
    second, is_new = store.set("DEPLOY_TOKEN", "second value")
    assert not is_new
    assert second.category is Category.TOOL
    assert second.created_at == first.created_at
    assert values(store) == {"DEPLOY_TOKEN": "second value"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "empty"),
        (" \t ", "empty"),
        ("one\ntwo", "several lines"),
        ("one\r", "several lines"),
        ("a\0b", "control characters"),
        ("\ud800", "control characters"),
        ("é" * (MAX_VALUE // 2 + 1), f"{MAX_VALUE + 2} bytes"),
    ],
)
def test_what_cannot_be_a_value_is_refused(store: SecretStore, value: str, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        store.set("API_KEY", value)
    assert not store.exists


@pytest.mark.parametrize("name", ["", "1A", "_A", "A B", "A=hunter2hunter2", "A" * 65, "Ä", "A-B", "A\n", "A\nB"])
def test_what_cannot_be_a_name_is_refused_without_repeating_it(store: SecretStore, name: str) -> None:
    if name == "A\n":  # a blank at the end is somebody's slip
        assert store.set(name, VALUE)[0].name == "A"
        return
    with pytest.raises(RefusedError) as caught:
        store.set(name, VALUE)
    assert "hunter2" not in str(caught.value)


def test_an_unknown_name_is_answered_with_the_nearest(kept: SecretStore) -> None:
    with pytest.raises(NotFoundError, match="did you mean API_KEY"):
        kept.remove("APIKEY")
    with pytest.raises(NotFoundError, match="has no ZZZ"):
        kept.remove("zzz")


def test_the_store_is_bounded(store: SecretStore) -> None:
    store.set("A0", VALUE)
    connection = connect(store.path)
    rows = [(f"A{i}", "system", b"", "", "") for i in range(1, MAX_SECRETS)]
    connection.executemany("INSERT INTO secrets VALUES (?, ?, ?, ?, ?)", rows)
    connection.close()
    with pytest.raises(RefusedError, match="the most it can"):
        store.set("ONE_MORE", VALUE)
    store.set("A0", "a changed value")


# Keys


def test_a_wrong_passphrase_is_told_apart_from_a_missing_one(tmp_path: Path) -> None:
    SecretStore(tmp_path, passphrase=PASSPHRASE).set("API_KEY", VALUE)
    assert not (tmp_path / "secret.key").exists()
    with pytest.raises(WrongPassphraseError, match="wrong"):
        SecretStore(tmp_path, passphrase="something else").read()
    with pytest.raises(LockedError, match="locked by a passphrase"):
        SecretStore(tmp_path).read()
    with pytest.raises(RefusedError, match="8 to"):
        SecretStore(tmp_path / "..", passphrase="short")._new_key(b"", KeyKind.PASSPHRASE, "short")


@pytest.mark.parametrize("damage", ["gone", "empty", "other", "words", "half"])
def test_a_key_file_that_does_not_fit_is_told(kept: SecretStore, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "secret.key"
    if kept.kind() is KeyKind.PASSPHRASE:
        file.write_text("left by somebody")
        assert values(kept)["API_KEY"] == VALUE
        return
    texts = {"empty": "", "other": os.urandom(32).hex(), "words": "not a key", "half": file.read_text()[:40]}
    before = kept.path.read_bytes()
    file.unlink() if damage == "gone" else file.write_text(texts[damage])
    phrase = "is missing" if damage == "gone" else "does not belong"
    with pytest.raises(LockedError, match=phrase):
        kept.read()
    with pytest.raises(LockedError, match=phrase):
        kept.set("NEW", VALUE)
    with pytest.raises(LockedError, match=phrase):
        kept.rotate()
    assert kept.path.read_bytes() == before


def test_every_record_has_a_nonce_of_its_own(kept: SecretStore) -> None:
    kept.set("SAME", VALUE)
    first = records(kept)
    kept.set("SAME", VALUE)
    second = records(kept)
    assert first["SAME"] != second["SAME"]
    assert len({record[1:13] for record in [*first.values(), second["SAME"]]}) == 4


def records(store: SecretStore) -> dict[str, bytes]:
    connection = connect(store.path)
    try:
        return {row["name"]: bytes(row["value"]) for row in connection.execute("SELECT name, value FROM secrets")}
    finally:
        connection.close()


def change(store: SecretStore, statement: str, *parameters: object) -> None:
    connection = connect(store.path)
    connection.execute(statement, parameters)
    connection.close()


def test_a_record_opens_only_as_what_was_sealed(kept: SecretStore) -> None:
    """A flipped bit, another's value, another category, another format, half a record: none opens, the rest do."""
    whole = records(kept)["API_KEY"]
    for place in (0, 1, 12, 13, len(whole) - 1):
        broken = bytearray(whole)
        broken[place] ^= 1
        change(kept, "UPDATE secrets SET value = ? WHERE name = 'API_KEY'", bytes(broken))
        assert values(kept) == {"API_KEY": None, "DEPLOY_TOKEN": "another value"}
    for wrong in (records(kept)["DEPLOY_TOKEN"], whole[:10], b""):
        change(kept, "UPDATE secrets SET value = ? WHERE name = 'API_KEY'", wrong)
        assert values(kept)["API_KEY"] is None
    with pytest.raises(StorageError, match="record of API_KEY is damaged"):
        kept.rotate()
    change(kept, "UPDATE secrets SET value = ? WHERE name = 'API_KEY'", whole)
    assert values(kept)["API_KEY"] == VALUE
    change(kept, "UPDATE secrets SET category = 'tool' WHERE name = 'API_KEY'")  # would hand it to every command
    assert values(kept)["API_KEY"] is None


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_damaged_file_is_told_and_left_alone(kept: SecretStore, content: bytes) -> None:
    kept.path.write_bytes(content)
    for work in (kept.read, kept.list, kept.rotate, lambda: kept.set("A", VALUE), lambda: kept.remove("A")):
        with pytest.raises(StorageError, match=r"secrets\.db"):
            work()
    assert kept.path.read_bytes() == content


def test_a_store_of_a_later_version_is_left_alone(kept: SecretStore) -> None:
    change(kept, "UPDATE meta SET value = ? WHERE key = 'format'", b"2")
    with pytest.raises(StorageError, match="another version"):
        kept.read()


def test_permissions_are_mended_and_told(store: SecretStore, tmp_path: Path) -> None:
    store.set("API_KEY", VALUE)
    for name in ("secret.key", "secrets.db"):
        (tmp_path / name).chmod(0o644)
    assert values(store) == {"API_KEY": VALUE}
    assert mode(tmp_path / "secret.key") == mode(tmp_path / "secrets.db") == 0o600
    assert sum("others could read" in warning for warning in store.warnings) == 2


def test_what_is_not_a_plain_file_is_refused(store: SecretStore, tmp_path: Path) -> None:
    (tmp_path / "secrets.db").mkdir()
    with pytest.raises(StorageError, match="not a plain file"):
        store.set("API_KEY", VALUE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser gives files away")
def test_somebody_elses_file_is_refused(store: SecretStore, tmp_path: Path) -> None:
    store.set("API_KEY", VALUE)
    os.chown(tmp_path / "secret.key", 12345, 12345)
    with pytest.raises(StorageError, match="belongs to another user"):
        store.read()


# A new key


@pytest.mark.parametrize("target", [None, KeyKind.FILE, KeyKind.PASSPHRASE])
def test_a_new_key_opens_everything_and_the_old_one_nothing(
    kept: SecretStore, tmp_path: Path, target: KeyKind | None
) -> None:
    old_kind, old_key = kept.kind(), tmp_path / "secret.key"
    saved = old_key.read_bytes() if old_key.exists() else None
    before, names = records(kept), kept.list()
    assert kept.rotate(kind=target, passphrase="quite another phrase" if target is KeyKind.PASSPHRASE else None) == 2
    assert values(kept) == {"API_KEY": VALUE, "DEPLOY_TOKEN": "another value"}
    assert kept.list() == names
    assert kept.kind() is (target or old_kind)
    assert old_key.exists() == (kept.kind() is KeyKind.FILE)
    assert not (tmp_path / "secret.key.new").exists()
    left = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not any(record in left for record in before.values())
    if saved is not None:
        old_key.write_bytes(saved)
        if kept.kind() is KeyKind.FILE:
            with pytest.raises(LockedError):
                SecretStore(tmp_path).read()
    if target is KeyKind.PASSPHRASE:
        with pytest.raises(LockedError):
            SecretStore(tmp_path, passphrase=PASSPHRASE).read()


def test_a_store_that_is_empty_has_nothing_to_rotate(store: SecretStore) -> None:
    with pytest.raises(NotFoundError, match="no secrets yet"):
        store.rotate()
    assert values(store) == {}


KILLED = """
import os, signal, sys
from pathlib import Path
from spacebot.storage.secrets import KeyKind, SecretStore

left = int(sys.argv[2])

def counted(function):
    def run(*arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return function(*arguments, **options)
    return run

for name in ("open", "write", "fsync", "replace", "unlink", "close"):
    setattr(os, name, counted(getattr(os, name)))
store = SecretStore(Path(sys.argv[1]), passphrase=sys.argv[4] or None)
store.rotate(kind=KeyKind(sys.argv[3]), passphrase=sys.argv[4] or None)
"""


@pytest.mark.parametrize("kind", ["file", "passphrase"])
def test_a_rotation_killed_at_any_step_loses_nothing(tmp_path: Path, kind: str) -> None:
    """Each call that changes a file is the last one of a process once; what is left opens, and rotates again."""
    store = SecretStore(tmp_path)
    store.set("API_KEY", VALUE)
    store.set("DEPLOY_TOKEN", "another value", Category.TOOL)
    phrase = PASSPHRASE if kind == "passphrase" else ""
    for step in range(100):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), str(step), kind, phrase], cwd=ROOT, check=False
        )
        after = SecretStore(tmp_path, passphrase=phrase or None)
        assert values(after) == {"API_KEY": VALUE, "DEPLOY_TOKEN": "another value"}, step
        assert not (tmp_path / "secret.key.new").exists()
        assert (tmp_path / "secret.key").exists() == (after.kind() is KeyKind.FILE)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        if after.kind() is KeyKind.PASSPHRASE:
            after.rotate(kind=KeyKind.FILE)
    else:
        pytest.fail("it never came to its end")
    assert step > 5


ENDLESS = """
import sys
from pathlib import Path
from spacebot.storage.secrets import SecretStore
store = SecretStore(Path(sys.argv[1]))
while True:
    store.rotate()
    print("done", flush=True)
"""


def test_rotations_killed_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    """The same at moments that nobody chose, those inside of the database among them."""
    store = SecretStore(tmp_path)
    for i in range(20):
        store.set(f"KEY_{i}", f"value number {i}")
    for round_ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.0037 * round_)  # not a wait for anything: where in the next rotation it strikes
        process.kill()
        process.wait()
        process.stdout.close()
        assert values(SecretStore(tmp_path)) == {f"KEY_{i}": f"value number {i}" for i in range(20)}


def test_commands_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def work(task: Callable[[int], object]) -> None:
        try:
            for i in range(10):
                task(i)
        except Exception as error:
            failures.append(error)

    SecretStore(tmp_path).set("FIRST", VALUE)
    tasks: list[Callable[[int], object]] = [
        lambda i: SecretStore(tmp_path).set(f"LEFT_{i}", f"left value {i}"),
        lambda i: SecretStore(tmp_path).set(f"RIGHT_{i}", f"right value {i}"),
        lambda i: SecretStore(tmp_path).rotate(),
        lambda i: SecretStore(tmp_path).read(),
    ]
    threads = [threading.Thread(target=work, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    expected = {f"{side.upper()}_{i}": f"{side} value {i}" for side in ("left", "right") for i in range(10)}
    assert values(SecretStore(tmp_path)) == expected | {"FIRST": VALUE}


# In the running program


def test_the_program_sees_a_change_when_it_looks_again(kept: SecretStore, tmp_path: Path) -> None:
    live = LiveSecrets.open(tmp_path, kept.passphrase)
    assert live.resolve("api_key") == VALUE
    assert dict(live.tool_environment()) == {"DEPLOY_TOKEN": "another value"}
    kept.set("API_KEY", "quite another one")
    kept.remove("DEPLOY_TOKEN")
    live.refresh()
    assert live.resolve("API_KEY") == "quite another one"
    assert not live.tool_environment()
    for word in (VALUE, "quite another one", "another value"):  # an old value is still a secret
        assert redaction.find_secret(f"take {word}") == "configured secret"
    assert VALUE not in repr(live)


def test_a_locked_store_is_told_until_it_is_opened(tmp_path: Path) -> None:
    SecretStore(tmp_path, passphrase=PASSPHRASE).set("API_KEY", VALUE)
    live = LiveSecrets.open(tmp_path)
    assert "spacebot secret unlock" in live.warnings[0]
    with pytest.raises(LockedError, match="secret unlock"):
        live.resolve("API_KEY")
    with pytest.raises(WrongPassphraseError):
        live.refresh("a wrong passphrase")
    live.refresh(PASSPHRASE)
    assert (live.resolve("API_KEY"), live.warnings, live.passphrase) == (VALUE, (), PASSPHRASE)


def test_what_was_known_stays_when_the_store_breaks(kept: SecretStore, tmp_path: Path) -> None:
    live = LiveSecrets.open(tmp_path, kept.passphrase)
    kept.path.write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError):
        live.refresh()
    assert live.resolve("API_KEY") == VALUE


def test_a_damaged_record_costs_only_itself(kept: SecretStore, tmp_path: Path) -> None:
    change(kept, "UPDATE secrets SET value = x'00' WHERE name = 'API_KEY'")
    live = LiveSecrets.open(tmp_path, kept.passphrase)
    assert "record of API_KEY" in live.warnings[0]
    with pytest.raises(StorageError, match=r"API_KEY.*damaged"):
        live.resolve("API_KEY")
    assert live.resolve("DEPLOY_TOKEN") == "another value"
    with pytest.raises(NotFoundError, match="did you mean DEPLOY_TOKEN"):
        live.resolve("DEPLOY_TOKE")


def test_an_instance_without_secrets_gets_no_files(tmp_path: Path) -> None:
    live = LiveSecrets.open(tmp_path / "not there")
    with pytest.raises(NotFoundError, match="spacebot secret set"):
        live.resolve("API_KEY")
    infos: list[SecretInfo] = SecretStore(tmp_path).list()
    assert (live.warnings, infos, list(tmp_path.iterdir())) == ((), [], [])
