// The Schedules page: what an agent does by itself, when it is due next, how the last runs went.
// The server is the truth: it is asked, and its event stream says when to ask again.

import { el } from "./markdown.js?v=__VERSION__";
import { get, post, send } from "./connection.js?v=__VERSION__";
import { $, attempt, button, confirmed, keyed, say, startPage } from "./ui.js?v=__VERSION__";
import { ago, when } from "./words.js?v=__VERSION__";

const SHOWN = 20; // runs
const STATES = { running: "running", done: "done", silent: "done, nothing to say", failed: "failed", interrupted: "cut off", skipped: "left out", missed: "missed" };

const ofAgent = (fields) => ({ ...fields, agent_id: page.agent });

class Job {
  constructor(id) {
    this.id = id;
    this.title = el("h3", {}, id);
    this.state = el("span", { class: "state" });
    this.run = button("Run now", () => this.act("Starting …", () => post("agents/cron/trigger", ofAgent({ cron_id: id }))), { class: "run" });
    this.toggle = button("", () => this.act("…", () => send("PUT", "agents/cron/toggle", ofAgent({ cron_id: id, enabled: !this.job.enabled }))), { class: "toggle" });
    this.remove = button("Delete", () => this.delete(), { class: "remove" });
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
      say(this.result, error.message, false);
    }
  }

  async delete() {
    if (!(await confirmed({ title: `Delete the schedule “${this.id}”?`, text: "Its history goes with it." }))) return;
    await this.act("Deleting …", () => send("DELETE", `agents/cron?${new URLSearchParams(ofAgent({ cron_id: this.id }))}`));
  }

  async act(words, work) {
    await attempt(this.result, words, async () => void (await work()));
    await page.refresh();
  }
}

// --- drawing and asking ------------------------------------------------------------------------------

const drawJobs = keyed($("jobs"), (id) => new Job(id));

async function refresh(agent) {
  const answer = await get("agents/cron", { agent_id: agent });
  if (agent !== page.agent) return;
  drawJobs(answer.jobs);
  $("none").hidden = answer.jobs.length > 0;
  $("zone").textContent = answer.timezone;
}

const form = $("add");
form.rhythm.onchange = () => {
  $("expression").hidden = form.rhythm.value !== "cron";
  form.cron_expr.required = form.rhythm.value === "cron";
};
form.onsubmit = async (event) => {
  event.preventDefault();
  const expression = form.rhythm.value === "cron" ? form.cron_expr.value.trim() : form.rhythm.value;
  const id = form.elements.id.value.trim();
  await attempt($("add-result"), "Adding …", async () => {
    if (drawJobs.rows.has(id)) throw new Error(`There is a schedule “${id}” already.`);
    await post("agents/cron", ofAgent({ id, prompt: form.prompt.value.trim(), cron_expr: expression, delivery_target: form.delivery_target.value.trim() || "home" }));
    form.reset();
    form.rhythm.onchange();
    return { message: `“${id}” is scheduled.` };
  });
  await page.refresh();
};

const page = startPage({ events: "cron_run,config_reloaded", opened: () => drawJobs.rows.clear(), refresh });
