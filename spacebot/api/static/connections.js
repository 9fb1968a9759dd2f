// The Connections page: every account on every platform, how it is, and switches to try and to stop it.
// The server is the truth: its status is asked for, and its event stream says when to ask again.

import { el } from "./markdown.js?v=__VERSION__";
import { get, post } from "./connection.js?v=__VERSION__";
import { accountDialog, bindingDialog, canSetUp, nameOf, removeBinding } from "./connections_forms.js?v=__VERSION__";
import { $, attempt, button, confirmed, failed, keyed, put, startPage, toast } from "./ui.js?v=__VERSION__";
import { ago, number, plural, when } from "./words.js?v=__VERSION__";

const EVENTS = "adapter_state,config_reloaded,inbound_message,outbound_message,delivered,undelivered";
const TARGETS = { discord: "channel id or dm:user", slack: "channel id or dm:user", telegram: "chat id", twitch: "channel", webhook: "conversation" };
const STATES = { starting: "connecting", connected: "connected", retrying: "trying again", stopped: "stopped", disabled: "switched off", broken: "cannot connect" };
const PEN = "M4 16l1-4 8.5-8.5 3 3L8 15z";
const CROSS = "M5 5l10 10M15 5L5 15";
const SVG = "http://www.w3.org/2000/svg";

class Account {
  constructor(key) {
    this.key = key;
    this.title = el("h3");
    this.state = el("span", { class: "state" });
    this.test = button("Test", () => this.try({}), { class: "test" });
    this.toggle = button("", () => this.switch(), { class: "toggle" });
    this.change = button("Credentials", () => accountDialog({ platform: this.account.platform, account: this.account, status: page.status, done: page.refresh }), { class: "change" });
    this.remove = button("Disconnect", () => this.disconnect(), { class: "remove" });
    this.who = el("p", { class: "who" });
    this.detail = el("p", { class: "detail" });
    this.counts = el("dl");
    this.result = el("p", { class: "result", role: "status" });
    this.target = el("input", { "aria-label": "Where to", autocomplete: "off", required: true });
    this.text = el("input", { "aria-label": "Text", autocomplete: "off", required: true, value: "Hello, can you read me?", maxlength: 2000 });
    const form = el("form", { onsubmit: (event) => (event.preventDefault(), this.try({ target: this.target.value.trim(), text: this.text.value })) }, this.target, this.text, el("button", { class: "pill" }, "Send"));
    this.message = el("details", {}, el("summary", {}, "Send a test message"), form);
    this.node = el("li", { class: "account" }, el("div", { class: "top" }, this.title, this.state, el("div", { class: "buttons" }, this.test, this.toggle, this.change, this.remove)), this.who, this.detail, this.counts, this.result, this.message);
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
    this.change.hidden = !canSetUp(account.platform) || account.platform === "webhook";
    this.remove.hidden = account.platform === "webchat";
    this.message.hidden = !isUp || account.platform === "webchat";
    this.target.placeholder = TARGETS[account.platform] ?? "where to";
  }

  try(what) {
    return this.do("Asking …", () => post("messaging/test", { adapter: this.key, ...what }));
  }

  switch() {
    const enabled = !this.account.enabled;
    return this.do(enabled ? "Switching on …" : "Switching off …", async () => {
      const answer = await post("messaging/toggle", { platform: this.account.platform, adapter: this.key, enabled });
      await page.refresh();
      return answer.success ? { success: true } : answer;
    });
  }

  async disconnect() {
    const { platform, name, binding_count: count } = this.account;
    const bindings = count ? `, with ${plural(count, "binding")}` : "";
    const others = name ? "" : " Further accounts of this platform go too.";
    if (!(await confirmed({ title: `Disconnect ${this.title.textContent}?`, text: `Its account goes from the file${bindings}.${others}`, yes: "Disconnect", no: "Cancel" }))) return;
    await this.do("Disconnecting …", async () => {
      const answer = await post("messaging/disconnect", { platform, ...(name ? { adapter: name } : {}) });
      if (answer.success) toast(answer.message);
      return answer;
    });
    await page.refresh();
  }

