"""Making of a release: the executable packed hard, in an archive, with checksums and a list of its parts.

    make release            # into dist/: about ten minutes, most of it compression

    spacebot-1.2.3-linux-x86_64.tar.gz      the executable, README, LICENSE, documentation, the unit, the dashboard
    spacebot-1.2.3-linux-x86_64.cdx.json    every part in it with version, licence and hashes (CycloneDX)
    SHA256SUMS                              of both; check with: sha256sum --check SHA256SUMS

The same checkout on the same machine gives the same bytes.

Flow:    make.make (level 19) -> archive -> parts_list -> checksums
Source:  CycloneDX 1.6; package URLs (purl)
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = ROOT / "build" / "requirements" / "runtime.txt"
LEVEL = 19
MTIME = 315_532_800  # 1980-01-01, as inside the executable
BESIDE = ("README.md", "LICENSE", "docs", "build/spacebot.service", "build/grafana", "build/container")
_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)(?: ; (?P<marker>[^\\]+))?", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A library that is pinned; `hashes` are those of all its files, of which one was installed."""

    name: str
    version: str
    hashes: tuple[str, ...]
    licence: str | None


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a release.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--level", type=int, default=LEVEL, help=f"compression, 1 to 19 (default: {LEVEL})")
    options = parser.parse_args()
    maker = _maker()
    executable = options.output / "spacebot"
    try:
        print(f"{executable}: {maker.make(executable, level=options.level)}")
    except maker.MakeError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    for path in release(executable, options.output, maker.read_version()):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


def release(executable: Path, output: Path, version: str, *, root: Path = ROOT) -> list[Path]:
    """Write archive, list of parts and checksums; gives their paths."""
    name = f"spacebot-{version}-{platform.system().lower()}-{platform.machine()}"
    archive, parts = output / f"{name}.tar.gz", output / f"{name}.cdx.json"
    write_archive(archive, name, executable, root)
    document = parts_list(version, list(pinned(RUNTIME.read_text(encoding="utf-8"))), sha256(executable))
    parts.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sums = output / "SHA256SUMS"
    sums.write_text("".join(f"{sha256(path)}  {path.name}\n" for path in (archive, parts)), encoding="utf-8")
    return [archive, parts, sums]


def write_archive(archive: Path, name: str, executable: Path, root: Path) -> None:
    """Pack the executable and what belongs beside it below one folder, without owners and dates."""
    files = {f"{name}/spacebot": executable}
    for beside in BESIDE:
        path = root / beside
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                files[f"{name}/{file.relative_to(root).as_posix().removeprefix('build/')}"] = file
    with archive.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed:
        with tarfile.open(fileobj=packed, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
            for place, file in files.items():
                entry = tarfile.TarInfo(place)
                entry.size, entry.mtime = file.stat().st_size, MTIME
                entry.mode = 0o755 if file == executable else 0o644
                with file.open("rb") as content:
                    tar.addfile(entry, content)


def pinned(text: str) -> Iterator[Part]:
    """The libraries of a file of requirements that belong to this system."""
    for block in re.split(r"\n(?=[A-Za-z0-9])", text):
        found = _PIN.match(block)
        if found is None:
            continue
        try:
            metadata = importlib.metadata.metadata(found["name"])
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system or Python
        yield Part(
            name=found["name"],
            version=found["version"],
            hashes=tuple(_HASH.findall(block)),
            licence=_licence(metadata),
        )


def _licence(metadata: importlib.metadata.PackageMetadata) -> str | None:
    for field in ("License-Expression", "License"):
        value = (metadata.get(field) or "").strip()
        if value and "\n" not in value and len(value) < 100:
            return str(value)
    stated = [each for each in metadata.get_all("Classifier") or [] if each.startswith("License :: ")]
    return stated[0].rpartition(" :: ")[2] if stated else None


def parts_list(version: str, parts: list[Part], digest: str) -> dict[str, Any]:
    """The CycloneDX document of a release; `digest` is the executable's sha256."""
    own = f"pkg:generic/spacebot@{version}"
    components = [_component(part) for part in parts]
    components.append(
        {
            "type": "machine-learning-model",
            "bom-ref": "all-minilm-l6-v2",
            "name": "all-minilm-l6-v2",
            "licenses": [{"license": {"id": "Apache-2.0"}}],
        }
    )
    components.append({"type": "platform", "bom-ref": "python", "name": "python", "version": platform.python_version()})
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": "spacebot",
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "hashes": [{"alg": "SHA-256", "content": digest}],
                "purl": own,
            }
        },
        "components": components,
        "dependencies": [{"ref": own, "dependsOn": [each["bom-ref"] for each in components]}],
    }


def _component(part: Part) -> Mapping[str, Any]:
    purl = f"pkg:pypi/{part.name.lower().replace('_', '-')}@{part.version}"
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": part.name,
        "version": part.version,
        "purl": purl,
        "externalReferences": [
            {
                "type": "distribution",
                "url": f"https://pypi.org/project/{part.name}/{part.version}/",
                "hashes": [{"alg": "SHA-256", "content": each} for each in part.hashes],
            }
        ],
    }
    if part.licence is not None:
        found["licenses"] = [{"license": {"name": part.licence}}]
    return found


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _maker() -> ModuleType:
    """`build/executable/make.py`, which is a script beside another one and no package."""
    path = ROOT / "build" / "executable" / "make.py"
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("make_executable", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
