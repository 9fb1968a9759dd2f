// The Overview page: every agent, what runs now, who talks, what it cost, and what needs its owner.
// Each part asks by itself: one that cannot be had leaves the others alone.

import { Unauthorized, get, post, send } from "./connection.js?v=__VERSION__";
import { login } from "./login.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { NAMES, STATES, channelName, hue, isPrivate, nodeWords, svg } from "./things.js?v=__VERSION__";
import { $, attempt, button, confirmed, debounced, failed, formDialog, keyed, put, startPage } from "./ui.js?v=__VERSION__";
import { line, money, number, plural, short, span, time } from "./words.js?v=__VERSION__";

const RECENT = 6;
const KNOWN = 60; // conversations whose names the tree may need
const FAILED = 4; // of each kind
const ASKED = 8; // agents whose failures are asked for one by one
const DAYS = 30;
const TREE = new Set(["worker_started", "worker_status", "worker_idle", "worker_completed", "branch_started", "branch_completed", "typing_state", "turn_ended"]);
const AGENT_STATES = { starting: "starting", running: "running", paused: "paused", stopping: "stopping", failed: "failed" };
const ADAPTERS = { starting: "connecting", connected: "connected", retrying: "trying again", stopped: "stopped", disabled: "switched off", broken: "cannot connect" };
const CANCELLABLE = new Set(["turn", "branch", "worker"]);
const RESTING = new Set(["channel", "cortex", "ingestion", "service", "agent", "daemon"]); // shown only above something

// --- figures ---------------------------------------------------------------------------------------

const hasPage = (name) => document.querySelector(`#pages [data-page="${name}"]`) !== null;
const usage = hasPage("usage") ? "usage" : null;
const FIGURES = [
  ["answering now", "conversations"], ["workers now", "workers"], ["spent today", usage], [`spent in ${DAYS} days`, usage],
  ["conversations", "conversations"], ["memories", "memory"],
];
const figures = new Map(FIGURES.map(([name, href]) => {
  const value = el("dd", {}, "…");
  const node = el("div", {}, el("dt", {}, href ? el("a", { href }, name) : name), value);
  $("figures").append(node);
  return [name, { value, node }];
}));
function figure(name, value, isLive = false) {
  const place = figures.get(name);
  place.value.textContent = value;
  place.node.className = isLive ? "live" : "";
}

// --- agents ----------------------------------------------------------------------------------------

function face(agent) {
  const seed = agent.profile?.avatar_seed ?? agent.id;
  const name = agent.profile?.display_name ?? agent.id;
  const place = svg("svg", { viewBox: "0 0 52 52", class: "face", "aria-hidden": "true" },
    svg("circle", { cx: 26, cy: 26, r: 26, fill: `hsl(${hue(seed)} 45% 42%)` }),
    svg("text", { x: 26, y: 33 }, [...name][0]?.toUpperCase() ?? "?"));
  return place;
}

class AgentCard {
  constructor(id) {
    this.id = id;
    this.body = el("div");
    this.result = el("p", { class: "result", role: "status" });
    this.pause = button("Pause", () => this.switch(), { class: "pause" });
    this.remove = button("Delete", () => this.delete(), { class: "remove" });
    const chat = el("a", { class: "pill", href: `./?${new URLSearchParams({ agent: id })}` }, "Chat");
    const talks = el("a", { class: "pill", href: `conversations?${new URLSearchParams({ agent: id })}` }, "Conversations");
    this.node = el("li", { class: "panel agent", "data-id": id }, this.body, el("div", { class: "actions" }, chat, talks, this.pause, this.remove), this.result);
    this.body.className = "agent";
  }

  show(agent) {
    this.agent = agent;
    const drawn = JSON.stringify(agent);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const state = AGENT_STATES[agent.state] ?? agent.state;
    const kind = agent.state === "running" ? "good" : ["failed", "stopping"].includes(agent.state) ? "bad" : "";
    const why = agent.reason || agent.problem;
    const live = agent.live ?? {};
    const doing = [live.turns && `${live.turns} answering`, live.branches && `${live.branches} thinking`, live.workers && `${plural(live.workers, "worker")}`].filter(Boolean).join(", ");
    const count = (n, one, many) => (n === undefined ? null : el("span", {}, el("b", {}, number(n)), ` ${n === 1 ? one : many}`));
    this.body.replaceChildren(
      el("div", { class: "top" }, face(agent),
        el("h3", {}, agent.profile?.display_name ?? agent.id),
        el("span", { class: `tag ${kind}` }, state),
        el("p", { class: "fine model" }, [agent.profile ? agent.id : null, agent.is_default ? "default agent" : null, agent.model ?? "no model"].filter(Boolean).join(" · "))),
      ...(why ? [el("p", { class: "why" }, why)] : []),
      ...(agent.profile?.status ? [el("p", { class: "fine", dir: "auto" }, agent.profile.status)] : []),
      el("p", { class: "counts" },
        count(agent.channel_count, "conversation", "conversations"), count(agent.memory_total, "memory", "memories"), count(agent.cron_job_count, "schedule", "schedules"),
        doing ? el("span", { class: "doing" }, doing) : null),
      ...(agent.activity_sparkline?.some(Boolean) ? [bars(agent.activity_sparkline, "spark", `Messages of the last ${agent.activity_sparkline.length} days`)] : []),
      el("p", { class: "fine" }, ...(agent.last_activity_at ? ["Last active ", time(agent.last_activity_at)] : ["Not spoken to yet"])),
    );
    this.pause.textContent = agent.paused ? "Go on" : "Pause";
    this.pause.hidden = !["running", "paused"].includes(agent.state);
    this.remove.hidden = agent.is_default;
  }

