// The writing page: a prompt, the story as it grows, and what the model thought at each token.
//
// A token is {id, bytes, logprob, top: [{id, bytes, logprob}, ...]}: what was chosen, with its log-probability in nats,
// and the likeliest tokens with theirs. The model lives behind a server or in this browser; the page cannot tell.

import { branchOff, cut, fromHash, lineage, newTree, nextRun, path, Shelf, takeChoice, toHash } from "./history.js";
import * as reading from "./reading.js";
import * as trouble from "./trouble.js";

const SAMPLES = ["Once upon a time", "One sunny morning, a brave girl named Mia", "There was once a little fox"];
const LEVELS = [0.05, 0.2, 0.5, 0.8]; // limits of the shades
const VISIBLE = { " ": "␣", "\n": "↵", "\t": "⇥" };
const PATIENCE = 8; // seconds without a token before the page says so

const $ = (id) => document.getElementById(id);
const kind = document.querySelector('meta[name="model"]').content;
const model = await import(`./${kind}_model.js`);

const story = { tree: null, branch: 0, prompt: "", tokens: [], end: "", seed: 0 }; // what is on show
let shelf = new Shelf();
let opened = false;
let linked = null; // the tree of the address, until it is on show
let writing = null; // {controller, finished, asked} while a story grows

// --- The story -------------------------------------------------------------------------------------------------------

/** Write what branch `n` of `tree` lacks, after whatever is being written has stopped. */
async function grow(tree, n, asked = true) {
  if (!opened) return open();
  while (writing) await stop();
  hideAlternatives();
  writing = { controller: new AbortController(), asked };
  await (writing.finished = run(tree, n, writing.controller));
  writing = null;
  keep();
  show();
}

async function run(tree, n, controller) {
  const { signal } = controller;
  const began = performance.now();
  const again = () => grow(tree, n);
  let made = 0;
  let end, timer;
  let frozen = false;
  const wait = () => {
    clearTimeout(timer);
    if (frozen) show(trouble.clear);
    frozen = false;
    timer = setTimeout(() => {
      frozen = true;
      trouble.tell({ kind: "frozen" }, () => {
        controller.abort("again");
        again();
      });
    }, 1000 * PATIENCE);
  };
  $("status").textContent = "Writing …";
  reading.start(writing.asked);
  show(trouble.clear);
  tree.shown = n;
  let number, branch;
  try {
    for (number of lineage(tree, n)) {
      branch = tree.branches[number];
      if (!takeChoice(tree, number)) throw new Error("The model here did not consider what this branch begins with.");
      for (let asked; branch.end === undefined && (asked = nextRun(branch)); ) {
        const { length, ...how } = asked;
        const tokens = model.write({ ...how, maxTokens: length, prompt: tree.prompt, tokens: path(tree, number), signal });
        wait();
        let step = await tokens.next();
        for (; !step.done; step = await tokens.next()) {
          if (signal.aborted) continue; // what was on its way when it was stopped
          wait();
          made++;
          branch.tokens.push(step.value);
          add(tree, number, step.value);
        }
        end = signal.aborted ? "stopped" : step.value;
        if (end !== "length") branch.end = end;
      }
      branch.end ??= "length";
      if (signal.aborted) break;
      if (number === n && (story.tree !== tree || story.branch !== n)) put(tree, n); // it has no token
    }
    if (frozen) show(trouble.clear);
  } catch (error) {
    end = "failed";
    trouble.tell(error, again);
  }
  clearTimeout(timer);
  if (signal.reason === "again") delete branch.end;
  else if (end === "stopped") {
    cut(branch);
    if (story.tree === tree) tree.shown = story.branch;
  }
  reading.finish($("said"));
  story.end = (story.tree && story.tree.branches[story.branch].end) ?? end;
  remember();
  const seconds = (performance.now() - began) / 1000;
  if (made || story.tree === tree) tellEnd(end ?? story.end, made, `, ${(made / seconds).toFixed(0)} a second`);
  else $("status").textContent = end === "stopped" ? "Stopped before the first token." : "";
}

