// Stories that are kept: each a tree of branches, on a shelf in this browser and, as a recipe, in the page's address.
//
// A tree is {id, prompt, branches, shown}; branch 0 is the story as it was first written, and `shown` the branch on show.
// A branch is {parent, at, chosen, runs, tokens, end}: it leaves its parent where `at` tokens of the story are written,
// with the token of the id `chosen`. `runs` are what was asked of the model, each {length, temperature, topP, seed};
// `tokens` are the branch's own, and `end` says why they ended: it is missing while a run lacks tokens.

const KEY = "slm story ";
const MOST = 50; // stories on the shelf
const ROOT = { parent: -1, at: 0, chosen: -1 };

export const newTree = (prompt, run) => ({
  id: Date.now().toString(36), prompt, branches: [{ ...ROOT, runs: [run], tokens: [] }], shown: 0,
});

/** The number of the branch that replaces token `at` of branch `n` by the token `chosen`: a new one, if it must be. */
export function branchOff(tree, n, at, chosen, run) {
  while (tree.branches[n].parent >= 0 && at <= tree.branches[n].at) n = tree.branches[n].parent;
  if (path(tree, n)[at]?.id === chosen) return n;
  const same = tree.branches.findIndex((other) => other.parent === n && other.at === at && other.chosen === chosen);
  return same >= 0 ? same : tree.branches.push({ parent: n, at, chosen, runs: [run], tokens: [] }) - 1;
}

/** The numbers of the branches from the first one to `n`. */
export const lineage = (tree, n) => (n < 0 ? [] : [...lineage(tree, tree.branches[n].parent), n]);

/** All tokens of the story that branch `n` tells. */
export function path(tree, n) {
  const { parent, at, tokens } = tree.branches[n];
  return parent < 0 ? [...tokens] : [...path(tree, parent).slice(0, at), ...tokens];
}

/** Give a branch the token that was chosen for it, or the end; false where its parent never considered that token. */
export function takeChoice(tree, n) {
  const branch = tree.branches[n];
  if (branch.parent < 0 || branch.tokens.length || branch.end !== undefined) return true;
  const { top = [] } = path(tree, branch.parent)[branch.at] ?? {};
  const other = top.find(({ id }) => id === branch.chosen);
  if (other?.bytes.length) branch.tokens.push({ ...other, top });
  else if (other) Object.assign(branch, { runs: [], end: "stop" }); // the end of the text has no bytes
  return other !== undefined;
}

/** The first run of a branch that lacks tokens; one that has some of them is cut in two. */
export function nextRun({ parent, runs, tokens }) {
  let made = tokens.length - (parent >= 0 ? 1 : 0);
  const number = runs.findIndex(({ length }) => made < length || ((made -= length), false));
  if (number < 0 || made === 0) return runs[number];
  runs.splice(number + 1, 0, { ...runs[number], length: runs[number].length - made });
  runs[number].length = made;
  return runs[number + 1];
}

/** Make what is written all that was asked for. */
export function cut(branch) {
  const lacking = nextRun(branch);
  if (lacking) branch.runs.length = branch.runs.indexOf(lacking);
}

// --- The address -----------------------------------------------------------------------------------------------------

/** `fields`, by name, and a tree as what stands after the # of an address. */
export function toHash(fields, tree) {
  const query = new URLSearchParams(fields);
  if (tree) {
    query.set("story", `${tree.id}_${tree.shown}`);
    if (fields.prompt !== tree.prompt) query.set("of", tree.prompt);
    for (const { parent, at, chosen, runs } of tree.branches) {
      const numbers = runs.map(({ length, temperature, topP, seed }) => [length, temperature, topP, seed]);
      if (parent >= 0) numbers.unshift([parent, at, chosen]);
      query.append("branch", numbers.map((each) => each.join("_")).join("-"));
    }
  }
  return `#${query}`;
}

/** {fields, tree} of an address; the tree has no tokens yet, and is missing where the address has none that makes sense. */
export function fromHash(hash) {
  const query = new URLSearchParams(hash.slice(1));
  const fields = Object.fromEntries(query);
  const [, id, shown] = /^(\w+)_(\d+)$/.exec(fields.story ?? "") ?? [];
  const branches = query.getAll("branch").map((text, number) => {
    const runs = text.split("-").filter(Boolean).map((each) => each.split("_").map(Number));
    const [parent, at, chosen] = number ? runs.shift() ?? [] : [-1, 0, -1];
    return { parent, at, chosen, tokens: [], runs: runs.map(([length, temperature, topP, seed]) => ({ length, temperature, topP, seed })) };
  });
  const whole = (value, least, most) => Number.isInteger(value) && value >= least && value <= most;
  const good = branches.every(({ parent, at, chosen, runs }, number) =>
    (number === 0 ? runs.length > 0 : whole(parent, 0, number - 1) && whole(at, 0, 1e6) && whole(chosen, 0, 1e9)) &&
    runs.every((run) => whole(run.length, 1, 1e6) && whole(run.seed, 0, 2 ** 32) && run.temperature >= 0 && run.topP > 0));
  if (!good || !branches[shown]) return { fields };
  return { fields, tree: { id, prompt: fields.of ?? fields.prompt ?? "", branches, shown: Number(shown) } };
}

// --- The shelf -------------------------------------------------------------------------------------------------------

const storage = (() => {
  try {
    return window.localStorage;
  } catch {
    return null; // the browser keeps nothing; the page does, until it is closed
  }
})();
const attempt = (change) => {
  try {
    change();
    return true;
  } catch {
    return false; // the shelf is full
  }
};
const rounded = (key, value) => (key === "logprob" ? Math.max(-99, Number(value.toFixed(5))) : value);

/** The stories that `model`, a name, wrote in this browser; without a name, the model that this page had before. */
export class Shelf {
  #trees = new Map();
  #model;

  constructor(model) {
    const here = `slm model ${location.pathname}`;
    if (model === undefined) model = storage?.getItem(here) ?? "";
    else attempt(() => storage?.setItem(here, model));
    this.#model = model;
    for (const key of stored().filter((each) => each.endsWith(` ${model}`))) {
      try {
        const tree = JSON.parse(storage.getItem(key));
        this.#trees.set(tree.id, tree);
      } catch {
        storage.removeItem(key);
      }
    }
  }

  /** All of them, the newest first. */
  list() {
    return [...this.#trees.values()].reverse();
  }

  find(id) {
    return this.#trees.get(id);
  }

  /** Keep a story, if need be in the place of the oldest. */
  put(tree) {
    this.#trees.set(tree.id, tree);
    const key = `${KEY}${tree.id} ${this.#model}`;
    const others = stored().filter((each) => each !== key);
    while (others.length >= MOST) storage.removeItem(others.shift());
    while (!attempt(() => storage?.setItem(key, JSON.stringify(tree, rounded))) && others.length) {
      storage.removeItem(others.shift());
    }
  }

  /** Forget all stories but one. */
  clear(kept) {
    for (const { id } of this.list().filter((tree) => tree !== kept)) {
      this.#trees.delete(id);
      storage?.removeItem(`${KEY}${id} ${this.#model}`);
    }
  }
}

const stored = () => Object.keys(storage ?? {}).filter((key) => key.startsWith(KEY)).sort();
