// A link from every page of the course to itself in the other language; the Korean site lies in ko/ of the English one.

(() => {
  const root = document.documentElement;
  const top = new URL(root.dataset.content_root || "./", location.href);
  const page = location.pathname.slice(top.pathname.length);
  if (!/^(course\/|index\.html|$)/.test(page)) return;
  const korean = root.lang === "ko";
  const link = document.createElement("a");
  link.className = "language";
  link.lang = korean ? "en" : "ko";
  link.hreflang = link.lang;
  link.textContent = korean ? "English" : "한국어";
  link.href = new URL((korean ? "../" : "ko/") + (page || "index.html"), top).href;
  const place = document.querySelector(".article-header-buttons") ?? document.querySelector("article");
  place?.prepend(link);
})();
