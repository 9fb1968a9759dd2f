"""An MCP server over its standard input and output that does what real ones should not. Standard library only.

    python mcp_misbehaving.py [--log FILE] [--hang METHOD] [--tools JSON] [--pages]

It speaks the protocol of 2025-06-18. Each of its tools misbehaves in one way when it is called; `--hang` never answers
a method, `--tools` lists other tools, `--pages` lists them one a page, `--log` gets a line for each message it took.
"""

import argparse
import json
import os
import sys
import time

SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}}
NAMES = (
    "echo",
    "die",
    "silent",
    "large",
    "lists",
    "grow",
    "progress",
    "errors",
    "garbage",
    "flood",
    "env",
    "fail",
    "mixed",
    "huge",
)


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.tools = [{"name": name, "description": f"Does {name}.", "inputSchema": SCHEMA} for name in NAMES]
        if options.tools:
            self.tools = json.loads(options.tools)

    def send(self, **message: object) -> None:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()

    def note(self, line: str) -> None:
        if self.options.log:
            with open(self.options.log, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def run(self) -> None:
        self.note("started")
        for line in sys.stdin:
            message = json.loads(line)
            method, params = message.get("method"), message.get("params") or {}
            self.note(f"{method} {params.get('name', '')}".strip())
            if method == self.options.hang or "id" not in message:
                continue
            self.answer(message["id"], method, params)

    def answer(self, number: object, method: str, params: dict) -> None:
        if method == "initialize":
            result = {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {"listChanged": True}},
                "serverInfo": {"name": "misbehaving", "version": "1"},
            }
            self.note(f"client {json.dumps(params['clientInfo'])}")
            self.send(id=number, result=result)
        elif method == "tools/list":
            self.send(id=number, result=self.page(params.get("cursor")))
        elif method == "tools/call":
            content = self.call(params)
            if content is not None:
                self.send(
                    id=number, result={"content": content, "isError": params["name"] == "fail", **self.beside(params)}
                )
        else:
            self.send(id=number, error={"code": -32601, "message": f"no method {method}"})

    def page(self, cursor: str | None) -> dict:
        if not self.options.pages:
            return {"tools": self.tools}
        place = int(cursor or 0)
        following = {"nextCursor": str(place + 1)} if place + 1 < len(self.tools) else {}
        return {"tools": self.tools[place : place + 1], **following}

    def beside(self, params: dict) -> dict:
        return {"structuredContent": {"sum": 3}} if params["name"] == "mixed" else {}

    def call(self, params: dict) -> list | None:
        name, arguments = params["name"], params.get("arguments") or {}
        text = arguments.get("text", name)
        match name:
            case "die":
                sys.stderr.write("out of cheese\n")
                sys.stderr.flush()
                os._exit(3)
            case "silent":
                return None
            case "large":
                text = "x" * 10_000_000
            case "huge":
                text = "x" * 20_000_000
            case "lists":
                return [{"type": "text", "text": "y" * 200} for _ in range(20_000)]
            case "grow":
                self.tools.append({"name": "grown", "description": "New.", "inputSchema": SCHEMA})
                self.send(method="notifications/tools/list_changed")
            case "progress":
                token = params["_meta"]["progressToken"]
                for step in range(3):
                    time.sleep(float(arguments.get("pause", 0)))
                    self.send(method="notifications/progress", params={"progressToken": token, "progress": step})
            case "errors":
                sys.stderr.write("e" * 3_000_000)
                sys.stderr.flush()
            case "garbage":
                sys.stdout.write('Listening on stdio ...\n\n[1, 2]\n{"id": \n' + "\xff" * 1000 + "\n")
            case "flood":
                for _ in range(20_000):
                    self.send(method="notifications/message", params={"level": "info", "data": "again"})
            case "env":
                text = json.dumps({"environment": dict(os.environ), "folder": os.getcwd()})
            case "mixed":
                return [
                    {"type": "text", "text": "one"},
                    {"type": "image", "mimeType": "image/png", "data": "A" * 4000},
                    {"type": "resource", "resource": {"uri": "file:///two", "text": "two"}},
                ]
        return [{"type": "text", "text": text}] if text else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--log")
    parser.add_argument("--hang")
    parser.add_argument("--tools")
    parser.add_argument("--pages", action="store_true")
    Server(parser.parse_args()).run()
