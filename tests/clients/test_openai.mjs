// OpenAI's own client for Node against a running server: `test_openai.mjs URL [API-KEY]`.
// Plain asserts, as in test_openai.py; what is in the environment (FULL, LIMITED, LATE) as there.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, key = "none"] = process.argv.slice(2);
const open = (base, options) => new OpenAI({ baseURL: `${base}/v1`, apiKey: key, maxRetries: 0, ...options });
const client = open(url);
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "system", content: "You are brief." }, { role: "user", content: "Say hello." }];
const fields = { model, messages, max_tokens: 12, temperature: 0 };

const tests = {
  async models() {
    assert.equal((await client.models.retrieve(model)).id, model);
    await assert.rejects(client.models.retrieve("nothing"), OpenAI.NotFoundError);
  },
  async chat() {
    const answer = await client.chat.completions.create({ ...fields, n: 2, logprobs: true, top_logprobs: 2 });
    assert.equal(answer.object, "chat.completion");
    assert.equal(answer.choices[0].message.content, answer.choices[1].message.content);
    assert.equal(answer.choices[0].logprobs.content[0].top_logprobs.length, 2);
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    assert.match(answer.system_fingerprint, /^fp_[0-9a-f]{10}$/);
  },
  async streaming() {
    const whole = await client.chat.completions.create(fields);
    const stream = await client.chat.completions.create({ ...fields, stream: true, stream_options: { include_usage: true } });
    let text = "";
    let usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.deepEqual(usage.completion_tokens, whole.usage.completion_tokens);
    const helper = client.chat.completions.stream(fields);
    assert.equal((await helper.finalChatCompletion()).choices[0].message.content, text);
  },
  async leaving() {
    const stream = await client.chat.completions.create({ ...fields, stream: true, max_tokens: 200 });
    for await (const _ of stream) break;
  },
  async completions() {
    const ask = { model, prompt: "Once upon a time", max_tokens: 8, temperature: 0, echo: true, logprobs: 2 };
    const { choices } = await client.completions.create(ask);
    assert.ok(choices[0].text.startsWith("Once upon a time"));
    assert.equal(choices[0].logprobs.token_logprobs[0], null);
    const both = await client.completions.create({ ...ask, prompt: ["a b", "c d"] });
    assert.deepEqual(both.choices.map((choice) => choice.index), [0, 1]);
  },
  async errors() {
    const refused = (kind, more) => assert.rejects(client.chat.completions.create({ ...fields, ...more }), kind);
    await refused(OpenAI.NotFoundError, { model: "nothing" });
    await refused((e) => e instanceof OpenAI.BadRequestError && e.param === "temperature", { temperature: 9 });
    await refused((e) => e.code === "unknown_parameter" && e.requestID.length === 32, { no_such_field: 1 });
  },
  async timeouts() {
    // Longer than the client waits: the server is told and forgets the request.
    const slow = client.chat.completions.create({ ...fields, max_tokens: 1900, n: 16, ignore_eos: true }, { timeout: 1 });
    await assert.rejects(slow, OpenAI.APIConnectionTimeoutError);
  },
};

/** A refusal first; then with retries, which succeed once the server has been relieved. */
async function relieved(base, kind, code) {
  const ask = { messages, max_tokens: 2 };
  const refused = (e) => e instanceof kind && e.code === code && Number(e.headers.get("retry-after")) >= 1;
  await assert.rejects(open(base).chat.completions.create(ask), refused);
  console.log("relieve", code === "overloaded" ? "full" : "limited");
  await open(base, { maxRetries: 8 }).chat.completions.create(ask);
}

if (process.env.FULL) {
  tests.full = () => relieved(process.env.FULL, OpenAI.InternalServerError, "overloaded");
  tests.limited = () => relieved(process.env.LIMITED, OpenAI.RateLimitError, "rate_limit_exceeded");
  tests.unknownKey = () =>
    assert.rejects(open(process.env.LIMITED, { apiKey: "wrong" }).models.list(), OpenAI.AuthenticationError);
  tests.late = () =>
    assert.rejects(open(process.env.LATE, { maxRetries: 8 }).chat.completions.create({ messages }), { status: 504 });
}

for (const [name, test] of Object.entries(tests)) {
  await test();
  console.log(`ok ${name}`);
}
console.log("openai for Node: all good");
