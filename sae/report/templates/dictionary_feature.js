"use strict";
// The way back to the index keeps its search: it travels in the hash of the pages, from=SEARCH.
(() => {
  const from = new URLSearchParams(location.hash.slice(1)).get("from");
  if (from !== null) {
    document.getElementById("back").hash = from;
    for (const link of document.querySelectorAll("a.keep")) link.hash = "from=" + encodeURIComponent(from);
  }
  const ways = { ArrowLeft: "previous", ArrowRight: "next" };
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || !(event.key in ways)) return;
    if (event.target.closest("input, select, textarea, .scroll, .plot")) return;
    document.getElementById(ways[event.key])?.click();
  });
})();
