// The model in this folder, run on the visitor's device; the same functions as server_model.js.

const worker = new Worker(new URL("local_worker.js", import.meta.url), { type: "module" });
let receive = () => {};
worker.onmessage = ({ data }) => receive(data);
worker.onerror = (event) => receive({ error: event.message || "this browser cannot start the model" });

/** What the model is, as an entry of `GET /v1/models`; `progress` is told how much of it is loaded, from 0 to 1. */
export function open(progress) {
  return new Promise((resolve, reject) => {
    receive = ({ loaded, about, error }) => {
      if (loaded !== undefined) progress(loaded);
      else if (error) reject(new Error(error));
      else resolve(about);
    };
    worker.postMessage({ ask: "open", folder: new URL("./", document.baseURI).href });
  });
}

/** Yields the tokens after `prompt` and `tokens`; returns why it ended: "stop", "length" or "stopped". */
export async function* write({ signal, tokens, ...how }) {
  const messages = [];
  let wake = () => {};
  receive = (message) => {
    messages.push(message);
    wake();
  };
  signal.addEventListener("abort", () => worker.postMessage({ ask: "stop" }));
  worker.postMessage({ ask: "write", ids: tokens.map(({ id }) => id), ...how });
  for (;;) {
    if (!messages.length) await new Promise((resolve) => (wake = resolve));
    const { token, done, error } = messages.shift();
    if (error) throw new Error(error);
    if (done) return done;
    yield token;
  }
}
