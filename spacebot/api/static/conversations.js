// The Conversations page: with whom the agent talks; and one conversation with what was said, thought and done in it.
// The server is the truth: the newest page of a conversation is asked anew when something happens in it.

import { get, post } from "./connection.js?v=__VERSION__";
import { promptsOf, toggleFate } from "./fate.js?v=__VERSION__";
import { el, renderMarkdown } from "./markdown.js?v=__VERSION__";
import { COVERED, NAMES, STATES, channelName, isPrivate } from "./things.js?v=__VERSION__";
import { $, Cover, button, debounced, failed, keyed, put, startPage } from "./ui.js?v=__VERSION__";
import { line, number, span, time } from "./words.js?v=__VERSION__";

const PAGE = 50;
const TYPING_MS = 300; // after a letter: wait for more
const NEAR_PX = 300; // from the top: time to ask for what was before
const EVENTS = "inbound_message,outbound_message,reaction,message_changed,typing_state,turn_ended,worker_started,worker_status,worker_completed,branch_started,branch_completed,config_reloaded";
const OF_THE_LIST = new Set(["inbound_message", "outbound_message", "worker_started", "worker_completed", "branch_started", "branch_completed", "turn_ended", "config_reloaded", "lagged"]);
const LIVE = new Set(["running", "waiting", "starting"]);

const cover = new Cover($("uncover"), () => one?.redraw());

// --- the list --------------------------------------------------------------------------------------

let pages = []; // of conversations, as asked for so far
let after = null; // what the next page begins after
let doing = {}; // conversation -> what it does

class Row {
  constructor() {
    this.name = el("b", { dir: "auto" });
    this.when = el("span");
    this.about = el("span", { class: "fine" });
    this.work = el("span", { class: "tag live", hidden: true });
    this.link = el("a", {}, this.name, this.when, this.about, this.work);
    this.node = el("li", {}, this.link);
  }

  show(channel) {
    this.link.href = `conversations${location.search}#${encodeURIComponent(channel.id)}`;
    this.link.dataset.id = channel.id;
    this.name.textContent = channelName(channel);
    if (this.at !== channel.last_activity_at) this.when.replaceChildren(time((this.at = channel.last_activity_at)));
    this.about.textContent = [NAMES[channel.platform] ?? channel.platform, channel.is_direct ? "direct chat" : "room"].join(" · ");
    const { active_branches: branches = [], active_workers: workers = [] } = doing[channel.id] ?? {};
    const words = [branches.length && `${branches.length} thinking`, workers.length && `${workers.length} working`].filter(Boolean).join(", ");
    this.work.textContent = words;
    this.work.hidden = !words;
    if (channel.id === one?.id) this.link.setAttribute("aria-current", "true");
    else this.link.removeAttribute("aria-current");
  }
}
const drawRows = keyed($("list"), () => new Row());

const asked = (more) => get("channels", { agent_id: page.agent, limit: PAGE, ...($("find").value.trim() && { contains: $("find").value.trim() }), ...($("platform").value && { platform: $("platform").value }), ...more });

async function showList(agent) {
  const [answer, status] = await Promise.all([asked({}), get("channels/status", { agent_id: agent })]);
  if (agent !== page.agent) return;
  doing = status;
  const known = new Set(answer.channels.map(({ id }) => id));
  const rest = pages.slice(1).map((channels) => channels.filter(({ id }) => !known.has(id)));
  pages = [answer.channels, ...rest];
  if (pages.length === 1) after = answer.before;
  drawList(answer.total);
}

function drawList(total) {
  const channels = pages.flat();
  drawRows(channels);
  const isNarrowed = $("find").value.trim() || $("platform").value;
  $("total").textContent = total ? `${number(total)} ${total === 1 ? "conversation" : "conversations"}` : isNarrowed ? "None of these." : "Nobody has spoken to this agent yet.";
  $("more").hidden = after === null;
  one?.name(channels.find(({ id }) => id === one.id));
}

$("more").onclick = async () => {
  try {
    const answer = await asked({ before: after });
    pages.push(answer.channels);
    after = answer.before;
    drawList(answer.total);
  } catch (error) {
    failed(error);
  }
};

let typing = null;
const searchAnew = () => {
  pages = [];
  page.refresh();
};
$("find").oninput = () => {
  clearTimeout(typing);
  typing = setTimeout(searchAnew, TYPING_MS);
};
$("platform").onchange = searchAnew;

// --- one conversation ------------------------------------------------------------------------------

const keyOf = (item) => `${item.type} ${item.id}`;

class Message {
  constructor() {
    this.words = el("div", { class: "words", dir: "auto" });
    this.who = el("span", { class: "who" });
    this.meta = el("div", { class: "meta open" });
    this.node = el("li", { class: "said" }, this.who, this.words, this.meta);
  }

