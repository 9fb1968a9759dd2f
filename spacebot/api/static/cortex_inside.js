// What the cortex shows of itself: the agent's card, the bulletin, what is due when, and what was done to memory.

import { el, renderMarkdown } from "./markdown.js?v=__VERSION__";
import { Unauthorized, get } from "./connection.js?v=__VERSION__";
import { number, time, when } from "./words.js?v=__VERSION__";

const PAGE = 50;
const MOST = 200; // of one request
const SOON_S = 3;

const DUTIES = {
  bulletin: { name: "Bulletin", idle: "waits for something new" },
  profile: { name: "Card", idle: "waits for a new bulletin" },
  observation: { name: "Observations", idle: "waits for more news" },
  association: { name: "Links", idle: "waits for new memories" },
  contradiction: { name: "Contradictions", idle: "waits for new links" },
  maintenance: { name: "Upkeep", idle: "nothing to do" },
};
const ENGINES = { exact: "exact", lancedb: "vector table", scan: "straight from the database" };

const TROUBLES = Object.keys(DUTIES).flatMap((name) => [`${name}_failed`, `${name}_timeout`]);
const KINDS = {
  bulletin: ["bulletin_generated", "profile_generated"],
  memory: [
    "memory_edited", "memory_forgotten", "memory_restored", "memory_merged", "memory_pruned", "memory_deleted",
    "memories_imported", "person_forgotten",
  ],
  upkeep: ["maintenance_completed", "maintenance_interrupted", "association_created", "contradiction_judged", "observation_created", "observation_skipped"],
  health: ["process_killed", ...TROUBLES],
};
const GROUPS = { all: "All", bulletin: "Bulletin", memory: "Memory", upkeep: "Upkeep", health: "Health" };
const groupOf = (kind) => Object.keys(KINDS).find((group) => KINDS[group].includes(kind)) ?? (/_(failed|timeout)$/.test(kind) ? "health" : "memory");
const WORDS = {
  bulletin_generated: "New bulletin", profile_generated: "New card", memory_forgotten: "Forgotten", memory_merged: "Merged",
  memory_pruned: "Let go", memory_restored: "Brought back", memory_edited: "Edited", memory_deleted: "Deleted", memories_imported: "Imported",
  person_forgotten: "Person forgotten", maintenance_completed: "Upkeep", maintenance_interrupted: "Upkeep, cut short",
  association_created: "Connected", contradiction_judged: "Compared", observation_created: "Observed", observation_skipped: "Looked around",
  process_killed: "Ended a process",
};

// Asks and draws; what comes too late (another agent is shown) is dropped, what fails is said in place.
class Part {
  constructor(place, { agent, unauthorized }) {
    this.place = place;
    this.agent = agent;
    this.unauthorized = unauthorized;
  }

  clear() {
    this.drawn = null;
    this.place.replaceChildren();
  }

  async show() {
    const agent = this.agent();
    try {
      const found = await this.load(agent);
      if (agent === this.agent() && isNews(this, found)) this.draw(found);
    } catch (error) {
      if (error instanceof Unauthorized) return this.unauthorized().then(() => this.show());
      if (agent === this.agent() && !this.place.children.length) this.place.replaceChildren(el("p", { class: "error" }, error.message));
    }
  }
}

// Whether this is other than what was drawn last; what stays the same is left alone, with its focus and scroll.
function isNews(place, data) {
  const drawn = JSON.stringify(data);
  if (place.drawn === drawn) return false;
  place.drawn = drawn;
  return true;
}

export class Now extends Part {
  load(agent) {
    return get("cortex/state", { agent_id: agent });
  }

  draw(state) {
    const sections = [
      [card, { profile: state.profile, agent_id: state.agent_id }],
      [bulletin, state.bulletin],
      [duties, state.duties],
      [memories, state.memory],
    ];
    sections.forEach(([draw, data], n) => {
      const place = this.place.children[n] ?? this.place.appendChild(el("section"));
      if (!isNews(place, data)) return;
      const section = draw(data);
      section.drawn = place.drawn;
      place.replaceWith(section);
    });
    // What is done within the minute is looked at again then.
    clearTimeout(this.timer);
    const next = Math.min(...Object.values(state.duties).map((duty) => (duty.is_running ? SOON_S : (duty.due_in_s ?? Infinity))));
    if (next < 60) this.timer = setTimeout(() => this.place.hidden || document.hidden || this.show(), (next + SOON_S) * 1000);
  }
}

function card({ profile, agent_id }) {
  const name = profile?.display_name ?? agent_id;
  return el(
    "section",
    { class: "profile" },
    el("span", { class: `seed seed-${hue(profile?.avatar_seed ?? agent_id)}`, "aria-hidden": "true" }, [...name][0]?.toUpperCase() ?? "?"),
    el("div", {}, el("h2", { dir: "auto" }, name), el("p", { class: "fine", dir: "auto" }, profile?.status ?? (profile ? "" : "No card yet: it is written after the first bulletin."))),
    profile?.bio ? el("p", { class: "bio", dir: "auto" }, profile.bio) : null,
  );
}

const hue = (seed) => [...seed].reduce((sum, sign) => (sum * 31 + sign.codePointAt(0)) % 6, 0);