/** Show a new token of a branch: with all of the story before it, if that is not on show yet. */
function add(tree, n, token) {
  if (story.tree === tree && story.branch === n) {
    story.tokens.push(token);
    append(story.tokens.length - 1);
  } else {
    const push = writing.asked && story.tree !== null && story.tree !== tree;
    shelf.put(tree);
    put(tree, n);
    remember(push);
  }
  const last = $("text").lastChild;
  const space = last.previousSibling?.nodeType === Node.TEXT_NODE ? last.previousSibling.data : "";
  reading.grew($("text"), space + last.textContent, $("said"), shown);
  if (performance.now() - kept > 2000) keep();
}

function tellEnd(end, count, speed) {
  const ending = { stop: "The story ended after", length: "Paused after", stopped: "Stopped after", failed: "Broke off after" };
  const { parent, tokens } = story.tree.branches[story.branch];
  $("status").textContent = parent >= 0 && !tokens.length
    ? "The story ends here, as you chose."
    : `${ending[end]} ${count} token${count === 1 ? "" : "s"}${speed}. Seed ${story.seed}.`;
}

async function stop() {
  writing?.controller.abort();
  await writing?.finished;
}

const typed = () => $("prompt").value.replace(/ +$/, "");
const settings = (seed) => ({
  length: Number($("length").value), temperature: Number($("temperature").value), topP: Number($("top-p").value), seed,
});
const begin = (seed, asked) => grow(newTree(typed(), settings(seed)), 0, asked);
const anySeed = () => Math.floor(Math.random() * 2 ** 31);
const givenSeed = () => ($("seed").value === "" ? anySeed() : Number($("seed").value));

function goOn() {
  const branch = story.tree.branches[story.branch];
  if (branch.end !== undefined) branch.runs.push(settings(story.seed));
  delete branch.end;
  return grow(story.tree, story.branch);
}

/** Show branch `n` of `tree`, and write what it lacks. */
async function go(tree, n, push = true) {
  while (writing) await stop();
  show(trouble.clear);
  tree.shown = n;
  put(tree, n);
  remember(push);
  if (lineage(tree, n).some((each) => tree.branches[each].end === undefined)) return grow(tree, n, push);
  tellEnd(story.end, story.tokens.length, "");
  keep();
  show();
}

/** Go on from token `at` replaced by `other`. */
async function branch(at, other) {
  if (story.tokens[at].id === other.id) return visit(at);
  while (writing) await stop();
  const { tree } = story;
  const n = branchOff(tree, story.branch, at, other.id, settings(story.seed));
  takeChoice(tree, n);
  story.visit = at;
  await go(tree, n);
}

// --- Keeping it: in the address and on the shelf ---------------------------------------------------------------------

const FIELDS = { prompt: "prompt", temperature: "temperature", top_p: "top-p", length: "length", seed: "seed" };
let kept = 0; // when

function keep() {
  kept = performance.now();
  if (story.tree) shelf.put(story.tree);
}

/** Write into the address what is on show; with `push`, Back leads to what was there before. */
function remember(push = false) {
  const fields = Object.fromEntries(Object.entries(FIELDS).map(([name, id]) => [name, $(id).value]));
  if (fields.seed === "") delete fields.seed;
  if (!$("think").checked) fields.think = "off";
  const hash = toHash({ ...fields, prompt: typed() }, story.tree ?? linked);
  if (hash === location.hash) return;
  try {
    history[push ? "pushState" : "replaceState"](null, "", hash);
  } catch {} // an address that is too long for this browser
}

/** Take prompt and settings from the address. */
function takeFields() {
  const { fields, tree } = fromHash(location.hash);
  if (tree) fields.seed ??= "";
  for (const [name, id] of Object.entries(FIELDS)) if (name in fields) $(id).value = fields[name];
  if ("prompt" in fields) $("think").checked = fields.think !== "off";
  showSettings();
}

/** Show the story of the address, the newest one that is kept, or a first one. */
function arrive() {
  const { tree, fields } = fromHash(location.hash);
  const [newest] = shelf.list();
  linked = tree ?? null;
  const known = tree && shelf.find(tree.id);
  if (known?.branches[tree.shown]) go(known, tree.shown, false);
  else if (tree) grow(tree, tree.shown, false);
  else if (newest && !("prompt" in fields)) go(newest, newest.shown, false);
  else if ($("length").checkValidity() && $("seed").checkValidity()) begin(givenSeed(), false);
}

addEventListener("popstate", () => {
  takeFields();
  if (opened) arrive();
});
addEventListener("pagehide", keep);
reading.watch($("text"));

