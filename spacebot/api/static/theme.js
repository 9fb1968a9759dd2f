// Runs before anything is drawn, so that no page flashes in the wrong colours: the chosen theme and the folded navigation.
(() => {
  const root = document.documentElement;
  const read = (key) => {
    try {
      return localStorage.getItem(key);
    } catch {
      return null; // the browser forbids it: the system's theme
    }
  };
  const theme = read("spacebot.theme");
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  const fold = read("spacebot.pages");
  if (fold === "narrow" || fold === "wide") root.dataset.pages = fold;
  if (new URLSearchParams(location.search).has("embed")) root.classList.add("embed");
})();
