// The Schedules page: what an agent does by itself, when it is due next, how the last runs went.
// The server is the truth: it is asked, and its event stream says when to ask again.

import { el } from "./markdown.js?v=__VERSION__";
import { Unauthorized, follow, get, post, send } from "./connection.js?v=__VERSION__";
import { login, takeToken } from "./login.js?v=__VERSION__";
import { ago, when } from "./memory_words.js?v=__VERSION__";

const $ = (id) => document.getElementById(id);
const QUIET_MS = 400; // after an event: wait for more before asking
const REFRESH_MS = 15_000; // what no event tells: jobs made elsewhere
const SHOWN = 20; // runs
const STATES = { running: "running", done: "done", silent: "done, nothing to say", failed: "failed", interrupted: "cut off", skipped: "left out", missed: "missed" };
let agent = null; // null: the default one

const ofAgent = (fields) => (agent === null ? fields : { ...fields, agent_id: agent });

class Job {
  constructor(id) {
    this.id = id;
    const button = (name, label, act) => el("button", { type: "button", class: `pill ${name}`, onclick: act }, label);
    this.title = el("h3", {}, id);
    this.state = el("span", { class: "state" });
    this.run = button("run", "Run now", () => this.act("Starting …", () => post("agents/cron/trigger", ofAgent({ cron_id: id }))));
    this.toggle = button("toggle", "", () => this.act("…", () => send("PUT", "agents/cron/toggle", ofAgent({ cron_id: id, enabled: !this.job.enabled }))));
    this.remove = button("remove", "Delete", () => this.delete());
    this.when = el("p", { class: "when" });
    this.prompt = el("p", { class: "prompt" });
    this.last = el("p", { class: "last" });
    this.result = el("p", { class: "result", role: "status" });
    this.runs = el("ol");
    this.history = el("details", { ontoggle: () => this.load() }, el("summary", {}, "History"), this.runs);
    this.node = el("li", { class: "job" }, el("div", { class: "top" }, this.title, this.state, el("div", { class: "buttons" }, this.run, this.toggle, this.remove)), this.when, this.prompt, this.last, this.result, this.history);
    this.node.dataset.id = id;
  }

  show(job) {
    const isNew = this.job && this.job.last_state !== job.last_state;
    this.job = job;
    this.node.dataset.state = job.enabled ? job.last_state ?? "new" : "off";
    this.state.textContent = job.enabled ? "on" : `off: ${job.disabled_reason ?? "switched off"}`;
    this.run.disabled = !job.enabled || job.last_state === "running";
    this.toggle.textContent = job.enabled ? "Switch off" : "Switch on";
    this.remove.hidden = job.source === "config";
    const words = [job.rhythm];
    if (job.timezone) words.push(job.timezone);
    if (job.next_due_at) words.push(`next ${when(job.next_due_at)}`);
    if (job.source === "config") words.push("from config.toml");
    this.when.textContent = words.join(" · ");
    this.prompt.textContent = job.prompt;
    const counts = `${job.success_count} well, ${job.failure_count} failed`;
    this.last.textContent = job.last_state ? `Last run: ${STATES[job.last_state] ?? job.last_state}${job.last_executed_at ? `, ${ago(job.last_executed_at)}` : ""} (${counts})${job.last_note ? `: ${job.last_note}` : ""}` : "Never run yet";
    if (isNew || this.history.open) this.load();
  }

  async load() {
    if (!this.history.open) return;
    try {
      const { executions } = await get("agents/cron/executions", ofAgent({ cron_id: this.id, limit: SHOWN }));
      this.runs.replaceChildren(
        ...executions.map((run) => {
          const words = [run.summary, run.note, run.delivery_error && `not delivered: ${run.delivery_error}`].filter(Boolean).join(" · ");
          return el("li", {}, el("time", { datetime: run.due_at }, when(run.due_at)), el("b", {}, STATES[run.state] ?? run.state), el("span", {}, words));
        }),
      );
      if (!executions.length) this.runs.replaceChildren(el("li", {}, "no runs yet"));
    } catch (error) {
      this.say(error.message, false);
    }
  }

