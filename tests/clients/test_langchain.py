"""LangChain's ChatOpenAI against a running server: `test_langchain.py URL [API-KEY]`. A smoke test."""

import sys

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI

BASE = sys.argv[1].rstrip("/") + "/v1"
KEY = sys.argv[2] if len(sys.argv) > 2 else "none"
FIELDS = {"base_url": BASE, "api_key": KEY, "model": "alias", "temperature": 0, "max_retries": 0, "timeout": 300}
CHAT = ChatOpenAI(max_tokens=12, **FIELDS)
MESSAGES = [SystemMessage("You are brief."), HumanMessage("Say hello."), AIMessage("Hello."), HumanMessage("Again.")]

answer = CHAT.invoke(MESSAGES)
assert answer.content and answer.response_metadata["finish_reason"] in ("stop", "length")
assert answer.usage_metadata["total_tokens"] == answer.usage_metadata["input_tokens"] + answer.usage_metadata["output_tokens"]
print("ok invoke")

chunks = list(CHAT.stream(MESSAGES))
assert "".join(chunk.content for chunk in chunks) == answer.content and len(chunks) > 2
print("ok stream")

batch = CHAT.batch([[HumanMessage(f"Count to {n}.")] for n in range(4)])
assert len(batch) == 4 and all(isinstance(one, AIMessage) for one in batch)
print("ok batch")

scored = CHAT.bind(logprobs=True, top_logprobs=2, stop=["\x00"]).invoke(MESSAGES)
assert len(scored.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2
print("ok logprobs")

assert OpenAI(max_tokens=8, **FIELDS).invoke("Once upon a time")
print("ok completions")
print("langchain-openai: all good")
