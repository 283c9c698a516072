"use strict";
// One token of one prompt: every term of the feature's pre-activation, the pairs that made the first of them, and what
// the edit does to the next token.
(() => {
  const { make, byId, circuit, prompt, state, drawing } = explorer;

  function draw() {
    const place = byId("ledger"), at = state.token, asked = prompt();
    const measured = asked?.features[circuit().name];
    if (!measured || at === null || at >= asked.tokens.length) {
      place.replaceChildren(make("p", { class: "soft" }, measured
        ? "Choose a token: its ledger and the next tokens appear here."
        : "This prompt was not computed for this feature."));
      return;
    }
    const position = measured.positions[at];
    place.replaceChildren(
      heading(asked, measured, at), terms(position), pairs(position), nextTokens(asked, measured.edit, at),
    );
  }

  function heading(asked, measured, at) {
    const activation = measured.activation[at], pre = measured.pre_activation[at];
    return make("p", { class: "outcome" },
      circuit().name, " at ", make("span", { class: "token" }, page.visible(asked.tokens[at])), ": ",
      make("b", {}, `activation ${page.number(activation)}`),
      activation ? "" : " (the dictionary does not keep it here)", `, pre-activation ${page.signed(pre)}.`);
  }

  // A table whose last column is a bar from zero; blue to the right adds, orange to the left takes away.
  function bars(caption, rows, limit) {
    const body = make("tbody");
    for (const row of rows) {
      const cells = make("tr", { class: row.kind, tabindex: row.pair ? 0 : null, "data-tip": row.tip },
        make("th", { scope: "row" }, row.name), make("td", { class: "n" }, page.signed(row.value)),
        make("td", { class: "bar" }, row.bare ? null : make("span", {
          class: drawing.sign(row.value), "--share": Math.min(1, Math.abs(row.value) / limit).toFixed(3),
        })));
      if (row.pair) {
        for (const name of ["pointerenter", "focus"]) cells.addEventListener(name, () => explorer.point(row.pair));
        for (const name of ["pointerleave", "blur"]) cells.addEventListener(name, () => explorer.point(null));
      }
      body.append(cells);
    }
    return make("table", { class: "bars" }, make("caption", {}, caption), body);
  }
  const largest = (rows) => Math.max(...rows.map((row) => Math.abs(row.value)), 1e-12);

  function terms(position) {
    const listed = Object.entries(position.terms), rows = [], none = [];
    for (const [name, value] of listed) {
      if (value === 0) none.push(name.replaceAll("_", " × "));
      else rows.push({ name: explorer.data.terms[name] ?? name, value, tip: name, kind: `term ${name}` });
    }
    const total = listed.reduce((sum, [, value]) => sum + value, 0);
    rows.push({ name: "sum = pre-activation", value: total, kind: "sum" });
    const table = bars("Ledger: every term of the pre-activation", rows, largest(rows));
    const silent = make("span", { class: "soft" }, ` · ${none.length} terms are 0`);
    if (none.length) table.querySelector("caption").append(silent);
    return table;
  }

  const short = (feature) => explorer.shorten(explorer.featureName(feature), 30);
  function pairs(position) {
    const rows = position.pairs.map(([a, b, weight, contribution]) => ({
      name: [make("span", {}, short(a)), make("span", {}, a === b ? "× itself" : `× ${short(b)}`)],
      value: contribution, pair: { a, b, weight, contribution }, kind: "duo",
      tip: `${explorer.featureName(a)} × ${explorer.featureName(b)}\n`
        + `coefficient ${drawing.fine(weight)} × activations = ${page.signed(contribution, 4)}`,
    }));
    const limit = largest(rows), others = position.n_pairs - rows.length;
    // Sums are much longer than single pairs: they have no bar, so that those of the pairs can be compared.
    if (others > 0) rows.push({ name: `${others} other pairs`, value: position.rest, kind: "rest", bare: true });
    const total = rows.reduce((sum, row) => sum + row.value, 0);
    rows.push({ name: "sum = pairs of input features", value: total, kind: "sum", bare: true });
    return bars("Pairs of input features that made the first term", rows, limit);
  }

  // ---- Next tokens before and after the edit ----
  function nextTokens(asked, edit, at) {
    const next = edit.next[at], known = new Map();
    const entry = (token) => known.get(token) ?? known.set(token, { token, before: null, after: null }).get(token);
    for (const [token, p] of next.before) entry(token).before = p;
    for (const [token, p] of next.after) entry(token).after = p;
    for (const [token, before, after] of next.changed) Object.assign(entry(token), { before, after });
    const rows = [...known.values()].sort((x, y) => Math.max(y.before, y.after) - Math.max(x.before, x.after));
    const most = Math.max(...rows.map((row) => Math.max(row.before, row.after)), 1e-12);
    const read = asked.tokens.slice(Math.max(0, at - 5), at + 1).map(page.visible).join(" ");
    return make("div", {},
      make("table", { class: "next" },
        make("caption", {}, "Next token after ", make("span", { class: "token" }, `${at > 5 ? "… " : ""}${read}`),
          `, before and after the edit: KL ${next.kl < 5e-5 ? "below 0.0001" : next.kl.toFixed(4)} nats`),
        make("thead", {}, make("tr", {}, ["token", "", "probability", "points"].map((name, index) =>
          make("th", { scope: "col", class: index > 1 ? "n" : null }, name)))),
        make("tbody", {}, rows.map((row) => nextRow(row, most)))),
      make("p", { class: "soft key" }, make("span", { class: "swatch before" }), "before  ",
        make("span", { class: "swatch after" }), `after: ${edit.description}`));
  }
  const percent = (p) => (p === null ? "–" : `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)} %`);
  function nextRow({ token, before, after }, most) {
    const both = before !== null && after !== null, change = after - before;
    const size = (p) => ((p ?? 0) / most).toFixed(3);
    const oneSided = "listed on one side only: not among the eight likeliest on the other";
    return make("tr", { "data-tip": both ? null : oneSided },
      make("th", { scope: "row" }, make("span", { class: "token" }, page.visible(token))),
      make("td", { class: "paired" }, make("span", { class: "before", "--share": size(before) }),
        make("span", { class: "after", "--share": size(after) })),
      make("td", { class: "n" }, `${percent(before)} → ${percent(after)}`),
      make("td", { class: "n" }, both && Math.abs(change) >= 0.0005
        ? make("span", { class: `pole ${drawing.sign(change)}` }, page.signed(100 * change, 1)) : ""));
  }

  explorer.views.push({ uses: ["circuit", "prompt", "token"], draw });
})();
