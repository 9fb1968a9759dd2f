// Settings, Config file: the owner's file with line numbers and colours; what is wrong is shown at its line.

import { get, send } from "./connection.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { button, confirmed, put } from "./ui.js?v=__VERSION__";

const MOST_COLOURED = 4000; // lines; more would make typing slow
const PARTS = /(#.*)|("(?:[^"\\]|\\.)*"|'[^']*')|\b(true|false|[-+]?\d[\d_.:TZ-]*)\b/g;

export function open(root, desk) {
  let revision = null;
  let saved = null; // the text as the server has it
  let wrong = new Map(); // line, from 0 -> what is wrong there
  const path = el("code");
  const gutter = el("pre", { class: "gutter", "aria-hidden": "true" });
  const colours = el("pre", { class: "colours", "aria-hidden": "true" });
  const area = el("textarea", { id: "config-text", class: "code-area", spellcheck: "false", autocapitalize: "off", autocomplete: "off", wrap: "off", "aria-label": "Configuration file", oninput: () => (wrong.size && (wrong = new Map()), draw(), desk.changed()) });
  const problems = el("ul", { class: "lines problems", id: "problems", role: "status" });
  const editor = el("div", { class: "editor" }, gutter, el("div", { class: "sheet-of-code" }, colours, area));
  root.append(
    el("div", { class: "bar" }, el("h2", {}, "Config file"), path, el("span", { class: "space" }), button("Load again", () => reload(), { id: "load-again" })),
    el("p", { class: "fine" }, "Keys that stand in it in plain are masked; a masked key that stays is kept. It is read before it is written: a file with an error is not taken."),
    problems, editor,
  );

  async function refresh() {
    if (isDirty()) return;
    const answer = await get("config/raw");
    if (isDirty()) return;
    if (answer.revision !== revision) take(answer);
    goTo(desk.takePlace());
  }

  function take({ content, revision: number, path: where, exists }) {
    revision = number;
    path.textContent = exists ? where : `${where} (not there yet)`;
    if (content !== saved) area.value = content;
    saved = content;
    wrong = new Map();
    put(problems, []);
    showWarnings();
    draw();
    desk.changed();
  }

  const isDirty = () => saved !== null && area.value !== saved;

  async function reload() {
    if (isDirty() && !(await confirmed({ title: "Discard your changes of the file?", yes: "Discard" }))) return;
    saved = revision = null;
    await refresh();
  }

  // Drawn again with each letter: only the lines that changed.
  function draw() {
    const lines = area.value.split("\n");
    while (gutter.children.length > lines.length) gutter.lastChild.remove();
    while (gutter.children.length < lines.length) gutter.append(el("span", {}, `${gutter.children.length + 1}\n`));
    [...gutter.children].forEach((one, i) => one.classList.toggle("wrong", wrong.has(i)));
    const isPlain = lines.length > MOST_COLOURED;
    area.classList.toggle("plain-code", isPlain);
    if (isPlain) return colours.replaceChildren(area.value, "\n");
    while (colours.children.length > lines.length) colours.lastChild.remove();
    lines.forEach((line, i) => {
      const there = colours.children[i];
      if (there?.dataset.text === line && there.classList.contains("wrong") === wrong.has(i)) return;
      const node = el("span", { class: wrong.has(i) ? "wrong" : "", "data-text": line }, ...coloured(line), "\n");
      if (there) there.replaceWith(node);
      else colours.append(node);
    });
  }

  async function save() {
    try {
      const answer = await send("PUT", "config/raw", { content: area.value, revision });
      saved = area.value;
      take(await get("config/raw")); // keys that were typed are masked now
      showWarnings(answer.warnings);
      return answer;
    } catch (error) {
      showProblems([error.message], "error");
      throw new Error("Not saved: what is wrong stands above the file.");
    }
  }

  async function showWarnings(list = null) {
    const warnings = list ?? (await get("settings")).warnings;
    if (!isDirty()) showProblems(warnings, "");
  }

  function showProblems(texts, kind) {
    wrong = new Map();
    put(problems, texts.map((text) => {
      const line = lineOf(text, area.value);
      if (line !== null) wrong.set(line, text);
      const where = line === null ? null : button(`Line ${line + 1}`, () => select(line), { class: "at" });
      return el("li", { class: `detail ${kind}` }, where, " ", text);
    }));
    draw();
    const first = Math.min(...wrong.keys());
    if (kind && Number.isFinite(first)) select(first);
  }

  function select(line) {
    const lines = area.value.split("\n");
    const start = lines.slice(0, line).reduce((sum, one) => sum + one.length + 1, 0);
    area.focus({ preventScroll: true });
    area.setSelectionRange(start, start + lines[line].length);
    gutter.children[line]?.scrollIntoView({ block: "center" });
  }

  function goTo(place) {
    if (!place) return;
    const line = placeOf(place, area.value);
    if (line !== null) return select(line);
    // not there yet: its header, ready to be filled
    area.value = `${area.value.replace(/\n*$/, "\n")}\n[${place}]\n`;
    draw();
    desk.changed();
    select(area.value.split("\n").length - 2);
  }

  function revert() {
    area.value = saved ?? "";
    wrong = new Map();
    put(problems, []);
    draw();
    showWarnings();
  }

  return { refresh, dirty: () => Number(isDirty()), save, revert };
}

function coloured(line) {
  if (/^\s*\[/.test(line)) return [el("b", { class: "header" }, line)];
  const found = /^(\s*[\w."'-]+)(\s*=)/.exec(line);
  const nodes = found ? [el("b", { class: "key" }, found[1]), found[2]] : [];
  const rest = found ? line.slice(found[0].length) : line;
  let at = 0;
  for (const part of rest.matchAll(PARTS)) {
    nodes.push(rest.slice(at, part.index), el("i", { class: part[1] ? "comment" : part[2] ? "text" : "figure" }, part[0]));
    at = part.index + part[0].length;
  }
  return [...nodes, rest.slice(at)];
}

// The line that a message is about: by its number, or by the key that it names. Null when it names none that is there.
function lineOf(message, text) {
  const numbered = /\bline (\d+)/.exec(message);
  if (numbered) return Math.min(Number(numbered[1]), text.split("\n").length) - 1;
  for (const name of message.match(/[a-z_]+(?:\[#?\d+\](?:\.[\w-]+)*|(?:\.[\w-]+)+)/g) ?? []) {
    const line = placeOf(name, text);
    if (line !== null) return line;
  }
  return null;
}

// Where a key or a table stands: "defaults.max_turns" is `max_turns =` below `[defaults]`.
function placeOf(name, text) {
  const [, plain, index] = /^([^[]*)(?:\[#?(\d+)\])?/.exec(name);
  const rest = index ? name.slice(name.indexOf("]") + 2) : "";
  const wanted = index ? plain : name;
  let table = "";
  let seen = 0;
  const lines = text.split("\n");
  for (let i = 0; i < lines.length; i += 1) {
    const header = /^\s*\[+\s*([^\]]+?)\s*\]/.exec(lines[i]);
    if (header) {
      table = header[1];
      if (index && table === wanted) seen += 1;
      if (!rest && table === wanted && (!index || seen === Number(index))) return i;
      continue;
    }
    const key = /^\s*([\w."'-]+)\s*=/.exec(lines[i])?.[1].replace(/["']/g, "");
    if (!key) continue;
    const full = table ? `${table}.${key}` : key;
    if (index ? table === wanted && seen === Number(index) && key === rest : full === wanted) return i;
  }
  return null;
}
