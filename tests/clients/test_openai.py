"""OpenAI's own Python client against a running server: `test_openai.py URL [API-KEY]`.

Plain asserts, no test framework: what is checked is that the client's types accept our answers and that its errors
are the ones its users catch. FULL, LIMITED and LATE in the environment are servers in trouble: full until it has refused
twice, limited to one request of this key likewise, and with no time for any request.
"""

import asyncio
import json
import os
import sys
from typing import Literal, Optional

import openai
import pydantic

BASE = sys.argv[1].rstrip("/") + "/v1"
KEY = sys.argv[2] if len(sys.argv) > 2 else "none"
CLIENT = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0, timeout=300)
MODEL = CLIENT.models.list().data[0].id
MESSAGES = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": [{"type": "text", "text": "Say hello."}]},
]


def chat(**more):
    fields = {"model": MODEL, "messages": MESSAGES, "max_tokens": 12, "temperature": 0} | more
    return CLIENT.chat.completions.create(**fields)


def test_models():
    models = CLIENT.models.list().data
    assert all(m.object == "model" and m.created > 0 for m in models)
    assert CLIENT.models.retrieve(MODEL).id == MODEL


def test_chat():
    answer = chat(n=2)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == MODEL
    assert [c.index for c in answer.choices] == [0, 1]
    assert answer.choices[0].message.role == "assistant"
    # Greedy choices of one prompt are the same.
    assert answer.choices[0].message.content == answer.choices[1].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 24
    assert usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.system_fingerprint.startswith("fp_") and answer.choices[0].stop_reason is None


def test_prediction():
    plain = chat(max_tokens=24)
    text = plain.choices[0].message.content
    answer = chat(max_tokens=24, prediction={"type": "content", "content": text})
    assert answer.choices[0].message.content == text
    details = answer.usage.completion_tokens_details
    assert details.accepted_prediction_tokens >= 0 and details.rejected_prediction_tokens >= 0


def test_stream():
    whole = chat()
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len({c.id for c in chunks}) == 1


def test_stream_helper():
    with CLIENT.chat.completions.stream(model=MODEL, messages=MESSAGES, max_tokens=12, temperature=0) as stream:
        for _ in stream:
            pass
        # Not get_final_completion(): that raises on answers that end by length.
        final = stream.current_completion_snapshot
    assert final.choices[0].message.content == chat().choices[0].message.content


def test_leaving_a_stream():
    stream = chat(stream=True, max_tokens=200)
    next(iter(stream))
    stream.close()


def test_logprobs():
    answer = chat(logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) > 0
    for entry in content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert [t.logprob for t in entry.top_logprobs] == sorted((t.logprob for t in entry.top_logprobs), reverse=True)
    shown = b"".join(bytes(entry.bytes) for entry in content).decode(errors="replace")
    assert shown == answer.choices[0].message.content


def test_seeds():
    def text(seed):
        return chat(temperature=1, seed=seed, max_tokens=24).choices[0].message.content

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_completions():
    fields = {"model": MODEL, "max_tokens": 8, "temperature": 0, "extra_body": {"ignore_eos": True}}
    answer = CLIENT.completions.create(prompt="Once upon a time", logprobs=2, echo=True, **fields)
    choice = answer.choices[0]
    assert answer.object == "text_completion" and choice.text.startswith("Once upon a time")
    logprobs = choice.logprobs
    lengths = {len(x) for x in (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset)}
    assert lengths == {answer.usage.total_tokens}
    assert logprobs.token_logprobs[0] is None and logprobs.text_offset[0] == 0
    both = CLIENT.completions.create(prompt=["a b c", "d e f"], n=2, **fields)
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    stream = CLIENT.completions.create(prompt="a b c", stream=True, **fields)
    assert "".join(c.choices[0].text for c in stream) == both.choices[0].text


