"""How the adapters are, and whether one works: for the web page, the command line and programs.

Flow:    GET /api/messaging/status, POST /api/messaging/test, control command `messaging` -> Program.messaging
Floor:   api
Source:  messaging spec 16; control spec 4.7
"""

import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import trio

from spacebot.api.contract import AgentHandle, Program
from spacebot.base.clock import to_text
from spacebot.base.errors import DeliveryError, NotFoundError, RefusedError, StorageError
from spacebot.base.ids import AgentId
from spacebot.base.telemetry import kv
from spacebot.config.messaging import PLATFORMS
from spacebot.messaging.states import AdapterState, Connection

log = logging.getLogger(__name__)

STORE_S = 3.0  # for one agent's figure; who asks how the adapters are must hear it even if a store hangs
PATIENCE_S = 30.0  # for a platform that is asked whether all is well
MAX_TEST_TEXT = 2000  # characters

JsonObject = Mapping[str, Any]
_Figure = TypeVar("_Figure")


async def ask_agents(
    program: Program, what: str, ask: Callable[[AgentHandle], Awaitable[_Figure]]
) -> dict[AgentId, _Figure]:
    """A figure of each agent; one whose store fails or hangs is not there, and the log says why.

    Args:
        what: the figure in words, for the log.
    """
    figures: dict[AgentId, _Figure] = {}

    async def ask_one(agent: AgentHandle) -> None:
        reason = f"no answer within {STORE_S:.0f} s"
        with trio.move_on_after(STORE_S):
            try:
                figures[agent.id] = await ask(agent)
            except StorageError as error:
                reason = str(error)
        if agent.id not in figures:
            log.warning("figures are missing", extra=kv(what=what, agent=agent.id, error=reason))

    async with trio.open_nursery() as nursery:
        for agent in program.agents.values():
            nursery.start_soon(ask_one, agent)
    return figures


async def queued(program: Program) -> Counter[str]:
    """How many messages of all agents wait to be delivered, by adapter."""
    counts = await ask_agents(program, "messages that wait", lambda agent: agent.delivery.outbox.counts())
    return sum((Counter(count) for count in counts.values()), Counter[str]())


async def messaging_status(program: Program) -> dict[str, Any]:
    """Every platform, and under `instances` every account.

    Under `warnings` stands what else is wrong with accounts and bindings in the file, in words.
    """
    instances = adapter_instances(program, await queued(program))
    own: dict[str, Any] = {
        platform: {
            "configured": any(i["configured"] for i in instances if i["platform"] == platform),
            "enabled": any(i["enabled"] for i in instances if i["platform"] == platform),
        }
        for platform in PLATFORMS
    }
    return own | {"instances": instances, "warnings": _warnings(program)}


def adapter_instances(program: Program, waiting: Mapping[str, int]) -> list[dict[str, Any]]:
    """How every account is: those in use, those switched off, those that cannot be.

    Args:
        waiting: messages that wait to be delivered, by adapter.
    """
    messaging = program.config.messaging
    states = {state.key: state for state in program.messaging.states()}
    bound = Counter(binding.adapter_key for binding in program.config.bindings)
    instances = []
    for platform, key, account in messaging.accounts():
        state = states.pop(key, None) or AdapterState(key=key, platform=platform, state=Connection.STOPPED)
        instances.append(_instance(state, is_configured=True, is_enabled=account.enabled, bindings=bound[key]))
    for key, reason in messaging.absent.items():
        states.pop(key, None)  # it was in use until just now
        state = AdapterState(
            key=key, platform=key.partition(":")[0], state=Connection.STOPPED, detail=f"not connected: {reason}"
        )
        instances.append(_instance(state, is_configured=False, is_enabled=False, bindings=bound[key]))
    instances.extend(  # those that need no account, and those that are just being taken away
        _instance(state, is_configured=True, is_enabled=True, bindings=bound[state.key]) for state in states.values()
    )
    for instance in instances:
        instance["queued"] += waiting.get(instance["key"], 0)
    return instances


def _warnings(program: Program) -> list[str]:
    """What the owner should know about accounts and bindings, but for what is said of an account already."""
    found = (re.sub(r"^.*?: (?='(?:messaging|bindings)\b)", "", warning) for warning in program.warnings)
    return [text for text in found if text.startswith(("'messaging", "'bindings")) and "is not connected:" not in text]


def _instance(state: AdapterState, *, is_configured: bool, is_enabled: bool, bindings: int) -> dict[str, Any]:
    is_off = is_configured and not is_enabled
    return {
        "key": state.key,
        "platform": state.platform,
        "name": state.key.partition(":")[2] or None,
        "configured": is_configured,
        "enabled": is_enabled,
        "state": str(Connection.DISABLED if is_off else state.state),
        "detail": "" if is_off else state.detail,
        "who": state.who,
        "since": _text(state.since),
        "attempts": state.attempts,
        "next_attempt_at": _text(state.next_attempt_at),
        "received": state.received,
        "sent": state.sent,
        "failed": state.failed,
        "queued": state.queued,
        "binding_count": bindings,
    }


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else to_text(moment)


async def try_adapter(program: Program, key: str, target: str | None, text: str | None) -> dict[str, Any]:
    """Ask an adapter's platform whether all is well; with a target and a text send that there.

    Returns `success` and a `message` for people: what the platform said, or what is wrong.

    Errors: NotFoundError for an unknown adapter; RefusedError for half a target, or a text that is too long.
    """
    known = {state.key: state for state in program.messaging.states()}
    found = next((name for name in known if name.lower() == key.strip().lower()), None)
    if found is None:
        if (reason := program.config.messaging.absent.get(key.strip())) is not None:
            raise RefusedError(f"{key.strip()} is not connected: {reason}")
        names = ", ".join(known) or "none; [messaging] in the configuration file names them"
        raise NotFoundError(f"there is no adapter {key[:80]!r}; there are: {names}")
    if bool(target) != bool(text):
        raise RefusedError("a test message needs both a target and a text")
    if len(text or "") > MAX_TEST_TEXT:
        raise RefusedError(f"a test message has at most {MAX_TEST_TEXT} characters")
    with trio.move_on_after(PATIENCE_S):
        try:
            if target and text:
                place = await program.messaging.send_test(f"{found}:{target}", text)
                return {"success": True, "message": f"sent to {place}"}
            return {"success": True, "message": await program.messaging.probe(found)}
        except DeliveryError as error:
            return {"success": False, "message": str(error)}
    return {"success": False, "message": f"{found} did not answer within {PATIENCE_S:.0f} seconds"}


async def answer_messaging(program: Program, request: JsonObject, send: Callable[..., Awaitable[None]]) -> None:
    """The control command `messaging`: the status, or with `test` a test of that adapter.

    Errors: NotFoundError, RefusedError.
    """
    key = request.get("test")
    if key is None:
        await send("messaging", **await messaging_status(program))
        return
    target, text = request.get("target"), request.get("text")
    if not all(value is None or isinstance(value, str) for value in (target, text)) or not isinstance(key, str):
        raise RefusedError("'test', 'target' and 'text' must be texts")
    await send("ok", **await try_adapter(program, key, target, text))
