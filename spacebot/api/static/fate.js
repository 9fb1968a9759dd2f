// What became of one message, and why: the ledger's word, with the ways to what the models saw.

import { get } from "./connection.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { number } from "./words.js?v=__VERSION__";

const STATES = {
  accepted: "Accepted and on disk; waiting for its turn",
  in_turn: "Being answered now",
  answered: "Answered",
  skipped: "Read, but left without an answer on purpose",
  failed: "Could not be answered",
  observed: "Kept as context only",
};

export const promptsOf = (agent, processId) => `prompts?${new URLSearchParams({ agent })}#${new URLSearchParams({ process: processId })}`;

// Shows below a message what became of it, or takes that away again. `hasLinks` false where only the chat is shown.
export async function toggleFate(button, element, agent, messageId, { hasLinks = true, hides = false } = {}) {
  const known = element.querySelector(".fate");
  const meta = element.querySelector(".meta");
  if (known) {
    known.remove();
    button.setAttribute("aria-expanded", "false");
    return meta.classList.remove("open");
  }
  const box = el("div", { class: "fate" }, "…");
  element.append(box);
  button.setAttribute("aria-expanded", "true");
  meta.classList.add("open");
  try {
    const fate = await get(`messages/${encodeURIComponent(messageId)}/fate`, { agent_id: agent });
    box.replaceChildren(el("dl", {}, ...rowsOf(fate, agent, hasLinks, hides).flatMap(([name, ...value]) => [el("dt", {}, name), el("dd", {}, ...value)])));
  } catch (error) {
    box.textContent = `Nothing is known: ${error.message}`;
  }
  box.scrollIntoView({ block: "nearest" });
}

function rowsOf(fate, agent, hasLinks, hides) {
  const rows = [["State", STATES[fate.state] ?? fate.state]];
  const reason = fate.reason ?? fate.turn_detail;
  if (reason) rows.push(["Reason", reason]);
  if (fate.coalesced_with.length) rows.push(["Read together with", `${fate.coalesced_with.length} more`]);
  if (fate.attempts > 1) rows.push(["Attempts", String(fate.attempts)]);
  for (const run of fate.runs) {
    const isThought = run.kind === "branch";
    const words = `${hides ? "" : run.description} (${run.state}${run.model_calls ? `, ${number(run.model_calls)} model calls, ${number(run.tokens)} tokens` : ""})`.trim();
    const look = !hasLinks ? [] : [" ", el("a", { href: isThought ? promptsOf(agent, run.id) : `workers?${new URLSearchParams({ agent })}#${run.id}` }, isThought ? "What it saw" : "Step by step")];
    rows.push([isThought ? "Thought" : "Task", words, ...look]);
  }
  const replies = fate.replies.filter((reply) => reply.kind === "text");
  if (replies.length) {
    const seconds = (new Date(replies[0].created_at) - new Date(fate.message.created_at)) / 1000;
    rows.push(["Answered after", `${seconds.toFixed(1)} s, ${replies.length === 1 ? "one reply" : `${replies.length} replies`}`]);
  }
  rows.push(["Received", new Date(fate.message.created_at).toLocaleString()], ["Message", fate.message.id]);
  if (hasLinks && fate.turn_id) rows.push(["The model", el("a", { href: promptsOf(agent, fate.turn_id) }, "What it saw, block by block")]);
  return rows;
}
