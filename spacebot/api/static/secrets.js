// The Secrets page: names, what for, since when. Values go in and never come out.

import { get, send } from "./connection.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { $, attempt, button, confirmed, formDialog, keyed, put, startPage, toast } from "./ui.js?v=__VERSION__";
import { plural, time } from "./words.js?v=__VERSION__";

const CATEGORIES = { system: "the program only", tool: "commands of workers" };
const WORDS = { locked: "locked", unlocked: "open", empty: "empty", unreadable: "cannot be read" };
let all = [];

const path = (name) => `secrets/${encodeURIComponent(name)}`;

class Row {
  constructor(name) {
    this.name = name;
    this.category = el("span", { class: "tag" });
    this.when = el("span", { class: "fine" });
    this.result = el("p", { class: "result", role: "status" });
    const buttons = el("div", { class: "actions" }, button("Change", () => this.change(), { class: "change" }), button("Delete", () => this.delete(), { class: "remove" }));
    this.node = el("li", { class: "secret", "data-id": name }, el("code", {}, name), this.category, this.when, buttons, this.result);
  }

  show(secret) {
    this.secret = secret;
    this.category.textContent = CATEGORIES[secret.category] ?? secret.category;
    if (this.at !== secret.updated_at) this.when.replaceChildren("changed ", time(secret.updated_at));
    this.at = secret.updated_at;
  }

  change() {
    const options = Object.entries(CATEGORIES).map(([value, text]) => el("option", { value, selected: value === this.secret.category }, text));
    formDialog({
      title: `New value of ${this.name}`,
      yes: "Store",
      fill: (form) => form.append(
        el("label", {}, "Value", el("input", { name: "value", type: "password", required: true, autocomplete: "new-password" })),
        el("label", {}, "For", el("select", { name: "category", class: "field" }, ...options)),
      ),
      submit: async (data) => {
        await send("PUT", path(this.name), { value: data.get("value"), category: data.get("category") });
        toast(`${this.name} has its new value.`);
        await page.refresh();
      },
    });
  }

  async delete() {
    const text = "What names it goes without a value from then on. It cannot be brought back.";
    if (!(await confirmed({ title: `Delete ${this.name}?`, text }))) return;
    await attempt(this.result, "Deleting …", () => send("DELETE", path(this.name)));
    await page.refresh();
  }
}

const drawRows = keyed($("secrets"), (name) => new Row(name), (secret) => secret.name);

function draw() {
  const words = $("find").value.trim().toLowerCase();
  const found = all.filter((one) => one.name.toLowerCase().includes(words));
  drawRows(found);
  $("secrets").hidden = !found.length;
  $("none").hidden = found.length > 0;
  $("none").textContent = all.length ? "No name fits." : "Nothing yet.";
}

function drawState(state) {
  const isOpen = state.state === "unlocked" || state.state === "empty";
  $("state").textContent = [WORDS[state.state] ?? state.state, state.state === "unlocked" && plural(all.length, "secret")].filter(Boolean).join(", ");
  $("state").className = `tag ${isOpen ? "good" : "bad"}`;
  $("lock").hidden = isOpen;
  $("lock").replaceChildren(el("b", {}, state.state === "locked" ? "The store is locked. " : "The store cannot be read. "), state.problem ?? "Open it on the machine: ", state.problem ? "" : el("code", {}, "spacebot secret unlock"));
  put($("warnings"), state.warnings.map((text) => el("li", { class: "detail" }, text)));
  $("warnings").hidden = !state.warnings.length;
}

async function refresh() {
  const state = await get("secrets/status");
  all = state.state === "unreadable" ? [] : (await get("secrets")).secrets;
  drawState(state);
  draw();
}

$("find").oninput = draw;
const form = $("add");
form.onsubmit = async (event) => {
  event.preventDefault();
  const name = form.elements.name.value.trim().toUpperCase();
  if (all.some((one) => one.name === name) && !(await confirmed({ title: `Replace the value of ${name}?`, yes: "Replace" }))) return;
  await attempt($("result"), "Storing …", async () => {
    await send("PUT", path(name), { value: form.elements.value.value, category: form.elements.category.value });
    form.reset();
    return { message: `${name} is stored.` };
  }, [form.querySelector("button")]);
  await page.refresh();
};

const page = startPage({ events: "config_reloaded", refresh });
