"use strict";
// Keys, links to folded texts, and new records while a run goes on. Every page works without it.
(() => {
  const rows = () => [...document.querySelectorAll("a.row")];
  const go = (rel) => { const link = document.querySelector(`a[rel=${rel}]`); if (link) link.click(); return Boolean(link); };

  function step(by) {
    const all = rows();
    if (!all.length) { go(by > 0 ? "next" : "prev"); return; }
    const at = all.indexOf(document.activeElement);
    const next = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : at + by];
    if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); } else go(by > 0 ? "next" : "prev");
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input:not([type=checkbox], [type=radio]), select, textarea")) { if (event.key === "Escape") event.target.blur(); return; }
    const choice = document.querySelector(`button[data-key="${CSS.escape(event.key)}"]`);
    if (choice) { event.preventDefault(); choice.click(); return; }
    if (event.key === "/") { const field = document.querySelector("input[type=search]"); if (field) { event.preventDefault(); field.focus(); field.select(); } }
    else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "u") { if (!go("up")) { const links = document.querySelectorAll(".top nav a"); if (links.length) links[links.length - 1].click(); } }
  });

  function unfold() {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    target.scrollIntoView({ block: "start" });
  }
  window.addEventListener("hashchange", unfold);
  document.addEventListener("click", (event) => { const link = event.target.closest("a[href^='#']"); if (link) setTimeout(unfold); });
  unfold();

  // The part of a page that follows the run is fetched again when the run has changed.
  const body = document.body;
  async function follow() {
    if (document.hidden) return;
    try {
      const state = await (await fetch("/state")).text();
      if (state === body.dataset.seen) return;
      body.dataset.seen = state;
      const wanted = body.dataset.version.split(" ").map((each) => each.split(".")[0]);
      const now = state.split(" ").filter((each) => wanted.includes(each.split(".")[0])).join(" ");
      if (now === body.dataset.version) return;
      const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
      const fresh = page.getElementById("live"), old = document.getElementById("live");
      if (!fresh || !old) return;
      const focused = document.activeElement && document.activeElement.getAttribute("href");
      old.replaceWith(document.adoptNode(fresh));
      body.dataset.version = page.body.dataset.version;
      if (focused) { const again = rows().find((row) => row.getAttribute("href") === focused); if (again) again.focus(); }
    } catch { /* the server has ended */ }
  }
  if (body.dataset.version !== undefined && document.getElementById("live")) setInterval(follow, 2000);
})();
