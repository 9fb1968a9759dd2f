// The MCP page: servers whose tools workers have, how each is, and setting them up. What stands in their environment and
// headers goes in and does not come out.

import { get, post, send } from "./connection.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { $, attempt, button, confirmed, formDialog, keyed, put, startPage, toast } from "./ui.js?v=__VERSION__";
import { number, plural, time } from "./words.js?v=__VERSION__";

const STATES = { connected: ["connected", "good"], connecting: ["connecting", ""], failed: ["cannot connect", "bad"], disconnected: ["not connected", ""] };
const HIDDEN = "********";

const path = (name) => `mcp/servers/${encodeURIComponent(name)}`;

class Server {
  constructor(name) {
    this.name = name;
    this.state = el("span", { class: "tag state" });
    this.about = el("p", { class: "fine about" });
    this.message = el("p", { class: "detail" });
    this.counts = el("p", { class: "fine counts" });
    this.tools = el("ul", { class: "tools" });
    this.summary = el("summary");
    this.details = el("details", {}, this.summary, this.tools);
    this.result = el("p", { class: "result", role: "status" });
    this.again = button("Reconnect", () => this.act("Connecting …", () => post("agents/mcp/reconnect", { agent_id: page.agent, server_name: name })), { class: "again" });
    this.toggle = button("", () => this.act("…", () => send("PUT", "mcp/servers", { name, enabled: !this.item.definition.enabled })), { class: "toggle" });
    this.edit = button("Change", () => dialog(this.item.definition), { class: "edit" });
    this.remove = button("Remove", () => this.delete(), { class: "remove" });
    this.node = el("li", { class: "panel server", "data-id": name }, el("div", { class: "bar" }, el("h3", {}, name), this.state, el("span", { class: "space" }), this.again, this.toggle, this.edit, this.remove), this.about, this.message, this.counts, this.details, this.result);
  }

  show(item) {
    this.item = item;
    const { definition, view } = item;
    const isOn = (view ?? definition).enabled;
    const [word, tone] = isOn ? STATES[view?.state ?? "disconnected"] ?? [view.state, ""] : ["switched off", ""];
    this.state.textContent = word;
    this.state.className = `tag state ${tone}`;
    const what = definition ? (definition.transport === "http" ? definition.url : [definition.command, ...definition.args].join(" ")) : "of this agent alone; change it in the file under its agent";
    this.about.textContent = `${(definition ?? view).transport} · ${what}`;
    this.message.textContent = view?.message ?? "";
    this.message.hidden = !isOn || !view?.message || view.state === "connected";
    const words = [];
    if (isOn && view?.since) words.push(el("span", {}, `${STATES[view.state]?.[0] ?? view.state} since `, time(view.since)));
    if (view?.calls) words.push(`${plural(view.calls, "call")}${view.failed_calls ? `, ${number(view.failed_calls)} failed` : ""}`);
    if (view?.attempts) words.push(plural(view.attempts, "attempt"));
    this.counts.replaceChildren(...words.flatMap((one, i) => (i ? [" · ", one] : [one])));
    this.counts.hidden = !words.length;
    const tools = view?.tools ?? [];
    this.summary.textContent = plural(tools.length, "tool");
    this.details.hidden = !tools.length;
    put(this.tools, tools.map((tool) => el("li", {}, el("code", {}, tool.remote_name), el("span", {}, tool.about))));
    this.again.hidden = !isOn || !view;
    for (const one of [this.toggle, this.edit, this.remove]) one.hidden = !definition;
    if (definition) this.toggle.textContent = definition.enabled ? "Switch off" : "Switch on";
  }

  async delete() {
    if (!(await confirmed({ title: `Remove the server “${this.name}”?`, text: "Its tools go from all agents at once.", yes: "Remove" }))) return;
    await this.act("Removing …", () => send("DELETE", path(this.name)));
  }

  async act(words, work) {
    await attempt(this.result, words, work, [this.again, this.toggle, this.edit, this.remove]);
    await page.refresh();
  }
}

// --- adding and changing -----------------------------------------------------------------------------

// Names with values; what is there is shown by its name only, and stays unless it is typed anew or taken away.
class Pairs {
  constructor(label, known) {
    this.known = known;
    this.gone = [];
    this.rows = el("ul", { class: "pairs" });
    for (const [name, value] of Object.entries(known)) this.add(name, value);
    this.node = el("div", { class: "pairs-box" }, el("span", { class: "fine" }, label), this.rows, button("Add", () => this.add().querySelector("input").focus()));
  }

