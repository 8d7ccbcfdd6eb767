"""Lets random requests name the model there is, so that what else they ask for is looked at, too."""

import schemathesis


@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body = body | {"model": "alias"}
    return body
