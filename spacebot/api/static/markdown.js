// A small Markdown reader. It builds elements and never parses HTML, so no text can become markup.
// Pictures become links: showing them would tell a foreign server that the message was read.

// Time grows with the length of the text alone, whatever is in it: models write what strangers make them write.

const LIMIT = 30_000; // characters; longer texts are shown as they are
const MAX_DEPTH = 20; // quotes and lists within each other; what lies deeper is shown as it is

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
  try {
    if (text.length <= LIMIT) return el("div", { class: "prose" }, ...blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0));
  } catch (error) {
    console.error("shown as plain text:", error);
  }
  return plain(text);
}

const plain = (text) => el("div", { class: "plain-text" }, text);

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/s;
const HEADING = /^ {0,3}(#{1,6})\s+(\S.*)$/s;
const RULE = /^ {0,3}([-*_])( *\1){2,}\s*$/;

function blocks(lines, depth) {
  if (depth > MAX_DEPTH) return [plain(lines.join("\n"))];
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
      found.push(el(`h${Math.min(5, match[1].length + 2)}`, {}, ...inline(withoutClosing(match[2]))));
      i += 1;
    } else if (RULE.test(line)) {
      found.push(el("hr"));
      i += 1;
    } else if (/^ {0,3}>/.test(line)) {
      const inner = [];
      for (; i < lines.length && /^ {0,3}>/.test(lines[i]); i += 1) inner.push(lines[i].replace(/^ {0,3}> ?/, ""));
      found.push(el("blockquote", {}, ...blocks(inner, depth + 1)));
    } else if (ITEM.test(line)) {
      const end = endOfList(lines, i);
      found.push(list(lines.slice(i, end), depth));
      i = end;
    } else if (line.includes("|") && i + 1 < lines.length && isTableLine(lines[i + 1])) {
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

// "Title ##" is "Title", but "C#" stays.
function withoutClosing(heading) {
  const text = heading.trimEnd();
  let end = text.length;
  while (text[end - 1] === "#") end -= 1;
  return end === 0 || /\s/.test(text[end - 1]) ? text.slice(0, end).trimEnd() : text;
}

function endOfList(lines, start) {
  let i = start + 1;
  for (; i < lines.length; i += 1) {
    const line = lines[i];
    if (line.trim() ? !(ITEM.test(line) || /^\s{2,}/.test(line)) && !lines[i - 1].trim() : false) break;
    if (line.trim() && !ITEM.test(line) && !/^\s{2,}/.test(line) && startsBlock(line)) break;
  }
  return i;
}

function list(lines, depth) {
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
      const inner = blocks(item, depth + 1);
      const isTight = inner.length && inner[0].tagName === "P";
      return el("li", {}, ...(isTight ? [...inner[0].childNodes, ...inner.slice(1)] : inner));
    }),
  );
}

const cells = (row) => row.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
const isTableLine = (line) => cells(line).every((cell) => /^:?-+:?$/.test(cell));

function table(rows) {
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

const MARK = /`+|\*|_|~~|!?\[|https?:\/\/|\\/g;
const URL_CHARACTERS = /https?:\/\/[^\s<>"'`]+/y;
const TITLE_AND_END = /\s+"[^"]*"\)/y;

// From left to right, once. Where a mark opens nothing it is text; nothing looks for the same end twice.
function inline(text) {
  const nodes = [];
  const readers = inlineReaders(text);
  let last = 0;
  let match;
  MARK.lastIndex = 0;
  while ((match = MARK.exec(text))) {
    const [mark] = match;
    const start = match.index;
    const found = readers[mark[0]](start, mark.length);
    if (!found) {
      MARK.lastIndex = start + (mark === "~~" ? 1 : mark.length);
      continue;
    }
    if (start > last) nodes.push(...withBreaks(text.slice(last, start)));
    nodes.push(found.make());
    last = MARK.lastIndex = found.end;
  }
  if (last < text.length) nodes.push(...withBreaks(text.slice(last)));
  return nodes;
}

