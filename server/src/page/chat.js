// A chat over /v1/chat/completions. What the model says becomes text nodes, never HTML.

const $ = (id) => document.getElementById(id);
const make = (tag, className, text = "") => Object.assign(document.createElement(tag), { className, textContent: text });
const figure = (value) => value.toLocaleString("en", { maximumSignificantDigits: 3 });

/** The server's answer if it is a good one; else its own words are thrown. */
async function ask(path, options = {}) {
  const key = sessionStorage.getItem("api-key");
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached");
  });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? `The server answered with status ${response.status}`;
  if (response.status === 401) {
    $("access").hidden = false;
    $("why").textContent = key ? message : "";
    $("key").focus();
  }
  throw new Error(message);
}

/** The data of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

/** Text that grows, with fenced code set apart and no empty lines around it. Each line is looked at once. */
class Prose {
  constructor(parent) {
    this.parent = parent;
    this.line = ""; // what is not shown yet: it may become a fence
    this.open();
  }

  open(code) {
    this.code = code;
    this.text = document.createTextNode("");
    const block = make(code ? "pre" : "p", code ? "code" : "text");
    if (code) Object.assign(block, { tabIndex: 0, ariaLabel: "Code" });
    block.append(this.text);
    this.parent.append(block);
  }

  add(text) {
    const lines = (this.line + text).split("\n");
    this.line = lines.pop();
    for (const line of lines) this.show(line, "\n");
    if (this.midway || !/^ {0,3}(`{0,2}|`{3,}[^`]*)$/.test(this.line)) {
      this.text.appendData(this.line);
      this.midway ||= this.line !== "";
      this.line = "";
    }
  }

  show(line, end) {
    const fence = !this.midway && /^ {0,3}(`{3,})([^`]*)$/.exec(line);
    this.midway = false;
    if (fence && (!this.code || (fence[1].length >= this.code.length && !fence[2].trim()))) {
      this.close();
      this.open(this.code ? undefined : fence[1]);
    } else if (this.code || this.text.length || line.trim()) this.text.appendData(line + end);
  }

  close() {
    this.text.data = this.text.data.trimEnd();
  }

  end() {
    if (this.line) this.show(this.line, "");
    this.line = "";
    this.close();
  }
}

/** What is shown of an answer. */
class Answer {
  constructor() {
    this.element = Object.assign(make("article", "answer"), { ariaLabel: "Model" });
    this.content = "";
    this.calls = [];
    this.sent = performance.now();
  }

  add({ delta, finish_reason: reason }) {
    if (reason) this.reason = reason;
    const { content, reasoning_content: thought, tool_calls: calls = [] } = delta;
    if (!content && !thought && !calls.length) return;
    this.first ??= performance.now();
    if (thought) {
      this.thoughts ??= this.fold("reasoning", "Reasoning", "p");
      this.thoughts.append(thought);
    }
    if (content) {
      if (!this.prose) {
        this.thoughts?.parentElement.removeAttribute("open");
        this.prose = new Prose(this.element);
      }
      this.content += content;
      this.prose.add(content);
    }
    for (const call of calls) {
      const shown = (this.calls[call.index] ??= this.fold("call", "Calls ", "pre"));
      shown.previousElementSibling.append(call.function?.name ?? "");
      shown.append(call.function?.arguments ?? "");
    }
  }

  /** Something that can be folded away: what is inside. */
  fold(className, title, tag) {
    const details = make("details", className);
    const inside = make(tag, "text");
    details.append(make("summary", "", title), inside);
    details.open = true;
    this.element.append(details);
    return inside;
  }

  /** Tokens, speed and cost, as far as they are known. */
  end(usage, remark) {
    this.prose?.end();
    const figures = [];
    if (usage) {
      const { prompt_tokens: prompt, completion_tokens: output, prompt_tokens_details: details } = usage;
      figures.push(`${prompt} tokens in${details?.cached_tokens ? ` (${details.cached_tokens} cached)` : ""}`, `${output} out`);
      // The first token ends the wait; the others make the speed.
      const seconds = (performance.now() - this.first) / 1000;
      if (output > 1 && seconds > 0) figures.push(`${figure((output - 1) / seconds)} tokens/s`);
    }
    if (this.first) figures.push(`first after ${figure((this.first - this.sent) / 1000)} s`);
    if (usage?.cost !== undefined) figures.push(`${figure(usage.cost)} ${usage.cost_details?.currency ?? ""}`);
    if (remark) figures.push(remark);
    this.element.append(make("p", "figures", figures.join(" · ")));
  }
}

// For a reload of this tab, as the key is.
const messages = JSON.parse(sessionStorage.getItem("messages") ?? "[]");
let running;

function keep() {
  try {
    sessionStorage.setItem("messages", JSON.stringify(messages));
  } catch {
    sessionStorage.removeItem("messages"); // longer than a browser keeps
  }
}

/** What the user said, as it is shown. */
const spoken = (content) => Object.assign(make("p", "user text", content), { role: "article", ariaLabel: "You" });

/** What the settings ask for; what is empty is not asked for. */
function settings() {
  const fields = [...$("settings").querySelectorAll("input")].filter((input) => input.value !== "");
  return Object.fromEntries(fields.map((input) => [input.name, Number(input.value)]));
}

function show(element) {
  $("conversation").append(element);
  follow(true);
}

/** Keeps the end in sight for those who are there. */
function follow(always) {
  const log = $("conversation");
  if (always || log.scrollHeight - log.scrollTop - log.clientHeight < 80) log.scrollTop = log.scrollHeight;
}

function busy(controller) {
  running = controller;
  const [from, to] = controller ? [$("send"), $("stop")] : [$("stop"), $("send")];
  to.hidden = false;
  if (document.activeElement === from) to.focus();
  from.hidden = true;
  // Read out once it is whole, not token by token.
  $("conversation").ariaBusy = String(Boolean(controller));
}

/** Reads an answer into `answer`; its usage. */
async function read(response, answer, signal) {
  let usage;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return usage;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    usage = chunk.usage ?? usage;
    if (chunk.choices[0] && !signal.aborted) answer.add(chunk.choices[0]);
    follow();
  }
  throw new Error("The answer broke off");
}

/** One turn. One that fails is shown and not made part of the conversation. */
async function say(content) {
  const controller = new AbortController();
  const { signal } = controller;
  const system = $("system").value.trim();
  const turn = { role: "user", content };
  const said = spoken(content);
  show(said);
  const answer = new Answer();
  show(answer.element);
  busy(controller);
  const body = JSON.stringify({
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages, turn],
    ...settings(),
    stream: true,
    stream_options: { include_usage: true },
  });
  const headers = { "content-type": "application/json" };
  try {
    const response = await ask("/v1/chat/completions", { method: "POST", headers, body, signal });
    const usage = await read(response, answer, signal);
    answer.end(usage, answer.reason === "length" ? "cut at the token limit" : "");
  } catch (error) {
    answer.end(undefined, signal.aborted ? "stopped" : "");
    if (!signal.aborted) {
      said.classList.add("failed");
      answer.element.append(Object.assign(make("p", "error", error.message), { role: "alert" }));
      $("prompt").value ||= content;
    }
  }
  // A new chat may have begun meanwhile.
  if (running !== controller) return;
  // An answer without text would be an empty turn in every later prompt.
  if (!answer.content) said.classList.add("failed");
  if (!said.classList.contains("failed")) messages.push(turn, { role: "assistant", content: answer.content });
  keep();
  follow();
  busy();
}

function stop() {
  running?.abort();
}

async function greet() {
  try {
    const { data } = await (await ask("/v1/models")).json();
    $("model").textContent = data[0].id;
    document.title = `${data[0].id} · Frugal`;
    if (!$("access").hidden) $("prompt").focus();
    $("access").hidden = true;
  } catch (error) {
    $("model").textContent = $("access").hidden ? error.message : "…";
  }
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value;
  if (running || !text.trim()) return;
  $("prompt").value = "";
  say(text);
});
// Safari ends a composition before the key that ends it comes: 229 says whose it was.
const composing = (event) => event.isComposing || event.keyCode === 229;
// Without a keyboard of its own there is no Shift+Enter: there Enter is a new line, and the button sends.
const keyboard = matchMedia("(any-pointer: fine)");
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || composing(event) || !keyboard.matches) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("api-key", $("key").value);
  greet();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && !composing(event) && stop());
$("stop").addEventListener("click", stop);
$("fresh").addEventListener("click", () => {
  stop();
  busy();
  messages.length = 0;
  keep();
  $("conversation").replaceChildren();
  $("prompt").focus();
});

const wide = matchMedia("(min-width: 48rem)");
const unfold = () => document.querySelectorAll("aside details").forEach((details) => (details.open = wide.matches));
wide.addEventListener("change", unfold);
unfold();
for (const { role, content } of messages) {
  if (role === "user") show(spoken(content));
  else {
    const answer = new Answer();
    answer.add({ delta: { content } });
    answer.prose.end();
    show(answer.element);
  }
}
greet();
