// Shows /openapi.json as a page: every route with its parameters, bodies, answers and errors, and examples that run.
// All text is set as text, never as markup.

const METHODS = ["get", "post", "put", "patch", "delete"];
const DEEPEST = 6; // levels of a schema that are shown

const key = document.querySelector("#key");
const KEY = "headrace-key"; // the playground's: gone with the tab
key.value = sessionStorage.getItem(KEY) ?? "";
key.addEventListener("input", () => sessionStorage.setItem(KEY, key.value));

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

function operations(document) {
  return Object.entries(document.paths).flatMap(([path, methods]) =>
    METHODS.filter((method) => methods[method]).map((method) => ({ path, method, ...methods[method] })),
  );
}

// A path that wraps after its slashes.
function breakable(path) {
  const parts = path.split(/(?<=\/)/).flatMap((part) => [part, element("wbr")]);
  return element("span", {}, ...parts);
}

function anchor({ method, path }) {
  return `${method}${path.replaceAll(/[^a-z0-9]+/gi, "-")}`;
}

// schemas

function resolved(schema, root) {
  if (!schema?.$ref) return schema ?? {};
  const named = schema.$ref.split("/").pop();
  return { title: named, ...root.components.schemas[named] };
}

function kind(schema, root) {
  const options = schema.anyOf ?? schema.oneOf;
  if (options) return options.map((each) => kind(resolved(each, root), root)).join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" | ");
  if (schema.type === "array") return `list of ${kind(resolved(schema.items, root), root)}`;
  if (Array.isArray(schema.type)) return schema.type.join(" or ");
  return schema.properties ? (schema.title ?? "object") : (schema.type ?? "anything");
}

function objects(schema, root) {
  const whole = resolved(schema, root);
  if (whole.properties) return [whole];
  const inner = [...(whole.anyOf ?? whole.oneOf ?? []), ...(whole.items ? [whole.items] : [])];
  return inner.flatMap((each) => objects(each, root));
}

function fields(schema, root, depth = 0) {
  const list = element("dl", { class: "fields" });
  for (const whole of objects(schema, root)) {
    const required = new Set(whole.required ?? []);
    for (const [name, given] of Object.entries(whole.properties)) {
      const field = resolved(given, root);
      const title = element("dt", {}, element("code", {}, name), element("span", { class: "kind" }, kind(field, root)));
      if (required.has(name)) title.append(element("span", { class: "required" }, "required"));
      const told = element("dd", {}, given.description ?? field.description ?? "");
      if (depth < DEEPEST && objects(given, root).length) told.append(folded("fields", () => fields(given, root, depth + 1)));
      list.append(title, told);
    }
  }
  return list;
}

// Filled when it is first opened: schemas may contain themselves.
function folded(title, fill) {
  const made = element("details", {}, element("summary", {}, title));
  made.addEventListener("toggle", () => made.open && made.children.length === 1 && made.append(fill()));
  return made;
}

// examples

function curl(operation, body) {
  const parts = ["curl"];
  if (operation.method !== "get") parts.push("-X", operation.method.toUpperCase());
  parts.push(`${location.origin}${operation.path}`);
  if (operation.security && key.value) parts.push("-H", "'authorization: Bearer $HEADRACE_API_KEY'");
  if (body !== undefined) parts.push("-H", "'content-type: application/json'", "-d", `'${JSON.stringify(body).replaceAll("'", "'\\''")}'`);
  return parts.join(" ");
}

async function send(operation, text, output) {
  const headers = {};
  if (text !== undefined) headers["content-type"] = "application/json";
  if (operation.security && key.value) headers.authorization = `Bearer ${key.value}`;
  output.hidden = false;
  output.textContent = "waiting…";
  try {
    const response = await fetch(operation.path, { method: operation.method.toUpperCase(), headers, body: text });
    output.textContent = `${response.status} ${response.statusText}\n\n`;
    const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
    let whole = "";
    for (let part = await reader?.read(); part && !part.done; part = await reader.read()) {
      whole += part.value;
      output.append(part.value);
    }
    if (response.headers.get("content-type")?.includes("json")) {
      output.textContent = `${response.status} ${response.statusText}\n\n${JSON.stringify(JSON.parse(whole), null, 2)}`;
    }
  } catch (error) {
    output.textContent = `it could not be sent: ${error.message}`;
  }
}