// --- Showing it ------------------------------------------------------------------------------------------------------

let decoder;

/** Put branch `n` of `tree` on show. */
function put(tree, n) {
  const { end, runs } = tree.branches[n];
  const seed = runs.at(-1)?.seed ?? story.seed;
  Object.assign(story, { tree, branch: n, prompt: tree.prompt, tokens: path(tree, n), end: end ?? "", seed });
  render();
}

/** All of the story anew. */
function render() {
  const focused = $("text").contains(document.activeElement) ? Number(document.activeElement.dataset.at) : undefined;
  const at = story.visit ?? focused;
  story.visit = undefined;
  hideAlternatives();
  decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const prompt = document.createElement("span");
  prompt.className = "prompt";
  prompt.textContent = story.prompt;
  $("text").replaceChildren(prompt);
  story.tokens.forEach((_, at) => append(at));
  show();
  if (at !== undefined) visit(Math.min(at, story.tokens.length - 1));
}

/** Add the token `at`. Bytes of a character that is not yet whole are shown with the token that completes it. */
function append(at) {
  const token = story.tokens[at];
  const span = document.createElement("span");
  const [whole, space, word] = /^(\s*)([^]*)$/.exec(decoder.decode(Uint8Array.from(token.bytes), { stream: true }));
  span.textContent = word || whole; // what is shaded is the word, without the space before it
  if (word && space) $("text").append(space);
  span.dataset.at = at;
  span.className = word === "" ? "token" : `token level${LEVELS.filter((limit) => Math.exp(token.logprob) >= limit).length}`;
  $("text").append(span);
  if ($("think").checked) explain(span);
}

/** Put the focus on the token `at`. */
function visit(at) {
  const span = $("text").querySelector(`[data-at="${at}"]`);
  if (!span || !$("think").checked) return action().focus();
  const first = $("text").querySelector('[tabindex="0"]');
  if (first) first.tabIndex = -1;
  span.tabIndex = 0;
  span.focus();
  hideAlternatives();
}

/** Make a token something to visit: with its chance as its name, reached by the arrow keys. */
function explain(span) {
  if (span.textContent === "") return;
  const token = story.tokens[span.dataset.at];
  span.setAttribute("role", "button");
  span.setAttribute("aria-haspopup", "menu");
  span.setAttribute("aria-label", `${spoken(token)}, ${percent(token)}`);
  span.tabIndex = $("text").querySelector('[tabindex="0"]') ? -1 : 0; // Tab reaches the first one, arrows the others
}

function plain(span) {
  for (const name of ["role", "aria-haspopup", "aria-label", "aria-expanded", "tabindex"]) span.removeAttribute(name);
}

const action = () => (writing ? $("stop") : opened ? $("write") : $("prompt"));

/** Buttons and notes as the state has them, after a `change`; the focus never goes with what is hidden. */
function show(change) {
  const focused = document.activeElement;
  change?.();
  const busy = writing !== null;
  $("write").hidden = busy;
  $("stop").hidden = !busy;
  $("text").classList.toggle("writing", busy);
  $("text").classList.toggle("thinking", $("think").checked);
  $("explained").hidden = !$("think").checked;
  $("copy-chances").hidden = !$("think").checked;
  $("after").hidden = busy || !story.tree;
  $("continue").disabled = story.end === "stop";
  showTree();
  showStrip();
  if (focused.isConnected && !focused.getClientRects().length) action().focus();
}

/** Fill a list anew; what has the focus in it keeps it. */
function refill(list, items) {
  const key = list.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  list.replaceChildren(...items);
  if (key !== undefined) (list.querySelector(`[data-key="${key}"]`) ?? action()).focus();
}

function choice(key, current, content, action) {
  const button = document.createElement("button");
  button.type = "button";
  button.dir = "auto";
  button.dataset.key = key;
  if (current) button.setAttribute("aria-current", "true");
  const words = document.createElement("span");
  words.textContent = content;
  button.append(words);
  button.addEventListener("click", action);
  return button;
}