def test_stop():
    fields = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}
    text = CLIENT.completions.create(**fields).choices[0].text
    stop = next((text[i : i + 2] for i in range(4, len(text) - 2) if "\ufffd" not in text[i : i + 2]), None)
    if stop:
        stopped = CLIENT.completions.create(stop=[stop], **fields).choices[0]
        assert stopped.text == text[: text.index(stop)] and stopped.finish_reason == "stop"
        assert stopped.stop_reason == stop
        shown = CLIENT.completions.create(stop=[stop], extra_body={"include_stop_str_in_output": True}, **fields)
        assert shown.choices[0].text == stopped.text + stop


def test_stop_tokens():
    by_id = {"ignore_eos": True, "return_tokens_as_token_ids": True}
    fields = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
    names = CLIENT.completions.create(logprobs=0, extra_body=by_id, **fields).choices[0].logprobs.tokens
    last = int(names[-1].removeprefix("token_id:"))
    stopped = CLIENT.completions.create(extra_body={"ignore_eos": True, "stop_token_ids": [last]}, **fields)
    assert stopped.choices[0].finish_reason == "stop" and stopped.choices[0].stop_reason == last
    assert stopped.usage.completion_tokens == names.index(names[-1]) + 1


def test_prompt_logprobs():
    answer = CLIENT.completions.create(
        model=MODEL, prompt=[5, 6, 7], max_tokens=1, extra_body={"prompt_logprobs": 2}
    )
    first, second, third = answer.choices[0].prompt_logprobs
    assert first is None and "6" in second and third["7"]["rank"] >= 1 and third["7"]["logprob"] <= 0


def test_penalties_and_bias():
    varied = chat(presence_penalty=2, frequency_penalty=2, extra_body={"ignore_eos": True})
    assert varied.choices[0].finish_reason == "length"
    forced = chat(logit_bias={"70": 100}, logprobs=True, max_tokens=3, extra_body={"ignore_eos": True})
    assert len({entry.token for entry in forced.choices[0].logprobs.content}) == 1


def test_bookkeeping():
    answer = chat(
        user="u", metadata={"a": "b"}, store=False, service_tier="auto", safety_identifier="s", prompt_cache_key="k",
        extra_headers={"x-request-id": "mine-7"},
    )
    assert answer._request_id == "mine-7"


class Tag(pydantic.BaseModel):
    kind: Literal["colour", "size"]
    value: str = pydantic.Field(max_length=8)


class Thing(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    count: int = pydantic.Field(ge=0, le=1000)
    tags: list[Tag] = pydantic.Field(max_length=3)
    parent: Optional[Tag] = None


def test_parse():
    fields = {"model": MODEL, "messages": MESSAGES, "max_tokens": 1000, "seed": 5}
    thing = CLIENT.chat.completions.parse(response_format=Thing, **fields).choices[0].message.parsed
    assert isinstance(thing, Thing) and len(thing.name) <= 12 and len(thing.tags) <= 3
    with CLIENT.chat.completions.stream(response_format=Thing, **fields) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == thing
    regex = {"structured_outputs": {"regex": "[a-f]{4}"}}
    text = CLIENT.chat.completions.create(extra_body=regex, **fields).choices[0].message.content
    assert len(text) == 4 and set(text) <= set("abcdef")
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    error = refusal(openai.BadRequestError, lambda: chat(response_format=wrong))
    assert error.param == "response_format" and "'not'" in error.message


def refusal(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"not refused with {kind.__name__}")


def test_tools():
    schema = {"type": "object", "properties": {"days": {"type": "integer", "minimum": 0, "maximum": 9}},
              "required": ["days"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "weather", "strict": True, "parameters": schema}}]
    asked = dict(tools=tools, tool_choice="required", parallel_tool_calls=False, seed=3, max_tokens=200)
    choice = chat(**asked).choices[0]
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and call.function.name == "weather", choice
    assert 0 <= json.loads(call.function.arguments)["days"] <= 9, call
    streamed = {"arguments": ""}
    for chunk in chat(stream=True, **asked):
        for delta in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
            assert delta.index == 0
            if delta.id:
                streamed.update(id=delta.id, name=delta.function.name)
            streamed["arguments"] += delta.function.arguments or ""
    assert streamed == {"id": call.id, "name": "weather", "arguments": call.function.arguments}, streamed


