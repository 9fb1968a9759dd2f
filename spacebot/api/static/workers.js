// The Workers page: who works on what, and one worker step by step while it works.
// The server is the truth: it is asked, and its event stream says when to ask again.

import { el } from "./markdown.js?v=__VERSION__";
import { follow, get, post } from "./connection.js?v=__VERSION__";
import { login } from "./login.js?v=__VERSION__";
import { $, Cover, attempt, button, failed, keyed, startPage } from "./ui.js?v=__VERSION__";
import { ago, line, number, span, when } from "./words.js?v=__VERSION__";

const AGAIN_MS = 800; // after a step: what it said besides
const OUTPUT_LINES = 300; // of a command that runs
const COVERED = "Private: begun in a direct chat";
const STATES = {
  running: "at work", waiting: "waits for input", done: "done", partial: "partly done", failed: "failed", blocked: "blocked",
  cancelled: "cancelled", timed_out: "out of time", interrupted: "cut off",
};

const ofAgent = (fields) => ({ ...fields, agent_id: page.agent });
const linkTo = (id) => `workers${location.search}#${id}`;
const isCovered = (worker) => cover.hides(worker);

function costOf({ cost, tool_calls }) {
  const cached = cost.cache_read_tokens + cost.cache_write_tokens;
  const of = (n, what) => `${number(n)} ${what}${n === 1 ? "" : "s"}`;
  const words = [cost.model ?? "no model asked yet", of(cost.model_calls, "model call"), of(tool_calls, "tool call")];
  if (cost.model_calls) words.push(`tokens: ${number(cost.input_tokens)} in, ${number(cached)} cached, ${number(cost.output_tokens)} out`);
  return words.join(" · ");
}

const cancel = (id) => post(`agents/workers/${encodeURIComponent(id)}/cancel`, ofAgent({}));

let one = null; // the worker that is looked at

// --- the list --------------------------------------------------------------------------------------

class Row {
  constructor(id) {
    this.state = el("span", { class: "badge state" });
    this.kind = el("span", { class: "badge", hidden: true });
    this.time = el("time");
    this.link = el("a", { href: linkTo(id) });
    this.now = el("p", { class: "now" });
    this.cost = el("p", { class: "cost" });
    this.result = el("p", { class: "result", role: "status" });
    this.stop = button("Cancel", () => attempt(this.result, "Stopping …", () => cancel(id)), { class: "stop" });
    this.node = el("li", { class: "worker" }, el("div", { class: "top" }, this.state, this.kind, this.time, el("div", { class: "buttons" }, this.stop)), el("h3", {}, this.link), this.now, this.cost, this.result);
    this.node.dataset.id = id;
  }

  show(worker) {
    this.node.dataset.state = worker.state;
    this.state.textContent = STATES[worker.state] ?? worker.state;
    const kind = [worker.worker_type === "builtin" ? null : worker.worker_type, worker.task_type].filter(Boolean).join(", ");
    this.kind.textContent = kind;
    this.kind.hidden = !kind;
    this.time.dateTime = worker.started_at;
    this.time.textContent = worker.is_live ? span(worker.duration_s) : ago(worker.started_at);
    this.link.textContent = isCovered(worker) ? COVERED : line(worker.task, 160);
    this.link.className = isCovered(worker) ? "covered" : "";
    const words = worker.is_live ? worker.status : worker.result;
    this.now.textContent = isCovered(worker) ? "" : line(words ?? "", 200);
    this.cost.textContent = costOf(worker);
    this.stop.hidden = !worker.is_live;
  }
}

const drawRows = keyed($("list"), (id) => new Row(id));
let shown = []; // workers, as the server last told them
let earlier = []; // pages that were asked for
let before = null; // what the next page begins after

function draw() {
  const workers = [...shown, ...earlier.filter((one) => !shown.some(({ id }) => id === one.id))];
  drawRows(workers);
  $("none").hidden = workers.length > 0;
  $("more").hidden = before === null;
  cover.offer(workers.some((worker) => worker.is_private) || one?.worker?.is_private);
}

async function list(after) {
  const state = $("state").value;
  return get("agents/workers", ofAgent({ ...(state ? { state } : {}), ...(after ? { before: after } : {}) }));
}

async function refresh(agent) {
  const answer = await list();
  if (agent !== page.agent) return;
  shown = answer.workers;
  if (!earlier.length) before = answer.before;
  draw();
}

$("more").onclick = async () => {
  try {
    const answer = await list(before);
    earlier = [...earlier, ...answer.workers];
    before = answer.before;
    draw();
  } catch (error) {
    failed(error);
  }
};
const cover = new Cover($("uncover"), () => {
  draw();
  one?.draw();
});

