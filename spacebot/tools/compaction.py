"""The tool with which the compactor hands over its summary.

It ends the run, so whatever is said afterwards cannot take the summary's place.

Flow:    arguments -> WriteSummary.summary
Floor:   tools
Source:  memory spec pitfall P-45
"""

from typing import ClassVar

from spacebot.base.errors import ToolError
from spacebot.base.tree import Node
from spacebot.tools.contract import ToolArguments, ToolOutput


class WriteSummaryArguments(ToolArguments):
    """Arguments of write_summary."""

    summary: str


class WriteSummary:
    """Takes the summary of one run."""

    name: ClassVar[str] = "write_summary"
    arguments: ClassVar[type[ToolArguments]] = WriteSummaryArguments

    def __init__(self) -> None:
        self.summary = ""

    async def call(self, arguments: WriteSummaryArguments, node: Node) -> ToolOutput:
        """Keep the summary and end the run."""
        if not (summary := arguments.summary.strip()):
            raise ToolError("the summary is empty; write what the talk came to")
        self.summary = summary
        return ToolOutput("kept", ends_turn=True)
