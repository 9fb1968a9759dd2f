// The Connections page: every account on every platform, how it is, and switches to try and to stop it.
// The server is the truth: its status is asked for, and its event stream says when to ask again.

import { el } from "./markdown.js?v=__VERSION__";
import { Unauthorized, follow, get, post } from "./connection.js?v=__VERSION__";
import { login, takeToken } from "./login.js?v=__VERSION__";
import { ago, number, when } from "./memory_words.js?v=__VERSION__";

const $ = (id) => document.getElementById(id);
const QUIET_MS = 400; // after an event: wait for more before asking
const REFRESH_MS = 15_000; // what no event tells: attempts, waiting messages
const EVENTS = "adapter_state,config_reloaded,inbound_message,outbound_message,delivered,undelivered";
const NAMES = { discord: "Discord", slack: "Slack", telegram: "Telegram", twitch: "Twitch", webhook: "Webhook", webchat: "Web chat" };
const TARGETS = { discord: "channel id or dm:user", slack: "channel id or dm:user", telegram: "chat id", twitch: "channel", webhook: "conversation" };
const STATES = { starting: "connecting", connected: "connected", retrying: "trying again", stopped: "stopped", disabled: "switched off", broken: "cannot connect" };
const nameOf = (platform) => NAMES[platform] ?? platform;

class Account {
  constructor(key) {
    this.key = key;
    this.title = el("h3");
    this.state = el("span", { class: "state" });
    this.test = el("button", { type: "button", class: "pill test", onclick: () => this.try({}) }, "Test");
    this.toggle = el("button", { type: "button", class: "pill toggle", onclick: () => this.switch() });
    this.who = el("p", { class: "who" });
    this.detail = el("p", { class: "detail" });
    this.counts = el("dl");
    this.result = el("p", { class: "result", role: "status" });
    this.target = el("input", { "aria-label": "Where to", autocomplete: "off", required: true });
    this.text = el("input", { "aria-label": "Text", autocomplete: "off", required: true, value: "Hello, can you read me?", maxlength: 2000 });
    const form = el("form", { onsubmit: (event) => (event.preventDefault(), this.try({ target: this.target.value.trim(), text: this.text.value })) }, this.target, this.text, el("button", { class: "pill" }, "Send"));
    this.message = el("details", {}, el("summary", {}, "Send a test message"), form);
    this.node = el("li", { class: "account" }, el("div", { class: "top" }, this.title, this.state, el("div", { class: "buttons" }, this.test, this.toggle)), this.who, this.detail, this.counts, this.result, this.message);
  }

  show(account) {
    this.account = account;
    const state = account.configured ? account.state : "broken";
    const isUp = state === "connected";
    this.node.dataset.state = state;
    this.node.dataset.key = account.key;
    this.title.textContent = account.name ? `${nameOf(account.platform)} · ${account.name}` : nameOf(account.platform);
    this.state.textContent = STATES[state] ?? state;
    const words = [];
    if (account.who && isUp) words.push(`as ${account.who}`);
    if (account.since) words.push(`${isUp ? "since" : "for"} ${ago(account.since).replace(/ ago$/, "")}`);
    if (account.attempts) words.push(`attempt ${account.attempts + 1}${account.next_attempt_at ? ` at ${new Date(account.next_attempt_at).toLocaleTimeString()}` : ""}`);
    this.who.textContent = words.join(", ");
    this.who.title = account.since ? when(account.since) : "";
    this.who.hidden = !words.length;
    this.detail.textContent = account.detail;
    this.detail.hidden = !account.detail;
    const counts = [["received", account.received], ["sent", account.sent], ["failed", account.failed], ["waiting", account.queued], [account.binding_count === 1 ? "binding" : "bindings", account.binding_count]];
    this.counts.replaceChildren(...counts.filter(([name, n]) => n || name === "received" || name === "sent").map(([name, n]) => el("div", {}, el("dt", {}, name), el("dd", {}, number(n)))));
    this.counts.hidden = !account.configured;
    this.test.hidden = !account.configured || !account.enabled;
    this.toggle.hidden = !account.configured || account.platform === "webchat";
    this.toggle.textContent = account.enabled ? "Switch off" : "Switch on";
    this.message.hidden = !isUp || account.platform === "webchat";
    this.target.placeholder = TARGETS[account.platform] ?? "where to";
  }

