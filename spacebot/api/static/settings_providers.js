// Settings, Providers: how each host of models is; set one up with a trial first, take one away. No key comes back.

import { get, post, send } from "./connection.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { $, attempt, button, confirmed, formDialog, keyed, say, toast } from "./ui.js?v=__VERSION__";
import { when } from "./words.js?v=__VERSION__";

const STATES = { ready: "ready", disabled: "cannot be used", absent: "not set up" };
const SOURCES = { secret: "key in the secret store", environment: "key from the environment", file: "key in plain in the file" };
const LOGINS = {
  valid: (login) => `Signed in${login.expires_at ? `, renewed ${when(login.expires_at * 1000)}` : ""}.`,
  expired: () => "Signed in; the login is renewed with the next call.",
  refused: () => "The login is not accepted any more.",
  unreadable: () => "The login cannot be read.",
};

export function open(root, desk) {
  const ready = el("ul", { class: "cards-grid", id: "ready" });
  const others = el("ul", { class: "cards-grid small", id: "others-list" });
  const find = el("input", { type: "search", class: "field", placeholder: "Find a provider", "aria-label": "Find a provider", oninput: () => draw() });
  const none = el("p", { class: "fine", id: "no-provider" }, "None yet: built-in rules answer. Choose one below, or run ", el("code", {}, "spacebot init"), ".");
  root.append(
    el("h2", {}, "Providers of models"), none, ready,
    el("div", { class: "bar" }, el("h2", {}, "More providers"), el("span", { class: "space" }), find, button("Add your own", () => own(), { id: "own-provider" })), others,
  );
  const make = (id) => new Card(id, { edit: (one) => edit(one), changed: () => refresh() });
  const drawReady = keyed(ready, make);
  const drawOthers = keyed(others, make);
  let details = [];

  function draw() {
    const words = find.value.trim().toLowerCase();
    const isUsed = (one) => one.state !== "absent" || one.key_source;
    none.hidden = details.some((one) => one.state === "ready");
    drawReady(details.filter(isUsed));
    drawOthers(details.filter((one) => !isUsed(one) && `${one.id} ${one.name}`.toLowerCase().includes(words)));
  }

  async function refresh() {
    ({ details } = await get("providers"));
    draw();
  }

  const edit = (one) => providerDialog(one, desk, refresh);
  const own = async () => {
    const schema = await desk.schema();
    const kinds = schema.definitions.ApiType.enum.filter((kind) => kind !== "demo");
    providerDialog({ id: "", name: "a provider of your own", needs_key: false, models: { first: "" }, kinds }, desk, refresh);
  };
  return { refresh };
}

class Card {
  constructor(id, { edit, changed }) {
    this.id = id;
    this.title = el("h3");
    this.state = el("span", { class: "tag state" });
    this.about = el("p", { class: "fine about" });
    this.reason = el("p", { class: "detail" });
    this.login = el("p", { class: "fine login" });
    this.result = el("p", { class: "result", role: "status" });
    this.set = button("", () => edit(this.one), { class: "set" });
    this.test = button("Test", () => attempt(this.result, "Asking …", () => post("providers/test", { provider: id }), [this.test]), { class: "test" });
    this.remove = button("Remove", () => this.delete(changed), { class: "remove" });
    this.node = el("li", { class: "panel provider", "data-id": id }, el("div", { class: "bar" }, this.title, this.state), this.about, this.reason, this.login, el("div", { class: "actions" }, this.set, this.test, this.remove), this.result);
  }

  show(one) {
    this.one = one;
    this.title.textContent = one.name;
    this.state.textContent = STATES[one.state] ?? one.state;
    this.state.className = `tag state ${{ ready: "good", disabled: "bad" }[one.state] ?? ""}`;
    const isUsed = one.state !== "absent" || one.key_source !== null;
    const how = one.auth === "login" ? "signed in" : one.auth === "none" ? "needs no key" : SOURCES[one.key_source];
    this.about.textContent = [how, one.base_url].filter(Boolean).join(" · ");
    this.reason.textContent = one.reason ?? "";
    this.reason.hidden = !one.reason;
    this.showLogin(one.login);
    this.set.textContent = isUsed ? "Change" : "Set up";
    this.test.hidden = one.state !== "ready" || !one.is_builtin; // of another one no usual model is known
    this.remove.hidden = one.key_source === null && !(one.state === "ready" && one.auth !== "login");
  }

