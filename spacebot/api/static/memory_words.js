// What the Memory page calls things: types, relations, times; and elements that several of its parts draw.

import { el } from "./markdown.js?v=__VERSION__";

export const TYPES = {
  fact: { name: "Fact", many: "Facts", hint: "Something that is so: about the world, the team or a person." },
  preference: { name: "Preference", many: "Preferences", hint: "What somebody likes, or wants done in a certain way." },
  decision: { name: "Decision", many: "Decisions", hint: "What was decided, and why." },
  identity: { name: "Identity", many: "Identity", hint: "Who somebody is. This never fades." },
  event: { name: "Event", many: "Events", hint: "Something that happened." },
  observation: { name: "Observation", many: "Observations", hint: "Something I noticed by myself." },
  goal: { name: "Goal", many: "Goals", hint: "Something that somebody wants to reach." },
  todo: { name: "To-do", many: "To-dos", hint: "Something that has to be done." },
};
export const typeOf = (memory) => TYPES[memory.memory_type] ?? { name: memory.memory_type, many: memory.memory_type, hint: "" };

// How an edge reads from its source, and from its target.
export const RELATIONS = {
  related_to: { out: "Related to", in: "Related to" },
  updates: { out: "Newer version of", in: "Replaced by" },
  contradicts: { out: "Contradicts", in: "Contradicted by" },
  caused_by: { out: "Caused by", in: "Cause of" },
  result_of: { out: "Result of", in: "Led to" },
  part_of: { out: "Part of", in: "Contains" },
};

const UNITS = [["year", 31_557_600], ["month", 2_629_800], ["week", 604_800], ["day", 86_400], ["hour", 3600], ["minute", 60]];
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: "auto", style: "short" });

// "3 days ago"; the exact moment belongs into a title.
export function ago(text) {
  const seconds = (Date.now() - new Date(text)) / 1000;
  const [unit, length] = UNITS.find(([, length]) => Math.abs(seconds) >= length) ?? [];
  return unit ? relative.format(-Math.round(seconds / length), unit) : "just now";
}
export const when = (text) => new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
export const number = (n) => Number(n).toLocaleString();
export const percent = (n) => `${Math.round(n * 100)} %`;

export const time = (text) => el("time", { datetime: text, title: when(text) }, ago(text));

// One line of a text, at most so many characters.
export function line(text, most = 90) {
  const flat = text.slice(0, 4 * most).replace(/\s+/g, " ").trim();
  const signs = [...flat];
  return signs.length > most || text.length > 4 * most ? `${signs.slice(0, most - 1).join("").trimEnd()}…` : flat;
}

// Words of a direct chat stay covered until they are asked for.
export const COVERED = "Private: learned in a direct chat";

export const badge = (memory) => el("span", { class: `kind kind-${memory.memory_type}` }, typeOf(memory).name);

const NS = "http://www.w3.org/2000/svg";
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) element.setAttribute(name, value);
  element.append(...children.filter((child) => child != null));
  return element;
}

const ICONS = {
  lock: "M5.5 9V6.5a4.5 4.5 0 0 1 9 0V9M4.5 9h11v7.5h-11z",
  pin: "M10 12.5V18M6 12.5h8l-1.5-3V4.5h-5v5zM6.5 2.5h7",
};
export function icon(name, title) {
  return svg("svg", { viewBox: "0 0 20 20", class: "icon", role: "img", "aria-label": title }, svg("title", {}, title), svg("path", { d: ICONS[name] }));
}
export const marks = (memory) => [
  memory.is_private ? icon("lock", "Private: only its owner's direct chats may use it") : null,
  memory.permanent ? icon("pin", "Permanent: never fades") : null,
];

export function meter(memory) {
  const bar = svg(
    "svg",
    { viewBox: "0 0 40 6", class: `meter kind-${memory.memory_type}`, role: "img", "aria-label": `importance ${percent(memory.importance)}` },
    svg("title", {}, `Importance ${percent(memory.importance)}`),
    svg("rect", { width: 40, height: 6, rx: 3, class: "track" }),
    svg("rect", { width: Math.max(3, 40 * memory.importance), height: 6, rx: 3, class: "fill" }),
  );
  return bar;
}
