// One memory: its words, what it rests on, what it is connected with; and editing, forgetting, bringing back.

import { el } from "./markdown.js?v=__VERSION__";
import { get, post, send } from "./connection.js?v=__VERSION__";
import { COVERED, RELATIONS, TYPES, badge, marks, meter, typeOf } from "./memory_words.js?v=__VERSION__";
import { svg } from "./things.js?v=__VERSION__";
import { line, number, percent, time, when } from "./words.js?v=__VERSION__";

const LENGTH_LIMIT = 50_000; // bytes, as the server has it

export class Panel {
  // `context()` gives {agent, isUncovered}; `open(id)`, `closed()`, `inGraph(id)` move the page; `told(text, undo)`
  // and `failed(error)` tell the person.
  constructor(root, { context, open, closed, inGraph, told, failed }) {
    Object.assign(this, { root, context, open, closed, inGraph, told, failed });
    this.id = null;
    this.detail = null;
    this.uncovered = new Set(); // private memories that were asked for one by one
  }

  get isEditing() {
    return this.root.querySelector("form") !== null;
  }

  async show(id) {
    this.id = id;
    this.root.hidden = false;
    this.root.setAttribute("aria-busy", "true");
    try {
      const detail = await get(`agents/memories/${encodeURIComponent(id)}`, { agent_id: this.context().agent });
      if (id !== this.id) return;
      this.detail = detail;
      this.draw();
      this.root.scrollTop = 0;
    } catch (error) {
      if (id !== this.id) return;
      this.detail = null;
      this.root.replaceChildren(this.head(), el("p", { class: "error" }, error.message));
    } finally {
      if (id === this.id) this.root.removeAttribute("aria-busy");
    }
  }

  // Something changed elsewhere: fetch anew, unless the person is writing here.
  async refresh() {
    if (this.id === null || this.isEditing) return;
    const id = this.id;
    try {
      const detail = await get(`agents/memories/${encodeURIComponent(id)}`, { agent_id: this.context().agent });
      if (id !== this.id || this.isEditing) return;
      this.detail = detail;
      this.draw();
    } catch {} // it may be gone; what was seen stays
  }

  close() {
    this.id = this.detail = null;
    this.root.hidden = true;
    this.root.replaceChildren();
  }

  isCovered(memory) {
    return memory.is_private && !this.context().isUncovered && !this.uncovered.has(memory.id);
  }

  head(memory) {
    return el(
      "div",
      { class: "panel-head" },
      memory ? badge(memory) : null,
      ...(memory ? marks(memory) : []),
      el("span", { class: "gap" }),
      el("button", { type: "button", class: "plain close", "aria-label": "Close", onclick: () => this.closed() }, "✕"),
    );
  }

  draw() {
    const { memory, edges, others, learned } = this.detail;
    const isCovered = this.isCovered(memory);
    const again = () => this.draw();
    const parts = [
      this.head(memory),
      memory.forgotten ? el("p", { class: "gone" }, "Forgotten: nothing recalls it any more.", memory.forget_reason ? el("span", { dir: "auto" }, ` ${memory.forget_reason}`) : null) : null,
      isCovered
        ? el("p", { class: "covered" }, COVERED, el("button", { type: "button", class: "pill uncover", onclick: () => (this.uncovered.add(memory.id), again()) }, "Show"))
        : el("p", { class: "words", dir: "auto" }, memory.content),
      this.importance(memory),
      this.facts(memory, learned, isCovered),
      this.edges(memory, edges, others),
      this.actions(memory),
    ];
    this.root.replaceChildren(...parts.filter(Boolean));
  }