/** The branches of the story, each under the one that it leaves. */
function showTree() {
  const { tree, branch: current } = story;
  $("branches").hidden = !tree || tree.branches.length < 2;
  if ($("branches").hidden) return;
  $("undo").hidden = tree.branches[current].parent < 0;
  const under = (parent) => {
    const list = document.createElement("ul");
    tree.branches.forEach((each, n) => {
      if (each.parent !== parent) return;
      const item = document.createElement("li");
      item.append(choice(n, n === current, name(tree, n), () => go(tree, n)));
      if (tree.branches.some((other) => other.parent === n)) item.append(under(n));
      list.append(item);
    });
    return list;
  };
  refill($("tree"), [under(-1)]);
}

/** What a branch is called: its first words, after those before it. */
function name(tree, n) {
  const { parent, at, chosen, tokens } = tree.branches[n];
  if (parent < 0) return "As it was first written";
  const before = path(tree, parent);
  const other = before[at]?.top.find(({ id }) => id === chosen);
  if (!other) return "A branch that is not written yet";
  const read = (some) => text(some.flatMap(({ bytes }) => bytes));
  const words = (tree.prompt + read(before.slice(0, at))).split(/(?<=\s)(?=\S)/).slice(-2).join("");
  return `… ${words}${read(tokens.slice(0, 12)) || "(the story ends)"} …`;
}

/** All stories that are kept. */
function showStrip() {
  const trees = shelf.list();
  $("earlier").hidden = trees.length < 2;
  refill($("strip"), trees.map((tree) => {
    const item = document.createElement("li");
    const words = tree.prompt + text(path(tree, tree.shown).flatMap(({ bytes }) => bytes));
    item.append(choice(tree.id, tree === story.tree, words.slice(0, 160), () => tree !== story.tree && go(tree, tree.shown)));
    return item;
  }));
}

const text = (bytes) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
const storyText = () => story.prompt + text(story.tokens.flatMap(({ bytes }) => bytes));
const spoken = ({ bytes }) => (bytes.length ? text(bytes).replace(/^ /, "").replace(/\n/g, " new line ") || "space" : "the story's end");

/** A token to look at: spaces and line ends show, and in the middle of a word that it goes on with one. */
function visible({ bytes }, inWord) {
  if (!bytes.length) return "(the story ends)";
  const shown = text(bytes).replace(/^ (?=\S)/, "").replace(/[ \n\t]/g, (space) => VISIBLE[space]);
  return inWord && /^[\p{L}\p{N}]/u.test(text(bytes)) ? `…${shown}` : shown;
}

function percent({ logprob }) {
  const value = 100 * Math.exp(logprob);
  if (value < 0.1) return "under 0.1 %";
  return `${value < 10 || value > 99 ? Math.min(value, 99.9).toFixed(1) : value.toFixed(0)} %`;
}

/** The story with a line for each token: its chance, and the others. */
function chances() {
  const lines = story.tokens.map((token) => {
    const others = token.top.filter(({ id }) => id !== token.id).map((other) => `${JSON.stringify(text(other.bytes))} ${percent(other)}`);
    return `${percent(token).padStart(11)}  ${JSON.stringify(text(token.bytes))}  instead of ${others.join(", ")}`;
  });
  return `${storyText()}\n\n${lines.join("\n")}\n`;
}

// --- What else the model considered ----------------------------------------------------------------------------------

let shown = null; // the span of the token whose alternatives are shown
let hiding = 0;
const SHEET = matchMedia("(max-width: 30rem)"); // where they are a sheet at the foot, which hovering does not open

