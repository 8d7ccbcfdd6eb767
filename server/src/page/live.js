// What the server does now, from /metrics every two seconds. What it does not say is a dash, not a zero.

const EVERY_MS = 2000;
const POINTS = 60;

const $ = (id) => document.getElementById(id);
const format = (value, options) => (Number.isFinite(value) ? value.toLocaleString("en", options) : "–");
const figure = (value) => format(value, { maximumSignificantDigits: 3 });
const whole = (value) => format(value, { maximumFractionDigits: 0 });
const percent = (value) => format(value, { style: "percent", maximumFractionDigits: 0 });

/** Prometheus' text format. */
function parse(text) {
  const samples = [];
  for (const [, name, labels = "", value] of text.matchAll(/^([\w:]+)(?:\{(.*)\})? (\S+)$/gm)) {
    const pairs = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, label, is]) => [label, is]);
    samples.push({ name, labels: Object.fromEntries(pairs), value: Number(value) });
  }
  return samples;
}

const matching = (samples, name, labels) =>
  samples.filter((s) => s.name === name && Object.entries(labels).every(([label, is]) => s.labels[label] === is));
const sum = (samples, name, labels = {}) => matching(samples, name, labels).reduce((all, s) => all + s.value, 0);
const value = (samples, name, labels = {}) => matching(samples, name, labels)[0]?.value;

const speeds = [];
let last;

function draw(speed) {
  speeds.push(Number.isFinite(speed) ? speed : 0);
  if (speeds.length > POINTS) speeds.shift();
  const top = Math.max(1, ...speeds);
  const points = speeds.map((s, i) => `${POINTS - speeds.length + i},${(15 - (14 * s) / top).toFixed(2)}`);
  $("line").setAttribute("points", points.join(" "));
}

/** What counters gained since the last reading, as functions of their name and labels. */
function gains(samples) {
  if (!last) return () => NaN;
  const before = last.samples;
  return (name, labels) => {
    const gain = sum(samples, name, labels) - sum(before, name, labels);
    return gain < 0 ? NaN : gain; // the server was started anew
  };
}

function costs(samples) {
  // Without a price, machine time.
  const price = matching(samples, "frugal_price_per_hour", {})[0];
  const name = price ? "frugal_cost_per_million_tokens" : "frugal_seconds_per_million_tokens";
  $("unit").textContent = price ? price.labels.currency : "Seconds";
  for (const tokens of ["input", "output"]) {
    for (const basis of ["marginal", "loaded"]) {
      $(`${tokens}-${basis}`).textContent = figure(value(samples, name, { tokens, basis, window: "5m" }));
    }
  }
}

function show(samples, now) {
  const gain = gains(samples);
  const seconds = (now - last?.now) / 1000;
  const speed = gain("frugal_tokens_total", { kind: "generated" }) / seconds;
  const running = value(samples, "vllm:num_requests_running");
  $("running").textContent = whole(running);
  $("queued").textContent = whole(value(samples, "vllm:num_requests_waiting"));
  $("kv").textContent = percent(value(samples, "vllm:kv_cache_usage_perc"));
  $("idle").textContent = percent(gain("frugal_cost_seconds_total", { account: "idle" }) / gain("frugal_cost_seconds_total"));
  $("prompts").textContent = figure(gain("frugal_tokens_total", { kind: "prompt" }) / seconds);
  $("outputs").textContent = figure(speed);
  $("pulse").textContent = Number.isFinite(speed) ? `${whole(running)} running, ${figure(speed)} tokens/s` : "";
  draw(speed);
  costs(samples);
  last = { samples, now };
}

function say(state) {
  if ($("state").textContent !== state) $("state").textContent = state;
}

async function look() {
  try {
    const response = await fetch("/metrics", { signal: AbortSignal.timeout(5 * EVERY_MS) });
    if (response.status === 404) return say("numbers not public");
    if (!response.ok) throw new Error(`status ${response.status}`);
    const samples = parse(await response.text());
    show(samples, performance.now());
    say(value(samples, "frugal_ready") ? "ready" : "not ready");
  } catch {
    say("cannot be reached");
    last = undefined;
  }
}

for (;;) {
  if (!document.hidden) await look();
  await new Promise((done) => setTimeout(done, EVERY_MS));
}
