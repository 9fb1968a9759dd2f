// What grew and decayed, as drawings: the total, what came and went each day, types, importance.

import { el } from "./markdown.js?v=__VERSION__";
import { TYPES } from "./memory_words.js?v=__VERSION__";
import { svg } from "./things.js?v=__VERSION__";
import { number } from "./words.js?v=__VERSION__";

const LEFT = 44;
const RIGHT = 8;
const [TOTAL_TOP, TOTAL_BOTTOM, FLOW_TOP, FLOW_BOTTOM, HEIGHT] = [14, 84, 108, 212, 234];
const FLOWS = [
  ["saved", "saved", 1],
  ["restored", "brought back", 1],
  ["forgotten", "forgotten", -1],
  ["merged", "merged", -1],
  ["pruned", "faded away", -1],
];
const DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", timeZone: "UTC" });
const dayName = (day) => DAY.format(new Date(`${day}T00:00:00Z`));

// A round number at or above n, to end an axis with.
function ceiling(n) {
  if (n <= 4) return Math.max(1, n);
  const power = 10 ** Math.floor(Math.log10(n));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((value) => value >= n);
}

const text = (x, y, words, attributes = {}) => svg("text", { x, y, ...attributes }, words);

// The total as a line, and below it what came (up) and went (down), on one axis of days, `width` pixels wide.
export function growth(days, width) {
  const sum = (name) => days.reduce((total, day) => total + day[name], 0);
  const came = (day) => day.saved + day.restored;
  const went = (day) => day.forgotten + day.merged + day.pruned;
  const [up, down] = [Math.max(0, ...days.map(came)), Math.max(0, ...days.map(went))];
  const most = ceiling(Math.max(1, ...days.map((day) => day.live)));
  const slot = (width - LEFT - RIGHT) / days.length;
  const bar = Math.max(1, Math.min(18, slot * 0.7));
  const unit = (FLOW_BOTTOM - FLOW_TOP) / Math.max(1, up + down);
  const zero = FLOW_TOP + up * unit;
  const x = (n) => LEFT + (n + 0.5) * slot;
  const y = (live) => TOTAL_BOTTOM - ((TOTAL_BOTTOM - TOTAL_TOP) * live) / most;
  const summary = `${number(days.at(-1).live)} ${days.at(-1).live === 1 ? "memory" : "memories"} today; in ${days.length} days ${FLOWS.filter(([name]) => sum(name)).map(([name, words]) => `${number(sum(name))} ${words}`).join(", ") || "nothing came or went"}`;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, class: "chart growth", role: "img", "aria-label": summary });
  const rule = (at, className = "rule") => svg("line", { x1: LEFT, x2: width - RIGHT, y1: at, y2: at, class: className });

  chart.append(rule(TOTAL_TOP), rule(TOTAL_BOTTOM, "axis"), text(LEFT - 6, TOTAL_TOP + 4, number(most), { class: "tick end" }), text(LEFT - 6, TOTAL_BOTTOM + 4, "0", { class: "tick end" }));
  const points = days.map((day, n) => `${x(n).toFixed(1)},${y(day.live).toFixed(1)}`);
  chart.append(
    svg("polygon", { points: `${x(0)},${TOTAL_BOTTOM} ${points.join(" ")} ${x(days.length - 1)},${TOTAL_BOTTOM}`, class: "total-area" }),
    svg("polyline", { points: points.join(" "), class: "total-line" }),
    svg("circle", { cx: x(days.length - 1), cy: y(days.at(-1).live), r: 3, class: "total-end" }),
  );

  chart.append(rule(zero, "axis"));
  if (up) chart.append(text(LEFT - 6, FLOW_TOP + 8, `+${number(up)}`, { class: "tick end" }));
  if (down) chart.append(text(LEFT - 6, FLOW_BOTTOM, `−${number(down)}`, { class: "tick end" }));
  days.forEach((day, n) => {
    const group = svg("g", { class: "day-bar" }, svg("title", {}, [dayName(day.day), ...FLOWS.filter(([name]) => day[name]).map(([name, words]) => `${number(day[name])} ${words}`), `${number(day.live)} in all`].join("\n")));
    group.append(svg("rect", { x: x(n) - slot / 2, y: TOTAL_TOP, width: slot, height: FLOW_BOTTOM - TOTAL_TOP, class: "catch" }));
    const ends = { 1: zero, [-1]: zero };
    for (const [name, , side] of FLOWS) {
      if (!day[name]) continue;
      const height = Math.max(1.5, day[name] * unit);
      if (side > 0) ends[1] -= height;
      group.append(svg("rect", { x: x(n) - bar / 2, y: ends[side], width: bar, height, class: `flow ${name}` }));
      if (side < 0) ends[-1] += height;
    }
    chart.append(group);
  });

  const every = Math.ceil(days.length / Math.max(3, Math.floor(width / 110)));
  days.forEach((day, n) => {
    if ((days.length - 1 - n) % every) return;
    const isLast = n === days.length - 1;
    chart.append(text(isLast ? width - RIGHT : x(n), HEIGHT - 4, isLast ? "today" : dayName(day.day), { class: `tick ${isLast ? "end" : "middle"}` }));
  });
  const shown = FLOWS.filter(([name]) => sum(name));
  return el(
    "figure",
    { class: "wide" },
    el("figcaption", {}, el("b", {}, "What grew and what faded"), el("span", { class: "fine" }, summary)),
    chart,
    el("p", { class: "keys fine" }, el("span", { class: "key total" }, "all memories"), ...shown.map(([name, words]) => el("span", { class: `key ${name}` }, `${words} ${number(sum(name))}`))),
  );
}

