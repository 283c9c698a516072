"use strict";
// The interaction matrix: one cell per pair of input features, in the order asked for, weak cells faded.
(() => {
  const { svg, byId, circuit, state, drawing } = explorer;
  const CELL = 14, LEFT = 214, TOP = 44, LABEL = 31;
  const LEAST = 660; // width: few cells stay as small as many, and the legend has room
  let cells = []; // cells[row][column] in the order of the members
  let names = [];
  let places = []; // place on the page of each member
  let cursor = null; // [place, place] under the arrow keys

  function draw() {
    const host = byId("view-matrix");
    if (state.view !== "matrix") { host.hidden = true; return; }
    host.hidden = false;
    const { members, orders } = circuit();
    const order = orders[state.order], n = order.length, side = n * CELL;
    places = [];
    order.forEach((member, place) => { places[member] = place; });
    cursor = null;
    const root = svg("svg", {
      viewBox: `0 0 ${Math.max(LEAST, LEFT + side + 8)} ${TOP + side + 26}`, class: "matrix", tabindex: 0, role: "img",
      "aria-label": `Interactions between ${n} input features of ${circuit().name}. Arrow keys move from cell to cell.`
        + " The table below lists the strongest.",
    });
    names = members.map((member, index) => drawName(root, member, index, side));
    cells = members.map((_, row) => members.map((__, column) => drawCell(root, row, column)));
    if (state.order === "cluster") markClusters(root, order, side);
    drawLegend(root, side);
    root.append(svg("rect", { class: "frame", width: CELL, height: CELL, visibility: "hidden" }));
    listen(root);
    host.replaceChildren(root);
    fade();
  }

  function drawName(root, member, index, side) {
    const at = places[index] * CELL + CELL / 2;
    const group = ["first", "second"][member.group] ?? "other";
    const row = svg("text", { x: LEFT - 12, y: TOP + at, class: "row name" },
      explorer.shorten(explorer.memberName(member), LABEL));
    const column = svg("text", { transform: `translate(${LEFT + at} ${TOP - 6}) rotate(-90)`, class: "column name" },
      String(member.feature));
    root.append(svg("rect", { x: LEFT - 8, y: TOP + at - CELL / 2 + 1, width: 5, height: CELL - 2, class: group }),
      row, column);
    return [row, column];
  }

  function drawCell(root, row, column) {
    const value = drawing.value(row, column);
    const cell = svg("rect", {
      x: LEFT + places[column] * CELL + 0.5, y: TOP + places[row] * CELL + 0.5, width: CELL - 1, height: CELL - 1,
      class: `pair ${drawing.sign(value)}`, "--share": drawing.share(value).toFixed(3),
      "data-row": row, "data-column": column,
    });
    root.append(cell);
    return cell;
  }

  // Clusters are boxes on the diagonal, each with its letter; a line goes through all rows and columns between them.
  function markClusters(root, order, side) {
    const { members } = circuit();
    let start = 0;
    for (let place = 1; place <= order.length; place += 1) {
      const cluster = members[order[start]].cluster;
      if (place < order.length && members[order[place]].cluster === cluster) continue;
      const from = start * CELL, size = (place - start) * CELL;
      if (place < order.length) {
        const line = { class: "between" };
        root.append(svg("line", { ...line, x1: LEFT, x2: LEFT + side, y1: TOP + from + size, y2: TOP + from + size }),
          svg("line", { ...line, y1: TOP, y2: TOP + side, x1: LEFT + from + size, x2: LEFT + from + size }));
      }
      root.append(svg("rect", { class: "cluster", x: LEFT + from, y: TOP + from, width: size, height: size }),
        svg("text", { class: "letter", x: LEFT + from + size / 2, y: 10 }, explorer.letter(cluster)));
      start = place;
    }
  }

  function drawLegend(root, side) {
    const y = TOP + side + 9, width = 12, steps = 11, limit = drawing.scale().limit;
    for (let step = 0; step < steps; step += 1) {
      const value = (2 * step) / (steps - 1) - 1;
      root.append(svg("rect", {
        x: LEFT + 64 + step * width, y, width, height: 10, class: `pair ${drawing.sign(value)}`,
        "--share": Math.abs(value).toFixed(2),
      }));
    }
    root.append(
      svg("text", { x: LEFT + 58, y: y + 5, class: "legend end" }, "−" + limit.toPrecision(2)),
      svg("text", { x: LEFT + 70 + steps * width, y: y + 5, class: "legend" },
        `+${limit.toPrecision(2)}  ${drawing.NAMES[state.values]}`),
    );
  }

  function fade() {
    const cut = drawing.cut();
    cells.forEach((row, a) => row.forEach((cell, b) =>
      cell.classList.toggle("weak", Math.abs(drawing.value(a, b)) < cut)));
  }

  function listen(root) {
    const at = (row, column) => {
      const { members } = circuit();
      explorer.point({ a: members[row].feature, b: members[column].feature });
    };
    root.addEventListener("pointerover", (event) => {
      const { row, column } = event.target.dataset;
      if (row !== undefined) at(Number(row), Number(column));
    });
    root.addEventListener("pointerleave", () => explorer.point(null));
    root.addEventListener("blur", () => explorer.point(null));
    root.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const last = places.length - 1, clamp = (place) => Math.min(last, Math.max(0, place));
      cursor = cursor ? [clamp(cursor[0] + step[0]), clamp(cursor[1] + step[1])] : [0, 0];
      at(places.indexOf(cursor[0]), places.indexOf(cursor[1]));
    });
  }

  function highlight(pair) {
    if (state.view !== "matrix") return;
    const frame = byId("view-matrix").querySelector(".frame");
    names.flat().forEach((name) => name.classList.remove("chosen"));
    const features = circuit().members.map((member) => member.feature);
    const [row, column] = pair ? [features.indexOf(pair.a), features.indexOf(pair.b)] : [-1, -1];
    for (const place of [row, column]) if (place >= 0) names[place].forEach((name) => name.classList.add("chosen"));
    const both = row >= 0 && column >= 0;
    frame.setAttribute("visibility", both ? "visible" : "hidden");
    if (!both) return;
    frame.setAttribute("x", LEFT + places[column] * CELL);
    frame.setAttribute("y", TOP + places[row] * CELL);
  }

  explorer.views.push(
    { uses: ["circuit", "view", "order", "values"], draw, highlight },
    { uses: ["threshold"], draw: () => { if (state.view === "matrix") fade(); } },
  );
})();
