// The Usage page: what models cost and how many tokens they took, by day, model, process and agent; and today's budgets.

import { get, store } from "./connection.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { $, put, startPage } from "./ui.js?v=__VERSION__";
import { money, number, percent, plural, short, when } from "./words.js?v=__VERSION__";

const SPANS = [7, 30, 90];
const MEASURES = {
  cost: ["Cost", (row) => row.cost_usd ?? 0, (n) => money(n)],
  tokens: ["Tokens", (row) => tokensOf(row), (n) => number(n)],
};
const STATES = { ok: ["within it", "good"], warned: ["nearly used up", "bad"], stopped: ["used up: agents wait", "bad"], none: ["no limit", ""] };
const DAY_MS = 86_400_000;
const [WIDTH, HEIGHT, FOOT] = [900, 170, 18]; // of the chart, in its own units
const SVG = "http://www.w3.org/2000/svg";
let days = Number(store.get("spacebot.usage.days")) || 30;
let measure = "cost";
let answer = null;

const tokensOf = (row) => row.input_tokens + row.output_tokens + row.cache_read_tokens + row.cache_write_tokens;
const costOf = (row) => (row.cost_usd !== null && row.cost_status === "unknown" ? `≥ ${money(row.cost_usd)}` : row.cost_status === "included" ? "included" : money(row.cost_usd));

// --- choices -----------------------------------------------------------------------------------------

function choices(place, entries, chosen, choose) {
  put(place, entries.map(([value, text]) => el("button", { type: "button", class: "pill", "aria-pressed": String(value === chosen()), "data-value": value, onclick: () => {
    choose(value);
    for (const one of place.children) one.setAttribute("aria-pressed", String(one.dataset.value === String(value)));
  } }, text)));
}

choices($("days"), SPANS.map((n) => [n, `${n} days`]), () => days, (n) => {
  days = n;
  store.set("spacebot.usage.days", String(n));
  page.refresh();
});
choices($("measure"), Object.entries(MEASURES).map(([name, [title]]) => [name, title]), () => measure, (name) => {
  measure = name;
  if (answer) drawDays(answer);
});
$("of").onchange = () => page.refresh();

// --- drawing -----------------------------------------------------------------------------------------

function draw(found) {
  const all = found.totals;
  const cached = all.input_tokens + all.cache_read_tokens + all.cache_write_tokens;
  put($("totals"), [
    tile("Cost", costOf(all), all.saved_usd > 0 ? `${money(all.saved_usd)} saved by choosing models by words` : all.cost_status === "unknown" ? "some calls have no known price" : "estimated"),
    tile("Tokens", short(tokensOf(all)), `${short(all.input_tokens + all.cache_read_tokens + all.cache_write_tokens)} in, ${short(all.output_tokens)} out`),
    tile("Calls", number(all.requests), `since ${found.since ?? "today"}`),
    tile("From the cache", cached ? percent(all.cache_read_tokens / cached) : "–", `${short(all.cache_read_tokens)} tokens read again`),
  ]);
  drawBudgets(found.budgets);
  drawDays(found);
  table($("by-model"), "Model", found.by_model, (row) => row.model);
  table($("by-process"), "Process", found.by_process, (row) => row.process);
  table($("by-agent"), "Agent", found.by_agent, (row) => row.agent_id);
}

const tile = (name, value, about) => el("li", { class: "panel", "data-name": name }, el("span", { class: "fine" }, name), el("b", { class: "big" }, value), el("span", { class: "fine" }, about));

function drawBudgets(budgets) {
  const limited = budgets.filter((one) => one.state !== "none" && (one.daily_usd !== null || one.daily_tokens !== null));
  $("budgets-panel").hidden = !limited.length;
  put($("budgets"), limited.map((one) => {
    const [word, tone] = STATES[one.state] ?? [one.state, ""];
    const parts = [];
    if (one.daily_usd !== null) parts.push(meter(`${money(one.spent_usd)} of ${money(one.daily_usd)}`, one.spent_usd / one.daily_usd, one.warn_at));
    if (one.daily_tokens !== null) parts.push(meter(`${short(one.spent_tokens)} of ${short(one.daily_tokens)} tokens`, one.spent_tokens / one.daily_tokens, one.warn_at));
    const again = one.state === "stopped" ? el("span", { class: "fine" }, `goes on ${when(one.resumes_at)}`) : null;
    return el("li", { "data-agent": one.agent_id }, el("div", { class: "bar" }, el("b", {}, one.agent_id), el("span", { class: `tag ${tone}` }, word), again), ...parts);
  }));
}

