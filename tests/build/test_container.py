"""The recipe of the container says nothing that is not so: files, commands, ports. It is not built here."""

import json
import re
import shlex
from pathlib import Path

from spacebot.cli import main as cli
from spacebot.config.messaging import WebhookAccount
from spacebot.config.model import ApiConfig, MetricsConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "build" / "container" / "Containerfile"


def stages() -> list[list[tuple[str, str]]]:
    """Instructions and their words, a list for each FROM."""
    text = re.sub(r"^#.*\n", "", RECIPE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[tuple[str, str]]] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        name, _, words = line.strip().partition(" ")
        assert re.fullmatch(
            r"FROM|ARG|RUN|COPY|WORKDIR|ENV|USER|VOLUME|EXPOSE|HEALTHCHECK|STOPSIGNAL|ENTRYPOINT|CMD", name
        )
        if name == "FROM":
            found.append([])
        found[-1].append((name, words.strip()))
    return found


def one(stage: list[tuple[str, str]], name: str) -> str:
    (words,) = [words for instruction, words in stage if instruction == name]
    return words


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignored = (RECIPE.parent / "Containerfile.dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert "*" in ignored
    maker, image = stages()
    for name, words in maker:
        if name == "COPY":
            *sources, _ = shlex.split(words)
            for source in sources:
                assert (ROOT / source).exists(), source
                assert source in kept
    assert one(image, "COPY") == "--from=maker /src/.freeze/dist/spacebot /opt/spacebot"
    assert 'WORK / "dist"' in (ROOT / "build/executable/make.py").read_text()
    assert 'ROOT / ".freeze"' in (ROOT / "build/executable/make.py").read_text()


def test_the_recipe_runs_the_program_as_a_user_with_its_data_in_a_volume() -> None:
    _, image = stages()
    names = [name for name, _ in image]
    assert one(image, "USER") == "spacebot"
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert not [name for name in names[names.index("USER") :] if name == "RUN"]
    assert one(image, "VOLUME") == "/data"
    variables = dict(word.split("=", 1) for word in shlex.split(one(image, "ENV")))
    assert variables == {"SPACEBOT_DIR": "/data", "SPACEBOT_DEPLOYMENT": "docker"}
    *_, program = json.loads(one(image, "ENTRYPOINT"))
    assert program == "spacebot"
    options = cli._parse(json.loads(one(image, "CMD")))
    assert (options.run, options.foreground) == (cli._start, True)


def test_the_ports_are_those_of_the_program_and_health_is_asked_for() -> None:
    _, image = stages()
    ports = {str(ApiConfig().port), str(WebhookAccount.model_fields["port"].default), str(MetricsConfig().port)}
    assert set(one(image, "EXPOSE").split()) == ports
    options, _, words = one(image, "HEALTHCHECK").partition(" CMD ")
    assert {"--interval=30s", "--timeout=5s", "--retries=3"} <= set(options.split())
    assert json.loads(words)[-1] == f"http://127.0.0.1:{ApiConfig().port}/api/health"
    assert '"/api/health"' in (ROOT / "spacebot/api/system.py").read_text()


def test_the_images_are_named_exactly_and_packages_leave_no_lists() -> None:
    for stage in stages():
        base = one(stage, "FROM").split()[0]
        assert re.fullmatch(r"docker\.io/library/[a-z]+:[a-z0-9.-]+", base)
        assert not base.endswith(":latest")
        for name, words in stage:
            if name == "RUN" and "apt-get install" in words:
                assert "--no-install-recommends" in words
                assert "rm -rf /var/lib/apt/lists/*" in words
    assert "BROWSER=no" in one(stages()[1], "ARG")
