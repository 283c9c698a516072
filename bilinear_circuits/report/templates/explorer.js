"use strict";
// Starts the explorer: the choice of circuit and its summary, the controls of the views, the tables, the address.
(() => {
  const { data, make, byId, circuit, state, drawing } = explorer;

  // ---- Tabs: arrow keys move among them, as in any tab list ----
  function tabs(list, name, values) {
    const buttons = [...list.querySelectorAll("button")];
    const show = () => buttons.forEach((button, index) => {
      const chosen = values[index] === state[name];
      button.setAttribute("aria-selected", String(chosen));
      button.tabIndex = chosen ? 0 : -1;
    });
    buttons.forEach((button, index) => button.addEventListener("click", () => explorer.set({ [name]: values[index] })));
    list.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const at = (values.indexOf(state[name]) + step + values.length) % values.length;
      explorer.set({ [name]: values[at] });
      buttons[at].focus();
    });
    explorer.views.push({ uses: [name], draw: show });
  }

  // ---- Summary of a circuit ----
  function summarise() {
    const { summary, proof, name } = circuit();
    byId("summary").replaceChildren(
      make("ul", { class: "facts" },
        fact(`${page.number(100 * summary.frequency)} %`, "of tokens active"),
        fact(page.number(summary.rank2_correlation), "rank-2 correlation"),
        fact(page.number(summary.and_shape), "AND shape"),
        fact(page.number(summary.completeness), "completeness"),
        fact(page.number(summary.outliers), "eigenvalues outside the null"),
        spectrum(summary)),
      make("dl", { class: "asked" },
        ...line("acts at", tokens(summary.top_tokens)),
        ...line("reads", reads()),
        ...line("writes", [pole("positive", "promotes "), ...tokens(summary.promoted.map(([token]) => token)),
          make("br"), pole("negative", "suppresses "), ...tokens(summary.suppressed.map(([token]) => token))]),
        ...line("proof", verdict(proof, name))));
  }
  const fact = (value, text) => make("li", {}, make("b", {}, value), make("span", {}, text));
  const line = (name, content) => [make("dt", {}, name), make("dd", {}, content)];
  const pole = (sign, text) => make("span", { class: `pole ${sign}` }, text);
  const tokens = (listed) => listed.flatMap((token) => [make("span", { class: "token" }, page.visible(token)), " "]);

  function reads() {
    const groups = [0, 1].map((group) => circuit().members.filter((member) => member.group === group).slice(0, 4));
    return groups.flatMap((members, group) => members.length ? [
      group ? make("br") : null, make("span", { class: `dot ${["first", "second"][group]}` }),
      ["first group ", "second group "][group],
      ...tokens(members.map((member) => explorer.label(member.label))),
    ] : []);
  }

  function verdict(proof, name) {
    const none = "none here: bilinear-circuits circuits proves circuits by removing them";
    if (!proof) return [make("span", { class: "soft" }, none)];
    const { mean, low, high, n } = proof.removal;
    const words = proof.words.slice(0, 3).join(", ");
    return [`${proof.text}: pushes to the ${proof.pole} pole (${words}, …). Removing ${name} moves it by `,
      make("b", {}, page.signed(mean)), ` nats [${page.signed(low)}, ${page.signed(high)}] at ${n} trigger sites;`,
      ` controls ${page.signed(proof.control.mean)}, cross-entropy ${page.signed(proof.ce_removal.mean, 4)}.`,
      proof.note ? ` ${proof.note[0].toUpperCase()}${proof.note.slice(1)}.` : ""];
  }

  function spectrum({ eigenvalues, semicircle_edge: edge }) {
    const most = Math.max(...eigenvalues.map(Math.abs), 1e-12), height = 20, width = 6;
    const listed = eigenvalues.map((value) => page.signed(value, 4));
    const drawn = explorer.svg("svg", {
      viewBox: `0 0 ${eigenvalues.length * width} ${2 * height}`, class: "spectrum", role: "img", tabindex: 0,
      "aria-label": `Leading eigenvalues: ${listed.join(", ")}`,
      "data-tip": `${listed.slice(0, 6).join("  ")} …\nnull ±${page.number(edge)}`,
    });
    drawn.append(explorer.svg("rect", {
      class: "null", x: 0, width: eigenvalues.length * width,
      y: height * (1 - edge / most), height: (2 * height * edge) / most,
    }));
    eigenvalues.forEach((value, index) => {
      const size = (height * Math.abs(value)) / most;
      drawn.append(explorer.svg("rect", {
        class: drawing.sign(value), x: index * width + 1, width: width - 2,
        y: value >= 0 ? height - size : height, height: size,
      }));
    });
    return make("li", {}, drawn, make("span", {}, `eigenvalues: ${listed.slice(0, 2).join(", ")}, …`));
  }

  // ---- Controls of the views ----
  function startControls() {
    for (const name of ["order", "values", "zoom"]) {
      byId(name).addEventListener("change", (event) => explorer.set(
        name === "values" ? { values: event.target.value, threshold: null } : { [name]: event.target.value },
      ));
    }
    byId("threshold").addEventListener("input", (event) => explorer.set({ threshold: Number(event.target.value) }));
    for (const kind of ["svg", "png"]) {
      byId(`save-${kind}`).addEventListener("click", () => drawing.save(
        byId(`view-${state.view}`).querySelector("svg"), `${state.view}-${circuit().name.replace("/", "-")}`, kind,
      ));
    }
  }
  function showControls() {
    for (const name of ["order", "values", "zoom"]) byId(name).value = state[name];
    byId("order-control").hidden = state.view !== "matrix";
    byId("values-control").hidden = byId("threshold-control").hidden = state.view === "plane";
    byId("threshold").value = drawing.position();
    const { sizes } = drawing.scale(), cut = drawing.cut();
    const kept = sizes.filter((size) => size >= cut).length;
    byId("threshold-text").textContent = `at least ${cut.toPrecision(2)}: ${kept} of ${sizes.length} pairs`;
    for (const one of document.querySelectorAll("[data-view]")) one.hidden = one.dataset.view !== state.view;
  }

  // ---- The same in tables, for those who do not see the drawings ----
  function fillTables() {
    const { members } = circuit(), groups = ["first", "second"], n = members.length, pairs = [];
    byId("members").replaceChildren(...members.map((member) => make("tr", {},
      make("td", {}, explorer.memberName(member)), make("td", {}, groups[member.group] ?? "–"),
      make("td", {}, explorer.letter(member.cluster)), make("td", { class: "n" }, page.number(member.usage)),
      member.projection.map((value) => make("td", { class: "n" }, page.signed(value))))));
    for (let a = 0; a < n; a += 1) for (let b = a; b < n; b += 1) pairs.push({ a, b, value: drawing.value(a, b) });
    pairs.sort((x, y) => Math.abs(y.value) - Math.abs(x.value));
    byId("strongest").replaceChildren(...pairs.slice(0, 40).map(({ a, b, value }) => make("tr", {},
      make("td", {}, explorer.memberName(members[a])), make("td", {}, explorer.memberName(members[b])),
      make("td", { class: "n" }, make("span", { class: `pole ${drawing.sign(value)}` }, drawing.fine(value))))));
    byId("strongest-values").textContent = drawing.NAMES[state.values];
  }

  function start() {
    const circuits = data.circuits.map((_, index) => index);
    tabs(byId("circuits"), "circuit", circuits);
    tabs(byId("views"), "view", explorer.choices.view);
    explorer.views.unshift(
      { uses: ["circuit"], draw: summarise },
      { uses: ["circuit", "view", "order", "values", "threshold", "zoom"], draw: showControls },
      { uses: ["circuit", "values"], draw: fillTables },
      { uses: ["circuit", "view", "prompt"], draw: () => drawing.read(null), highlight: drawing.read },
    );
    Object.assign(state, explorer.readHash());
    startControls();
    explorer.startPrompts();
    explorer.draw(Object.keys(state));
    addEventListener("hashchange", () => explorer.set(explorer.readHash()));
    // Colours come from the style sheet and follow the theme by themselves; drawings are made anew all the same, so
    // that whatever a view once took from the theme is taken again.
    document.addEventListener("themechange", () => explorer.draw(["view"]));
    document.documentElement.dataset.ready = "true";
  }
  start();
})();
