// The console: threads, questions and answers. An answer belongs to the server: whoever looks away finds it later.

import { copyText, el, renderMarkdown } from "./markdown.js?v=__VERSION__";
import { Unauthorized, eventsOf, get, post, request, send, store } from "./connection.js?v=__VERSION__";
import { line, time } from "./words.js?v=__VERSION__";

const $ = (id) => document.getElementById(id);
const LIMIT = 200; // messages of a thread
const POLL_MS = 1200; // while a question is answered that somebody else asked, or we before a reload
const TITLE = 60; // characters
const CONFLICT = 409;
const [STOPS, STOP_MS] = [10, 200]; // how often, and how long, the end of an answer is waited for
const NEW = "new";
const IDEAS = ["What did you learn this week?", "Which memories contradict each other?", "What is everybody working on?"];
const ENDS = { failed: "No answer", cancelled: "Stopped", timed_out: "No answer in time", killed: "Ended" };
const ENDED = new RegExp(`^\\((${Object.keys(ENDS).join("|")}): ([^]*)\\)$`);

export class Console {
  // `agent()` names the agent; `unauthorized()` asks for the token; `closeDrawer()` shows the thread on narrow screens.
  constructor({ agent, unauthorized, closeDrawer }) {
    this.agent = agent;
    this.unauthorized = unauthorized;
    this.closeDrawer = closeDrawer;
    this.threads = [];
    this.channels = new Map(); // id -> name
    this.threadId = null;
    this.answering = null; // the thread whose question the server is answering
    this.live = null; // the answer that we are reading
    this.shown = new Map(); // message id -> element
    this.last = null; // the newest message of the thread
    this.isOpen = false;
    this.timer = null;
    this.listen();
  }

  // Shows the thread that was shown last, or the latest.
  async open() {
    this.live?.abort();
    this.live = null;
    this.isOpen = false;
    this.answering = null;
    const [agent, last] = [this.agent(), store.get(this.key())];
    this.reset(null);
    await Promise.all([this.loadThreads(), this.loadChannels()]);
    if (agent !== this.agent()) return;
    const known = last === NEW || this.threads.some((thread) => thread.id === last);
    this.reset(known ? (last === NEW ? null : last) : (this.threads[0]?.id ?? null));
    this.keep();
    this.listThreads();
    this.isOpen = true;
    await this.refresh();
    this.toBottom();
  }

  async show(threadId) {
    this.closeDrawer();
    this.reset(threadId);
    this.keep();
    this.listThreads();
    await this.refresh().catch((error) => this.tell(error.message));
    this.toBottom();
    $("text").focus({ preventScroll: true });
  }

  // What happened while nobody looked.
  catchUp() {
    if (this.isOpen && !this.live) this.refresh().catch(() => {});
  }

  key() {
    return `spacebot.cortex.${this.agent()}`;
  }

  // A reload shows the same thread.
  keep() {
    store.set(this.key(), this.threadId ?? NEW);
  }

  reset(threadId) {
    this.threadId = threadId;
    this.last = null;
    this.shown.clear();
    $("log").replaceChildren();
    $("log").setAttribute("aria-busy", "true"); // a screen reader need not read the past aloud
    $("cut").hidden = $("welcome").hidden = true;
    this.tell("");
    this.drawTail();
  }

  // --- threads

  async loadThreads() {
    const agent = this.agent();
    const { threads } = await get("cortex-chat/threads", { agent_id: agent });
    if (agent !== this.agent()) return;
    this.threads = threads;
    this.listThreads();
  }

  listThreads() {
    const drawn = JSON.stringify([this.threads, this.threadId, this.answering]);
    if (this.drawn === drawn) return; // with its focus
    this.drawn = drawn;
    $("thread-list").replaceChildren(
      ...this.threads.map((thread) =>
        el(
          "li",
          { "aria-current": thread.id === this.threadId ? "true" : null },
          el(
            "button",
            { class: "name", type: "button", title: thread.title, onclick: () => this.show(thread.id) },
            el("span", { class: "title", dir: "auto" }, thread.title),
            el("span", { class: "fine" }, thread.id === this.answering ? "answering …" : time(thread.last_at)),
          ),
          el("button", { class: "forget", type: "button", "aria-label": `Delete ${line(thread.title, TITLE)}`, title: "Delete", onclick: () => this.confirmDelete(thread) }, "×"),
        ),
      ),
    );
  }

