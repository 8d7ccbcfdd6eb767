"""LiteLLM against a running server, as one of OpenAI's kind: `test_litellm.py URL [API-KEY]`.

A smoke test with plain asserts: answers, streams, calls and refusals arrive as its users know them.
"""

import json
import os
import sys

# Before it is imported: its table of prices is its own, not fetched.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

BASE = sys.argv[1].rstrip("/") + "/v1"
KEY = sys.argv[2] if len(sys.argv) > 2 else "none"
FIELDS = {"model": "openai/alias", "api_base": BASE, "api_key": KEY, "temperature": 0, "num_retries": 0, "seed": 1}
MESSAGES = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Say hello."}]


def chat(**more):
    return litellm.completion(**(FIELDS | {"messages": MESSAGES, "max_tokens": 12} | more))


def test_chat_and_stream():
    whole = chat()
    assert whole.choices[0].message.content and whole.usage.completion_tokens == 12
    chunks = list(chat(stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content


def test_tools():
    schema = {"type": "object", "properties": {"days": {"type": "integer", "minimum": 0, "maximum": 9}},
              "required": ["days"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "weather", "strict": True, "parameters": schema}}]
    choice = chat(tools=tools, tool_choice="required", max_tokens=200).choices[0]
    call = choice.message.tool_calls[0]
    assert choice.finish_reason == "tool_calls" and call.function.name == "weather"
    assert 0 <= json.loads(call.function.arguments)["days"] <= 9


def test_responses():
    fields = {name: value for name, value in FIELDS.items() if name != "seed"}
    # LiteLLM asks for 16 tokens at least.
    answer = litellm.responses(input="Say hello.", max_output_tokens=16, **fields)
    assert answer.output[0].content[0].text and 0 < answer.usage.output_tokens <= 16, answer.usage
    events = [event.type for event in litellm.responses(input="Hi", max_output_tokens=16, stream=True, **fields)]
    assert events[0] == "response.created" and events[-1] in ("response.incomplete", "response.completed"), events


def test_refusals():
    for kind, more in [(litellm.NotFoundError, {"model": "openai/nothing"}), (litellm.BadRequestError, {"temperature": 9})]:
        try:
            chat(**more)
        except kind:
            continue
        raise AssertionError(f"not refused with {kind.__name__}")


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print(f"ok {name}", flush=True)
    print("litellm: all good")