def respond(**more):
    fields = {"model": MODEL, "input": "Say hello.", "max_output_tokens": 12, "temperature": 0}
    return CLIENT.responses.create(**(fields | {"extra_body": {"seed": 1}} | more))


def test_responses():
    answer = respond(instructions="You are brief.", metadata={"a": "b"}, user="u")
    assert answer.object == "response" and answer.id.startswith("resp_") and answer.model == MODEL
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.instructions == "You are brief." and answer.metadata == {"a": "b"} and answer.user == "u"
    [message] = answer.output
    assert message.type == "message" and message.role == "assistant" and answer.output_text == message.content[0].text
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens and usage.output_tokens == 12
    assert usage.input_tokens_details.cached_tokens >= 0 and usage.output_tokens_details.reasoning_tokens == 0
    scored = respond(include=["message.output_text.logprobs"], top_logprobs=2).output[0].content[0]
    assert len(scored.logprobs) > 0 and all(len(entry.top_logprobs) == 2 for entry in scored.logprobs)


def test_responses_stream():
    whole = respond()
    events = list(respond(stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type for e in events if e.type != "response.output_text.delta"]
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ], kinds
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output == whole.output
    assert CLIENT.responses.retrieve(events[-1].response.id) == events[-1].response


class Arguments(pydantic.BaseModel):
    days: int = pydantic.Field(ge=0, le=9)


def test_responses_tools():
    tools = [openai.pydantic_function_tool(Arguments, name="weather")["function"] | {"type": "function"}]
    asked = {"model": MODEL, "tools": tools, "max_output_tokens": 200, "extra_body": {"seed": 3}}
    first = dict(input="Is it warm?", tool_choice="required", parallel_tool_calls=False, **asked)
    answer = CLIENT.responses.create(**first)
    [call] = [item for item in answer.output if item.type == "function_call"]
    assert answer.status == "completed" and call.name == "weather" and 0 <= json.loads(call.arguments)["days"] <= 9
    with CLIENT.responses.stream(**first) as stream:
        deltas = [e.delta for e in stream if e.type == "response.function_call_arguments.delta"]
        assert "".join(deltas) == call.arguments and stream.get_final_response().output[0].call_id == call.call_id
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "20 degrees"}
    second = dict(tool_choice="none", **asked)
    kept = CLIENT.responses.create(input=[result], previous_response_id=answer.id, **second)
    assert kept.previous_response_id == answer.id
    # What was answered may be sent back instead.
    said = [{"role": "user", "content": "Is it warm?"}, *answer.output, result]
    sent = CLIENT.responses.create(input=said, store=False, **second)
    assert sent.output_text == kept.output_text and sent.usage.input_tokens == kept.usage.input_tokens
    items = list(CLIENT.responses.input_items.list(kept.id, order="asc", limit=2))
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]


def test_responses_parse():
    fields = {"model": MODEL, "input": "A thing.", "max_output_tokens": 1000, "extra_body": {"seed": 5}}
    thing = CLIENT.responses.parse(text_format=Thing, **fields).output_parsed
    assert isinstance(thing, Thing) and len(thing.name) <= 12 and len(thing.tags) <= 3
    with CLIENT.responses.stream(text_format=Thing, **fields) as stream:
        assert stream.get_final_response().output_parsed == thing


