"use strict";
// The index: rows are searched and sorted in memory, and only as many as are asked for are put into the page.
(async () => {
  const STEP = 100;
  const at = (id) => document.getElementById(id);
  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  async function unpacked(data) {
    if (!data.gzip) return data;
    const bytes = Uint8Array.from(atob(data.gzip), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }
  const data = await unpacked(page.data("features"));
  const WHERE = { tokens: "names and active tokens", promoted: "promoted tokens", suppressed: "suppressed tokens" };
  const lower = (texts) => texts.map((text) => text.toLowerCase());
  const rows = data.rows.map((row) => {
    const [feature, label, state, ...rest] = row;
    const texts = Object.fromEntries(data.texts.map((name, index) => [name, rest[index]]));
    const numbers = Object.fromEntries(data.numbers.map(([name], index) => [name, rest[data.texts.length + index]]));
    const words = Object.fromEntries(data.texts.map((name) => [name, lower(texts[name])]));
    words.tokens = [...words.tokens, ...label.toLowerCase().split(/[\s·]+/), label.toLowerCase()];
    return { feature, label, state, texts, numbers, words };
  });

  // ---- What is asked for, kept in the hash ----
  const DEFAULT = { q: "", in: "tokens", show: "", sort: data.side === "out" ? "outlier" : "added", up: "", n: STEP };
  let asked = { ...DEFAULT };
  function readHash() {
    const given = new URLSearchParams(location.hash.slice(1));
    asked = { ...DEFAULT };
    for (const name of Object.keys(DEFAULT)) if (given.has(name)) asked[name] = given.get(name);
    if (!data.texts.includes(asked.in)) asked.in = "tokens";
    if (!["feature", ...data.numbers.map(([name]) => name)].includes(asked.sort)) asked.sort = DEFAULT.sort;
    if (!["", "usual", "dead", "rare", "dense"].includes(asked.show)) asked.show = "";
    asked.n = Math.min(Math.max(STEP, Math.floor(Number(asked.n)) || STEP), rows.length + STEP);
  }
  function hash() {
    const kept = Object.entries(asked).filter(([name, value]) => String(value) !== String(DEFAULT[name]));
    return new URLSearchParams(kept).toString();
  }
  let waiting = 0; // for the next letter of a search
  function change(part) {
    clearTimeout(waiting);
    asked = { ...asked, n: STEP, q: at("find").value, ...part };
    history.replaceState(null, "", "#" + hash());
    show();
  }

  // ---- Search and sort ----
  const terms = () => asked.q.toLowerCase().split(/\s+/).filter(Boolean);
  function meets(word, term) {
    const whole = term.length > 2 && term.startsWith('"') && term.endsWith('"');
    return whole ? word === term.slice(1, -1) : word.startsWith(term);
  }
  function matches(row, wanted) {
    const words = row.words[asked.in];
    return wanted.every((term) => term === String(row.feature) || words.some((word) => meets(word, term)));
  }
  function chosen() {
    const searched = terms();
    const wanted = (row) => (asked.show === "" ? true : row.state === (asked.show === "usual" ? "" : asked.show));
    const value = (row) => (asked.sort === "feature" ? row.feature : row.numbers[asked.sort]);
    const sign = asked.up ? 1 : -1;
    const size = (one) => (asked.sort === "weight" || asked.sort === "added" ? Math.abs(one) : one);
    return rows.filter((row) => wanted(row) && matches(row, searched)).sort((a, b) => {
      const exact = (row) => searched.length === 1 && searched[0] === String(row.feature);
      if (exact(a) !== exact(b)) return exact(a) ? -1 : 1;
      const x = value(a), y = value(b);
      if (x === null || y === null) return (x === null) - (y === null) || a.feature - b.feature; // unmeasured last
      return sign * (size(x) - size(y)) || a.feature - b.feature;
    });
  }

  // ---- Drawing ----
  const shown = (name, value) => {
    if (value === null) return "–";
    if (name === "frequency") return page.number(100 * value, 3) + " %";
    return name === "weight" || name === "added" ? page.signed(value) : page.number(value, 3);
  };
  const VERB = { promoted: "promotes", suppressed: "suppresses" };
  const written = () => (asked.in === "suppressed" ? "suppressed" : "promoted");
  function shortened(row, name, n) {
    const searched = asked.in === name ? terms() : [];
    const hit = (text) => searched.some((term) => meets(text.toLowerCase(), term));
    return [...row.texts[name].filter(hit), ...row.texts[name].filter((text) => !hit(text))].slice(0, n);
  }
  function drawHead() {
    const line = make("tr");
    const titles = [["feature", "feature", "its number"], ["", "active on", ""]];
    if (data.side === "out") titles.push(["", VERB[written()], ""]);
    for (const [name, title, help] of [...titles, ...data.numbers]) {
      const head = make("th", undefined, name && name !== "feature" ? { class: "n" } : {});
      if (!name) head.textContent = title;
      else {
        const button = make("button", title, { type: "button", "data-tip": help });
        button.addEventListener("click", () => change(
          asked.sort === name ? { up: asked.up ? "" : "1" } : { sort: name, up: name === "feature" ? "1" : "" }));
        if (asked.sort === name) head.setAttribute("aria-sort", asked.up ? "ascending" : "descending");
        head.append(button);
      }
      line.append(head);
    }
    const focused = document.activeElement?.closest("#rows th");
    const place = focused ? [...focused.parentElement.children].indexOf(focused) : -1;
    at("rows").tHead.replaceChildren(line);
    if (place >= 0) line.children[place].querySelector("button")?.focus();
  }
  function tokens(texts, title) {
    const cell = make("td", undefined, { class: "tokens", "data-name": title });
    for (const text of texts) cell.append(make("span", page.visible(text), { class: "token" }), " ");
    return cell;
  }
  function drawRow(row) {
    const line = make("tr");
    const first = make("td", undefined, { class: "first" });
    const here = hash();
    const link = make("a", `${row.feature}`, { href: `features/${row.feature}.html` + (here ? "#from=" + encodeURIComponent(here) : "") });
    first.append(link);
    const name = row.label.split(" · ").map(page.visible).join(" · ");
    const own = row.texts.tokens.slice(0, 3).join(" · ") !== row.label && row.state !== "dead";
    if (own) first.append(" ", make("span", name));
    if (row.state) first.append(" ", make("span", row.state, { class: "flag" }));
    line.append(first, tokens(shortened(row, "tokens", 5), "active on"));
    if (data.side === "out") line.append(tokens(shortened(row, written(), 4), VERB[written()]));
    for (const [key, title] of data.numbers) {
      line.append(make("td", shown(key, row.numbers[key]), { class: "n", "data-name": title }));
    }
    return line;
  }
  function show() {
    const found = chosen();
    const n = Math.min(found.length, asked.n);
    drawHead();
    at("rows").tBodies[0].replaceChildren(...found.slice(0, n).map(drawRow));
    at("count").textContent = found.length
      ? `${page.number(found.length)} of ${page.number(rows.length)} features` + (n < found.length ? `, the first ${n} shown` : "")
      : "No feature matches. Search for the beginning of a token, or a feature number.";
    at("more").hidden = n >= found.length;
    at("more").textContent = `Show ${Math.min(STEP, found.length - n)} more`;
    for (const [id, name] of [["find", "q"], ["where", "in"], ["state", "show"], ["sort", "sort"]]) {
      if (at(id).value !== asked[name]) at(id).value = asked[name];
    }
    at("direction").textContent = asked.up ? "smallest first" : "largest first";
  }

  for (const name of data.texts) at("where").append(make("option", WHERE[name], { value: name }));
  at("where").closest("label").hidden = data.texts.length < 2;
  for (const [name, title] of [["feature", "feature number"], ...data.numbers]) {
    at("sort").append(make("option", title, { value: name }));
  }
  at("find").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => change({}), 80);
  });
  at("choose").addEventListener("submit", (event) => event.preventDefault());
  at("where").addEventListener("change", () => change({ in: at("where").value }));
  at("state").addEventListener("change", () => change({ show: at("state").value }));
  at("sort").addEventListener("change", () => change({ sort: at("sort").value }));
  at("direction").addEventListener("click", () => change({ up: asked.up ? "" : "1" }));
  at("more").addEventListener("click", () => {
    const before = at("rows").tBodies[0].rows.length;
    change({ n: asked.n + STEP });
    at("rows").tBodies[0].rows[before]?.querySelector("a").focus();
  });
  addEventListener("hashchange", () => { readHash(); show(); });
  readHash();
  show();
  document.documentElement.dataset.ready = "1";
})();
