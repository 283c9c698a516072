"use strict";
// The circuit as a network: input features in two columns, the two factors of the form, and a link for every pair
// above the threshold. A product of two groups shows as links from one column to the other.
(() => {
  const { svg, byId, circuit, state, drawing } = explorer;
  const WIDTH = 760, ROW = 25, TOP = 34, LEFT = 222, RIGHT = WIDTH - LEFT, LABEL = 29;
  const SIDES = ["more along the first factor", "more along the second factor"];
  let spots = []; // {x, y} of each member
  let nodes = [];
  let links = []; // {a, b, element}

  function draw() {
    const host = byId("view-network");
    if (state.view !== "network") { host.hidden = true; return; }
    host.hidden = false;
    const height = place();
    const root = svg("svg", {
      viewBox: `0 0 ${WIDTH} ${height}`, class: "network", role: "group",
      "aria-label": `Network of ${spots.length} input features of ${circuit().name}; the table below lists the links`,
    });
    SIDES.forEach((title, side) => root.append(svg("text", {
      class: "legend side", x: side ? RIGHT : LEFT, y: 12, "text-anchor": side ? "start" : "end",
    }, title)));
    links = drawLinks(root);
    nodes = circuit().members.map((member, index) => drawNode(root, member, index));
    root.addEventListener("pointerleave", () => explorer.point(null));
    host.replaceChildren(root);
  }

  // Each column in the order of the clusters, with a gap between them. Returns the height of the drawing.
  function place() {
    const { members, orders } = circuit();
    spots = [];
    const bottoms = [0, 1].map((side) => {
      let y = TOP, before = null;
      for (const index of orders.cluster) {
        const member = members[index];
        if (member.side !== side) continue;
        if (before !== null && before !== member.cluster) y += ROW / 2;
        spots[index] = { x: side ? RIGHT : LEFT, y, side, starts: before !== member.cluster };
        before = member.cluster;
        y += ROW;
      }
      return y;
    });
    return Math.max(...bottoms) + 6;
  }

  function drawLinks(root) {
    const n = spots.length, cut = drawing.cut(), drawn = [];
    for (let a = 0; a < n; a += 1) for (let b = a; b < n; b += 1) {
      const value = drawing.value(a, b);
      if (Math.abs(value) >= cut && value !== 0) drawn.push({ a, b, value });
    }
    drawn.sort((x, y) => Math.abs(x.value) - Math.abs(y.value)); // the strongest on top
    for (const link of drawn) {
      const share = drawing.share(link.value);
      link.element = svg("path", {
        d: path(spots[link.a], spots[link.b]), class: `link ${drawing.sign(link.value)}`,
        "stroke-width": (0.6 + 4.4 * share).toFixed(2), "--strength": (0.3 + 0.6 * share).toFixed(2),
      });
      link.element.addEventListener("pointerenter", () => pointAt(link.a, link.b));
      root.append(link.element);
    }
    return drawn;
  }

  // Between the columns an S; inside one a bow towards the middle, the wider the longer; to itself a loop.
  function path(from, to) {
    const inward = (spot) => (spot.side ? -1 : 1), x = (spot) => spot.x + 7 * inward(spot);
    if (from === to) {
      const out = 26 * inward(from);
      return `M${x(from)} ${from.y} c${out} -13 ${out} 13 0 0.1`;
    }
    if (from.side === to.side) {
      const bow = x(from) + inward(from) * Math.min(150, 18 + 0.42 * Math.abs(from.y - to.y));
      return `M${x(from)} ${from.y} C${bow} ${from.y} ${bow} ${to.y} ${x(to)} ${to.y}`;
    }
    const middle = WIDTH / 2;
    return `M${x(from)} ${from.y} C${middle} ${from.y} ${middle} ${to.y} ${x(to)} ${to.y}`;
  }

  function drawNode(root, member, index) {
    const { x, y, side, starts } = spots[index];
    const most = Math.max(...circuit().members.map((one) => one.usage)) || 1;
    const group = ["first", "second"][member.group] ?? "other";
    const outward = side ? 1 : -1;
    const degree = links.filter((link) => link.a === index || link.b === index).length;
    const node = svg("g", {
      class: "node", tabindex: 0, role: "img",
      "aria-label": `${explorer.memberName(member)}, cluster ${explorer.letter(member.cluster)}, ${degree} links`,
    },
      svg("rect", { class: "reach", x: side ? x - 8 : 0, y: y - ROW / 2, width: LEFT + 8, height: ROW }),
      svg("circle", { cx: x, cy: y, r: (3 + 4 * Math.sqrt(member.usage / most)).toFixed(1), class: group }),
      svg("text", { x: x + 12 * outward, y, class: "name", "text-anchor": side ? "start" : "end" },
        explorer.shorten(explorer.memberName(member), LABEL)),
    );
    const letter = svg("text", { class: "letter", x: side ? WIDTH - 8 : 8, y }, explorer.letter(member.cluster));
    if (starts) node.append(letter);
    const alone = () => pointAt(index, index, true);
    node.addEventListener("pointerenter", alone);
    node.addEventListener("focus", alone);
    node.addEventListener("blur", () => explorer.point(null));
    root.append(node);
    return node;
  }

  function pointAt(a, b, node = false) {
    const { members } = circuit();
    explorer.point({ a: members[a].feature, b: members[b].feature, node });
  }

  // A node lights up all its links, a pair its one link.
  function highlight(pair) {
    if (state.view !== "network") return;
    const features = circuit().members.map((member) => member.feature);
    const [a, b] = pair ? [features.indexOf(pair.a), features.indexOf(pair.b)] : [-1, -1];
    const some = a >= 0 || b >= 0;
    byId("view-network").firstElementChild?.classList.toggle("dimmed", some);
    const lit = new Set([a, b]);
    for (const link of links) {
      const on = pair?.node ? link.a === a || link.b === a : link.a === Math.min(a, b) && link.b === Math.max(a, b);
      link.element.classList.toggle("lit", some && on);
      if (pair?.node && on) lit.add(link.a).add(link.b);
    }
    nodes.forEach((node, index) => node.classList.toggle("lit", lit.has(index)));
  }

  explorer.views.push({ uses: ["circuit", "view", "values", "threshold"], draw, highlight });
})();
