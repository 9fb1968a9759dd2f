"""Scripts of `build/` as modules: they are no package, so tests load them by path."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Read by the ONNX runtime at its import: no device id, no reports to its maker.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def checkout() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def make_script() -> ModuleType:
    """`build/executable/make.py`; it imports its neighbour `pack.py`, which the tests reach as `make_script.pack`."""
    pytest.importorskip("zstandard", reason="packing needs zstandard")
    return load_script(ROOT / "build" / "executable" / "make.py")


@pytest.fixture(scope="session")
def reference_script() -> ModuleType:
    return load_script(ROOT / "tests" / "build" / "reference_model.py")


def load_script(path: Path) -> ModuleType:
    """Import a file that is not on the path, its neighbours included."""
    name = f"script_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
