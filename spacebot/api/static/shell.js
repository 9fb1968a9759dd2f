// What stands around every page: navigation with badges of live work, choice of agent, banners, theme, keyboard.

import { get, store } from "./connection.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { number } from "./words.js?v=__VERSION__";

export const SHELL_EVENTS = ["worker_started", "worker_completed", "branch_started", "branch_completed", "config_reloaded", "agent_state"];
const THEMES = ["system", "light", "dark"];
const AGAIN_MS = 800; // after an event: figures of live work may wait this long
const LIVE_MS = 20_000; // what no event told
const SEQUENCE_MS = 1500; // between `g` and the letter of a page
const TYPING = /^(TEXTAREA|INPUT|SELECT)$/;
const UPDATE_KEY = "spacebot.update";
const UPDATE_MS = 6 * 3_600_000; // between questions for a newer version

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const isEmbedded = query.has("embed");
const isDrawer = matchMedia("(max-width: 48rem)");

// Sets the shell going. `chosen(agentId, status)` is called when the agents are known and when another one is chosen.
// Returns {take(status), on(event), changed()}.
export function shell({ chosen }) {
  let agent = null;
  let timer = null;
  drawTheme();

  function take(status) {
    const isKnown = (id) => status.agents.some((one) => one.id === id);
    const wished = [agent, query.get("agent"), store.get("spacebot.agent"), status.default_agent_id];
    agent = wished.find(isKnown) ?? status.agents[0]?.id ?? status.default_agent_id;
    const select = $("agent");
    select.replaceChildren(...status.agents.map(({ id }) => el("option", { value: id, selected: id === agent }, id)));
    select.hidden = status.agents.length < 2 || isEmbedded || !("scoped" in document.body.dataset);
    document.body.classList.toggle("many", !select.hidden);
    select.onchange = () => {
      agent = select.value;
      store.set("spacebot.agent", agent);
      if (query.has("agent")) {
        query.set("agent", agent); // what a reload shows
        history.replaceState(history.state, "", `${location.pathname}?${query}${location.hash}`);
      }
      drawBanners(status, agent);
      chosen(agent, status);
    };
    drawBadges(status.counts);
    drawBanners(status, agent);
    chosen(agent, status);
  }

  const changed = () => {
    timer ??= setTimeout(async () => {
      timer = null;
      if (document.hidden) return;
      try {
        take(await get("status"));
      } catch {
        // the page's own questions say so
      }
    }, AGAIN_MS);
  };
  if (!isEmbedded) {
    setInterval(changed, LIVE_MS);
    document.addEventListener("visibilitychange", changed);
    setTimeout(offerUpdate, AGAIN_MS);
  }
  return { take, changed, on: (name) => (SHELL_EVENTS.includes(name) || name === "lagged") && changed() };
}

// --- badges and banners ----------------------------------------------------------------------------

function drawBadges({ workers = 0, turns = 0, branches = 0 }) {
  badge("workers", workers, `${number(workers)} at work`);
  badge("conversations", turns + branches, `${number(turns + branches)} answering or thinking`);
  document.body.classList.toggle("live", workers + turns + branches > 0);
}

function badge(page, count, words) {
  const place = document.querySelector(`#pages [data-page="${page}"] .count-badge`);
  if (!place) return;
  place.hidden = !count;
  place.textContent = count > 99 ? "99+" : String(count);
  place.title = words;
}

// Whether built-in rules answer because no provider is set up, and where to change that.
function drawBanners(status, agentId) {
  const isScoped = "scoped" in document.body.dataset;
  const agents = isScoped ? status.agents.filter(({ id }) => id === agentId) : status.agents;
  $("demo").hidden = !(status.needs_setup || (agents.length > 0 && agents.every((one) => one.is_demo)));
  const place = $("demo").lastElementChild;
  if (place.dataset.drawn || isEmbedded || !hasPage("settings")) return;
  place.dataset.drawn = "yes";
  place.replaceChildren("Add a model key for real ones: ", el("a", { href: "settings#providers" }, "open the settings"), ", or run ", el("code", {}, "spacebot init"), ".");
}

const hasPage = (name) => document.querySelector(`#pages [data-page="${name}"]`) !== null;

