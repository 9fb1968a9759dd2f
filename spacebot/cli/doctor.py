"""`doctor`: look at everything that tends to go wrong, say it in one line each, and how it is mended.

Flow:    find_daemon, configuration -> Scene -> agent/checks.py -> lines
Floor:   cli; standard library only, until there is something to look at
Source:  agent/checks.py
"""

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from spacebot.base.errors import SpacebotError
from spacebot.base.paths import InstancePaths
from spacebot.cli.client import ask
from spacebot.cli.liveness import find_daemon

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spacebot.agent.checks import Finding, Scene

WIDTH = 12
TEST_S = 45.0  # for one platform


def run_doctor(paths: InstancePaths, *, online: bool, as_json: bool) -> int:
    """Look and print; 1 when something will not work."""
    import logging

    import trio

    from spacebot.agent.checks import Grade, examine, summary
    from spacebot.agent.checks_machine import MACHINE, MACHINE_ASKING, check_names
    from spacebot.agent.checks_program import ONLINE, PROGRAM

    os.umask(0o077)
    logging.getLogger().addHandler(logging.NullHandler())  # what is wrong stands in the findings
    scene = _scene(paths)
    asking = {**MACHINE_ASKING, **({"names": check_names, **ONLINE} if online else {})}

    async def look() -> "list[Finding]":
        return await examine(scene, {**PROGRAM, **MACHINE}, asking)

    findings = trio.run(look)
    if online:
        findings += _ask_platforms(paths, scene)
    if as_json:
        print(json.dumps(summary(findings)))
    else:
        _print(findings)
    return 1 if any(finding.grade is Grade.FAIL for finding in findings) else 0


def _scene(paths: InstancePaths) -> "Scene":
    from spacebot.agent.checks import Scene
    from spacebot.cli.secret import open_secrets
    from spacebot.config.load import load_config

    daemon = find_daemon(paths)
    secrets = open_secrets(paths)
    try:
        state: dict[str, Any] = secrets.state().to_json_object()
    except SpacebotError as error:
        state = {"state": "unreadable", "problem": str(error)}
    scene = Scene(
        paths=paths,
        config=None,
        status=daemon.status if daemon else None,
        pid=daemon.pid if daemon else None,
        secrets=state,
        environ=dict(os.environ),
    )
    try:
        loaded = load_config(paths.config, resolve_secret=secrets.resolve)
    except SpacebotError as error:
        return replace(scene, trouble=str(error))
    return replace(scene, config=loaded.config, warnings=(*secrets.warnings, *loaded.warnings))


def _ask_platforms(paths: InstancePaths, scene: "Scene") -> "list[Finding]":
    """Have the running program ask each platform whether its token is good."""
    from spacebot.agent.checks import Report

    say, findings = Report("tokens"), []
    if scene.config is None or scene.status is None:
        return [say.warn("platforms are asked by the program, which does not run", "spacebot start, then again")]
    for _, key, account in scene.config.messaging.accounts():
        if account.enabled:
            try:
                answer = ask(paths, "messaging", timeout_s=TEST_S, test=key)
            except SpacebotError as error:
                answer = {"success": False, "message": str(error)}
            said = f"{key}: {answer.get('message')}"
            findings.append(say.ok(said) if answer.get("success") else say.fail(said, f"look at [messaging.{key}]"))
    return findings


def _print(findings: "Iterable[Finding]") -> None:
    from spacebot.agent.checks import Grade

    counts = dict.fromkeys(Grade, 0)
    colours = {Grade.OK: "32", Grade.WARN: "33", Grade.FAIL: "31"} if sys.stdout.isatty() else {}
    for finding in findings:
        counts[finding.grade] += 1
        grade = f"{finding.grade:5}"
        if finding.grade in colours and "NO_COLOR" not in os.environ:
            grade = f"\x1b[{colours[finding.grade]}m{grade}\x1b[0m"
        first, *rest = finding.said.splitlines() or [""]
        print(f"{grade} {finding.check:{WIDTH}} {first}")
        for line in rest:
            print(f"{'':{WIDTH + 6}} {line}")
        if finding.mend:
            print(f"{'':{WIDTH + 6}} → {finding.mend}")
    print(f"{counts[Grade.OK]} well, {counts[Grade.WARN]} to know, {counts[Grade.FAIL]} to mend")