  confirmDelete(thread) {
    $("deleting-name").textContent = line(thread.title, TITLE);
    $("deleting-error").textContent = "";
    $("deleting-no").onclick = () => $("deleting").close();
    $("deleting-yes").onclick = async () => {
      try {
        await this.remove(thread.id);
        $("deleting").close();
        await this.loadThreads();
        if (thread.id === this.threadId) await this.show(this.threads[0]?.id ?? null);
      } catch (error) {
        $("deleting-error").textContent = error.message;
      }
    };
    $("deleting").showModal();
    $("deleting-no").focus();
  }

  // An answer that is being made is stopped first, or it would come into a thread that is gone.
  async remove(threadId) {
    for (let n = 0; ; n += 1) {
      try {
        return await request(`api/cortex-chat/threads?${new URLSearchParams({ agent_id: this.agent(), thread_id: threadId })}`, { method: "DELETE" });
      } catch (error) {
        if (error.status !== CONFLICT || n === STOPS) throw error;
        await post("cortex-chat/cancel", { agent_id: this.agent() });
        await new Promise((resolve) => setTimeout(resolve, STOP_MS));
      }
    }
  }

  async loadChannels() {
    const agent = this.agent();
    const { channels } = await get("channels");
    if (agent !== this.agent()) return;
    const own = channels.filter((channel) => channel.agent_id === agent);
    this.channels = new Map(own.map((channel) => [channel.id, channel.display_name || channel.id]));
    const chosen = $("channel").value;
    $("channel").replaceChildren(
      el("option", { value: "" }, "no conversation"),
      ...own.map((channel) => el("option", { value: channel.id, title: channel.id, selected: channel.id === chosen }, line(`${channel.display_name || channel.id}${channel.is_direct ? " (direct)" : ""}`, TITLE))),
    );
  }

  // --- messages

  // Brings the thread up to date, and learns whether a question is being answered; `limit` is less when that is all.
  async refresh(limit = LIMIT) {
    clearTimeout(this.timer);
    const [agent, thread] = [this.agent(), this.threadId];
    const page = await get("cortex-chat/messages", { agent_id: agent, ...(thread ? { thread_id: thread, limit } : { limit: 1 }) });
    if (agent !== this.agent() || thread !== this.threadId) return;
    const stick = this.isAtBottom();
    const wasAnswering = this.answering;
    this.answering = page.answering;
    const messages = thread ? page.messages : [];
    for (const row of messages) this.showMessage(row);
    this.last = messages.at(-1) ?? null;
    if (limit === LIMIT) $("cut").hidden = messages.length < LIMIT;
    $("log").setAttribute("aria-busy", "false");
    this.drawTail();
    $("welcome").hidden = this.shown.size > 0 || $("tail").children.length > 0;
    if (stick) this.toBottom();
    if (wasAnswering !== this.answering) this.loadThreads().catch(() => {});
    if (this.answering && !this.live) this.poll();
  }

  poll() {
    clearTimeout(this.timer);
    const isElsewhere = this.answering !== this.threadId;
    this.timer = setTimeout(() => this.refresh(isElsewhere ? 1 : LIMIT).catch(() => this.poll()), POLL_MS);
  }

  showMessage(row) {
    if (this.shown.has(row.id)) return;
    let element;
    try {
      element = this.draw(row);
    } catch (error) {
      console.error("message not drawn:", row.id, error);
      element = el("article", { class: "message notice" }, el("div", { class: "body" }, "This message cannot be shown."));
    }
    this.shown.set(row.id, element);
    $("log").append(element);
  }

  draw(row) {
    const isOwn = row.role === "user";
    const copy = el("button", { type: "button", onclick: () => copyText(row.content, copy) }, "Copy");
    const looked = row.channel_context ? el("span", { dir: "auto" }, `looked at ${line(this.channels.get(row.channel_context) ?? row.channel_context, TITLE)}`) : null;
    const meta = el("div", { class: "meta" }, time(row.created_at), looked, copy);
    if (isOwn) return el("article", { class: "message user", "aria-label": "You" }, el("div", { class: "body" }, el("div", { class: "plain-text", dir: "auto" }, row.content)), meta);
    const ended = ENDED.exec(row.content);
    const calls = row.tool_calls.map((call) => drawCall(call));
    const body = el("div", { class: "body" }, ended ? el("p", { class: "ended" }, el("b", {}, `${ENDS[ended[1]]}: `), ended[2]) : renderMarkdown(row.content));
    return el("article", { class: `message assistant ${ended ? "notice" : ""}`, "aria-label": "Cortex" }, calls.length ? el("div", { class: "calls" }, ...calls) : null, body, meta);
  }

