"""One conversation, all hands: a site is researched, a report written, its tests run, a daily job put on it, and every
result arrives. The model is a stand-in at the wire; Chromium, shell, sandbox and OpenCode are real.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.flows.stories import up
from tests.node.servers import opencode_program
from tests.real_daemon import Daemon
from tests.stand_ins.openai import serve_openai
from tests.stand_ins.serving import Answer, Connection, Request, Use, serve

PAGES = {
    "/": "<title>Harbour</title><h1>Harbour of Brightwater</h1><a href='/figures'>Figures of the year</a>",
    "/figures": "<title>Figures</title><h1>Ships</h1><table><tr><td>spring<td>120<tr><td>summer<td>310"
    "<tr><td>autumn<td>90</table><button onclick=\"document.title='Asked'\">More</button>",
}
CHART = r"""
import pathlib, re
rows = re.findall(r"(\w+)=(\d+)", pathlib.Path("figures.txt").read_text())
bars = "".join(f'<rect x="{40*i}" y="{320-int(n)}" width="30" height="{n}"/>' for i, (_, n) in enumerate(rows))
svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 200 320">{bars}</svg>'
table = "".join(f"<tr><td>{name}<td>{n}" for name, n in rows)
pathlib.Path("report.html").write_text(f"<h1>Ships of Brightwater</h1><table>{table}</table>{svg}")
print("bars:", len(rows))
"""
TESTS = """
import pathlib, unittest

class Report(unittest.TestCase):
    def test_every_season_has_a_bar(self):
        self.assertEqual(pathlib.Path("../report.html").read_text().count("<rect"), 3)
"""


async def show(request: Request, connection: Connection) -> None:
    """The local web site."""
    page = PAGES.get(request.path)
    await connection.send((page or "nothing").encode(), status=200 if page else 404, content_type="text/html")


class Mind:
    """The model: what it says follows from the tools that it is offered and from what it was told."""

    def __init__(self, site: str) -> None:
        self.site = site
        self.confused: list[str] = []

    def __call__(self, body: Any) -> Answer:
        tools = {tool["function"]["name"] for tool in body.get("tools", ())}
        if "reply" in tools:
            return self.channel(body)
        if "set_status" in tools:
            return self.worker(body)
        if "bash" in tools:
            return self.coder(body)
        return Answer(text="a title" if not tools else "NONE")

    def channel(self, body: Any) -> Answer:
        told = text_of(body["messages"][-1]).rpartition("</now>")[2] or text_of(body["messages"][-1])
        if body["messages"][-1]["role"] == "tool":
            return Answer(text="")
        if (found := re.search(r"<result [^>]*>\n(.*?)\n</result>", told, re.DOTALL)) is not None:
            sent = (call("send_file", file_path="report.html", caption="the report"),) if "report.html" in told else ()
            return Answer(uses=(*sent, call("reply", content=f"RESULT: {found[1]}")))
        if "research" in told:
            return delegated(
                "on it", task=f"research {self.site} and write report.html with a chart", task_type="research"
            )
        if "run its tests" in told:
            return delegated("they run", task="run the tests", worker_type="opencode", directory="project")
        if "every day" in told:
            job = call("cron", action="create", id="harbour", prompt="say how many ships came", cron_expr="0 9 * * *")
            return Answer(uses=(job, call("reply", content="put on the list")))
        if "how many ships" in told:
            return Answer(uses=(call("reply", content="520 ships came"),))
        self.confused.append(told)
        return Answer(uses=(call("reply", content="I do not know what to do"),))

    def worker(self, body: Any) -> Answer:
        """Look at the site, keep the figures, draw them, report."""
        results = [text_of(message) for message in body["messages"] if message["role"] == "tool"]
        steps: list[Callable[[], Use]] = [
            lambda: call("browser", action="navigate", url=self.site),
            lambda: call("browser", action="snapshot"),
            lambda: call(
                "browser", action="act", act_kind="click", element_ref=ref_of(results[1], "Figures of the year")
            ),
            lambda: call("browser", action="content", format="text"),
            lambda: call("browser", action="screenshot", full_page=True),
            lambda: call("file", operation="write", path="figures.txt", content=figures_in(results[3])),
            lambda: call("file", operation="write", path="project/test_report.py", content=TESTS),
            lambda: call("file", operation="write", path="chart.py", content=CHART),
            lambda: call("shell", command="python3 chart.py"),
            lambda: call(
                "set_status", kind="outcome", status=f"wrote report.html, {results[8].splitlines()[-1]}", result="done"
            ),
        ]
        return Answer(uses=(steps[len(results)](),))

    def coder(self, body: Any) -> Answer:
        """Run the tests once, tell how they went."""
        if body["messages"][-1]["role"] != "tool":
            return Answer(
                uses=(call("bash", command="python3 -m unittest 2>&1 | tail -1", description="run the tests"),)
            )
        return Answer(text=f"the tests say {text_of(body['messages'][-1]).strip()}")


def call(name: str, **arguments: Any) -> Use:
    """A tool call."""
    return Use(name, arguments)


def delegated(words: str, **arguments: Any) -> Answer:
    """A worker for it, and a word that it has begun."""
    return Answer(uses=(call("spawn_worker", **arguments), call("reply", content=words)))


def text_of(message: Any) -> str:
    """The words of a message."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())


def ref_of(snapshot: str, name: str) -> str:
    """The ref of what has this name in an outline."""
    found = re.search(rf'"{name}".*?\[(e\d+)\]|\[(e\d+)\][^\n]*"{name}"', snapshot)
    assert found is not None, snapshot
    return found[1] or found[2]


def figures_in(page: str) -> str:
    """The table of a page, a line each."""
    found = dict(re.findall(r"(spring|summer|autumn)\W+(\d+)", page))
    assert len(found) == 3, page
    return "\n".join(f"{name}={number}" for name, number in found.items())


async def test_research_report_tests_and_a_daily_job_in_one_conversation(tmp_path: Path) -> None:
    program = opencode_program()
    async with serve(show) as site:
        mind = Mind(site.url)
        async with serve_openai(mind) as model:
            host = site.url.removeprefix("http://")
            extra = (
                f'\n[defaults.permissions]\nnetwork_allow_private = ["{host}"]\n'
                f'[defaults.opencode]\nenabled = true\npath = "{program}"\n'
            )
            daemon = Daemon(tmp_path, model_url=model.url, extra=extra)
            async with up(daemon) as person:
                await person.say("please research our site and write a report with a chart")
                told = await person.wait_for_text("RESULT: wrote report.html")
                assert "bars: 3" in told
                rows = await person.history()
                (file,) = [row["file"] for row in rows if row["kind"] == "file"]
                assert file["filename"] == "report.html"

                await person.say("now run its tests with OpenCode")
                assert "OK" in await person.wait_for_text("the tests say")

                await person.say("do that every day at nine")
                await person.wait_for_text("put on the list")
                status, _ = await person.post("/api/agents/cron/trigger", agent_id="main", cron_id="harbour")
                assert status in (200, 202)
                await person.wait_for_text("520 ships came")
                workspace = tmp_path / "agents" / "main" / "workspace"
                assert (workspace / "report.html").read_text().count("<rect") == 3
                assert list((workspace / "screenshots").glob("*.png"))
    assert mind.confused == []
    log = json.dumps((tmp_path / "out.log").read_text())
    assert "not-a-real-key" not in log
