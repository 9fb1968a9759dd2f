"""Keeps a service running: restart after a failure, with a growing pause, and the state visible in the tree.

Flow:    run_service -> (run the service, wait)* ; cancelling its node ends it
Floor:   base
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from spacebot.base.clock import monotonic_s
from spacebot.base.errors import ConfigError, DeliveryError, ModelRejectedError, RefusedError, SpacebotError
from spacebot.base.tree import Node, NodeKind, NodeState, Outcome, Tree, describe

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOff:
    """Pauses between attempts, in seconds. Messaging spec: 5 doubling to 60, endless."""

    first_s: float = 5.0
    longest_s: float = 60.0
    permanent_s: float = 600.0  # after an error that will not heal by itself: somebody has to act first
    steady_s: float = 60.0  # a service that ran this long begins again with the first pause

    def pause_s(self, failures: int) -> float:
        """The pause after this many failures in a row, from 1."""
        return min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30))


def is_permanent(error: BaseException) -> bool:
    """Whether trying again soon is pointless: wrong configuration, refused credentials."""
    if isinstance(error, DeliveryError):
        return error.is_permanent
    if isinstance(error, BaseExceptionGroup):
        return any(is_permanent(inner) for inner in error.exceptions)
    return isinstance(error, ConfigError | RefusedError | ModelRejectedError)


async def run_service(
    tree: Tree,
    name: str,
    run: Callable[[Node], Awaitable[None]],
    *,
    parent: Node | None = None,
    description: str = "",
    back_off: BackOff = BackOff(),
    is_permanent: Callable[[BaseException], bool] = is_permanent,
    on_failure: Callable[[Exception, int, float], None] = lambda error, failures, pause_s: None,
    task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED,
) -> Outcome:
    """Run a service until it returns, its node is cancelled, or the program stops.

    Started means registered in the tree, not running: a service that is down never holds up the start. While it
    runs, its node is `RUNNING`; between attempts it is `WAITING` and its status says why and for how long.

    Args:
        name: the node's id, such as `adapter:webchat`.
        run: does the service's work with its node; returning means finished, raising means try again.
        on_failure: told of each failure, with their number in a row and the seconds until the next attempt.
    """
    node = tree.add(NodeKind.SERVICE, description or name, parent=parent, node_id=name)
    task_status.started(node)

    async def keep_running() -> Outcome:
        failures = 0
        while True:
            began = monotonic_s()
            node.state = NodeState.RUNNING
            node.progress("running")
            try:
                await run(node)
                return Outcome(NodeState.DONE)
            except Exception as error:  # boundary: service
                failures = 1 if monotonic_s() - began >= back_off.steady_s else failures + 1
                lasting = is_permanent(error)
                pause_s = back_off.permanent_s if lasting else back_off.pause_s(failures)
                if isinstance(error, DeliveryError) and error.retry_after_s is not None:
                    pause_s = max(pause_s, error.retry_after_s)
                on_failure(error, failures, pause_s)
                log.warning(
                    "service failed",
                    # The traceback once, and only of what nobody foresaw.
                    exc_info=None if isinstance(error, SpacebotError) or failures > 1 else error,
                    extra={
                        "kv": {"service": name, "failures": failures, "pause_s": pause_s, "reason": describe(error)}
                    },
                )
                node.state = NodeState.WAITING
                node.progress(f"failed {failures}×, next attempt after {pause_s:g} s: {describe(error)}")
            await trio.sleep(pause_s)

    async def settle(outcome: Outcome) -> None:
        return None

    return await tree.supervise(node, keep_running, settle=settle)
