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
  async responses() {
    const ask = { model, input: "Say hello.", max_output_tokens: 12, temperature: 0, seed: 1 };
    const whole = await client.responses.create(ask);
    assert.equal(whole.output_text, whole.output[0].content[0].text);
    assert.equal(whole.usage.total_tokens, whole.usage.input_tokens + whole.usage.output_tokens);
    let text = "";
    let last = null;
    for await (const event of await client.responses.create({ ...ask, stream: true })) {
      if (event.type === "response.output_text.delta") text += event.delta;
      last = event;
    }
    assert.equal(text, whole.output_text);
    assert.deepEqual(last.response.output, whole.output);
    const next = await client.responses.create({ ...ask, previous_response_id: whole.id, input: "And?" });
    const items = [];
    for await (const item of client.responses.inputItems.list(next.id, { order: "asc", limit: 1 })) items.push(item.role);
    assert.deepEqual(items, ["user", "assistant", "user"]);
    assert.deepEqual((await client.responses.retrieve(whole.id)).output, whole.output);
    await client.responses.delete(whole.id);
    await assert.rejects(client.responses.retrieve(whole.id), OpenAI.NotFoundError);
    await assert.rejects(client.responses.cancel(next.id), OpenAI.BadRequestError);
  },
  async responseTools() {
    const parameters = { type: "object", properties: { days: { type: "integer", minimum: 0, maximum: 9 } }, required: ["days"], additionalProperties: false };
    const tools = [{ type: "function", name: "weather", parameters, strict: true }];
    const ask = { model, tools, tool_choice: "required", parallel_tool_calls: false, input: "Warm?", max_output_tokens: 200, seed: 3 };
    const streamed = await client.responses.stream(ask).finalResponse();
    const [call] = streamed.output.filter((item) => item.type === "function_call");
    assert.ok(JSON.parse(call.arguments).days <= 9);
    const input = [{ type: "function_call_output", call_id: call.call_id, output: "20" }];
    const next = await client.responses.create({ model, input, previous_response_id: streamed.id, max_output_tokens: 4 });
    assert.equal(next.previous_response_id, streamed.id);
    const format = { type: "json_schema", name: "count", schema: { ...parameters }, strict: true };
    const parsed = await client.responses.parse({ model, input: "How many?", text: { format }, max_output_tokens: 100, seed: 1 });
    assert.ok(parsed.output_parsed.days >= 0);
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
