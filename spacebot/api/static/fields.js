// Form fields for keys of the configuration, made from its JSON Schema: kinds, ranges and descriptions stand there alone.
// A field knows what the server has and what the person made of it; only what was changed is sent, null takes a key out.

import { el } from "./markdown.js?v=__VERSION__";
import { button } from "./ui.js?v=__VERSION__";

const UNITS = { secs: "seconds", ms: "milliseconds", usd: "dollars", mib: "MiB" };
let count = 0;

// What stands in the schema under a path of keys, without references and without the way to name a variable instead.
export function specOf(schema, path) {
  return path.reduce((at, key) => whole(schema, at.properties?.[key] ?? {}), schema);
}

function whole(schema, { anyOf, $ref, ...own }) {
  const base = anyOf?.find((one) => !one.$ref?.endsWith("/Reference")) ?? ($ref ? { $ref } : null);
  if (!base) return own;
  return { ...(base.$ref ? whole(schema, schema.definitions[base.$ref.split("/").at(-1)]) : base), ...own };
}

// "worker_timeout_secs" -> "Worker timeout (seconds)"
export function labelOf(key) {
  const words = key.split("_");
  const unit = UNITS[words.at(-1)];
  const text = (unit ? words.slice(0, -1) : words).join(" ");
  return `${text[0].toUpperCase()}${text.slice(1)}${unit ? ` (${unit})` : ""}`;
}

// What a form accepts, which may be less than what the file does.
function rangeOf(spec) {
  const [low, high] = spec["x-form"] ?? [];
  return [low ?? spec.minimum ?? null, high ?? spec.maximum ?? null];
}

function limits(spec) {
  const [low, high] = rangeOf(spec);
  if (low !== null && high !== null) return `${low} to ${high}`;
  if (low !== null) return `at least ${low}`;
  const above = spec.exclusiveMinimum;
  return [above !== undefined ? `more than ${above}` : "", high !== null ? `at most ${high}` : ""].filter(Boolean).join(", ");
}

const isNumber = (spec) => spec.type === "integer" || spec.type === "number";
const same = (a, b) => JSON.stringify(a ?? null) === JSON.stringify(b ?? null);

// --- what a value is typed into: {node, read(), write(value), main} ----------------------------------

function control(spec, id, list, input) {
  if (spec.type === "boolean") return switchControl(id, input);
  if (spec.enum) return choiceControl(spec, id, input);
  if (spec.type === "array") return spec.items?.enum ? choicesControl(spec, id, input) : linesControl(id, input);
  if (spec.type === "object") return tableControl(spec, id, list, input);
  return textControl(spec, id, list, input);
}

function switchControl(id, input) {
  const main = el("input", { type: "checkbox", id, class: "switch", onchange: input });
  return { node: main, main, read: () => main.checked, write: (value) => (main.checked = value === true) };
}

function choiceControl(spec, id, input) {
  const none = "default" in spec ? [] : [el("option", { value: "" }, "not set")];
  const main = el("select", { id, class: "field", onchange: input }, ...none, ...spec.enum.map((one) => el("option", { value: one }, one)));
  return { node: main, main, read: () => main.value || null, write: (value) => (main.value = value ?? "") };
}

function choicesControl(spec, id, input) {
  const boxes = spec.items.enum.map((one) => el("input", { type: "checkbox", value: one, onchange: input }));
  const node = el("span", { class: "choices", id, role: "group" }, ...boxes.map((box) => el("label", {}, box, " ", box.value)));
  return {
    node, main: boxes[0],
    read: () => boxes.filter((box) => box.checked).map((box) => box.value),
    write: (value) => boxes.forEach((box) => (box.checked = (value ?? []).includes(box.value))),
  };
}

function linesControl(id, input) {
  const main = el("textarea", { id, class: "field", rows: 2, placeholder: "one in each line", oninput: input });
  const read = () => main.value.split("\n").map((line) => line.trim()).filter(Boolean);
  return { node: main, main, read, write: (value) => (main.value = (value ?? []).join("\n")) };
}

function textControl(spec, id, list, input) {
  const more = { id, class: "field", oninput: input, autocomplete: "off" };
  if (list) more.list = list;
  if (isNumber(spec)) {
    const [low, high] = rangeOf(spec);
    Object.assign(more, { type: "number", inputmode: "decimal", step: spec.type === "integer" ? 1 : "any", min: low, max: high });
  } else Object.assign(more, { maxlength: spec.maxLength, placeholder: spec.examples?.length ? `such as ${spec.examples[0]}` : null });
  const main = el("input", more);
  const read = () => {
    const text = main.value.trim();
    return text === "" ? null : isNumber(spec) ? Number(text) : text;
  };
  return { node: main, main, read, write: (value) => (main.value = value ?? "") };
}

