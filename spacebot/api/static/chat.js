// The chat page. The server's log is the truth: messages are shown in the order of their numbers, a reconnect
// resumes after the last one shown, and what was typed is kept here until the server has accepted it.

import { copyText, el, renderMarkdown } from "./markdown.js?v=__VERSION__";
import { Refused, Unauthorized, fetchFile, follow, get, post, store } from "./connection.js?v=__VERSION__";
import { toggleFate } from "./fate.js?v=__VERSION__";
import { login } from "./login.js?v=__VERSION__";
import { openPages, shell } from "./shell.js?v=__VERSION__";
import { $, RETRY_MS, patiently, setConnection as tellConnection, sleep } from "./ui.js?v=__VERSION__";
import { Work } from "./work.js?v=__VERSION__";

const query = new URLSearchParams(location.search);
const isEmbedded = query.has("embed");
const HISTORY = 60;
const IDEAS = ["What can you do?", "Remember that my favourite tea is oolong", "What is my favourite tea?", "wait 10 seconds"];

let agentId = "main";
let sessionId = "";
let lastSeq = 0; // number of the newest message shown
let firstSeq = 0; // number of the oldest one shown
let unread = 0;
let stream = null;
const shown = new Map(); // message id -> element
const streaming = new Map(); // turn id -> {element, text}
const pending = new Map(); // client id -> {text, element, session, at}
const accepted = new Map(); // number -> element of a message whose row is still on its way
const work = new Work(() => ({ agent_id: agentId, channel_id: `webchat:${sessionId}` }));

// --- start ---------------------------------------------------------------------------------------

document.body.classList.toggle("embed", isEmbedded);
for (const idea of IDEAS) $("ideas").append(el("button", { type: "button", onclick: () => submit(idea) }, idea));

// This page follows its own conversation; the shell asks for the rest now and then.
const all = shell({ chosen });
let isOpened = false;
patiently(() => get("status")).then((status) => all.take(status));

function chosen(agent, status) {
  const one = status.agents.find(({ id }) => id === agent);
  $("about").textContent = `${one?.model ?? ""} · version ${status.version}`;
  if (agent === agentId && isOpened) return;
  agentId = agent;
  open((!isOpened && query.get("session")) || currentSession());
  isOpened = true;
}

// --- chats ---------------------------------------------------------------------------------------

const defaultSession = () => {
  if (!isEmbedded) return `portal:chat:${agentId}`;
  const key = `spacebot.visitor.${agentId}`; // visitors of an embedding site must not share one chat
  if (!store.get(key)) store.set(key, newId());
  return `embed:${agentId}:${store.get(key)}`;
};
const currentSession = () => (isEmbedded ? defaultSession() : (store.get(`spacebot.current.${agentId}`) ?? defaultSession()));

function chats() {
  let list = [];
  try {
    list = JSON.parse(store.get(`spacebot.chats.${agentId}`) ?? "[]");
  } catch {}
  if (!list.some((chat) => chat.id === defaultSession())) list.push({ id: defaultSession(), title: "First chat" });
  return list;
}

const saveChats = (list) => store.set(`spacebot.chats.${agentId}`, JSON.stringify(list));

function showChats() {
  $("chat-list").replaceChildren(
    ...chats().map((chat) =>
      el(
        "li",
        { "aria-current": chat.id === sessionId ? "true" : null },
        el("button", { class: "name", type: "button", title: chat.title, onclick: () => open(chat.id) }, chat.title),
        chat.id === defaultSession()
          ? null
          : el("button", { class: "forget", type: "button", "aria-label": `Take ${chat.title} off the list`, title: "Take off this list", onclick: () => forget(chat.id) }, "×"),
      ),
    ),
  );
}

function nameChat(text) {
  const list = chats();
  const chat = list.find((one) => one.id === sessionId);
  if (chat && (chat.title === "New chat" || chat.title === "First chat")) {
    chat.title = text.trim().split("\n")[0].slice(0, 60);
    saveChats(list);
    showChats();
  }
}

function forget(id) {
  saveChats(chats().filter((chat) => chat.id !== id));
  if (id === sessionId) open(defaultSession());
  else showChats();
}

$("new-chat").onclick = () => {
  const id = `portal:chat:${agentId}:${newId().slice(0, 12)}`;
  saveChats([{ id, title: "New chat" }, ...chats()]);
  open(id);
};