  importance(memory) {
    const x = 100 * memory.importance;
    const given = 100 * memory.base_importance;
    const text = `Importance ${percent(memory.importance)} now, ${percent(memory.base_importance)} as given`;
    return el(
      "div",
      { class: "importance", title: "What it was given, raised by use and connections, lowered by time" },
      svg(
        "svg",
        { viewBox: "0 0 100 8", preserveAspectRatio: "none", class: `kind-${memory.memory_type}`, role: "img", "aria-label": text },
        svg("rect", { width: 100, height: 8, class: "track" }),
        svg("rect", { width: x, height: 8, class: "fill" }),
        svg("rect", { x: Math.min(99, given), width: 0.8, height: 8, class: "given" }),
      ),
      el("p", { class: "fine" }, text),
    );
  }

  facts(memory, learned, isCovered) {
    const rows = [
      ["Learned", time(memory.created_at)],
      ["Where", learned.channel_name ?? memory.channel_id ?? memory.source ?? "unknown"],
      ["From", learned.sender_name ?? memory.user_id],
      ["Source", memory.channel_id ? memory.source : null],
      ["About", memory.subject],
      ["In the words", learned.said && !isCovered ? el("q", { dir: "auto" }, line(learned.said, 240)) : null],
      ["Recalled", memory.access_count ? [`${number(memory.access_count)} × · last `, time(memory.last_accessed_at)] : "not yet"],
      ["Changed", memory.updated_at !== memory.created_at ? time(memory.updated_at) : null],
      ["Id", el("code", { class: "id", title: when(memory.created_at) }, memory.id)],
    ];
    return el(
      "dl",
      {},
      ...rows.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", { dir: "auto" }, ...[value].flat())]),
    );
  }

  edges(memory, edges, others) {
    const known = edges.filter((edge) => others[edge.source_id] || others[edge.target_id]);
    if (!known.length) return el("p", { class: "fine" }, "Not connected with anything yet.");
    return el(
      "section",
      { class: "edges" },
      el("h3", {}, `Connections (${number(known.length)})`),
      el(
        "ul",
        {},
        ...known.map((edge) => {
          const isOut = edge.source_id === memory.id;
          const other = others[isOut ? edge.target_id : edge.source_id];
          const words = RELATIONS[edge.relation_type] ?? { out: edge.relation_type, in: edge.relation_type };
          return el(
            "li",
            {},
            el(
              "button",
              { type: "button", class: `edge rel-${edge.relation_type}`, "data-id": other.id, onclick: () => this.open(other.id) },
              el("span", { class: "fine" }, `${words[isOut ? "out" : "in"]} · ${percent(edge.weight)}`),
              el("span", { class: `edge-text kind-${other.memory_type}`, dir: "auto" }, this.isCovered(other) ? COVERED : line(other.content, 120)),
            ),
          );
        }),
      ),
    );
  }

  actions(memory) {
    const button = (name, onclick, extra = "") => el("button", { type: "button", class: `pill ${extra}`, onclick }, name);
    if (memory.forgotten) return el("div", { class: "actions" }, button("Bring back", () => this.restore(memory.id), "primary restore"));
    return el(
      "div",
      { class: "actions" },
      button("Edit", () => this.edit(), "edit"),
      button("Show in graph", () => this.inGraph(memory.id), "in-graph"),
      button("Forget …", (event) => this.askForget(event.currentTarget.parentElement), "forget"),
    );
  }

  askForget(actions) {
    const reason = el("input", { type: "text", id: "forget-reason", placeholder: "Reason (may stay empty)", maxlength: 300, dir: "auto" });
    const form = el(
      "form",
      { class: "forget-form", onsubmit: (event) => (event.preventDefault(), this.forget(reason.value.trim())) },
      el("label", { for: "forget-reason" }, "Forget this memory? Nothing recalls it any more; you can bring it back."),
      reason,
      el("div", { class: "actions" }, el("button", { class: "pill danger" }, "Forget"), el("button", { type: "button", class: "pill", onclick: () => this.draw() }, "Cancel")),
    );
    actions.replaceWith(form);
    form.scrollIntoView({ block: "nearest" });
    reason.focus({ preventScroll: true });
  }

