// What the Connections page asks: the credentials of an account, and which agent answers where.

import { get, post, send } from "./connection.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { formDialog, toast } from "./ui.js?v=__VERSION__";

export const NAMES = { discord: "Discord", slack: "Slack", telegram: "Telegram", twitch: "Twitch", webhook: "Webhook", webchat: "Web chat" };
export const nameOf = (platform) => NAMES[platform] ?? platform;

// field of the request -> its name for people, and that of the secret; without the latter it is no secret
const CREDENTIALS = {
  discord: [["discord_token", "Token of the bot", "TOKEN"]],
  slack: [["slack_bot_token", "Token of the bot (xoxb-…)", "BOT_TOKEN"], ["slack_app_token", "Token of the app (xapp-…)", "APP_TOKEN"]],
  telegram: [["telegram_token", "Token of the bot", "TOKEN"]],
  twitch: [["twitch_username", "User name of the bot", null], ["twitch_oauth_token", "Token", "OAUTH_TOKEN"]],
  webhook: [],
};
const PLACES = { discord: ["guild_id", "channel_ids"], slack: ["workspace_id", "channel_ids"], telegram: ["chat_id"], twitch: ["channel_ids"], webhook: ["channel_ids"], webchat: [] };
const LABELS = { guild_id: "Server (its id)", workspace_id: "Workspace (its id)", chat_id: "Chat (its id)", channel_ids: "Rooms, one in each line", dm_allowed_users: "People who may write directly, one in each line", require_mention: "It answers only when it is mentioned" };
const REFERENCE = /^(env|secret):\S+$/;

