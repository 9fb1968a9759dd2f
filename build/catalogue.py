"""Make the model catalogue that ships with the program.

    python build/catalogue.py [FILE | URL]      default: https://models.dev/api.json

Only models that read and write text and call tools, of the providers that the program knows. The data are those of
models.dev (MIT license, https://github.com/sst/models.dev); a FILE has the same format.
"""

import sys
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from spacebot.llm.catalogue import URL
from spacebot.llm.catalogue_data import CatalogueData, pack, to_rows

TARGET = Path(__file__).resolve().parents[1] / "spacebot" / "llm" / "catalogue.json.gz"
MOST = 60 * 1024  # bytes


def main() -> int:
    """Fetch or read, pack, write."""
    source = sys.argv[1] if len(sys.argv) > 1 else URL
    if source.startswith("https://"):
        with urllib.request.urlopen(source, timeout=60) as answer:
            published, at = answer.read(), datetime.now(UTC)
    else:
        published = Path(source).read_bytes()
        at = datetime.fromtimestamp(int(Path(source).stat().st_mtime), UTC)
    rows = to_rows(published, only_with_tools=True)
    packed = pack(CatalogueData(at, rows))
    if len(packed) > MOST:
        raise SystemExit(f"{len(packed)} bytes are too many; the file may have {MOST}")
    TARGET.write_bytes(packed)
    print(f"{TARGET.name}: {sum(map(len, rows.values()))} models of {len(rows)} providers, {len(packed)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