  switch() {
    const paused = !this.agent.paused;
    return attempt(this.result, paused ? "Pausing …" : "Going on …", async () => {
      const answer = await post("agents/pause", { agent_id: this.id, paused });
      page.refresh();
      return answer;
    }, [this.pause]);
  }

  async delete() {
    const isSure = await confirmed({ title: `Delete the agent “${this.id}”?`, text: `What it does now is ended; its files stay on the disk. Type ${this.id} to go on.`, typed: this.id });
    if (!isSure) return;
    await attempt(this.result, "Deleting …", () => send("DELETE", `agents?${new URLSearchParams({ agent_id: this.id })}`), [this.remove]);
    page.refresh();
  }
}
const drawAgents = keyed($("agents"), (id) => new AgentCard(id));

$("new-agent").onclick = () =>
  formDialog({
    title: "New agent",
    yes: "Create",
    fill: (form) =>
      form.append(
        el("p", { class: "fine" }, "It gets memory, workspace and identity of its own. Which rooms it answers in is set by bindings."),
        el("label", {}, "Name ", el("input", { name: "agent_id", required: true, maxlength: 60, autocomplete: "off", pattern: "[a-z0-9][a-z0-9_\\-]*", placeholder: "research", title: "small letters, digits, - and _" })),
      ),
    submit: async (data) => {
      await post("agents", { agent_id: data.get("agent_id").trim() });
      page.refresh();
    },
  });

// Bars of days, the newest at the right.
function bars(values, name, label) {
  const most = Math.max(...values, 1e-9);
  const step = 100 / values.length;
  const place = svg("svg", { viewBox: "0 0 100 24", class: name, preserveAspectRatio: "none", role: "img", "aria-label": label }, svg("title", {}, label));
  values.forEach((value, i) => {
    const height = value ? Math.max(1.5, (22 * value) / most) : 1;
    place.append(svg("rect", { x: i * step + step * 0.12, y: 24 - height, width: step * 0.76, height, class: value ? "some" : "none" }, svg("title", {}, number(value))));
  });
  return place;
}

async function showAgents() {
  const overview = await get("overview", { utc_offset: -new Date().getTimezoneOffset() });
  drawAgents(overview.agents);
  const sum = (name) => overview.agents.reduce((total, agent) => total + (agent[name] ?? 0), 0);
  figure("conversations", short(sum("channel_count")));
  figure("memories", short(sum("memory_total")));
  wrong("agents", overview.agents.flatMap((agent) => {
    if (agent.state === "failed") return [{ kind: "Agent", text: `${agent.id} does not run: ${agent.reason}`, at: agent.since }];
    return agent.problem ? [{ kind: "Agent", text: `${agent.id}: ${agent.problem}` }] : [];
  }));
  wrong("settings", overview.warnings.map((text) => ({ kind: "Settings", text })));
  return overview.agents.filter(({ state }) => ["running", "paused"].includes(state)).map(({ id }) => id);
}

// --- what runs -------------------------------------------------------------------------------------

let talks = new Map(); // "agent conversation" -> what is known of it; what is not known counts as private
const began = new Map(); // id -> {place, since} of what counts up

class NodeRow {
  constructor(id) {
    this.id = id;
    this.what = el("span", { class: "what" });
    this.now = el("span", { class: "now" });
    this.age = el("span");
    this.stop = button("Cancel", () => this.cancel());
    this.below = el("ul");
    this.drawBelow = keyed(this.below, (key) => new NodeRow(key));
    this.node = el("li", {}, (this.row = el("div", { class: "node" }, this.what, el("span", { class: "side" }, this.age, this.stop), this.now)), this.below);
  }