export function types(byType, choose) {
  const most = Math.max(1, ...Object.values(byType));
  return el(
    "figure",
    {},
    el("figcaption", {}, el("b", {}, "Kinds")),
    el(
      "ul",
      { class: "type-bars" },
      ...Object.entries(TYPES).map(([type, { many, hint }]) => {
        const count = byType[type] ?? 0;
        return el(
          "li",
          {},
          el(
            "button",
            { type: "button", class: "plain", title: hint, onclick: () => choose(type), "aria-label": `${many}: ${number(count)}` },
            el("span", { class: `kind kind-${type}` }, many),
            svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true", class: `kind-${type}` }, svg("rect", { width: (100 * count) / most, height: 10, class: "fill" })),
            el("span", { class: "count" }, number(count)),
          ),
        );
      }),
    ),
  );
}

export function histogram(bins, width) {
  const [height, left, bottom] = [190, 30, 166];
  const most = ceiling(Math.max(1, ...bins));
  const slot = (width - left - 6) / bins.length;
  const total = bins.reduce((a, b) => a + b, 0);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart histogram", role: "img", "aria-label": `Importance of ${number(total)} memories: ${bins.map((n, i) => `${10 * i} to ${10 * (i + 1)} %: ${n}`).join(", ")}` });
  chart.append(svg("line", { x1: left, x2: width - 6, y1: bottom, y2: bottom, class: "axis" }), text(left - 5, 16, number(most), { class: "tick end" }));
  bins.forEach((count, n) => {
    const size = ((bottom - 12) * count) / most;
    chart.append(
      svg(
        "g",
        { class: "day-bar" },
        svg("title", {}, `${number(count)} with importance ${10 * n} to ${10 * (n + 1)} %`),
        svg("rect", { x: left + n * slot, y: 12, width: slot, height: bottom - 12, class: "catch" }),
        svg("rect", { x: left + n * slot + 2, y: bottom - Math.max(count ? 1.5 : 0, size), width: slot - 4, height: Math.max(count ? 1.5 : 0, size), class: "bin" }),
      ),
    );
  });
  chart.append(text(left, height - 5, "fading", { class: "tick" }), text(width - 6, height - 5, "essential", { class: "tick end" }));
  return el("figure", {}, el("figcaption", {}, el("b", {}, "Importance")), chart);
}
