"use strict";
// What every page shares: its data, its theme, tooltips, and drawing plotly figures in the colours of the theme.
const page = (() => {
  const root = document.documentElement;
  const drawn = new Map(); // element -> spec, to draw again in another theme
  let plotly = null;

  const data = (id) => JSON.parse(document.getElementById(id).textContent);
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // ---- Text, as report/text.py writes it ----
  const MARKS = { "\n": "↵", "\r": "↵", "\t": "⇥" };
  const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;
  function visible(token) {
    if (!token) return "∅";
    const core = token.replace(/^ +| +$/g, "");
    const before = core ? token.indexOf(core) : token.length;
    const shown = [...core].map((c) => MARKS[c] ??
      (HIDDEN.test(c) ? `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩` : c)).join("");
    return "␣".repeat(before) + shown + "␣".repeat(token.length - core.length - before);
  }
  const minus = (text) => text.replace("-", "−");
  function number(value, digits = 3) {
    if (value === null || value === undefined) return "–";
    if (Number.isInteger(value)) return minus(value.toLocaleString("en-US"));
    return minus(value.toPrecision(digits));
  }
  function signed(value, decimals = 3) {
    if (value === null || value === undefined) return "–";
    return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(decimals);
  }

  // ---- Theme: that of the system until the button is pressed ----
  const system = matchMedia("(prefers-color-scheme: dark)");
  const KEY = "bilinear-circuits-theme";
  const dark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  function remembered() {
    try { return localStorage.getItem(KEY); } catch { return null; } // a browser may forbid it for files
  }
  function startTheme() {
    const button = document.getElementById("theme");
    const show = () => {
      button.textContent = dark() ? "Light" : "Dark";
      button.setAttribute("aria-label", dark() ? "Switch to the light theme" : "Switch to the dark theme");
      button.setAttribute("aria-pressed", String(dark()));
      document.dispatchEvent(new Event("themechange"));
    };
    if (["dark", "light"].includes(remembered())) root.dataset.theme = remembered();
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      try { localStorage.setItem(KEY, root.dataset.theme); } catch { /* only for this visit then */ }
      show();
    });
    system.addEventListener("change", show);
    show();
  }

  // ---- Tooltips: data-tip of whatever is under the pointer or has the focus ----
  const tip = { element: document.createElement("div"), owner: null };
  function showTip(owner) {
    if (!owner || !owner.dataset.tip) { hideTip(); return; }
    tip.owner = owner;
    tip.element.textContent = owner.dataset.tip;
    tip.element.hidden = false;
    placeTip();
  }
  function placeTip() {
    if (!tip.owner) return;
    const at = tip.owner.getBoundingClientRect(), own = tip.element.getBoundingClientRect();
    const left = Math.min(Math.max(6, at.left + at.width / 2 - own.width / 2), innerWidth - own.width - 6);
    const above = at.top - own.height - 6;
    tip.element.style.left = `${left}px`;
    tip.element.style.top = `${above > 0 ? above : at.bottom + 6}px`;
  }
  function hideTip() {
    tip.owner = null;
    tip.element.hidden = true;
  }
  function startTips() {
    tip.element.className = "tip";
    tip.element.id = "tip";
    tip.element.setAttribute("role", "tooltip");
    tip.element.hidden = true;
    document.body.append(tip.element);
    const owner = (event) => (event.target instanceof Element ? event.target.closest("[data-tip]") : null);
    document.addEventListener("pointerover", (event) => showTip(owner(event)));
    document.addEventListener("focusin", (event) => showTip(owner(event)));
    document.addEventListener("focusout", hideTip);
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
    // Focus by the keyboard scrolls the page: the tooltip goes along.
    document.addEventListener("scroll", placeTip, { capture: true, passive: true });
  }

  // ---- Plotly: packed into the page, or a file beside it ----
  async function unpack(bundle) {
    const bytes = Uint8Array.from(atob(bundle.textContent.trim()), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }
  function loadPlotly() {
    const bundle = document.getElementById("plotly-bundle"), asset = document.getElementById("plotly-asset");
    if (bundle) return unpack(bundle);
    if (!asset) return Promise.reject(new Error("this page has no plotly"));
    if (window.Plotly) return Promise.resolve();
    return new Promise((resolve, reject) => {
      asset.addEventListener("load", resolve);
      asset.addEventListener("error", () => reject(new Error("plotly.min.js is not beside the report")));
    });
  }
  function themed(spec) {
    const { data: traces, layout } = structuredClone(spec);
    layout.font.color = colour("--ink");
    layout.hoverlabel = {
      bgcolor: colour("--panel"), bordercolor: colour("--line"), font: { color: colour("--ink") }, align: "left",
    };
    layout.modebar = { bgcolor: "transparent", color: colour("--soft"), activecolor: colour("--ink") };
    for (const [name, axis] of Object.entries(layout)) {
      if (!/^[xy]axis\d*$/.test(name)) continue;
      axis.gridcolor = colour("--line");
      axis.zerolinecolor = colour("--soft");
    }
    for (const trace of traces) {
      if (trace.zmid === 0) trace.colorscale[1][1] = colour("--neutral");
    }
    return { data: traces, layout };
  }
  async function plot(element, spec) {
    plotly ??= loadPlotly();
    await plotly;
    const figure = themed(spec);
    const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };
    await Plotly.react(element, figure.data, figure.layout, config);
    drawn.set(element, spec);
  }
  async function drawAll() {
    let n = 0;
    for (const place of document.querySelectorAll("[data-figure]")) {
      try {
        await plotly;
        place.querySelector(".waiting")?.remove();
        await plot(place, data("figure-" + place.dataset.figure));
        n += 1;
      } catch (error) {
        place.textContent = "This figure could not be drawn (" + error.message + "). Its numbers are listed below.";
      }
    }
    root.dataset.drawn = n;
  }

  // ---- Folded parts: open where a link leads into one, and all of them on paper ----
  function unfold() {
    let target = null;
    try { target = document.getElementById(decodeURIComponent(location.hash.slice(1))); } catch { return; }
    for (let part = target?.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
    if (target?.closest("details")) target.scrollIntoView();
  }
  function startFolds() {
    unfold();
    addEventListener("hashchange", unfold);
    document.addEventListener("click", (event) => { // a second click on a link changes no hash
      const link = event.target instanceof Element ? event.target.closest("a[href^='#']") : null;
      if (link && link.hash === location.hash) unfold();
    });
    const closed = new Set();
    addEventListener("beforeprint", () => {
      for (const part of document.querySelectorAll("details:not([open])")) { closed.add(part); part.open = true; }
    });
    addEventListener("afterprint", () => {
      for (const part of closed) part.open = false;
      closed.clear();
    });
  }

  function start() {
    startFolds();
    startTips();
    startTheme();
    document.addEventListener("themechange", () => {
      for (const [element, spec] of drawn) if (element.isConnected) plot(element, spec);
    });
    if (document.querySelector("[data-figure]")) {
      plotly = loadPlotly();
      drawAll();
    }
  }
  start();
  return { data, colour, plot, visible, number, signed, tip: { show: showTip, hide: hideTip } };
})();
