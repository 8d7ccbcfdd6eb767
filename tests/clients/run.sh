#!/usr/bin/env bash
# Runs OpenAI's Python client, of a pinned version, against a running server: run.sh URL [API-KEY]
# The client lives in a virtual environment that is thrown away, unless OPENAI_VENV names a folder to keep it in.
set -euo pipefail
url=${1:?usage: run.sh URL [API-KEY]}
version=3.54.0
here=$(cd "$(dirname "$0")" && pwd)

missing() {
    echo "########################################################################" >&2
    echo "## NOT TESTED: the openai client $version could not be installed: $1" >&2
    echo "########################################################################" >&2
    exit 77
}

venv=${OPENAI_VENV:-}
if [ -z "$venv" ]; then
    venv=$(mktemp -d)
    trap 'rm -rf "$venv"' EXIT
fi
if [ ! -x "$venv/bin/python" ]; then
    command -v python3 >/dev/null || missing "there is no python3"
    python3 -m venv "$venv" >&2 || missing "python3 has no venv"
fi
if ! "$venv/bin/python" -c "import openai; assert openai.__version__ == '$version'" 2>/dev/null; then
    "$venv/bin/pip" install --quiet --disable-pip-version-check "openai==$version" >&2 || missing "pip failed"
fi
"$venv/bin/python" "$here/test_openai.py" "$@"