def test_responses_kept():
    answer = respond()
    assert CLIENT.responses.retrieve(answer.id) == answer
    assert "synchronous" in refusal(openai.BadRequestError, lambda: CLIENT.responses.cancel(answer.id)).message
    CLIENT.responses.delete(answer.id)
    refusal(openai.NotFoundError, lambda: CLIENT.responses.retrieve(answer.id))
    refusal(openai.NotFoundError, lambda: CLIENT.responses.delete(answer.id))
    gone = refusal(openai.BadRequestError, lambda: respond(previous_response_id=answer.id))
    assert gone.code == "previous_response_not_found" and gone.param == "previous_response_id"
    running = respond(background=True, max_output_tokens=1900, extra_body={"seed": 2})
    assert running.status == "queued" and running.background
    # It is fast: either it was ended, or it has ended.
    assert CLIENT.responses.cancel(running.id).status in ("cancelled", "incomplete", "completed")
    refused = refusal(openai.BadRequestError, lambda: respond(tools=[{"type": "web_search"}]))
    assert refused.param == "tools[0].type" and refused.code == "unsupported_parameter"
    assert refusal(openai.NotFoundError, lambda: respond(model="nothing")).code == "model_not_found"


def test_errors():
    missing = refusal(openai.NotFoundError, lambda: chat(model="nothing-like-it"))
    assert missing.code == "model_not_found" and missing.request_id
    assert refusal(openai.NotFoundError, lambda: CLIENT.models.retrieve("nothing-like-it")).param == "model"
    tools = [{"type": "function", "function": {"name": "no spaces"}}]
    assert refusal(openai.BadRequestError, lambda: chat(tools=tools)).param == "tools[0].function.name"
    assert refusal(openai.BadRequestError, lambda: chat(temperature=9)).param == "temperature"
    unknown = refusal(openai.BadRequestError, lambda: chat(extra_body={"no_such_field": 1}))
    assert unknown.param == "no_such_field" and unknown.type == "invalid_request_error"
    long = [{"role": "user", "content": "word " * 300_000}]
    assert refusal(openai.BadRequestError, lambda: chat(messages=long)).code == "context_length_exceeded"


def test_timeouts():
    # Longer than the client waits: the server is told and forgets the request.
    slow = CLIENT.with_options(timeout=0.001)
    body = {"n": 16, "max_tokens": 1900, "extra_body": {"ignore_eos": True}}
    refusal(openai.APITimeoutError, lambda: slow.chat.completions.create(model=MODEL, messages=MESSAGES, **body))


def relieved(base, kind, code):
    """A refusal first; then with retries, which succeed once the server has been relieved."""
    client = openai.OpenAI(base_url=base + "/v1", api_key=KEY, max_retries=0, timeout=300)
    ask = {"model": "alias", "messages": MESSAGES, "max_tokens": 2}
    error = refusal(kind, lambda: client.chat.completions.create(**ask))
    assert error.code == code and int(error.response.headers["retry-after"]) >= 1
    print("relieve", "full" if code == "overloaded" else "limited", flush=True)
    assert client.with_options(max_retries=8).chat.completions.create(**ask).choices


def test_trouble():
    if "FULL" not in os.environ:
        return
    relieved(os.environ["FULL"], openai.InternalServerError, "overloaded")
    relieved(os.environ["LIMITED"], openai.RateLimitError, "rate_limit_exceeded")
    wrong = openai.OpenAI(base_url=os.environ["LIMITED"] + "/v1", api_key="wrong", max_retries=0)
    refusal(openai.AuthenticationError, wrong.models.list)
    late = openai.OpenAI(base_url=os.environ["LATE"] + "/v1", api_key=KEY, max_retries=8)
    error = refusal(openai.InternalServerError, lambda: late.chat.completions.create(model="alias", messages=MESSAGES))
    assert error.status_code == 504


def test_many_at_once():
    client = openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0, timeout=300)

    async def one(i):
        messages = [{"role": "user", "content": f"Tell me about the number {i}."}]
        fields = {"model": MODEL, "messages": messages, "max_tokens": 16, "temperature": 0.8, "seed": i}
        stream = await client.chat.completions.create(stream=True, **fields)
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def run():
        together = await asyncio.gather(*(one(i) for i in range(16)))
        return together, [await one(i) for i in range(16)]

    together, alone = asyncio.run(run())
    assert together == alone


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print(f"ok {name}", flush=True)
    print(f"openai {openai.__version__}: all good")
