"""Lets random requests name what there is, so that what else they ask for is looked at, too."""

import itertools
import json
import os
import urllib.request

import schemathesis

COUNT = itertools.count()


@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body = body | {"model": "alias"}
    return body


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Every other response exists, half of them from the background."""
    number = next(COUNT)
    if "response_id" in (path_parameters or {}) and number % 2:
        body = json.dumps({"input": "Hi", "max_output_tokens": 1, "background": number % 4 == 1}).encode()
        url = os.environ["SERVER_URL"] + "/v1/responses"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            path_parameters = path_parameters | {"response_id": json.load(response)["id"]}
    return path_parameters
