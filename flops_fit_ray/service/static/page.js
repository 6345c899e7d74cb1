// Refreshes the page on events, moves the slider of C, searches while one types. All content and actions work without it.
"use strict";

const source = document.body.dataset.events;
let busy = false, again = false;

async function renew() {
  if (busy) { again = true; return; }
  busy = true;
  const asked = location.href;
  try {
    const answer = await fetch(asked, { headers: { accept: "text/html" } });
    if (answer.ok && asked === location.href) swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
    else if (answer.status === 401 || answer.status === 403) location.reload();
    if (asked !== location.href) again = true;
  } catch { /* the service is down; EventSource reconnects when it is back */ }
  busy = false;
  await_fit();
  if (again) { again = false; setTimeout(renew, 500); }
}

let waits;
function await_fit() { // a newer fit is running, and no event is sent when it is done
  clearTimeout(waits);
  if (document.querySelector("[data-stale]")) waits = setTimeout(renew, 2000);
}

function swap(page) {
  const missing = [...page.querySelectorAll("main > section, main > div")].some((s) => s.id && !document.getElementById(s.id));
  if (missing && !document.querySelector("main :focus")) {
    document.querySelector("main").replaceWith(document.importNode(page.querySelector("main"), true));
    enliven();
    return;
  }
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (!fresh || old.contains(document.activeElement) || old.querySelector(":popover-open")) continue;
    old.toggleAttribute("data-stale", fresh.hasAttribute("data-stale"));
    if (fresh.innerHTML === old.dataset.was) continue;
    const was = fresh.innerHTML;
    for (const open of old.querySelectorAll("details[open]")) {
      const same = open.id && fresh.querySelector("#" + CSS.escape(open.id));
      if (same) same.open = true;
    }
    old.replaceChildren(...document.importNode(fresh, true).childNodes);
    old.hidden = fresh.hidden;
    old.dataset.was = was;
  }
  slide();
  for (const figure of document.querySelectorAll("[data-chart]")) {
    const fresh = page.getElementById(figure.id);
    if (fresh) figure.dataset.src = fresh.dataset.src;
  }
  if (typeof charts !== "undefined") charts.update();
}

function ask(changed) { // the address is what is shown, so that it can be reloaded and sent to others
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(changed)) {
    if (value) url.searchParams.set(name, value);
    else url.searchParams.delete(name);
  }
  history.replaceState(null, "", url);
}

const within = (pair, word) => (pair ? `[${word(pair[0])}, ${word(pair[1])}]` : "no interval");

function show(found) {
  const loss = (value) => value.toFixed(4);
  const said = {
    params: count(found.params), params_interval: within(found.params_interval, count),
    tokens: count(found.tokens), tokens_interval: within(found.tokens_interval, count),
    loss: loss(found.loss), loss_interval: within(found.loss_interval, loss), budget: flops(found.budget),
    ratio: plain(Number((found.tokens / found.params).toPrecision(3))),
    serving: found.serving ? `${count(found.serving.tokens)} tokens served for ${flops(found.serving.cost)} FLOPs, ${flops(found.serving.total)} in all; `
      + `the same loss by the best training alone (N = ${count(found.serving.training_alone.params)}) costs x${Number(found.serving.training_alone.factor.toPrecision(3))}` : "",
    far: found.extrapolation > 1 ? `${Number(found.extrapolation.toPrecision(3))}x beyond the fitted budgets` : "within the fitted budgets",
  };
  for (const [name, text] of Object.entries(said)) {
    for (const place of document.querySelectorAll(`#prediction [data-of="${name}"]`)) place.textContent = text;
  }
  const flags = (found.warnings || []).filter((flag) => flag.severity !== "info");
  document.getElementById("prediction-warnings").replaceChildren(...flags.map((flag) =>
    Object.assign(document.createElement("p"), { className: "warnings", textContent: flag.message })));
}

function slide() {
  const form = document.querySelector("[data-predict]");
  if (!form) return;
  const slider = form.querySelector("#slider"), field = form.querySelector("#budget");
  if (!slider.hidden) return; // it is alive
  slider.min = Math.log10(slider.dataset.low);
  slider.max = Math.log10(slider.dataset.high);
  slider.step = "any";
  slider.value = Math.log10(field.value);
  slider.hidden = false;
  let waiting, asked = 0;
  slider.addEventListener("input", () => {
    field.value = flops(10 ** slider.value);
    slider.setAttribute("aria-valuetext", field.value + " FLOPs");
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      const mine = ++asked;
      const question = { budget: field.value, served: form.querySelector("#served").value.trim() };
      ask(question);
      if (!question.served) delete question.served;
      const answer = await fetch(form.dataset.predict + "?" + new URLSearchParams(question));
      if (mine === asked && answer.ok) show(await answer.json());
    }, 150);
  });
}

function search() {
  const field = document.getElementById("find");
  if (!field) return;
  let waiting;
  field.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { ask({ find: field.value.trim(), offset: "" }); renew(); }, 250);
  });
}

function enliven() {
  slide();
  search();
  if (typeof charts !== "undefined") charts.update();
  await_fit();
}

enliven();
if (source) {
  const events = new EventSource(source);
  for (const kind of ["status", "outcome", "sweeps"]) events.addEventListener(kind, renew);
}
