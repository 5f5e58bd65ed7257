// The learning page: curves of one run or several, laid over one another, and the story at each evaluation.

import { request } from "./server_model.js";

const EVERY = 2000; // milliseconds between two looks
const CHARTS = [
  // title, unit for people, [column, factor, dashed]
  ["Loss", "nats a token; lower is better", [["val_loss", 1, false], ["train_loss", 1, true]]],
  ["Bits per byte", "lower is better", [["val_bits_per_byte", 1, false], ["train_bits_per_byte", 1, true]]],
  ["Next token guessed right", "%; higher is better", [["val_accuracy", 100, false], ["train_accuracy", 100, true]]],
  ["Learning rate", "", [["learning_rate", 1, false]]],
  ["Speed", "tokens a second", [["tokens_per_second", 1, false]]],
  ["Gradient norm", "before clipping", [["gradient_norm", 1, false]]],
];
const SERIES = 6; // colours in style.css
const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT] = [360, 210, 46, 22, 8, 8];

const $ = (id) => document.getElementById(id);
const hidden = new Set(); // names of runs
let runs = [];
let latest = ""; // the answer that is shown
const over = () => document.querySelector('input[name="over"]:checked').value;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function svg(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const short = (value) => {
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  if (size && size < 1e-3) return value.toExponential(1);
  return String(+value.toPrecision(4));
};

// --- Charts ----------------------------------------------------------------------------------------------------------

const charts = CHARTS.map(([title, unit, columns], place) => {
  const name = `chart-${place}`;
  const image = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-labelledby": `${name}-title ${name}-desc` });
  const reading = element("span", { className: "reading" });
  const table = element("table");
  const details = element("details", {}, element("summary", { textContent: "As a table" }), element("div", { className: "scroll", tabIndex: 0 }, table));
  details.querySelector(".scroll").setAttribute("role", "region");
  details.querySelector(".scroll").setAttribute("aria-label", `${title}, as a table`);
  const figure = element("figure", {}, element("figcaption", {}, element("b", { textContent: title }), " ", element("span", { className: "note", textContent: unit })), image, reading, details);
  const chart = { name, title, unit, columns, image, reading, table, details, figure, series: [] };
  details.addEventListener("toggle", () => fillTable(chart));
  image.addEventListener("pointermove", (event) => read(chart, event));
  image.addEventListener("pointerleave", () => unread(chart));
  $("charts").append(figure);
  return chart;
});

/** The points of `columns` of each run that is shown: [{run, colour, dashed, column, points: [[x, y], ...]}, ...]. */
function seriesOf(columns) {
  return runs.flatMap((run, number) =>
    hidden.has(run.name) ? [] : columns.map(([column, factor, dashed]) => ({
      run: run.name, colour: (number % SERIES) + 1, dashed, column,
      points: run.rows
        .map((row) => [over() === "step" ? row.step : (row.seconds ?? NaN) / 60, row[column] == null ? NaN : row[column] * factor])
        .filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y)),
    })),
  ).filter(({ points }) => points.length);
}

function draw(chart) {
  const { name, title, unit, image } = chart;
  chart.series = seriesOf(chart.columns);
  chart.figure.hidden = !chart.series.length;
  if (chart.figure.hidden) return;
  const points = chart.series.flatMap((each) => each.points);
  const [xs, ys] = [ticks(points.map(([x]) => x), 5, true), ticks(points.map(([, y]) => y), 4)];
  chart.x = (value) => LEFT + ((value - xs.low) / (xs.high - xs.low)) * (WIDTH - LEFT - RIGHT);
  chart.y = (value) => HEIGHT - BOTTOM - ((value - ys.low) / (ys.high - ys.low)) * (HEIGHT - TOP - BOTTOM);
  const titled = svg("title", { id: `${name}-title` }, `${title} over ${over() === "step" ? "steps" : "minutes"}`);
  const now = chart.series.map((each) => `${each.run}, ${each.column.replaceAll("_", " ")}: from ${short(each.points[0][1])} to ${short(each.points.at(-1)[1])}`);
  const described = svg("desc", { id: `${name}-desc` }, `${unit}. ${now.join("; ")}.`);
  const axes = svg("g", { class: "axes" });
  for (const value of ys.at) {
    axes.append(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: chart.y(value), y2: chart.y(value) }));
    axes.append(svg("text", { x: LEFT - 6, y: chart.y(value) + 3.5, "text-anchor": "end" }, short(value)));
  }
  for (const value of xs.at) axes.append(svg("text", { x: chart.x(value), y: HEIGHT - 6, "text-anchor": "middle" }, short(value)));
  const lines = chart.series.map((each) => {
    const path = each.points.map(([x, y]) => `${chart.x(x).toFixed(1)},${chart.y(y).toFixed(1)}`).join(" ");
    const last = each.points.at(-1);
    return svg("g", { class: `series series${each.colour}${each.dashed ? " dashed" : ""}` },
      svg("polyline", { points: path }), svg("circle", { cx: chart.x(last[0]), cy: chart.y(last[1]), r: 2.5 }));
  });
  image.replaceChildren(titled, described, axes, ...lines);
  unread(chart);
  fillTable(chart);
}

