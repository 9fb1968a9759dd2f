"""`spacebot skill`, on real folders; archives and registry come from a stand-in in another process's reach."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import trio

from spacebot.tools.skill_sources import GITHUB_VARIABLE, REGISTRY_VARIABLE
from tests.cli.conftest import Instance
from tests.stand_ins.skill_hub import archive, open_hub, skill_text


@pytest.fixture
def ready(instance: Instance) -> Instance:
    instance.root.mkdir()
    (instance.root / "config.toml").write_text('[[agents]]\nid = "main"\n[[agents]]\nid = "other"\n')
    return instance


def write(folder: Path, name: str, **fields: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "SKILL.md").write_text(skill_text(name, **fields))
    return folder / name


def test_the_life_of_a_skill(ready: Instance, tmp_path: Path) -> None:
    source = write(tmp_path / "mine", "pdf", body="\x1b[2JRun it. " + "x" * 600)
    (source / "run.py").write_text("print(1)")

    listed = ready.run("skill", "add", str(tmp_path / "mine"), "--list")
    assert (listed.returncode, listed.stdout) == (0, "pdf\n")
    assert ready.run("skill", "list").stderr.startswith("no skills are installed")
    added = ready.run("skill", "add", str(tmp_path / "mine"))
    assert (added.returncode, added.stdout) == (0, "pdf\n")
    assert "as you would a program" in added.stderr
    folder = ready.root / "agents/main/workspace/skills/pdf"
    assert (folder / "run.py").is_file()
    assert ready.run("skill", "list").stdout == "pdf  workspace  Works with PDF files.\n"
    assert ready.run("skill", "list", "--agent", "other").stdout == ""
    shown = ready.run("skill", "info", "PDF").stdout
    assert f"from:         {tmp_path}/mine\n" in shown
    assert "state:        installed\n" in shown
    assert "files:        run.py\n" in shown
    assert "\x1b" not in shown
    assert len(shown) < 1200
    (folder / "run.py").write_text("print(2)")
    (known,) = json.loads(ready.run("skill", "list", "--json").stdout)["skills"]
    assert (known["state"], known["file_path"]) == ("changed", str(folder / "SKILL.md"))
    refused = ready.run("skill", "add", str(tmp_path / "mine"))
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "error: 'pdf' was changed since it was installed; use --replace to overwrite it"
    ]
    assert ready.run("skill", "remove", "pdf").returncode == 0
    assert not folder.exists()
    gone = ready.run("skill", "remove", "pdf")
    assert (gone.returncode, gone.stderr.split(";")[0]) == (1, "error: there is no skill 'pdf'")


def test_skills_of_all_agents(ready: Instance, tmp_path: Path) -> None:
    write(tmp_path / "mine", "pdf")
    file = tmp_path / "maps.skill"
    file.write_bytes(archive({"SKILL.md": skill_text("maps")}, top=""))

    assert ready.run("skill", "add", str(tmp_path / "mine/pdf"), "--instance").returncode == 0
    assert ready.run("skill", "install", str(file), "-i").stdout == "maps\n"
    assert ready.run("skill", "list", "-a", "other").stdout.splitlines() == [
        "maps  instance   Works with PDF files.",
        "pdf   instance   Works with PDF files.",
    ]
    assert "add --instance" in ready.run("skill", "remove", "pdf").stderr
    assert (ready.root / "skills/pdf").is_dir()
    assert ready.run("skill", "remove", "pdf", "--instance").returncode == 0
    assert ready.run("skill", "list", "--agent", "nobody").stderr == (
        "error: there is no agent 'nobody'; there are: main, other\n"
    )


def test_what_is_left_out_is_said(ready: Instance) -> None:
    write(ready.root / "skills", "good")
    (ready.root / "skills/bad").mkdir()
    (ready.root / "skills/bad/SKILL.md").write_text("---\nname: bad")

    shown = ready.run("skill", "list")

    assert shown.stdout.startswith("good")
    assert shown.stderr.startswith(f"warning: skill left out: {ready.root}/skills/bad: the header of SKILL.md is not")


async def test_from_a_repository_and_the_registry(ready: Instance) -> None:
    async with open_hub() as hub:
        hub.repositories["me/mine"] = archive({"skills/pdf/SKILL.md": skill_text(), "LICENSE": "free"})
        hub.listed = [{"source": "me/mine", "skillId": "pdf", "name": "pdf", "installs": 7}]
        assert hub.server is not None
        ready.environ |= {GITHUB_VARIABLE: hub.server.url, REGISTRY_VARIABLE: hub.server.url}

        async def run(*words: str) -> tuple[int, str, str]:
            ended = await trio.to_thread.run_sync(partial(ready.run, "skill", *words))
            return ended.returncode, ended.stdout, ended.stderr

        assert await run("search", "pdf") == (0, "me/mine/pdf  7 installs\n", "")
        assert json.loads((await run("search", "pdf", "--json"))[1])["skills"] == hub.listed
        assert (await run("add", "me/mine/pdf"))[:2] == (0, "pdf\n")
        assert (await run("add", "me/mine"))[:2] == (0, "pdf\n")
        code, _, error = await run("add", "me/none")
        assert (code, error) == (1, "error: there is no public repository me/none\n")
        code, _, error = await run("add", "somewhere")
        assert code == 1
        assert "owner/repo" in error
    assert os.listdir(ready.root / "agents/main/workspace/skills/pdf") == ["SKILL.md"]
