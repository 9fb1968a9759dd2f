// Settings, Agent: who an agent is, in words with a preview, and the figures that it works by.

import { get, send } from "./connection.js?v=__VERSION__";
import { el, renderMarkdown } from "./markdown.js?v=__VERSION__";
import { Field, allRight, changesOf, specOf } from "./fields.js?v=__VERSION__";
import { agentChoice } from "./settings_choice.js?v=__VERSION__";
import { button, put } from "./ui.js?v=__VERSION__";

const TEXTS = [
  ["soul", "Soul", "How it is: temper, tone, values."],
  ["identity", "Identity", "Who it is, and what it is for."],
  ["user", "User", "What it should know of you and your team."],
];
const SECTIONS = ["tuning", "compaction", "cortex", "coalesce", "memory_persistence", "ingestion", "worker", "browser"];
const TITLES = { tuning: "Tuning", memory_persistence: "Memory persistence", coalesce: "Coalescing" };
const TUNING_ABOUT = "How much it does at a time, and how far back it looks.";

export function open(root, desk) {
  let fields = [];
  const choice = agentChoice(desk, () => dirty(), () => refresh(), () => revert());
  const texts = TEXTS.map(([name, title, about]) => new IdentityText(name, title, about, desk.changed));
  const sections = el("div", { class: "stack" });
  root.append(
    el("div", { class: "bar" }, el("h2", {}, "Agent"), choice.node),
    el("div", { class: "stack" }, ...texts.map((text) => text.node)), sections,
  );

  async function refresh() {
    const agent = choice.draw();
    const [schema, config, identity] = await Promise.all([desk.schema(), get("agents/config", { agent_id: agent }), get("agents/identity", { agent_id: agent })]);
    if (agent !== choice.agent()) return;
    if (!fields.length) build(schema, config);
    for (const text of texts) text.show(identity[text.name]);
    showValues(config);
    desk.changed();
  }

  function build(schema, config) {
    const parts = SECTIONS.map((section) => {
      const path = section === "tuning" ? ["defaults"] : ["defaults", section];
      const own = Object.keys(config[section]).map((key) => {
        const place = [section, key];
        return new Field({ key: section === "tuning" ? key : `${section}.${key}`, place, spec: specOf(schema, [...path, key]), changed: desk.changed });
      });
      fields.push(...own);
      const about = section === "tuning" ? TUNING_ABOUT : specOf(schema, path).description;
      const title = TITLES[section] ?? section[0].toUpperCase() + section.slice(1);
      return el("details", { class: "panel", "data-section": section }, el("summary", {}, el("h3", {}, title), el("span", { class: "fine" }, about)), el("div", { class: "settings-grid" }, ...own.map((field) => field.node)));
    });
    put(sections, parts);
  }

  function showValues(config) {
    for (const field of fields) field.show(config[field.place[0]][field.place[1]], config.sources[field.key]);
  }

  const dirty = () => fields.filter((field) => field.isDirty).length + texts.filter((text) => text.isDirty).length;

  async function save() {
    if (!allRight(fields)) throw new Error("Mend the marked field first.");
    const agent_id = choice.agent();
    let answer = {};
    const changed = texts.filter((text) => text.isDirty);
    if (changed.length) {
      const saved = await send("PUT", "agents/identity", { agent_id, ...Object.fromEntries(changed.map((text) => [text.name, text.area.value])) });
      for (const text of texts) text.show(saved[text.name], true);
      answer = { message: "saved; the next prompt has it" };
    }
    const body = changesOf(fields);
    if (Object.keys(body).length) {
      answer = await send("PUT", "agents/config", { agent_id, ...body });
      for (const field of fields) field.draft = undefined;
      showValues(answer);
    }
    return answer;
  }

  function revert() {
    for (const field of fields) field.revert();
    for (const text of texts) text.revert();
  }

  return { refresh, dirty, save, revert };
}

class IdentityText {
  constructor(name, title, about, changed) {
    this.name = name;
    this.value = null;
    this.area = el("textarea", { id: `text-${name}`, rows: 7, oninput: () => (this.mark(), changed()), spellcheck: "true" });
    this.preview = el("div", { class: "preview", hidden: true });
    this.toggle = button("Preview", () => this.look(this.preview.hidden), { "aria-pressed": "false", class: "look-at" });
    this.node = el("div", { class: "panel identity", "data-key": name }, el("div", { class: "bar" }, el("label", { for: `text-${name}` }, el("b", {}, title)), el("span", { class: "fine" }, about), el("span", { class: "space" }), this.toggle), this.area, this.preview);
  }

  get isDirty() {
    return this.value !== null && this.area.value !== this.value;
  }

  show(text, isSaved = false) {
    const isDirty = this.isDirty && !isSaved;
    this.value = text ?? "";
    if (!isDirty) this.area.value = this.value;
    this.mark();
  }

  look(isOn) {
    this.preview.hidden = !isOn;
    this.area.hidden = isOn;
    this.toggle.textContent = isOn ? "Edit" : "Preview";
    this.toggle.setAttribute("aria-pressed", String(isOn));
    if (isOn) this.preview.replaceChildren(renderMarkdown(this.area.value));
  }

  mark() {
    this.node.classList.toggle("changed", this.isDirty);
  }

  revert() {
    this.area.value = this.value ?? "";
    this.look(false);
    this.mark();
  }
}
