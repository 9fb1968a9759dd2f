/* Adds a floating chat to any page:
 *   <script src="http://localhost:5738/embed.js" data-agent="main"></script>
 * Optional: data-session (one conversation for all visitors of the page), data-title, data-color.
 * The page's origin must stand in api.allowed_origins, or the browser refuses to show the chat. */
(() => {
  const script = document.currentScript;
  if (!script) return;
  const { agent, session, title = "Chat", color = "#b5482d" } = script.dataset;
  const page = new URL("./", script.src);
  page.searchParams.set("embed", "1");
  if (agent) page.searchParams.set("agent", agent);
  if (session) page.searchParams.set("session", session);

  const host = document.createElement("spacebot-chat");
  const root = host.attachShadow({ mode: "open" });
  const put = (element, style) => Object.assign(element.style, style) && element;
  put(host, { position: "fixed", right: "20px", bottom: "20px", zIndex: "2147483000" });

  const button = put(document.createElement("button"), {
    width: "58px", height: "58px", borderRadius: "50%", border: "0", background: color, cursor: "pointer",
    boxShadow: "0 4px 18px #0004", display: "grid", placeItems: "center", padding: "0",
  });
  button.type = "button";
  button.setAttribute("aria-label", title);
  button.setAttribute("aria-expanded", "false");
  button.innerHTML =
    '<svg viewBox="0 0 32 32" width="30" fill="none" stroke="#fff" stroke-width="2" aria-hidden="true">' +
    '<circle cx="16" cy="16" r="5.5" fill="#fff"/><ellipse cx="16" cy="16" rx="13" ry="5" transform="rotate(-24 16 16)"/></svg>';

  let frame = null;
  const show = (isOpen) => {
    if (isOpen && !frame) {
      frame = put(document.createElement("iframe"), {
        position: "fixed", right: "20px", bottom: "90px", width: "min(400px, calc(100vw - 40px))",
        height: "min(640px, calc(100vh - 110px))", border: "0", borderRadius: "18px",
        boxShadow: "0 12px 48px #0005", background: "Canvas",
      });
      frame.src = page.href;
      frame.title = title;
      frame.allow = "clipboard-write";
      root.append(frame);
    }
    if (frame) frame.style.display = isOpen ? "block" : "none";
    button.setAttribute("aria-expanded", String(isOpen));
  };
  button.addEventListener("click", () => show(button.getAttribute("aria-expanded") !== "true"));
  document.addEventListener("keydown", (event) => event.key === "Escape" && show(false));
  root.append(button);
  const add = () => document.body.append(host);
  if (document.body) add();
  else document.addEventListener("DOMContentLoaded", add);
})();
