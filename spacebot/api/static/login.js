// The access token: asked for once, kept by the browser, or handed over in the address.

import { store } from "./connection.js?v=__VERSION__";

const $ = (id) => document.getElementById(id);
let loggingIn = null;

// Takes a token from the fragment, which no server sees, and cleans the address.
export function takeToken() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  if (!fragment.has("token")) return;
  store.set("spacebot.token", fragment.get("token"));
  history.replaceState(null, "", location.pathname + location.search);
}

// Resolves once a token was typed; whether it is right shows at the next request.
export function login() {
  loggingIn ??= new Promise((resolve) => {
    const dialog = $("login");
    $("login-error").textContent = store.get("spacebot.token") ? "The token was not accepted." : "";
    $("login-form").onsubmit = (event) => {
      event.preventDefault();
      const token = $("token").value.trim();
      if (!token) return;
      store.set("spacebot.token", token);
      $("token").value = "";
      dialog.close();
      loggingIn = null;
      resolve();
    };
    dialog.oncancel = (event) => event.preventDefault();
    dialog.showModal();
  });
  return loggingIn;
}
