"""Where things lie: the instance directory, an agent's folders, the files that ship with the program.

Bundled files stand in one of three places: the checkout (top-level `prompts/`, `.model/`), the wheel
(`spacebot/_bundled/`), or the folder of the frozen executable. Only this module knows.

Floor: base
"""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from spacebot.base.errors import ConfigError

MODEL_NAME = "all-minilm-l6-v2"
DIR_VARIABLE = "SPACEBOT_DIR"
LOGIN_FILE = "anthropic_oauth.json"  # beside the configuration
_PACKAGE = Path(__file__).resolve().parent.parent


def instance_dir(config: Path | None = None) -> Path:
    """Find the instance directory: beside `--config`, else `SPACEBOT_DIR`, else `~/.spacebot` (control spec 1.1)."""
    if config is not None:
        return config.expanduser().resolve().parent
    if named := os.environ.get(DIR_VARIABLE):
        return Path(named).expanduser().resolve()
    try:
        return Path.home() / ".spacebot"
    except RuntimeError:
        return Path(".spacebot").resolve()


@dataclass(frozen=True, slots=True)
class InstancePaths:
    """Files of one instance. `config` may lie elsewhere only in name, never in folder."""

    root: Path
    config: Path

    @classmethod
    def find(cls, config: Path | None = None) -> "InstancePaths":
        """Derive all paths from the `--config` option and the environment.

        Errors: ConfigError when the option names a directory.
        """
        if config is not None and config.expanduser().is_dir():
            raise ConfigError(f"--config {str(config)!r} is a directory; name the file in it, such as config.toml")
        root = instance_dir(config)
        return cls(root, config.expanduser().resolve() if config else root / "config.toml")

    @property
    def lock(self) -> Path:
        return self.root / "spacebot.lock"

    @property
    def pid(self) -> Path:
        return self.root / "spacebot.pid"

    @property
    def socket(self) -> Path:
        return self.root / "spacebot.sock"

    @property
    def login(self) -> Path:
        """Tokens of `spacebot auth login`."""
        return self.root / LOGIN_FILE

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def prompts(self) -> Path:
        return self.root / "prompts"

    @property
    def skills(self) -> Path:
        """Skills for all agents."""
        return self.root / "skills"

    @property
    def tools_bin(self) -> Path:
        return self.root / "tools" / "bin"

    def agent(self, agent_id: str, workspace: Path | None = None) -> "AgentPaths":
        """Folders of one agent."""
        root = self.root / "agents" / agent_id
        return AgentPaths(root, workspace or root / "workspace")

    def create(self) -> None:
        """Make the folders that every start needs.

        Errors: ConfigError when the directory cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (self.logs, self.tools_bin, self.prompts, self.skills):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot write to the instance directory {str(self.root)!r} ({error.strerror}); "
                f"make it writable or name another with {DIR_VARIABLE} or --config"
            ) from error


@dataclass(frozen=True, slots=True)
class AgentPaths:
    """Folders of one agent. Identity files lie in `root`, outside of what workers can reach (process spec P74)."""

    root: Path
    workspace: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def database(self) -> Path:
        return self.data / "spacebot.db"

    @property
    def vectors(self) -> Path:
        return self.data / "lancedb"

    @property
    def ingest(self) -> Path:
        """The drop folder; its documents become memories."""
        return self.workspace / "ingest"

    @property
    def skills(self) -> Path:
        """Skills of this agent alone; its workers can read them and not write."""
        return self.workspace / "skills"

    @property
    def outgoing(self) -> Path:
        """Copies of files that wait to be sent."""
        return self.data / "outgoing"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def prompts(self) -> Path:
        return self.root / "prompts"

    def create(self) -> None:
        """Make the agent's folders.

        Errors: ConfigError when they cannot be written.
        """
        try:
            for folder in (self.workspace, self.data, self.logs, self.prompts):
                folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # whatever stands in its place is reported by who reads it
                self.ingest.mkdir(exist_ok=True)  # before any worker can make one of its own
            with suppress(FileExistsError):
                self.skills.mkdir(exist_ok=True)  # likewise
        except OSError as error:
            raise ConfigError(
                f"cannot make the agent's folder {str(error.filename or self.root)!r} ({error.strerror}); "
                "make the folder above it writable, and move away what is in its place"
            ) from error


def _bundled(checkout: str, bundled: str) -> Path:
    frozen = getattr(sys, "_MEIPASS", None)
    if frozen is not None:
        return Path(frozen) / bundled
    in_wheel = _PACKAGE / "_bundled" / bundled
    return in_wheel if in_wheel.exists() else _PACKAGE.parent / checkout


def bundled_prompts() -> Path:
    """Folder of the prompt templates that ship with the program."""
    return _bundled("prompts", "prompts")


def bundled_model() -> Path:
    """Folder of the embedding model (`model.onnx`, `tokenizer.json`, `manifest.json`)."""
    return _bundled(f".model/{MODEL_NAME}", f"model/{MODEL_NAME}")


def package_file(*parts: str) -> Path:
    """A data file inside the package, such as `storage/sql/0001_baseline.sql`."""
    frozen = getattr(sys, "_MEIPASS", None)
    return (Path(frozen) / "spacebot" if frozen is not None else _PACKAGE).joinpath(*parts)


def program_command() -> list[str]:
    """The words that start this program again: the launcher of the executable, or `python -m spacebot`."""
    if launcher := os.environ.get("SPACEBOT_EXECUTABLE"):
        return [launcher]
    if getattr(sys, "frozen", False):
        return [sys.executable]
    return [sys.executable, "-m", "spacebot"]
