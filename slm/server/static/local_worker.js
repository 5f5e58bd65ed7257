// The model on the visitor's device, in a worker so that the page stays responsive.
//
// in:  {ask: "open", folder}, {ask: "write", prompt, ids, maxTokens, temperature, topP, seed}, {ask: "stop"}
// out: {loaded: from 0 to 1}, {about}, {token}, {done: "stop" | "length" | "stopped"}, {error}

import * as ort from "./ort.wasm.min.mjs";
import { Engine, generate } from "./generator.js";
import { Tokenizer } from "./tokenizer.js";

ort.env.wasm.numThreads = 1; // more would need a server that isolates the page from others
let about, engine, tokenizer;
let latest = 0; // the number of the text that is wanted

let queue = Promise.resolve(); // a session runs one thing at a time

onmessage = ({ data }) => {
  const mine = ++latest;
  queue = queue.then(async () => {
    try {
      if (data.ask === "open") await open(data.folder);
      else if (data.ask === "write") await write(data, () => mine === latest);
    } catch (error) {
      postMessage({ error: error.message ?? String(error) });
    }
  });
};

// What a timer would do, too, but that waits four milliseconds.
const { port1, port2 } = new MessageChannel();
const turn = () => new Promise((resolve) => ((port1.onmessage = resolve), port2.postMessage(null)));

async function open(folder) {
  const get = async (name) => {
    const response = await fetch(folder + name);
    if (!response.ok) throw new Error(`${name} could not be loaded: ${response.status} ${response.statusText}`);
    return response;
  };
  const [config, description, model] = await Promise.all([
    get("config.json").then((response) => response.json()),
    get("tokenizer.json").then((response) => response.json()),
    get("best_model.onnx").then(whole),
  ]);
  about = config;
  tokenizer = new Tokenizer(description);
  engine = new Engine(ort, await ort.InferenceSession.create(model, { executionProviders: ["wasm"], logSeverityLevel: 3 }), config);
  postMessage({ about });
}

/** The bytes of a response, telling how many of them are there. */
async function whole(response) {
  const size = Number(response.headers.get("Content-Length")); // of what is sent, which may be compressed
  const parts = [];
  let count = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { value, done } = await reader.read();
    if (done) return new Blob(parts).arrayBuffer();
    parts.push(value);
    count += value.length;
    if (size) postMessage({ loaded: Math.min(1, count / size) });
  }
}

async function write({ prompt, ids, ...how }, wanted) {
  const stopToken = tokenizer.endOfText;
  const begin = [stopToken, ...tokenizer.encode(prompt), ...ids]; // a story begins after the end of another one
  const tokens = generate(engine, begin, { ...how, stopToken });
  const entry = (id, logprob) => ({ id, logprob, bytes: [...tokenizer.bytes[id]] });
  for (;;) {
    const { value, done } = await tokens.next();
    if (!wanted()) return postMessage({ done: "stopped" });
    if (done) return postMessage({ done: value });
    postMessage({ token: { ...entry(value.id, value.logprob), top: value.top.map((other) => entry(...other)) } });
    await turn(); // lets {ask: "stop"} in
  }
}
