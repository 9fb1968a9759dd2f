// How the store grew and what faded: charts, upkeep to look at and to do, and what was done lately.

import { el } from "./markdown.js?v=__VERSION__";
import { growth, histogram, types } from "./memory_charts.js?v=__VERSION__";
import { COVERED } from "./memory_words.js?v=__VERSION__";
import { number, time } from "./words.js?v=__VERSION__";

const SPANS = [30, 90, 365];
const NAMES = {
  memory_forgotten: "Forgotten", memory_merged: "Merged", memory_pruned: "Let go", memory_restored: "Brought back", memory_edited: "Edited",
  memory_deleted: "Deleted", maintenance_completed: "Upkeep", maintenance_interrupted: "Upkeep, cut short", association_created: "Connected",
  contradiction_judged: "Compared", memories_imported: "Imported",
};

function drawDeed(event, open) {
  const name = NAMES[event.event_type] ?? event.event_type.replaceAll("_", " ");
  const id = ["memory_pruned", "memory_deleted"].includes(event.event_type) ? null : (event.details.memory_id ?? event.details.absorbed_id);
  return el(
    "li",
    {},
    time(event.created_at),
    el("b", {}, name),
    el("span", { dir: "auto" }, event.summary.toLowerCase() === name.toLowerCase() ? "" : event.summary),
    id ? el("button", { type: "button", class: "plain look", onclick: () => open(id) }, "Look") : null,
  );
}

// Draws all of it into `place`. `setDays`, `setType`, `maintain(isDry)`, `maintained` and `open(id)` act for the person.
export function drawGrowth(place, { history, deeds, days, setDays, setType, maintain, maintained, open }) {
  const spans = SPANS.map((span) => el("button", { type: "button", "aria-pressed": String(span === days), onclick: () => setDays(span) }, span === 365 ? "A year" : `${span} days`));
  const width = Math.max(300, Math.min(958, place.clientWidth - 66));
  const half = matchMedia("(max-width: 48rem)").matches ? width : (width + 18) / 2 - 34; // two figures side by side
  const known = place.querySelector(".upkeep"); // its report stays
  place.replaceChildren(
    el("div", { class: "views", role: "group", "aria-label": "Time" }, ...spans),
    growth(history.days, width),
    types(history.now.by_type, setType),
    histogram(history.now.importance, half),
    known ?? upkeep({ maintain, maintained, open }),
    el(
      "figure",
      { class: "wide" },
      el("figcaption", {}, el("b", {}, "Lately")),
      deeds.length
        ? el("ul", { class: "deeds" }, ...deeds.map((event) => drawDeed(event, open)))
        : el("p", { class: "fine" }, "Nothing was tidied up yet. What upkeep merges, forgets or lets fade is written down here."),
    ),
  );
}

function upkeep({ maintain, maintained, open }) {
  const result = el("div", { class: "report", "aria-live": "polite" });
  const run = async (isDry, button) => {
    button.disabled = true;
    result.replaceChildren(el("p", { class: "fine" }, isDry ? "Looking …" : "Working …"));
    try {
      const report = await maintain(isDry);
      result.replaceChildren(...describeReport(report, isDry, open));
      if (!isDry) maintained();
    } catch (error) {
      result.replaceChildren(el("p", { class: "error" }, error.message));
    } finally {
      button.disabled = false;
    }
  };
  const button = (name, isDry, extra) => el("button", { type: "button", class: `pill ${extra}`, onclick: (event) => run(isDry, event.currentTarget) }, name);
  return el(
    "figure",
    { class: "wide upkeep" },
    el("figcaption", {}, el("b", {}, "Upkeep"), el("span", { class: "fine" }, "Now and then what nobody uses fades, what says the same is merged, and what has faded is let go. Identity and permanent memories stay.")),
    el("div", { class: "actions" }, button("What would it do now?", true, "dry-run"), button("Do it now", false, "run-upkeep")),
    result,
  );
}

function describeReport(report, isDry, open) {
  const would = (was, will) => (isDry ? will : was);
  const rows = [
    [report.decayed, `${would("became", "would become")} less important`],
    [report.raised, `${would("became", "would become")} more important`],
    [report.merged, would("were merged into others", "would be merged into others")],
    [report.pruned, would("had faded and were let go", "have faded and would be let go")],
    [report.purged, `forgotten long ago, ${would("deleted", "would be deleted")} for good`],
  ].filter(([count]) => count);
  const sample = (title, memories, id) =>
    memories.length
      ? [
          el("h4", {}, title),
          el("ul", {}, ...memories.map((one) => el("li", {}, one.preview ? el("span", { dir: "auto" }, one.preview) : el("span", { class: "covered" }, COVERED), isDry ? el("button", { type: "button", class: "plain look", onclick: () => open(one[id]) }, "Look") : null))),
        ]
      : [];
  return [
    el("p", {}, rows.length ? isDry ? "This is what it would do:" : `Done in ${report.duration_s.toFixed(1)} s:` : isDry ? "There is nothing to do." : "There was nothing to do."),
    rows.length ? el("ul", { class: "outcome" }, ...rows.map(([count, words]) => el("li", {}, el("b", {}, number(count)), ` ${words}`))) : "",
    ...sample(would("Merged", "To be merged"), report.merged_memories, "absorbed_id"),
    ...sample(would("Let go", "To be let go"), report.pruned_memories, "id"),
    el("p", { class: "fine" }, [isDry ? "Nothing was changed." : "", report.is_complete ? "" : "It did not get through everything; the next time goes on from there."].join(" ").trim()),
  ];
}
