// The prompt inspector: requests that were made to models, and each of them block by block: what exactly the model saw,
// what was cached, what it answered. The address says which: #process=…, #channel=…, #id=….

import { get } from "./connection.js?v=__VERSION__";
import { copyText, el } from "./markdown.js?v=__VERSION__";
import { svg } from "./things.js?v=__VERSION__";
import { $, failed, keyed, put, startPage } from "./ui.js?v=__VERSION__";
import { line, number, plural, time, when } from "./words.js?v=__VERSION__";

const PAGE = 50;
const OPEN_CHARS = 6000; // a short block is shown at once, where there are few
const PROCESSES = { channel: "Answering", turn: "Answering", branch: "Thinking", worker: "Working", compactor: "Tidying", compaction: "Tidying", persistence: "Remembering", cortex: "Cortex", cron: "Schedule" };
const KINDS = { system: "Instructions", tools: "Tools", message: "Message" };
const ROLES = { user: "From people", assistant: "Said before", tool: "Tool result" };

const wanted = () => new URLSearchParams(location.hash.slice(1));
const nameOf = (capture) => PROCESSES[capture.process_type] ?? capture.process_type;

// --- the list --------------------------------------------------------------------------------------

let captures = []; // newest first
let hasMore = false;
let filter = {}; // what was asked for

class Row {
  constructor(id) {
    this.id = id;
    this.link = el("a");
    this.node = el("li", {}, this.link);
  }

  show(capture) {
    const query = wanted();
    query.set("id", this.id);
    this.link.href = `prompts${location.search}#${query}`;
    if (String(this.id) === one) this.link.setAttribute("aria-current", "true");
    else this.link.removeAttribute("aria-current");
    if (this.drawn) return;
    this.drawn = true;
    this.link.replaceChildren(
      el("b", {}, `${nameOf(capture)}, step ${capture.step}`), time(capture.created_at),
      el("span", { class: "fine" }, capture.model), el("span", { class: "fine" }, `${number(total(capture.usage))} in`),
    );
  }
}
const drawRows = keyed($("captures"), (id) => new Row(id));
const total = (usage) => usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens;

async function refresh(agent) {
  const query = wanted();
  filter = { ...(query.get("process") && { process_id: query.get("process") }), ...(query.get("channel") && { channel_id: query.get("channel") }) };
  const asked = JSON.stringify(filter);
  const answer = await get("prompts/captures", { agent_id: agent, limit: PAGE, ...filter });
  if (agent !== page.agent || asked !== JSON.stringify(filter)) return;
  const known = new Set(answer.captures.map(({ id }) => id));
  const isSame = captures.some(({ id }) => known.has(id));
  captures = isSame ? [...answer.captures, ...captures.filter(({ id }) => !known.has(id))] : answer.captures;
  if (!isSame || captures.length === answer.captures.length) hasMore = answer.has_more;
  draw(answer.kept);
  if (one === null && filter.process_id && captures.length) open(String(captures.at(-1).id)); // the first step tells most
}

function draw(kept = null) {
  drawRows(captures);
  $("more").hidden = !hasMore;
  const of = filter.process_id ? "of this run" : filter.channel_id ? "of this conversation" : "of this agent";
  if (kept !== null) {
    $("about").replaceChildren(
      captures.length ? `Requests to models ${of}, newest first; the last ${number(kept)} are kept. ` : kept ? `Nothing is kept ${of} (any more). The last ${number(kept)} requests are kept.` : "Requests are not kept: prompt_captures is 0 in the configuration.",
      filter.process_id || filter.channel_id ? el("a", { class: "link", href: `prompts${location.search}#` }, "Show all") : "",
    );
  }
}

$("more").onclick = async () => {
  try {
    const answer = await get("prompts/captures", { agent_id: page.agent, limit: PAGE, before: captures.at(-1).id, ...filter });
    captures = [...captures, ...answer.captures];
    hasMore = answer.has_more;
    draw();
  } catch (error) {
    failed(error);
  }
};

// --- one request -----------------------------------------------------------------------------------

let one = null;

function open(id) {
  const query = wanted();
  query.set("id", id);
  history.replaceState(null, "", `${location.pathname}${location.search}#${query}`);
  go();
}

async function go() {
  const id = wanted().get("id");
  if (id === one) return;
  one = id;
  $("one").hidden = !id;
  $("nothing").hidden = Boolean(id);
  document.body.classList.toggle("has-one", Boolean(id));
  drawRows(captures);
  if (!id) return;
  $("one").replaceChildren(el("p", { class: "fine" }, "Looking …"));
  try {
    const shown = await get(`prompts/captures/${encodeURIComponent(id)}`, { agent_id: page.agent });
    if (one === id) drawOne(shown);
  } catch (error) {
    if (one === id) $("one").replaceChildren(back(), el("p", { class: "result bad" }, error.message));
  }
}

function back() {
  const query = wanted();
  query.delete("id");
  if (query.has("process")) query.delete("process"); // else its first step would be opened again
  return el("a", { id: "back", class: "link", href: `prompts${location.search}#${query}` }, "← All requests");
}

