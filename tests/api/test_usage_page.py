"""The Usage page in a real browser: what models cost, by day and by what, and how the budgets stand."""

from pathlib import Path

from spacebot.agent.budget import Budget
from spacebot.base.clock import Clock
from spacebot.config.model import AgentConfig, BudgetConfig
from spacebot.llm.messages import Usage
from tests.api.test_page import drive
from tests.api.test_schedules_page import in_browser
from tests.api.test_shell_page import open_page
from tests.api.test_usage_routes import days_ago
from tests.fakes.completions import completion
from tests.fakes.fake_program import FakeProgram

PART = Usage(input_tokens=100, output_tokens=50, cache_read_tokens=300)
EVIL = "evil/<img src=x onerror=\"document.title='owned'\">" + "wide" * 40


async def fill(program: FakeProgram) -> None:
    main, other = program.agents.values()
    await main.usage.log.record(
        [
            completion("a/dear", PART, day=days_ago(0), cost=2.0, saved=0.5),
            completion("b/cheap", PART, day=days_ago(3), cost=0.5, kind="worker"),
            completion("b/cheap", PART, day=days_ago(40), cost=9.0, kind="worker"),
        ]
    )
    await other.usage.log.record([completion(EVIL, PART, day=days_ago(1))])


@in_browser
async def test_costs_and_tokens_are_shown_for_the_days_and_agents_that_are_chosen(tmp_path: Path) -> None:
    async with open_page(tmp_path, "main", "ops") as (program, page):
        await fill(program)

        def steps() -> None:
            page.browser.open(f"{page.url}/overview")
            page.one("#pages a[href='usage']").click()
            page.browser.wait_online()
            page.wait_text("[data-name=Cost]", "≥ $2.50$0.50 saved")
            assert page.text("[data-name=Calls] .big") == "3"
            assert page.text("[data-name='From the cache'] .big") == "75 %"
            assert len(page.browser.find("#chart .day")) == 30
            assert page.browser.find("#budgets-panel[hidden]")
            assert page.texts("#by-model tbody .name") == ["a/dear", "b/cheap", EVIL]
            assert page.texts("#by-model tbody tr:last-child .figure")[3] == "no price known"
            assert page.texts("#by-process tbody .name") == ["channel", "worker"]
            last = page.browser.find("#chart .day")[-1]
            page.script("arguments[0].focus()", last)
            page.wait_text("#chart-words", f"{days_ago(0)}: $2.00, 450 tokens, 1 call")
            page.one("#measure [data-value=tokens]").click()
            page.wait_text("#chart .ends", "most on a day: 450")
            page.one("#days [data-value='90']").click()
            page.wait_text("[data-name=Cost]", "≥ $11.50")
            assert len(page.browser.find("#chart .day")) == 90
            page.one("#of option[value=ops]").click()
            page.wait_text("[data-name=Cost]", "no price known")
            page.browser.driver.refresh()
            page.browser.wait_online()
            page.one("#days [data-value='90'][aria-pressed=true]")
            assert page.browser.driver.title == "Usage · Spacebot"

        await drive(steps)


@in_browser
async def test_a_used_up_budget_is_seen_in_a_small_window_in_the_dark(tmp_path: Path) -> None:
    async with open_page(tmp_path, "main", "ops", width=360) as (program, page):
        await fill(program)
        settings = AgentConfig(id="main", user_timezone="UTC", budget=BudgetConfig(daily_usd=1.0, daily_tokens=900))
        budget = Budget("main", settings=lambda: settings, clock=Clock(), events=program.events)
        budget.add(days_ago(0), "a/dear", 1.25, 450)
        program.main.usage.budget = budget

        def steps() -> None:
            page.dark()
            page.browser.open(f"{page.url}/usage")
            page.wait_text("#budgets li", "$1.25 of $1.00 (125 %)450 of 900 tokens (50 %)")
            assert page.text("#budgets .tag") == "used up: agents wait"
            assert len(page.browser.find("#budgets li")) == 1  # the other has no limit
            assert page.is_narrow()
            assert page.script("const m = document.querySelector('main'); return m.scrollWidth <= m.clientWidth")

        await drive(steps)
