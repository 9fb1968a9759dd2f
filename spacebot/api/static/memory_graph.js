// The graph of memories on a canvas: a layout by forces in small steps, which rests as soon as it is settled.
// Nothing runs while it is out of sight.

import { el } from "./markdown.js?v=__VERSION__";
import { COVERED, RELATIONS, TYPES, typeOf } from "./memory_words.js?v=__VERSION__";
import { line } from "./words.js?v=__VERSION__";

const STEP_MS = 7; // of layout in one frame
const REST = 0.004; // below this warmth nothing moves
const COOLING = 0.985;
const LINK = 70; // length of an edge of weight 0.5
const REPULSION = 3600;
const REACH = 600; // beyond it memories do not push each other
const MAX_LABELS = 36;
const LINES = { related_to: [], part_of: [10, 4], updates: [], contradicts: [5, 4], caused_by: [2, 4], result_of: [2, 4] };
const ARROWS = new Set(["updates", "caused_by", "result_of", "part_of"]);
const STRONG = new Set(["updates", "contradicts"]); // drawn in the accent's colour

export class Graph {
  // `isCovered(memory)` tells whose words are hidden; `selected(id)` and `expand(id)` are asked for by the person.
  constructor(canvas, { isCovered, selected, expand }) {
    Object.assign(this, { canvas, isCovered, selected, expand });
    canvas.graph = this; // within reach of the browser's console
    this.ink = canvas.getContext("2d");
    this.nodes = new Map();
    this.links = [];
    this.view = { x: 0, y: 0, scale: 1 };
    this.warmth = 0;
    this.frames = 0; // drawn so far; a test sees that it rests
    this.current = null;
    this.hovered = null;
    this.isQueued = false;
    this.isFollowing = true; // the view keeps all in sight until the person moves it
    this.listen();
    new ResizeObserver(() => this.wake()).observe(canvas);
    const recolour = () => {
      this.colours = null;
      this.wake();
    };
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
    addEventListener("themechange", recolour);
    document.addEventListener("visibilitychange", () => this.wake());
  }

  // Takes the place of what is shown; what was known keeps its place, and the view stays unless `isNew`.
  set(nodes, edges, isNew) {
    const before = this.nodes;
    const edgesBefore = new Set(this.links.map((link) => link.edge.id));
    this.nodes = new Map();
    for (const memory of nodes) this.place(memory, before.get(memory.id));
    this.connect(edges);
    for (const node of this.nodes.values()) if (!before.has(node.id)) this.nearNeighbour(node, before);
    if (isNew) this.isFollowing = true;
    if (!this.nodes.has(this.current)) this.current = null;
    const isSame = before.size === this.nodes.size && nodes.every(({ id }) => before.has(id)) && edgesBefore.size === this.links.length && this.links.every(({ edge }) => edgesBefore.has(edge.id));
    if (isSame) this.wake();
    else this.heat(isNew || !before.size ? 1 : 0.3);
  }

  // Adds what lies around a memory, starting from its place.
  add(around, nodes, edges) {
    const origin = this.nodes.get(around);
    for (const memory of nodes) {
      if (this.nodes.has(memory.id)) continue;
      const node = this.place(memory);
      if (origin) Object.assign(node, { x: origin.x + 40 * (Math.random() - 0.5), y: origin.y + 40 * (Math.random() - 0.5) });
    }
    const known = new Set(this.links.map((link) => link.edge.id));
    this.connect([...this.links.map((link) => link.edge), ...edges.filter((edge) => !known.has(edge.id))]);
    this.heat(0.5);
  }

  place(memory, known) {
    const n = this.nodes.size;
    const angle = n * 2.399963; // the golden angle: an even disc to begin with
    const node = {
      ...(known ?? { x: 16 * Math.sqrt(n) * Math.cos(angle), y: 16 * Math.sqrt(n) * Math.sin(angle), vx: 0, vy: 0 }),
      id: memory.id, memory, radius: 4 + 8 * memory.importance, degree: 0, label: null,
    };
    this.nodes.set(memory.id, node);
    return node;
  }

