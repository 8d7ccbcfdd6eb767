#!/usr/bin/env python3
"""What speculative decoding brings: tasks in turns on two servers of one model, the second with `scheduler.draft_tokens = 0`.

    speculation.py URL URL_WITHOUT [ROUNDS]

Answers must be the same. Prints tokens a second of both (medians, prompts included) and the median ratio with its range. A prediction is
the answer with a letter more in every twentieth word.
"""

import json
import statistics
import sys
import time
import urllib.request

CODE = '''def load_records(path):
    records = []
    with open(path) as f:
        for line in f:
            line = line.strip()
            if not line:
                continue
            name, value = line.split(",")
            records.append((name, float(value)))
    return records

def total(records):
    result = 0.0
    for name, value in records:
        result += value
    return result

def average(records):
    if not records:
        return 0.0
    return total(records) / len(records)
'''
TEXT = (
    "The Amazon rainforest covers much of northwestern Brazil and extends into Colombia, Peru and other South American "
    "countries. It is the world's largest tropical rainforest, famed for its biodiversity. It is crisscrossed by thousands of "
    "rivers, including the powerful Amazon."
)
PEOPLE = {
    "type": "array",
    "minItems": 5,
    "items": {
        "type": "object",
        "properties": {
            "first_name": {"type": "string", "maxLength": 12},
            "last_name": {"type": "string", "maxLength": 12},
            "year_of_birth": {"type": "integer", "minimum": 1900, "maximum": 2020},
            "is_a_member": {"type": "boolean"},
        },
        "required": ["first_name", "last_name", "year_of_birth", "is_a_member"],
        "additionalProperties": False,
    },
}
JSON = {"type": "json_schema", "json_schema": {"name": "people", "schema": PEOPLE}}
# Name, request, temperature, whether the answer is predicted, too.
TASKS = [
    ("copy a program", f"Repeat this program exactly:\n```python\n{CODE}```", 0, True),
    ("copy a text", f"{TEXT}\n\nRepeat the text above word for word.", 0, False),
    ("summary", f"{TEXT}\n\nSummarize the text above in two sentences.", 0, False),
    ("list", "List ten facts about the planet Mars.", 0, True),
    ("story", "Write a short story about a lighthouse keeper.", 0, True),
    ("poem, sampled", "Write a poem about the sea.", 0.8, False),
    ("JSON by a schema", "Invent five people as JSON.", 0, False),
]


def ask(url, text, temperature, prediction=None):
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 200, "temperature": temperature, "seed": 1}
    if "JSON" in text:
        body["response_format"] = JSON
    if prediction is not None:
        body["prediction"] = {"type": "content", "content": prediction}
    request = urllib.request.Request(
        url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    begun = time.monotonic()
    answer = json.load(urllib.request.urlopen(request))
    return time.monotonic() - begun, answer["choices"][0]["message"]["content"], answer["usage"]


def compare(name, urls, rounds, text, temperature, prediction):
    times = ([], [])
    for _ in range(rounds):
        took, answer, usage = ask(urls[0], text, temperature, prediction)
        plain_took, plain_answer, _ = ask(urls[1], text, temperature)
        if answer != plain_answer:
            sys.exit(f"{name}: the answers differ:\n{answer}\n---\n{plain_answer}")
        times[0].append(took)
        times[1].append(plain_took)
    tokens = usage["completion_tokens"]
    rates = [tokens / statistics.median(t) for t in times]
    ratios = [plain / took for took, plain in zip(*times)]
    details = usage.get("completion_tokens_details")
    guessed = "" if details is None else ", {accepted_prediction_tokens} guesses right, {rejected_prediction_tokens} wrong"
    print(
        f"{name:28} {tokens:4} tokens  {rates[0]:6.1f} / {rates[1]:6.1f} tokens/s"
        f"  {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" + guessed.format(**(details or {})),
        flush=True,
    )


def main():
    urls, rounds = [url.rstrip("/") for url in sys.argv[1:3]], int(sys.argv[3]) if len(sys.argv) > 3 else 7
    for name, text, temperature, predicted in TASKS:
        compare(name, urls, rounds, text, temperature, None)
        if predicted:
            words = ask(urls[1], text, temperature)[1].split(" ")
            wrong = " ".join(word + "s" if i % 20 == 10 else word for i, word in enumerate(words))
            compare(name + ", predicted", urls, rounds, text, temperature, wrong)


main()
