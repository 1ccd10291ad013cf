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

// Saves a figure: what is shown of it, in dark on white, or its numbers, a row for each point.
async function save(button) {
  const plot = plotBefore(button), form = button.dataset.export;
  const name = plot.getAttribute("aria-label").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  const content = form === "svg" ? await asImage(plot) : `data:text/csv;charset=utf-8,${encodeURIComponent(asTable(plot))}`;
  const link = Object.assign(document.createElement("a"), {href: content, download: `${name}.${form}`});
  link.click();
}

function plotBefore(button) {
  const before = button.parentElement.previousElementSibling;
  return before.matches(".plot") ? before : before.querySelector(".plot");
}

function asImage(plot) {
  const {data, layout} = figures.get(plot);
  const axis = {gridcolor: "#d0d7de", zerolinecolor: "#d0d7de", linecolor: "#d0d7de", automargin: true};
  const paper = {font: {color: "#1f2328"}, paper_bgcolor: "#fff", plot_bgcolor: "#fff", xaxis: axis, yaxis: axis};
  const template = {layout: {...paper, annotationdefaults: {bgcolor: "#fff"}}};
  const traces = data.filter(trace => !hidden.has(trace.legendgroup));
  const size = {format: "svg", width: plot.clientWidth, height: plot.clientHeight};
  return Plotly.toImage({data: traces, layout: {...layout, template}}, size);
}

// The numbers of a figure, under the titles of its axes.
function asTable(plot) {
  const rows = [], columns = new Set(["series"]);
  const list = values => values?.length === undefined || typeof values === "string" ? [] : [...values];
  const titleOf = title => (typeof title === "string" ? title : title?.text);
  for (const trace of plot._fullData) {
    if (trace.visible !== true) continue;
    const kind = trace.fill === "toself" ? `${trace.name} (band)` : trace.name;
    // of an axis that stands for several panels, title and words are where they are shown
    const axis = letter => {
      const own = (trace[`${letter}axis`] ?? letter).replace(letter, `${letter}axis`);
      const all = [own, ...Object.keys(plot.layout).filter(key => key.startsWith(`${letter}axis`))].map(key => plot.layout[key]);
      const words = all[0]?.tickvals && all.find(each => each?.ticktext?.length);
      const word = value => words ? words.ticktext[words.tickvals.indexOf(value)] ?? value : value;
      return [all.map(each => titleOf(each?.title)).find(Boolean) ?? letter, word];
    };
    let [[X, wordOfX], [Y, wordOfY], Z] = [axis("x"), axis("y"), titleOf(trace._input.colorbar?.title) || "value"];
    if (new Set([X, Y, Z]).size < 3) [X, Y, Z] = ["x", "y", "value"];
    const add = (values) => {
      const row = {series: kind};
      for (const [key, value] of Object.entries(values)) {
        if (value === undefined) continue;
        columns.add(key);
        row[key] = value;
      }
      rows.push(row);
    };
    const [x, y, z] = [trace.x, trace.y, trace.z].map(list);
    const [more, less] = [trace.error_y?.array, trace.error_y?.arrayminus].map(list);
    const [right, left] = [trace.error_x?.array, trace.error_x?.arrayminus].map(list);
    if (z.length) {
      z.forEach((line, i) => list(line).forEach((value, j) => add({[X]: wordOfX(x[j] ?? j), [Y]: wordOfY(y[i] ?? i), [Z]: value})));
    } else {
      const length = Math.max(x.length, y.length);
      for (let i = 0; i < length; i++) {
        const bounds = {[`${Y} above`]: more[i], [`${Y} below`]: less[i], [`${X} above`]: right[i], [`${X} below`]: left[i]};
        add({[X]: wordOfX(x[i]), [Y]: wordOfY(y[i]), ...bounds, text: list(trace.text)[i]});
      }
    }
  }
  const cell = value => {
    const text = value === null || value === undefined ? "" : String(value).replaceAll("<br>", " ");
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const names = [...columns];
  return [names, ...rows.map(row => names.map(name => row[name]))].map(line => line.map(cell).join(",") + "\r\n").join("");
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
  pair.querySelector("output").textContent = rows.length ? `${rows.length} differ${rows.length === 1 ? "s" : ""}` : "nothing that they recorded differs";
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
document.addEventListener("click", event => {
  const button = event.target.closest("[data-export]");
  if (button) save(button);
});
dark.addEventListener("change", () => drawAll());
show();
