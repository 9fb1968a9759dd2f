"""A file for a worker that has ended, for its owner to read: what it was told, did and came to.

    data/logs/worker_<id>_<UTC time>.log              all_combined, and errors_only (those that failed)
    data/logs/successful/… and data/logs/failed/…     all_separate

Secrets are taken out, calls and results are cut, nobody else may read them (0600). A file lives as long as the
transcript in the database, of which it is a copy: what is erased or pruned there goes here as well.

Flow:    WorkerDesk.ended -> WorkerLog.write
Floor:   agent
Source:  process spec 7.9, tools spec 8
"""

import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from spacebot.base.redaction import scrub
from spacebot.base.text import clean_unicode
from spacebot.base.tree import Outcome
from spacebot.config.model import WorkerLogMode
from spacebot.conversations.records import WorkerRun
from spacebot.conversations.worker_runs import readable_steps

CALL_BYTES, RESULT_BYTES = 500, 2000  # of a call's arguments and of a result
MOST_FILES = 500  # the oldest go
SUCCESSFUL, FAILED = "successful", "failed"
_NAME = re.compile(r"worker_([0-9A-Za-z-]+)_\d{8}_\d{6}\.log")
_HEADINGS = {"told": "TOLD", "said": "SAID", "call": "CALL", "result": "RESULT"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedWorker:
    """What its file says of a worker; `moment` is `YYYYMMDD_HHMMSS`, UTC."""

    run: WorkerRun
    outcome: Outcome
    transcript: str
    tool_calls: int
    moment: str


class WorkerLog:
    """The folder of one agent's files. All methods block: call them in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, worker: EndedWorker, mode: WorkerLogMode) -> Path | None:
        """Write a worker's file; None when the mode wants none. Errors: OSError."""
        is_good = worker.outcome.is_success
        if mode is WorkerLogMode.ERRORS_ONLY and is_good:
            return None
        folder = self._folder
        if mode is WorkerLogMode.ALL_SEPARATE:
            folder /= SUCCESSFUL if is_good else FAILED
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"worker_{worker.run.id}_{worker.moment}.log"
        text = clean_unicode(_text_of(worker))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        self._drop_oldest()
        return path

    def ids(self) -> set[str]:
        """The workers that have a file."""
        return {worker_id for worker_id, _ in self._files()}

    def drop(self, worker_ids: Collection[str]) -> int:
        """Delete the files of these workers; returns how many. Errors: OSError."""
        dropped = 0
        for worker_id, path in self._files():
            if worker_id in worker_ids:
                path.unlink(missing_ok=True)
                dropped += 1
        return dropped

    def _files(self) -> list[tuple[str, Path]]:
        found = []
        for folder in (self._folder, self._folder / SUCCESSFUL, self._folder / FAILED):
            with suppress(FileNotFoundError):
                names = os.listdir(folder)
                found += [(match[1], folder / name) for name in names if (match := _NAME.fullmatch(name)) is not None]
        return found

    def _drop_oldest(self) -> None:
        files = self._files()
        for _, path in sorted(files, key=lambda file: file[1].name[-19:])[: max(0, len(files) - MOST_FILES)]:
            path.unlink(missing_ok=True)


def _text_of(worker: EndedWorker) -> str:
    run = worker.run
    facts = {
        "worker": run.id,
        "kind": run.worker_type,
        "channel": run.channel_id,
        "ended": f"{worker.moment} UTC",
        "state": str(worker.outcome.state),
        "task type": run.task_type,
        "folder": run.directory,
        "tool calls": str(worker.tool_calls),
    }
    lines = [f"{name}: {value}" for name, value in facts.items() if value]
    lines += ["", "TASK", scrub(run.task), "", "OUTCOME", scrub(worker.outcome.text)]
    shown = readable_steps(worker.transcript, call_bytes=CALL_BYTES, result_bytes=RESULT_BYTES)
    if shown.left_out:
        lines += ["", f"({shown.left_out} earlier parts are left out)"]
    for step in shown.steps:
        heading = _HEADINGS[step.kind] + (f" {step.name}" if step.name else "") + (" (error)" if step.is_error else "")
        lines += ["", heading, step.text]
    return "\n".join(lines) + "\n"