async function open(id) {
  stream?.close();
  sessionId = id;
  const mine = () => sessionId === id && agent === agentId;
  const agent = agentId;
  if (!query.has("session")) store.set(`spacebot.current.${agentId}`, id);
  if (!isEmbedded && !chats().some((chat) => chat.id === id)) saveChats([{ id, title: "New chat" }, ...chats()]);
  drawer(null);
  showChats();
  reset();
  setConnection("connecting");
  const rows = await patiently(() => get("webchat/history", { agent_id: agent, session_id: id, limit: HISTORY }));
  if (!mine()) return;
  for (const row of rows) showMessage(row);
  restorePending();
  $("log").setAttribute("aria-busy", "false");
  toBottom();
  welcome();
  $("earlier").hidden = firstSeq <= 1;
  $("text").focus({ preventScroll: true });
  stream = follow({
    params: { agent_id: agent, session_id: id },
    after: () => lastSeq,
    rests: false, // its title counts what comes in
    on: (name, data) => mine() && onEvent(name, data),
    state: (state) => mine() && setConnection(state),
    unauthorized: login,
  });
  flush();
}

function reset() {
  lastSeq = firstSeq = 0;
  shown.clear();
  streaming.clear();
  pending.clear();
  accepted.clear();
  $("log").replaceChildren();
  $("log").setAttribute("aria-busy", "true"); // a screen reader need not read the past aloud
  $("tail").replaceChildren();
  $("typing").hidden = true;
  $("jump").hidden = true;
  $("earlier").hidden = true;
  $("welcome").hidden = true;
  work.clear();
}

$("earlier").onclick = async () => {
  const [agent, id] = [agentId, sessionId];
  const rows = await get("webchat/history", { agent_id: agent, session_id: id, limit: HISTORY, before: firstSeq });
  if (agent !== agentId || id !== sessionId) return;
  const scroll = $("scroll");
  const height = scroll.scrollHeight;
  for (const row of rows.reverse()) showMessage(row, true);
  scroll.scrollTop += scroll.scrollHeight - height;
  $("earlier").hidden = firstSeq <= 1;
};

// --- events --------------------------------------------------------------------------------------

function onEvent(name, data) {
  if (name !== "outbound_message_delta") all.changed();
  switch (name) {
    case "hello":
      if (data.last_seq < lastSeq) return open(sessionId); // the log is another one now
      work.restore(data.processes, data.completed_items);
      if (!data.is_typing) endStreaming();
      setTyping(data.is_typing);
      flush();
      return;
    case "message":
      return onMessage(data);
    case "outbound_message_delta":
      return onDelta(data);
    case "typing_state":
      setTyping(data.is_typing);
      break;
    case "turn_ended":
      endStreaming();
      setTyping(false);
      break;
  }
  work.on(name, data);
}

function onMessage(row) {
  if (row.seq <= lastSeq) return;
  const stick = isAtBottom();
  const isReply = row.role === "assistant" && row.kind !== "reaction";
  if (isReply && streaming.has(row.turn_id)) {
    streaming.get(row.turn_id).element.remove();
    streaming.delete(row.turn_id);
  }
  if (row.role === "user" && !accepted.has(row.seq)) settlePendingLike(row);
  accepted.get(row.seq)?.remove();
  accepted.delete(row.seq);
  showMessage(row);
  if (isReply && document.hidden) setUnread(unread + 1);
  if (isReply) $("typing").hidden = true;
  welcome();
  keepUp(stick, isReply);
}

function onDelta({ turn_id, text, append }) {
  const stick = isAtBottom();
  let one = streaming.get(turn_id);
  if (!one) {
    one = { text: "", element: el("article", { class: "message assistant streaming", "aria-hidden": "true" }, el("div", { class: "body" })), isQueued: false };
    streaming.set(turn_id, one);
    $("tail").prepend(one.element);
  }
  one.text = append === undefined ? text : one.text + append;
  $("typing").hidden = true;
  if (one.isQueued) return;
  one.isQueued = true;
  requestAnimationFrame(() => {
    one.isQueued = false;
    one.element.firstChild.replaceChildren(renderMarkdown(one.text));
    keepUp(stick, false);
  });
}

function endStreaming() {
  for (const one of streaming.values()) one.element.remove();
  streaming.clear();
}

function setTyping(isTyping) {
  const stick = isAtBottom();
  $("typing").hidden = !isTyping || streaming.size > 0;
  if (stick) toBottom();
}

// --- messages ------------------------------------------------------------------------------------

function showMessage(row, isOlder = false) {
  if (shown.has(row.id)) return;
  if (!isOlder) lastSeq = Math.max(lastSeq, row.seq);
  firstSeq = firstSeq ? Math.min(firstSeq, row.seq) : row.seq;
  if (row.kind === "reaction") return showReaction(row);
  let element;
  try {
    element = draw(row);
  } catch (error) {
    console.error("message not drawn:", row.id, error);
    element = el("article", { class: "message notice", "data-seq": row.seq }, el("div", { class: "body" }, "This message cannot be shown."));
    element.append(el("div", { class: "meta" })); // where reactions go
  }
  shown.set(row.id, element);
  if (isOlder) $("log").prepend(element);
  else $("log").append(element);
}