// For each first character of a mark: what begins there, as {end, make}, or null. Asked in order of `at`.
function inlineReaders(text) {
  const isSpace = (at) => at >= text.length || /\s/.test(text[at]);
  const isWord = (at) => at >= 0 && at < text.length && /\w/.test(text[at]);
  const wrapped = (tag, from, to, end) => ({ end, make: () => el(tag, {}, ...inline(text.slice(from, to))) });

  let runs = null; // of backticks
  const codeEnds = new Map(); // length of a run -> finder of runs of that length
  const code = (at, length) => {
    runs ??= [...text.matchAll(/`+/g)];
    if (!codeEnds.has(length)) codeEnds.set(length, finder(() => runs.filter(([run]) => run.length === length).map((run) => run.index)));
    const end = codeEnds.get(length)(at + length);
    return end < 0 ? null : { end: end + length, make: () => el("code", {}, text.slice(at + length, end).trim()) };
  };

  const strongEnd = finder(() => positions(text, /(?<=\S)(?=\*\*)/g));
  const star = (at) => {
    if (text[at + 1] === "*" && !isSpace(at + 2)) {
      const end = strongEnd(at + 3);
      if (end >= 0) return wrapped("strong", at + 2, end, end + 2);
    }
    return emphasis(at);
  };
  const emphasis = (at) => {
    if (isSpace(at + 1)) return null;
    const end = text.indexOf(text[at], at + 1);
    return end < at + 2 || isSpace(end - 1) ? null : wrapped("em", at + 1, end, end + 1);
  };
  const underscore = (at) => {
    const found = isWord(at - 1) ? null : emphasis(at);
    return found && !isWord(found.end) ? found : null;
  };

  const deleted = (at) => {
    const end = text.indexOf("~", at + 2);
    return isSpace(at + 2) || end < at + 3 || text[end + 1] !== "~" ? null : wrapped("del", at + 2, end, end + 2);
  };

  const labelEnd = finder(() => positions(text, /[\]\n]/g));
  const hrefEnd = finder(() => positions(text, /[)\s]/g));
  const titled = new Map(); // end of an address -> end of the link, 0 for none
  const linkEnd = (end) => {
    if (text[end] === ")") return end + 1;
    if (!titled.has(end)) {
      TITLE_AND_END.lastIndex = end;
      titled.set(end, TITLE_AND_END.test(text) ? TITLE_AND_END.lastIndex : 0);
    }
    return titled.get(end);
  };
  const linked = (at, length) => {
    const label = labelEnd(at + length);
    if (label <= at + length || !text.startsWith("](", label)) return null;
    const href = hrefEnd(label + 2);
    if (href <= label + 2) return null;
    const end = linkEnd(href);
    return end ? { end, make: () => link(text.slice(label + 2, href), text.slice(at + length, label)) } : null;
  };

  const address = (at, length) => {
    URL_CHARACTERS.lastIndex = at;
    const characters = URL_CHARACTERS.exec(text)?.[0] ?? "";
    let size = characters.length;
    while (".,;:!?)]}".includes(characters[size - 1] ?? " ")) size -= 1;
    const url = characters.slice(0, size);
    return size < length + 2 ? null : { end: at + size, make: () => link(url, url) };
  };

  const escaped = (at) => (/[\\`*_{}[\]()#+.!~|>-]/.test(text[at + 1] ?? "") ? { end: at + 2, make: () => text[at + 1] } : null);

  return { "`": code, "*": star, _: underscore, "~": deleted, "[": linked, "!": linked, h: address, "\\": escaped };
}

const positions = (text, pattern) => [...text.matchAll(pattern)].map((match) => match.index);

// First of the sorted places at or after `from`, or -1; `from` never goes back, so all calls together walk once.
function finder(list) {
  let places = null;
  let n = 0;
  return (from) => {
    places ??= list();
    while (n < places.length && places[n] < from) n += 1;
    return places[n] ?? -1;
  };
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
