// The playground: a chat over /v1/chat/completions. It knows nothing that a client could not know.

const $ = (id) => document.getElementById(id);
let turns = []; // {role, content}; a new chat begins a new array
let listing = null; // the promise of the list of models
let running = null; // the AbortController of the answer being streamed
const MOST_FAILURES = 10; // in a row

// --- what the server says of itself ---------------------------------------------------------------

async function watchReadiness() {
  const status = $("status");
  let wait = 1000;
  try {
    const response = await fetch("/ready", { cache: "no-store" });
    const found = await response.json();
    if (found.ready) {
      status.dataset.state = "ready";
      status.textContent = `${found.model} is ready`;
      wait = 10000;
    } else {
      status.dataset.state = found.workers.length ? "loading" : "down";
      status.textContent = found.workers.length ? `model loading ${Math.round(found.progress * 100)} %` : found.reason;
    }
    if (!$("model").options.length) listing ??= listModels(found.model).finally(() => { listing = null; });
  } catch {
    status.dataset.state = "down";
    status.textContent = "the server cannot be reached";
  }
  setTimeout(watchReadiness, wait);
}

async function listModels(served) {
  const response = await call("/v1/models");
  if (!response.ok) return;
  for (const model of (await response.json()).data.filter((each) => each.task !== "embed")) {
    $("model").add(new Option(model.id, model.id, false, model.id === served));
  }
}

// --- the key that the server may ask for ------------------------------------------------------------

const KEY = "headrace-key"; // in the session's storage: gone with the tab
let asking = null; // the promise of a key that the user is asked for

// fetch, with the key; where it is missing or refused the user is asked for another, and it is tried again.
async function call(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = key ? { ...options.headers, authorization: `Bearer ${key}` } : options.headers;
    const response = await fetch(path, { ...options, headers });
    if (response.status !== 401) return response;
    if (sessionStorage.getItem(KEY) === key) await askForKey((await response.json()).error?.message ?? "", options.signal);
  }
}

async function askForKey(why, signal) {
  $("key-why").textContent = why;
  $("key-form").hidden = false;
  asking ??= new Promise((resolve) => {
    $("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, $("key").value.trim());
      $("key").value = "";
      $("key-form").hidden = true;
      asking = null;
      resolve();
    }, { once: true });
    $("key").focus();
  });
  if (!signal) return asking;
  return Promise.race([
    asking,
    new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true })),
  ]);
}

// --- one request -----------------------------------------------------------------------------------

function requestBody(messages) {
  const system = $("system").value.trim();
  return {
    model: $("model").value,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    temperature: Number($("temperature").value),
    max_tokens: Number($("max-tokens").value) || undefined,
    stream: true,
    stream_options: { include_usage: true },
  };
}

// The events of a stream, each whole: its id comes with its last frame.
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let chunks = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const frames = rest.split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const field = (name) => frame.split("\n").find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      const data = field("data");
      if (data === undefined) continue; // a comment
      if (data !== "[DONE]") chunks.push(JSON.parse(data));
      const id = field("id");
      if (id === undefined && !chunks.at(-1)?.error) continue;
      yield { id, chunks, last: data === "[DONE]" };
      chunks = [];
    }
  }
}

// All chunks of an answer, through lost connections and servers that stop: the same key, after the last event seen.
async function* chunksOf(body, signal) {
  const key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const headers = { "content-type": "application/json", "idempotency-key": key };
  for (let failures = 0; ; failures += 1) {
    if (failures) await pause(failures, signal);
    try {
      const response = await call("/v1/chat/completions", { method: "POST", headers, body, signal });
      if (response.status === 204) return;
      if (!response.ok) {
        const message = (await response.json()).error.message;
        if (![429, 503].includes(response.status) || failures >= MOST_FAILURES) throw new Error(message);
        continue;
      }
      for await (const event of eventsOf(response)) {
        $("reconnecting").hidden = true;
        yield* event.chunks;
        if (event.last) return;
        headers["last-event-id"] = event.id;
        failures = 0;
      }
    } catch (error) {
      if (error.name !== "TypeError" || failures >= MOST_FAILURES) throw error; // fetch's and a stream's broken line
    }
    if (failures >= MOST_FAILURES) throw new Error("the answer broke off");
  }
}

async function pause(failures, signal) {
  $("reconnecting").hidden = false;
  const wait = Math.min(200 * 2 ** failures, 3000) * (0.5 + Math.random() / 2);
  await new Promise((resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    setTimeout(resolve, wait);
  });
}

