"""Containment: the environment from nothing, the sandbox's view of the disk, and what is said about both."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from spacebot.base.errors import ConfigError, ToolError
from spacebot.base.redaction import register_secret
from spacebot.config.hands import PermissionsConfig
from spacebot.config.model import SandboxConfig
from spacebot.tools.backends import bubblewrap_options, sandbox_profile
from spacebot.tools.paths_policy import Access
from spacebot.tools.permissions import Gate
from spacebot.tools.sandbox import (
    Backend,
    BackendKind,
    Containment,
    check_environment,
    probe_backend,
)
from spacebot.tools.subprocesses import Report, run_command

OWN_SECRET = "a-configured-credential-of-the-program"


def make_instance(root: Path) -> Path:
    for folder in ("tools/bin", "agents/main/workspace/ingest", "agents/main/data", "agents/other/workspace"):
        (root / folder).mkdir(parents=True)
    (root / "config.toml").write_text("token = 'do not show'")
    (root / "agents/main/data/spacebot.db").write_text("rows")
    (root / "agents/other/workspace/notes").write_text("of the other agent")
    return root


def contain(
    root: Path,
    *,
    config: SandboxConfig | None = None,
    backend: Backend | None = None,
    inherited: Mapping[str, str] | None = None,
    tool_secrets: Mapping[str, str] | None = None,
    workspace: Path | None = None,
) -> Containment:
    chosen = config or SandboxConfig()
    return Containment(
        workspace=workspace or root / "agents/main/workspace",
        instance_root=root,
        data_dir=root / "agents/main/data",
        tools_bin=root / "tools/bin",
        settings=lambda: chosen,
        tool_secrets=lambda: tool_secrets or {},
        backend=backend,
        inherited={"PATH": os.environ["PATH"]} if inherited is None else inherited,
    )


async def working_backend() -> Backend:
    backend = await probe_backend()
    if backend.kind is not BackendKind.BUBBLEWRAP:
        pytest.skip(f"no usable bubblewrap here: {backend.note}")
    return backend


async def run_sh(containment: Containment, command: str) -> Report:
    invocation = await trio.to_thread.run_sync(lambda: containment.wrap(["sh", "-c", command]))
    return await run_command(invocation, timeout_s=30)


@pytest.mark.spec("CA-12")
@pytest.mark.parametrize("mode", ["enabled", "disabled", "contained"])
async def test_the_environment_holds_nothing_that_was_not_meant_for_commands(mode: str, tmp_path: Path) -> None:
    register_secret(OWN_SECRET)
    containment = contain(
        make_instance(tmp_path / "inst"),
        backend=await working_backend() if mode == "contained" else None,
        config=SandboxConfig.model_validate(
            {
                "mode": mode.replace("contained", "enabled"),
                "passthrough_env": ("WANTED", "SNEAKY", "PATH", "SPACEBOT_X"),
            }
        ),
        inherited={
            "PATH": f"/usr/bin:/bin::relative:{tmp_path}",
            "HOME": "/home/somebody",
            "LLM_KEY": OWN_SECRET,
            "SNEAKY": OWN_SECRET,
            "WANTED": "yes",
            "SPACEBOT_X": "1",
            "LD_PRELOAD": "/evil.so",
        },
        tool_secrets={"DEPLOY_TOKEN": "for tools", "PATH": "/evil"},
    )
    report = await run_sh(containment, "env")
    variables = dict(line.split("=", 1) for line in report.stdout.splitlines())

    assert OWN_SECRET not in report.stdout
    home = "/home/somebody" if mode == "disabled" else str(containment.workspace)
    expected = {"WANTED": "yes", "DEPLOY_TOKEN": "for tools", "CI": "true", "HOME": home, "TERM": "dumb"}
    assert {name: variables[name] for name in expected} == expected
    assert variables["PATH"].startswith(f"{tmp_path}/inst/tools/bin:/usr/bin:/bin:{tmp_path}:")
    assert {"LLM_KEY", "SNEAKY", "SPACEBOT_X", "LD_PRELOAD"}.isdisjoint(variables)


def test_variables_of_a_command_cannot_replace_reserved_or_injecting_ones(tmp_path: Path) -> None:
    containment = contain(make_instance(tmp_path / "inst"))
    environment = containment.environment(
        {"HOME": "/x", "Path": "/x", "ld_preload": "x", "NODE_OPTIONS": "x", "OK": "1"}
    )
    assert environment["OK"] == "1"
    assert environment["HOME"] == str(containment.workspace)
    assert {"Path", "ld_preload", "NODE_OPTIONS"}.isdisjoint(environment)


@pytest.mark.parametrize(
    ("name", "value"),
    [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0"), ("path", "x"), ("LD_AUDIT", "x"), ("Bash_Env", "x")],
)
def test_a_bad_variable_is_refused_with_a_reason(name: str, value: str) -> None:
    with pytest.raises(ToolError):
        check_environment({name: value})


@pytest.mark.spec("C-81")
async def test_a_contained_command_cannot_see_the_instance(tmp_path: Path) -> None:
    root = make_instance(tmp_path / "inst")
    containment = contain(root, backend=await working_backend())
    report = await run_sh(
        containment,
        f"cat {root}/config.toml {root}/agents/main/data/spacebot.db {root}/agents/other/workspace/notes;"
        f"ls {root} {root}/agents; cat /proc/*/environ | tr '\\0' '\\n' | grep -c PYTEST; echo made > here",
    )
    assert report.exit_code == 0, report.stderr
    assert "do not show" not in report.stdout
    assert "rows" not in report.stdout
    assert "other" not in report.stdout
    assert report.stdout.endswith("\n0\n"), "the environment of the test run shows through /proc"
    assert (containment.workspace / "here").read_text() == "made\n"


@pytest.mark.spec("C-81")
async def test_nothing_is_refused_for_a_word_in_a_command(tmp_path: Path) -> None:
    """Names that look like the program's own belong to projects too; what is out of reach is out of reach."""
    root = make_instance(tmp_path / "inst")
    containment = contain(root, backend=await working_backend())
    (containment.workspace / "config.toml").write_text("mine = 1\n")
    (containment.workspace / ".env").write_text("KEY=2\n")
    words = f"echo {root} $(cat config.toml .env) process.env; printenv CI; python3 -c 'print(3)'"
    report = await run_sh(containment, words)
    assert report.stdout == f"{root} mine = 1 KEY=2 process.env\ntrue\n3\n"


