// The Settings page: tabs that are fetched when they are opened, and one bar for what is not saved yet.
// A tab is a module with `open(root, desk)` that returns {refresh(), dirty(), save(), revert()}; all but refresh are
// optional. `desk` is what it shares with the others.

import { get } from "./connection.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { $, attempt, confirmed, failed, startPage, toast } from "./ui.js?v=__VERSION__";
import { plural } from "./words.js?v=__VERSION__";

const TABS = {
  providers: ["Providers", () => import("./settings_providers.js?v=__VERSION__")],
  routing: ["Routing", () => import("./settings_routing.js?v=__VERSION__")],
  agent: ["Agent", () => import("./settings_agent.js?v=__VERSION__")],
  agents: ["Agents", () => import("./settings_agents.js?v=__VERSION__")],
  server: ["Server", () => import("./settings_server.js?v=__VERSION__")],
  file: ["Config file", () => import("./settings_file.js?v=__VERSION__")],
  backup: ["Backup", () => import("./settings_backup.js?v=__VERSION__")],
};
const opened = {}; // name -> {pane, tab}
let shown = null;
let schema = null;
let restartKeys = [];

$("tabs").append(...Object.entries(TABS).map(([name, [title]]) => el("a", { href: `#${name}`, "data-tab": name }, title)));

const desk = {
  status: () => page.status,
  schema: () => (schema ??= get("config/schema").catch((error) => ((schema = null), Promise.reject(error)))),
  changed: drawBar,
  restart(keys) {
    restartKeys = [...new Set([...restartKeys, ...keys])];
    $("restart").hidden = !restartKeys.length;
    $("restart").replaceChildren(el("b", {}, "Restart needed. "), `${restartKeys.join(", ")} counts from the next start on: run `, el("code", {}, "spacebot restart"), ".");
  },
  async models() {
    const { models } = await get("models");
    $("models").replaceChildren(...models.map((one) => el("option", { value: one.id }, one.name)));
  },
  // Where a key stands in the file.
  file(place) {
    sessionPlace = place;
    location.hash = "file";
  },
  takePlace() {
    const place = sessionPlace;
    sessionPlace = null;
    return place;
  },
};
let sessionPlace = null;

// --- tabs --------------------------------------------------------------------------------------------

async function show() {
  const wished = location.hash.slice(1);
  const name = wished in TABS ? wished : "providers";
  const isNew = shown !== name;
  shown = name;
  for (const link of $("tabs").children) {
    const isHere = link.dataset.tab === name;
    if (isHere) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  if (isNew) $("tabs").scrollLeft = $("tabs").querySelector("[aria-current]").offsetLeft - $("tabs").offsetLeft - 40;
  for (const [other, { pane }] of Object.entries(opened)) pane.hidden = other !== name;
  if (!opened[name]) {
    const pane = el("section", { class: `pane ${name}`, "aria-label": TABS[name][0] });
    opened[name] = { pane, tab: null };
    $("panes").append(pane);
    try {
      const { open } = await TABS[name][1]();
      opened[name].tab = open(pane, desk);
    } catch (error) {
      delete opened[name]; // asked for again when it is opened again
      pane.remove();
      throw error;
    }
  }
  await opened[name].tab?.refresh();
  drawBar();
}

addEventListener("hashchange", () => page.refresh());

// --- what is not saved -------------------------------------------------------------------------------

const dirtyTabs = () => Object.entries(opened).filter(([, { tab }]) => tab?.dirty?.() > 0);

function drawBar() {
  const dirty = dirtyTabs();
  const total = dirty.reduce((sum, [, { tab }]) => sum + tab.dirty(), 0);
  const elsewhere = dirty.filter(([name]) => name !== shown).map(([name]) => TABS[name][0]);
  $("unsaved").hidden = !total;
  $("unsaved-count").textContent = `${plural(total, "change")} not saved${elsewhere.length ? ` (${elsewhere.join(", ")})` : ""}`;
  if (!total) $("unsaved-result").textContent = "";
}

async function save() {
  if ($("save").disabled) return;
  for (const [name, { tab }] of dirtyTabs()) {
    let message = "";
    const isDone = await attempt($("unsaved-result"), "Saving …", async () => {
      const answer = await tab.save();
      message = answer?.message ?? "saved";
      if (answer?.restart_keys?.length) desk.restart(answer.restart_keys);
    }, [$("save"), $("discard")]);
    if (!isDone) {
      if (name !== shown) location.hash = name;
      break;
    }
    toast(`${TABS[name][0]}: ${message}`);
  }
  drawBar();
}

$("save").onclick = save;
$("discard").onclick = async () => {
  if (!(await confirmed({ title: "Discard what is not saved?", yes: "Discard" }))) return;
  for (const [, { tab }] of dirtyTabs()) tab.revert();
  drawBar();
};
addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "s" || event.altKey) return;
  event.preventDefault();
  if (!document.querySelector("dialog[open]")) save().catch(failed);
});
addEventListener("beforeunload", (event) => dirtyTabs().length && event.preventDefault());

const page = startPage({ events: "config_reloaded,agent_state", refresh: show });