function draw(row) {
  const body = el("div", { class: "body" }, row.role === "user" ? el("div", { class: "plain-text", dir: "auto" }, row.content) : renderMarkdown(row.content));
  if (row.file) body.append(drawFile(row));
  const meta = el("div", { class: "meta" });
  const element = el(
    "article",
    { class: `message ${row.role} ${row.kind === "notice" ? "notice" : ""}`, "data-seq": row.seq, "aria-label": row.role === "user" ? "You" : "Spacebot" },
    body,
    meta,
  );
  const time = row.created_at && new Date(row.created_at);
  if (time) meta.append(el("time", { datetime: row.created_at, title: time.toLocaleString() }, time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })));
  const copy = el("button", { type: "button", onclick: () => copyText(row.content, copy) }, "Copy");
  const asked = row.role === "user" ? row.id : row.reply_to;
  meta.append(copy);
  if (asked) meta.append(el("button", { type: "button", "aria-expanded": "false", title: "What became of this message, and why", onclick: (event) => toggleFate(event.currentTarget, element, agentId, asked, { hasLinks: !isEmbedded }) }, "Why"));
  return element;
}

const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp"];

// A picture is shown, everything else can be saved; both come with the page's own right to read.
function drawFile({ id, file }) {
  const load = () => fetchFile(`webchat/files/${encodeURIComponent(id)}`, { agent_id: agentId, session_id: sessionId });
  const size = file.size_bytes < 1024 ? `${file.size_bytes} B` : file.size_bytes < 1024 ** 2 ? `${Math.ceil(file.size_bytes / 1024)} kB` : `${(file.size_bytes / 1024 ** 2).toFixed(1)} MB`;
  const save = el("button", { type: "button", class: "file-save" }, `Save ${file.filename} (${size})`);
  save.onclick = async () => {
    try {
      const address = URL.createObjectURL(await load());
      el("a", { href: address, download: file.filename }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60_000);
    } catch (error) {
      save.textContent = `${file.filename} cannot be read: ${error.message}`;
    }
  };
  const box = el("div", { class: "file" }, save);
  if (PICTURES.includes(file.media_type)) {
    const picture = el("img", { alt: file.filename });
    load().then(
      (blob) => {
        picture.onload = () => URL.revokeObjectURL(picture.src);
        picture.src = URL.createObjectURL(blob);
        box.prepend(picture);
      },
      () => {},
    );
  }
  return box;
}

function showReaction(row) {
  const target = shown.get(row.reply_to);
  shown.set(row.id, target ?? null);
  if (!target) return;
  let place = target.querySelector(".reactions");
  if (!place) target.querySelector(".meta").prepend((place = el("span", { class: "reactions", "aria-label": "Reactions" })));
  place.append(el("span", {}, row.content));
}

function welcome() {
  $("welcome").hidden = shown.size > 0 || pending.size > 0;
}

// --- sending -------------------------------------------------------------------------------------

const outbox = () => `spacebot.outbox.${agentId}.${sessionId}.`;

function submit(text) {
  if (!text.trim() || !sessionId) return;
  const clientId = newId();
  const entry = { text, at: Date.now() };
  store.set(outbox() + clientId, JSON.stringify(entry));
  addPending(clientId, entry);
  nameChat(text);
  setUnread(0);
  welcome();
  toBottom();
  flush();
}

function addPending(clientId, { text, at }) {
  if (pending.has(clientId)) return;
  const meta = el("div", { class: "meta open" }, el("span", {}, "Sending"));
  const element = el("article", { class: "message user pending", "aria-label": "You, not sent yet" }, el("div", { class: "body" }, el("div", { class: "plain-text" }, text)), meta);
  $("tail").append(element);
  pending.set(clientId, { text, at, element, meta, seq: null, isRefused: false });
}

function restorePending() {
  store
    .keys(outbox())
    .flatMap((key) => {
      try {
        return [[key.slice(outbox().length), JSON.parse(store.get(key))]];
      } catch {
        return [];
      }
    })
    .sort((a, b) => a[1].at - b[1].at)
    .forEach(([clientId, entry]) => addPending(clientId, entry));
}

function dropPending(clientId) {
  pending.get(clientId)?.element.remove();
  pending.delete(clientId);
  store.remove(outbox() + clientId);
}