// A table of the owner's own names: a row each; a list is written with commas.
function tableControl(spec, id, list, input) {
  const isList = spec.additionalProperties?.type === "array";
  const rows = el("ul", { class: "pairs" });
  const add = (name = "", value = "") => {
    const more = (label) => ({ class: "field", "aria-label": label, oninput: input, autocomplete: "off", list });
    const remove = button("✕", () => (row.remove(), input()), { "aria-label": "Remove" });
    const row = el("li", {}, el("input", { ...more("Name"), value: name, list: isList ? list : null }), el("span", { "aria-hidden": "true" }, "→"), el("input", { ...more("Value"), value }), remove);
    rows.append(row);
    return row;
  };
  const main = button("Add", () => add().querySelector("input").focus());
  const read = () => {
    const found = {};
    for (const row of rows.children) {
      const [name, text] = [...row.querySelectorAll("input")].map((one) => one.value.trim());
      if (name && text) found[name] = isList ? text.split(",").map((one) => one.trim()).filter(Boolean) : text;
    }
    return found;
  };
  const write = (value) => {
    rows.replaceChildren();
    for (const [name, one] of Object.entries(value ?? {})) add(name, isList ? one.join(", ") : one);
  };
  return { node: el("div", { id, role: "group" }, rows, main), main, read, write };
}

// --- a field -----------------------------------------------------------------------------------------

export class Field {
  // `key` is its name in `sources` and for people; `place` where it stands in what is sent.
  constructor({ key, place, spec, label = null, list = null, changed = () => {}, isInherited = true }) {
    const nothing = { object: {}, array: [], boolean: false }[spec.type] ?? null;
    Object.assign(this, { key, place, spec, isInherited, nothing, value: null, draft: undefined });
    const id = `field-${(count += 1)}`;
    this.control = control(spec, id, list, () => (this.take(), changed()));
    this.source = el("span", { class: "tag source" });
    this.reset = button("Reset", () => (this.change(null), changed()), { class: "reset", title: "Take it out, so that the level below counts" });
    this.error = el("p", { class: "error", role: "alert", hidden: true });
    const about = [spec.description, limits(spec) && `${limits(spec)}.`].filter(Boolean).join(" ");
    const name = el("label", { for: id, title: key }, label ?? labelOf(key.split(".").at(-1)));
    this.node = el("div", { class: `setting ${spec.type === "object" ? "wide" : ""}`, "data-key": key }, name, el("div", { class: "holder" }, this.control.node, this.source, this.reset), el("p", { class: "fine", id: `${id}-about` }, about), this.error);
    this.control.main.setAttribute("aria-describedby", `${id}-about`);
  }

  // What the server has; what was typed and not saved yet stays.
  show(value, source = "") {
    this.value = value ?? null;
    this.from = source;
    if (this.draft !== undefined && same(this.draft, this.value)) this.draft = undefined;
    // A row that is just begun, or a blank line, is no change yet and stays too.
    if (this.draft === undefined && !(this.isShown && same(this.control.read(), this.value ?? this.nothing))) this.control.write(this.value);
    this.isShown = true;
    this.mark();
  }

  take() {
    const value = this.control.read();
    this.draft = same(value, this.value ?? this.nothing) ? undefined : value;
    this.check();
    this.mark();
  }

  // Null: the level below counts again; what that is, the server tells after it is saved.
  change(value) {
    this.draft = value;
    this.control.write(value ?? this.spec.default ?? null);
    this.error.hidden = true;
    this.mark();
  }

  revert() {
    this.draft = undefined;
    this.control.write(this.value);
    this.error.hidden = true;
    this.mark();
  }

  mark() {
    const isOwn = this.from?.startsWith("agent ");
    this.node.classList.toggle("changed", this.isDirty);
    this.source.textContent = this.draft === null ? "not set here" : this.isDirty ? "changed" : this.from ?? "";
    this.source.hidden = !this.source.textContent;
    this.reset.hidden = !this.isInherited || !isOwn || this.draft === null;
  }

  get isDirty() {
    return this.draft !== undefined;
  }

  // Whether it can be sent; says what is wrong.
  check() {
    const input = this.control.main;
    const { validity } = input;
    const isRight = !validity || (this.draft === null ? !validity.badInput : validity.valid);
    const above = this.spec.exclusiveMinimum;
    const isAbove = above === undefined || typeof this.draft !== "number" || this.draft > above;
    this.error.hidden = isRight && isAbove;
    this.error.textContent = isRight && isAbove ? "" : isRight ? `It must be more than ${above}.` : input.validationMessage;
    input.setAttribute("aria-invalid", String(!this.error.hidden));
    return this.error.hidden;
  }
}

// What was changed in some fields, as the body of a request: only these keys.
export function changesOf(fields) {
  const body = {};
  for (const field of fields.filter((one) => one.isDirty)) {
    const holder = field.place.slice(0, -1).reduce((at, key) => (at[key] ??= {}), body);
    holder[field.place.at(-1)] = field.draft;
  }
  return body;
}

// Goes to the first field that cannot be sent. Returns whether all can.
export function allRight(fields) {
  const wrong = fields.filter((one) => one.isDirty && !one.check());
  if (wrong.length) {
    wrong[0].node.closest("details")?.setAttribute("open", "");
    wrong[0].control.main.focus();
  }
  return !wrong.length;
}
