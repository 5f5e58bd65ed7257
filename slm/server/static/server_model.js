// The model behind the server that this page came from; the same functions as local_model.js.

/** What the model is: an entry of `GET /v1/models`. */
export async function open() {
  const { data } = await (await answer(fetch("v1/models"))).json();
  return data[0];
}

/** Yields the tokens after `prompt` and `ids`; returns why it ended: "stop", "length" or "stopped". */
export async function* write({ prompt, ids, maxTokens, temperature, topP, seed, signal }) {
  try {
    const body = { max_tokens: maxTokens, temperature, top_p: topP, seed, stream: true, logprobs: 5 };
    body.prompt = ids.length ? [...(await encode(prompt, signal)), ...ids] : prompt;
    const response = await answer(ask(body, signal));
    for await (const { error, choices } of events(response.body)) {
      if (error) throw new Error(error.message);
      const { logprobs, finish_reason } = choices[0];
      const { token_ids = [], token_bytes, token_logprobs, top_token_ids, top_token_bytes, top_token_logprobs } = logprobs ?? {};
      for (let i = 0; i < token_ids.length; i++) {
        const top = top_token_ids[i].map((id, n) => ({
          id, logprob: top_token_logprobs[i][n], bytes: top_token_bytes[i][n],
        }));
        yield { id: token_ids[i], logprob: token_logprobs[i], bytes: token_bytes[i], top };
      }
      if (finish_reason) return finish_reason;
    }
    throw new Error("the server closed the connection before the story's end");
  } catch (error) {
    if (signal.aborted) return "stopped";
    throw error;
  }
}

/** The ids of `prompt` as the server reads it. */
async function encode(prompt, signal) {
  const body = { prompt, echo: true, max_tokens: 0, logprobs: 0 };
  const { choices } = await (await answer(ask(body, signal))).json();
  return choices[0].logprobs.token_ids;
}

function ask(body, signal) {
  const headers = { "Content-Type": "application/json" };
  return fetch("v1/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** The response, if it is a good one. */
async function answer(request) {
  const response = await request.catch((error) => {
    throw error.name === "AbortError" ? error : new Error("the server does not answer: is it still running?");
  });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new Error(error?.message ?? `the server answers ${response.status} ${response.statusText}`);
}

/** The JSON of each server-sent event in `body`, until [DONE]. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split(/\r?\n\r?\n/);
    held = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}