  // What is not in the thread yet: our question, the growing answer, or a sign that one is being made.
  drawTail() {
    const isLive = this.live !== null && this.live.thread === this.threadId;
    const isHere = isLive || (this.answering !== null && this.answering === this.threadId);
    const isBusy = this.live !== null || this.answering !== null;
    const waiting = el("article", { class: "message assistant streaming" }, el("div", { class: "body fine" }, "Still answering …"));
    const isLost = !isHere && this.last?.role === "user";
    $("tail").replaceChildren(...(isLive ? this.live.elements() : isHere ? [waiting] : isLost ? [this.drawLost(this.last)] : []));
    $("stop").hidden = !isHere;
    $("send").hidden = isHere;
    document.body.classList.toggle("busy", isBusy);
    if (isBusy && !isHere) this.tellElsewhere();
    else if ($("busy").dataset.kind === "elsewhere" || !isBusy) this.tell("");
  }

  // A question whose answer a crash cut.
  drawLost({ content }) {
    const again = el("button", { type: "button", class: "pill", onclick: () => this.live || this.answering || this.ask(content) }, "Ask again");
    return el("article", { class: "message notice lost" }, el("div", { class: "body" }, el("span", {}, "No answer came: the program ended meanwhile."), again));
  }

  tellElsewhere() {
    const other = this.live?.thread ?? this.answering;
    const title = this.threads.find((thread) => thread.id === other)?.title;
    this.tell(
      "I am still answering in another thread.",
      el("button", { type: "button", class: "pill", title, onclick: () => this.show(other) }, "Go there"),
      el("button", { type: "button", class: "pill", onclick: () => this.stop() }, "Stop it"),
    );
    $("busy").dataset.kind = "elsewhere";
  }

  tell(text, ...buttons) {
    $("busy").hidden = !text;
    $("busy").dataset.kind = "";
    $("busy").replaceChildren(...(text ? [el("span", {}, text), ...buttons] : []));
  }

  // --- asking

  async ask(text) {
    const agent = this.agent();
    const live = (this.live = new Live(this.threadId, text, () => this.isAtBottom() && this.toBottom()));
    this.tell("");
    this.drawTail();
    $("welcome").hidden = true;
    this.toBottom();
    let problem = null;
    try {
      const body = { message: text, agent_id: agent, ...(live.thread && { thread_id: live.thread }), ...($("channel").value && { channel_id: $("channel").value }) };
      const response = await request("api/cortex-chat/send", {
        method: "POST",
        headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
        body: JSON.stringify(body),
        signal: live.signal,
      });
      live.isAccepted = true;
      for await (const { name, data } of eventsOf(response)) {
        if (this.live === live) await this.onEvent(live, name, data);
      }
    } catch (error) {
      problem = error;
    }
    if (this.live !== live) return; // another agent is shown now
    this.live = null;
    if (problem) await this.failed(problem, live, text);
    const open = live.openCalls();
    await this.refresh().catch(() => this.poll());
    if (live.thread === this.threadId) [...$("log").querySelectorAll(".message:last-child .call")].forEach((call, n) => (call.open = open.has(n)));
    this.loadThreads().catch(() => {});
    this.loadChannels().catch(() => {});
  }

  async failed(error, live, text) {
    if (live.isAccepted) return; // the connection broke: the answer comes into the thread all the same
    if (!$("text").value) {
      $("text").value = text;
      grow();
    }
    if (error instanceof Unauthorized) await this.unauthorized();
    else if (error.status === CONFLICT) this.tell("I am still answering another question. Yours waits here until you send it again.");
    else this.tell(error.message);
  }

  async onEvent(live, name, data) {
    if (name === "thinking") {
      const isHere = live.thread === this.threadId;
      live.thread = data.thread_id;
      live.isKept = true;
      if (isHere && this.threadId === null) {
        this.threadId = data.thread_id;
        this.keep();
      }
      await this.refresh().catch(() => {});
    } else live.on(name, data);
  }