function showAlternatives(span) {
  clearTimeout(hiding);
  if (shown === span) return;
  hideAlternatives();
  shown = span;
  span.setAttribute("aria-expanded", "true");
  const at = Number(span.dataset.at);
  const token = story.tokens[at];
  const before = story.prompt + text(story.tokens.slice(0, at).flatMap(({ bytes }) => bytes));
  const inWord = /[\p{L}\p{N}]$/u.test(before);
  $("chosen").textContent = `${visible(token, inWord)}: ${percent(token)}`;
  $("menu").replaceChildren(
    ...token.top.map((other) => {
      const item = document.createElement("button");
      item.type = "button";
      item.tabIndex = -1;
      item.setAttribute("role", "menuitem");
      item.classList.toggle("taken", other.id === token.id);
      item.style.setProperty("--chance", Math.exp(other.logprob));
      for (const part of [visible(other, inWord), percent(other)]) {
        const cell = document.createElement("span");
        cell.textContent = part;
        item.append(cell, " ");
      }
      item.addEventListener("click", () => branch(at, other));
      return item;
    }),
  );
  const panel = $("alternatives");
  panel.hidden = false;
  // Below the token's first line or, where there is no room, above it, and inside the column; on phones at the foot.
  const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const around = $("story").getBoundingClientRect();
  const room = around.width - panel.offsetWidth;
  const height = panel.offsetHeight + 4;
  const above = box.bottom + height > innerHeight && box.top >= height;
  panel.style.setProperty("--left", `${Math.max(0, Math.min(box.left - around.left, room))}px`);
  panel.style.setProperty("--top", `${(above ? box.top - height : box.bottom + 4) - around.top}px`);
  const hidden = SHEET.matches ? box.bottom + 16 - panel.getBoundingClientRect().top : 0;
  if (hidden > 0) setTimeout(() => scrollBy(0, hidden), 150); // when the click is over, lest it meets something else
}

function hideAlternatives() {
  clearTimeout(hiding);
  shown?.setAttribute("aria-expanded", "false");
  shown = null;
  $("alternatives").hidden = true;
}

const hideSoon = () => {
  clearTimeout(hiding);
  hiding = setTimeout(hideAlternatives, 250);
};

const tokenAt = (event) => event.target.closest?.("#text [role=button]");

function moveFocus(items, from, key) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -from, End: items.length - 1 - from };
  if (!(key in steps)) return false;
  const to = items[Math.max(0, Math.min(items.length - 1, from + steps[key]))];
  to.focus();
  return to;
}

$("text").addEventListener("mouseover", (event) => tokenAt(event) && !SHEET.matches && !$("menu").contains(document.activeElement) && showAlternatives(tokenAt(event)));
$("text").addEventListener("mouseleave", () => !$("story").contains(document.activeElement) && hideSoon());
$("alternatives").addEventListener("mouseenter", () => clearTimeout(hiding));
$("alternatives").addEventListener("mouseleave", () => !$("story").contains(document.activeElement) && hideSoon());
$("text").addEventListener("focusin", (event) => tokenAt(event) && showAlternatives(tokenAt(event)));
$("story").addEventListener("focusout", ({ relatedTarget }) => {
  if (!$("text").contains(relatedTarget) && !$("alternatives").contains(relatedTarget)) hideSoon();
});
$("text").addEventListener("click", (event) => {
  const span = tokenAt(event);
  if (!span) return;
  span.focus();
  showAlternatives(span);
});
$("text").addEventListener("keydown", (event) => {
  const span = tokenAt(event);
  if (!span) return;
  const spans = [...$("text").querySelectorAll("[role=button]")];
  const mirrored = getComputedStyle($("text")).direction === "rtl" && { ArrowLeft: "ArrowRight", ArrowRight: "ArrowLeft" };
  const to = moveFocus(spans, spans.indexOf(span), mirrored?.[event.key] ?? event.key);
  if (to) {
    span.tabIndex = -1;
    to.tabIndex = 0;
  } else if (event.key === "Enter" || event.key === " ") {
    showAlternatives(span);
    $("menu").firstElementChild.focus();
  } else return;
  event.preventDefault();
});
$("menu").addEventListener("keydown", (event) => {
  const items = [...$("menu").children];
  if (moveFocus(items, items.indexOf(document.activeElement), event.key)) event.preventDefault();
});
function leaveAlternatives() {
  const span = shown;
  if ($("alternatives").contains(document.activeElement)) span.focus();
  hideAlternatives();
}

$("close").addEventListener("click", leaveAlternatives);
document.addEventListener("keydown", ({ key, isComposing }) => {
  if (key !== "Escape" || isComposing) return;
  if (shown) leaveAlternatives();
  else stop();
});
document.addEventListener("pointerdown", ({ target }) => {
  if (!$("text").contains(target) && !$("alternatives").contains(target)) hideAlternatives();
});

