// The Skills page: what an agent has, where it came from, and the registry of public ones, page by page.

import { get, post, send } from "./connection.js?v=__VERSION__";
import { el } from "./markdown.js?v=__VERSION__";
import { $, attempt, button, confirmed, keyed, put, say, startPage, toast } from "./ui.js?v=__VERSION__";
import { number, short, time } from "./words.js?v=__VERSION__";

const VIEWS = { "all-time": "Most installed", trending: "Trending", hot: "Hot" };
const PLACES = { workspace: "of this agent", instance: "for all agents" };
const STATES = { local: "put there by hand", changed: "changed since it was installed", installed: "" };
const QUIET_MS = 300; // after a letter
const MIN_QUERY = 2; // letters that the registry wants
let own = [];

// --- what is installed -------------------------------------------------------------------------------

class Skill {
  constructor() {
    this.title = el("h3");
    this.where = el("span", { class: "tag" });
    this.about = el("p", { class: "about" });
    this.facts = el("dl", { class: "facts" });
    this.result = el("p", { class: "result", role: "status" });
    this.remove = button("Remove", () => this.delete(), { class: "remove" });
    this.node = el("li", { class: "panel skill" }, el("div", { class: "bar" }, this.title, this.where), this.about, el("details", {}, el("summary", {}, "Details"), this.facts, el("div", { class: "actions" }, this.remove)), this.result);
  }

  show(skill) {
    this.skill = skill;
    this.node.dataset.id = skill.name;
    this.title.textContent = skill.name;
    this.where.textContent = PLACES[skill.source] ?? skill.source;
    this.about.textContent = skill.description;
    const facts = [["from", skill.from], ["kind", skill.category], ["state", STATES[skill.state] ?? skill.state], ["installed", skill.installed_at && time(skill.installed_at)], ["folder", skill.base_dir]];
    put(this.facts, facts.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  }

  async delete() {
    const { name, source } = this.skill;
    const isShared = source === "instance";
    if (!(await confirmed({ title: `Remove the skill “${name}”?`, text: isShared ? "All agents lose it, and its folder is deleted." : "Its folder is deleted.", yes: "Remove" }))) return;
    await attempt(this.result, "Removing …", () => send("DELETE", "agents/skills/remove", { agent_id: page.agent, name, instance: isShared }), [this.remove]);
    await page.refresh();
  }
}

const drawOwn = keyed($("skills"), () => new Skill(), (skill) => `${skill.source}/${skill.name}`);

function showOwn() {
  const words = $("find-own").value.trim().toLowerCase();
  const found = own.filter((skill) => `${skill.name} ${skill.description}`.toLowerCase().includes(words));
  drawOwn(found);
  $("none").hidden = found.length > 0;
  $("none").textContent = own.length ? "No skill fits." : "None yet. Install one below, or put a folder with a SKILL.md into skills/ of the workspace.";
  for (const row of drawListed.rows.values()) row.mark();
}
$("find-own").oninput = showOwn;

async function install(spec, isForAll, result, buttons, replace = false) {
  let isThere = false;
  const isDone = await attempt(result, "Fetching …", async () => {
    try {
      const { installed } = await post("agents/skills/install", { spec, agent_id: page.agent, instance: isForAll, replace });
      toast(`Installed: ${installed.join(", ")}.`);
    } catch (error) {
      isThere = !replace && error.status === 400 && /replace/.test(error.message);
      throw error;
    }
  }, buttons);
  if (isThere && (await confirmed({ title: "Replace what is there?", text: result.textContent, yes: "Replace" }))) return install(spec, isForAll, result, buttons, true);
  await page.refresh();
  return isDone;
}

const form = $("add");
form.onsubmit = async (event) => {
  event.preventDefault();
  if (await install(form.spec.value.trim(), form.instance.checked, $("result"), [form.querySelector("button")])) form.reset();
};

// --- the registry ------------------------------------------------------------------------------------

class Listed {
  constructor() {
    this.name = el("b");
    this.about = el("span", { class: "fine" });
    this.result = el("p", { class: "result", role: "status" });
    this.button = button("Install", () => install(this.spec, false, this.result, [this.button]), { class: "install" });
    this.node = el("li", { class: "listed" }, el("div", {}, this.name, this.about), this.button, this.result);
  }

