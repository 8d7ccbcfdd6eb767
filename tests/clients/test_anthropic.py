"""Anthropic's own Python client against a running server: `test_anthropic.py URL [API-KEY]`.

Plain asserts, no test framework. ABLE in the environment is a server whose model calls and reasons if it has to.
"""

import os
import sys

import anthropic

KEY = sys.argv[2] if len(sys.argv) > 2 else "none"


def client(url):
    return anthropic.Anthropic(base_url=url.rstrip("/"), api_key=KEY, max_retries=0, timeout=300)


CLIENT = client(sys.argv[1])
# The client no longer knows what the model's sampling takes.
GREEDY = {"temperature": 0}
FIELDS = {"model": "alias", "max_tokens": 12, "system": "You are brief.", "extra_body": GREEDY}
MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "Say hello."}]}]
SCHEMA = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
TOOL = {"name": "weather", "description": "Looks.", "input_schema": SCHEMA, "strict": True}


def test_message():
    message = CLIENT.messages.create(messages=MESSAGES, **FIELDS)
    assert message.id.startswith("msg_") and (message.type, message.role) == ("message", "assistant")
    assert message.content[0].type == "text" and message.stop_reason in ("end_turn", "max_tokens")
    assert 0 < message.usage.output_tokens <= 12


def test_count():
    count = CLIENT.messages.count_tokens(model="alias", system="You are brief.", messages=MESSAGES)
    usage = CLIENT.messages.create(messages=MESSAGES, **FIELDS).usage
    assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_stream():
    whole = CLIENT.messages.create(messages=MESSAGES, **FIELDS)
    with CLIENT.messages.stream(messages=MESSAGES, **FIELDS) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    kinds = [event.type for event in CLIENT.messages.create(messages=MESSAGES, stream=True, **FIELDS)]
    assert kinds[:2] == ["message_start", "content_block_start"] and kinds[-2:] == ["message_delta", "message_stop"]


def test_tools_and_thinking(able):
    ask = {"model": "alias", "max_tokens": 400, "messages": MESSAGES, "tools": [TOOL], "extra_body": {"seed": 7}}
    ask["thinking"] = {"type": "enabled", "budget_tokens": 8}
    ask["tool_choice"] = {"type": "any", "disable_parallel_tool_use": True}
    whole = able.messages.create(**ask)
    with able.messages.stream(**ask) as stream:
        final = stream.get_final_message()
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    call = whole.content[-1]
    assert whole.stop_reason == "tool_use" and (call.type, call.name) == ("tool_use", "weather")
    assert call.input["unit"] in ("C", "F")
    result = [{"type": "tool_result", "tool_use_id": call.id, "content": "20 degrees"}]
    turns = [*MESSAGES, {"role": "assistant", "content": whole.content}, {"role": "user", "content": result}]
    able.messages.create(**ask | {"messages": turns, "tool_choice": {"type": "auto"}, "max_tokens": 12})

    thinking = {"type": "enabled", "budget_tokens": 8}
    ask = {"model": "alias", "max_tokens": 60, "messages": MESSAGES, "thinking": thinking, "extra_body": {"seed": 7}}
    whole = able.messages.create(**ask)
    assert whole.content[0].type == "thinking" and whole.content[0].thinking
    with able.messages.stream(**ask) as stream:
        final = stream.get_final_message()
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]


def fails(kind, **more):
    try:
        CLIENT.messages.create(**FIELDS | {"messages": MESSAGES} | more)
    except kind as error:
        return error
    raise AssertionError(f"{more} is taken")


def test_errors():
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    error = fails(anthropic.BadRequestError, messages=[{"role": "user", "content": [image]}])
    assert "messages[0].content[0].type" in error.message and error.body["error"]["type"] == "invalid_request_error"
    fails(anthropic.NotFoundError, model="another")
    fails(anthropic.BadRequestError, extra_body={"top_p": 7})


if __name__ == "__main__":
    test_message()
    test_count()
    test_stream()
    test_errors()
    if "ABLE" in os.environ:
        test_tools_and_thinking(client(os.environ["ABLE"]))
    print(f"anthropic {anthropic.__version__}: all good")