  show({ view, children }) {
    this.row.className = `node ${view.kind}`;
    this.row.dataset.id = view.id;
    const { kind, words, href } = nodeWords(view, isCovered(view), talkOf(view));
    this.what.replaceChildren(el("b", {}, kind), href ? el("a", { class: "link", href }, words) : words);
    this.now.textContent = isCovered(view) ? "" : line(view.status ?? "", 160);
    this.now.hidden = !this.now.textContent;
    this.stop.hidden = !CANCELLABLE.has(view.kind);
    this.stop.setAttribute("aria-label", `Cancel: ${kind} ${words}`);
    const isResting = RESTING.has(view.kind);
    if (isResting) began.delete(this.id);
    else began.set(this.id, { place: this.age, since: Date.now() - view.age_s * 1000 });
    this.age.textContent = isResting ? "" : span(view.age_s);
    this.drawBelow(children);
    this.below.hidden = !children.length;
  }

  async cancel() {
    this.stop.disabled = true;
    try {
      await post("cancel", { process_id: this.id });
    } catch (error) {
      failed(error);
      this.stop.disabled = false;
    }
    treeChanged();
  }
}
const drawTree = keyed($("tree"), (id) => new NodeRow(id), ({ view }) => view.id);

const talkOf = (view) => talks.get(`${view.agent_id} ${view.channel_id}`) ?? null;
const isCovered = (view) => {
  if (view.channel_id === null || !["turn", "branch", "worker"].includes(view.kind)) return false;
  const talk = talkOf(view);
  return talk === null || isPrivate(talk);
};

async function showTree() {
  const { processes } = await get("tree");
  const below = new Map();
  const known = new Set(processes.map(({ id }) => id));
  for (const view of processes) {
    const parent = known.has(view.parent_id) ? view.parent_id : null;
    below.set(parent, [...(below.get(parent) ?? []), view]);
  }
  // Only what leads to work: a thousand quiet conversations are a number.
  const build = (parent) =>
    (below.get(parent) ?? []).map((view) => ({ view, children: build(view.id) })).filter(({ view, children }) => children.length || !RESTING.has(view.kind));
  let top = build(null);
  while (top.length === 1 && top[0].view.kind === "daemon") top = top[0].children;
  began.clear();
  drawTree(top);
  const count = (kind) => processes.filter((view) => view.kind === kind).length;
  const [turns, branches, workers] = [count("turn"), count("branch"), count("worker")];
  figure("answering now", number(turns + branches), turns + branches > 0);
  figure("workers now", number(workers), workers > 0);
  $("calm").hidden = top.length > 0;
  $("resting").textContent = `${plural(count("channel"), "conversation")} open.`;
}
const treeChanged = debounced(() => showTree().catch(() => {}), 150, 1000);
setInterval(() => {
  for (const { place, since } of began.values()) place.textContent = span((Date.now() - since) / 1000);
}, 1000);

// --- conversations, platforms, cost ----------------------------------------------------------------

async function showRecent() {
  const { channels } = await get("channels", { limit: KNOWN });
  talks = new Map(channels.map((one) => [`${one.agent_id} ${one.id}`, one]));
  const manyAgents = page.status.agents.length > 1;
  const latest = channels.slice(0, RECENT);
  $("silence").hidden = latest.length > 0;
  put($("recent"), latest.map((one) =>
    el("li", {}, el("a", { href: `conversations?${new URLSearchParams({ agent: one.agent_id })}#${encodeURIComponent(one.id)}` }, channelName(one)),
      el("span", { class: "fine" }, `${NAMES[one.platform] ?? one.platform}${manyAgents ? ` · ${one.agent_id}` : ""} · `, time(one.last_activity_at)))));
}

async function showAdapters() {
  const status = await get("messaging/status");
  put($("adapters"), status.instances.map((account) => {
    const state = account.configured ? account.state : "broken";
    const kind = state === "connected" ? "good" : ["broken", "retrying"].includes(state) ? "bad" : "";
    return el("li", {}, el("span", {}, `${NAMES[account.platform] ?? account.platform}${account.name ? ` · ${account.name}` : ""}`), el("span", { class: `tag ${kind}` }, ADAPTERS[state] ?? state),
      account.detail && kind === "bad" ? el("span", { class: "detail" }, line(account.detail, 200)) : null);
  }));
  wrong("adapters", status.instances.filter((one) => one.configured && ["retrying", "broken"].includes(one.state)).map((one) => ({ kind: "Platform", text: `${NAMES[one.platform] ?? one.platform}: ${one.detail || ADAPTERS[one.state]}`, at: one.since, href: "connections" })));
}