function meter(words, share, warnAt) {
  const fill = el("i", { class: share >= 1 ? "full" : share >= warnAt ? "warn" : "" });
  fill.style.width = `${Math.min(1, share) * 100}%`;
  return el("div", { class: "meter" }, el("span", { class: "track", "aria-hidden": "true" }, fill), el("span", { class: "fine" }, `${words} (${percent(share)})`));
}

// Every day has its place, those without a call too.
function allDays({ since, by_day: found }) {
  const known = new Map(found.map((row) => [row.day, row]));
  const last = found.length ? found.at(-1).day : null;
  const first = new Date(`${since ?? last}T00:00:00Z`);
  if (Number.isNaN(first.getTime())) return [];
  return Array.from({ length: days }, (_, i) => {
    const day = new Date(first.getTime() + i * DAY_MS).toISOString().slice(0, 10);
    return [day, known.get(day) ?? null];
  });
}

function drawDays(found) {
  const [title, valueOf, text] = MEASURES[measure];
  const all = allDays(found).map(([day, row]) => ({ day, row, value: row ? valueOf(row) : 0 }));
  const most = Math.max(...all.map((one) => one.value), 0);
  const chart = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", preserveAspectRatio: "none", "aria-label": `${title} of the last ${days} days` });
  const step = WIDTH / Math.max(1, all.length);
  all.forEach(({ day, row, value }, i) => {
    const height = most ? (value / most) * (HEIGHT - 6) : 0;
    const group = shape("g", { class: "day", tabindex: value ? 0 : -1 });
    const words = `${day}: ${row ? `${costOf(row)}, ${short(tokensOf(row))} tokens, ${plural(row.requests, "call")}` : "nothing"}`;
    const name = shape("title");
    name.textContent = words;
    group.append(name, shape("rect", { class: "hit", x: i * step, y: 0, width: step, height: HEIGHT }), shape("rect", { class: "value", x: i * step + step * 0.12, y: HEIGHT - Math.max(height, value ? 2 : 0), width: step * 0.76, height: Math.max(height, value ? 2 : 0), rx: Math.min(3, step / 4) }));
    const tell = () => ($("chart-words").textContent = words);
    group.addEventListener("pointerenter", tell);
    group.addEventListener("focus", tell);
    chart.append(group);
  });
  const ends = el("div", { class: "ends fine" }, el("span", {}, all[0]?.day ?? ""), el("span", {}, most ? `most on a day: ${text(most)}` : "nothing yet"), el("span", {}, all.at(-1)?.day ?? ""));
  $("chart").replaceChildren(chart, ends);
  $("chart-words").textContent = "";
}

function shape(tag, attributes = {}) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function table(place, what, rows, nameOf) {
  if (!rows.length) return place.replaceChildren(el("p", { class: "fine" }, "Nothing was asked yet."));
  const most = Math.max(...rows.map((row) => row.cost_usd ?? 0), 0);
  const cell = (text) => el("td", { class: "figure" }, text);
  const body = rows.map((row) => {
    const bar = el("i");
    bar.style.width = most ? `${((row.cost_usd ?? 0) / most) * 100}%` : "0";
    return el("tr", {}, el("th", { scope: "row" }, el("span", { class: "name" }, nameOf(row)), el("span", { class: "share", "aria-hidden": "true" }, bar)), cell(number(row.requests)), cell(short(row.input_tokens + row.cache_read_tokens + row.cache_write_tokens)), cell(short(row.output_tokens)), cell(costOf(row)), cell(row.saved_usd > 0 ? money(row.saved_usd) : "–"));
  });
  const head = [what, "Calls", "Tokens in", "Tokens out", "Cost", "Saved"].map((text, i) => el("th", { scope: "col", class: i ? "figure" : "" }, text));
  place.replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body)));
}

// --- asking ------------------------------------------------------------------------------------------

async function refresh() {
  const ids = page.status.agents.map(({ id }) => id);
  if ($("of").options.length !== ids.length + 1) $("of").replaceChildren(el("option", { value: "" }, "all agents"), ...ids.map((id) => el("option", { value: id }, id)));
  $("of").hidden = ids.length < 2;
  const [span, of] = [days, $("of").value];
  const found = await get("usage", of ? { days: span, agent_id: of } : { days: span });
  if (span !== days || of !== $("of").value) return;
  if (JSON.stringify(found) === JSON.stringify(answer)) return; // what one points at stays
  answer = found;
  draw(found);
}

const page = startPage({ events: "turn_ended,worker_completed,budget_state,config_reloaded", refresh });