/** Round numbers that span `values`: {low, high, at}. `exact`: the range itself is that of the values. */
function ticks(values, count, exact = false) {
  let low = values.reduce((a, b) => Math.min(a, b), Infinity);
  let high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  if (low === high) [low, high] = [low - Math.abs(low || 1) / 2, high + Math.abs(high || 1) / 2];
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const [first, last] = exact ? [Math.ceil(low / step), Math.floor(high / step)] : [Math.floor(low / step), Math.ceil(high / step)];
  const at = Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
  return exact ? { low, high, at } : { low: first * step, high: last * step, at };
}

/** A point in words, with the name of its run where there are several. */
function named({ series }, { run, dashed }, [, y]) {
  return [series.some((other) => other.run !== run) && run, dashed && "training", short(y)].filter(Boolean).join(" ");
}

/** Say under the chart what its curves are where the pointer is. */
function read(chart, event) {
  if (!chart.series.length) return;
  const box = chart.image.getBoundingClientRect();
  const place = ((event.clientX - box.left) / box.width) * WIDTH;
  const distance = ([x]) => Math.abs(chart.x(x) - place);
  const near = chart.series.map((each) => each.points.reduce((best, point) => (distance(point) < distance(best) ? point : best)));
  const x = near.reduce((best, point) => (distance(point) < distance(best) ? point : best))[0];
  const said = chart.series.map((each, i) => named(chart, each, near[i]));
  chart.reading.textContent = `${over() === "step" ? "step" : "minute"} ${short(x)}: ${said.join(", ")}`;
  chart.image.querySelector(".guide")?.remove();
  chart.image.append(svg("line", { class: "guide", x1: chart.x(x), x2: chart.x(x), y1: TOP, y2: HEIGHT - BOTTOM }));
}

/** Say what the curves are now. */
function unread(chart) {
  chart.image.querySelector(".guide")?.remove();
  chart.reading.textContent = `now: ${chart.series.map((each) => named(chart, each, each.points.at(-1))).join(", ")}`;
}

function fillTable({ details, table, series }) {
  if (!details.open) return;
  const head = element("tr", {}, ...["run", over(), "column", "value"].map((name) => element("th", { textContent: name, scope: "col" })));
  const rows = series.flatMap((each) => each.points.map(([x, y]) =>
    element("tr", {}, ...[each.run, short(x), each.column.replaceAll("_", " "), short(y)].map((value) => element("td", { textContent: value })))));
  table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

// --- Runs and stories ------------------------------------------------------------------------------------------------

function listRuns() {
  const names = runs.map((run) => run.name);
  const there = [...$("runs").querySelectorAll("input")].map((input) => input.value);
  $("runs").hidden = names.length < 2;
  if (names.join("\n") === there.join("\n")) return;
  const labels = names.map((name, number) => {
    const input = element("input", { type: "checkbox", value: name, checked: !hidden.has(name) });
    input.addEventListener("change", () => {
      hidden[input.checked ? "delete" : "add"](name);
      charts.forEach(draw);
    });
    return element("label", {}, input, element("span", { className: `swatch series${(number % SERIES) + 1}` }), name);
  });
  $("runs").replaceChildren($("runs").querySelector("legend"), ...labels);
}

function tellStories() {
  const told = runs.filter((run) => run.samples.length);
  const run = told.find(({ name }) => name === $("run").value) ?? told[0];
  if (told.length !== $("run").options.length) $("run").replaceChildren(...told.map(({ name }) => element("option", { value: name, textContent: name, selected: name === run.name })));
  $("stories").hidden = !told.length;
  $("pick").hidden = told.length < 2;
  const cards = $("cards");
  const following = cards.scrollLeft > 0 && cards.scrollLeft + cards.clientWidth >= cards.scrollWidth - 4;
  cards.replaceChildren(...(run?.samples ?? []).map(({ step, seconds, val_loss, prompt, text }) => {
    const facts = [seconds != null && `${(seconds / 60).toFixed(1)} min`, val_loss != null && `loss ${short(val_loss)}`].filter(Boolean);
    return element("article", {},
      element("h3", { textContent: `Step ${step.toLocaleString("en")}` }),
      element("p", { className: "note", textContent: facts.join(", ") }),
      element("p", { className: "sample" }, element("span", { className: "prompt", textContent: prompt }), text));
  }));
  if (following) cards.scrollLeft = cards.scrollWidth; // who looks at the latest goes on to
}

// --- Looking again and again -----------------------------------------------------------------------------------------

function show() {
  listRuns();
  $("empty").hidden = runs.length > 0;
  $("found").hidden = !runs.length;
  charts.forEach(draw);
  tellStories();
}

async function look() {
  if (document.hidden && latest) return;
  try {
    const answer = await (await request("watch/runs")).text();
    if (answer !== latest) {
      latest = answer;
      runs = JSON.parse(answer).runs.filter((run) => run.rows.length || run.samples.length);
      show();
    }
    const step = Math.max(0, ...runs.flatMap((run) => run.rows.map((row) => row.step)));
    const said = runs.length ? `${runs.length} run${runs.length === 1 ? "" : "s"}, the latest at step ${step.toLocaleString("en")}.` : "No run yet.";
    if ($("status").textContent !== said) $("status").textContent = said;
  } catch (error) {
    $("status").textContent = `${error.message} Trying again.`;
  }
}

for (const input of document.querySelectorAll('input[name="over"]')) input.addEventListener("change", () => charts.forEach(draw));
$("run").addEventListener("change", tellStories);
document.addEventListener("visibilitychange", look);

for (;;) {
  await look();
  await new Promise((resolve) => setTimeout(resolve, EVERY));
}