  async delete() {
    if (!confirm(`Delete the schedule “${this.id}” with its history?`)) return;
    await this.act("Deleting …", () => send("DELETE", `agents/cron?${new URLSearchParams(ofAgent({ cron_id: this.id }))}`));
  }

  say(text, isGood) {
    this.result.className = `result ${isGood ? "good" : "bad"}`;
    this.result.textContent = text;
  }

  async act(words, work) {
    this.result.className = "result";
    this.result.textContent = words;
    try {
      await work();
      this.say("", true);
    } catch (error) {
      if (error instanceof Unauthorized) await login();
      this.say(error instanceof Unauthorized ? "Please try once more." : error.message, false);
    }
    await refresh();
  }
}

// --- drawing ---------------------------------------------------------------------------------------

const jobs = new Map();

function draw(answer) {
  const shown = answer.jobs.map((job) => {
    if (!jobs.has(job.id)) jobs.set(job.id, new Job(job.id));
    const one = jobs.get(job.id);
    one.show(job);
    return one.node;
  });
  for (const id of jobs.keys()) if (!answer.jobs.some((job) => job.id === id)) jobs.delete(id);
  const list = $("jobs");
  if (shown.length !== list.children.length || shown.some((node, i) => list.children[i] !== node)) list.replaceChildren(...shown);
  $("none").hidden = shown.length > 0;
  $("zone").textContent = answer.timezone;
}

// --- asking ----------------------------------------------------------------------------------------

let timer = null;
function changed() {
  timer ??= setTimeout(() => {
    timer = null;
    if (!document.hidden) refresh();
  }, QUIET_MS);
}

async function refresh() {
  try {
    draw(await get("agents/cron", ofAgent({})));
    $("stale").hidden = true;
  } catch (error) {
    if (error instanceof Unauthorized) {
      await login();
      changed();
    } else $("stale").hidden = false;
  }
}

async function listAgents() {
  try {
    const { agents } = await get("status");
    if (agents.length < 2) return;
    $("agent").replaceChildren(...agents.map(({ id }) => el("option", { value: id }, id)));
    $("agent-label").hidden = false;
    $("agent").onchange = () => {
      agent = $("agent").value;
      jobs.clear();
      refresh();
    };
  } catch {
    // the default agent is shown; the next look at the page asks again
  }
}

const form = $("add");
form.rhythm.onchange = () => {
  $("expression").hidden = form.rhythm.value !== "cron";
  form.cron_expr.required = form.rhythm.value === "cron";
};
form.onsubmit = async (event) => {
  event.preventDefault();
  const result = $("add-result");
  const expression = form.rhythm.value === "cron" ? form.cron_expr.value.trim() : form.rhythm.value;
  const id = form.elements.id.value.trim();
  try {
    if (jobs.has(id)) throw new Error(`There is a schedule “${id}” already.`);
    await post("agents/cron", ofAgent({ id, prompt: form.prompt.value.trim(), cron_expr: expression, delivery_target: form.delivery_target.value.trim() || "home" }));
    form.reset();
    form.rhythm.onchange();
    result.className = "result good";
    result.textContent = `“${id}” is scheduled.`;
  } catch (error) {
    if (error instanceof Unauthorized) await login();
    result.className = "result bad";
    result.textContent = error instanceof Unauthorized ? "Please try once more." : error.message;
  }
  await refresh();
};

function setConnection(name) {
  const place = $("connection");
  place.dataset.state = name;
  place.lastChild.textContent = { online: "connected", connecting: "connecting", offline: "offline, reconnecting" }[name];
}

takeToken();
refresh();
listAgents();
setInterval(changed, REFRESH_MS);
document.addEventListener("visibilitychange", changed);
follow({
  path: "events",
  params: { types: "cron_run,config_reloaded" },
  on: changed,
  state: (name) => {
    if (name === "online") changed();
    setConnection(name);
  },
  unauthorized: login,
});
