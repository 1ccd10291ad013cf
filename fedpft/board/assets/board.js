// Keeps a page as the server would send it now, without losing what its reader has typed, chosen, unfolded or scrolled to.
"use strict";
const skew = Date.now() / 1000 - Number(document.body.dataset.now);
const said = document.querySelector("header .live");
const fresh = document.createElement("template");

// Times

function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

function count(inside = document) {
  const now = Date.now() / 1000 - skew;
  const write = (time, text) => { if (time.textContent !== text) time.textContent = text; };
  for (const time of inside.querySelectorAll("time[data-ago]")) write(time, `${span(Math.max(0, now - time.dataset.ago))} ago`);
  for (const time of inside.querySelectorAll("time[data-until]")) write(time, time.dataset.until > now ? span(time.dataset.until - now) : "moments");
}

// Changes

function keyOf(node) {
  if (node.nodeType !== Node.ELEMENT_NODE) return "";
  return node.id || node.dataset.group || node.dataset.choice || (node.nodeName === "SECTION" ? node.firstElementChild.textContent : "");
}

const kept = new Set(["open", "hidden", "checked", "selected"]);

// Makes an element what another one is; returns into `changed` the figures that are to be drawn again.
function morph(old, next, changed) {
  if (old.isEqualNode(next)) return;
  if (old.nodeType !== Node.ELEMENT_NODE) { old.data = next.data; return; }
  for (const {name} of [...old.attributes]) if (!next.hasAttribute(name) && !kept.has(name)) old.removeAttribute(name);
  if (old.matches(".plot")) {
    const [was, is] = [old, next].map(plot => plot.querySelector(":scope > script"));
    old.style.height = next.style.height;
    if (was.text !== is.text) { was.text = is.text; changed.add(old); }
    return;
  }
  for (const {name, value} of next.attributes) if (!kept.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  if (old.id !== "rows") morphChildren(old, next, changed);
}

function morphChildren(old, next, changed) {
  let place = old.firstChild;
  for (const child of [...next.childNodes]) {
    const key = keyOf(child);
    let same = place;
    if (key) same = [...old.children].find(other => keyOf(other) === key);
    else if (place && (keyOf(place) || place.nodeName !== child.nodeName)) same = null;
    if (!same || same.nodeName !== child.nodeName) {
      old.insertBefore(child, place);
    } else {
      if (same === place) place = place.nextSibling;
      else old.insertBefore(same, place);
      morph(same, child, changed);
    }
  }
  while (place) {
    const dead = place;
    place = place.nextSibling;
    dead.remove();
  }
}

function apply({parts, order, title}) {
  const changed = new Set(), before = new Set(figures.keys());
  for (const [id, html] of Object.entries(parts)) {
    fresh.innerHTML = html;
    const next = fresh.content.firstElementChild, old = document.getElementById(id);
    if (old) morph(old, next, changed);
    else document.getElementById("rows")?.append(next);
  }
  const rows = document.getElementById("rows");
  if (rows && order) {
    const wanted = new Set(order);
    for (const row of [...rows.children]) if (!wanted.has(row.id)) row.remove();
    order.forEach((id, index) => {
      const row = document.getElementById(id);
      if (row && rows.children[index] !== row) rows.insertBefore(row, rows.children[index] ?? null);
    });
  }
  show([]);
  drawAll([...figures.keys()].filter(plot => changed.has(plot) || !before.has(plot)));
  count();
}

function listen() {
  const query = new URLSearchParams(location.search);
  query.set("have", document.body.dataset.have);
  const events = new EventSource(`/live${location.pathname}?${query}`);
  events.onopen = () => { said.textContent = "● live"; };
  events.onerror = () => { said.textContent = "○ no connection, trying again"; };
  events.addEventListener("change", event => apply(JSON.parse(event.data)));
  events.addEventListener("gone", () => { said.textContent = "○ the folder is gone"; events.close(); });
  addEventListener("pagehide", () => events.close());
  addEventListener("pageshow", event => { if (event.persisted) location.reload(); });
}

// What the reader chooses stands in the address

function hiddenGroups() {
  return [...document.querySelectorAll(".filter input")].filter(box => !box.checked).map(box => box.value);
}

function noteHidden() {
  const query = new URLSearchParams(location.search);
  query.delete("hide");
  for (const label of hiddenGroups()) query.append("hide", label);
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
}

function restoreHidden() {
  const wanted = new Set(new URLSearchParams(location.search).getAll("hide"));
  for (const box of document.querySelectorAll(".filter input")) box.checked = !wanted.has(box.value);
  if (wanted.size) filter();
}

function sayChosen() {
  const pick = document.getElementById("pick");
  if (!pick) return;
  const number = document.querySelectorAll('input[form="pick"]:checked').length;
  pick.querySelector("output").textContent = number ? `${number} chosen` : "all that are shown";
}

document.addEventListener("change", event => {
  if (event.target.matches(".filter input")) noteHidden();
  if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
  if (event.target.matches('input[form="pick"]')) sayChosen();
});
document.addEventListener("submit", event => {
  for (const label of hiddenGroups()) {
    const field = Object.assign(document.createElement("input"), {type: "hidden", name: "hide", value: label});
    event.target.append(field);
  }
});
document.addEventListener("keydown", event => {
  const search = document.querySelector('input[type="search"]');
  if (event.key !== "/" || event.ctrlKey || event.metaKey || !search || event.target.matches("input, select")) return;
  event.preventDefault();
  search.focus();
});

restoreHidden();
sayChosen();
count();
setInterval(() => count(), 1000);
listen();