  async try(what) {
    await this.busy("Asking …", async () => {
      const answer = await post("messaging/test", { adapter: this.key, ...what });
      this.say(answer.message, answer.success);
    });
  }

  async switch() {
    const enabled = !this.account.enabled;
    await this.busy(enabled ? "Switching on …" : "Switching off …", async () => {
      const answer = await post("messaging/toggle", { platform: this.account.platform, adapter: this.key, enabled });
      this.say(answer.success ? "" : answer.message, answer.success);
      await refresh();
    });
  }

  say(text, isGood) {
    this.result.className = `result ${isGood ? "good" : "bad"}`;
    this.result.textContent = text;
  }

  async busy(words, work) {
    this.test.disabled = this.toggle.disabled = true;
    this.result.className = "result";
    this.result.textContent = words;
    try {
      await work();
    } catch (error) {
      if (error instanceof Unauthorized) await login();
      this.say(error instanceof Unauthorized ? "Please try once more." : error.message, false);
    } finally {
      this.test.disabled = this.toggle.disabled = false;
    }
  }
}

// --- drawing ---------------------------------------------------------------------------------------

const accounts = new Map();

function draw(status) {
  const shown = status.instances.map((account) => {
    if (!accounts.has(account.key)) accounts.set(account.key, new Account(account.key));
    const one = accounts.get(account.key);
    one.show(account);
    return one.node;
  });
  for (const key of accounts.keys()) if (!status.instances.some((account) => account.key === key)) accounts.delete(key);
  const list = $("accounts");
  if (shown.length !== list.children.length || shown.some((node, i) => list.children[i] !== node)) list.replaceChildren(...shown);
  const used = new Set(status.instances.map((account) => account.platform));
  const others = Object.keys(status).filter((name) => !Array.isArray(status[name]) && !used.has(name)).map(nameOf);
  $("warnings").replaceChildren(...status.warnings.map((text) => el("li", { class: "detail" }, text)));
  $("warnings").hidden = !status.warnings.length;
  $("others").hidden = !others.length;
  $("others").textContent = `${shown.length ? "Not set up" : "Nothing is set up yet, only the web chat answers. There are"}: ${others.join(", ")}.`;
}

function drawBindings(bindings) {
  $("bindings-section").hidden = !bindings.length;
  $("bindings").replaceChildren(
    ...bindings.map((binding) => {
      const places = [["server", binding.guild_id], ["workspace", binding.workspace_id], ["chat", binding.chat_id]].filter(([, id]) => id).map(([name, id]) => `${name} ${id}`);
      if (binding.channel_ids.length) places.push(`${binding.channel_ids.length === 1 ? "room" : "rooms"} ${binding.channel_ids.join(", ")}`);
      if (binding.dm_allowed_users.length) places.push(`people ${binding.dm_allowed_users.join(", ")}`);
      if (binding.require_mention) places.push("only when mentioned");
      const account = binding.adapter ? `${nameOf(binding.channel)} · ${binding.adapter}` : nameOf(binding.channel);
      return el("li", {}, el("b", {}, binding.agent_id), el("span", {}, account), el("span", { class: "fine" }, places.join("; ") || "everywhere"));
    }),
  );
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
    const [status, { bindings }] = await Promise.all([get("messaging/status"), get("bindings")]);
    draw(status);
    drawBindings(bindings);
    $("stale").hidden = true;
  } catch (error) {
    if (error instanceof Unauthorized) {
      await login();
      changed();
    } else $("stale").hidden = false;
  }
}

function setConnection(name) {
  const place = $("connection");
  place.dataset.state = name;
  place.lastChild.textContent = { online: "connected", connecting: "connecting", offline: "offline, reconnecting" }[name];
}

takeToken();
refresh();
setInterval(changed, REFRESH_MS);
document.addEventListener("visibilitychange", changed);
follow({
  path: "events",
  params: { types: EVENTS },
  on: changed,
  state: (name) => {
    if (name === "online") changed();
    setConnection(name);
  },
  unauthorized: login,
});
