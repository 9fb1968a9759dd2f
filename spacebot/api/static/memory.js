// The Memory page: what the agent remembers, to look through, walk along, correct and forget.
// The server is the truth: every change is asked of it, and what others change arrives by the event stream.

import { el } from "./markdown.js?v=__VERSION__";
import { Unauthorized, get, post } from "./connection.js?v=__VERSION__";
import { login } from "./login.js?v=__VERSION__";
import { Graph, legend } from "./memory_graph.js?v=__VERSION__";
import { drawGrowth } from "./memory_growth.js?v=__VERSION__";
import { LongList } from "./memory_list.js?v=__VERSION__";
import { Panel, memoryForm } from "./memory_panel.js?v=__VERSION__";
import { COVERED, TYPES, badge, marks, meter } from "./memory_words.js?v=__VERSION__";
import { $, failed, startPage, toast } from "./ui.js?v=__VERSION__";
import { line, number, time } from "./words.js?v=__VERSION__";

const TYPING_MS = 300;
const PREVIEW = 320; // characters of a text in a row
const [FOUND, FOUND_NODES] = [50, 25]; // in the list, in the graph
const NODES = 300;
const EXCLUDED = 300; // ids in one address
const DEEDS = 12; // latest ones shown
const EVENTS = "memory_saved,memory_changed";

const state = { agent: "main", view: "list", type: "", standing: "live", sort: "recent", q: "", isUncovered: false, days: 30 };
let history_ = null; // figures of the store, as last fetched
let asked = 0; // counts what was asked for, so that a late answer to an old question is dropped

const isCovered = (memory) => memory.is_private && !state.isUncovered;
const panel = new Panel($("panel"), { context: () => state, open: openMemory, closed: closePanel, inGraph, told, failed });
const list = new LongList($("list"), { draw: drawRow, failed });
const graph = new Graph($("graph").querySelector("canvas"), {
  isCovered: (memory) => isCovered(memory) && !panel.uncovered.has(memory.id),
  selected: openMemory,
  expand,
});

// --- start ---------------------------------------------------------------------------------------

let isOpened = false;
$("graph-legend").append(legend());

async function opened(agent) {
  state.agent = agent;
  if (isOpened) {
    closePanel();
    $("growth").replaceChildren(); // another one's report
    return showAll();
  }
  isOpened = true;
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (["graph", "growth"].includes(wanted.get("view"))) state.view = wanted.get("view");
  await showAll();
  if (wanted.get("id")) openMemory(wanted.get("id"));
}

// --- what is shown -------------------------------------------------------------------------------

const common = () => ({ agent_id: state.agent, preview: PREVIEW, ...(state.type && { memory_type: state.type }) });

async function loadPage(offset, limit) {
  const page = await get("agents/memories", { ...common(), sort: state.sort, standing: state.standing, offset, limit });
  return { items: page.memories.map((memory) => ({ memory })), total: page.total };
}

async function loadFound(_, __, limit = FOUND) {
  const found = await get("agents/memories/search", { ...common(), q: state.q, limit });
  return { items: found.results, total: found.results.length, notes: found.notes, edges: found.edges };
}

function showAll(isNew = true) {
  // What is forgotten may all have been brought back: then the figures decide what is shown.
  if (state.standing === "forgotten") return showFigures().then(() => showView(isNew));
  return Promise.all([state.view === "growth" ? null : showFigures(), showView(isNew)]);
}

