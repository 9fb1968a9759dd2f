// Settings, Backup: take one, put one back, and everything that tends to go wrong, looked at now.

import { get, post, request } from "./connection.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { attempt, button, confirmed, put } from "./ui.js?v=__VERSION__";
import { plural } from "./words.js?v=__VERSION__";

const GRADES = { fail: ["fails", "bad"], warn: ["look at it", "bad"], ok: ["well", "good"] };

export function open(root) {
  const doctor = doctorPanel();
  root.append(backupPanel(), restorePanel(), doctor.node);
  return { refresh: doctor.once };
}

// The browser itself takes the file, so that a large one never stands in memory: hence a ticket instead of the token.
function backupPanel() {
  const box = (name, text, isOn) => el("label", { class: "check" }, el("input", { type: "checkbox", name, checked: isOn }), ` ${text}`);
  const result = el("p", { class: "result", role: "status" });
  const go = el("button", { class: "pill primary" }, "Download a backup");
  const form = el("form", { id: "backup" }, box("workspace", "with the files that workers work on", true), box("secrets", "with the stored secrets, sealed; never their key", false), el("div", { class: "actions" }, go), result);
  form.onsubmit = (event) => {
    event.preventDefault();
    const data = new FormData(form);
    attempt(result, "Packing …", async () => {
      const { ticket } = await post("ticket", {});
      const query = new URLSearchParams({ workspace: data.get("workspace") ? 1 : 0, secrets: data.get("secrets") ? 1 : 0, ticket });
      const link = el("a", { href: `api/system/backup/export?${query}`, download: "" });
      document.body.append(link);
      link.click();
      link.remove();
      return { message: "The browser saves it; the program goes on meanwhile." };
    }, [go]);
  };
  return el("section", { class: "panel" }, el("h2", {}, "Backup"), el("p", { class: "fine" }, "Configuration, memories, conversations and identities as one zip, whole while everything runs."), form);
}

function restorePanel() {
  const result = el("p", { class: "result", role: "status" });
  const file = el("input", { type: "file", name: "file", accept: ".zip,application/zip", required: true, class: "field" });
  const go = el("button", { class: "pill danger" }, "Restore");
  const form = el("form", { id: "restore" }, el("label", {}, "A backup ", file), el("div", { class: "actions" }, go), result);
  form.onsubmit = async (event) => {
    event.preventDefault();
    const [chosen] = file.files;
    const text = `At the next start everything becomes as it was in ${chosen.name}. What is there now is kept aside for a day.`;
    if (!(await confirmed({ title: "Restore this backup?", text, yes: "Restore", no: "Cancel" }))) return;
    await attempt(result, "Sending and looking through it …", async () => {
      const response = await request("api/system/backup/restore", { method: "POST", headers: { "Content-Type": "application/zip" }, body: chosen });
      const answer = await response.json();
      form.reset();
      return { message: `${plural(answer.files_restored, "file")} of ${answer.created_at}: ${answer.message}` };
    }, [go]);
  };
  return el("section", { class: "panel" }, el("h2", {}, "Restore"), el("p", { class: "fine" }, "It is judged at once and takes its place at the next start."), form);
}

function doctorPanel() {
  const list = el("ul", { class: "lines", id: "findings" });
  const sum = el("span", { class: "tag", id: "doctor-sum" });
  const result = el("p", { class: "result", role: "status" });
  let isAsked = false;
  const look = (online) => attempt(result, online ? "Asking providers and platforms …" : "Looking …", async () => {
    const { ok, counts, findings } = await get("system/doctor", online ? { online: 1 } : {});
    sum.textContent = ok && !counts.warn ? "all is well" : [counts.fail && plural(counts.fail, "failure"), counts.warn && plural(counts.warn, "warning")].filter(Boolean).join(", ");
    sum.className = `tag ${ok && !counts.warn ? "good" : "bad"}`;
    const order = Object.keys(GRADES);
    put(list, findings.sort((a, b) => order.indexOf(a.grade) - order.indexOf(b.grade)).map(finding));
  }, buttons);
  const buttons = [button("Look again", () => look(false)), button("Ask providers too", () => look(true), { title: "costs a few tokens" })];
  const node = el("section", { class: "panel" }, el("div", { class: "bar" }, el("h2", {}, "Doctor"), sum, el("span", { class: "space" }), ...buttons), result, list);
  const once = async () => {
    if (isAsked) return; // it is some work: again only when it is asked for
    isAsked = true;
    await look(false);
  };
  return { node, once };
}

function finding({ check, grade, said, mend }) {
  const [word, tone] = GRADES[grade];
  return el("li", { class: `finding ${grade}` }, el("span", { class: `tag ${tone}` }, word), el("b", {}, check), el("span", {}, said), mend ? el("code", { class: "mend" }, mend) : null);
}
