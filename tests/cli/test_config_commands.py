"""`spacebot config`: looking at the configuration and changing it, while the program runs or not."""

import json
import stat
import sys
import tomllib
from pathlib import Path

import pytest

from spacebot.cli.main import main

FILE = """\
# mine
[llm]
groq_key = "gsk-in-plain-text"  # do not show

[defaults]
max_turns = 7  # enough
routing = { channel = "demo/x" }

[[agents]]
id = "ann"
[[agents]]
id = "bob"
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command on a file of its own; gives the exit code and what was printed."""
    (tmp_path / "config.toml").write_text(FILE)
    for name in ("VISUAL", "EDITOR", "GROQ_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPACEBOT_DIR", str(tmp_path))

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["config", *words])
        shown = capsys.readouterr()
        assert "gsk-in" not in shown.out + shown.err
        return code, shown.out, shown.err

    run.file = tmp_path / "config.toml"  # type: ignore[attr-defined]
    return run


def test_show_tells_what_counts_and_why(run) -> None:
    code, out, _ = run("show", "--agent", "bob")
    assert code == 0
    assert "agent bob (others: ann; see --agent)" in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "max_turns = 7 # defaults" in lines
    assert 'groq_key = "********" # file' in lines
    assert "branch_max_turns" not in out
    assert "branch_max_turns = 50" in run("show", "defaults")[1]
    values = json.loads(run("show", "--json")[1])["values"]
    assert {"key", "value", "source", "description", "requires_restart"} <= values[0].keys()
    assert run("show", "nonsense")[0] == 1


def test_explain_and_get(run) -> None:
    code, out, _ = run("explain", "max_turns")
    assert code == 0
    for words in ("defaults.max_turns", "1 to 50 in the web app", "default:  5", "now:      7  (defaults)", "at once"):
        assert words in out
    assert "counts from the next start on" in run("explain", "api.port")[1]
    assert "(required)" in run("explain", "bindings.agent_id")[1]
    assert run("get", "defaults.max_turns") == (0, "7\n", "")
    assert run("get", "voice")[:2] == (1, "")
    code, _, err = run("explain", "max_trns")
    assert (code, "did you mean defaults.max_turns" in err) == (1, True)


def test_set_and_unset_keep_the_file_as_its_owner_wrote_it(run) -> None:
    for words in (
        ("set", "max_turns", "9", "--agent", "bob"),
        ("set", "routing.worker", "demo/w"),
        ("set", "agents.ann.routing.channel", "demo/ann"),
        ("set", "routing.task_overrides.coding", "demo/c"),
        ("set", 'routing.fallbacks."demo/x"', '["demo/y"]'),
        ("set", "messaging.telegram.dm_allowed_users", "1,2"),
        ("set", "llm.mistral_key", "env:MISTRAL_KEY"),
        ("set", "api.port", "6000"),
    ):
        code, out, err = run(*words)
        assert (code, out) == (0, ""), err
    tables = tomllib.loads(run.file.read_text())
    assert tables["agents"] == [{"id": "ann", "routing": {"channel": "demo/ann"}}, {"id": "bob", "max_turns": 9}]
    assert tables["defaults"]["routing"] == {
        "channel": "demo/x", "worker": "demo/w", "task_overrides": {"coding": "demo/c"},
        "fallbacks": {"demo/x": ["demo/y"]},
    }  # fmt: skip
    assert tables["messaging"]["telegram"]["dm_allowed_users"] == ["1", "2"]
    assert tables["llm"]["mistral_key"] == "env:MISTRAL_KEY"
    assert tables["api"]["port"] == 6000
    for comment in ("# mine", "# do not show", "# enough"):
        assert comment in run.file.read_text()

    assert run("unset", "agents.ann.routing.channel")[0] == 0
    assert run("unset", "api.port")[0] == 0
    tables = tomllib.loads(run.file.read_text())
    assert tables["agents"][0] == {"id": "ann"}
    assert "port" not in tables.get("api", {})
    code, _, err = run("unset", "api.port")
    assert (code, "does not stand in the file" in err) == (1, True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("set", "max_turns", "many"), "must be a whole number"),
        (("set", "max_turns", "0"), "must be at least 1"),
        (("set", "llm.groq_key", "gsk-another"), "spacebot secret set NAME"),
        (("set", "messaging.discord.token", "x.y.z"), "spacebot secret set NAME"),
        (("set", "bindings.agent_id", "ann"), "list of tables"),
        (("set", "agents.id", "ann"), "spacebot agent"),
        (("set", "mcp_servers.name", "x"), "spacebot mcp"),
        (("set", "max_turns", "3", "--agent", "nobody"), "there are: ann, bob"),
        (("set", "api.port", "3", "--agent", "ann"), "leave --agent out"),
        (("set", "max_trns", "3"), "did you mean"),
        (("set", "brave_search_url", "two", "words"), "into quotes"),
        (("set", "compaction.background_threshold", "0.99"), "must rise"),
    ],
)
def test_what_cannot_be_set_is_refused_and_changes_nothing(run, words: tuple[str, ...], reason: str) -> None:
    code, _, err = run(*words)
    assert code == 1
    assert reason in err
    assert run.file.read_text() == FILE


