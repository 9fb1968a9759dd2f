// The panel: what is being thought and worked on right now, and what has finished.

import { el } from "./markdown.js?v=__VERSION__";
import { get, post } from "./connection.js?v=__VERSION__";

const KINDS = { turn: "Answering", branch: "Thinking", worker: "Working", compaction: "Tidying the history" };
const ENDS = {
  done: "Done", partial: "Partly done", failed: "Failed", cancelled: "Cancelled", timed_out: "Out of time",
  blocked: "Blocked", interrupted: "Interrupted",
};
const TOOLS_SHOWN = 4;
const SAID = new Set(["reply", "react", "skip"]); // what the chat itself shows
const FINISHED_KEPT = 20;
const TURN = "turn"; // at most one at a time, so it needs no id of its own

const $ = (id) => document.getElementById(id);

export class Work {
  constructor(channelOf) {
    this.channelOf = channelOf; // gives {agent_id, channel_id} of the chat that is shown
    this.running = new Map();
    this.finished = new Map();
    setInterval(() => this.tick(), 1000);
  }

  clear() {
    this.running.clear();
    this.finished.clear();
    $("running").replaceChildren();
    $("finished").replaceChildren();
    this.count();
  }

  // A hello: the whole state, as the server knows it.
  restore(processes, completed) {
    for (const item of [...this.running.values()]) item.card.remove();
    this.running.clear();
    for (const p of processes) {
      if (!(p.kind in KINDS)) continue;
      const isTurn = p.kind === "turn";
      const id = isTurn ? TURN : p.id;
      this.begin(id, p.kind, isTurn ? "" : p.description, p.age_s);
      const tools = p.tool_calls ? `${p.tool_calls} tool calls so far` : "";
      this.status(id, p.state === "waiting" ? "waiting for input" : p.status || tools);
    }
    for (const item of completed) {
      if (!this.finished.has(item.id)) {
        const state = item.state ?? "done";
        this.keep(item.id, (item.item_type ?? "worker").toLowerCase(), item.description, state, item.result_summary);
      }
    }
    this.count();
  }

  on(name, data) {
    switch (name) {
      case "typing_state":
        if (data.is_typing) this.begin(TURN, "turn", "");
        else this.drop(TURN);
        break;
      case "turn_ended":
        this.drop(TURN);
        break;
      case "worker_started":
        this.begin(data.worker_id, "worker", data.task);
        break;
      case "worker_status":
        this.status(data.worker_id, data.status);
        break;
      case "worker_idle":
        this.status(data.worker_id, "waiting for input");
        break;
      case "worker_completed":
        this.end(data.worker_id, "worker", data.state ?? "done", data.result);
        break;
      case "branch_started":
        this.begin(data.branch_id, "branch", data.description);
        break;
      case "branch_completed":
        this.end(data.branch_id, "branch", data.state ?? "done", data.conclusion);
        break;
      case "tool_started":
        this.tool(data, null);
        break;
      case "tool_completed":
        this.tool(data, data.is_error ? "bad" : "ok");
        break;
      case "tool_output":
        this.status(data.process_id, data.line);
        break;
    }
    this.count();
  }

  begin(id, kind, title, age = 0) {
    if (this.running.has(id) || this.finished.has(id)) return;
    const item = { id, kind, title, since: Date.now() - age * 1000, tools: new Map() };
    item.age = el("time");
    item.statusLine = el("p", { class: "status", hidden: true });
    item.toolList = el("ul", { class: "tools", hidden: true });
    item.button = el(
      "button",
      { class: "cancel", type: "button", "aria-label": `Cancel: ${title || KINDS[kind]}`, onclick: () => this.cancel(item) },
      kind === "turn" ? "Stop" : "Cancel",
    );
    item.card = el(
      "li",
      { class: "card live", "data-id": id },
      el("div", { class: "card-head" }, el("span", { class: "kind" }, KINDS[kind]), item.age, item.button),
      title ? el("p", { class: "title", title }, title) : null,
      item.statusLine,
      item.toolList,
      kind === "worker" ? this.look(id) : null,
    );
    if (kind === "compaction") item.button.remove();
    this.running.set(id, item);
    $("running").append(item.card);
    this.tick();
  }

