// Draws every figure of a page from its JSON; filters groups; shows the chosen one of several figures.
"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const figures = new Map();
const hidden = new Set();

function collect() {
  figures.clear();
  for (const plot of document.querySelectorAll(".plot")) {
    figures.set(plot, JSON.parse(plot.querySelector(":scope > script").text));
  }
}

function template() {
  const style = getComputedStyle(document.documentElement);
  const [text, line, back] = ["--text", "--line", "--back"].map(name => style.getPropertyValue(name));
  const axis = {gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true};
  const clear = "rgba(0,0,0,0)";
  const words = {bgcolor: back};  // what is written in a figure hides the lines behind it
  return {layout: {
    font: {color: text}, paper_bgcolor: clear, plot_bgcolor: clear, xaxis: axis, yaxis: axis, annotationdefaults: words,
  }};
}

function draw(plot) {
  if (!plot.offsetParent) return;  // not shown; drawn when it is
  const {data, layout} = figures.get(plot);
  const traces = data.map(trace => ({...trace, visible: !hidden.has(trace.legendgroup)}));
  const look = {...layout, uirevision: "what the reader chose", template: template()};
  Plotly.react(plot, traces, look, {responsive: true, displayModeBar: false});
}

function drawAll(plots = figures.keys()) {
  for (const plot of plots) draw(plot);
}

function filter(plots) {
  const boxes = [...document.querySelectorAll(".filter input")];
  hidden.clear();
  for (const box of boxes) if (!box.checked) hidden.add(box.value);
  for (const part of document.querySelectorAll("[data-group]")) part.hidden = hidden.has(part.dataset.group);
  const said = document.querySelector(".filter output");
  if (said) said.textContent = `${boxes.length - hidden.size} of ${boxes.length} shown`;
  drawAll(plots);
}

function choose(select) {
  const panels = select.closest("section")?.querySelectorAll(".choice") ?? [];
  for (const panel of panels) panel.hidden = panel.dataset.choice !== select.value;
}

// Fills the table of what differs between the two runs that are chosen.
function compareTwo(pair) {
  const [first, second] = [...pair.querySelectorAll("select")].map(select => select.selectedIndex);
  const rows = [];
  for (const [name, values] of Object.entries(JSON.parse(pair.querySelector("script").text))) {
    if (values[first] === values[second]) continue;
    const row = document.createElement("tr");
    for (const [tag, text] of [["th", name], ["td", values[first]], ["td", values[second]]]) {
      row.append(Object.assign(document.createElement(tag), {textContent: text}));
    }
    row.firstChild.scope = "row";
    rows.push(row);
  }
  pair.querySelector("tbody").replaceChildren(...rows);
  pair.querySelector("output").textContent = rows.length ? `${rows.length} differ` : "nothing that they recorded differs";
}

function show(plots) {
  collect();
  for (const select of document.querySelectorAll("select")) choose(select);
  for (const pair of document.querySelectorAll(".pair")) compareTwo(pair);
  filter(plots);
}

document.addEventListener("change", event => {
  if (event.target.matches(".filter input")) filter();
  if (event.target.matches("[data-pair]")) compareTwo(event.target.closest(".pair"));
  else if (event.target.matches("select")) { choose(event.target); drawAll(); }
}, true);
dark.addEventListener("change", () => drawAll());
show();
