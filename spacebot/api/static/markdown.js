// A small Markdown reader. It builds elements and never parses HTML, so no text can become markup.
// Pictures become links: showing them would tell a foreign server that the message was read.

const LIMIT = 30_000; // characters; longer texts are shown as they are

export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export function renderMarkdown(text) {
  if (text.length > LIMIT) return el("div", { class: "plain-text" }, text);
  return el("div", { class: "prose" }, ...blocks(text.replace(/\r\n?/g, "\n").split("\n")));
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.+?)\s*#*$/;
const RULE = /^ {0,3}([-*_])( *\1){2,}\s*$/;
const TABLE_LINE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

function blocks(lines) {
  const found = [];
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    let match;
    if (!line.trim()) {
      i += 1;
    } else if ((match = FENCE.exec(line))) {
      const [, fence, language] = match;
      const body = [];
      for (i += 1; i < lines.length && !lines[i].trim().startsWith(fence); i += 1) body.push(lines[i]);
      i += 1;
      found.push(codeBlock(body.join("\n"), language));
    } else if ((match = HEADING.exec(line))) {
      found.push(el(`h${Math.min(5, match[1].length + 2)}`, {}, ...inline(match[2])));
      i += 1;
    } else if (RULE.test(line)) {
      found.push(el("hr"));
      i += 1;
    } else if (/^ {0,3}>/.test(line)) {
      const inner = [];
      for (; i < lines.length && /^ {0,3}>/.test(lines[i]); i += 1) inner.push(lines[i].replace(/^ {0,3}> ?/, ""));
      found.push(el("blockquote", {}, ...blocks(inner)));
    } else if (ITEM.test(line)) {
      const end = endOfList(lines, i);
      found.push(list(lines.slice(i, end)));
      i = end;
    } else if (line.includes("|") && i + 1 < lines.length && lines[i + 1].includes("-") && TABLE_LINE.test(lines[i + 1])) {
      const rows = [line];
      for (i += 2; i < lines.length && lines[i].includes("|"); i += 1) rows.push(lines[i]);
      found.push(table(rows));
    } else {
      const paragraph = [];
      for (; i < lines.length && lines[i].trim() && !(paragraph.length && startsBlock(lines[i])); i += 1) paragraph.push(lines[i]);
      found.push(el("p", {}, ...inline(paragraph.join("\n"))));
    }
  }
  return found;
}

const startsBlock = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || ITEM.test(line) || /^ {0,3}>/.test(line);

function endOfList(lines, start) {
  let i = start + 1;
  for (; i < lines.length; i += 1) {
    const line = lines[i];
    if (line.trim() ? !(ITEM.test(line) || /^\s{2,}/.test(line)) && !lines[i - 1].trim() : false) break;
    if (line.trim() && !ITEM.test(line) && !/^\s{2,}/.test(line) && startsBlock(line)) break;
  }
  return i;
}

function list(lines) {
  const first = ITEM.exec(lines[0]);
  const indent = first[1].length;
  const isOrdered = /\d/.test(first[2]);
  const items = [];
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (match && match[1].length <= indent + 1) items.push([match[3]]);
    else items.at(-1).push(line.replace(new RegExp(`^\\s{0,${indent + 2}}`), ""));
  }
  const start = isOrdered ? parseInt(first[2], 10) : null;
  return el(
    isOrdered ? "ol" : "ul",
    { start: start !== 1 ? start : null },
    ...items.map((item) => {
      const inner = blocks(item);
      const isTight = inner.length && inner[0].tagName === "P";
      return el("li", {}, ...(isTight ? [...inner[0].childNodes, ...inner.slice(1)] : inner));
    }),
  );
}

function table(rows) {
  const cells = (row) => row.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (tag, text) => el("tr", {}, ...cells(text).map((cell) => el(tag, {}, ...inline(cell))));
  const body = el("tbody", {}, ...rows.slice(1).map((text) => row("td", text)));
  return el("div", { class: "table", tabindex: "0" }, el("table", {}, el("thead", {}, row("th", rows[0])), body));
}

function codeBlock(text, language) {
  const button = el("button", { type: "button", onclick: () => copyText(text, button) }, "Copy");
  return el(
    "div",
    { class: "code" },
    el("div", { class: "code-head" }, el("span", {}, language || "text"), button),
    el("pre", { tabindex: "0" }, el("code", {}, text)),
  );
}

const INLINE = new RegExp(
  [
    "(?<code>(?<ticks>`+)(?<codeText>[^`][^]*?)\\k<ticks>(?!`))",
    "(?:\\*\\*(?=\\S)(?<strong>[^]*?\\S)\\*\\*)",
    "(?:\\*(?=[^\\s*])(?<em>[^*]*[^\\s*])\\*)",
    "(?:(?<![\\w])_(?=[^\\s_])(?<em2>[^_]*[^\\s_])_(?!\\w))",
    "(?:~~(?=\\S)(?<del>[^~]+)~~)",
    "(?:!?\\[(?<label>[^\\]\\n]+)\\]\\((?<href>[^)\\s]+)(?:\\s+\"[^\"]*\")?\\))",
    "(?<url>https?://[^\\s<>\"'`]+[^\\s<>\"'`.,;:!?)\\]}])",
    "(?<escaped>\\\\[\\\\`*_{}\\[\\]()#+.!~|>-])",
  ].join("|"),
  "g",
);

function inline(text) {
  const nodes = [];
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > last) nodes.push(...withBreaks(text.slice(last, match.index)));
    const g = match.groups;
    if (g.code) nodes.push(el("code", {}, g.codeText.trim()));
    else if (g.strong) nodes.push(el("strong", {}, ...inline(g.strong)));
    else if (g.em || g.em2) nodes.push(el("em", {}, ...inline(g.em || g.em2)));
    else if (g.del) nodes.push(el("del", {}, ...inline(g.del)));
    else if (g.label) nodes.push(link(g.href, g.label));
    else if (g.url) nodes.push(link(g.url, g.url));
    else nodes.push(g.escaped.slice(1));
    last = match.index + match[0].length;
  }
  if (last < text.length) nodes.push(...withBreaks(text.slice(last)));
  return nodes;
}

function withBreaks(text) {
  return text.split("\n").flatMap((line, i) => (i ? [el("br"), line] : [line]));
}

function link(href, label) {
  let url;
  try {
    url = new URL(href);
  } catch {
    return label;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return label;
  return el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" }, label);
}

export async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Not a secure context, or not allowed: the old way.
    const area = el("textarea", { class: "sr" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const label = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = label), 1500);
}
