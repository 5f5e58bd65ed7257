// A prompt in, tokens out, one at a time: the graph of slm/export/onnx.py with its KV cache, and how a token is chosen.
// As slm/inference/onnx_engine.py, generator.py and sampling.py, for one text. V is the size of the vocabulary.

export const ALTERNATIVES = 5;

/** One text in a session of ONNX Runtime; the runtime itself is handed in. */
export class Engine {
  constructor(ort, session, { shape, context_length }) {
    Object.assign(this, { ort, session, shape, contextLength: context_length });
    this.past = [];
    for (let layer = 0; layer < shape.n_layer; layer++) {
      this.past.push(`past_key_values.${layer}.key`, `past_key_values.${layer}.value`);
    }
  }

  /** Begin anew with `ids`, at least one: the logits of the next token, (V,). */
  prefill(ids) {
    const { n_head, n_embd } = this.shape;
    const empty = () => new this.ort.Tensor("float32", new Float32Array(0), [1, n_head, 0, n_embd / n_head]);
    this.cache = Object.fromEntries(this.past.map((name) => [name, empty()]));
    this.length = 0;
    return this.decode(ids);
  }

  /** Read `ids` behind what was read: the logits of the next token, (V,). */
  async decode(ids) {
    const whole = (values) => new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
    const before = this.length;
    const out = await this.session.run({
      input_ids: whole(ids),
      attention_mask: whole(new Array(before + ids.length).fill(1)),
      position_ids: whole(ids.map((_, i) => before + i)),
      ...this.cache,
    });
    this.length += ids.length;
    for (const name of this.past) this.cache[name] = out[name.replace("past_key_values", "present")];
    return out.logits.data;
  }
}

/**
 * What follows `ids`, at least one: yields {id, logprob, top: [[id, logprob], ...]}, log-probabilities in nats as the
 * model believes, whatever the sampling. Returns "stop" where the text ends, or "length" after `maxTokens`.
 */
export async function* generate(engine, ids, { maxTokens, temperature, topP, seed, stopToken }) {
  const random = randomNumbers(seed);
  const context = engine.contextLength;
  let window = ids.slice(-context);
  let logits = await engine.prefill(window);
  for (let made = 1; ; made++) {
    if (!Number.isFinite(logits[argmax(logits)])) throw new Error("the model computes what is no number: its file is damaged");
    const id = choose(logits, temperature, topP, random);
    if (id === stopToken) return "stop";
    yield explained(logits, id);
    if (made === maxTokens) return "length";
    window.push(id);
    if (window.length <= context) {
      logits = await engine.decode([id]);
    } else {
      window = window.slice(-Math.max(1, context >> 1)); // a full window goes on from its second half
      logits = await engine.prefill(window);
    }
  }
}

/** One token for logits (V,), drawn by its probability. Of equal logits the lower id is the likelier. */
export function choose(logits, temperature, topP, random) {
  const top = argmax(logits);
  if (temperature < 1e-6) return top;
  const p = new Float64Array(logits.length);
  let sum = 0;
  for (let i = 0; i < p.length; i++) sum += p[i] = Math.exp((logits[i] - logits[top]) / temperature);
  let chosen = p.keys();
  if (topP < 1) {
    // Only tokens as likely as need be, which are few, are sorted.
    let likely;
    let mass = 0;
    for (let least = p[top]; mass < topP * sum && likely?.length !== p.length; least /= 8) {
      likely = [];
      mass = 0;
      for (let i = 0; i < p.length; i++) if (p[i] >= least) {
        likely.push(i);
        mass += p[i];
      }
    }
    likely.sort((a, b) => p[b] - p[a] || a - b);
    let kept = 0;
    let together = 0;
    while (kept < likely.length && together < topP * sum) together += p[likely[kept++]];
    chosen = likely.slice(0, kept).sort((a, b) => a - b);
    sum = together;
  }
  let rest = random() * sum;
  let last = top;
  for (const i of chosen) {
    if (p[i] > 0) last = i;
    if ((rest -= p[i]) < 0) break;
  }
  return last;
}

function explained(logits, id) {
  const top = argmax(logits);
  let sum = 0;
  const best = []; // ids, the likeliest first
  for (let i = 0; i < logits.length; i++) {
    sum += Math.exp(logits[i] - logits[top]);
    if (best.length < ALTERNATIVES || logits[i] > logits[best.at(-1)]) {
      const place = best.findIndex((other) => logits[i] > logits[other]);
      best.splice(place < 0 ? best.length : place, 0, i);
      best.length = Math.min(best.length, ALTERNATIVES);
    }
  }
  const logprob = (i) => logits[i] - logits[top] - Math.log(sum);
  return { id, logprob: logprob(id), top: best.map((i) => [i, logprob(i)]) };
}

function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/** Numbers from 0 to below 1 that follow from `seed` (Mulberry32). */
export function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