  // To the page that shows a worker step by step.
  look(id) {
    const { agent_id } = this.channelOf();
    const query = agent_id ? `?${new URLSearchParams({ agent: agent_id })}` : "";
    return el("a", { class: "look to-page", href: `workers${query}#${id}` }, "Step by step");
  }

  find(id) {
    return this.running.get(id) ?? null;
  }

  status(id, text) {
    const item = this.find(id);
    if (!item || !text) return;
    item.statusLine.textContent = text;
    item.statusLine.hidden = false;
  }

  tool({ process_type, process_id, tool_name, call_id }, state) {
    const item = this.find(process_id) ?? (["channel", "turn"].includes(process_type) ? this.find(TURN) : null);
    if (!item || SAID.has(tool_name)) return;
    const key = call_id ?? tool_name;
    let line = item.tools.get(key);
    if (!line) {
      line = el("li", {}, tool_name);
      item.tools.set(key, line);
      item.toolList.append(line);
      item.toolList.hidden = false;
      while (item.toolList.children.length > TOOLS_SHOWN) item.toolList.firstChild.remove();
    }
    if (state) line.className = state;
  }

  drop(id) {
    this.running.get(id)?.card.remove();
    this.running.delete(id);
  }

  end(id, kind, state, text) {
    const item = this.running.get(id);
    this.drop(id);
    this.keep(id, kind, item?.title ?? "", state, text);
  }

  keep(id, kind, title, state, text) {
    if (this.finished.has(id)) return;
    const card = el(
      "li",
      { class: `card ${state}`, "data-id": id },
      el("div", { class: "card-head" }, el("span", { class: "kind" }, `${kind === "branch" ? "Thought" : "Task"}: ${(ENDS[state] ?? state).toLowerCase()}`)),
      title ? el("p", { class: "title", title }, title) : null,
      text ? el("details", {}, el("summary", {}, "Result"), el("div", { class: "result", tabindex: "0" }, text)) : null,
      kind === "worker" ? this.look(id) : null,
    );
    this.finished.set(id, card);
    $("finished").prepend(card);
    if (this.finished.size > FINISHED_KEPT) {
      const [oldest, oldCard] = this.finished.entries().next().value;
      oldCard.remove();
      this.finished.delete(oldest);
    }
    this.count();
  }

  async cancel(item) {
    item.button.disabled = true;
    item.button.textContent = "Stopping";
    try {
      let id = item.id;
      if (id === TURN) {
        const { agent_id, channel_id } = this.channelOf();
        const { processes } = await get("tree");
        id = processes.find((p) => p.kind === "turn" && p.agent_id === agent_id && p.channel_id === channel_id)?.id;
        if (!id) return this.drop(TURN);
      }
      await post("cancel", { process_id: id });
    } catch (error) {
      if (error.status === 404) this.drop(item.id);
      item.button.disabled = false;
      item.button.textContent = "Cancel";
      item.button.title = error.message;
    }
  }

  tick() {
    for (const item of this.running.values()) {
      const s = Math.max(0, Math.round((Date.now() - item.since) / 1000));
      const text = s < 60 ? `${s} s` : s < 3600 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
      if (item.age.textContent !== text) item.age.textContent = text;
    }
  }

  count() {
    const n = this.running.size;
    document.body.classList.toggle("busy", n > 0);
    $("calm").hidden = n > 0;
    $("work-label").textContent = n ? `${n} running` : "Idle";
    $("finished-box").hidden = !this.finished.size;
    $("finished-count").textContent = this.finished.size || "";
  }
}
