"""What a start loads: an idle program is small, and what few need comes when it is needed."""

import os
import subprocess
import sys
from pathlib import Path

from tests.real_daemon import ROOT, free_port

LATE = {"numpy", "lancedb", "pyarrow", "onnxruntime", "tokenizers", "anthropic", "openai", "tomlkit", "playwright"}
START = """\
import os, signal, sys
from spacebot.cli import serve
from spacebot.cli.main import main
told = serve._Server._note_ready

def note_ready(server, info):
    told(server, info)
    os.kill(os.getpid(), signal.SIGTERM)

serve._Server._note_ready = note_ready
code = main(["start", "--foreground"])
print("MODULES", *sorted(sys.modules))  # with what threads were at when it was ready
sys.exit(code)
"""


def test_a_start_loads_neither_numbers_nor_models_nor_editors(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f"[api]\nport = {free_port()}\n")
    environ = {key: value for key, value in os.environ.items() if not key.endswith(("_API_KEY", "_AUTH_TOKEN"))}
    ran = subprocess.run(
        [sys.executable, "-c", START],
        env=environ | {"SPACEBOT_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    line = next(line for line in ran.stdout.splitlines() if line.startswith("MODULES"))
    assert not {name.split(".")[0] for name in line.split()} & LATE