  show(one) {
    this.one = one;
    this.spec = `${one.source}/${one.skillId}`;
    this.name.textContent = one.name;
    const source = /^[\w.-]+\/[\w.-]+$/.test(one.source) ? el("a", { class: "link", href: `https://github.com/${one.source}`, target: "_blank", rel: "noopener noreferrer" }, one.source) : one.source;
    this.about.replaceChildren(source, ` · ${short(one.installs)} installs`);
    this.mark();
  }

  mark() {
    const isThere = own.some((skill) => skill.name === this.one?.skillId || (skill.from === this.one?.source && skill.name === this.one?.name));
    this.button.textContent = isThere ? "Installed" : "Install";
    this.button.disabled = isThere;
  }
}

const drawListed = keyed($("registry"), () => new Listed(), (one) => `${one.source}/${one.skillId}`);
let view = "all-time";
let listed = [];
let next = 0; // the page to ask for; null when there is none
let asked = 0; // number of the list that is shown
let isAsking = false;

put($("views"), Object.entries(VIEWS).map(([name, text]) => el("button", { type: "button", class: "pill", "aria-pressed": String(name === view), "data-view": name, onclick: () => {
  view = name;
  $("search").value = "";
  begin();
} }, text)));

function begin() {
  asked += 1;
  listed = [];
  next = 0;
  isAsking = false;
  drawListed([]);
  $("registry").hidden = true;
  for (const one of $("views").children) one.setAttribute("aria-pressed", String(one.dataset.view === view && !$("search").value.trim()));
  more();
}

async function more() {
  if (isAsking || next === null || !page.agent) return;
  const [mine, words] = [asked, $("search").value.trim()];
  if (words && words.length < MIN_QUERY) return say($("registry-words"), `Type ${MIN_QUERY} letters or more.`);
  isAsking = true;
  $("registry-words").textContent = "Asking …";
  try {
    const answer = words ? await get("skills/registry/search", { q: words }) : await get("skills/registry/browse", { view, page: next });
    if (mine !== asked) return;
    const known = new Set(listed.map((one) => `${one.source}/${one.skillId}`));
    listed = [...listed, ...answer.skills.filter((one) => !known.has(`${one.source}/${one.skillId}`))];
    next = !words && answer.has_more ? next + 1 : null;
    drawListed(listed);
    $("registry").hidden = !listed.length;
    $("registry-words").textContent = listed.length ? `${number(listed.length)}${next === null ? "" : " and more"}` : "Nothing fits.";
    isAsking = false;
    if (isNear()) more();
  } catch (error) {
    if (mine !== asked) return;
    next = null;
    isAsking = false;
    $("registry-words").replaceChildren(error.message, " ", button("Try again", begin));
  }
}

const isNear = () => $("more").getBoundingClientRect().top < innerHeight + 400;
new IntersectionObserver((entries) => entries.some((one) => one.isIntersecting) && more(), { root: $("main"), rootMargin: "400px" }).observe($("more"));
let timer = null;
$("search").oninput = () => {
  clearTimeout(timer);
  timer = setTimeout(begin, QUIET_MS);
};

// --- asking ------------------------------------------------------------------------------------------

async function refresh(agent) {
  const { skills } = await get("agents/skills", { agent_id: agent });
  if (agent !== page.agent) return;
  own = skills;
  showOwn();
}

const page = startPage({ events: "config_reloaded", opened: () => {
  drawOwn.rows.clear();
  if (!asked) begin(); // the registry is the same for all agents
}, refresh });
