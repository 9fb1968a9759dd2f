"""Fuzzes a real daemon for a while: `python -m tests.fuzz [--minutes 10] [--seed 0]`; 1 after any complaint."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import requests

from tests.fuzz.fuzzing import Fuzz
from tests.fuzz.instance import fill, leaked, make_daemon
from tests.real_daemon import running

EXAMPLES = 25  # for each route and kind in one round


def main() -> int:
    """Run, print what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(make_daemon(Path(folder) / "instance")) as daemon:
        url = f"http://127.0.0.1:{daemon.port}"
        known = fill(url)
        document = requests.get(f"{url}/api/openapi.json", timeout=10).json()
        fuzz = Fuzz(url, document, known)
        memory = daemon.rss_mib()
        fuzz.run(until=time.monotonic() + options.minutes * 60, examples=EXAMPLES, start=options.seed)
        assert requests.get(f"{url}/api/health", timeout=10).json() == {"status": "ok"}
        status = requests.get(f"{url}/api/status", timeout=10)
        counts = dict(sorted(fuzz.counts.items()))
        print(f"{sum(counts.values())} requests to {len(fuzz.operations)} operations; {counts}")
        print(f"slowest {fuzz.slowest[0]:.2f} s: {fuzz.slowest[1][:200]}")
        print(f"memory {memory:.0f} -> {daemon.rss_mib():.0f} MiB; afterwards /api/status says {status.status_code}")
        log = b"".join(path.read_bytes() for path in (daemon.folder / "logs").glob("spacebot.log*"))
        complaints = sorted(set(fuzz.complaints)) + [f"the secret {name} in the log" for name in leaked(log)]
        complaints += [line for line in log.decode(errors="replace").splitlines() if "request failed" in line][:20]
        for complaint in complaints[:60]:
            print(f"COMPLAINT {complaint}")
        print(f"{len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