function startAnew() {
  drawRows.rows.clear();
  shown = [];
  earlier = [];
}
$("state").onchange = () => {
  startAnew();
  page.refresh();
};

// --- one worker ------------------------------------------------------------------------------------

class Call {
  constructor(name, text) {
    this.words = el("span", {}, line(text, 120));
    this.input = el("pre", { tabindex: "0" }, text);
    this.output = el("pre", { class: "output", tabindex: "0", hidden: true });
    this.details = el("details", {}, el("summary", {}, el("b", {}, name), this.words), this.input, this.output);
    this.node = el("li", { class: "call busy" }, this.details);
    this.lines = [];
  }

  // What it wrote before somebody came to look.
  start(lines) {
    this.lines = [];
    lines.forEach((text) => this.add(text));
  }

  add(text) {
    this.lines.push(text.replace(/\r?\n$/, ""));
    if (this.lines.length > OUTPUT_LINES) this.lines.shift();
    this.details.open = true;
    this.write(this.lines.join("\n"));
  }

  end(text, isBad) {
    if (!this.isOver) this.details.open = false;
    this.isOver = true;
    this.node.className = isBad ? "call bad" : "call";
    this.write(text);
  }

  write(text) {
    const isAtEnd = this.output.scrollHeight - this.output.scrollTop - this.output.clientHeight < 40;
    this.output.textContent = text;
    this.output.hidden = !text;
    if (isAtEnd) this.output.scrollTop = this.output.scrollHeight;
  }
}

class One {
  constructor(id) {
    this.id = id;
    this.calls = new Map(); // by the id of the call and how many had it before: some models use ids anew
    this.latest = new Map(); // by the id alone
    this.steps = [];
    this.worker = null;
    this.stream = follow({
      path: `agents/workers/${encodeURIComponent(id)}/events`,
      params: ofAgent({}),
      on: (name, data) => this.on(name, data),
      state: (name) => this.error && name === "offline" && this.close(),
      unauthorized: login,
    });
    $("one").replaceChildren(el("p", { class: "fine" }, "Looking …"));
    get(`agents/workers/${encodeURIComponent(id)}`, ofAgent({})).catch((error) => {
      if (error.status !== 404) return;
      this.close();
      $("one").replaceChildren(el("p", {}, el("a", { class: "back", href: linkTo("") }, "← All workers")), el("p", { class: "result bad" }, error.message));
    });
  }

  close() {
    this.stream.close();
    clearTimeout(this.timer);
  }

  on(name, data) {
    if (name === "hello") {
      this.take(data);
      this.running()?.start(data.output);
    } else if (name === "worker_status") {
      this.worker.status = data.status;
      this.worker.state = data.state;
      this.facts();
      this.timer ??= setTimeout(() => this.refresh(), AGAIN_MS);
    } else if (name === "tool_started") {
      this.call(data.call_id, data.tool_name, data.arguments);
    } else if (name === "tool_output") {
      this.running()?.add(data.line);
    } else if (name === "tool_completed") {
      this.latest.get(data.call_id)?.end(data.result, data.is_error);
      this.timer ??= setTimeout(() => this.refresh(), AGAIN_MS); // what it said besides
    }
  }

  running() {
    return [...this.calls.values()].findLast((call) => !call.isOver);
  }

  async refresh() {
    this.timer = null;
    try {
      this.take(await get(`agents/workers/${encodeURIComponent(this.id)}`, ofAgent({})));
    } catch {
      // the stream brings the state anew when the program answers again
    }
  }

  take({ worker, steps, left_out }) {
    this.leftOut = left_out;
    this.worker = worker;
    this.steps = steps;
    if (!worker.is_live) this.close();
    this.draw();
  }

  call(id, name, text) {
    const before = this.latest.get(id);
    if (!this.list || (before && !before.isOver)) return;
    let count = 0;
    while (this.calls.has(`${id} ${count}`)) count += 1;
    this.list.append(this.made(id, count, name, text).node);
  }

  made(id, count, name, text) {
    const key = `${id} ${count}`;
    if (!this.calls.has(key)) this.calls.set(key, new Call(name, text));
    this.latest.set(id, this.calls.get(key));
    return this.calls.get(key);
  }