function bulletin({ text, words, is_shown, generated_at }) {
  const made = generated_at ? el("span", { class: "fine" }, `${number(words)} words, `, time(generated_at)) : null;
  let body;
  if (text) body = el("div", { class: "paper", dir: "auto", tabindex: "0" }, renderMarkdown(text));
  else if (generated_at && !is_shown) body = el("p", { class: "fine" }, "Withdrawn: something in it was forgotten. Conversations see none until the next one is written.");
  else body = el("p", { class: "fine" }, "None yet. It is written from what all may know, once there are memories.");
  return el("section", { class: "bulletin" }, el("div", { class: "section-head" }, el("h2", {}, "Bulletin"), made), el("p", { class: "fine" }, "What every conversation is told in advance."), body);
}

function duties(known) {
  const rows = Object.entries(known).map(([name, duty]) => {
    const { state, kind } = standing(name, duty);
    return el(
      "li",
      { class: kind },
      el("b", {}, DUTIES[name]?.name ?? name),
      el("span", {}, state),
      el("span", { class: "fine" }, duty.last_success_at ? el("span", {}, "last done ", time(duty.last_success_at)) : ""),
    );
  });
  return el("section", { class: "duties" }, el("h2", {}, "Duties"), el("ul", {}, ...rows));
}

function standing(name, duty) {
  const due = duty.due_in_s === null ? null : span(duty.due_in_s);
  if (duty.is_running) return { state: "at work", kind: "live" };
  if (duty.is_paused) return { state: `paused after ${duty.failures} failures, next try ${due}`, kind: "bad" };
  if (duty.failures) return { state: `failed ${duty.failures === 1 ? "once" : `${duty.failures} times`}, next try ${due}`, kind: "bad" };
  if (due === null) return { state: DUTIES[name]?.idle ?? "rests", kind: "" };
  return { state: duty.due_in_s ? `due ${due}` : "due now", kind: "" };
}

const SPANS = [[86_400, "day"], [3600, "hour"], [60, "minute"]];
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: "always" });
function span(seconds) {
  const [length, unit] = SPANS.find(([length]) => seconds >= length) ?? [1, "second"];
  return relative.format(Math.round(seconds / length), unit);
}

function memories({ total, to_embed, engine, problem }) {
  return el(
    "section",
    { class: "store" },
    el("h2", {}, "Memory"),
    el("p", { class: "fine" }, el("a", { href: "memory" }, `${number(total)} ${total === 1 ? "memory" : "memories"}`), ` · search ${ENGINES[engine] ?? engine}`, to_embed ? ` · ${number(to_embed)} to embed` : ""),
    problem ? el("p", { class: "error" }, problem) : null,
  );
}

export class Deeds extends Part {
  constructor(place, context) {
    super(place, context);
    this.group = "all";
    this.limit = PAGE;
    this.open = new Set();
  }

  clear() {
    super.clear();
    this.limit = PAGE;
    this.open.clear();
  }

  // From the newest to as far as was asked for, in pages, so that new ones move nothing out of sight.
  async load(agent) {
    const [group, kinds] = [this.group, KINDS[this.group]];
    const events = [];
    let total = 0;
    while (events.length < this.limit) {
      const page = await get("cortex/events", { agent_id: agent, limit: Math.min(MOST, this.limit - events.length), offset: events.length, ...(kinds && { event_type: kinds.join(",") }) });
      events.push(...page.events);
      total = page.total;
      if (!page.events.length || events.length >= total) break;
    }
    return { group, total, events: [...new Map(events.map((event) => [event.id, event])).values()] };
  }

  draw({ group, events, total }) {
    if (group !== this.group) return; // another filter was chosen meanwhile
    const focused = this.place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const chips = Object.entries(GROUPS).map(([name, words]) =>
      el("button", { type: "button", class: "chip", "data-key": name, "data-group": name, "aria-pressed": String(name === group), onclick: () => this.choose(name) }, words),
    );
    const rows = events.map((event) => this.drawDeed(event));
    const more = el("button", { type: "button", class: "pill more", "data-key": "more", onclick: () => ((this.limit += PAGE), this.show()) }, "More");
    this.place.replaceChildren(
      el("div", { class: "chips", role: "group", "aria-label": "Filter" }, ...chips),
      rows.length ? el("ul", { class: "deed-list" }, ...rows) : el("p", { class: "fine" }, group === "all" ? "Nothing was done yet. What the cortex writes, merges, forgets and ends is noted here." : "Nothing of this kind yet."),
      ...(events.length < total ? [more] : []),
    );
    if (focused) this.place.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }

  choose(group) {
    this.group = group;
    this.limit = PAGE;
    this.show();
  }

  drawDeed(event) {
    const group = groupOf(event.event_type);
    const name = WORDS[event.event_type] ?? event.event_type.replaceAll("_", " ");
    const isSame = event.summary.toLowerCase() === name.toLowerCase();
    const details = Object.entries(event.details);
    const element = el(
      "details",
      { class: `deed ${group}`, open: this.open.has(event.id), ontoggle: () => (element.open ? this.open.add(event.id) : this.open.delete(event.id)) },
      el("summary", { "data-key": event.id }, el("b", {}, name), time(event.created_at), isSame ? null : el("span", { dir: "auto" }, event.summary)),
      el("dl", {}, ...[["when", when(event.created_at)], ...details].flatMap(([key, value]) => [el("dt", {}, key.replaceAll("_", " ")), el("dd", { dir: "auto" }, readable(value))])),
    );
    return el("li", {}, element);
  }
}

function readable(value) {
  if (value === null) return "–";
  if (Array.isArray(value) && value.every((one) => typeof one !== "object")) return value.join(", ") || "–";
  return typeof value === "object" ? JSON.stringify(value, null, 2) : String(value);
}
