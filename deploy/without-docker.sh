#!/usr/bin/env bash
# Builds the image and runs it without Docker's engine: answers a chat, is scraped, drains. As root on Debian, with buildah and debootstrap.
#
#   deploy/without-docker.sh            compiles in the build stage; the image has the demonstration model
#   deploy/without-docker.sh BINARY     takes a binary instead; the image has no model and gets a small one of random weights
#
# No registry of images is asked: the base images are made by debootstrap (with this machine's Rust) and imported under their names. Ends with
# 77 where that is not possible.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:-}
debian=bookworm
image=localhost/frugal
work=$(pwd)/target/image
mkdir -p "$work"
cannot() {
    echo "SKIPPED: the image, built and run ($*)" >&2
    exit 77
}
say() { printf '\n-- %s\n' "$*" >&2; }
# Storage of its own, so that nothing here meets the machine's images.
buildah() { command buildah --root "$work/storage" --runroot "$work/run" "$@"; }

container='' server=''
cleanup() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; fi
    if [ -n "$container" ]; then buildah rm "$container" >/dev/null 2>&1 || true; fi
    rm -rf "$work/root"
}
trap cleanup EXIT

# The mirror that this machine's apt uses.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' | awk -v d=$debian '$2 == d && $3 == "main" { print $1; exit }')

# base NAME PACKAGES: a system of the size of Debian's slim images, which have no documentation and translations either.
base() {
    if buildah inspect --type image "$1" >/dev/null 2>&1; then return; fi
    say "base image $1"
    rm -rf "$work/root"
    debootstrap --variant=minbase --include="$2" $debian "$work/root" "$mirror" >"$work/debootstrap.log" ||
        cannot "debootstrap failed: see $work/debootstrap.log"
    rm -rf "$work"/root/var/cache/apt/* "$work"/root/var/lib/apt/lists/* "$work"/root/usr/share/{doc,info,locale,man}/*
    if [ "${3:-}" = rust ]; then
        cp -a "$(rustc --print sysroot)/." "$work/root/usr/local/"
        rm -rf "$work/root/usr/local/share/doc"
    fi
    container=$(buildah from scratch) || cannot "buildah has no storage here"
    buildah add --quiet "$container" "$work/root" / >/dev/null
    buildah commit --quiet --rm "$container" "$1" >/dev/null
    container=''
    rm -rf "$work/root"
}

rust=$(rustc --version | sed 's/^rustc \([0-9]*\.[0-9]*\).*/\1/')
base docker.io/library/debian:$debian-slim ca-certificates
# Certificates of this machine, for those whose network has its own.
build=(bud --isolation chroot --pull=never --format docker --layers --file deploy/Dockerfile --build-arg "RUST=$rust"
    --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)" --volume /etc/ssl/certs:/etc/ssl/certs:ro)
run=()
model=smollm2-135m-instruct-8x2
if [ -n "$binary" ]; then
    rm -rf "$work/prebuilt"
    install -D --strip "$binary" "$work/prebuilt/out/usr/local/bin/frugal"
    install -d -o 65532 -g 65532 "$work"/prebuilt/out/var/cache/frugal{,/huggingface}
    build+=(--build-context "build=$work/prebuilt" --target runtime)
    run+=(--volume "$(pwd)/tests/fixtures:/models:ro" --env FRUGAL_MODEL__SOURCE=/models/qwen3moe-Q4_K_M.gguf)
    model=qwen3moe-Q4_K_M
else
    base "docker.io/library/rust:$rust-slim-$debian" ca-certificates,gcc,libc6-dev rust
    base docker.io/library/python:3.13-slim-$debian ca-certificates,python3-pip
fi


say "build"
buildah "${build[@]}" --tag $image . >&2
field() { buildah inspect --type image --format "{{$1}}" $image; }
labels=$(field '.OCIv1.Config.Labels')
[ "$(field '.OCIv1.Config.User')" = 65532:65532 ]
[ "$(field '.OCIv1.Config.Entrypoint')" = '[frugal]' ]
[ "$(field '.Docker.Config.Healthcheck.Test')" = '[CMD frugal health]' ]
for label in title description licenses version revision; do grep -q "org.opencontainers.image.$label:" <<<"$labels"; done
# The innermost process of a container is the one that an engine would signal.
innermost() {
    local pid=$1 next
    while next=$(pgrep -P "$pid"); do pid=$next; done
    echo "$pid"
}
port=$((20000 + RANDOM % 20000))
url=http://127.0.0.1:$port
settings=(FRUGAL_SERVER__HOST=127.0.0.1 "FRUGAL_SERVER__PORT=$port" FRUGAL_COST__INSTANCE_PER_HOUR=0.10)

# try WHAT: the server that was started last answers, is scraped, and drains.
try() {
    for _ in $(seq 600); do
        kill -0 "$engine" || { cat "$work/server.log" >&2; exit 1; }
        if curl -fs $url/readyz >/dev/null; then break; fi
        sleep 0.1
    done
    server=$(innermost "$engine")
    say "$1: chat"
    curl -fsS $url/v1/chat/completions -H 'Content-Type: application/json' \
        -d '{"messages":[{"role":"user","content":"What is 2+2?"}],"max_tokens":16,"temperature":0}' | tee "$work/answer" >&2
    grep -q "\"model\":\"$model\"" "$work/answer"
    say "$1: scrape"
    curl -fsS $url/metrics >"$work/metrics"
    grep "^frugal_http_responses_total.*/v1/chat/completions.* 1$" "$work/metrics" >&2
    grep "^frugal_cost_per_million_tokens.*all.*loaded.*start" "$work/metrics" >&2
}
stop() {
    say "$1: stop"
    kill "$server"
    local code=0
    wait "$engine" || code=$?
    server=''
    grep draining "$work/server.log" >&2
    [ $code = 0 ] || { echo "it ended with $code" >&2; exit 1; }
}

container=$(buildah from --pull=never $image)
buildah run --isolation chroot "${run[@]}" "${settings[@]/#/--env=}" "$container" -- frugal >"$work/server.log" 2>&1 &
engine=$!
try "buildah run"
say "buildah run: the health check"
buildah run --isolation chroot "${settings[@]/#/--env=}" "$container" -- frugal health >&2
[ "$(stat -c %u "/proc/$server")" = 65532 ]
stop "buildah run"

# What `docker run --read-only` does: everything but the kernel's file systems cannot be written.
root=$(buildah mount "$container")
megabytes=$(($(du --summarize --bytes --exclude='*.gguf' "$root" | cut -f1) / 1000000))
[ $megabytes -lt 150 ]
mkdir -p "$root/models"
mapfile -t variables < <(buildah inspect --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$container" | grep .)
[ -z "$binary" ] || settings+=(FRUGAL_MODEL__SOURCE=/models/qwen3moe-Q4_K_M.gguf)
env -i "${variables[@]}" "${settings[@]}" unshare --mount /bin/sh -euc '
    mount --bind "$1" "$1"
    mount --bind "$2" "$1/models"
    mount -o remount,bind,ro "$1"
    mount --rbind /proc "$1/proc"
    mount --rbind /dev "$1/dev"
    ! touch "$1/tmp/x" 2>/dev/null
    exec chroot --userspec=65532:65532 "$1" frugal
' sh "$root" "$(pwd)/tests/fixtures" >"$work/server.log" 2>&1 &
engine=$!
try "read-only root"
stop "read-only root"
say "all good: the image without a model is $megabytes MB"
