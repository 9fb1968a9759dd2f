// The choice of an agent inside a tab of the settings; what is not saved is asked about first.

import { store } from "./connection.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { confirmed, failed } from "./ui.js?v=__VERSION__";

// `revertible()` says how much is not saved. Returns {node, agent(), draw()}; `draw` gives the agent in force.
export function agentChoice(desk, revertible, chosen, revert = () => {}) {
  let agent = null;
  const select = el("select", { class: "field", "aria-label": "Agent of these settings" });
  const query = new URLSearchParams(location.search);

  select.onchange = async () => {
    const wished = select.value;
    if (revertible() && !(await confirmed({ title: "Discard what is not saved?", text: `It belongs to ${agent}.`, yes: "Discard" }))) {
      select.value = agent;
      return;
    }
    revert();
    agent = wished;
    store.set("spacebot.agent", agent);
    try {
      await chosen();
    } catch (error) {
      failed(error);
    }
  };

  function draw() {
    const ids = desk.status().agents.map(({ id }) => id);
    const wishes = [agent, query.get("agent"), store.get("spacebot.agent"), desk.status().default_agent_id, ids[0]];
    agent = wishes.find((id) => ids.includes(id)) ?? null;
    if ([...select.options].map((one) => one.value).join() !== ids.join()) select.replaceChildren(...ids.map((id) => el("option", { value: id }, id)));
    select.value = agent;
    select.hidden = ids.length < 2;
    return agent;
  }

  return { node: select, agent: () => agent, draw };
}
