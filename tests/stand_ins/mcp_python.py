"""A well-behaved MCP server by the official SDK: over standard input and output as a program, or as an ASGI app."""

from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

MADE: list[str] = []  # what happened to calls of `slow`


def server() -> MCPServer:
    """A server with three tools."""
    made = MCPServer("calculator")

    @made.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @made.tool()
    async def slow(seconds: float, context: Context[Any, Any]) -> str:
        """Take so many seconds."""
        MADE.append("began")
        try:
            await anyio.sleep(seconds)
        except anyio.get_cancelled_exc_class():
            MADE.append("cancelled")
            raise
        return "done"

    @made.tool()
    def fail() -> str:
        """Fail."""
        raise ValueError("it does not work")

    return made


if __name__ == "__main__":
    server().run()
