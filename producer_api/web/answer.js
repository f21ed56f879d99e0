// One streamed answer: sent once under an idempotency key, and resumed after the last event that was processed, through
// lost connections, stopping servers and reloads of the page. The session's storage keeps what a reload needs.

const MAX_FAILURES = 10; // in a row
const MAX_PAUSE_MS = 3000;
const CHAT = "headrace-chat"; // the finished turns
const ANSWER = "headrace-answer"; // the answer that is being streamed

export function newAnswer(body) {
  const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
  const key = bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return { key, body: JSON.stringify(body), lastId: null, id: null, content: "", pieces: 0, reason: "" };
}

// --- the session's storage ---------------------------------------------------------------------------

export const saveTurns = (turns) => save(CHAT, turns);
export const loadTurns = () => load(CHAT) ?? [];
export const saveAnswer = (answer) => save(ANSWER, answer);
export const loadAnswer = () => load(ANSWER);
export const forgetAnswer = () => sessionStorage.removeItem(ANSWER);

function save(name, value) {
  try {
    sessionStorage.setItem(name, JSON.stringify(value));
  } catch (error) {
    if (error.name !== "QuotaExceededError") throw error;
    sessionStorage.removeItem(name); // the answer still streams; a reload does not find it
  }
}

function load(name) {
  return JSON.parse(sessionStorage.getItem(name));
}

// --- the stream --------------------------------------------------------------------------------------

// Yields the chunks of each event of `answer` that follows its lastId, which advances once an event was processed.
// `call` is fetch with the user's API key; `reconnecting` is called with true while the connection is lost.
export async function* eventsOf(answer, call, signal, reconnecting) {
  let complete = false;
  for (let failures = 0; !complete; failures += 1) {
    if (failures) await pause(failures, signal, reconnecting);
    try {
      const response = await call("/v1/chat/completions", request(answer, signal));
      if (response.status === 204) return;
      if (!response.ok) {
        const message = (await response.json()).error.message;
        if (![429, 503].includes(response.status) || failures >= MAX_FAILURES) throw new Error(message);
        continue;
      }
      for await (const event of parsed(response)) {
        reconnecting(false);
        yield event.chunks;
        complete = event.last; // the body is still read to its end, so that the connection can be used again
        answer.lastId = event.id;
        saveAnswer(answer);
        failures = 0;
      }
    } catch (error) {
      if (error.name !== "TypeError") throw error; // fetch and a cut stream raise TypeError
    }
    if (!complete && failures >= MAX_FAILURES) throw new Error("the connection was lost before the answer was complete");
  }
}

function request(answer, signal) {
  const headers = { "content-type": "application/json", "idempotency-key": answer.key };
  if (answer.lastId !== null) headers["last-event-id"] = answer.lastId;
  return { method: "POST", headers, body: answer.body, signal };
}

// An event may have several frames; the last one carries its id.
async function* parsed(response) {
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
      if (data === undefined || field("event") === "error") continue; // a comment, or the server asks to reconnect
      if (data !== "[DONE]") chunks.push(JSON.parse(data));
      const id = field("id");
      if (id === undefined && !chunks.at(-1)?.error) continue;
      yield { id, chunks, last: data === "[DONE]" };
      chunks = [];
    }
  }
}

async function pause(failures, signal, reconnecting) {
  reconnecting(true);
  const wait = Math.min(200 * 2 ** failures, MAX_PAUSE_MS) * (0.5 + Math.random() / 2);
  await new Promise((resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    setTimeout(resolve, wait);
  });
}