  show(item) {
    const drawn = JSON.stringify([item, one.hides()]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const isUser = item.role === "user";
    this.node.className = `said ${item.role} ${item.kind === "notice" ? "notice" : ""}`;
    this.node.dataset.id = item.id;
    this.who.textContent = isUser ? item.sender_name ?? item.sender_id ?? "somebody" : page.agent;
    const hides = one.hides();
    this.words.classList.toggle("covered", hides);
    if (hides) this.words.textContent = COVERED;
    else if (isUser || item.kind === "reaction") this.words.textContent = item.content;
    else this.words.replaceChildren(renderMarkdown(item.content));
    if (item.file && !hides) this.words.append(el("p", { class: "fine" }, `${item.file.filename}, ${number(item.file.size_bytes)} bytes`));
    const about = isUser ? item.id : item.reply_to;
    const why = about && el("button", { type: "button", "aria-expanded": "false", onclick: (event) => toggleFate(event.currentTarget, this.node, page.agent, about, { hides: one.hides() }) }, "Why");
    const saw = !isUser && item.turn_id && el("a", { href: promptsOf(page.agent, item.turn_id) }, "What the model saw");
    this.node.querySelector(".fate")?.remove();
    this.meta.replaceChildren(time(item.created_at), ...[why, saw].filter(Boolean));
  }
}

class Run {
  constructor() {
    this.kind = el("b");
    this.title = el("span");
    this.age = el("span");
    this.state = el("span");
    this.stop = button("Cancel", () => this.cancel());
    this.status = el("p", { class: "status" });
    this.outcome = el("div", { class: "outcome" });
    this.summary = el("summary");
    this.details = el("details", { ontoggle: () => this.open() }, this.summary, this.outcome);
    this.links = el("div", { class: "links" });
    this.node = el("li", { class: "run" }, el("div", { class: "head" }, el("span", { class: "title" }, this.kind, this.title), el("span", { class: "side" }, this.state, this.age, this.stop), this.status), this.details, this.links);
  }

  show(item) {
    this.item = item;
    const isThought = item.type === "branch_run";
    const hides = one.hides();
    this.isLive = LIVE.has(item.state);
    this.node.dataset.state = item.state;
    this.node.dataset.id = item.id;
    this.kind.textContent = isThought ? "Thinking" : "Working";
    this.title.textContent = hides ? COVERED : line((isThought ? item.description : item.task) ?? "", 240);
    this.title.className = hides ? "covered" : "";
    this.state.textContent = isThought && this.isLive ? "" : STATES[item.state] ?? item.state;
    this.stop.hidden = !this.isLive;
    this.status.textContent = this.isLive && !hides ? one.status.get(item.id) ?? "" : "";
    this.text = (isThought ? item.conclusion : item.result) ?? "";
    this.details.hidden = hides || !this.text;
    this.summary.textContent = isThought ? "What it concluded" : "What it came to";
    this.open();
    const workers = `workers?${new URLSearchParams({ agent: page.agent })}#${item.id}`;
    this.links.replaceChildren(...(isThought ? [] : [el("a", { class: "link", href: workers }, "Step by step")]), el("a", { class: "link", href: promptsOf(page.agent, item.id) }, "What the model saw"));
    this.tick();
  }

  open() {
    if (!this.details.open || this.shown === this.text) return;
    this.shown = this.text;
    this.outcome.replaceChildren(renderMarkdown(this.text));
  }

  tick() {
    const until = this.isLive ? Date.now() : new Date(this.item.completed_at ?? this.item.started_at);
    const words = [span(Math.max(0, (until - new Date(this.item.started_at)) / 1000))];
    if (this.item.tool_calls) words.push(`${number(this.item.tool_calls)} tool ${this.item.tool_calls === 1 ? "call" : "calls"}`);
    this.age.textContent = words.join(", ");
  }

  async cancel() {
    this.stop.disabled = true;
    try {
      await post("channels/cancel", { agent_id: page.agent, channel_id: one.id, process_type: this.item.type === "branch_run" ? "branch" : "worker", process_id: this.item.id });
    } catch (error) {
      failed(error);
    }
    this.stop.disabled = false;
    one?.changed();
  }
}

class One {
  constructor(id) {
    this.id = id;
    this.items = []; // oldest first
    this.before = null;
    this.status = new Map(); // worker -> what it says of itself
    this.isPrivate = true; // until it is known
    this.isAsking = false;
    $("timeline").replaceChildren();
    this.draw_ = keyed($("timeline"), (key) => (key.startsWith("message ") ? new Message() : new Run()), keyOf);
    this.changed = debounced(() => this === one && this.refresh().catch(failed), 200, 1000);
    $("one-title").textContent = channelName({ id });
    $("one-about").textContent = "";
    $("typing").hidden = true;
    $("earlier").textContent = "Looking …";
    $("prompts").href = `prompts?${new URLSearchParams({ agent: page.agent })}#${new URLSearchParams({ channel: id })}`;
    $("prompts").hidden = false;
    this.begin();
  }

