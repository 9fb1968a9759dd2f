// The drop folder: documents given to read, how far each is, why one was set aside.

import { el } from "./markdown.js?v=__VERSION__";
import { Unauthorized, get, request } from "./connection.js?v=__VERSION__";
import { number, time, when } from "./words.js?v=__VERSION__";

const STATES = { queued: "waiting", processing: "reading", completed: "read", failed: "failed", quarantined: "set aside" };

export class Documents {
  constructor(place, { agent, unauthorized }) {
    this.place = place;
    this.agent = agent;
    this.unauthorized = unauthorized;
    this.files = [];
    this.asking = null; // the document that is to be removed, once that is confirmed
    const input = el("input", { type: "file", multiple: true, id: "file", class: "sr", onchange: () => this.upload([...input.files]).then(() => (input.value = "")) });
    this.drop = el(
      "label",
      { class: "drop", for: "file" },
      el("b", {}, "Give me something to read"),
      el("span", { class: "fine" }, "Drop files here, or choose them. What is worth remembering becomes memories that all may know."),
      input,
    );
    this.note = el("p", { class: "fine", role: "status" });
    this.error = el("p", { class: "error", role: "alert" });
    this.list = el("ul", { class: "documents" });
    this.catchFiles();
    this.clear();
  }

  clear() {
    this.files = [];
    this.note.textContent = this.error.textContent = "";
    this.list.replaceChildren();
    this.place.replaceChildren(this.drop, this.error, this.note, this.list);
  }

  catchFiles() {
    // A file that misses the field would replace the page.
    for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.dataTransfer?.types.includes("Files") && event.preventDefault());
    const mark = (isOver) => this.place.classList.toggle("over", isOver);
    this.place.addEventListener("dragover", () => mark(true));
    this.place.addEventListener("dragleave", (event) => this.place.contains(event.relatedTarget) || mark(false));
    this.place.addEventListener("drop", (event) => {
      mark(false);
      this.upload([...(event.dataTransfer?.files ?? [])]);
    });
  }

  async upload(files) {
    if (!files.length) return;
    this.error.textContent = "";
    this.note.textContent = `Sending ${files.length === 1 ? files[0].name : `${files.length} files`} …`;
    const form = new FormData();
    for (const file of files) form.append("files", file, file.name);
    try {
      await request(`api/agents/ingest/upload?${new URLSearchParams({ agent_id: this.agent() })}`, { method: "POST", body: form });
    } catch (error) {
      if (error instanceof Unauthorized) await this.unauthorized();
      this.error.textContent = error instanceof Unauthorized ? "Not sent; give the file once more." : error.message;
    }
    this.note.textContent = "";
    await this.show();
  }

  async show() {
    const agent = this.agent();
    try {
      const { files, state } = await get("agents/ingest/files", { agent_id: agent });
      if (agent !== this.agent()) return;
      this.files = files;
      this.draw(state);
    } catch (error) {
      if (error instanceof Unauthorized) return this.unauthorized().then(() => this.show());
      if (agent === this.agent()) this.error.textContent = error.message;
    }
  }

  // The parts of a long document come one by one; the list need not be fetched for each.
  progressed({ content_hash, chunk, total, status }) {
    const file = this.files.find((one) => one.content_hash === content_hash);
    if (!file || !total) return;
    Object.assign(file, { status, chunks_completed: chunk, total_chunks: total });
    this.drawList();
  }

  draw(state) {
    const words = {
      disabled: "Reading is switched off in the config (ingestion.enabled); documents wait.",
      paused: `Reading pauses: ${state.reason}`,
    };
    this.note.textContent = words[state.status] ?? (this.files.length ? "" : "Nothing was given to read yet.");
    this.drawList();
  }

  drawList() {
    const known = new Map([...this.list.children].map((element) => [element.dataset.hash, element]));
    const rows = this.files.map((file) => {
      const drawn = JSON.stringify([file, this.asking === file.content_hash]);
      const old = known.get(file.content_hash);
      return old?.drawn === drawn ? old : Object.assign(this.drawFile(file), { drawn });
    });
    // Only what changed is touched: a button that is being pressed stays where it is.
    for (const element of known.values()) if (!rows.includes(element)) element.remove();
    rows.forEach((row, n) => this.list.children[n] !== row && this.list.insertBefore(row, this.list.children[n] ?? null));
  }

  drawFile(file) {
    const total = file.total_chunks;
    const isOpen = file.status === "processing" || (file.status !== "completed" && file.chunks_completed > 0);
    const facts = [size(file.file_size), total ? (isOpen ? `${file.chunks_completed} of ${total} parts` : `${total} ${total === 1 ? "part" : "parts"}`) : null].filter(Boolean);
    const at = file.completed_at ?? file.started_at;
    const again = file.next_attempt_at && file.status !== "completed" ? `, next try ${when(file.next_attempt_at)}` : "";
    return el(
      "li",
      { class: `card ${file.status}`, "data-hash": file.content_hash },
      el("div", { class: "card-head" }, el("span", { class: "kind" }, STATES[file.status] ?? file.status), time(at)),
      el("p", { class: "title", dir: "auto" }, file.filename),
      isOpen ? el("progress", { max: total || 1, value: file.chunks_completed, "aria-label": `${file.chunks_completed} of ${total} parts` }) : null,
      file.last_error && file.status !== "completed" ? el("p", { class: "reason", dir: "auto" }, `${file.last_error}${again}`) : null,
      file.status === "quarantined" ? el("p", { class: "fine" }, "To have it tried again, remove it and give it once more.") : null,
      this.asking === file.content_hash ? this.drawQuestion(file) : this.drawFoot(file, facts),
    );
  }

  drawFoot(file, facts) {
    const remove = el("button", { type: "button", class: "plain remove", "aria-label": `Remove ${file.filename}`, onclick: () => this.ask(file.content_hash) }, "Remove");
    return el("div", { class: "foot fine" }, el("span", {}, facts.join(" · ")), remove);
  }

  drawQuestion(file) {
    return el(
      "div",
      { class: "question" },
      el("span", { class: "fine" }, file.status === "completed" ? "Take it off the list? What was learned from it stays." : "Remove the document? What was learned from it so far stays."),
      el("div", { class: "actions" }, el("button", { type: "button", class: "pill", onclick: () => this.ask(null) }, "Keep"), el("button", { type: "button", class: "pill danger", onclick: () => this.remove(file) }, "Remove")),
    );
  }

  ask(hash) {
    const before = this.asking;
    this.asking = hash;
    this.drawList();
    this.list.querySelector(`[data-hash="${CSS.escape(hash ?? before)}"] button`)?.focus();
  }

  async remove(file) {
    this.asking = null;
    this.error.textContent = "";
    try {
      await request(`api/agents/ingest/files?${new URLSearchParams({ agent_id: this.agent(), content_hash: file.content_hash })}`, { method: "DELETE" });
    } catch (error) {
      this.error.textContent = error.message;
    }
    await this.show();
  }
}

function size(bytes) {
  if (bytes < 1024) return `${number(bytes)} bytes`;
  return bytes < 1024 ** 2 ? `${number(Math.round(bytes / 1024))} KiB` : `${(bytes / 1024 ** 2).toFixed(1)} MiB`;
}
