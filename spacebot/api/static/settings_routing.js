// Settings, Routing: which model serves what, for one agent; and which one would answer a text now, and why.

import { get, post, send } from "./connection.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { Field, allRight, changesOf, labelOf, specOf } from "./fields.js?v=__VERSION__";
import { agentChoice } from "./settings_choice.js?v=__VERSION__";
import { attempt, put } from "./ui.js?v=__VERSION__";

const ROLES = ["channel", "branch", "worker", "compactor", "cortex"];
const ROLE_NAMES = { channel: "Conversations", branch: "Branches", worker: "Workers", compactor: "Compactor", cortex: "Cortex", voice: "Voice" };
const WORDS = ["tiers", "boundaries", "weights"];

export function open(root, desk) {
  let fields = [];
  const choice = agentChoice(desk, () => dirty(), () => refresh(), () => revert());
  const panels = el("div", { class: "stack" });
  root.append(el("div", { class: "bar" }, el("h2", {}, "Routing"), choice.node), panels, tryIt(choice));

  async function refresh() {
    const agent = choice.draw();
    const [schema, config] = await Promise.all([desk.schema(), get("agents/config", { agent_id: agent })]);
    if (agent !== choice.agent()) return;
    if (!fields.length) build(schema);
    showValues(config);
    desk.changed();
  }

  function build(schema) {
    const field = (place, more = {}) => {
      const one = new Field({ key: place.join("."), place, spec: specOf(schema, ["defaults", ...place]), changed: desk.changed, ...more });
      fields.push(one);
      return one.node;
    };
    const routing = (...keys) => ["routing", ...keys];
    const all = (name) => Object.keys(specOf(schema, ["defaults", ...routing("prompt_routing", name)]).properties).map((key) => field(routing("prompt_routing", name, key), name === "tiers" ? { list: "models" } : {}));
    put(panels, [
      panel("Models of the roles", specOf(schema, ["defaults", "routing"]).description,
        ...ROLES.flatMap((role) => [field(routing(role), { label: ROLE_NAMES[role], list: "models" }), field(routing(`${role}_thinking_effort`), { label: `${ROLE_NAMES[role]}: thinking` })]),
        field(routing("voice"), { label: ROLE_NAMES.voice, list: "models" }), field(["routing_profile"], { label: "Profile" })),
      panel("Words choose the model", specOf(schema, ["defaults", ...routing("prompt_routing")]).description,
        field(routing("prompt_routing", "enabled"), { label: "Prompt routing" }), field(routing("prompt_routing", "process_types")),
        ...WORDS.flatMap((name) => [el("h4", { class: "wide" }, labelOf(name)), ...all(name)])),
      panel("Fallbacks and tasks", "What is asked when a model does not answer, and models of certain kinds of task.",
        field(routing("fallbacks"), { list: "models" }), field(routing("task_overrides"), { list: "models" }), field(routing("rate_limit_cooldown_secs"))),
      panel("Budget", specOf(schema, ["defaults", "budget"]).description, ...["daily_usd", "daily_tokens", "warn_at"].map((key) => field(["budget", key]))),
    ]);
    desk.models().catch(() => {}); // only suggestions
  }

  function showValues(config) {
    for (const field of fields) field.show(field.place.reduce((at, key) => at?.[key], config), config.sources[field.key]);
  }

  const dirty = () => fields.filter((field) => field.isDirty).length;

  async function save() {
    if (!allRight(fields)) throw new Error("Mend the marked field first.");
    const answer = await send("PUT", "agents/config", { agent_id: choice.agent(), ...changesOf(fields) });
    for (const field of fields) field.draft = undefined;
    showValues(answer);
    return answer;
  }

  return { refresh, dirty, save, revert: () => fields.forEach((field) => field.revert()) };
}

function panel(title, about, ...nodes) {
  const isOpen = title.startsWith("Models");
  return el("details", { class: "panel", open: isOpen }, el("summary", {}, el("h3", {}, title), el("span", { class: "fine" }, about)), el("div", { class: `settings-grid ${isOpen ? "roles" : ""}` }, ...nodes));
}

// --- which model would answer ------------------------------------------------------------------------

function tryIt(choice) {
  const text = el("textarea", { id: "try-text", rows: 3, maxlength: 100_000, required: true, placeholder: "thanks, that helps" });
  const process = el("select", { class: "field", "aria-label": "Who would be asked" }, ...ROLES.map((role) => el("option", { value: role }, ROLE_NAMES[role])));
  const go = el("button", { class: "pill primary" }, "Which model?");
  const result = el("p", { class: "result", role: "status" });
  const found = el("div", { id: "try-found", hidden: true });
  const form = el("form", { id: "try" }, el("label", { for: "try-text" }, "A message, and which model would answer it as things are saved now. Nothing is asked."), text, el("div", { class: "bar" }, process, go), result, found);
  form.onsubmit = async (event) => {
    event.preventDefault();
    await attempt(result, "Looking …", async () => {
      draw(found, await post("route/explain", { agent_id: choice.agent(), text: text.value, process: process.value }));
    }, [go]);
  };
  return el("section", { class: "panel" }, el("h3", {}, "Try it"), form);
}

function draw(place, answer) {
  const found = answer.complexity;
  place.hidden = false;
  const steps = answer.steps.map((step) => el("li", { class: step.model ? "" : "off" }, el("b", {}, step.model ?? step.written), step.note ? el("span", { class: "fine" }, ` ${step.note}`) : null));
  const why = [`chosen by: ${answer.level}`];
  if (answer.tier) why.push(`tier: ${answer.tier}`);
  if (found && !answer.is_scored) why.push("the words are scored here, but do not choose: prompt routing is off for this role");
  place.replaceChildren(
    el("p", { class: "answer" }, el("b", { class: "big" }, answer.model ?? "no model"), " ", el("span", { class: "tag" }, why.join(" · "))),
    ...answer.notes.map((note) => el("p", { class: "fine" }, note)),
    found ? el("p", {}, `Score ${found.score.toFixed(2)}, ${found.tier}`, found.guards.length ? ` (${found.guards.join("; ")})` : "") : "",
    found ? el("ul", { class: "dimensions" }, ...Object.entries(found.values).map(([name, value]) => dimension(name, value, found.signs[name] ?? []))) : "",
    el("h4", {}, "Asked in this order"), el("ol", { class: "chain" }, ...steps),
  );
}

// A bar from the middle: to the right it speaks for a heavier model, to the left for a lighter one.
function dimension(name, value, signs) {
  const bar = el("i", { class: value < 0 ? "below" : "above" });
  bar.style.width = `${Math.min(1, Math.abs(value)) * 50}%`;
  return el("li", {}, el("span", { class: "name" }, labelOf(name)), el("span", { class: "track", "aria-hidden": "true" }, bar), el("span", { class: "value" }, value.toFixed(2)), el("span", { class: "fine" }, signs.join(", ")));
}
