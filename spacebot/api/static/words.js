// Words for times and amounts, the same on every page.

import { el } from "./markdown.js?v=__VERSION__";

const UNITS = [["year", 31_557_600], ["month", 2_629_800], ["week", 604_800], ["day", 86_400], ["hour", 3600], ["minute", 60]];
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: "auto", style: "short" });

// "3 days ago"; the exact moment belongs into a title.
export function ago(text) {
  const seconds = (Date.now() - new Date(text)) / 1000;
  const [unit, length] = UNITS.find(([, length]) => Math.abs(seconds) >= length) ?? [];
  return unit ? relative.format(-Math.round(seconds / length), unit) : "just now";
}
const moment = new Intl.DateTimeFormat([], { dateStyle: "medium", timeStyle: "short" }); // made once: making one takes longer than using it
export const when = (text) => moment.format(new Date(text));
export const number = (n) => Number(n).toLocaleString();
export const percent = (n) => `${Math.round(n * 100)} %`;

export const time = (text) => el("time", { datetime: text, title: when(text), "data-ago": true }, ago(text));

// One line of a text, at most so many characters.
export function line(text, most = 90) {
  const flat = text.slice(0, 4 * most).replace(/\s+/g, " ").trim();
  const signs = [...flat];
  return signs.length > most || text.length > 4 * most ? `${signs.slice(0, most - 1).join("").trimEnd()}…` : flat;
}

// "4 min 20 s"
export function span(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  return s < 3600 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

// "12.3k", for places where a long number does not fit.
export const short = (n) => new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 }).format(n);

// Dollars: enough digits for what costs little. Null when no price is known.
export function money(dollars) {
  if (dollars == null) return "no price known";
  const digits = dollars === 0 ? 2 : dollars < 0.01 ? 4 : dollars < 1 ? 3 : 2;
  return `$${dollars.toLocaleString(undefined, { minimumFractionDigits: 2, maximumFractionDigits: digits })}`;
}

// "1 worker", "3 workers"
export const plural = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;