@pytest.mark.parametrize("target", ["/usr/spacebot-test", "/etc/spacebot-test", "/spacebot-test", "ingest/x"])
async def test_a_contained_command_cannot_write_beside_its_areas(target: str, tmp_path: Path) -> None:
    root = make_instance(tmp_path / "inst")
    containment = contain(root, backend=await working_backend())
    report = await run_sh(containment, f"echo x > {root}/x; echo x > {target}")
    assert report.exit_code != 0
    assert not (containment.workspace / target).exists()
    assert not (root / "x").exists()
    assert list((containment.workspace / "ingest").iterdir()) == []


async def test_a_workspace_or_writable_path_above_the_instance_still_hides_it(tmp_path: Path) -> None:
    """The owner names a home folder; the instance lies in it."""
    backend = await working_backend()
    root = make_instance(tmp_path / "home/.spacebot")
    (tmp_path / "home/project").mkdir()
    for containment in (
        contain(root, backend=backend, workspace=tmp_path / "home"),
        contain(root, backend=backend, config=SandboxConfig(writable_paths=(tmp_path / "home",))),
    ):
        report = await run_sh(
            containment, f"cat {root}/config.toml; echo x > {tmp_path}/home/project/y; echo z > {root}/z"
        )
        assert "do not show" not in report.stdout
        assert (tmp_path / "home/project/y").exists()
        assert not (root / "z").exists()
        assert (root / "config.toml").read_text() == "token = 'do not show'"


async def test_a_writable_path_inside_the_instance_is_not_opened(tmp_path: Path) -> None:
    root = make_instance(tmp_path / "inst")
    config = SandboxConfig(writable_paths=(root / "agents", tmp_path / "missing"))
    containment = contain(root, backend=await working_backend(), config=config)
    report = await run_sh(containment, f"cat {root}/agents/other/workspace/notes")
    assert report.stdout == ""
    assert report.exit_code == 1