function example(operation, name, body) {
  const command = element("pre", {}, curl(operation, body));
  const made = element("div", { class: "example" }, element("h4", {}, name), command);
  const output = element("pre", { class: "output", role: "status" });
  output.hidden = true;
  let text;
  if (body !== undefined) {
    text = element("textarea", { spellcheck: "false", "aria-label": `body of: ${name}`, rows: "8" });
    text.value = JSON.stringify(body, null, 2);
    text.rows = Math.min(16, text.value.split("\n").length);
    text.addEventListener("input", () => {
      try {
        command.textContent = curl(operation, JSON.parse(text.value));
      } catch { /* not whole yet: the command stays as it was */ }
    });
    made.append(text);
  }
  const button = element("button", { type: "button", class: "primary" }, "Send");
  button.addEventListener("click", () => send(operation, text?.value, output));
  made.append(button, output);
  return made;
}

function exampleList(operation) {
  const given = operation.requestBody?.content?.["application/json"]?.examples;
  if (given) return Object.entries(given).map(([name, { value }]) => example(operation, name, value));
  const plain = operation.method === "get" && !operation.path.includes("{");
  return plain ? [example(operation, "As it is", undefined)] : [];
}

// a route

function parameters(operation) {
  const rows = (operation.parameters ?? []).map((each) =>
    element("tr", {}, element("td", {}, element("code", {}, each.name)), element("td", {}, each.in), element("td", {}, each.description ?? "")),
  );
  return rows.length ? [element("h3", {}, "Parameters"), element("table", {}, element("tbody", {}, ...rows))] : [];
}

function bodies(content, root) {
  return Object.entries(content ?? {}).map(([type, { schema }]) => {
    const whole = resolved(schema, root);
    const title = `${type}: ${whole.title ?? kind(whole, root)}`;
    return objects(schema, root).length ? folded(title, () => fields(schema, root)) : element("p", { class: "kind" }, title);
  });
}

function answers(operation, root) {
  return Object.entries(operation.responses).sort(([a], [b]) => a.localeCompare(b)).map(([status, told]) =>
    element("li", { class: status < "400" ? "good" : "bad" }, element("strong", {}, status), ` ${told.description} `, ...bodies(told.content, root)),
  );
}

function route(operation, root) {
  const path = element("h2", {}, element("span", { class: `method ${operation.method}` }, operation.method), element("code", {}, operation.path));
  const made = element("section", { id: anchor(operation) }, path, element("p", { class: "summary" }, operation.summary ?? ""));
  if (operation.description) made.append(element("p", {}, operation.description));
  made.append(...parameters(operation));
  if (operation.requestBody) made.append(element("h3", {}, "Body"), ...bodies(operation.requestBody.content, root));
  const shown = exampleList(operation);
  if (shown.length) made.append(folded(`Examples (${shown.length})`, () => element("div", {}, ...shown)));
  made.append(element("h3", {}, "Answers"), element("ul", { class: "answers" }, ...answers(operation, root)));
  return made;
}

async function show() {
  const contents = document.querySelector("#contents");
  const routes = document.querySelector("#routes");
  const response = await fetch("/openapi.json");
  if (!response.ok) throw new Error(`openapi.json cannot be loaded: status ${response.status}`);
  const root = await response.json();
  document.querySelector("#about").textContent = `${root.info.version} · ${root.info.description ?? ""}`;
  routes.replaceChildren();
  for (const [tag, found] of grouped(operations(root))) {
    contents.append(element("h2", {}, tag));
    for (const each of found) {
      contents.append(element("a", { href: `#${anchor(each)}` }, element("span", { class: `method ${each.method}` }, each.method), breakable(each.path)));
      routes.append(route(each, root));
    }
  }
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

function grouped(list) {
  const groups = new Map();
  for (const each of list) {
    const tag = each.tags?.[0] ?? "Other";
    groups.set(tag, [...(groups.get(tag) ?? []), each]);
  }
  return groups;
}

show().catch((error) => {
  document.querySelector("#routes").replaceChildren(element("p", { class: "error", role: "alert" }, error.message));
});
