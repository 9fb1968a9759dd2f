"""The log's files: days, sizes, old ones, full disks, secrets."""

import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from spacebot.base.log_file import LogFile, old_files
from spacebot.base.redaction import register_secret
from spacebot.base.telemetry import kv, limit_log_files, set_up_logging

DAY = 86_400.0
START = datetime(2026, 11, 1, 12, tzinfo=UTC).timestamp()


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Path]:
    """A folder that logging was set up with as the daemon does it."""
    root = logging.getLogger()
    before, level, raises = list(root.handlers), root.level, logging.raiseExceptions
    for handler in before:  # force=True would close those of the test runner
        root.removeHandler(handler)
    set_up_logging(tmp_path, debug=False, console=False)
    yield tmp_path
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    for handler in before:
        root.addHandler(handler)
    root.setLevel(level)
    logging.raiseExceptions = raises
    logging.captureWarnings(False)


def write(handler: LogFile, text: str, moment: float) -> None:
    record = logging.LogRecord("test", logging.INFO, "", 0, text, (), None)
    record.created = moment
    handler.handle(record)


def test_each_day_has_its_file_and_the_oldest_go(tmp_path: Path) -> None:
    handler = LogFile(tmp_path / "spacebot.log", keep=3)
    (tmp_path / "spacebot.log.mine").write_text("not ours")
    for day in range(6):
        write(handler, f"day {day}", START + day * DAY)
        write(handler, f"again {day}", START + day * DAY + 60)
    handler.close()

    assert (tmp_path / "spacebot.log").read_text() == "day 5\nagain 5\n"
    assert [file.name for file in old_files(tmp_path / "spacebot.log")] == [
        "spacebot.log.2026-11-03", "spacebot.log.2026-11-04", "spacebot.log.2026-11-05",
    ]  # fmt: skip
    assert (tmp_path / "spacebot.log.2026-11-04").read_text() == "day 3\nagain 3\n"
    assert (tmp_path / "spacebot.log.mine").exists()


def test_a_large_file_gives_way_within_its_day_and_one_of_an_earlier_life_at_once(tmp_path: Path) -> None:
    log = tmp_path / "spacebot.log"
    log.write_text("an earlier life\n")
    os.utime(log, (START - DAY, START - DAY))
    handler = LogFile(log, max_bytes=20)
    for number in range(7):
        write(handler, f"line {number} x", START)
    handler.close()

    assert [file.name for file in old_files(log)] == [
        "spacebot.log.2026-10-31", "spacebot.log.2026-11-01", "spacebot.log.2026-11-01.1",
    ]  # fmt: skip
    assert log.read_text() == "line 6 x\n"


def test_two_writers_share_a_file_and_its_change(tmp_path: Path) -> None:
    log = tmp_path / "spacebot.log"
    one, two = LogFile(log), LogFile(log)
    write(one, "one", START)
    write(two, "two", START)
    write(one, "one of the next day", START + DAY)
    write(two, "two of the next day", START + DAY)
    assert log.read_text() == "one of the next day\ntwo of the next day\n"
    assert log.with_name("spacebot.log.2026-11-01").read_text() == "one\ntwo\n"
    log.unlink()
    write(one, "after somebody removed it", START + DAY)
    assert log.read_text() == "after somebody removed it\n"
    one.close()
    two.close()


def test_a_full_disk_costs_records_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "spacebot.log"
    log.symlink_to("/dev/full")
    handler = LogFile(log)
    write(handler, "lost", START)
    write(handler, "lost too", START)
    log.unlink()
    write(handler, "2026-11-01T12:00:00.000Z there again", START)
    handler.close()

    first, second = log.read_text().splitlines()
    assert first == (
        "2026-11-01T12:00:00.000Z warning spacebot.base.log_file 2 records lost reason='No space left on device'"
    )
    assert second.endswith("there again")
    assert capsys.readouterr() == ("", "")


@pytest.mark.spec("CA-12")
def test_no_line_holds_a_secret_and_fields_are_short(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register_secret("a-long-and-secret-value-of-mine")
    log = logging.getLogger("test")
    log.info(
        "asked", extra=kv(key="a-long-and-secret-value-of-mine", cut="x" * 262 + "a-long-and-secret-value-of-mine")
    )
    log.info("%d", "a-long-and-secret-value-of-mine")  # a mistake in the call, which Python would print as it is
    log.info("long", extra=kv(text="y" * 10_000))
    limit_log_files(keep=1, max_bytes=1)
    log.info("in a file of its own")

    text = "".join(file.read_text() for file in written.iterdir())
    assert len(list(written.iterdir())) == 2
    assert "secret-value" not in text
    assert "a-long-and" not in text
    assert "a record could not be put into words (TypeError)" in text
    assert max(map(len, text.splitlines())) < 700
    assert (written / "spacebot.log").read_text().endswith("info    test in a file of its own\n")
    assert capsys.readouterr().err == ""
