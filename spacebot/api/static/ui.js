// What every page does alike: it starts, chooses an agent, follows what happens, asks anew, and tells how it went.
// The server is the truth: a page asks it, and its event stream says when to ask again.

import { Unauthorized, follow, get } from "./connection.js?v=__VERSION__";
import { login, takeToken } from "./login.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { SHELL_EVENTS, shell } from "./shell.js?v=__VERSION__";
import { ago } from "./words.js?v=__VERSION__";

export const $ = (id) => document.getElementById(id);
const [QUIET_MS, LATEST_MS] = [400, 3000]; // after an event: wait for more before asking, but not for ever
const REFRESH_MS = 15_000; // what no event tells
const MINUTE_MS = 60_000;
export const RETRY_MS = [500, 1000, 2000, 4000, 8000];
const TOASTS = 3;

takeToken(); // before a page reads what stands in its address

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// --- asking ----------------------------------------------------------------------------------------

// Ask until there is an answer; a token is asked for when the server wants one. `isWanted` false gives up (undefined).
export async function patiently(ask, isWanted = () => true) {
  for (let n = 0; isWanted(); n += 1) {
    try {
      return await ask();
    } catch (error) {
      if (error instanceof Unauthorized) await login();
      else {
        setConnection("offline");
        await sleep(RETRY_MS[Math.min(n, RETRY_MS.length - 1)]);
      }
    }
  }
}

// What a route says, or null where this program does not have it (yet): a card that needs it is left out.
export async function maybe(path, params = {}) {
  try {
    return await get(path, params);
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

// Calls `work` soon after the last of several calls, at the latest after `latest` ms; never while the page is hidden:
// then it is made up for when the page is looked at.
export function debounced(work, quiet = QUIET_MS, latest = LATEST_MS) {
  let timer = null;
  let first = 0;
  let isOwed = false;
  const call = () => {
    if (document.hidden) return void (isOwed = true);
    const now = performance.now();
    first ||= now;
    clearTimeout(timer);
    timer = setTimeout(() => {
      first = 0;
      work();
    }, Math.max(0, Math.min(quiet, first + latest - now)));
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden || !isOwed) return;
    isOwed = false;
    call();
  });
  return call;
}

// --- a page ----------------------------------------------------------------------------------------

// Starts a page. All parts are optional:
//   opened(agent, status)  the agent is known, at the start and whenever another one is chosen
//   refresh(agent)         asks the server and draws; what it throws shows the banner "does not answer"
//   events                 names of events after which to refresh, comma separated; "" leaves only the shell's own
//   on(name, data)         each of these events, before the refresh; false if it needs none
//   online()               the event stream is connected, for the first time or again
//   every                  milliseconds between looks without an event; 0 for none
//   isEarly                `refresh` does not care for the agent (it may be null): it need not wait until one is known
// Returns {agent, status, changed(), refresh()}. `agent` is the chosen one; `changed` asks for a refresh soon.
export function startPage({ opened = () => {}, refresh = async () => {}, events = "", on = () => {}, online = () => {}, every = REFRESH_MS, isEarly = false }) {
  const own = new Set(events.split(",").filter(Boolean));
  const page = { agent: null, status: null, refresh: look, changed: debounced(look), opened: null };
  const all = shell({ chosen: choose });

  async function look() {
    const agent = page.agent;
    if (agent === null && !isEarly) return;
    try {
      await refresh(agent);
      if (isEarly || agent === page.agent) $("stale").hidden = true;
    } catch (error) {
      if (error instanceof Unauthorized) {
        await login();
        page.changed();
      } else {
        if (!(error.status >= 400)) setConnection("offline");
        else console.error(error);
        $("stale").hidden = false;
      }
    }
  }

  function choose(agent, status) {
    page.status = status;
    if (agent === page.agent) return;
    page.agent = agent;
    opened(agent, status);
    if (!isEarly) look();
  }

  if (isEarly) look();
  page.opened = (async () => {
    all.take(await patiently(() => get("status")));
    watch();
  })();

  function watch() {
    let wasOnline = false;
    follow({
      path: "events",
      params: { types: [...new Set([...own, ...SHELL_EVENTS])].join(",") },
      on: (name, data) => {
        all.on(name, data);
        if (name !== "lagged" && !own.has(name)) return;
        if (data.agent_id && data.agent_id !== page.agent && "scoped" in document.body.dataset) return;
        if (on(name, data) !== false) page.changed();
      },
      state: (name) => {
        if (name === "online" && wasOnline) {
          page.changed(); // what happened meanwhile was missed
          all.changed();
        }
        wasOnline ||= name === "online";
        if (name === "online") online();
        setConnection(name);
      },
      unauthorized: login,
    });
    if (every) setInterval(page.changed, every);
    setInterval(() => {
      for (const one of document.querySelectorAll("time[data-ago]")) one.textContent = ago(one.dateTime);
    }, MINUTE_MS);
  }

  return page;
}

export function setConnection(name) {
  const place = $("connection");
  if (place.dataset.state === name) return;
  place.dataset.state = name;
  place.lastChild.textContent = { online: "connected", connecting: "connecting", offline: "offline, reconnecting" }[name];
}

// --- drawing ---------------------------------------------------------------------------------------

