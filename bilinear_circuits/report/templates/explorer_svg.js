"use strict";
// What the drawn views share: the values of a cell, the threshold, the line that reads out a pair, saving a drawing.
explorer.drawing = (() => {
  const { make, svg, byId, circuit, state } = explorer;
  const NAMES = {
    weights: "T_ab",
    everywhere: "T_ab × E[z_a z_b], all tokens",
    active: "T_ab × E[z_a z_b], tokens where it is active",
  };
  const FULL = 0.98; // share of cells below full colour: a few very large ones would leave the rest grey
  const PAIRS_AT_FIRST = 80;

  const value = (a, b) => circuit().weights[a][b] * (state.values === "weights" ? 1 : circuit()[state.values][a][b]);

  // Magnitudes of all pairs, each once, falling. Kept until circuit or values change.
  let kept = { key: null };
  function scale() {
    const key = `${state.circuit} ${state.values}`;
    if (kept.key === key) return kept;
    const n = circuit().members.length, sizes = [];
    for (let a = 0; a < n; a += 1) for (let b = a; b < n; b += 1) sizes.push(Math.abs(value(a, b)));
    sizes.sort((x, y) => y - x);
    kept = { key, sizes, most: sizes[0] || 1, limit: sizes[Math.floor((1 - FULL) * sizes.length)] || sizes[0] || 1 };
    return kept;
  }
  // The slider is quadratic: most pairs are weak.
  const sizeAt = (position) => (position / 100) ** 2 * scale().most;
  function position() {
    if (state.threshold !== null) return Math.min(100, state.threshold);
    const { sizes, most } = scale();
    const size = sizes[Math.min(PAIRS_AT_FIRST, sizes.length) - 1];
    return Math.min(100, Math.floor(100 * Math.sqrt(size / most)));
  }
  const cut = () => sizeAt(position());
  const share = (size) => Math.min(1, Math.abs(size) / scale().limit);
  const sign = (size) => (size >= 0 ? "positive" : "negative");

  // ---- The pair under the pointer, in words ----
  const fine = (number) => (number >= 0 ? "+" : "−") + Math.abs(number).toPrecision(3);
  const REST = "Point at a cell, a link or a pair of the ledger, or move with the arrow keys, to read it here.";
  function read(pair) {
    const place = byId("readout");
    if (!pair) { place.replaceChildren(make("p", { class: "soft" }, REST)); return; }
    if (pair.node) { readNode(place, pair.a); return; }
    const { a, b } = pair;
    const names = a === b ? [a] : [a, b];
    const title = make("p", { class: "names" });
    names.forEach((feature, index) => title.append(
      index ? " × " : "", make("span", { class: "token" }, explorer.featureName(feature)),
    ));
    if (a === b) title.append(" × itself");
    place.replaceChildren(title, ...numbers(pair));
  }
  function readNode(place, feature) {
    const { members } = circuit(), index = members.findIndex((one) => one.feature === feature), member = members[index];
    const partners = members.map((one, other) => ({ one, value: value(index, other) }))
      .sort((x, y) => Math.abs(y.value) - Math.abs(x.value)).slice(0, 3);
    const group = ["first group", "second group"][member.group] ?? "in neither group";
    const belongs = `${group}, cluster ${explorer.letter(member.cluster)}`;
    place.replaceChildren(
      make("p", { class: "names" }, make("span", { class: "token" }, explorer.memberName(member)), ` ${belongs}`),
      facts([["mean activation where active", page.number(member.usage)],
        ...partners.map(({ one, value: size }) => [`with ${explorer.memberName(one)}`, fine(size)])]),
    );
  }
  const facts = (rows) =>
    make("dl", {}, rows.map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, text))));
  function numbers({ a, b, weight: times, contribution }) {
    const features = circuit().members.map((member) => member.feature);
    const [row, column] = [features.indexOf(a), features.indexOf(b)];
    const both = row >= 0 && column >= 0;
    const known = both ? (a === b ? 1 : 2) * circuit().weights[row][column] : times;
    const average = (moments) => fine(known * moments[row][column]);
    return [facts([
      ["T_ab", fine(a === b ? known : known / 2)],
      [a === b ? "coefficient of z_a²" : "coefficient of z_a z_b (2 T_ab)", fine(known)],
      ...(contribution === undefined ? [] : [["adds at this token", fine(contribution)]]),
      ...(both ? [["adds on average, all tokens", average(circuit().everywhere)],
        ["adds on average, where active", average(circuit().active)]]
        : [["in the drawing", `no: not both among its ${features.length} input features`]]),
    ])];
  }

  // ---- Saving: a copy with the colours of the theme written into it ----
  const COPIED = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "opacity", "font-size",
    "font-family", "font-weight", "text-anchor", "visibility"];
  function standalone(element) {
    const copy = element.cloneNode(true);
    const from = [element, ...element.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
    from.forEach((one, index) => {
      const style = getComputedStyle(one);
      for (const name of COPIED) to[index].style.setProperty(name, style.getPropertyValue(name));
    });
    const { width, height } = element.viewBox.baseVal;
    const ground = svg("rect", { width, height });
    ground.style.fill = page.colour("--page");
    copy.prepend(ground);
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    return { text: new XMLSerializer().serializeToString(copy), width, height };
  }
  function hand(blob, name) {
    const link = make("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // a busy browser fetches it late
  }
  async function save(element, name, kind) {
    const { text, width, height } = standalone(element);
    const drawn = new Blob([text], { type: "image/svg+xml" });
    if (kind === "svg") { hand(drawn, `${name}.svg`); return; }
    const image = new Image(), url = URL.createObjectURL(drawn);
    image.src = url;
    await image.decode();
    const canvas = make("canvas", { width: 2 * width, height: 2 * height });
    canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
    URL.revokeObjectURL(url);
    canvas.toBlob((blob) => hand(blob, `${name}.png`), "image/png");
  }

  return { NAMES, value, scale, position, sizeAt, cut, share, sign, read, fine, save };
})();