  async begin() {
    try {
      const { channels } = await get("channels", { agent_id: page.agent, contains: this.id, limit: 5 });
      this.name(channels.find(({ id }) => id === this.id));
      await this.refresh();
      if (this !== one) return;
      $("timeline-scroll").scrollTop = $("timeline-scroll").scrollHeight;
      $("one-title").focus({ preventScroll: true });
      this.more();
    } catch (error) {
      failed(error);
    }
  }

  // Whether its words are covered.
  hides() {
    return cover.hides({ is_private: this.isPrivate });
  }

  name(channel) {
    if (!channel || this !== one) return;
    this.isPrivate = isPrivate(channel);
    cover.offer(this.isPrivate);
    $("one-title").textContent = channelName(channel);
    document.title = `${channelName(channel)} · Spacebot`;
    $("one-about").textContent = [NAMES[channel.platform] ?? channel.platform, channel.is_direct ? "direct chat" : "room", channel.id].join(" · ");
  }

  page(more = {}) {
    return get("channels/messages", { agent_id: page.agent, channel_id: this.id, limit: PAGE, ...more });
  }

  // The newest page takes the place of what was known of it; what is older stays.
  async refresh() {
    const place = $("timeline-scroll");
    const isAtEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 80;
    const answer = await this.page();
    if (this !== one) return;
    if (!this.items.length) this.before = answer.before;
    const fresh = new Set(answer.items.map(keyOf));
    const first = this.items.findIndex((item) => fresh.has(keyOf(item)));
    if (first < 0 && this.items.length && answer.has_more) {
      this.items = answer.items; // so much was said meanwhile that there is a gap
      this.before = answer.before;
    } else this.items = [...(first < 0 ? this.items : this.items.slice(0, first)).filter((item) => !fresh.has(keyOf(item))), ...answer.items];
    this.redraw();
    if (isAtEnd) place.scrollTop = place.scrollHeight;
  }

  async more() {
    const place = $("timeline-scroll");
    if (this.isAsking || this.before === null || place.scrollTop > NEAR_PX) return;
    this.isAsking = true;
    try {
      const answer = await this.page({ before: this.before });
      if (this !== one) return;
      const height = place.scrollHeight;
      this.before = answer.before;
      const known = new Set(this.items.map(keyOf));
      this.items = [...answer.items.filter((item) => !known.has(keyOf(item))), ...this.items];
      this.redraw();
      place.scrollTop += place.scrollHeight - height;
    } catch (error) {
      failed(error);
    } finally {
      this.isAsking = false;
    }
    if (this === one && place.scrollTop <= NEAR_PX && this.before !== null) this.more();
  }

  redraw() {
    this.draw_(this.items);
    $("earlier").textContent = this.before !== null ? "Earlier ones come as you scroll up." : this.items.length ? "This is where it began." : "Nothing was said here yet.";
  }

  tick() {
    for (const row of this.draw_.rows.values()) if (row.isLive) row.tick();
  }

  on(name, data) {
    if (data.channel_id !== this.id) return;
    if (name === "typing_state") $("typing").hidden = !data.is_typing;
    else if (name === "turn_ended") $("typing").hidden = true;
    else if (name === "worker_status") {
      this.status.set(data.worker_id, data.status);
      return this.redraw();
    }
    if (name !== "typing_state") this.changed();
  }
}

let one = null;
$("timeline-scroll").addEventListener("scroll", () => one?.more(), { passive: true });
setInterval(() => one?.tick(), 1000);

function go() {
  const id = decodeURIComponent(location.hash.slice(1));
  const wanted = id || null;
  if (wanted === (one?.id ?? null) && one !== null) return;
  one = null;
  $("one").hidden = !wanted;
  $("nothing").hidden = Boolean(wanted);
  document.body.classList.toggle("has-one", Boolean(wanted));
  cover.offer(false);
  if (!wanted) document.title = "Conversations · Spacebot";
  else one = new One(wanted);
  for (const link of document.querySelectorAll("#list a")) {
    if (link.dataset.id === wanted) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}
addEventListener("hashchange", go);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.defaultPrevented && one && !document.querySelector("dialog[open]")) location.hash = "";
});
$("back").onclick = (event) => {
  event.preventDefault();
  location.hash = "";
};

let isFirst = true;
const page = startPage({
  events: EVENTS,
  opened: () => {
    pages = [];
    put($("list"), []);
    drawRows.rows.clear();
    if (!isFirst) location.hash = ""; // of another agent
    isFirst = false;
    one = null;
    go();
  },
  on: (name, data) => {
    if (name === "lagged") one?.changed();
    else one?.on(name, data);
    return OF_THE_LIST.has(name);
  },
  online: () => one?.changed(),
  refresh: showList,
});