export const canSetUp = (platform) => platform in CREDENTIALS;
const label = (text, input, about = "") => el("label", {}, text, input, about ? el("span", { class: "fine" }, about) : null);
const choice = (name, entries, chosen) => el("select", { name, class: "field" }, ...entries.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

let schema = null;
async function aboutBindings() {
  schema ??= await get("config/schema").catch(() => null); // only words
  return schema?.definitions.BindingConfig.properties ?? {};
}

// --- an account --------------------------------------------------------------------------------------

// Sets an account up, or gives one new credentials. They go into the secret store and the file names them.
export function accountDialog({ platform, account = null, isSecond = false, status, done }) {
  const agents = status.agents.map(({ id }) => [id, id]);
  const fields = CREDENTIALS[platform];
  formDialog({
    title: account ? `New credentials for ${nameOf(platform)}` : `Connect ${nameOf(platform)}`,
    yes: account ? "Save" : "Connect",
    fill: (form) => form.append(
      ...fields.map(([name, text, secret]) => label(text, el("input", { name, type: secret ? "password" : "text", required: !account, autocomplete: "off" }))),
      el("p", { class: "fine" }, fields.length ? "Tokens go into the secret store; env:NAME takes one from a variable. " : "It takes no credentials. ", `docs/platforms/${platform}.md explains it step by step.`),
      ...(account ? [] : [
        label("Who answers", choice("agent_id", agents, status.default_agent_id)),
        ...(fields.length ? [label(isSecond ? "Name of this account" : "Name, where there will be several", el("input", { name: "adapter", required: isSecond, autocomplete: "off", maxlength: 40, pattern: "[A-Za-z0-9_\\-]*", placeholder: isSecond ? "ops" : "not needed for the first" }))] : []),
      ]),
    ),
    async submit(data) {
      const adapter = account ? account.name : data.get("adapter")?.trim() || null;
      const agent_id = account ? status.default_agent_id : data.get("agent_id");
      const answer = fields.length ? await withCredentials({ platform, adapter, agent_id, data, isKnown: account !== null }) : await switchedOn(platform, agent_id);
      toast(answer.message, answer.success ? "" : "error");
      await done();
    },
  });
}

async function withCredentials({ platform, adapter, agent_id, data, isKnown }) {
  const credentials = {};
  for (const [name, , secret] of CREDENTIALS[platform]) {
    const value = data.get(name).trim();
    if (!value) continue;
    credentials[name] = secret && !REFERENCE.test(value) ? await kept([platform, adapter, secret], value) : value;
  }
  if (!Object.keys(credentials).length) throw new Error("Type what shall be new.");
  const binding = { agent_id, channel: platform, ...(adapter ? { adapter } : {}) };
  const answer = await post("bindings", { ...binding, platform_credentials: credentials });
  if (!isKnown) return answer;
  // The route sets credentials together with a binding; this account has its own ones already.
  const { bindings } = await get("bindings");
  await send("DELETE", "bindings", { ...binding, index: bindings.at(-1).index });
  return { ...answer, message: answer.success ? "the credentials are changed" : answer.message };
}

// Stores a value; gives what the file says instead of it.
async function kept(parts, value) {
  const name = parts.filter(Boolean).join("_").toUpperCase().replace(/[^A-Z0-9_]/g, "_");
  await send("PUT", `secrets/${name}`, { value, category: "system" });
  return `secret:${name}`;
}

async function switchedOn(platform, agent_id) {
  const answer = await post("messaging/toggle", { platform, enabled: true });
  if (answer.success) await post("bindings", { agent_id, channel: platform });
  return answer;
}

// --- a binding ---------------------------------------------------------------------------------------

// Adds a binding, or changes one. `accounts` are [{platform, name}].
export async function bindingDialog({ binding = null, accounts, status, done }) {
  const about = await aboutBindings();
  const known = new Map(accounts.map(({ platform, name }) => [`${platform}:${name ?? ""}`, { channel: platform, adapter: name ?? null }]));
  known.set("webchat:", { channel: "webchat", adapter: null });
  const at = binding ? `${binding.channel}:${binding.adapter ?? ""}` : [...known.keys()][0];
  if (binding && !known.has(at)) known.set(at, { channel: binding.channel, adapter: binding.adapter });
  const agents = status.agents.map(({ id }) => [id, id]);
  if (binding && !agents.some(([id]) => id === binding.agent_id)) agents.push([binding.agent_id, `${binding.agent_id} (not there)`]);
  const parts = {};
  const field = (name, input) => (parts[name] = label(LABELS[name], input, about[name]?.description));
  formDialog({
    title: binding ? "Change who answers where" : "Who answers where",
    fill(form) {
      const account = choice("account", [...known].map(([key, { channel, adapter }]) => [key, adapter ? `${nameOf(channel)} · ${adapter}` : nameOf(channel)]), at);
      const old = (name) => binding?.[name] ?? "";
      form.append(
        label("Agent", choice("agent_id", agents, binding?.agent_id ?? status.default_agent_id)), label("Account", account),
        ...["guild_id", "workspace_id", "chat_id"].map((name) => field(name, el("input", { name, value: old(name), autocomplete: "off", placeholder: "everywhere" }))),
        ...["channel_ids", "dm_allowed_users"].map((name) => field(name, el("textarea", { name, rows: 2 }, (binding?.[name] ?? []).join("\n")))),
        (parts.require_mention = el("label", { class: "check" }, el("input", { name: "require_mention", type: "checkbox", checked: binding?.require_mention ?? false }), ` ${LABELS.require_mention}`)),
      );
      const show = () => {
        const { channel } = known.get(account.value);
        const shown = new Set([...PLACES[channel], ...(["discord", "slack", "telegram"].includes(channel) ? ["dm_allowed_users"] : []), ...(["discord", "slack", "telegram", "twitch"].includes(channel) ? ["require_mention"] : [])]);
        for (const [name, part] of Object.entries(parts)) part.hidden = !shown.has(name);
      };
      account.onchange = show;
      show();
    },
    async submit(data) {
      const { channel, adapter } = known.get(data.get("account"));
      const isShown = (name) => !parts[name].hidden;
      const body = { agent_id: data.get("agent_id"), channel, ...(adapter ? { adapter } : {}) };
      for (const name of ["guild_id", "workspace_id", "chat_id"]) if (isShown(name) && data.get(name).trim()) body[name] = data.get(name).trim();
      for (const name of ["channel_ids", "dm_allowed_users"]) body[name] = isShown(name) ? lines(data.get(name)) : [];
      body.require_mention = isShown("require_mention") && data.get("require_mention") === "on";
      if (binding?.authority) body.authority = binding.authority; // not changed here
      const answer = binding ? await send("PUT", "bindings", { ...body, ...originalOf(binding) }) : await post("bindings", body);
      if (!answer.success) throw new Error(answer.message);
      toast(answer.message);
      await done();
    },
  });
}

const originalOf = (binding) => ({ index: binding.index, ...Object.fromEntries(["agent_id", "channel", "guild_id", "workspace_id", "chat_id", "adapter"].map((name) => [`original_${name}`, binding[name]])) });

export async function removeBinding({ index, agent_id, channel, guild_id, workspace_id, chat_id, adapter }) {
  const answer = await send("DELETE", "bindings", { index, agent_id, channel, guild_id, workspace_id, chat_id, adapter });
  if (!answer.success) throw new Error(answer.message);
  toast(answer.message);
}
