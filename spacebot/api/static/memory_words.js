// What the Memory page calls things: types and relations; and elements that several of its parts draw.

import { el } from "./markdown.js?v=__VERSION__";
import { svg } from "./things.js?v=__VERSION__";
import { percent } from "./words.js?v=__VERSION__";

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

// Words of a direct chat stay covered until they are asked for.
export const COVERED = "Private: learned in a direct chat";

export const badge = (memory) => el("span", { class: `kind kind-${memory.memory_type}` }, typeOf(memory).name);

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