async function showCost() {
  const spent = await get("usage", { days: DAYS });
  const today = new Date().toISOString().slice(0, 10);
  const of = (one) => (one ? money(one.cost_usd) : money(0));
  figure("spent today", of(spent.by_day.find(({ day }) => day === today)));
  figure(`spent in ${DAYS} days`, of(spent.totals));
  wrong("budgets", spent.budgets.flatMap(({ agent_id, state, spent_usd, daily_usd }) => {
    if (!["warned", "stopped"].includes(state)) return [];
    const of = daily_usd ? ` (${money(spent_usd)} of ${money(daily_usd)})` : "";
    return [{ kind: "Budget", text: `${agent_id}: the budget of today is ${state === "stopped" ? "used up" : "nearly used up"}${of}` }];
  }));
  $("cost").hidden = !spent.totals.requests;
  if (!spent.totals.requests) return;
  const days = [];
  for (let i = DAYS - 1; i >= 0; i -= 1) days.push(new Date(Date.now() - i * 86_400_000).toISOString().slice(0, 10));
  const byDay = new Map(spent.by_day.map((one) => [one.day, one]));
  const isPriced = spent.by_day.some(({ cost_usd }) => cost_usd);
  const drawn = bars(days.map((day) => (isPriced ? byDay.get(day)?.cost_usd ?? 0 : byDay.get(day)?.requests ?? 0)), "", isPriced ? `Cost of each of ${DAYS} days` : `Requests of each of ${DAYS} days`);
  $("cost-title").textContent = isPriced ? "Cost" : "Requests to models";
  drawn.id = "cost-days";
  $("cost-days").replaceWith(drawn);
  put($("models"), spent.by_model.slice(0, 5).map((one) => el("li", {}, el("span", {}, one.model), el("span", { class: "fine" }, `${plural(one.requests, "request")} · ${money(one.cost_usd)}`))));
}

// --- what failed -----------------------------------------------------------------------------------

const complaints = new Map(); // kind -> its lines
function wrong(kind, lines) {
  complaints.set(kind, lines);
  const all = ["agents", "budgets", "adapters", "settings", "schedules", "workers", "logs"].flatMap((name) => complaints.get(name) ?? []);
  $("wrong").hidden = !all.length;
  put($("wrong-list"), all.map((one) => el("li", {}, el("b", {}, one.kind), el("span", {}, one.href ? el("a", { class: "link", href: one.href }, line(one.text, 300)) : line(one.text, 300)), one.at ? time(one.at) : el("span"))));
}

async function showFailures(agents) {
  const asked = agents.slice(0, ASKED);
  const week = Date.now() - 7 * 86_400_000;
  const isRecent = (text) => new Date(text) > week;
  await Promise.all([
    Promise.all(asked.map((agent_id) => get("agents/workers", { agent_id, state: "failed", limit: FAILED }))).then((answers) => {
      const found = answers.flatMap(({ workers }) => workers).filter((worker) => isRecent(worker.completed_at ?? worker.started_at));
      wrong("workers", found.slice(0, FAILED).map((worker) => ({
        kind: "Worker", at: worker.completed_at ?? worker.started_at, href: `workers?${new URLSearchParams({ agent: worker.agent_id })}#${worker.id}`,
        text: worker.is_private ? "failed in a direct chat" : `${line(worker.task, 90)}: ${STATES[worker.state] ?? worker.state}${worker.result ? `, ${line(worker.result, 160)}` : ""}`,
      })));
    }),
    Promise.all(asked.map((agent_id) => get("agents/cron", { agent_id }))).then((answers) =>
      wrong("schedules", answers.flatMap(({ jobs }) => jobs).filter((job) => job.last_state === "failed" || (!job.enabled && job.disabled_reason?.includes("failure"))).slice(0, FAILED).map((job) => ({
        kind: "Schedule", at: job.last_executed_at, href: "schedules", text: `${job.id}: ${job.disabled_reason ?? job.last_note ?? "failed"}`,
      })))),
    get("logs", { level: "error", limit: FAILED }).then(({ lines }) => wrong("logs", lines.reverse().map((one) => ({ kind: "Log", at: one.time, href: "logs#level=error", text: one.message })))),
  ]);
}

// --- all of it -------------------------------------------------------------------------------------

async function refresh() {
  let worst = null;
  const part = async (work) => {
    try {
      return await work();
    } catch (error) {
      if (error instanceof Unauthorized) await login();
      else if (error.status === undefined || error.status >= 500) worst = error; // nobody answers, or it went wrong there
      return null;
    }
  };
  const [agents] = await Promise.all([part(showAgents), part(() => showRecent().then(showTree)), part(showAdapters), part(showCost)]);
  if (agents) await part(() => showFailures(agents));
  if (worst) throw worst;
}

const page = startPage({
  events: `${[...TREE].join(",")},adapter_state,agent_state,cron_run,config_reloaded,budget_state,inbound_message`,
  on: (name) => {
    if (name === "lagged" || TREE.has(name)) treeChanged();
    return name === "worker_completed" || !TREE.has(name);
  },
  refresh,
});
