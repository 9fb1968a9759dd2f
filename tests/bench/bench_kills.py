"""Kills in the middle of saves, edits, merges and upkeep of a memory; says how many were survived, and how.

    python -m tests.bench kills [30]

The same rounds as `tests/flows/test_memory_crash.py`, more of them.
"""

import sys
import tempfile
import time
from pathlib import Path

import trio

from tests.flows.test_memory_crash import check_rows, check_table, live_until_killed


def main(kills: int) -> None:
    """Kill, check, and after the last one compare the vector table with the store."""
    deeds: list[list[str]] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="spacebot-bench-") as folder:
        for seed in range(kills):
            deeds += live_until_killed(Path(folder), seed, is_last=seed == kills - 1)
            check_rows(Path(folder), deeds)
        trio.run(check_table, Path(folder))
    counts = {what: sum(deed[0] == what for deed in deeds) for what in ("saved", "edited", "forgot", "kept")}
    print(
        f"{kills} kills: nothing acknowledged lost, table and store agree; {counts['saved']} saves, "
        f"{counts['edited']} edits, {counts['forgot']} forgotten, {counts['kept']} upkeep passes "
        f"({time.perf_counter() - began:.0f} s)"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