// A list whose rows keep their elements (and so their focus and what is open in them) while their contents change.
// `make(key)` gives an object with `node` and `show(item)`. Returns the function that draws items; `rows` are its rows.
export function keyed(list, make, keyOf = (item) => item.id) {
  const rows = new Map();
  const draw = (items) => {
    const nodes = items.map((item) => {
      const key = keyOf(item);
      if (!rows.has(key)) rows.set(key, make(key));
      const row = rows.get(key);
      row.show(item);
      return row.node;
    });
    const known = new Set(items.map(keyOf));
    for (const key of rows.keys()) if (!known.has(key)) rows.delete(key);
    put(list, nodes);
  };
  draw.rows = rows;
  return draw;
}

// Puts nodes into a list without touching those that stand right already, so that none of them loses the focus.
export function put(list, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...list.children]) if (!wanted.has(child)) child.remove();
  nodes.forEach((node, i) => {
    if (list.children[i] !== node) list.insertBefore(node, list.children[i] ?? null);
  });
}

// A button that looks like the others.
export const button = (label, act, more = {}) => el("button", { type: "button", ...more, class: `pill ${more.class ?? ""}`.trim(), onclick: act }, label);

// --- telling ---------------------------------------------------------------------------------------

export function say(place, text, isGood) {
  place.className = isGood === undefined ? "result" : `result ${isGood ? "good" : "bad"}`;
  place.textContent = text;
}

// Does something and tells in `place` how it went. `buttons` rest meanwhile. Returns whether it went well.
export async function attempt(place, words, work, buttons = []) {
  for (const one of buttons) one.disabled = true;
  say(place, words);
  try {
    const answer = await work();
    say(place, answer?.message ?? "", answer?.success ?? true);
    return answer?.success ?? true;
  } catch (error) {
    if (error instanceof Unauthorized) await login();
    say(place, error instanceof Unauthorized ? "Please try once more." : error.message, false);
    return false;
  } finally {
    for (const one of buttons) one.disabled = false;
  }
}

// A short note in the corner. `kind` "" or "error"; `undo` adds a button.
export function toast(text, kind = "", seconds = kind ? 10 : 4, undo = null) {
  const box = el("div", { class: `toast ${kind}`, role: kind ? "alert" : "status" }, el("span", {}, text));
  const remove = () => box.remove();
  if (undo) box.append(el("button", { type: "button", class: "plain undo", onclick: () => (remove(), undo()) }, "Undo"));
  box.append(el("button", { type: "button", class: "plain", "aria-label": "Close", onclick: remove }, "✕"));
  $("toasts").append(box);
  while ($("toasts").children.length > TOASTS) $("toasts").firstChild.remove();
  setTimeout(remove, seconds * 1000);
}

export function failed(error) {
  if (error instanceof Unauthorized) return login();
  toast(error.message, "error");
}

// Asks before something that cannot be taken back; resolves to whether it was agreed to. With `typed` the person has to
// type this word first.
export function confirmed({ title, text = "", yes = "Delete", no = "Keep it", typed = null }) {
  return new Promise((resolve) => {
    const agree = el("button", { type: "button", class: "pill danger yes", disabled: typed !== null, onclick: () => end(true) }, yes);
    const input = typed === null ? null : el("input", { autocomplete: "off", "aria-label": `Type ${typed}`, placeholder: typed, oninput: () => (agree.disabled = input.value.trim() !== typed) });
    const dialog = el(
      "dialog", { class: "asking", "aria-label": title },
      el("h2", {}, title), text ? el("p", { dir: "auto" }, text) : null, input,
      el("div", { class: "actions" }, el("button", { type: "button", class: "pill no", autofocus: typed === null, onclick: () => end(false) }, no), agree),
    );
    const end = (isAgreed) => {
      dialog.remove();
      resolve(isAgreed);
    };
    dialog.addEventListener("cancel", () => end(false));
    document.body.append(dialog);
    dialog.showModal();
  });
}

// A dialog with a form of the page's own: `fill(form, close)` puts its parts; `submit(data)` gets what was typed and may
// throw, which is shown. The dialog goes when `submit` returns.
export function formDialog({ title, fill, submit, yes = "Save" }) {
  const result = el("p", { class: "result", role: "status" });
  const go = el("button", { class: "pill primary" }, yes);
  const form = el("form");
  const dialog = el("dialog", { class: "asking wide", "aria-label": title }, el("h2", {}, title), form);
  const close = () => dialog.remove();
  fill(form, close);
  form.append(result, el("div", { class: "actions" }, el("button", { type: "button", class: "pill", onclick: close }, "Cancel"), go));
  form.onsubmit = async (event) => {
    event.preventDefault();
    if (await attempt(result, "…", () => submit(new FormData(form)), [go])) close();
  };
  dialog.addEventListener("cancel", close);
  document.body.append(dialog);
  dialog.showModal();
  form.querySelector("input, textarea, select")?.focus();
  return dialog;
}

// Words of direct chats stay covered until they are asked for. `button` shows and hides them; `draw` is called then.
export class Cover {
  constructor(button, draw) {
    this.isOpen = false;
    this.button = button;
    button.onclick = () => {
      this.isOpen = !this.isOpen;
      button.textContent = this.isOpen ? "Hide private" : "Show private";
      button.setAttribute("aria-pressed", String(this.isOpen));
      draw();
    };
  }

  hides(item) {
    return item.is_private && !this.isOpen;
  }

  // Whether there is anything to uncover.
  offer(isAny) {
    this.button.hidden = !isAny;
  }
}