function drawOne(capture) {
  const sum = capture.blocks.reduce((n, block) => n + block.tokens, 0);
  const usage = capture.usage;
  const query = page.agent === null ? "" : `?${new URLSearchParams({ agent: page.agent })}`;
  const facts = {
    When: when(capture.created_at),
    Model: capture.model,
    "What it was for": `${nameOf(capture)}, step ${capture.step}`,
    Tokens: `${number(usage.input_tokens)} new, ${number(usage.cache_read_tokens)} from the cache, ${number(usage.cache_write_tokens)} put into it; ${number(usage.output_tokens)} answered`,
    Ended: capture.finish_reason,
  };
  const links = [
    capture.channel_id ? el("a", { class: "link", href: `conversations${query}#${encodeURIComponent(capture.channel_id)}` }, "Conversation") : "",
    capture.process_type === "worker" && capture.process_id ? el("a", { class: "link", href: `workers${query}#${capture.process_id}` }, "Worker, step by step") : "",
  ].filter(Boolean);
  const title = el("h2", { id: "one-title", tabindex: "-1" }, "What the model saw");
  $("one").replaceChildren(
    back(), title,
    el("dl", { class: "facts" }, ...Object.entries(facts).filter(([, text]) => text).flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)])),
    links.length ? el("p", { class: "bar" }, ...links) : "",
    wholeBar(capture.blocks, sum),
    el("p", { class: "key" }, el("span", {}, el("i", { class: "cached" }), "cached: paid for once"), el("span", {}, el("i"), "sent anew"), el("span", {}, `${plural(capture.blocks.length, "block")}, about ${number(sum)} tokens`)),
    el("ol", { id: "blocks" }, ...capture.blocks.map((block, i) => drawBlock(block, i, sum, capture.blocks.length))),
    drawReply(capture.reply),
  );
  title.focus({ preventScroll: true });
}

// The whole request as one bar: each block as wide as it is long.
function wholeBar(blocks, sum) {
  const place = svg("svg", { id: "whole", viewBox: "0 0 1000 20", preserveAspectRatio: "none", role: "img", "aria-label": "Tokens of each block" });
  let x = 0;
  blocks.forEach((block, i) => {
    const width = (1000 * block.tokens) / Math.max(1, sum);
    place.append(svg("rect", { x, y: 0, width: Math.max(0.5, width - 1.5), height: 20, class: `bit ${block.is_cached ? "cached" : ""} ${i % 2 ? "other" : ""}` }, svg("title", {}, `${titleOf(block)}: ${number(block.tokens)} tokens`)));
    x += width;
  });
  return place;
}

const titleOf = (block) => block.name || (block.kind === "message" ? (ROLES[block.role] ?? block.role ?? "Message") : (KINDS[block.kind] ?? block.kind));

function drawBlock(block, i, sum, count) {
  const share = block.tokens / Math.max(1, sum);
  const bar = svg("svg", { class: "bar-place", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { width: 100, height: 6, class: "track" }), svg("rect", { width: Math.max(0.6, 100 * share), height: 6, class: `bit ${block.is_cached ? "cached" : ""}` }));
  const inner = el("div", { class: "inner" });
  const details = el(
    "details", { ontoggle: () => details.open && !inner.children.length && fill() },
    el("summary", {}, el("b", {}, titleOf(block)), el("span", { class: "first fine", dir: "auto" }, line(block.text, 140)), bar, el("span", { class: "count" }, `${number(block.tokens)}${block.is_cached ? " ✓" : ""}`)),
    inner,
  );
  const fill = () => {
    const copy = el("button", { type: "button", class: "pill", onclick: () => copyText(block.text, copy) }, "Copy");
    const kinds = [KINDS[block.kind] ?? block.kind, block.role, block.form, block.is_cached ? "cached" : "sent anew"].filter(Boolean).join(" · ");
    inner.replaceChildren(el("div", { class: "row" }, el("span", { class: "fine" }, kinds), copy), el("pre", { tabindex: "0", dir: "auto" }, block.text));
  };
  if (i === count - 1 && block.text.length < OPEN_CHARS) details.open = true; // the newest words
  return el("li", { class: `block ${block.is_cached ? "cached" : ""}` }, details);
}

function drawReply(reply) {
  const place = el("section", { class: "reply", "aria-label": "Answer" }, el("h3", {}, "What it answered"));
  if (reply.error) place.append(el("p", { class: "result bad" }, reply.error));
  if (reply.text) place.append(el("div", { class: "said", dir: "auto" }, reply.text));
  for (const call of reply.calls ?? []) place.append(el("div", {}, el("b", {}, call.name), el("pre", { tabindex: "0" }, readable(call.arguments))));
  if (!reply.error && !reply.text && !reply.calls?.length) place.append(el("p", { class: "fine" }, "Nothing."));
  return place;
}

function readable(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function changed() {
  captures = [];
  put($("captures"), []);
  drawRows.rows.clear();
  one = null;
  go();
}
let asked = "";
addEventListener("hashchange", () => {
  const query = wanted();
  const now = `${query.get("process")} ${query.get("channel")}`;
  if (now === asked) return go();
  asked = now;
  changed();
  page.refresh();
});

const page = startPage({
  events: "turn_ended,worker_completed,branch_completed",
  opened: () => {
    asked = `${wanted().get("process")} ${wanted().get("channel")}`;
    changed();
  },
  refresh,
});
