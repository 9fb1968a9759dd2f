// Settings, Agents: every agent and how it is; make one, pause one, delete one after its name was typed.

import { get, post, send } from "./connection.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { attempt, button, formDialog, keyed, toast } from "./ui.js?v=__VERSION__";
import { ago, number } from "./words.js?v=__VERSION__";

const TONES = { running: "good", failed: "bad", paused: "" };

export function open(root) {
  const list = el("ul", { class: "cards-grid", id: "agents" });
  root.append(el("div", { class: "bar" }, el("h2", {}, "Agents"), el("span", { class: "space" }), button("New agent", () => create(), { class: "primary", id: "new-agent" })), list);
  const draw = keyed(list, (id) => new AgentCard(id, () => refresh(), () => agents));
  let agents = [];

  async function refresh() {
    ({ agents } = await get("agents"));
    draw(agents);
  }

  function create() {
    formDialog({
      title: "New agent",
      yes: "Create",
      fill: (form) => form.append(
        el("label", {}, "Name", el("input", { name: "id", required: true, maxlength: 64, autocomplete: "off", placeholder: "research" })),
        el("label", {}, "Workspace", el("input", { name: "workspace", autocomplete: "off", placeholder: "in its own folder" })),
      ),
      async submit(data) {
        const answer = await post("agents", { agent_id: data.get("id").trim(), workspace: data.get("workspace").trim() || undefined });
        toast(answer.message);
        await refresh();
      },
    });
  }

  return { refresh };
}

class AgentCard {
  constructor(id, changed, agents) {
    this.id = id;
    this.changed = changed;
    this.agents = agents;
    this.state = el("span", { class: "tag state" });
    this.about = el("p", { class: "fine" });
    this.reason = el("p", { class: "detail" });
    this.result = el("p", { class: "result", role: "status" });
    this.pause = button("", () => this.act(async () => post("agents/pause", { agent_id: id, paused: !this.agent.paused })), { class: "pause" });
    this.remove = button("Delete", () => this.delete(), { class: "remove danger" });
    const chat = el("a", { class: "pill", href: `./?agent=${encodeURIComponent(id)}` }, "Chat");
    this.node = el("li", { class: "panel agent-card", "data-id": id }, el("div", { class: "bar" }, el("h3", {}, id), this.state), this.about, this.reason, el("div", { class: "actions" }, chat, this.pause, this.remove), this.result);
  }

  show(agent) {
    this.agent = agent;
    this.state.textContent = agent.is_default ? `${agent.state}, default` : agent.state;
    this.state.className = `tag state ${TONES[agent.state] ?? ""}`;
    this.about.textContent = [agent.model ?? "no model", `since ${ago(agent.since)}`, agent.context_window && `window ${number(agent.context_window)}`, agent.workspace].filter(Boolean).join(" · ");
    this.reason.textContent = agent.reason;
    this.reason.hidden = !agent.reason;
    this.pause.textContent = agent.paused ? "Resume" : "Pause";
    this.pause.hidden = !["running", "paused"].includes(agent.state);
    this.remove.hidden = agent.is_default;
  }

  async act(work) {
    await attempt(this.result, "…", work, [this.pause, this.remove]);
    await this.changed();
  }

  async delete() {
    const { bindings } = await get("bindings", { agent_id: this.id });
    const others = this.agents().filter((one) => one.id !== this.id).map((one) => one.id);
    formDialog({
      title: `Delete the agent “${this.id}”?`,
      yes: "Delete",
      fill: (form) => form.append(
        el("p", {}, "What it does ends, and it goes from the file. Its own files stay on the disk."),
        ...(bindings.length ? [el("label", {}, `Who gets its ${bindings.length === 1 ? "binding" : `${bindings.length} bindings`}`, el("select", { name: "give_to", class: "field" }, el("option", { value: "" }, "nobody, they go too"), ...others.map((id) => el("option", { value: id }, id))))] : []),
        el("label", {}, "Type its name", el("input", { name: "typed", required: true, autocomplete: "off", placeholder: this.id })),
      ),
      submit: async (data) => {
        if (data.get("typed").trim() !== this.id) throw new Error(`Type ${this.id} to delete it.`);
        const more = data.get("give_to") ? { give_to: data.get("give_to") } : {};
        toast((await send("DELETE", `agents?${new URLSearchParams({ agent_id: this.id, ...more })}`)).message);
        await this.changed();
      },
    });
  }
}
