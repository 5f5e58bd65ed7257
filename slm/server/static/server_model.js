// The model behind the server that this page came from; the same functions as local_model.js.

let id; // the model's name
let endOfText; // the token that stands before and after each text
let asks = true; // for a key

/** What the model is: an entry of `GET /v1/models`. */
export async function open() {
  const { data } = await (await send("v1/models")).json();
  id = data[0].id;
  endOfText = data[0].end_of_text;
  return data[0];
}

/** Yields the tokens after `prompt` and `tokens`; returns why it ended: "stop", "length" or "stopped". */
export async function* write({ prompt, tokens, maxTokens, temperature, topP, seed, signal }) {
  const how = { max_tokens: maxTokens, temperature, top_p: topP, seed, stream: true, logprobs: 5 };
  try {
    const response = await complete({ ...how, prompt: await beginning(prompt, tokens, signal) }, signal);
    for await (const { error, choices } of events(response.body)) {
      if (error) throw new Error(error.message);
      const { logprobs, finish_reason } = choices[0];
      const { token_ids = [], token_bytes, token_logprobs, top_token_ids, top_token_bytes, top_token_logprobs } = logprobs ?? {};
      for (let i = 0; i < token_ids.length; i++) {
        const top = top_token_ids[i].map((other, n) => ({
          id: other, logprob: top_token_logprobs[i][n], bytes: top_token_bytes[i][n],
        }));
        if (token_ids[i] !== endOfText) yield { id: token_ids[i], logprob: token_logprobs[i], bytes: token_bytes[i], top };
      }
      if (finish_reason) return finish_reason;
    }
    throw gone(); // in the middle of the story
  } catch (error) {
    if (signal.aborted) return "stopped";
    throw error instanceof TypeError ? gone() : error; // a connection that breaks is a TypeError
  }
}

/** What to continue: text, or the ids of the prompt and of the tokens after it. */
async function beginning(prompt, tokens, signal) {
  if (!tokens.length) return prompt;
  if (prompt === "") return [endOfText, ...tokens.map((token) => token.id)];
  try {
    const { choices } = await (await complete({ prompt, echo: true, max_tokens: 0, logprobs: 0 }, signal)).json();
    return [endOfText, ...choices[0].logprobs.token_ids, ...tokens.map((token) => token.id)];
  } catch (error) {
    // The ids of a prompt longer than the model's context are not told; as text it is read again, nearly always alike.
    if (error.status !== 400) throw error;
    return prompt + new TextDecoder().decode(Uint8Array.from(tokens.flatMap((token) => token.bytes)));
  }
}

function complete(body, signal) {
  const headers = { "Content-Type": "application/json" };
  return send("v1/completions", { method: "POST", headers, body: JSON.stringify({ model: id, ...body }), signal });
}

const gone = () => Object.assign(new Error("The server does not answer."), { kind: "gone" });
const KINDS = { 401: "locked", 429: "busy", 503: "busy" };

/** The response, if it is a good one. What is thrown has a `kind`, "locked", "busy" or "gone", where that is why. */
async function send(url, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(url, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : gone();
  });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  const message = error?.message ?? `The server answers ${response.status} ${response.statusText}.`;
  throw Object.assign(new Error(message), { status: response.status, kind: KINDS[response.status] });
}

/** The same for pages without a field for the server's key: asks for it where it is needed, and keeps it for this tab. */
export async function request(url, options) {
  try {
    return await send(url, options);
  } catch (error) {
    const key = sessionStorage.getItem("key");
    const given = asks && error.kind === "locked" &&
      window.prompt(key ? "That is not the server's key. The key:" : "This server asks for a key:");
    if (error.kind === "locked" && !given) asks = false;
    if (!given) throw error;
    sessionStorage.setItem("key", given);
    return request(url, options);
  }
}

/** The JSON of each server-sent event in `body`, until [DONE]. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