  nearNeighbour(node, before) {
    const link = this.links.find(({ a, b }) => (a === node && before.has(b.id)) || (b === node && before.has(a.id)));
    if (!link) return;
    const other = link.a === node ? link.b : link.a;
    Object.assign(node, { x: other.x + 30 * (Math.random() - 0.5), y: other.y + 30 * (Math.random() - 0.5) });
  }

  connect(edges) {
    for (const node of this.nodes.values()) node.degree = 0;
    this.links = edges
      .map((edge) => ({ edge, a: this.nodes.get(edge.source_id), b: this.nodes.get(edge.target_id) }))
      .filter(({ a, b }) => a && b);
    for (const { a, b } of this.links) {
      a.degree += 1;
      b.degree += 1;
    }
  }

  select(id, isCentred = false) {
    this.current = this.nodes.has(id) ? id : null;
    const node = this.nodes.get(id);
    if (node && isCentred) {
      this.isFollowing = false;
      this.view.scale = Math.max(this.view.scale, 0.9);
      Object.assign(this.view, { x: -node.x * this.view.scale, y: -node.y * this.view.scale });
    }
    this.wake();
  }

  // Moves the view so that a memory does not lie below `bottom` (a pixel of the window), where something covers it.
  lift(id, bottom) {
    const below = (this.whereIs(id)?.y ?? 0) - (bottom - 70);
    if (below <= 0) return;
    this.isFollowing = false;
    this.view.y -= below;
    this.wake();
  }

  // --- layout ------------------------------------------------------------------------------------

