"""`spacebot cron`, with a program whose runs all say the same."""

import json

import pytest

from tests.cli.conftest import Instance


@pytest.fixture
def running(instance: Instance) -> Instance:
    assert instance.run("start").returncode == 0
    return instance


def test_a_schedule_is_made_listed_run_switched_and_deleted(running: Instance) -> None:
    assert running.run("cron", "list").stderr == "there is nothing yet\n"
    made = running.run("cron", "add", "news", "tell", "the news", "--cron", "0 9 * * 1-5", "--hours", "8-18")
    assert made.returncode == 0
    assert made.stdout.startswith("news  0 9 * * 1-5, 08:00-18:00  next 2")
    assert made.stdout.endswith("never run; tell the news\n")
    (job,) = json.loads(running.run("cron", "list", "--json").stdout)["jobs"]
    assert (job["prompt"], job["active_hours"], job["delivery_target"]) == ("tell the news", [8, 18], "home")
    assert running.run("cron", "run", "news").stdout.startswith("it runs;")
    for _ in range(100):
        (run,) = json.loads(running.run("cron", "history", "--json").stdout)["executions"]
        if run["state"] != "running":
            break
    assert (run["state"], run["summary"]) == ("done", "Sunny.")
    assert "news  done; Sunny.; not delivered: no home" in running.run("cron", "history", "news").stdout
    assert "off (switched off)" in running.run("cron", "disable", "news").stdout
    assert "  next 2" in running.run("cron", "enable", "news").stdout
    assert running.run("cron", "rm", "news").stdout == "deleted\n"
    assert json.loads(running.run("cron", "list", "--json").stdout)["jobs"] == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("run", "nothing"), "there is no job 'nothing'"),
        (("add", "a", "x", "--cron", "0 0 30 2 *"), "no date that ever comes"),
        (("add", "a", "x", "--every", "5"), "interval_secs"),
        (("add", "a", "x", "--hours", "soon"), "write two hours"),
        (("list", "--agent", "nobody"), "there is no agent 'nobody'"),
    ],
)
def test_what_is_wrong_is_said(running: Instance, words: tuple[str, ...], why: str) -> None:
    refused = running.run("cron", *words)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert why in refused.stderr