// --- Controls --------------------------------------------------------------------------------------------------------

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (writing?.asked) $("status").textContent = "Still writing. Escape stops it.";
  else if (opened && $("length").reportValidity() && $("seed").reportValidity()) begin(givenSeed());
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", async () => {
  await stop();
  $("write").focus();
});
$("continue").addEventListener("click", goOn);
$("another").addEventListener("click", () => {
  if ($("seed").value !== "") $("seed").value = (Number($("seed").value) + 1) % 2 ** 32;
  begin(givenSeed());
});
$("undo").addEventListener("click", () => go(story.tree, story.tree.branches[story.branch].parent));
$("forget").addEventListener("click", () => {
  if (!confirm("Forget all stories but the one on show?")) return;
  shelf.clear(story.tree);
  show();
});
$("think").addEventListener("change", () => {
  hideAlternatives();
  for (const span of $("text").querySelectorAll(".token")) ($("think").checked ? explain : plain)(span);
  show();
});
$("copy").addEventListener("click", () => copy(storyText()));
$("copy-chances").addEventListener("click", () => copy(chances()));
$("copy-link").addEventListener("click", () => copy(location.href));
$("download").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([storyText() + "\n"], { type: "text/plain" }));
  link.download = "story.txt";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
});

async function copy(content) {
  try {
    await navigator.clipboard.writeText(content);
    $("status").textContent = "Copied.";
  } catch {
    $("problem").textContent = "this browser does not let the page copy: take Download";
  }
}

function showSettings() {
  for (const name of ["temperature", "top-p"]) $(`${name}-value`).value = Number($(name).value).toFixed(2);
}

let noting = 0;
for (const part of [$("ask"), $("controls"), document.querySelector("aside")]) {
  part.addEventListener("input", () => {
    showSettings();
    clearTimeout(noting);
    noting = setTimeout(remember, 300);
  });
}
for (const sample of SAMPLES) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = sample;
  button.addEventListener("click", () => {
    $("prompt").value = sample;
    $("prompt").focus();
    remember();
  });
  $("samples").append(button);
}
["under 5 %", "5–20 %", "20–50 %", "50–80 %", "over 80 %"].forEach((label, level) => {
  const swatch = document.createElement("span");
  swatch.className = `level${level}`;
  swatch.textContent = label;
  $("legend").append(" ", swatch);
});

// --- The model -------------------------------------------------------------------------------------------------------

const number = (value, digits = 0) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

function describe({ parameters, context_length, vocab_size, tokenizer, facts = {} }) {
  const { val = {}, step, text: trainedOn } = facts;
  $("about").replaceChildren();
  const rows = {
    "Parameters": number(parameters),
    "Context": `${number(context_length)} tokens`,
    "Tokenizer": `${tokenizer}, ${number(vocab_size)} tokens`,
    "Trained on": trainedOn,
    "Caution": facts.barely_trained && "barely trained: its stories are near to random",
    "Steps": step !== undefined && number(step),
    "Validation loss": val.loss !== undefined && number(val.loss, 3),
    "Bits per byte": val.bits_per_byte !== undefined && number(val.bits_per_byte, 3),
    "Tokens guessed right": val.accuracy !== undefined && `${number(100 * val.accuracy, 1)} %`,
  };
  for (const [name, value] of Object.entries(rows)) {
    if (!value) continue;
    const term = document.createElement("dt");
    const detail = document.createElement("dd");
    term.textContent = name;
    detail.textContent = value;
    $("about").append(term, detail);
  }
  const size = parameters >= 1e6 ? `${number(parameters / 1e6, 1)} million` : number(parameters);
  $("summary").textContent = `A GPT of ${size} parameters that continues what you begin.`;
}

/** Open the model, and show the story of the address, the newest one that is kept, or a first one. */
async function open() {
  $("summary").textContent = "Loading the model …";
  try {
    const about = await model.open((share) => ($("summary").textContent = `Loading the model: ${Math.round(100 * share)} %`));
    describe(about);
    opened = true;
    $("write").disabled = false;
    const { step = 0, val = {} } = about.facts ?? {};
    shelf = new Shelf([about.id, about.parameters, about.vocab_size, step, val.loss ?? 0].join(" "));
  } catch (error) {
    $("summary").textContent = error.kind === "locked" ? "The model is locked." : "The model could not be opened.";
    trouble.tell(error, open);
    const known = shelf.find(fromHash(location.hash).tree?.id) ?? shelf.list()[0];
    if (known && !story.tree) put(known, known.shown);
    return;
  }
  show(trouble.clear);
  arrive();
}

$("local").hidden = kind !== "local";
takeFields();
await open();
