// The Cortex page: the owner's console, and beside it what the cortex did, does and will do.
// The server is the truth: threads, log and documents are asked of it, and its event stream says when to ask again.

import { el } from "./markdown.js?v=__VERSION__";
import { Unauthorized, follow, get, store } from "./connection.js?v=__VERSION__";
import { Console } from "./cortex_console.js?v=__VERSION__";
import { Documents } from "./cortex_documents.js?v=__VERSION__";
import { Deeds, Now } from "./cortex_inside.js?v=__VERSION__";
import { login, takeToken } from "./login.js?v=__VERSION__";
import { ago } from "./memory_words.js?v=__VERSION__";

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const RETRY_MS = [500, 1000, 2000, 4000, 8000];
const QUIET_MS = 400; // after an event: wait for more before asking
const MINUTE_MS = 60_000;
const EVENTS = "cortex_event,memory_changed,ingestion_progress,config_reloaded";
const TABS = ["now", "deeds", "documents"];

let agentId = "main";
let stream = null;
const context = { agent: () => agentId, unauthorized: login };
const now = new Now($("now"), context);
const deeds = new Deeds($("deeds"), context);
const documents = new Documents($("documents"), context);
const parts = { now, deeds, documents };
const console_ = new Console({ ...context, closeDrawer: () => drawer(null) });

takeToken();
start();

async function start() {
  const status = await patiently(() => get("status"));
  agentId = query.get("agent") ?? store.get("spacebot.agent") ?? status.default_agent_id;
  if (!status.agents.some((agent) => agent.id === agentId)) agentId = status.default_agent_id;
  const select = $("agent");
  select.replaceChildren(...status.agents.map((agent) => el("option", { value: agent.id, selected: agent.id === agentId }, agent.id)));
  select.hidden = status.agents.length < 2;
  document.body.classList.toggle("many", !select.hidden);
  select.onchange = () => {
    agentId = select.value;
    store.set("spacebot.agent", agentId);
    open(status);
  };
  open(status);
}

function open(status) {
  $("demo").hidden = !status.agents.find((agent) => agent.id === agentId)?.is_demo;
  for (const part of Object.values(parts)) part.clear();
  listen();
  showInside();
  patiently(() => console_.open());
}

async function patiently(ask) {
  const agent = agentId;
  for (let n = 0; agent === agentId; n += 1) {
    try {
      return await ask();
    } catch (error) {
      if (error instanceof Unauthorized) await login();
      else {
        setConnection("offline");
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(n, RETRY_MS.length - 1)]));
      }
    }
  }
}

// --- beside the console --------------------------------------------------------------------------

const chosen = () => TABS.find((name) => !$(name).hidden);
const showInside = () => parts[chosen()].show();

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

// --- events --------------------------------------------------------------------------------------

let timer = null;
function changed() {
  timer ??= setTimeout(() => {
    timer = null;
    if (!document.hidden) showInside();
  }, QUIET_MS);
}
setInterval(() => {
  changed(); // what is due comes closer
  for (const one of document.querySelectorAll("time")) one.textContent = ago(one.dateTime);
}, MINUTE_MS);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  changed();
  console_.catchUp();
});

function listen() {
  stream?.close();
  stream = follow({
    path: "events",
    params: { agent_id: agentId, types: EVENTS },
    on: (name, data) => {
      if (name === "ingestion_progress") documents.progressed(data);
      changed();
    },
    state: (name) => {
      if (name === "online") {
        changed();
        console_.catchUp();
      }
      setConnection(name);
    },
    unauthorized: login,
  });
}

function setConnection(name) {
  const place = $("connection");
  place.dataset.state = name;
  place.lastChild.textContent = { online: "connected", connecting: "connecting", offline: "offline, reconnecting" }[name];
}

// --- drawers on narrow screens -------------------------------------------------------------------

function drawer(name) {
  for (const id of ["threads", "inside"]) {
    $(id).classList.toggle("open", id === name);
    $(`open-${id}`).setAttribute("aria-expanded", String(id === name));
  }
  $("shade").hidden = !name;
  if (name) $(name).querySelector("button")?.focus({ preventScroll: true });
}
$("open-threads").onclick = () => drawer("threads");
$("open-inside").onclick = () => drawer($("inside").classList.contains("open") ? null : "inside");
$("shade").onclick = () => drawer(null);
addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    drawer(null);
    $("text").focus({ preventScroll: true });
  } else if (event.key === "/" && !/^(TEXTAREA|INPUT|SELECT)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    $("text").focus();
  }
});
