"""The form of the file: every key is described once, editors get a schema that is true, and the reference follows."""

import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from pydantic import BaseModel

from spacebot.base.errors import ConfigError, NotFoundError
from spacebot.config.load import load_config
from spacebot.config.model import AgentConfig, Config
from spacebot.config.provider_table import provider_table
from spacebot.config.schema import KeySpec, config_schema, find_key, key_specs, table_specs

ROOT = Path(__file__).resolve().parents[2]
FORM = jsonschema.Draft7Validator(config_schema())
BY_READER = {"is_served", "has_login", "is_bearer", "absent"}
PAGES = {
    path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
SAMPLES = [
    pytest.param(sample, id=f"{path.stem}-{number}")
    for path, text in PAGES.items()
    for number, sample in enumerate(re.findall(r"```toml\n(.*?)```", text, re.DOTALL))
]


def keys_of(model: type[BaseModel], seen: frozenset[type[BaseModel]] = frozenset()) -> Iterator[tuple[str, Any]]:
    """Every plain key of a model and those inside it, found without the schema."""
    for name, field in model.model_fields.items():
        inner = [kind for kind in walk(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner and name not in BY_READER:
            yield name, field
        for kind in inner:
            if kind not in seen:
                yield from keys_of(kind, seen | {kind})


def walk(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from walk(argument)


def test_every_key_of_every_model_is_described_and_listed() -> None:
    assert [spec.name for spec in key_specs().values() if not spec.description] == []
    assert [table.name for table in table_specs() if not table.description] == []
    listed = {spec.key for spec in key_specs().values()}
    assert {name for name, _ in keys_of(Config)} <= listed
    assert len(key_specs()) > 180


def test_each_shorthand_key_of_a_provider_is_a_key_of_its_own() -> None:
    shorthands = {key for entry in provider_table().values() for key in (entry.key, entry.url_key) if key}
    assert shorthands == {spec.key for spec in key_specs().values() if spec.header == "[llm]"}


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_schema_takes_every_sample_of_our_pages(sample: str) -> None:
    FORM.validate(tomllib.loads(sample))


def test_the_schema_is_one_that_editors_read() -> None:
    schema = config_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    used = set(re.findall(r"#/definitions/(\w+)", str(schema)))
    assert used <= schema["definitions"].keys()
    assert all(definition.get("description") or "enum" in definition for definition in schema["definitions"].values())


@pytest.mark.parametrize(
    "text",
    [
        "[api]\nport = 70000",
        "[api]\nprot = 1",
        "[defaults]\nworker_log_mode = 'some'",
        "[defaults.routing]\nchannel_thinking_effort = 'huge'",
        "[[agents]]\nmax_turns = 3",
        "[messaging.discord]\nis_served = true",
        "[[bindings]]\nagent_id = 'main'\nchannel = 'irc'",
        "[llm]\ngroq_kye = 'x'",
        "[defaults]\nmax_turns = '7'",
    ],
)
def test_the_schema_marks_what_is_wrong(text: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        FORM.validate(tomllib.loads(text))


def test_the_schema_takes_references_where_numbers_and_switches_stand() -> None:
    text = """
    [api]
    port = "env:PORT"
    enabled = "env:WEB"
    [defaults]
    worker_log_mode = "env:MODE"
    routing_profile = "env:PROFILE"
    [[bindings]]
    agent_id = "main"
    channel = "telegram"
    chat_id = -100
    """
    FORM.validate(tomllib.loads(text))


def test_every_example_of_a_key_is_valid_and_every_default_is_the_models() -> None:
    schema = config_schema()
    for spec in key_specs().values():
        if spec.is_required or spec.example.endswith('= "…"'):
            continue
        wrapped = jsonschema.Draft7Validator({"definitions": schema["definitions"], **spec.schema})
        value = tomllib.loads(spec.example)[spec.key]
        assert not list(wrapped.iter_errors(value)) or value in ("", []), spec.name
    agent = AgentConfig(id="x")
    for spec in key_specs().values():
        if spec.is_inherited and spec.default and "cron" not in spec.parts:
            model: Any = agent
            for part in spec.parts[1:]:
                model = getattr(model, part)
            default = tomllib.loads(f"x = {spec.default}")["x"]
            assert default in (model, list(model) if isinstance(model, tuple) else model), spec.name


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("api.port", "api.port"),
        ("max_turns", "defaults.max_turns"),
        ("routing.channel", "defaults.routing.channel"),
        ("agents.max_turns", "defaults.max_turns"),
        ("agents.ann.routing.worker", "defaults.routing.worker"),
        ("llm.provider.mine.base_url", "llm.provider.<id>.base_url"),
        ("messaging.discord.instances.token", "messaging.discord.token"),
        ("debounce_ms", "defaults.coalesce.debounce_ms"),
        ("task_overrides.coding", "defaults.routing.task_overrides"),
        ('defaults.routing.fallbacks."a/b.c"', "defaults.routing.fallbacks"),
        ("groq_key", "llm.groq_key"),
        ("otlp_endpoint", "telemetry.otlp_endpoint"),
    ],
)
def test_a_key_is_found_by_what_people_call_it(name: str, wanted: str) -> None:
    assert find_key(name).name == wanted


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("defaults.max_trns", "did you mean defaults.max_turns"),
        ("routing.chanel", "defaults.routing.channel"),
        ("enabled", "say the whole name"),
        ("zzz", "config show"),
        ("a b", "no name of a key"),
        ("", "no name of a key"),
        ("x = 1\ny", "no name of a key"),
        ("a." * 400 + "a", "no name of a key"),
    ],
)
def test_a_wrong_name_is_answered_with_what_may_be_meant(name: str, words: str) -> None:
    with pytest.raises(NotFoundError, match=re.escape(words)):
        find_key(name)


def test_the_reference_in_the_documentation_is_what_the_models_say() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "build" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    wanted = module.render().rstrip() + "\n"
    assert PAGES[ROOT / "docs" / "configuration.md"] == wanted, "run: python build/reference.py"
    assert all(f"`{key.key}`" in wanted for key in key_specs().values())


def test_every_range_of_a_number_is_kept_by_the_reader(tmp_path: Path) -> None:
    """What the schema calls the range of an agent's setting is what the file may hold, and no more."""
    file, checked = tmp_path / "config.toml", 0

    def is_taken(spec: KeySpec, value: float) -> bool:
        file.write_text(f"[{spec.name.rpartition('.')[0]}]\n{spec.key} = {value}\n")
        words = ""
        try:
            load_config(file, environ={})
        except ConfigError as error:
            words = str(error)
        # In range, but not beside the others.
        is_alone = "must rise" in words or "must not exceed" in words
        assert not words or is_alone or f"{spec.name} = {value}: must be" in words, words
        return not words or is_alone

    for spec in key_specs().values():
        shape = next((one for one in spec.schema.get("anyOf", []) if one.get("type") in ("integer", "number")), {})
        if not spec.is_inherited or "cron" in spec.parts or not shape:
            continue
        low, high = shape.get("minimum"), shape.get("maximum")
        for edge, beyond in ((low, -1), (high, 1)):
            if edge is not None:
                assert is_taken(spec, edge), spec.name
                assert not is_taken(spec, edge + beyond), spec.name
                checked += 1
    assert checked > 60
