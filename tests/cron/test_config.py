"""Schedules in the configuration file: what is read, what is refused, what counts where nothing is said."""

from pathlib import Path

import pytest

from spacebot.base.errors import ConfigError
from spacebot.config.load import load_config
from spacebot.config.model import AgentConfig

FILE = """
[defaults]
cron_timezone = "Asia/Tokyo"
[[defaults.cron]]
id = "all"
prompt = "x"
[[agents]]
id = "one"
[[agents.cron]]
id = "own"
prompt = "y"
cron_expr = "0 9 * * 1-5"
interval_secs = 60
delivery_target = "telegram:5"
active_start_hour = 22
active_end_hour = 6
[[agents]]
id = "two"
cron_timezone = "UTC"
"""


def load(folder: Path, text: str, **environ: str) -> tuple[AgentConfig, ...]:
    (folder / "config.toml").write_text(text)
    loaded = load_config(folder / "config.toml", environ=environ, resolve_secret=lambda name: None)
    assert not [warning for warning in loaded.warnings if "cron" in warning]
    return loaded.config.agents


def test_an_agents_own_jobs_stand_in_place_of_the_general_ones(tmp_path: Path) -> None:
    one, two = load(tmp_path, FILE)
    (own,), (general,) = one.cron, two.cron
    assert (own.id, own.cron_expr, own.interval_secs, own.delivery_target) == ("own", "0 9 * * 1-5", None, "telegram:5")
    assert (own.active_start_hour, own.active_end_hour) == (22, 6)
    assert (general.id, general.interval_secs, general.delivery_target, general.timeout_secs) == (
        "all",
        3600,
        "home",
        120,
    )
    assert (one.cron_timezone, two.cron_timezone) == ("Asia/Tokyo", "UTC")


def test_the_environment_may_name_the_zone(tmp_path: Path) -> None:
    (agent,) = load(tmp_path, "", SPACEBOT_CRON_TIMEZONE="Asia/Tokyo")
    assert agent.cron_timezone == "Asia/Tokyo"
    loaded = load_config(
        tmp_path / "config.toml", environ={"SPACEBOT_CRON_TIMEZONE": "Mars"}, resolve_secret=lambda name: None
    )
    assert loaded.config.agents[0].cron_timezone is None
    assert any("SPACEBOT_CRON_TIMEZONE" in warning for warning in loaded.warnings)


@pytest.mark.parametrize(
    ("job", "why"),
    [
        ("interval_secs = 0", "interval_secs"),
        ('cron_expr = "0 9 * *"', "five fields"),
        ("active_start_hour = 5", "belong together"),
        ("active_start_hour = 5\nactive_end_hour = 24", "active_end_hour"),
        ('timezone = "Mars/Base"', "unknown"),
        ("timeout_secs = 0", "timeout_secs"),
        ('[[agents.cron]]\nid = "a"\nprompt = "y"', "two jobs"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, job: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load(tmp_path, f'[[agents]]\nid = "one"\n[[agents.cron]]\nid = "a"\nprompt = "x"\n{job}')
