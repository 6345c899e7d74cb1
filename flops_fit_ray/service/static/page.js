// Refreshes the page on events and runs the slider of the prediction. All content and actions work without it.
"use strict";

const source = document.body.dataset.events;
let busy = false, again = false;

async function renew() {
  if (busy) { again = true; return; }
  busy = true;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (answer.ok) swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
    else if (answer.status === 401 || answer.status === 403) location.reload();
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
    slide();
    return;
  }
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (!fresh || old.contains(document.activeElement)) continue;
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
}

const count = (value) => {
  for (const [limit, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= limit * 0.9995) return Number((value / limit).toPrecision(3)) + unit;
  }
  return String(Number(value.toPrecision(3)));
};
const within = (pair) => (pair ? ` [${count(pair[0])}, ${count(pair[1])}]` : "");

function slide() {
  const form = document.querySelector("[data-predict]");
  if (!form) return;
  const slider = form.querySelector("#slider"), field = form.querySelector("#budget"), said = document.getElementById("prediction");
  slider.min = Math.log10(slider.dataset.low);
  slider.max = Math.log10(slider.dataset.high);
  slider.step = "any";
  slider.value = Math.log10(field.value);
  slider.hidden = false;
  let waiting, asked = 0;
  slider.addEventListener("input", () => {
    field.value = Number((10 ** slider.value).toPrecision(3)).toExponential().replace("+", "");
    slider.setAttribute("aria-valuetext", field.value + " FLOPs");
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      const mine = ++asked;
      const answer = await fetch(form.dataset.predict + "?budget=" + encodeURIComponent(field.value));
      const found = await answer.json();
      if (mine !== asked) return;
      const line = document.createElement("p");
      line.textContent = answer.ok
        ? `N = ${count(found.params)}${within(found.params_interval)}, D = ${count(found.tokens)}${within(found.tokens_interval)}, loss ${found.loss.toFixed(4)}` +
          (found.extrapolation > 1 ? `; ${Number(found.extrapolation.toPrecision(3))}x beyond the fitted budgets` : "")
        : found.error;
      const flags = (found.warnings || []).filter((flag) => flag.severity !== "info").map((flag) => {
        const one = document.createElement("p");
        one.className = "warnings";
        one.textContent = flag.message;
        return one;
      });
      said.replaceChildren(line, ...flags);
    }, 150);
  });
}

slide();
await_fit();
if (source) {
  const events = new EventSource(source);
  for (const kind of ["status", "outcome", "sweeps"]) events.addEventListener(kind, renew);
}