  do(words, work) {
    return attempt(this.result, words, work, [this.test, this.toggle, this.change, this.remove]);
  }
}

// --- drawing ---------------------------------------------------------------------------------------

const drawAccounts = keyed($("accounts"), (key) => new Account(key), (account) => account.key);

function draw(status) {
  drawAccounts(status.instances);
  const used = new Set(status.instances.map((account) => account.platform));
  const others = Object.keys(status).filter((name) => !Array.isArray(status[name]) && !used.has(name)).map(nameOf);
  $("warnings").replaceChildren(...status.warnings.map((text) => el("li", { class: "detail" }, text)));
  $("warnings").hidden = !status.warnings.length;
  $("others").hidden = !others.length;
  const open = Object.keys(status).filter((name) => !Array.isArray(status[name]) && canSetUp(name));
  if (!$("connect").children.length) {
    put($("connect"), open.map((platform) => button("", () => accountDialog({ platform, isSecond: drawAccounts.rows.has(platform), status: page.status, done: page.refresh }), { "data-platform": platform })));
  }
  for (const one of $("connect").children) {
    const { platform } = one.dataset;
    one.textContent = `${used.has(platform) ? "Another account at" : "Connect"} ${nameOf(platform)}`;
    one.hidden = platform === "webhook" && used.has(platform);
  }
  $("others").textContent = `${status.instances.length ? "Not set up" : "Nothing is set up yet, only the web chat answers. There are"}: ${others.join(", ")}.`;
}

// A button with a picture only: the words of a row are those of the binding.
function picture(path, label, act) {
  const icon = document.createElementNS(SVG, "svg");
  icon.setAttribute("viewBox", "0 0 20 20");
  const stroke = document.createElementNS(SVG, "path");
  stroke.setAttribute("d", path);
  icon.append(stroke);
  return el("button", { type: "button", class: "plain picture", "aria-label": label, title: label, onclick: act }, icon);
}

let drawn = "";

function drawBindings(bindings, accounts) {
  $("bindings-section").hidden = !bindings.length && !accounts.length;
  $("add-binding").onclick = () => bindingDialog({ accounts, status: page.status, done: page.refresh }).catch(failed);
  if (drawn === JSON.stringify([bindings, accounts.map(({ key }) => key)])) return; // the focus stays where it is
  drawn = JSON.stringify([bindings, accounts.map(({ key }) => key)]);
  $("bindings").replaceChildren(
    ...bindings.map((binding) => {
      const places = [["server", binding.guild_id], ["workspace", binding.workspace_id], ["chat", binding.chat_id]].filter(([, id]) => id).map(([name, id]) => `${name} ${id}`);
      if (binding.channel_ids.length) places.push(`${binding.channel_ids.length === 1 ? "room" : "rooms"} ${binding.channel_ids.join(", ")}`);
      if (binding.dm_allowed_users.length) places.push(`people ${binding.dm_allowed_users.join(", ")}`);
      if (binding.require_mention) places.push("only when mentioned");
      const account = binding.adapter ? `${nameOf(binding.channel)} · ${binding.adapter}` : nameOf(binding.channel);
      const words = places.join("; ") || "everywhere";
      const change = picture(PEN, `Change: ${binding.agent_id}, ${account}, ${words}`, () => bindingDialog({ binding, accounts, status: page.status, done: page.refresh }).catch(failed));
      const remove = picture(CROSS, `Remove: ${binding.agent_id}, ${account}, ${words}`, async () => {
        if (!(await confirmed({ title: "Remove this line?", text: `${binding.agent_id}, ${account}, ${words}`, yes: "Remove" }))) return;
        await removeBinding(binding).catch(failed);
        await page.refresh();
      });
      return el("li", {}, el("b", {}, binding.agent_id), el("span", {}, account), el("span", { class: "fine" }, words), el("span", { class: "row-buttons" }, change, remove));
    }),
  );
}

async function refresh() {
  const [status, { bindings }] = await Promise.all([get("messaging/status"), get("bindings")]);
  draw(status);
  drawBindings(bindings, status.instances);
}

const page = startPage({ events: EVENTS, refresh, isEarly: true });
