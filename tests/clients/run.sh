#!/usr/bin/env bash
# Runs a client of a pinned version against a running server: run.sh CLIENT URL [API-KEY]
# CLIENT is openai, anthropic, node, langchain, litellm (which is large), schemathesis or page (in Chromium). It lives in an environment that is thrown away, unless
# CLIENT_ENVIRONMENT names a folder to keep it in.
set -euo pipefail
client=${1:?usage: run.sh CLIENT URL [API-KEY]}
url=${2:?usage: run.sh CLIENT URL [API-KEY]}
shift
here=$(cd "$(dirname "$0")" && pwd)

case $client in
    openai) package=openai==3.54.0 ;;
    anthropic) package=anthropic==2.14.0 ;;
    node) package=openai@6.49.0 ;;
    langchain) package=langchain-openai==1.7.4 ;;
    litellm) package=litellm==1.110.2 ;;
    page) package=playwright-core@1.64.1 ;;
    schemathesis) package=schemathesis==4.32.5 ;;
    *)
        echo "no such client: $client" >&2
        exit 2
        ;;
esac

missing() {
    echo "########################################################################" >&2
    echo "## NOT TESTED: the client $package could not be installed: $1" >&2
    echo "########################################################################" >&2
    exit 77
}

environment=${CLIENT_ENVIRONMENT:-}
if [ -z "$environment" ]; then
    environment=$(mktemp -d)
    trap 'rm -rf "$environment"' EXIT
fi
mkdir -p "$environment"

with_pip() {
    if [ ! -x "$environment/bin/python" ]; then
        command -v python3 >/dev/null || missing "there is no python3"
        python3 -m venv "$environment" >&2 || missing "python3 has no venv"
    fi
    "$environment/bin/pip" install --quiet --disable-pip-version-check "$package" >&2 || missing "pip failed"
}

with_npm() {
    command -v npm >/dev/null || missing "there is no npm"
    node -e 'process.exit(Number(process.versions.node.split(".")[0]) >= 20 ? 0 : 1)' || missing "node is older than 20"
    npm install --silent --no-audit --no-fund --prefix "$environment" "$package" >&2 || missing "npm failed"
}

if [ "$client" = page ]; then
    command -v chromium >/dev/null || missing "there is no chromium to drive"
fi

# What is there is there in this version, without asking a registry again.
if [ "$(cat "$environment/installed" 2>/dev/null)" != "$package" ]; then
    case $client in node | page) with_npm ;; *) with_pip ;; esac
    echo "$package" >"$environment/installed"
fi

case $client in
    node | page)
        # Modules are looked for beside the script.
        if [ "$client" = node ]; then script=test_openai.mjs; else script=test_page.mjs; fi
        cp "$here/$script" "$environment/"
        node "$environment/$script" "$@"
        ;;
    schemathesis)
        # In the environment, so that it leaves its files there.
        cd "$environment"
        cp "$here/schemathesis_hooks.py" .
        checks=not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance
        checks=$checks,response_headers_conformance
        SERVER_URL=$url SCHEMATHESIS_HOOKS=schemathesis_hooks bin/st run "$url/openapi.json" --generation-deterministic --max-examples 50 \
            --phases examples,coverage,fuzzing --checks "$checks" --request-timeout 30 --no-color |
            tee report.txt
        echo "$package: all good"
        ;;
    *) "$environment/bin/python" "$here/test_$client.py" "$@" ;;
esac
