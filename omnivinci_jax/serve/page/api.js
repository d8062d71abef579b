// The server's endpoints. Every error is one line for the user.

/** Returns the name of the server's model. */
export async function modelName() {
  const response = await send("v1/models");
  return (await response.json()).data[0].id;
}

/** Returns what the model sees in one clip: an item of the server's timeline. */
export async function timeline(part) {
  const response = await send("v1/timeline", { messages: [{ role: "user", content: [part] }] });
  return (await response.json()).items[0];
}

/**
 * Asks the model; yields {text}, {audio} (base64 of 16-bit PCM), {finish} and {usage} as they arrive.
 * `aloud` asks for speech too; `signal` stops the answer.
 */
export async function* ask(messages, { model, aloud, signal }) {
  const speech = aloud ? { modalities: ["text", "audio"], audio: { format: "pcm16" } } : {};
  const body = { model, messages, stream: true, stream_options: { include_usage: true }, ...speech };
  const response = await send("v1/chat/completions", body, signal);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    const [choice] = chunk.choices;
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.delta?.audio?.data) yield { audio: choice.delta.audio.data };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (chunk.usage) yield { usage: chunk.usage };
  }
  throw new Error("The answer broke off: the server closed the connection.");
}

async function send(path, body, signal) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  let response;
  try {
    response = await fetch(path, body && post);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
  }
  if (response.ok) return response;
  const line = await response.json().then((answer) => answer.error.message, () => null);
  throw new Error(line ?? `The server answered ${response.status} ${response.statusText}.`);
}

/** Yields the data of server-sent events; each of ours is one line. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}
