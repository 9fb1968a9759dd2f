// Settings, Server: the program's own switches. What this page cannot change it shows, with the way to its place in the file.

import { get, post, send } from "./connection.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { Field, allRight, changesOf, labelOf, specOf } from "./fields.js?v=__VERSION__";
import { attempt, button, confirmed, put } from "./ui.js?v=__VERSION__";

const API = ["enabled", "port", "bind"];
const SHOWN = ["api", "metrics", "telemetry", "update", "logs"]; // tables of the program itself
const LOWEST_PORT = 1024; // that the route takes; the file may go lower

export function open(root, desk) {
  let fields = [];
  const panels = el("div", { class: "stack" });
  const warnings = el("ul", { class: "lines", id: "server-warnings" });
  const tables = el("div", { class: "panels", id: "tables" });
  const update = updatePanel();
  const search = searchPanel(() => refresh());
  root.append(el("h2", {}, "Server"), warnings, panels, search.node, update.node, el("h2", {}, "In the file"), el("p", { class: "fine" }, "These are changed in the file itself; most count at once."), tables);

  async function refresh() {
    const [schema, settings, { values, tables: specs }, state] = await Promise.all([desk.schema(), get("settings"), get("config/explain"), get("update/check")]);
    if (!fields.length) build(schema, settings);
    const sources = new Map(values.map((value) => [value.key, value.source]));
    for (const field of fields) {
      const value = field.place.length === 1 ? settings[field.place[0]] : field.place.reduce((at, key) => at?.[key], settings);
      field.show(value, sources.get(field.key) ?? "");
    }
    warnings.replaceChildren(...settings.warnings.map((text) => el("li", { class: "detail" }, text)));
    warnings.hidden = !settings.warnings.length;
    drawTables(values, specs);
    search.show(settings.brave_search_key !== null);
    update.show(state);
    desk.changed();
  }

  function build(schema, settings) {
    const field = (key, place, more = {}) => {
      const spec = specOf(schema, key.split("."));
      const one = new Field({ key, place, spec: { ...spec, ...(place[0] === "api_port" ? { "x-form": [LOWEST_PORT, spec.maximum] } : {}) }, isInherited: false, changed: desk.changed, ...more });
      fields.push(one);
      return one.node;
    };
    const of = (name) => specOf(schema, name.split(".")).description;
    const permissions = Object.keys(settings.opencode.permissions);
    const plain = Object.keys(settings.opencode).filter((key) => key !== "permissions");
    put(panels, [
      panel("Web pages and API", of("api"), true, ...API.map((key) => field(`api.${key}`, [`api_${key}`]))),
      panel("Logs of workers", "For all agents that do not say otherwise.", false, field("defaults.worker_log_mode", ["worker_log_mode"])),
      panel("OpenCode", of("defaults.opencode"), false, ...plain.map((key) => field(`defaults.opencode.${key}`, ["opencode", key])), ...permissions.map((key) => field(`defaults.opencode.permissions.${key}`, ["opencode", "permissions", key], { label: `May ${key}` }))),
    ]);
  }

  function drawTables(values, specs) {
    put(tables, SHOWN.map((name) => {
      const keys = values.filter((one) => one.key.startsWith(`${name}.`) && !(name === "api" && API.includes(one.key.slice(4))));
      const spec = specs.find((one) => one.name === name);
      return el("section", { class: "panel", "data-table": name },
        el("div", { class: "bar" }, el("h3", {}, name === "api" ? "API" : labelOf(name)), el("span", { class: "space" }), button("Edit in the file", () => desk.file(name))), el("p", { class: "fine" }, spec?.description ?? ""),
        el("dl", { class: "facts" }, ...keys.flatMap((one) => [el("dt", { title: `${one.description} ${one.kind}${one.limits ? `, ${one.limits}` : ""}` }, labelOf(one.key.slice(name.length + 1))), el("dd", {}, text(one), one.requires_restart ? el("span", { class: "fine" }, " counts from a restart on") : null)])));
    }));
  }

  async function save() {
    if (!allRight(fields)) throw new Error("Mend the marked field first.");
    const body = changesOf(fields);
    if (body.api_enabled === false && !(await confirmed({ title: "Switch the web pages off?", text: "From the next start on they and the API are gone; only the file brings them back.", yes: "Switch off" }))) throw new Error("Nothing was saved.");
    const answer = await send("PUT", "settings", body);
    for (const field of fields) field.draft = undefined;
    await refresh();
    return answer;
  }

  return { refresh, dirty: () => fields.filter((field) => field.isDirty).length, save, revert: () => fields.forEach((field) => field.revert()) };
}

function text({ value }) {
  if (value === null || value === "" || (Array.isArray(value) && !value.length)) return "not set";
  if (typeof value === "boolean") return value ? "on" : "off";
  return Array.isArray(value) ? value.join(", ") : String(value);
}

function panel(title, about, isOpen, ...nodes) {
  return el("details", { class: "panel", open: isOpen }, el("summary", {}, el("h3", {}, title), el("span", { class: "fine" }, about)), el("div", { class: "settings-grid" }, ...nodes));
}

// The key of the web search: it goes in and never comes out; empty is not sent, clearing is a button of its own.
function searchPanel(changed) {
  const state = el("span", { class: "tag" });
  const result = el("p", { class: "result", role: "status" });
  const input = el("input", { type: "password", class: "field", autocomplete: "off", "aria-label": "Key of Brave Search", required: true });
  const keep = (words, key) => attempt(result, words, async () => {
    const answer = await send("PUT", "settings", { brave_search_key: key });
    input.value = "";
    await changed();
    return answer;
  });
  const clear = button("Clear", () => keep("Clearing …", null), { id: "clear-search" });
  const form = el("form", { class: "bar", id: "search-key", onsubmit: (event) => (event.preventDefault(), keep("Saving …", input.value.trim())) }, input, el("button", { class: "pill" }, "Save key"), clear);
  const node = el("section", { class: "panel" }, el("div", { class: "bar" }, el("h3", {}, "Web search (Brave)"), state), form, result);
  return {
    node,
    show(isSet) {
      state.textContent = isSet ? "key is set" : "no key";
      state.className = `tag ${isSet ? "good" : ""}`;
      clear.hidden = !isSet;
    },
  };
}

function updatePanel() {
  const about = el("p", { class: "fine", id: "version" });
  const result = el("p", { class: "result", role: "status" });
  const check = button("Check now", () => attempt(result, "Asking …", async () => {
    const state = await post("update/check", {});
    show(state);
    if (state.error) return { success: false, message: state.error };
    return { message: state.update_available ? `${state.latest_version} is there` : "this is the newest that is known" };
  }, [check]));
  const node = el("section", { class: "panel" }, el("div", { class: "bar" }, el("h3", {}, "Version"), el("span", { class: "space" }), check), about, result);
  const show = (state) => {
    about.textContent = [`Version ${state.current_version} (${state.deployment})`, state.update_available ? `${state.latest_version} is there. To update: ${state.cannot_apply_reason}` : ""].filter(Boolean).join("; ");
  };
  return { node, show };
}
