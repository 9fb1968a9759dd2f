"""The README's samples are true: configurations load without a warning, commands exist."""

import re
from pathlib import Path

import pytest

from spacebot.config.load import load_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SAMPLES = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
COMMANDS = sorted(set(re.findall(r"^spacebot (\w+)", README, re.MULTILINE)))


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_configuration_loads_without_a_warning(sample: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(sample)
    token = "MTA5NDQ2NzE4MjQ1Njc4OTAxMg.GabcdE.abcdefghijklmnopqrstuvwxyz0123456789AB"
    keys = {"OPENROUTER_API_KEY": "k" * 20, "MY_PROVIDER_KEY": "k" * 20, "DISCORD_BOT_TOKEN": token}
    assert load_config(file, environ=keys).warnings == ()


def test_there_are_samples_to_check() -> None:
    assert len(SAMPLES) >= 2
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from spacebot.cli.main import main

    try:
        code = main([command, "--help"])
    except SystemExit as leaving:
        code = leaving.code
    assert code in (0, None)
    assert command in capsys.readouterr().out


def test_the_files_that_the_readme_names_exist() -> None:
    for name in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / name).exists(), name
    assert (ROOT / "build" / "spacebot.service").exists()


def test_the_port_of_the_readme_is_the_port() -> None:
    from spacebot.config.model import ApiConfig

    assert f"http://127.0.0.1:{ApiConfig().port}/" in README
