// Runs before anything is drawn, so that a dark page never flashes white.
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  let choice = "auto";
  const apply = () => {
    root.dataset.scheme = choice === "auto" ? (dark.matches ? "dark" : "light") : choice;
  };
  dark.addEventListener("change", apply);
  window.rnnjaxTheme = (name) => {
    choice = name;
    apply();
  };
  apply();
})();
