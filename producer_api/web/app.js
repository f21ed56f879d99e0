// The playground: a chat over the public API. A reload shows the same chat and resumes the answer being streamed.

import { eventsOf, forgetAnswer, loadAnswer, loadTurns, newAnswer, saveAnswer, saveTurns } from "/web/answer.js";

const $ = (id) => document.getElementById(id);
let turns = loadTurns(); // {role, content}; a new chat begins a new array
let listing = null; // the promise of the list of models
let running = null; // the AbortController of the answer being streamed

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
      const loading = found.reasons.some((each) => each.code === "loading");
      status.dataset.state = loading ? "loading" : "down";
      status.textContent = loading ? `model loading ${Math.round(found.progress * 100)} %` : found.reason;
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
  for (const model of (await response.json()).data.filter((each) => each.task === "generate" || !each.task)) {
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

function ask(text) {
  turns.push({ role: "user", content: text });
  show("user", text);
  const answer = newAnswer(requestBody(turns));
  saveTurns(turns);
  saveAnswer(answer);
  follow(answer);
}

// Streams `answer`, a new one or one that the page had before a reload, to its end.
async function follow(answer) {
  hideError();
  const chat = turns;
  const bubble = show("assistant", answer.content);
  bubble.classList.add("live");
  setRunning(new AbortController());
  let note = "";
  try {
    note = await stream(answer, bubble);
  } catch (error) {
    note = error.name === "AbortError" ? "stopped" : "";
    if (!note) showError(error.message);
  }
  bubble.classList.remove("live");
  $("reconnecting").hidden = true;
  setRunning(null);
  if (answer.content) {
    chat.push({ role: "assistant", content: answer.content });
    if (note) bubble.append(Object.assign(document.createElement("span"), { className: "note", textContent: note }));
  } else {
    giveBack(chat.pop(), bubble);
  }
  if (chat === turns) {
    saveTurns(chat);
    forgetAnswer();
  }
  $("prompt").focus();
}

// A question without an answer returns to the prompt, for another try.
function giveBack(question, bubble) {
  bubble.previousElementSibling?.remove();
  bubble.remove();
  $("empty").hidden = document.querySelector(".turn") !== null;
  $("prompt").value ||= question.content;
  grow();
  figures({ ttft: "–" });
}

// Streams into `answer` and `bubble`; returns the note to show below it.
async function stream(answer, bubble) {
  const clock = { timed: answer.lastId === null, began: performance.now(), first: null };
  figures({ ttft: clock.timed ? "…" : "–", rate: "–", completion: answer.pieces || "–", prompted: "–" });
  const text = bubble.firstChild;
  const { signal } = running;
  signal.addEventListener("abort", () => { if (answer.id) cancel(answer.id); });
  for await (const chunks of eventsOf(answer, call, signal, (lost) => { $("reconnecting").hidden = !lost; })) {
    for (const chunk of chunks) {
      if (chunk.error) throw new Error(chunk.error.message);
      const follows = atBottom();
      take(chunk, answer, clock);
      text.data = answer.content;
      if (follows) toBottom();
    }
  }
  if (!answer.reason) throw new Error("the stream ended before the answer was complete");
  return answer.reason === "length" ? "cut at the maximum number of tokens" : "";
}

// Adds a chunk to `answer` and shows its figures; times are those of an answer that this page saw from its start.
function take(chunk, answer, clock) {
  const now = performance.now();
  const rate = (tokens) => {
    if (clock.timed && tokens > 1 && now > clock.first) figures({ rate: ((tokens - 1) / ((now - clock.first) / 1000)).toFixed(1) });
  };
  answer.id = chunk.id;
  if (chunk.usage) {
    figures({ completion: chunk.usage.completion_tokens, prompted: chunk.usage.prompt_tokens });
    rate(chunk.usage.completion_tokens);
  }
  const choice = chunk.choices[0];
  if (!choice) return;
  answer.reason = choice.finish_reason ?? answer.reason;
  if (clock.first === null) {
    clock.first = now;
    if (clock.timed) figures({ ttft: milliseconds(now - clock.began) });
  }
  if (!choice.delta.content) return;
  answer.content += choice.delta.content;
  answer.pieces += 1;
  figures({ completion: answer.pieces });
  rate(answer.pieces);
}

// A request with an idempotency key continues without its reader, so stopping it takes a call.
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
  saveTurns(turns);
  forgetAnswer();
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
for (const turn of turns) show(turn.role, turn.content);
const interrupted = loadAnswer();
if (interrupted) follow(interrupted);
watchReadiness();