// A newer version, asked for a few times a day; the person may send the notice away until the next one.
async function offerUpdate() {
  let known = {};
  try {
    known = JSON.parse(store.get(UPDATE_KEY) ?? "{}");
  } catch {}
  const keep = (more) => store.set(UPDATE_KEY, JSON.stringify((known = { ...known, ...more })));
  if (!(Date.now() - known.at < UPDATE_MS)) {
    try {
      const { update_available: isNew, latest_version: version, release_url: notes, cannot_apply_reason: how } = await get("update/check");
      keep({ at: Date.now(), version: isNew ? version : null, notes, how });
    } catch {
      return; // nobody could be asked: no news
    }
  }
  if (!known.version || known.dismissed === known.version) return;
  const dismiss = () => {
    keep({ dismissed: known.version });
    $("update").hidden = true;
  };
  const isLink = /^https:\/\//.test(known.notes ?? "");
  $("update").replaceChildren(
    el("strong", {}, `Version ${known.version} is there.`), " ",
    known.how ? `To update: ${known.how} ` : "",
    isLink ? el("a", { href: known.notes, target: "_blank", rel: "noopener noreferrer" }, "What is new") : "", " ",
    el("button", { type: "button", class: "plain", onclick: dismiss }, "Not now"),
  );
  $("update").hidden = false;
}

// --- theme -----------------------------------------------------------------------------------------

const theme = () => document.documentElement.dataset.theme ?? "system";

function drawTheme() {
  $("theme").lastElementChild.textContent = `Theme: ${theme()}`;
  $("theme").title = `Theme: ${theme()}`;
}

$("theme").onclick = () => {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  if (next === "system") {
    delete document.documentElement.dataset.theme;
    store.remove("spacebot.theme");
  } else {
    document.documentElement.dataset.theme = next;
    store.set("spacebot.theme", next);
  }
  drawTheme();
  dispatchEvent(new Event("themechange")); // for what is painted by hand
};

// --- navigation ------------------------------------------------------------------------------------

export function openPages(isOpen) {
  $("pages").classList.toggle("open", isOpen);
  $("open-pages").setAttribute("aria-expanded", String(isOpen));
  $("shade").hidden = !isOpen;
  if (isOpen) $("pages").querySelector("[aria-current], a").focus({ preventScroll: true });
}

$("open-pages").onclick = () => openPages(!$("pages").classList.contains("open"));
$("shade").addEventListener("click", () => openPages(false));
isDrawer.addEventListener("change", () => $("pages").classList.contains("open") && openPages(false));
$("fold-pages").onclick = () => {
  const isNarrow = $("pages").clientWidth < 100;
  document.documentElement.dataset.pages = isNarrow ? "wide" : "narrow";
  store.set("spacebot.pages", document.documentElement.dataset.pages);
};

// The fragment of an address may belong to the page, so skipping does not change it.
document.querySelector(".skip").onclick = (event) => {
  event.preventDefault();
  const place = document.querySelector(event.currentTarget.getAttribute("href"));
  place?.focus();
  place?.scrollIntoView({ block: "nearest" });
};

// --- keyboard --------------------------------------------------------------------------------------

const areKeysOn = () => store.get("spacebot.keys") !== "off";
let sequence = 0; // until when a letter after `g` counts

function help() {
  const rows = [...document.querySelectorAll("#pages a[data-key]")].map((link) => [`g ${link.dataset.key}`, link.querySelector("span").textContent]);
  rows.push(["/", "Search or write"], ["?", "This help"], ["Esc", "Close what is open"]);
  $("help").querySelector("dl").replaceChildren(
    ...rows.map(([keys, what]) => el("div", {}, el("dt", {}, ...keys.split(" ").flatMap((key) => [el("kbd", {}, key), " "])), el("dd", {}, what))),
  );
  $("keys-on").checked = areKeysOn();
  if (!$("help").open) $("help").showModal();
}
$("open-help").onclick = help;
$("help").querySelector("button").onclick = () => $("help").close();
$("keys-on").onchange = () => store.set("spacebot.keys", $("keys-on").checked ? "on" : "off");

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && $("pages").classList.contains("open")) {
    openPages(false);
    $("open-pages").focus();
    return;
  }
  const at = document.activeElement;
  if (isEmbedded || !areKeysOn() || TYPING.test(at.tagName) || at.isContentEditable) return;
  if (performance.now() < sequence) {
    sequence = 0;
    const link = document.querySelector(`#pages a[data-key="${CSS.escape(event.key)}"]`);
    if (link) {
      event.preventDefault();
      link.click();
    }
  } else if (event.key === "g") sequence = performance.now() + SEQUENCE_MS;
  else if (event.key === "?") {
    event.preventDefault();
    help();
  } else if (event.key === "/") {
    const place = document.querySelector("[data-slash]") ?? document.querySelector("main input[type=search], #page input[type=search]");
    if (!place) return;
    event.preventDefault();
    place.focus();
  }
});