  heat(warmth) {
    this.warmth = Math.max(this.warmth, warmth);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      const until = performance.now() + 400;
      while (this.warmth > REST && performance.now() < until) this.step();
    }
    this.wake();
  }

  get isVisible() {
    return !document.hidden && this.canvas.clientWidth > 0;
  }

  wake() {
    if (this.isQueued || !this.isVisible) return;
    this.isQueued = true;
    requestAnimationFrame(() => {
      this.isQueued = false;
      if (!this.isVisible) return;
      const until = performance.now() + STEP_MS;
      let steps = 0;
      while (this.warmth > REST && steps < 3 && performance.now() < until) {
        this.step();
        steps += 1;
      }
      if (this.isFollowing) this.fit();
      this.draw();
      if (this.warmth > REST) this.wake();
      else this.warmth = 0;
    });
  }

  step() {
    const nodes = [...this.nodes.values()];
    const warmth = this.warmth;
    for (let i = 0; i < nodes.length; i += 1) {
      const a = nodes[i];
      for (let j = i + 1; j < nodes.length; j += 1) {
        const b = nodes[j];
        let dx = b.x - a.x;
        let dy = b.y - a.y;
        if (dx > REACH || dx < -REACH || dy > REACH || dy < -REACH) continue;
        if (!dx && !dy) (dx = (i % 7) - 3.5), (dy = (j % 5) - 2.5);
        const square = Math.max(60, dx * dx + dy * dy);
        const push = (REPULSION * warmth) / square / Math.sqrt(square);
        a.vx -= dx * push; a.vy -= dy * push;
        b.vx += dx * push; b.vy += dy * push;
      }
    }
    for (const { a, b, edge } of this.links) {
      const dx = b.x - a.x;
      const dy = b.y - a.y;
      const distance = Math.hypot(dx, dy) || 1;
      const pull = ((distance - LINK * (1.5 - edge.weight)) / distance) * warmth * 0.35;
      const share = a.degree / (a.degree + b.degree); // the one with fewer edges moves more
      const strength = pull / Math.max(1, Math.min(a.degree, b.degree));
      a.vx += dx * strength * (1 - share); a.vy += dy * strength * (1 - share);
      b.vx -= dx * strength * share; b.vy -= dy * strength * share;
    }
    const inward = 0.03 * warmth;
    for (const node of nodes) {
      if (node === this.dragged) {
        node.vx = node.vy = 0;
        continue;
      }
      node.vx = (node.vx - node.x * inward) * 0.6;
      node.vy = (node.vy - node.y * inward) * 0.6;
      node.x += node.vx;
      node.y += node.vy;
    }
    this.warmth *= COOLING;
  }

  fit() {
    if (!this.nodes.size) return;
    let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const { x, y } of this.nodes.values()) {
      left = Math.min(left, x); right = Math.max(right, x); top = Math.min(top, y); bottom = Math.max(bottom, y);
    }
    const scale = Math.min(1.6, (this.canvas.clientWidth - 60) / (right - left + 40), (this.canvas.clientHeight - 60) / (bottom - top + 40));
    this.view = { scale: Math.max(0.05, scale), x: (-(left + right) / 2) * scale, y: (-(top + bottom) / 2) * scale };
  }

  // --- drawing -----------------------------------------------------------------------------------

  palette() {
    if (this.colours) return this.colours;
    // A colour of its own for light and dark is a number only where it is used: on an element.
    const probe = el("i", { hidden: true });
    this.canvas.parentElement.append(probe);
    const read = (name) => {
      probe.style.color = `var(${name})`;
      return getComputedStyle(probe).color;
    };
    this.colours = {
      ink: read("--ink"), soft: read("--soft"), line: read("--faint"), accent: read("--accent"), paper: read("--paper"), warn: read("--warn"),
      font: getComputedStyle(document.documentElement).getPropertyValue("--sans").trim(),
      ...Object.fromEntries(Object.keys(TYPES).map((type) => [type, read(`--t-${type}`)])),
    };
    probe.remove();
    return this.colours;
  }

  draw() {
    const { canvas, ink, view } = this;
    const ratio = Math.min(2, devicePixelRatio || 1);
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    this.frames += 1;
    const colours = this.palette();
    const near = this.around(this.current);
    ink.setTransform(ratio, 0, 0, ratio, 0, 0);
    ink.clearRect(0, 0, width, height);
    ink.translate(width / 2 + view.x, height / 2 + view.y);
    ink.scale(view.scale, view.scale);
    this.drawLinks(colours, near);
    this.drawNodes(colours, near);
    this.drawLabels(colours, near, ratio, width, height);
  }

  around(id) {
    if (!id) return null;
    const near = new Set([id]);
    for (const { a, b } of this.links) {
      if (a.id === id) near.add(b.id);
      if (b.id === id) near.add(a.id);
    }
    return near;
  }

  drawLinks(colours, near) {
    const { ink, view } = this;
    for (const { a, b, edge } of this.links) {
      const isNear = near && (a.id === this.current || b.id === this.current);
      ink.globalAlpha = near ? (isNear ? 0.95 : 0.12) : 0.35 + 0.4 * edge.weight;
      ink.strokeStyle = edge.relation_type === "contradicts" ? colours.warn : STRONG.has(edge.relation_type) ? colours.accent : colours.line;
      ink.lineWidth = (0.8 + edge.weight * (isNear ? 1.6 : 0.9)) / Math.max(0.6, view.scale);
      ink.setLineDash(LINES[edge.relation_type] ?? []);
      ink.beginPath();
      ink.moveTo(a.x, a.y);
      ink.lineTo(b.x, b.y);
      ink.stroke();
      if (ARROWS.has(edge.relation_type)) this.arrow(a, b);
    }
    ink.setLineDash([]);
  }

  arrow(a, b) {
    const { ink } = this;
    const angle = Math.atan2(b.y - a.y, b.x - a.x);
    const [x, y] = [b.x - (b.radius + 2) * Math.cos(angle), b.y - (b.radius + 2) * Math.sin(angle)];
    ink.setLineDash([]);
    ink.beginPath();
    for (const side of [-0.45, 0.45]) {
      ink.moveTo(x, y);
      ink.lineTo(x - 7 * Math.cos(angle + side), y - 7 * Math.sin(angle + side));
    }
    ink.stroke();
  }

  drawNodes(colours, near) {
    const { ink } = this;
    for (const node of this.nodes.values()) {
      ink.globalAlpha = near && !near.has(node.id) ? 0.25 : 1;
      const colour = colours[node.memory.memory_type] ?? colours.soft;
      ink.beginPath();
      ink.arc(node.x, node.y, node.radius, 0, 7);
      ink.fillStyle = node.memory.is_private ? colours.paper : colour;
      ink.fill();
      ink.lineWidth = node.memory.is_private ? 2 : 1.2;
      ink.strokeStyle = node.memory.is_private ? colour : colours.paper;
      ink.stroke();
      if (node.id !== this.current && node.id !== this.hovered) continue;
      ink.beginPath();
      ink.arc(node.x, node.y, node.radius + 4, 0, 7);
      ink.strokeStyle = colours.accent;
      ink.lineWidth = 2;
      ink.stroke();
    }
    ink.globalAlpha = 1;
  }

  drawLabels(colours, near, ratio, width, height) {
    const { ink, view } = this;
    ink.setTransform(ratio, 0, 0, ratio, 0, 0);
    ink.font = `12px ${colours.font}`;
    ink.textBaseline = "middle";
    ink.textAlign = "left";
    ink.lineJoin = "round";
    const rank = (node) => (node.id === this.hovered ? 4 : 0) + (node.id === this.current ? 3 : 0) + (near?.has(node.id) ? 1 : 0) + node.memory.importance + 0.05 * node.degree;
    const candidates = [...this.nodes.values()].filter((node) => !near || near.has(node.id) || node.id === this.hovered).sort((a, b) => rank(b) - rank(a));
    const taken = candidates.map((node) => {
      const [x, y, r] = [width / 2 + view.x + node.x * view.scale, height / 2 + view.y + node.y * view.scale, node.radius * view.scale];
      return [x - r, y - r, x + r, y + r, node];
    });
    let count = 0;
    for (const node of candidates) {
      if (count >= MAX_LABELS) break;
      const isWanted = node.id === this.hovered || node.id === this.current || near?.has(node.id);
      if (!isWanted && node.radius * view.scale < 5) continue;
      const label = (node.label ??= this.label(node));
      const [x0, y0, r] = [width / 2 + view.x + node.x * view.scale, height / 2 + view.y + node.y * view.scale, node.radius * view.scale];
      if (x0 < -r || x0 > width + r || y0 < -r || y0 > height + r) continue;
      const half = label.width / 2;
      const spots = [[x0 + r + 5, y0], [x0 - r - 5 - label.width, y0], [x0 - half, y0 + r + 10], [x0 - half, y0 - r - 10]];
      const isFree = ([x, y]) => x > 2 && x + label.width < width - 2 && y > 10 && y < height - 10 && !taken.some(([left, top, right, bottom, owner]) => owner !== node && x - 2 < right && left < x + label.width + 2 && y - 8 < bottom && top < y + 8);
      const spot = spots.find(isFree) ?? (isWanted ? spots[0] : null);
      if (!spot) continue;
      const [x, y] = spot;
      taken.push([x - 2, y - 8, x + label.width + 2, y + 8]);
      ink.direction = label.direction;
      count += 1;
      ink.strokeStyle = colours.paper;
      ink.lineWidth = 4;
      ink.strokeText(label.text, x, y);
      ink.fillStyle = isWanted ? colours.ink : colours.soft;
      ink.fillText(label.text, x, y);
    }
  }

  label(node) {
    const text = this.isCovered(node.memory) ? "private" : line(node.memory.content, 34);
    const first = /\p{L}/u.exec(text)?.[0] ?? "";
    return { text, width: this.ink.measureText(text).width, direction: /[\u0590-\u08ff\ufb1d-\ufefc]/.test(first) ? "rtl" : "ltr" };
  }

  relabel() {
    for (const node of this.nodes.values()) node.label = null;
    this.wake();
  }

  // --- the person --------------------------------------------------------------------------------

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = (event.clientX - box.left - box.width / 2 - this.view.x) / this.view.scale;
    const y = (event.clientY - box.top - box.height / 2 - this.view.y) / this.view.scale;
    let best = null;
    let least = Infinity;
    for (const node of this.nodes.values()) {
      const distance = Math.hypot(node.x - x, node.y - y) - node.radius;
      if (distance < least) [best, least] = [node, distance];
    }
    return { x, y, node: least < 8 / this.view.scale ? best : null };
  }

  // Where a memory is drawn, in pixels of the window.
  whereIs(id) {
    const node = this.nodes.get(id);
    const box = this.canvas.getBoundingClientRect();
    return node && { x: box.left + box.width / 2 + this.view.x + node.x * this.view.scale, y: box.top + box.height / 2 + this.view.y + node.y * this.view.scale };
  }

  zoom(factor, clientX, clientY) {
    const box = this.canvas.getBoundingClientRect();
    const x = (clientX ?? box.left + box.width / 2) - box.left - box.width / 2;
    const y = (clientY ?? box.top + box.height / 2) - box.top - box.height / 2;
    const scale = Math.max(0.05, Math.min(6, this.view.scale * factor));
    const change = scale / this.view.scale;
    this.view = { scale, x: x - (x - this.view.x) * change, y: y - (y - this.view.y) * change };
    this.isFollowing = false;
    this.wake();
  }

  all() {
    this.isFollowing = true;
    this.wake();
  }

  listen() {
    const { canvas } = this;
    const fingers = new Map(); // pointer id -> where it is
    let start = null;
    let spread = 0;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, event);
      if (fingers.size === 2) {
        const [a, b] = [...fingers.values()];
        spread = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
        start = this.dragged = null;
        return;
      }
      const { node } = this.at(event);
      start = { x: event.clientX, y: event.clientY, view: { ...this.view }, node, isMoved: false };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (fingers.has(event.pointerId)) fingers.set(event.pointerId, event);
      if (fingers.size === 2) {
        const [a, b] = [...fingers.values()];
        const now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
        if (spread) this.zoom(now / spread, (a.clientX + b.clientX) / 2, (a.clientY + b.clientY) / 2);
        spread = now;
        return;
      }
      if (!start) return this.hover(event);
      if (!start.isMoved && Math.hypot(event.clientX - start.x, event.clientY - start.y) < 4) return;
      start.isMoved = true;
      this.isFollowing = false;
      if (start.node) {
        const { x, y } = this.at(event);
        this.dragged = start.node;
        Object.assign(start.node, { x, y });
        return this.heat(0.15);
      }
      this.view = { ...start.view, x: start.view.x + event.clientX - start.x, y: start.view.y + event.clientY - start.y };
      this.wake();
    });
    const end = (event) => {
      fingers.delete(event.pointerId);
      spread = 0;
      if (start && !start.isMoved && event.type === "pointerup" && start.node) this.selected(start.node.id);
      start = this.dragged = null;
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("pointerleave", () => this.hover(null));
    canvas.addEventListener("dblclick", (event) => {
      const { node } = this.at(event);
      if (node) this.expand(node.id);
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX, event.clientY);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.onKey(event));
  }

  hover(event) {
    const node = event && this.at(event).node;
    const id = node?.id ?? null;
    if (id === this.hovered) return;
    this.hovered = id;
    this.canvas.style.cursor = id ? "pointer" : "grab";
    this.canvas.title = node ? (this.isCovered(node.memory) ? COVERED : `${typeOf(node.memory).name}: ${line(node.memory.content, 160)}`) : "";
    this.wake();
  }

  onKey(event) {
    const moves = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
    if (moves) {
      this.isFollowing = false;
      this.view.x += moves[0];
      this.view.y += moves[1];
      this.wake();
    } else if (event.key === "+" || event.key === "=") this.zoom(1.25);
    else if (event.key === "-") this.zoom(0.8);
    else if (event.key === "0") this.all();
    else return;
    event.preventDefault();
  }
}

// What colours and lines mean.
export function legend() {
  return el(
    "div",
    { class: "legend" },
    el("p", { class: "fine" }, "A click opens a memory, a double click brings in what is connected with it. Drag to move, scroll or pinch to zoom."),
    ...Object.entries(TYPES).map(([type, { name }]) => el("span", { class: `kind kind-${type}` }, name)),
    el("span", { class: "kind hollow" }, "private"),
    ...Object.entries(RELATIONS).map(([relation, words]) => el("span", { class: `stroke rel-${relation}` }, words.out.toLowerCase())),
  );
}
