"use strict";
// The explorer's one namespace: its document, its state, and the few ways in which elements are made.
// Views add themselves to `explorer.views`; explorer.js, the last script, starts them.
const explorer = (() => {
  const documentData = page.data("explorer-data");
  const views = []; // {uses: [names of state], draw(), highlight(pair)}

  // What the reader looks at. All of it but the pair stands in the address, so that a link opens the same view.
  const state = {
    circuit: 0, view: "matrix", order: "cluster", values: "weights", threshold: null, zoom: "all",
    prompt: null, token: null,
  };

  const circuit = () => documentData.circuits[state.circuit];
  const prompt = () => documentData.prompts[state.prompt] ?? null;

  function set(changes) {
    const changed = Object.keys(changes).filter((name) => state[name] !== changes[name]);
    Object.assign(state, changes);
    if (changed.length) draw(changed);
  }

  function draw(changed) {
    for (const view of views) if (view.uses.some((name) => changed.includes(name))) view.draw();
    writeHash();
  }

  // ---- State in the address ----
  const NUMBERS = ["threshold", "prompt", "token"];
  function writeHash() {
    const shown = new URLSearchParams({ circuit: circuit().name });
    for (const [name, value] of Object.entries(state)) {
      if (name !== "circuit" && value !== null) shown.set(name, value);
    }
    history.replaceState(null, "", "#" + shown.toString().replaceAll("%2F", "/"));
  }
  function readHash() {
    const asked = new URLSearchParams(location.hash.slice(1)), read = {};
    for (const [name, value] of asked) {
      if (name === "circuit") {
        const index = documentData.circuits.findIndex((one) => one.name === value);
        if (index >= 0) read.circuit = index;
      } else if (NUMBERS.includes(name)) {
        if (/^\d{1,6}$/.test(value)) read[name] = Number(value);
      } else if (choices[name]?.includes(value)) read[name] = value;
    }
    if (!documentData.prompts[read.prompt]) delete read.prompt;
    return read;
  }
  const choices = { // what each part of the address may say
    view: ["matrix", "network", "plane"],
    order: Object.keys(documentData.circuits[0].orders),
    values: ["weights", "everywhere", "active"],
    zoom: ["all", "members"],
  };

  // ---- Elements: text only ever goes in as text ----
  const fill = (element, attributes, children) => {
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("--")) element.style.setProperty(name, value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return element;
  };
  const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const byId = (id) => document.getElementById(id);

  // ---- Names ----
  const label = (text) => text.split(" · ").map(page.visible).join(" · ");
  const shorten = (text, length) =>
    (text.length <= length ? text : text.slice(0, length - 1).replace(/[ ·]+$/, "") + "…");
  const memberName = (member) => `${member.feature} ${label(member.label)}`;
  function featureName(feature) {
    const known = prompt()?.labels?.[circuit().layer]?.[feature];
    const member = circuit().members.find((one) => one.feature === feature);
    const text = known ?? member?.label;
    return text === undefined ? String(feature) : `${feature} ${label(text)}`;
  }
  const letter = (cluster) => String.fromCharCode(65 + cluster);

  // ---- The pair of input features looked at, in all views at once: {a, b} as feature numbers, or null ----
  function point(pair) {
    for (const view of views) view.highlight?.(pair);
  }

  return {
    data: documentData, views, state, circuit, prompt, set, draw, readHash, choices, make, svg, byId,
    label, shorten, memberName, featureName, letter, point,
  };
})();