def editor(folder: Path, *lines: str) -> str:
    """An editor that runs Python on the file whose path is in `path`."""
    program = folder / "editor.py"
    program.write_text(
        "import sys, pathlib\npath = pathlib.Path(sys.argv[1])\ntext = path.read_text()\n" + "\n".join(lines)
    )
    return f"{sys.executable} {program}"


def test_edit_saves_what_is_sound_and_keeps_the_text_before(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run.file.chmod(0o640)
    monkeypatch.setenv("EDITOR", editor(tmp_path, "path.write_text(text.replace('= 7', '= 8'))"))
    code, _, err = run("edit")
    assert (code, "saved; the text before is in" in err) == (0, True)
    assert run.file.read_text() == FILE.replace("= 7", "= 8")
    assert (tmp_path / "config.toml.bak").read_text() == FILE
    assert stat.S_IMODE(run.file.stat().st_mode) == 0o640
    assert not list(tmp_path.glob(".config*"))
    assert "nothing was changed" in run("edit")[2]


def test_edit_says_what_is_wrong_and_offers_to_go_on(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = ("new = '= 0' if '= 7' in text else '= 9'", "path.write_text(text.replace('= 7', new).replace('= 0', new))")
    monkeypatch.setenv("VISUAL", editor(tmp_path, *lines))
    answers = iter(["y"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    code, _, err = run("edit")
    assert code == 0
    assert "defaults.max_turns = 0: must be at least 1" in err
    assert "max_turns = 9" in run.file.read_text()


def test_edit_gives_up_without_a_change_and_loses_nobodys_work(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDITOR", editor(tmp_path, "path.write_text('= = =')"))
    assert run("edit")[0] == 1
    assert run.file.read_text() == FILE
    other = f"pathlib.Path({str(run.file)!r}).write_text('# somebody else')"
    monkeypatch.setenv("EDITOR", editor(tmp_path, "path.write_text(text + '# me')", other))
    code, _, err = run("edit")
    assert (code, "was changed meanwhile" in err) == (1, True)
    assert run.file.read_text() == "# somebody else"
    assert (tmp_path / "config.mine.toml").read_text() == FILE + "# me"
    monkeypatch.setenv("EDITOR", "/no/such/editor")
    assert "set EDITOR" in run("edit")[2]


def test_the_schema_is_printed_for_editors(run) -> None:
    assert json.loads(run("schema")[1])["$schema"].startswith("http://json-schema.org/draft-07")


def test_a_running_program_takes_a_change_over(instance) -> None:
    """The whole way: command, file, control socket, program."""
    instance.paths.root.mkdir(parents=True, exist_ok=True)
    with instance.popen("start", "--foreground"):
        instance.wait_until_up()
        changed = instance.run("config", "set", "max_turns", "9")
        assert (changed.returncode, "the running program has taken it over" in changed.stderr) == (0, True), (
            changed.stderr
        )
        late = instance.run("config", "set", "api.port", "6001")
        assert "api.port: counts after spacebot restart" in late.stderr
        assert instance.run("stop").returncode == 0
