// The Logs page: what the program writes down, while it does. The newest lines are asked for, then followed; a reader who
// was away goes on behind the last line known.

import { follow, get } from "./connection.js?v=__VERSION__";
import { login } from "./login.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { $, failed, startPage } from "./ui.js?v=__VERSION__";
import { number } from "./words.js?v=__VERSION__";

const clock = new Intl.DateTimeFormat([], { timeStyle: "medium", hourCycle: "h23" });
const moment = new Intl.DateTimeFormat([], { dateStyle: "medium", timeStyle: "medium" });
const PAGE = 200;
const KEPT = 3000; // lines in the page; older ones go when newer come
const TYPING_MS = 300;
const DRAW_MS = 100; // between two drawings, however fast lines come
const LEVELS = ["debug", "info", "warning", "error", "critical"];

const query = new URLSearchParams(location.hash.slice(1));
if (["debug", "info", "warning", "error"].includes(query.get("level"))) $("level").value = query.get("level");
else $("level").value = "info";
$("find").value = query.get("q") ?? "";

let stream = null;
let shown = 0; // counts questions, so that late answers to old ones are dropped
let last = null; // number of the newest line known
let waiting = []; // lines that came and are not drawn yet
let isPaused = false;
let timer = null;

const wanted = () => ({ level: $("level").value, ...($("find").value.trim() && { contains: $("find").value.trim() }) });
const place = $("scroll-lines");
const isAtEnd = () => place.scrollHeight - place.scrollTop - place.clientHeight < 60;

function draw(one) {
  const at = new Date(one.time);
  const level = LEVELS.includes(one.level) ? one.level : "info";
  const fields = Object.entries(one.fields).flatMap(([name, value]) => [" ", el("span", { class: "field-name" }, `${name}=`), value]);
  return el(
    "li", { class: level, "data-seq": one.seq },
    el("time", { datetime: one.time, title: moment.format(at) }, `${clock.format(at)}.${String(at.getMilliseconds()).padStart(3, "0")}`),
    el("span", { class: "level" }, level),
    el("span", { class: "what" }, el("span", { class: "from" }, `${one.logger.replace(/^spacebot\./, "")} `), one.message, ...fields),
  );
}

async function showAll() {
  const turn = (shown += 1);
  stream?.close();
  stream = null;
  history.replaceState(null, "", `${location.pathname}${location.search}#${new URLSearchParams({ level: $("level").value, ...($("find").value.trim() && { q: $("find").value.trim() }) })}`);
  const answer = await get("logs", { limit: PAGE, ...wanted() });
  if (turn !== shown) return;
  waiting = [];
  last = answer.lines.at(-1)?.seq ?? 0;
  $("lines").replaceChildren(...answer.lines.map(draw));
  $("earlier").hidden = !answer.has_more;
  toEnd();
  count();
  listen(turn);
}

function listen(turn) {
  stream = follow({
    path: "logs/stream",
    params: wanted(),
    after: () => last,
    greets: false,
    on: (name, data) => {
      if (turn !== shown) return;
      if (name === "lagged") {
        last = 0;
        return showAll().catch(failed); // lines were lost on the way: all of it anew
      }
      if (name !== "log" || data.seq <= last) return;
      last = data.seq;
      waiting.push(data);
      if (waiting.length > KEPT) waiting.shift();
      if (isPaused) count();
      else timer ??= setTimeout(take, DRAW_MS);
    },
    state: () => {},
    unauthorized: login,
  });
}

// Puts what came below the rest; who reads further up is not moved.
function take() {
  timer = null;
  if (isPaused) return;
  const stick = isAtEnd();
  $("lines").append(...waiting.splice(0).map(draw));
  const tooMany = $("lines").children.length - KEPT;
  if (tooMany > 0 && stick) {
    for (const old of [...$("lines").children].slice(0, tooMany)) old.remove();
    $("earlier").hidden = false;
  }
  if (stick) toEnd();
  else $("jump").hidden = false;
  count();
}

function count() {
  const n = $("lines").children.length;
  $("none").hidden = n > 0;
  $("count").textContent = isPaused && waiting.length ? `${number(n)} lines, ${number(waiting.length)} more wait` : `${number(n)} ${n === 1 ? "line" : "lines"}`;
}

function toEnd() {
  place.scrollTop = place.scrollHeight;
  $("jump").hidden = true;
}
$("jump").onclick = toEnd;
place.addEventListener("scroll", () => isAtEnd() && ($("jump").hidden = true), { passive: true });

$("earlier").onclick = async () => {
  const turn = shown;
  try {
    const answer = await get("logs", { limit: PAGE, before: $("lines").firstElementChild?.dataset.seq ?? "", ...wanted() });
    if (turn !== shown) return;
    const height = place.scrollHeight;
    $("lines").prepend(...answer.lines.map(draw));
    place.scrollTop += place.scrollHeight - height;
    $("earlier").hidden = !answer.has_more;
    count();
  } catch (error) {
    failed(error);
  }
};

$("pause").onclick = () => {
  isPaused = !isPaused;
  $("pause").textContent = isPaused ? "Go on" : "Pause";
  $("pause").setAttribute("aria-pressed", String(isPaused));
  if (!isPaused) take();
  count();
};

let typing = null;
$("find").oninput = () => {
  clearTimeout(typing);
  typing = setTimeout(() => showAll().catch(failed), TYPING_MS);
};
$("level").onchange = () => showAll().catch(failed);

let isFirst = true;
startPage({
  every: 0,
  isEarly: true,
  refresh: async () => {
    if (!isFirst && stream) return;
    await showAll();
    isFirst = false;
  },
});
