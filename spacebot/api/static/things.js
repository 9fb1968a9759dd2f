// What the pages call the things of the program, and how they draw them: platforms, states, conversations, processes.

import { line } from "./words.js?v=__VERSION__";

export const NAMES = { discord: "Discord", slack: "Slack", telegram: "Telegram", twitch: "Twitch", webhook: "Webhook", webchat: "Web chat", terminal: "Terminal", cron: "Schedule" };
export const STATES = {
  running: "at work", waiting: "waits for input", done: "done", partial: "partly done", failed: "failed", blocked: "blocked",
  cancelled: "cancelled", timed_out: "out of time", interrupted: "cut off",
};
const KINDS = { agent: "Agent", channel: "Conversation", turn: "Answering", branch: "Thinking", worker: "Working", compaction: "Tidying the history", persistence: "Remembering", cortex: "Cortex", ingestion: "Reading", service: "Service", daemon: "Program" };
export const COVERED = "Private: in a direct chat";

// A conversation's name: its own, else what its id says.
export function channelName(channel) {
  if (channel.display_name) return channel.display_name;
  if (channel.id.startsWith("webchat:portal:chat:")) return "Chat in this browser";
  const [, ...rest] = channel.id.split(":");
  return rest.join(":") || channel.id;
}

// Whether its words are somebody else's own: a direct chat, but not the owner's in the browser or the terminal.
export const isPrivate = (channel) => channel.is_direct && !["webchat", "terminal"].includes(channel.platform);

// What a running thing is called: {kind, words, href}. `channel` is its conversation, where that is known.
export function nodeWords(view, isCovered, channel = null) {
  const kind = KINDS[view.kind] ?? view.kind;
  const agent = view.agent_id === null ? {} : { agent: view.agent_id };
  if (view.kind === "channel") return { kind, words: line(channelName(channel ?? { id: view.channel_id ?? view.description }), 80), href: view.channel_id ? `conversations?${new URLSearchParams(agent)}#${encodeURIComponent(view.channel_id)}` : null };
  const words = isCovered ? "in a direct chat" : line(view.description ?? "", 140);
  return { kind, words, href: view.kind === "worker" ? `workers?${new URLSearchParams(agent)}#${view.id}` : null };
}

// The same colour for the same name, everywhere.
export function hue(text) {
  let sum = 7;
  for (const sign of text) sum = (sum * 31 + sign.codePointAt(0)) % 997;
  return (sum * 37) % 360;
}

const NS = "http://www.w3.org/2000/svg";
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) element.setAttribute(name, value);
  element.append(...children.filter((child) => child != null));
  return element;
}