  add(name = "", value = "") {
    const isKept = name !== "";
    const isHidden = value === HIDDEN;
    const remove = button("✕", () => {
      if (isKept) this.gone.push(name);
      row.remove();
    }, { "aria-label": `Remove ${name}` });
    const row = el("li", {}, el("input", { "aria-label": "Name", value: name, readonly: isKept, autocomplete: "off" }), el("input", { "aria-label": `Value of ${name || "it"}`, type: isHidden || !isKept ? "password" : "text", value: isHidden ? "" : value, placeholder: isHidden ? "stays as it is" : "value, env:NAME or secret:NAME", autocomplete: "new-password" }), remove);
    row.dataset.kept = isKept ? name : "";
    this.rows.append(row);
    return row;
  }

  // What was typed or changed.
  get values() {
    const found = {};
    for (const row of this.rows.children) {
      const [name, value] = [...row.querySelectorAll("input")].map((one) => one.value.trim());
      if (name && value && value !== this.known[name]) found[name] = value;
    }
    return found;
  }
}

function dialog(server = null) {
  let form;
  let env;
  let headers;
  const isNew = server === null;
  const label = (text, input, kind = "") => el("label", { class: kind }, text, input);
  formDialog({
    title: isNew ? "Add an MCP server" : `Change “${server.name}”`,
    yes: isNew ? "Add" : "Save",
    fill(place) {
      form = place;
      const old = server ?? { transport: "stdio", args: [], env: {}, headers: {}, command: "", url: "", call_timeout_secs: null };
      env = new Pairs("Environment", old.env);
      headers = new Pairs("Headers", old.headers);
      const transport = el("select", { name: "transport", class: "field", onchange: () => show() }, el("option", { value: "stdio", selected: old.transport === "stdio" }, "stdio: a program on this machine"), el("option", { value: "http", selected: old.transport === "http" }, "http: an address"));
      const local = el("div", {}, label("Program", el("input", { name: "command", value: old.command ?? "", autocomplete: "off", placeholder: "npx" })), label("Arguments, one in each line", el("textarea", { name: "args", rows: 3 }, old.args.join("\n"))), env.node);
      const remote = el("div", {}, label("Address", el("input", { name: "url", type: "url", value: old.url ?? "", autocomplete: "off", placeholder: "https://mcp.example.org/mcp" })), headers.node);
      const show = () => {
        local.hidden = transport.value !== "stdio";
        remote.hidden = transport.value !== "http";
      };
      place.append(...(isNew ? [label("Name", el("input", { name: "name", required: true, autocomplete: "off", maxlength: 64, placeholder: "files" }))] : []), label("It is reached by", transport), local, remote, label("Seconds that a call may take", el("input", { name: "timeout", type: "number", min: 1, step: "any", value: old.call_timeout_secs ?? "", placeholder: "as usual" })));
      show();
    },
    async submit(data) {
      const transport = data.get("transport");
      const body = { name: isNew ? data.get("name").trim() : server.name, transport };
      if (data.get("timeout")) body.call_timeout_secs = Number(data.get("timeout"));
      if (transport === "stdio") {
        const args = data.get("args").split("\n").map((one) => one.trim()).filter(Boolean);
        Object.assign(body, { command: data.get("command").trim(), args, env: env.values, remove_env: env.gone });
      } else Object.assign(body, { url: data.get("url").trim(), headers: headers.values, remove_headers: headers.gone });
      await send(isNew ? "POST" : "PUT", "mcp/servers", body);
      toast(isNew ? `${body.name} is added and being connected.` : `${body.name} is changed.`);
      await page.refresh();
    },
  });
  return form;
}
$("new-server").onclick = () => dialog();

// --- drawing and asking ------------------------------------------------------------------------------

const drawServers = keyed($("servers"), (name) => new Server(name), (item) => item.name);

async function refresh(agent) {
  const [definitions, { servers: views }] = await Promise.all([get("mcp/servers"), get("agents/mcp", { agent_id: agent })]);
  if (agent !== page.agent) return;
  const byName = new Map(views.map((view) => [view.name, view]));
  const known = new Set(definitions.map((one) => one.name));
  const items = definitions.map((definition) => ({ name: definition.name, definition, view: byName.get(definition.name) }));
  const own = views.filter((view) => !known.has(view.name)).map((view) => ({ name: view.name, definition: null, view }));
  drawServers([...items, ...own]);
  $("none").hidden = items.length + own.length > 0;
}

const page = startPage({ events: "config_reloaded", every: 4000, opened: () => drawServers.rows.clear(), refresh });