  async stop() {
    $("stop").disabled = true;
    try {
      await send("POST", "cortex-chat/cancel", { agent_id: this.agent() });
      if (!this.live) await this.refresh();
    } catch (error) {
      this.tell(error.message);
    } finally {
      $("stop").disabled = false;
    }
  }

  take() {
    const text = $("text").value;
    if (!text.trim()) return;
    if (this.live || this.answering) {
      if (this.answering === null || this.answering === this.threadId) this.tell("Still answering. Your question waits here until you send it again.");
      return;
    }
    $("text").value = "";
    grow();
    this.ask(text);
  }

  listen() {
    for (const idea of IDEAS) $("ideas").append(el("button", { type: "button", onclick: () => this.live || this.answering || this.ask(idea) }, idea));
    $("new-thread").onclick = () => this.show(null);
    $("stop").onclick = () => this.stop();
    $("text").addEventListener("input", grow);
    $("text").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.take();
    });
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.take();
    });
    addEventListener("resize", () => this.isAtBottom() && this.toBottom());
  }

  isAtBottom() {
    return $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 80;
  }

  toBottom() {
    $("scroll").scrollTop = $("scroll").scrollHeight;
  }
}

function grow() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`;
  $("send").disabled = !text.value.trim();
}

// An answer while it is made.
class Live {
  constructor(thread, text, drawn) {
    this.thread = thread;
    this.drawn = drawn;
    this.isAccepted = false;
    this.isKept = false; // the question is in the thread
    this.words = "";
    this.calls = [];
    this.isQueued = false;
    this.controller = new AbortController();
    this.question = el("article", { class: "message user pending", "aria-label": "You, not sent yet" }, el("div", { class: "body" }, el("div", { class: "plain-text", dir: "auto" }, text)));
    this.callList = el("div", { class: "calls", hidden: true });
    this.body = el("div", { class: "body" }, dots());
    this.answer = el("article", { class: "message assistant streaming" }, this.callList, this.body);
  }

  get signal() {
    return this.controller.signal;
  }

  abort() {
    this.controller.abort();
  }

  elements() {
    return this.isKept ? [this.answer] : [this.question, this.answer];
  }

  on(name, data) {
    if (name === "text") this.words = data.text;
    else if (name === "tool_started") {
      this.words = ""; // what was said before it was no answer yet
      const call = { tool: data.tool, arguments: data.arguments, result: null, is_error: false };
      this.calls.push({ call, element: drawCall(call) });
      this.callList.append(this.calls.at(-1).element);
      this.callList.hidden = false;
    } else if (name === "tool_completed" && this.calls.length) {
      const last = this.calls.at(-1);
      const element = drawCall({ ...last.call, result: data.result_preview, is_error: data.is_error });
      element.open = last.element.open;
      last.element.replaceWith(element);
      last.element = element;
    }
    this.queue();
  }

  queue() {
    if (this.isQueued) return;
    this.isQueued = true;
    requestAnimationFrame(() => {
      this.isQueued = false;
      this.body.replaceChildren(this.words ? renderMarkdown(this.words) : dots());
      this.drawn();
    });
  }

  openCalls() {
    return new Set(this.calls.flatMap(({ element }, n) => (element.open ? [n] : [])));
  }
}

const dots = () => el("div", { class: "typing" }, el("i"), el("i"), el("i"), el("span", { class: "sr" }, "The cortex is thinking"));

// Most results are JSON, which reads better in lines; what was cut is shown as it is.
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

// One tool call, folded: what was asked and what came back.
function drawCall({ tool, arguments: given, result, is_error }) {
  const state = result === null ? "running" : is_error ? "bad" : "ok";
  const values = Object.values(given ?? {});
  const short = values.length ? line(values.map((value) => (typeof value === "string" ? value : JSON.stringify(value))).join(", "), TITLE) : "";
  return el(
    "details",
    { class: `call ${state}` },
    el("summary", {}, el("code", {}, tool), el("span", { class: "short", dir: "auto" }, short), el("span", { class: "sr" }, { running: "running", bad: "failed", ok: "done" }[state])),
    el("h3", {}, "Asked"),
    el("pre", { tabindex: "0", dir: "auto" }, values.length ? JSON.stringify(given, null, 2) : "nothing in particular"),
    el("h3", {}, is_error ? "Failed" : "Answer"),
    el("pre", { tabindex: "0", dir: "auto" }, result === null ? "…" : result ? pretty(result) : "nothing"),
  );
}