  async forget(reason) {
    const id = this.id;
    await this.doing(async () => {
      await send("DELETE", `agents/memories/${encodeURIComponent(id)}?${new URLSearchParams({ agent_id: this.context().agent, reason })}`);
      this.draw(); // the form is gone, whatever comes next
      this.told("Forgotten.", () => this.restore(id));
      if (this.id === id) await this.show(id);
    });
  }

  async restore(id) {
    await this.doing(async () => {
      const detail = await post(`agents/memories/${encodeURIComponent(id)}/restore?${new URLSearchParams({ agent_id: this.context().agent })}`, {});
      this.told("It is remembered again.");
      if (this.id !== id) return;
      this.detail = detail;
      this.draw();
    });
  }

  edit() {
    const { memory } = this.detail;
    this.uncovered.add(memory.id); // who edits it has asked to see it
    const form = memoryForm(memory, {
      save: (values) =>
        this.doing(async () => {
          const changed = Object.fromEntries(Object.entries(values).filter(([name, value]) => value !== (name === "importance" ? undefined : memory[name])));
          if (values.importance === null || Math.abs(values.importance - memory.base_importance) < 0.005) delete changed.importance;
          if (Object.keys(changed).length) {
            this.detail = await send("PATCH", `agents/memories/${encodeURIComponent(memory.id)}`, { ...changed, agent_id: this.context().agent });
            this.told("Saved.");
          }
          this.draw();
        }),
      cancel: () => this.draw(),
    });
    this.root.replaceChildren(this.head(memory), form);
    this.root.scrollTop = 0;
    form.elements.content.focus();
  }

  async doing(work) {
    this.root.setAttribute("aria-busy", "true");
    try {
      await work();
    } catch (error) {
      this.failed(error);
    } finally {
      this.root.removeAttribute("aria-busy");
    }
  }
}

// A form for a new memory (null) or a known one. `save(values)` may leave `importance` null: the type's own.
export function memoryForm(memory, { save, cancel }) {
  const content = el("textarea", { name: "content", rows: 6, dir: "auto", required: true, placeholder: "One thing, in a sentence or two" });
  content.value = memory?.content ?? "";
  const type = el("select", { name: "memory_type" }, ...Object.entries(TYPES).map(([id, { name }]) => el("option", { value: id, selected: id === (memory?.memory_type ?? "fact") }, name)));
  const hint = el("span", { class: "fine" });
  const describe = () => (hint.textContent = TYPES[type.value]?.hint ?? "");
  type.onchange = describe;
  describe();
  const importance = el("input", { name: "importance", type: "range", min: 0, max: 1, step: 0.05 });
  const shown = el("output", {});
  const isGiven = { value: memory !== null };
  importance.value = memory?.base_importance ?? 0.6;
  const say = () => (shown.textContent = isGiven.value ? percent(importance.value) : "as usual for its type");
  importance.oninput = () => {
    isGiven.value = true;
    say();
  };
  say();
  const permanent = el("input", { name: "permanent", type: "checkbox", checked: memory?.permanent ?? false });
  const problem = el("p", { class: "error", role: "alert" });
  const form = el(
    "form",
    {
      class: "memory-form",
      onsubmit: (event) => {
        event.preventDefault();
        const words = content.value.trim();
        if (!words) return (problem.textContent = "Write down what to remember.");
        if (new TextEncoder().encode(words).length > LENGTH_LIMIT) return (problem.textContent = "This is too long for one memory; save its parts, one thing each.");
        save({ content: words, memory_type: type.value, importance: isGiven.value ? Number(importance.value) : null, permanent: permanent.checked });
      },
    },
    el("label", {}, "What to remember", content),
    el("label", {}, "Type", type, hint),
    el("label", {}, el("span", {}, "Importance: ", shown), importance),
    el("label", { class: "check" }, permanent, " Permanent: never fades, never merged away"),
    problem,
    el("div", { class: "actions" }, el("button", { class: "pill primary" }, memory ? "Save" : "Remember"), el("button", { type: "button", class: "pill", onclick: cancel }, "Cancel")),
  );
  return form;
}
