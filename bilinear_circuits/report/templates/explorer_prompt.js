"use strict";
// Prompts: chosen from those computed beforehand or, in a served page, typed; tokens coloured by the feature.
(() => {
  const { data, make, byId, circuit, prompt, state } = explorer;

  // ---- Tokens ----
  // One scale for all prompts, so that a prompt in which the feature is silent looks silent.
  const activations = (one) => one.features[circuit().name]?.activation ?? [];
  const strongest = () => Math.max(...data.prompts.flatMap(activations), 1e-9);

  function draw() {
    drawChoices();
    const asked = prompt(), place = byId("tokens");
    const measured = asked?.features[circuit().name];
    if (!measured) { place.replaceChildren(); return; }
    const most = strongest();
    place.replaceChildren(...asked.tokens.flatMap((token, index) => {
      const value = measured.activation[index];
      const button = make("button", {
        type: "button", class: `token${value ? " on" : ""}`, "--share": Math.min(1, Math.abs(value) / most).toFixed(3),
        "aria-pressed": String(index === state.token),
        "data-tip": `activation ${page.number(value)}\npre-activation ${page.signed(measured.pre_activation[index])}`,
      }, page.visible(token));
      button.addEventListener("click", () => explorer.set({ token: index }));
      return [button, " "];
    }));
  }

  function press() { // only the pressed token changes: the focus stays where it is
    [...byId("tokens").querySelectorAll("button")].forEach((button, index) =>
      button.setAttribute("aria-pressed", String(index === state.token)));
  }

  function drawChoices() {
    const groups = new Map();
    data.prompts.forEach((one, index) => {
      const most = Math.max(0, ...activations(one));
      const option = make("option", { value: index, selected: index === state.prompt },
        `${most ? most.toFixed(2) : "  –  "}  ${explorer.shorten(page.visible(one.text), 80)}`);
      groups.set(one.source, [...(groups.get(one.source) ?? []), option]);
    });
    byId("prompt").replaceChildren(...[...groups].map(([source, options]) =>
      make("optgroup", { label: source }, ...options)));
  }

  // The token that tells most: where the feature is strongest or, if it is silent, nearest to firing.
  function best(index) {
    const measured = data.prompts[index]?.features[circuit().name];
    if (!measured) return null;
    const { activation, pre_activation: pre } = measured;
    const values = activation.some((value) => value !== 0) ? activation : pre;
    return values.indexOf(Math.max(...values));
  }
  // The prompt to begin with: of those listed first, the one in which the feature is strongest.
  function first() {
    const most = (one) => Math.max(0, ...activations(one));
    const listed = data.prompts.filter((one) => one.source === data.prompts[0].source);
    return data.prompts.indexOf(listed.reduce((best, one) => (most(one) > most(best) ? one : best), listed[0]));
  }
  function choose(index) {
    explorer.set({ prompt: index, token: best(index) });
  }

  // ---- Typing ----
  const plain = (text) => text.trim().toLowerCase().replace(/\s+/g, " ");
  const say = (text, busy = false) => {
    byId("prompt-status").textContent = text;
    byId("prompt-send").disabled = busy;
  };

  async function typed(event) {
    event.preventDefault();
    const text = byId("prompt-text").value.trim();
    if (!text) { say("Type a text first."); return; }
    const known = data.prompts.findIndex((one) => plain(one.text) === plain(text));
    if (known >= 0) { say(""); choose(known); return; }
    if (!data.live) {
      say("This text was not computed beforehand, and a file cannot run the model. bilinear-circuits serve shows this"
        + " page and answers any text.");
      return;
    }
    say("Running the model …", true);
    say(await ask(text));
  }

  // Returns what to tell the reader: nothing if all went well.
  async function ask(text) {
    let reply, answer;
    try {
      reply = await fetch("api/prompt", {
        method: "POST", headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ text, features: data.circuits.map((one) => one.name) }),
      });
      answer = await reply.json();
    } catch {
      return reply ? "The server sent an answer that this page cannot read."
        : "No answer: is bilinear-circuits serve still running?";
    }
    if (reply.status === 503) return "The model is busy with another prompt. Try again in a moment.";
    if (!reply.ok) return `Not computed: ${answer.error ?? "status " + reply.status}`;
    data.prompts.push({ source: "typed here", ...answer });
    choose(data.prompts.length - 1);
    return "";
  }

  function start() {
    byId("prompt").addEventListener("change", (event) => { say(""); choose(Number(event.target.value)); });
    byId("prompt-form").addEventListener("submit", typed);
    state.prompt ??= data.prompts.length ? first() : null;
    state.token ??= best(state.prompt);
  }

  explorer.startPrompts = start;
  explorer.views.push({ uses: ["circuit", "prompt"], draw }, { uses: ["token"], draw: press });
})();
