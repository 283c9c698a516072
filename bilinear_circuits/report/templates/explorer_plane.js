"use strict";
// Decoder rows of the input features on the two leading eigenvectors. The form is lambda_1 p_1^2 + lambda_2 p_2^2
// there: what lies along an axis adds to the feature or takes away from it, by the sign of the eigenvalue.
(() => {
  const { svg, byId, circuit, state } = explorer;
  const WIDTH = 760, HEIGHT = 560, NAMES_WIDTH = 172, TOP = 16, BOTTOM = 40, LABEL = 23;
  let marks = []; // element of each member
  let left = 0, right = WIDTH; // where names end and the plane begins

  const points = () => circuit().members.map(({ projection }) => [projection[0], projection[projection.length - 1]]);

  function draw() {
    const host = byId("view-plane");
    byId("zoom-control").hidden = state.view !== "plane";
    if (state.view !== "plane") { host.hidden = true; return; }
    host.hidden = false;
    const own = points(), cloud = state.zoom === "all" ? circuit().cloud : [];
    const named = (side) => circuit().members.some((member, index) =>
      member.group >= 0 && (own[index][0] > 0) === side);
    left = named(false) ? NAMES_WIDTH : 12;
    right = WIDTH - (named(true) ? NAMES_WIDTH : 12);
    const to = scales([...own, ...cloud]);
    const root = svg("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "plane", role: "group",
      "aria-label": `Input features of ${circuit().name} on the two leading eigenvectors; the table below lists them`,
    });
    drawAxes(root, to);
    for (const [x, y, feature] of circuit().cloud) {
      const [across, down] = to(x, y);
      if (across < left || across > right || down < TOP || down > HEIGHT - BOTTOM) continue;
      root.append(svg("circle", {
        class: "cloud", cx: across.toFixed(1), cy: down.toFixed(1), r: 1.8, "data-tip": `input feature ${feature}`,
      }));
    }
    nameGroups(root, own, to);
    marks = circuit().members.map((member, index) => drawMember(root, member, to(...own[index])));
    root.addEventListener("pointerleave", () => explorer.point(null));
    host.replaceChildren(root);
  }

  function scales(all) {
    const range = (axis) => {
      const values = all.map((point) => point[axis]), low = Math.min(0, ...values), high = Math.max(0, ...values);
      const margin = 0.06 * (high - low || 1);
      return [low - margin, high + margin];
    };
    const [x0, x1] = range(0), [y0, y1] = range(1);
    const wide = right - left, tall = HEIGHT - TOP - BOTTOM;
    return (x, y) => [left + (wide * (x - x0)) / (x1 - x0), TOP + (tall * (y1 - y)) / (y1 - y0)];
  }

  function drawAxes(root, to) {
    const [x, y] = to(0, 0), [first, second] = circuit().summary.eigenvalues;
    const line = (attributes) => svg("line", { class: "axis", ...attributes });
    root.append(
      line({ x1: left, x2: right, y1: y, y2: y }), line({ x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }),
      svg("text", { class: "legend middle", x: (left + right) / 2, y: HEIGHT - 14 }, title(1, first)),
    );
    if (second !== undefined) {
      root.append(svg("text", { class: "legend middle", x: x, y: 8 }, title(2, second)));
    }
  }
  const title = (number, eigenvalue) =>
    `projection on v${number}, eigenvalue ${page.signed(eigenvalue, 4)} (${eigenvalue >= 0 ? "adds" : "takes away"})`;

  // Names stand in two columns at the sides, each joined to its point: the members of a group lie close together.
  function nameGroups(root, own, to) {
    const { members } = circuit();
    const named = members.map((member, index) => ({ member, spot: to(...own[index]) }))
      .filter((one) => one.member.group >= 0);
    const middle = to(0, 0)[0];
    for (const side of [0, 1]) {
      const column = named.filter((one) => (one.spot[0] > middle) === Boolean(side))
        .sort((a, b) => a.spot[1] - b.spot[1]);
      column.forEach(({ member, spot }, place) => {
        const y = TOP + ((HEIGHT - TOP - BOTTOM) * (place + 0.5)) / column.length;
        const x = side ? right + 10 : left - 10;
        root.append(
          svg("line", { class: "leader", x1: spot[0], y1: spot[1], x2: x, y2: y }),
          svg("text", {
            class: `name ${["first", "second"][member.group]}`, x: side ? x + 4 : x - 4, y,
            "text-anchor": side ? "start" : "end",
          }, explorer.shorten(explorer.memberName(member), LABEL)),
        );
      });
    }
  }

  function drawMember(root, member, [x, y]) {
    const group = ["first", "second"][member.group] ?? "other";
    const [first, second] = member.projection;
    const mark = svg("circle", {
      class: `member ${group}`, cx: x.toFixed(1), cy: y.toFixed(1), r: member.group < 0 ? 4 : 6,
      tabindex: 0, role: "img",
      "aria-label": `${explorer.memberName(member)}, v1 ${page.signed(first)}, v2 ${page.signed(second)}`,
      "data-tip": `${explorer.memberName(member)}\nv1 ${page.signed(first)}, v2 ${page.signed(second)}`,
    });
    const here = () => explorer.point({ a: member.feature, b: member.feature, node: true });
    mark.addEventListener("pointerenter", here);
    mark.addEventListener("focus", here);
    mark.addEventListener("blur", () => explorer.point(null));
    root.append(mark);
    return mark;
  }

  function highlight(pair) {
    if (state.view !== "plane") return;
    circuit().members.forEach(({ feature }, index) =>
      marks[index]?.classList.toggle("lit", pair !== null && (feature === pair.a || feature === pair.b)));
  }

  explorer.views.push({ uses: ["circuit", "view", "zoom"], draw, highlight });
})();