// Draws the chosen view. `isNew` when something else is asked for than before; otherwise it is brought up to date.
async function showView(isNew) {
  const turn = (asked += 1);
  remember();
  const isSearch = state.q !== "";
  for (const button of document.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", String(button.dataset.view === state.view));
  document.body.dataset.view = state.view;
  $("list").hidden = state.view !== "list";
  $("graph").hidden = state.view !== "graph";
  $("growth").hidden = state.view !== "growth";
  $("sort").disabled = state.view === "growth" || (state.view === "list" && isSearch);
  $("sort").title = $("sort").disabled && isSearch ? "What fits best comes first" : "";
  $("types").hidden = state.view === "growth";
  $("uncover").hidden = state.view === "growth" || !history_?.now.private;
  try {
    if (state.view === "list") await showList(turn, isNew, isSearch);
    else if (state.view === "graph") await showGraph(turn, isNew, isSearch);
    else await showGrowth(turn);
  } catch (error) {
    if (turn !== asked) return;
    if (error instanceof Unauthorized) return login().then(() => showAll());
    note("");
    empty(el("h2", {}, "This cannot be shown now"), el("p", { class: "error" }, error.message), el("button", { type: "button", class: "pill", onclick: () => showAll() }, "Try again"));
  }
}

async function showList(turn, isNew, isSearch) {
  const page = isNew ? await list.show(isSearch ? loadFound : loadPage, isSearch ? "found" : "") : await list.refresh();
  if (turn !== asked || !page) return;
  if (isSearch) note(page.total ? `${page.total === 1 ? "1 memory" : `${page.total} memories, the closest first`}` : "", page.notes);
  else note(page.total ? `${number(page.total)} ${state.standing === "forgotten" ? "forgotten" : page.total === 1 ? "memory" : "memories"}` : "");
  if (page.total) empty();
  else teach(isSearch);
}

async function showGraph(turn, isNew, isSearch) {
  let nodes;
  let edges = [];
  let total;
  if (isSearch) {
    const found = await loadFound(0, 0, FOUND_NODES);
    nodes = found.items.map((item) => item.memory);
    total = found.total;
    if (nodes.length) {
      // What was found, and what lies one step around the best of it.
      const around = await get("agents/memories/graph/neighbors", { agent_id: state.agent, preview: PREVIEW, memory_id: nodes[0].id, exclude: nodes.slice(1, EXCLUDED).map((one) => one.id).join(",") });
      nodes = [...nodes, ...around.nodes];
      const known = new Set(found.edges.map((edge) => edge.id));
      edges = [...found.edges, ...around.edges.filter((edge) => !known.has(edge.id))];
    }
  } else {
    const page = await get("agents/memories/graph", { ...common(), sort: state.sort, limit: NODES });
    [nodes, edges, total] = [page.nodes, page.edges, page.total];
  }
  if (turn !== asked) return;
  graph.set(nodes, edges, isNew);
  graph.select(panel.id);
  listNodes();
  note(!nodes.length ? "" : isSearch ? `The ${number(total)} closest, with what lies next to the best of them` : `${nodes.length < total ? `${number(nodes.length)} of ${number(total)} memories` : `${number(total)} ${total === 1 ? "memory" : "memories"}`}, ${number(edges.length)} ${edges.length === 1 ? "connection" : "connections"}`);
  if (nodes.length) empty();
  else teach(isSearch);
}

// The graph for those who do not see or point: the same memories as buttons.
function listNodes() {
  const nodes = [...graph.nodes.values()].sort((a, b) => b.degree - a.degree || b.memory.importance - a.memory.importance);
  $("graph-list").querySelector("ul").replaceChildren(
    ...nodes.map(({ memory, degree }) =>
      el("li", {}, el("button", {
        type: "button", class: "plain", "data-id": memory.id,
        onclick: () => openMemory(memory.id), onfocus: () => ((graph.hovered = memory.id), graph.wake()),
      }, badge(memory), el("span", { dir: "auto" }, isCovered(memory) ? COVERED : line(memory.content)), el("span", { class: "fine" }, `${degree} ${degree === 1 ? "connection" : "connections"}`))),
    ),
  );
}

async function expand(id) {
  try {
    const shown = [...graph.nodes.keys()].filter((one) => one !== id).slice(0, EXCLUDED);
    const around = await get("agents/memories/graph/neighbors", { agent_id: state.agent, preview: PREVIEW, memory_id: id, exclude: shown.join(",") });
    graph.add(id, around.nodes, around.edges);
    listNodes();
    note(around.nodes.length ? `${number(around.nodes.length)} more around it${around.is_cut ? " (the strongest)" : ""}` : "Everything around it is shown already.");
  } catch (error) {
    failed(error);
  }
}

async function showGrowth(turn) {
  note("");
  await showFigures(true);
  if (turn !== asked) return;
  if (!history_.now.total && !history_.now.forgotten) return teach(false);
  empty();
  const deeds = await get("cortex/events", { agent_id: state.agent, limit: DEEDS });
  if (turn !== asked) return;
  drawGrowth($("growth"), {
    history: history_,
    deeds: deeds.events,
    days: state.days,
    setDays: (days) => ((state.days = days), showView(true)),
    setType: (type) => ((state.type = type), (state.view = "list"), showAll()),
    maintain: (isDry) => post(`agents/memories/maintain?${new URLSearchParams({ agent_id: state.agent, dry_run: isDry })}`, {}),
    maintained: () => showAll(),
    open: openMemory,
  });
}

async function showFigures(isAll = false) {
  try {
    history_ = await get("agents/memories/history", { agent_id: state.agent, days: state.days, utc_offset: -new Date().getTimezoneOffset() });
  } catch (error) {
    if (isAll) throw error;
    return; // the view beside it says what is wrong
  }
  const { now } = history_;
  if (!now.forgotten && state.standing === "forgotten") state.standing = "live";
  const chip = (name, count, isOn, choose, title = "", kind = "") =>
    el("button", { type: "button", class: `chip ${kind}`, title, "aria-pressed": String(isOn), onclick: choose }, name, el("span", { class: "count" }, number(count)));
  const choose = (type, standing) => () => {
    [state.type, state.standing] = [type, standing];
    showAll();
  };
  const isLive = state.standing === "live";
  const focused = [...$("types").children].indexOf(document.activeElement);
  $("types").replaceChildren(
    chip("All", now.total, isLive && !state.type, choose("", "live")),
    ...Object.entries(TYPES).map(([type, { many, hint }]) => chip(many, now.by_type[type] ?? 0, isLive && state.type === type, choose(type, "live"), hint, `kind kind-${type}`)),
    now.forgotten ? chip("Forgotten", now.forgotten, !isLive, choose("", "forgotten"), "Nothing recalls these any more; they can be brought back") : "",
  );
  $("types").children[focused]?.focus();
  $("uncover").hidden = state.view === "growth" || !now.private;
}

function drawRow({ memory, why }) {
  return el(
    "button",
    { type: "button", class: `row ${memory.forgotten ? "gone" : ""}`, "data-id": memory.id, "aria-current": memory.id === panel.id ? "true" : null, onclick: () => openMemory(memory.id) },
    el("span", { class: "row-head" }, badge(memory), ...marks(memory)),
    el("span", { class: "row-when" }, meter(memory), time(memory.created_at)),
    isCovered(memory) ? el("span", { class: "row-text covered" }, COVERED) : el("span", { class: "row-text", dir: "auto" }, memory.content + (memory.is_cut ? "…" : "")),
    why && !isCovered(memory) ? el("span", { class: "row-why", dir: "auto", title: why }, why) : null,
  );
}

function note(text, notes = []) {
  $("note").replaceChildren(text, ...notes.map((one) => el("span", { class: "error" }, ` ${one}`)));
}

function empty(...children) {
  $("empty").hidden = !children.length;
  $("empty").replaceChildren(...children);
  if (children.length) for (const id of ["list", "graph", "growth"]) $(id).hidden = true;
}

// Why there is nothing to see, and what to do about it.
function teach(isSearch) {
  const chat = el("a", { class: "pill", href: "./" }, "Go to the chat");
  const add = el("button", { type: "button", class: "pill", onclick: openAdd }, "Add one by hand");
  if (isSearch) return empty(el("h2", {}, "Nothing fits"), el("p", {}, `Nothing that is remembered fits “${line(state.q, 60)}”${state.type ? ` among ${TYPES[state.type].many.toLowerCase()}` : ""}. Other words may find it: meaning counts, not spelling.`));
  if (state.standing === "forgotten") return empty(el("h2", {}, "Nothing was forgotten"));
  if (state.type) return empty(el("h2", {}, `No ${TYPES[state.type].many.toLowerCase()} yet`), el("p", {}, TYPES[state.type].hint), el("div", { class: "actions" }, chat, add));
  empty(
    el("h2", {}, "Nothing remembered yet"),
    el("p", {}, "Talk to me and I keep what matters: facts, wishes, decisions, who is who. Or drop a text, Markdown or PDF file into the agent’s ", el("code", {}, "ingest"), " folder and I read it. Everything I keep shows up here, where you can correct it or have it forgotten."),
    el("div", { class: "actions" }, chat, add),
  );
}

// --- one memory ----------------------------------------------------------------------------------

let isPushed = false; // whether the browser's way back closes the memory
function openMemory(id) {
  if (panel.isEditing && panel.id === id) return;
  if (panel.id === null) history.pushState({ id }, "", address(id));
  else history.replaceState({ id }, "", address(id));
  isPushed = true;
  document.body.classList.add("has-panel");
  panel.show(id).then(() => {
    const box = $("panel").getBoundingClientRect();
    if (state.view === "graph" && box.left === 0) graph.lift(id, box.top); // on a phone it lies over the graph
  });
  mark(id);
}

function closePanel(isBack = false) {
  if (panel.id === null) return;
  const id = panel.id;
  panel.close();
  document.body.classList.remove("has-panel");
  if (!isBack && isPushed) history.back();
  isPushed = false;
  mark(null);
  document.querySelector(`#list [data-id="${CSS.escape(id)}"]`)?.focus({ preventScroll: true });
}

function mark(id) {
  for (const row of document.querySelectorAll("#list .row")) {
    if (row.dataset.id === id) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
  if (state.view === "graph") graph.select(id);
}

addEventListener("popstate", (event) => {
  if (event.state?.id) openMemory(event.state.id);
  else {
    closePanel(true);
    remember();
  }
});

function address(id) {
  const fragment = new URLSearchParams({ ...(state.view !== "list" && { view: state.view }), ...(id && { id }) });
  return `${location.pathname}${location.search}${fragment.size ? `#${fragment}` : ""}`;
}
const remember = () => history.replaceState(panel.id ? { id: panel.id } : null, "", address(panel.id));

async function inGraph(id) {
  if (state.view !== "graph") {
    Object.assign(state, { view: "graph", q: "", type: "" });
    $("q").value = "";
    await showAll();
  }
  if (!graph.nodes.has(id)) {
    graph.set([...[...graph.nodes.values()].map((node) => node.memory), panel.detail.memory], graph.links.map((link) => link.edge), false);
    await expand(id);
  }
  graph.select(id, true);
}

// --- adding --------------------------------------------------------------------------------------

function openAdd() {
  const dialog = $("adding");
  const close = () => dialog.close();
  dialog.querySelector("form")?.remove();
  const form = memoryForm(null, {
    save: async (values) => {
      try {
        const added = await post("agents/memories", { ...values, agent_id: state.agent });
        close();
        told(added.is_new ? "Remembered." : "I knew that already.");
        await showAll();
        openMemory(added.memory.id);
      } catch (error) {
        form.querySelector(".error").textContent = error.message;
      }
    },
    cancel: close,
  });
  dialog.append(form);
  dialog.showModal();
  form.elements.content.focus();
}

// --- events from elsewhere -----------------------------------------------------------------------

let isFirst = true; // what `opened` shows need not be asked for twice
async function refresh() {
  if (isFirst) return void (isFirst = false);
  await Promise.all([showAll(false), panel.refresh()]).catch(failed);
}

// --- telling -------------------------------------------------------------------------------------

function told(text, undo) {
  toast(text, "", undo ? 12 : 4, undo);
  page.changed(); // the event stream says so too, when it is connected
}

// --- controls ------------------------------------------------------------------------------------

let typing = null;
$("q").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(search, TYPING_MS);
});
$("q").addEventListener("keydown", (event) => {
  if (event.key === "Enter") search();
  else if (event.key === "ArrowDown" && state.view === "list" && list.total) {
    event.preventDefault();
    list.focus(0);
  }
});
function search() {
  clearTimeout(typing);
  const text = $("q").value.trim();
  if (text === state.q) return;
  state.q = text;
  if (text && state.view === "growth") state.view = "list";
  if (text && state.standing === "forgotten") state.standing = "live";
  showAll();
}
for (const button of document.querySelectorAll(".tools [data-view]")) {
  button.onclick = () => {
    state.view = button.dataset.view;
    empty();
    showView(true);
  };
}
$("sort").onchange = () => {
  state.sort = $("sort").value;
  showView(true);
};
$("uncover").onclick = () => {
  state.isUncovered = !state.isUncovered;
  if (!state.isUncovered) panel.uncovered.clear();
  $("uncover").setAttribute("aria-pressed", String(state.isUncovered));
  $("uncover").textContent = state.isUncovered ? "Hide private" : "Show private";
  list.redraw();
  graph.relabel();
  if (state.view === "graph") listNodes();
  if (panel.detail && !panel.isEditing) panel.draw();
};
$("add").onclick = openAdd;
$("zoom-in").onclick = () => graph.zoom(1.3);
$("zoom-out").onclick = () => graph.zoom(1 / 1.3);
$("zoom-all").onclick = () => graph.all();
let lastWidth = innerWidth;
addEventListener("resize", () => {
  if (state.view === "growth" && lastWidth !== innerWidth) showView(false);
  lastWidth = innerWidth;
});
addEventListener("keydown", (event) => {
  const isTyping = /^(TEXTAREA|INPUT|SELECT)$/.test(document.activeElement.tagName);
  if (event.key === "Escape" && !event.defaultPrevented && !document.querySelector("dialog[open]") && !(isTyping && $("panel").contains(document.activeElement))) closePanel();
});

const page = startPage({ events: EVENTS, every: 0, opened, refresh });