async def test_temporary_files_last_from_one_command_to_the_next_and_stay_private(tmp_path: Path) -> None:
    containment = contain(make_instance(tmp_path / "inst"), backend=await working_backend())
    await run_sh(containment, "echo kept > /tmp/note; mkdir /tmp/sub")
    assert (await run_sh(containment, "cat $TMPDIR/note /var/tmp/note")).stdout == "kept\nkept\n"
    assert (containment.temporary / "note").exists()
    assert containment.working_folder("/tmp/sub") == Path("/tmp/sub")
    containment.prepare()
    assert not (containment.temporary / "note").exists()


@pytest.mark.spec("C-86")
async def test_a_missing_proc_mount_degrades_to_none(tmp_path: Path) -> None:
    backend = dataclasses.replace(await working_backend(), has_proc=False)
    containment = contain(make_instance(tmp_path / "inst"), backend=backend)
    assert (await run_sh(containment, "ls /proc; echo works")).stdout == "works\n"


@pytest.mark.spec("C-86")
async def test_without_a_backend_commands_still_run_and_it_is_said(tmp_path: Path) -> None:
    containment = contain(make_instance(tmp_path / "inst"), backend=Backend(note="bubblewrap is not installed"))
    assert (await run_sh(containment, "pwd")).stdout.strip() == str(containment.workspace)
    assert not containment.is_active
    assert "inactive (bubblewrap is not installed)" in containment.describe()


async def test_the_description_names_what_is_true(tmp_path: Path) -> None:
    root = make_instance(tmp_path / "inst")
    shared = tmp_path / "shared"
    shared.mkdir()
    text = contain(root, backend=await working_backend(), config=SandboxConfig(writable_paths=(shared,))).describe()
    assert str(shared) in text
    assert "/usr" in text
    assert str(root / "agents/main/data") not in text
    off = contain(root, config=SandboxConfig(mode="disabled")).describe()
    assert "switched off" in off


@pytest.mark.spec("C-13")
async def test_the_mode_is_read_at_every_command(tmp_path: Path) -> None:
    backend = await working_backend()
    current = SandboxConfig()
    root = make_instance(tmp_path / "inst")
    containment = Containment(
        workspace=root / "agents/main/workspace",
        instance_root=root,
        data_dir=root / "agents/main/data",
        tools_bin=root / "tools/bin",
        settings=lambda: current,
        backend=backend,
    )
    assert containment.wrap(["true"]).wrappers == 2
    current = SandboxConfig(mode="disabled")
    assert containment.wrap(["true"]).argv == ("true",)


def test_a_workspace_that_is_the_instance_is_a_mistake_of_the_owner(tmp_path: Path) -> None:
    root = make_instance(tmp_path / "inst")
    for workspace in (root, root / "agents/main/data", root / "agents/main/data/x"):
        with pytest.raises(ConfigError):
            contain(root, workspace=workspace)


def test_deeper_mounts_come_after_those_that_contain_them(tmp_path: Path) -> None:
    containment = contain(make_instance(tmp_path / "inst"), config=SandboxConfig(writable_paths=(tmp_path,)))
    options = bubblewrap_options(containment.policy().areas, temporary=tmp_path, has_proc=True)
    at = {options[i + 2]: i for i, word in enumerate(options) if word in ("--bind", "--ro-bind")}
    masked = options.index("--tmpfs")
    assert at[str(tmp_path)] < masked < at[str(containment.workspace)] < at[str(containment.workspace / "ingest")]


def test_the_mac_profile_orders_its_rules_as_the_policy_does(tmp_path: Path) -> None:
    containment = contain(make_instance(tmp_path / 'in"st'))
    lines = sandbox_profile(containment.policy().areas, temporary=containment.temporary).splitlines()
    hidden = next(i for i, line in enumerate(lines) if line.startswith("(deny file-read*") and 'in\\"st"' in line)
    workspace = next(i for i, line in enumerate(lines) if 'workspace"' in line and "file-write*" in line)
    assert lines[1] == "(deny default)"
    assert hidden < workspace


