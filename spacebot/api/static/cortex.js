// The Cortex page: the owner's console, and beside it what the cortex did, does and will do.
// The server is the truth: threads, log and documents are asked of it, and its event stream says when to ask again.

import { Console } from "./cortex_console.js?v=__VERSION__";
import { Documents } from "./cortex_documents.js?v=__VERSION__";
import { Deeds, Now } from "./cortex_inside.js?v=__VERSION__";
import { login } from "./login.js?v=__VERSION__";
import { openPages } from "./shell.js?v=__VERSION__";
import { $, patiently, startPage } from "./ui.js?v=__VERSION__";

const MINUTE_MS = 60_000;
const EVENTS = "cortex_event,memory_changed,ingestion_progress,config_reloaded";
const TABS = ["now", "deeds", "documents"];

const context = { agent: () => page.agent, unauthorized: login };
const now = new Now($("now"), context);
const deeds = new Deeds($("deeds"), context);
const documents = new Documents($("documents"), context);
const parts = { now, deeds, documents };
const console_ = new Console({ ...context, closeDrawer: () => drawer(null) });

function open(agent) {
  for (const part of Object.values(parts)) part.clear();
  patiently(() => console_.open(), () => agent === page.agent);
}

// --- beside the console --------------------------------------------------------------------------

const chosen = () => TABS.find((name) => !$(name).hidden);
const showInside = () => page.agent === null || parts[chosen()].show();

function choose(name) {
  for (const tab of TABS) {
    $(tab).hidden = tab !== name;
    $(`tab-${tab}`).setAttribute("aria-selected", String(tab === name));
    $(`tab-${tab}`).tabIndex = tab === name ? 0 : -1;
  }
  history.replaceState(null, "", `${location.pathname}${location.search}${name === "now" ? "" : `#${name}`}`);
}
for (const name of TABS) {
  $(`tab-${name}`).onclick = () => {
    choose(name);
    showInside();
  };
  $(`tab-${name}`).onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = TABS[(TABS.indexOf(name) + step + TABS.length) % TABS.length];
    $(`tab-${next}`).focus();
    $(`tab-${next}`).click();
  };
}
choose(TABS.find((name) => location.hash === `#${name}`) ?? "now");

document.addEventListener("visibilitychange", () => !document.hidden && page.agent !== null && console_.catchUp());

// --- drawers on narrow screens -------------------------------------------------------------------

function drawer(name) {
  for (const id of ["threads", "inside"]) {
    $(id).classList.toggle("open", id === name);
    $(`open-${id}`).setAttribute("aria-expanded", String(id === name));
  }
  if (name) openPages(false);
  $("shade").hidden = !name;
  if (name) $(name).querySelector("button")?.focus({ preventScroll: true });
}
$("open-threads").onclick = () => drawer("threads");
$("open-inside").onclick = () => drawer($("inside").classList.contains("open") ? null : "inside");
$("shade").onclick = () => drawer(null);
addEventListener("keydown", (event) => {
  if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    drawer(null);
    $("text").focus({ preventScroll: true });
  }
});

const page = startPage({
  events: EVENTS,
  every: MINUTE_MS, // what is due comes closer
  opened: open,
  refresh: async () => showInside(),
  on: (name, data) => void (name === "ingestion_progress" && documents.progressed(data)),
  online: () => console_.catchUp(),
});