async function ask(text) {
  hideError();
  const chat = turns;
  chat.push({ role: "user", content: text });
  const question = show("user", text);
  const bubble = show("assistant", "");
  bubble.classList.add("live");
  setRunning(new AbortController());
  const answer = { role: "assistant", content: "" };
  let note = "";
  try {
    note = await stream(chat, answer, bubble);
  } catch (error) {
    note = error.name === "AbortError" ? "stopped" : "";
    if (!note) showError(error.message);
  }
  bubble.classList.remove("live");
  $("reconnecting").hidden = true;
  setRunning(null);
  if (answer.content) {
    chat.push(answer);
    if (note) bubble.append(Object.assign(document.createElement("span"), { className: "note", textContent: note }));
  } else {
    chat.pop();
    bubble.remove();
    question.remove();
    $("empty").hidden = chat.length > 0;
    $("prompt").value ||= text; // for another try
    figures({ ttft: "–" });
  }
  $("prompt").focus();
}

// Streams into `answer` and `bubble`; returns what is to be noted of its end.
async function stream(chat, answer, bubble) {
  const began = performance.now();
  let first = null;
  let pieces = 0;
  let reason = "";
  figures({ ttft: "…", rate: "–", completion: "–", prompted: "–" });
  const text = document.createTextNode("");
  bubble.append(text);
  const controller = running;
  for await (const chunk of chunksOf(JSON.stringify(requestBody(chat)), controller.signal)) {
    if (chunk.error) throw new Error(chunk.error.message);
    if (first === null) controller.signal.addEventListener("abort", () => cancel(chunk.id));
    const now = performance.now();
    if (chunk.usage) {
      const made = chunk.usage.completion_tokens;
      figures({ completion: made, prompted: chunk.usage.prompt_tokens });
      if (made > 1 && now > first) figures({ rate: ((made - 1) / ((now - first) / 1000)).toFixed(1) });
    }
    const choice = chunk.choices[0];
    if (!choice) continue;
    reason = choice.finish_reason ?? reason;
    if (first === null) {
      first = now;
      figures({ ttft: milliseconds(first - began) });
    }
    if (!choice.delta.content) continue;
    answer.content += choice.delta.content;
    pieces += 1;
    const stay = atBottom();
    text.data = answer.content;
    if (stay) toBottom();
    figures({ completion: pieces });
    if (pieces > 1) figures({ rate: ((pieces - 1) / ((now - first) / 1000)).toFixed(1) });
  }
  if (!reason) throw new Error("the answer broke off");
  return reason === "length" ? "ended at the most tokens allowed" : "";
}

// A keyed answer goes on without its reader, so it has to be told.
function cancel(completion) {
  call(`/v1/jobs/${completion.replace("chatcmpl-", "req_")}`, { method: "DELETE" }).catch(() => {});
}

function curl() {
  const text = $("prompt").value.trim();
  const messages = text ? [...turns, { role: "user", content: text }] : turns;
  const body = requestBody(messages.length ? messages : [{ role: "user", content: "Hello!" }]);
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const key = sessionStorage.getItem(KEY) ? "-H 'authorization: Bearer YOUR_KEY' " : "";
  return `curl -N ${location.origin}/v1/chat/completions ${key}-H 'content-type: application/json' -d '${quoted}'`;
}

// --- the page --------------------------------------------------------------------------------------

const milliseconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`);
const atBottom = () => {
  const log = $("transcript");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 40;
};
const toBottom = () => { $("transcript").scrollTop = $("transcript").scrollHeight; };

function figures(values) {
  for (const [id, value] of Object.entries(values)) $(id).textContent = value;
}

function show(role, text) {
  $("empty").hidden = true;
  const bubble = document.createElement("div");
  bubble.className = `turn ${role}`;
  bubble.setAttribute("aria-label", role === "user" ? "You" : "Model");
  bubble.setAttribute("role", "group");
  bubble.append(text);
  $("transcript").append(bubble);
  toBottom();
  return bubble;
}

function setRunning(controller) {
  running = controller;
  $("send").hidden = controller !== null;
  $("stop").hidden = controller === null;
}

function showError(message) {
  $("error").textContent = message;
  $("error").hidden = false;
}

function hideError() {
  $("error").hidden = true;
}

function grow() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function submit() {
  const text = $("prompt").value.trim();
  if (!text || running) return;
  $("prompt").value = "";
  grow();
  ask(text);
}

async function copyCurl() {
  await navigator.clipboard.writeText(curl());
  $("copy").textContent = "Copied";
  setTimeout(() => { $("copy").textContent = "Copy as curl"; }, 1500);
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("prompt").addEventListener("input", grow);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  turns = [];
  for (const turn of document.querySelectorAll(".turn")) turn.remove();
  $("empty").hidden = false;
  hideError();
  figures({ ttft: "–", rate: "–", completion: "–", prompted: "–" });
  $("prompt").focus();
});
$("temperature").addEventListener("input", () => { $("temperature-value").value = $("temperature").value; });
$("copy").addEventListener("click", () => copyCurl().catch(() => showError(curl())));
for (const idea of document.querySelectorAll(".idea")) idea.addEventListener("click", () => ask(idea.textContent));
if (matchMedia("(max-width: 820px)").matches) $("settings").open = false;
watchReadiness();