def mac(root: Path, **permissions: object) -> Containment:
    owner = PermissionsConfig.model_validate(permissions)
    workspace = root / "agents/main/workspace"
    return Containment(
        workspace=workspace,
        instance_root=root,
        data_dir=root / "agents/main/data",
        tools_bin=root / "tools/bin",
        private=workspace / "attachments/_direct",
        gate=Gate(lambda: owner),
        settings=SandboxConfig,
        backend=Backend(kind=BackendKind.SANDBOX_EXEC, program="/usr/bin/sandbox-exec"),
        inherited={},
    )


def profile_of(containment: Containment) -> list[str]:
    """The lines of a command's profile. Only their text is tested: no Mac runs these tests."""
    program, option, profile, *rest = containment.wrap(["true"]).argv
    assert (program, option, rest) == ("/usr/bin/sandbox-exec", "-p", ["true"])
    return profile.splitlines()


@pytest.mark.spec("C-87")
def test_the_mac_profile_lets_names_and_certificates_be_found(tmp_path: Path) -> None:
    lines = profile_of(mac(make_instance(tmp_path / "inst")))
    for service in ("trustd", "dnssd.service", "SystemConfiguration.configd"):
        assert f'(allow mach-lookup (global-name "com.apple.{service}"))' in lines
    for link in ("/etc", "/tmp", "/var", str(tmp_path)):
        assert f'(allow file-read-metadata (literal "{link}"))' in lines


def test_the_mac_profile_cuts_the_network_where_that_is_denied(tmp_path: Path) -> None:
    root = make_instance(tmp_path / "inst")
    assert "(allow network*)" in profile_of(mac(root))
    offline = profile_of(mac(root, network_outbound=False))
    assert "(deny network*)" in offline
    assert not [line for line in offline if line.startswith("(allow network") or "system-socket" in line]


def test_the_mac_profile_of_a_trusted_agent_opens_the_machine_and_hides_the_instance_last(tmp_path: Path) -> None:
    root = make_instance(tmp_path / "inst")
    lines = profile_of(mac(root, profile="trusted"))
    everything = lines.index('(allow file-read* file-write* (subpath "/"))')
    hidden = lines.index(f'(deny file-read* file-write* (subpath "{root}"))')
    workspace = lines.index(f'(allow file-read* file-write* (subpath "{root}/agents/main/workspace"))')
    private = lines.index(f'(deny file-read* file-write* (subpath "{root}/agents/main/workspace/attachments/_direct"))')
    assert everything < hidden < workspace < private


def test_the_mac_profile_opens_a_view_and_keeps_what_hides_others_from_being_renamed(tmp_path: Path) -> None:
    root = make_instance(tmp_path / "inst")
    containment = mac(root)
    attachments = containment.workspace / "attachments"
    own = attachments / "_direct/own"
    lines = profile_of(containment.view("worker", opened=[own]))
    private = lines.index(f'(deny file-read* file-write* (subpath "{attachments}/_direct"))')
    assert private < lines.index(f'(allow file-read* file-write* (subpath "{own}"))')
    for path in (attachments, attachments / "_direct", containment.workspace / "ingest"):
        assert f'(deny file-write-unlink (literal "{path}"))' in lines
    assert f'(allow file-read* file-write* (subpath "{root}/agents/main/data/tmp/worker"))' in lines


PARTS = st.sampled_from(
    ["a", "b", "ingest", "data", "workspace", "agents", "main", "other", ".", "..", "", "config.toml"]
)


@given(parts=st.lists(PARTS, max_size=7), is_absolute=st.booleans(), writing=st.booleans())
def test_whatever_path_is_asked_for_only_the_workspace_is_given(
    parts: list[str], is_absolute: bool, writing: bool
) -> None:
    """No disk needed: the policy is arithmetic on paths."""
    containment = contain(Path("/srv/inst"))
    text = ("/srv/inst/" if is_absolute else "") + "/".join(parts)
    try:
        place = containment.policy().locate(text, writing=writing)
    except ToolError:
        return
    workspace = Path("/srv/inst/agents/main/workspace")
    assert place.path.is_relative_to(workspace)
    assert ".." not in place.path.parts
    assert place.path == Path(os.path.normpath(workspace / text))
    if writing:
        assert not place.path.is_relative_to(workspace / "ingest")
        assert containment.policy().access(place.path) is Access.WRITE
