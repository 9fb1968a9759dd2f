// A list of any length: only the rows in sight exist, and only the pages around them are fetched.

import { el } from "./markdown.js?v=__VERSION__";

const PAGE = 60; // rows of one request
const BEYOND = 6; // rows drawn above and below what is in sight

export class LongList {
  // `draw(item, index)` gives a button; `failed(error)` is told when a page could not be fetched.
  constructor(scroller, { draw, failed }) {
    this.scroller = scroller;
    this.draw = draw;
    this.failed = failed;
    this.place = el("ul", { class: "rows" });
    this.scroller.append(this.place);
    this.generation = 0;
    this.clear();
    let isDue = false;
    const soon = () => {
      if (isDue) return;
      isDue = true;
      requestAnimationFrame(() => {
        isDue = false;
        this.render();
      });
    };
    scroller.addEventListener("scroll", soon, { passive: true });
    new ResizeObserver(soon).observe(scroller);
    this.place.addEventListener("keydown", (event) => this.onKey(event));
  }

  clear() {
    this.generation += 1;
    this.items = new Map();
    this.pages = new Set();
    this.rows = new Map();
    this.total = 0;
    this.place.replaceChildren();
    this.place.style.height = "0";
  }

  // Shows another list from its start. `load(offset, limit)` gives {items, total, ...} and is called as needed.
  async show(load, className = "") {
    this.load = load;
    const generation = (this.generation += 1);
    const first = await load(0, PAGE);
    if (generation !== this.generation) return null;
    this.clear();
    this.place.className = `rows ${className}`;
    this.scroller.scrollTop = 0;
    this.take(0, first);
    this.render();
    return first;
  }

  // Fetches anew what is in sight; the reader's place stays.
  async refresh() {
    if (!this.load) return null;
    const generation = (this.generation += 1);
    const offset = Math.floor(this.range()[0] / PAGE) * PAGE;
    const page = await this.load(offset, 2 * PAGE);
    if (generation !== this.generation) return null;
    const focused = this.place.contains(document.activeElement) ? document.activeElement.dataset.index : null;
    this.items.clear();
    this.pages.clear();
    for (const row of this.rows.values()) row.remove();
    this.rows.clear();
    this.take(offset, page);
    this.pages.add(offset / PAGE + 1);
    this.render();
    if (focused !== null) this.rows.get(Number(focused))?.firstChild.focus({ preventScroll: true });
    return page;
  }

  take(offset, page) {
    this.total = page.total;
    this.pages.add(offset / PAGE);
    page.items.forEach((item, n) => this.items.set(offset + n, item));
    this.place.style.height = `${this.total * this.rowHeight()}px`;
    for (const index of [...this.rows.keys()]) if (index >= this.total) this.drop(index);
  }

  rowHeight() {
    return parseFloat(getComputedStyle(this.place).getPropertyValue("--row")) * parseFloat(getComputedStyle(document.documentElement).fontSize);
  }

  range() {
    const height = this.rowHeight();
    const top = this.scroller.scrollTop - this.place.offsetTop;
    const first = Math.max(0, Math.floor(top / height) - BEYOND);
    return [first, Math.min(this.total, Math.ceil((top + this.scroller.clientHeight) / height) + BEYOND)];
  }

  render() {
    if (!this.scroller.clientHeight) return; // out of sight
    const [first, end] = this.range();
    const height = this.rowHeight();
    for (const index of [...this.rows.keys()]) if (index < first || index >= end) this.drop(index);
    for (let index = first; index < end; index += 1) {
      const item = this.items.get(index);
      if (!item) this.fetch(Math.floor(index / PAGE));
      else if (!this.rows.has(index)) {
        const button = this.draw(item, index);
        button.dataset.index = index;
        const row = el("li", { "aria-setsize": this.total, "aria-posinset": index + 1 }, button);
        row.style.transform = `translateY(${index * height}px)`;
        this.rows.set(index, row);
        const next = [...this.rows.keys()].filter((other) => other > index).sort((a, b) => a - b)[0];
        this.place.insertBefore(row, next === undefined ? null : this.rows.get(next));
      }
    }
  }

  drop(index) {
    this.rows.get(index)?.remove();
    this.rows.delete(index);
  }

  // Draws the rows anew, without fetching.
  redraw() {
    for (const index of [...this.rows.keys()]) this.drop(index);
    this.render();
  }

  async fetch(number) {
    if (this.pages.has(number)) return;
    this.pages.add(number);
    const generation = this.generation;
    try {
      const page = await this.load(number * PAGE, PAGE);
      if (generation !== this.generation) return;
      this.take(number * PAGE, page);
      this.render();
    } catch (error) {
      if (generation !== this.generation) return;
      this.failed(error);
      setTimeout(() => generation === this.generation && this.pages.delete(number), 3000); // scrolling asks again
    }
  }

  onKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -Infinity, End: Infinity }[event.key];
    const from = event.target.dataset.index;
    if (!step || from === undefined) return;
    event.preventDefault();
    this.focus(Math.max(0, Math.min(this.total - 1, Number(from) + step)));
  }

  focus(index) {
    const height = this.rowHeight();
    const top = this.place.offsetTop + index * height;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    else if (top + height > this.scroller.scrollTop + this.scroller.clientHeight) this.scroller.scrollTop = top + height - this.scroller.clientHeight;
    this.render();
    this.rows.get(index)?.firstChild.focus({ preventScroll: true });
  }
}