// The log's own row may come before the receipt: hide our copy at once, the receipt confirms it.
function settlePendingLike(row) {
  for (const one of pending.values()) {
    if (one.seq === null && !one.element.hidden && one.text === row.content) {
      one.element.hidden = true;
      return;
    }
  }
}

let isFlushing = false;
async function flush() {
  if (isFlushing) return;
  isFlushing = true;
  try {
    for (let failures = 0; ; ) {
      const next = [...pending].find(([, one]) => !one.isRefused);
      if (!next) return;
      const [clientId, one] = next;
      const [agent, id, key] = [agentId, sessionId, outbox() + clientId];
      try {
        const receipt = await post("webchat/send?wait=false", { agent_id: agent, session_id: id, message: one.text, client_id: clientId });
        failures = 0;
        store.remove(key);
        if (agent !== agentId || id !== sessionId) continue;
        dropPending(clientId);
        if (receipt.seq > lastSeq) keepUntilLogged(receipt, one.text);
      } catch (error) {
        if (error instanceof Unauthorized) await login();
        else if (error instanceof Refused && error.status < 500 && ![408, 429].includes(error.status)) refuse(clientId, one, error.message);
        else {
          one.meta.firstChild.textContent = "Not sent yet, trying again";
          await sleep(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]);
          failures += 1;
        }
      }
    }
  } finally {
    isFlushing = false;
  }
}

// Accepted, but its row has not arrived by the stream: show it until then.
function keepUntilLogged(receipt, text) {
  const element = el("article", { class: "message user", "aria-label": "You" }, el("div", { class: "body" }, el("div", { class: "plain-text" }, text)), el("div", { class: "meta" }));
  accepted.set(receipt.seq, element);
  $("tail").append(element);
}

const REFUSED_SHOWN = 400; // characters; Edit brings the whole text back

function refuse(clientId, one, reason) {
  one.isRefused = true;
  one.element.hidden = false;
  one.element.classList.remove("pending");
  one.element.classList.add("refused");
  const words = one.element.querySelector(".plain-text");
  if (one.text.length > REFUSED_SHOWN) words.textContent = `${one.text.slice(0, REFUSED_SHOWN)}…`;
  $("log").append(one.element); // what comes later stands below it
  const again = () => {
    dropPending(clientId);
    $("text").value = one.text;
    grow();
    $("text").focus();
    welcome();
  };
  one.meta.replaceChildren(
    el("span", { class: "error" }, `Not accepted: ${reason}`),
    el("button", { type: "button", onclick: again }, "Edit"),
    el("button", { type: "button", onclick: () => (dropPending(clientId), welcome()) }, "Discard"),
  );
}

// --- small things --------------------------------------------------------------------------------

const text = $("text");
function grow() {
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`;
  $("send").disabled = !text.value.trim();
}
text.addEventListener("input", grow);
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    take();
  } else if (event.key === "ArrowUp" && !text.value) {
    const own = [...$("log").querySelectorAll(".message.user .plain-text")].at(-1);
    if (!own) return;
    event.preventDefault();
    text.value = own.textContent;
    grow();
  }
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  take();
});
function take() {
  const value = text.value;
  if (!value.trim()) return;
  text.value = "";
  grow();
  submit(value);
}

const scroll = $("scroll");
const isAtBottom = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
function toBottom() {
  scroll.scrollTop = scroll.scrollHeight;
  $("jump").hidden = true;
}
function keepUp(stick, isNews) {
  if (stick) toBottom();
  else if (isNews) $("jump").hidden = false;
}
scroll.addEventListener("scroll", () => isAtBottom() && ($("jump").hidden = true), { passive: true });
$("jump").onclick = toBottom;
addEventListener("resize", () => isAtBottom() && toBottom());

function setConnection(state) {
  tellConnection(state);
  $("work").classList.toggle("stale", state !== "online"); // what it shows was true when the connection was lost
}

function setUnread(n) {
  unread = n;
  document.title = n ? `(${n}) Spacebot` : "Spacebot";
}
document.addEventListener("visibilitychange", () => document.hidden || setUnread(0));

function drawer(name) {
  for (const id of ["chats", "work"]) {
    $(id).classList.toggle("open", id === name);
    $(`open-${id}`).setAttribute("aria-expanded", String(id === name));
  }
  if (name) openPages(false);
  $("shade").hidden = !name;
  if (name) $(name).querySelector("button, summary")?.focus({ preventScroll: true });
}
$("open-chats").onclick = () => drawer("chats");
$("open-work").onclick = () => drawer($("work").classList.contains("open") ? null : "work");
$("shade").onclick = () => drawer(null);
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented || document.querySelector("dialog[open]")) return;
  drawer(null);
  text.focus({ preventScroll: true });
});

// crypto.randomUUID exists in secure contexts only.
function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
