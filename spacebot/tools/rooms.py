"""Speaking in another conversation than the one at hand.

Floor:  tools
Source: messaging spec 8; pitfall 26 of its section 19
"""

from typing import Any, ClassVar, Protocol

from pydantic import Field

from spacebot.base.tree import Node
from spacebot.tools.channel import check_outgoing
from spacebot.tools.contract import ToolArguments, ToolOutput


class ElsewhereHandle(Protocol):
    """What the channel lets the tool do."""

    async def send_elsewhere(self, target: str, text: str) -> str:
        """Say something in another conversation; returns its name. Errors: ToolError, StorageError."""
        ...


class SendElsewhereArguments(ToolArguments):
    target: str = Field(
        description="name or id of a channel of the list, `home`, or adapter:address", min_length=1, max_length=300
    )
    message: str = Field(description="what to say there", min_length=1, max_length=20_000)


class SendElsewhere:
    """Say something in another conversation; it is recorded there."""

    name: ClassVar[str] = "send_message_to_another_channel"
    arguments: ClassVar[type[ToolArguments]] = SendElsewhereArguments

    def __init__(self, channel: ElsewhereHandle) -> None:
        self._channel = channel

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        text = arguments.message.strip()
        check_outgoing(text)
        name = await self._channel.send_elsewhere(arguments.target.strip(), text)
        return ToolOutput.of(success=True, channel=name, message="It is on its way there.")
