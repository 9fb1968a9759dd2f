// Talking to the server: requests with the token, and one event stream that reconnects and resumes by number.

const SILENCE_MS = 40_000; // the server sends a sign of life every 15 s
const REST_MS = 60_000; // out of sight
const WAITS_MS = [400, 800, 1500, 3000, 6000, 10_000];

export class Unauthorized extends Error {}

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// Storage that also works where the browser forbids it (then only for this visit).
const memory = new Map();
export const store = {
  get(key) {
    try {
      return localStorage.getItem(key) ?? memory.get(key) ?? null;
    } catch {
      return memory.get(key) ?? null;
    }
  },
  set(key, value) {
    memory.set(key, value);
    try {
      localStorage.setItem(key, value);
    } catch {}
  },
  remove(key) {
    memory.delete(key);
    try {
      localStorage.removeItem(key);
    } catch {}
  },
  keys(prefix) {
    let stored = [];
    try {
      stored = Object.keys(localStorage);
    } catch {}
    return [...new Set([...stored, ...memory.keys()])].filter((key) => key.startsWith(prefix));
  },
};

function headers(extra = {}) {
  const token = store.get("spacebot.token");
  return token ? { ...extra, Authorization: `Bearer ${token}` } : extra;
}

export async function request(path, options = {}) {
  const response = await fetch(path, { ...options, headers: headers(options.headers), cache: "no-store" });
  if (response.ok) return response;
  if (response.status === 401) throw new Unauthorized("unauthorized");
  let text = `the server answered ${response.status}`;
  try {
    text = (await response.json()).error ?? text;
  } catch {}
  throw new Refused(text, response.status);
}

export const get = async (path, params = {}) => (await request(`api/${path}?${new URLSearchParams(params)}`)).json();

export const fetchFile = async (path, params = {}) => (await request(`api/${path}?${new URLSearchParams(params)}`)).blob();

export const send = async (method, path, body) =>
  (
    await request(`api/${path}`, {
      method,
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: JSON.stringify(body),
    })
  ).json();

// The events of a response, as {name, data}; `alive` hears of every sign of life.
export async function* eventsOf(response, alive = () => {}) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    buffer += value;
    const frames = buffer.split("\n\n");
    buffer = frames.pop();
    for (const frame of frames) {
      const fields = {};
      for (const line of frame.split("\n")) {
        const colon = line.indexOf(": ");
        if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
      }
      if (fields.event) yield { name: fields.event, data: JSON.parse(fields.data) };
    }
  }
}

export const post = (path, body) => send("POST", path, body);

// Follows one session until `close`, or everything that happens with another `path`. `after()` gives the number to
// resume after; `on(name, data)` gets each event; `state(name)` hears connecting, online, offline. A stream that `greets`
// is online with its `hello`, the others with their answer.
// A browser holds six connections to a place, for all its windows together. So a page that was left (and is kept for the
// way back) holds none, and one that `rests` holds none after a while out of sight.
export function follow({ path = "webchat/events", params, after, greets = Boolean(after), rests = true, on, state, unauthorized }) {
  let isClosed = false;
  let isAway = false;
  let failures = 0;
  let current = null;
  let wake = () => {};
  let resting = null;

  const leave = () => {
    isAway = true;
    current?.abort();
  };
  const come = () => {
    clearTimeout(resting);
    if (isAway) failures = 0;
    isAway = false;
    wake();
  };
  const look = () => {
    if (document.visibilityState === "visible") come();
    else if (rests) resting = setTimeout(leave, REST_MS);
  };
  addEventListener("online", look);
  addEventListener("pagehide", leave);
  addEventListener("pageshow", come);
  document.addEventListener("visibilitychange", look);

  (async () => {
    while (!isClosed) {
      state(failures ? "offline" : "connecting");
      try {
        await read();
      } catch (error) {
        if (isClosed) break;
        if (error instanceof Unauthorized) await unauthorized();
      }
      if (isClosed) break;
      const wait = WAITS_MS[Math.min(failures, WAITS_MS.length - 1)] * (0.8 + Math.random() * 0.4);
      failures += 1;
      state(isAway ? "connecting" : "offline");
      await new Promise((resolve) => {
        const timer = isAway ? null : setTimeout(resolve, wait);
        wake = () => (clearTimeout(timer), resolve());
      });
      while (isAway && !isClosed) await new Promise((resolve) => (wake = resolve));
    }
  })();

  async function read() {
    current = new AbortController();
    const silence = () => setTimeout(() => current.abort(), SILENCE_MS);
    let timer = silence();
    try {
      const query = new URLSearchParams(after && after() !== null ? { ...params, after: String(after()) } : params);
      const response = await request(`api/${path}?${query}`, { signal: current.signal });
      if (!greets) {
        failures = 0;
        state("online");
      }
      const alive = () => {
        clearTimeout(timer);
        timer = silence();
      };
      for await (const { name, data } of eventsOf(response, alive)) {
        if (isClosed) continue;
        if (name === "hello") {
          failures = 0;
          state("online");
        }
        on(name, data);
      }
    } finally {
      clearTimeout(timer);
    }
  }

  return {
    close() {
      isClosed = true;
      clearTimeout(resting);
      removeEventListener("online", look);
      removeEventListener("pagehide", leave);
      removeEventListener("pageshow", come);
      document.removeEventListener("visibilitychange", look);
      current?.abort();
      wake();
    },
  };
}