  // Everything; the cards of calls stay, with what they show.
  draw() {
    const worker = this.worker;
    if (!worker) return;
    document.title = `${isCovered(worker) ? "Worker" : line(worker.task, 40)} · Spacebot`;
    if (!this.list) this.build();
    const hide = isCovered(worker);
    this.title.textContent = hide ? COVERED : line(worker.task, 200);
    this.body.hidden = hide;
    this.show.hidden = !hide;
    this.facts();
    if (hide) return;
    this.task.textContent = worker.task;
    this.outcome.textContent = worker.result ?? "";
    this.outcomeBox.hidden = !worker.result;
    this.form.hidden = !worker.is_live;
    this.gone.hidden = worker.has_transcript || this.steps.length > 0;
    const nodes = this.leftOut ? [el("li", { class: "fine" }, `${number(this.leftOut)} earlier parts are left out.`)] : [];
    const counts = new Map();
    const isTold = this.steps[0]?.type === "told" && this.steps[0].text === worker.task;
    for (const step of isTold ? this.steps.slice(1) : this.steps) {
      if (step.type === "call") {
        const count = counts.get(step.call_id) ?? 0;
        counts.set(step.call_id, count + 1);
        nodes.push(this.made(step.call_id, count, step.name, step.text).node);
      } else if (step.type === "result") this.latest.get(step.call_id)?.end(step.text, step.is_error);
      else nodes.push(el("li", {}, el("div", { class: step.type, tabindex: "0" }, step.text)));
    }
    if (!worker.is_live) for (const call of this.calls.values()) if (!call.isOver) call.end("", false);
    this.list.replaceChildren(...nodes);
  }

  build() {
    this.title = el("h2", { id: "one-title", tabindex: "-1" });
    this.stop = el("button", { type: "button", class: "pill stop", onclick: () => attempt(this.result, "Stopping …", () => cancel(this.id)) }, "Cancel");
    this.show = el("button", { type: "button", class: "pill", hidden: true, onclick: () => $("uncover").click() }, "Show private");
    this.result = el("p", { class: "result", role: "status" });
    this.list = el("ol", { id: "steps" });
    this.table = el("dl", { class: "facts" });
    this.task = el("p", { class: "task", tabindex: "0" });
    this.outcome = el("p", { class: "outcome", tabindex: "0" });
    this.outcomeBox = el("div", {}, el("h3", {}, "What it came to"), this.outcome);
    this.gone = el("p", { class: "fine", hidden: true }, "Its transcript is not kept any more.");
    const words = el("input", { name: "message", required: true, maxlength: 50000, autocomplete: "off", "aria-label": "Message to the worker", placeholder: "Tell it something" });
    this.form = el("form", { id: "tell" }, words, el("button", { class: "pill" }, "Send"));
    this.form.onsubmit = (event) => {
      event.preventDefault();
      attempt(this.result, "Sending …", async () => {
        const answer = await post(`agents/workers/${encodeURIComponent(this.id)}/message`, ofAgent({ message: words.value }));
        words.value = "";
        return { message: `Sent: ${answer.message}.` };
      });
    };
    this.body = el("div", { class: "body" }, el("h3", {}, "Task"), this.task, this.outcomeBox, el("h3", {}, "Step by step"), this.gone, this.list, this.form);
    $("one").replaceChildren(
      el("p", { class: "row" }, el("a", { class: "back", href: linkTo("") }, "← All workers"), el("span", {}, this.show, " ", this.stop)),
      this.title, this.table, this.result, this.body,
    );
    this.title.focus({ preventScroll: true });
  }

  facts() {
    const worker = this.worker;
    if (!this.table) return;
    const kind = worker.worker_type === "builtin" ? "" : ` by ${worker.worker_type}${worker.directory ? ` in ${worker.directory}` : ""}`;
    const facts = {
      State: `${STATES[worker.state] ?? worker.state}${kind}${worker.is_live && worker.status && !isCovered(worker) ? `: ${worker.status}` : ""}`,
      Began: `${when(worker.started_at)}, ${span(worker.duration_s)} long`,
      For: `${worker.channel_name ?? worker.channel_id ?? "nobody"}${worker.is_private ? " (a direct chat)" : ""}`,
      Type: worker.task_type,
      Cost: costOf(worker),
    };
    this.table.replaceChildren(...Object.entries(facts).filter(([, text]) => text).flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]));
    this.stop.hidden = !worker.is_live;
  }
}

function go() {
  const id = decodeURIComponent(location.hash.slice(1));
  one?.close();
  one = id && id !== "main" ? new One(id) : null;
  $("one").hidden = one === null;
  $("all").hidden = one !== null;
  if (one === null) {
    document.title = "Workers · Spacebot";
    page.changed();
  }
}
addEventListener("hashchange", go);

const page = startPage({
  events: "worker_started,worker_status,worker_idle,worker_completed",
  opened: () => {
    startAnew();
    go();
  },
  refresh,
});