  showLogin(login) {
    this.login.hidden = !login;
    if (!login) return;
    const said = LOGINS[login.state]?.(login) ?? "";
    const how = login.state === "valid" || login.state === "expired" ? "To sign out: " : "To sign in with your account instead of a key: ";
    const command = login.state === "valid" || login.state === "expired" ? "spacebot auth logout" : "spacebot auth login";
    this.login.replaceChildren(said, said ? " " : "", how, el("code", {}, command));
  }

  async delete(changed) {
    const text = "Its key goes from the secret store, and routes that lead to it go from the file.";
    if (!(await confirmed({ title: `Remove ${this.one.name}?`, text, yes: "Remove" }))) return;
    await attempt(this.result, "Removing …", async () => {
      toast((await send("DELETE", `providers/${encodeURIComponent(this.id)}`)).message);
    }, [this.remove]);
    await changed();
  }
}

// Asks for what a provider needs. It is tried before it is saved; what does not answer is saved only when that is said.
function providerDialog(one, desk, done) {
  const isOwn = Boolean(one.kinds);
  const anyway = el("label", { class: "check", hidden: true }, el("input", { type: "checkbox", name: "anyway" }), " Save it although the test failed");
  const tried = el("p", { class: "result", role: "status", id: "tried" });
  let form;
  const body = () => {
    const data = new FormData(form);
    const text = (name) => data.get(name)?.trim() || undefined;
    const provider = isOwn ? text("id") : one.id;
    const model = text("model");
    const full = model && !model.startsWith(`${provider}/`) ? `${provider}/${model}` : model;
    return { provider, api_key: text("key"), base_url: text("url"), model: full, api_type: text("kind"), name: text("name"), sets_routes: data.get("routes") === "on" };
  };
  const test = button("Test", () => attempt(tried, "Asking …", async () => {
    const answer = await post("providers/test", body());
    anyway.hidden = answer.success;
    return { ...answer, message: answer.sample ? `${answer.message}: “${answer.sample}”` : answer.message };
  }, [test]), { class: "try" });
  formDialog({
    title: `Set up ${one.name}`,
    yes: "Test and save",
    fill(place) {
      form = place;
      const label = (text, input, about) => el("label", {}, text, input, about ? el("span", { class: "fine" }, about) : null);
      const kept = one.key_source ? "Leave it empty to keep the one that is there. " : "";
      const parts = isOwn ? [
        label("Id", el("input", { name: "id", required: true, maxlength: 64, pattern: "[a-z0-9][a-z0-9._\\-]*", placeholder: "mine", autocomplete: "off" })),
        label("Name", el("input", { name: "name", maxlength: 100, autocomplete: "off" })),
        label("It speaks like", el("select", { name: "kind", class: "field" }, ...one.kinds.map((kind) => el("option", { value: kind, selected: kind === "openai_completions" }, kind)))),
      ] : [];
      if (isOwn || !one.needs_key) parts.push(label("Address", el("input", { name: "url", type: "url", required: isOwn, value: one.base_url ?? "", placeholder: "https://models.example.org", autocomplete: "off" })));
      parts.push(
        label("Key", el("input", { name: "key", type: "password", autocomplete: "off", required: one.needs_key && one.state === "absent" && one.login?.state !== "valid" }), `${kept}It goes into the secret store. env:NAME takes it from a variable.`),
        label("Model", el("input", { name: "model", list: "models", autocomplete: "off", required: isOwn, placeholder: one.models.first ? `${one.id}/${one.models.first}` : "id/model" }), isOwn ? "" : "Left empty, the provider's usual models are taken."),
        el("label", { class: "check" }, el("input", { type: "checkbox", name: "routes", checked: true }), " All agents shall use it from now on"),
        el("div", { class: "actions" }, test), tried, anyway,
      );
      place.append(...parts);
      desk.models().catch(() => {}); // only suggestions
    },
    async submit(data) {
      const wanted = body();
      if (data.get("anyway") !== "on") {
        const answer = await post("providers/test", wanted);
        if (!answer.success) {
          anyway.hidden = false;
          say(tried, "");
          throw new Error(answer.message);
        }
      }
      toast((await send("PUT", "providers", wanted)).message);
      await done();
    },
  });
}
