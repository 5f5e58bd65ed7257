// The writing page: a prompt, the story as it grows, and what the model thought at each token.
//
// A token is {id, bytes, logprob, top: [{id, bytes, logprob}, ...]}: what was chosen, with its log-probability in nats,
// and the likeliest tokens with theirs. The model lives behind a server or in this browser; the page cannot tell.

const SAMPLES = ["Once upon a time", "One sunny morning, a brave girl named Mia", "There was once a little fox"];
const LEVELS = [0.05, 0.2, 0.5, 0.8]; // limits of the shades
const VISIBLE = { " ": "␣", "\n": "↵", "\t": "⇥" };

const $ = (id) => document.getElementById(id);
const kind = document.querySelector('meta[name="model"]').content;
const model = await import(`./${kind}_model.js`);

const story = { prompt: "", tokens: [], end: "", seed: 0 };
let writing = null; // {controller, finished} while a story grows

// --- The story -------------------------------------------------------------------------------------------------------

/** Write on after the story's tokens, after whatever is being written has stopped. */
async function grow() {
  while (writing) await stop();
  hideAlternatives();
  writing = { controller: new AbortController() };
  await (writing.finished = run(writing.controller.signal));
  writing = null;
  show();
}

async function run(signal) {
  story.end = "";
  render();
  if (story.visit !== undefined) visit(story.visit);
  $("problem").textContent = "";
  $("status").textContent = "Writing …";
  const began = performance.now();
  const before = story.tokens.length;
  try {
    const tokens = model.write({
      prompt: story.prompt,
      tokens: [...story.tokens],
      maxTokens: Number($("length").value),
      temperature: Number($("temperature").value),
      topP: Number($("top-p").value),
      seed: story.seed,
      signal,
    });
    let step = await tokens.next();
    for (; !step.done; step = await tokens.next()) {
      if (signal.aborted) continue; // what was on its way when it was stopped
      story.tokens.push(step.value);
      append(story.tokens.length - 1);
    }
    story.end = signal.aborted ? "stopped" : step.value;
  } catch (error) {
    $("problem").textContent = error.message;
    story.end = "failed";
  }
  const made = story.tokens.length - before;
  const seconds = (performance.now() - began) / 1000;
  const ending = { stop: "The story ended after", length: "Paused after", stopped: "Stopped after", failed: "Broke off after" };
  $("status").textContent =
    `${ending[story.end]} ${made} token${made === 1 ? "" : "s"}, ${(made / seconds).toFixed(0)} a second. Seed ${story.seed}.`;
}

async function stop() {
  writing?.controller.abort();
  await writing?.finished;
}

function begin(seed) {
  Object.assign(story, { prompt: $("prompt").value.replace(/ +$/, ""), tokens: [], seed });
  return grow();
}

const anySeed = () => Math.floor(Math.random() * 2 ** 31);
const givenSeed = () => ($("seed").value === "" ? anySeed() : Number($("seed").value));

/** Go on from token `at` replaced by `other`. */
async function branch(at, other) {
  const { top } = story.tokens[at];
  while (writing) await stop();
  story.tokens.length = at;
  if (other.bytes.length === 0) {
    // The end of the text has no bytes.
    story.end = "stop";
    hideAlternatives();
    render();
    $("status").textContent = "The story ends here, as you chose.";
    return;
  }
  story.tokens.push({ ...other, top });
  story.visit = at;
  await grow();
}

// --- Showing it ------------------------------------------------------------------------------------------------------

let decoder;

/** All of the story anew. */
function render() {
  decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const prompt = document.createElement("span");
  prompt.className = "prompt";
  prompt.textContent = story.prompt;
  $("text").replaceChildren(prompt);
  story.tokens.forEach((_, at) => append(at));
  show();
}

/** Add the token `at`. Bytes of a character that is not yet whole are shown with the token that completes it. */
function append(at) {
  const token = story.tokens[at];
  const span = document.createElement("span");
  span.textContent = decoder.decode(Uint8Array.from(token.bytes), { stream: true });
  span.dataset.at = at;
  span.className = `token level${LEVELS.filter((limit) => Math.exp(token.logprob) >= limit).length}`;
  $("text").append(span);
  if ($("think").checked) explain(span);
}

/** Put the focus on the token `at`, which was chosen. */
function visit(at) {
  story.visit = undefined;
  const span = $("text").querySelector(`[data-at="${at}"]`);
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

/** Buttons and notes as the state has them. */
function show() {
  const busy = writing !== null;
  $("write").hidden = busy;
  $("stop").hidden = !busy;
  $("text").classList.toggle("writing", busy);
  $("text").classList.toggle("thinking", $("think").checked);
  $("explained").hidden = !$("think").checked;
  $("copy-chances").hidden = !$("think").checked;
  $("after").hidden = busy || story.end === "";
  $("continue").disabled = story.end === "stop";
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
  // Below the token's first line, and inside the column.
  const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const around = $("story").getBoundingClientRect();
  const room = around.width - panel.offsetWidth;
  panel.style.left = `${Math.max(0, Math.min(box.left - around.left, room))}px`;
  panel.style.top = `${box.bottom - around.top + 4}px`;
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

$("text").addEventListener("mouseover", (event) => tokenAt(event) && !$("menu").contains(document.activeElement) && showAlternatives(tokenAt(event)));
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
  const to = moveFocus(spans, spans.indexOf(span), event.key);
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
document.addEventListener("keydown", ({ key }) => {
  if (key !== "Escape" || !shown) return;
  const span = shown;
  if ($("menu").contains(document.activeElement)) span.focus();
  hideAlternatives();
});

// --- Controls --------------------------------------------------------------------------------------------------------

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("write").disabled && $("length").reportValidity() && $("seed").reportValidity()) begin(givenSeed());
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
$("continue").addEventListener("click", grow);
$("another").addEventListener("click", () => {
  if ($("seed").value !== "") $("seed").value = (Number($("seed").value) + 1) % 2 ** 32;
  begin(givenSeed());
});
$("think").addEventListener("change", () => {
  hideAlternatives();
  for (const span of $("text").querySelectorAll(".token")) ($("think").checked ? explain : plain)(span);
  show();
});
$("copy").addEventListener("click", () => copy(storyText()));
$("copy-chances").addEventListener("click", () => copy(chances()));
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

for (const name of ["temperature", "top-p"]) {
  const tell = () => ($(`${name}-value`).value = Number($(name).value).toFixed(2));
  $(name).addEventListener("input", tell);
  tell();
}
for (const sample of SAMPLES) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = sample;
  button.addEventListener("click", () => {
    $("prompt").value = sample;
    $("prompt").focus();
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

$("local").hidden = kind !== "local";
try {
  describe(await model.open((share) => ($("summary").textContent = `Loading the model: ${Math.round(100 * share)} %`)));
  $("write").disabled = false;
} catch (error) {
  $("summary").textContent = "The model could not be opened.";
  $("problem").textContent = error.message;
}
