#!/usr/bin/env python3
"""Clients that die at random, then a look at the books.  Standard library only; loopback addresses only.

  soak.py [--url http://127.0.0.1:8000] [--seconds 60] [--clients 24] [--seed 1] [--key KEY]

Each client opens a streaming chat and, as the dice fall, reads it to the end, closes the socket while queued,
while the prompt is computed or while tokens arrive, resets the connection, sends half a request, or stops reading.
Afterwards the server must be idle within 30 s, every block free or cached, and GET /debug/selfcheck (needs
`server.selfcheck = true`) must report no violation of I1, I2, I6, I7. Prints one JSON line; exits 1 on any failure.
"""
import argparse
import asyncio
import json
import random
import socket
import struct
import sys
import time
import urllib.parse
import urllib.request

WORDS = "the of and to in is that for it as was with be by on not he his but at are this have from or had".split()


def request(a, body):
    text = json.dumps(body).encode()
    key = f"Authorization: Bearer {a.key}\r\n" if a.key else ""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {a.host}\r\n{key}Content-Type: application/json\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    return head.encode() + text


async def client(a, rng, counts):
    prompt = " ".join(rng.choice(WORDS) for _ in range(rng.choice((4, 40, 400, 1200))))
    body = {"messages": [{"role": "user", "content": prompt}], "stream": True, "max_tokens": rng.choice((1, 8, 64, 200)),
            "temperature": rng.choice((0, 1)), "n": rng.choice((1, 1, 1, 3)), "ignore_eos": True}
    fate = rng.choice(("finish", "close", "close", "reset", "half", "stall"))
    reader, writer = await asyncio.open_connection(a.host, a.port)
    try:
        data = request(a, body)
        if fate == "half":
            writer.write(data[:rng.randrange(1, len(data))])
            await writer.drain()
            counts[fate] += 1
            return
        writer.write(data)
        await writer.drain()
        if fate == "finish":
            answer = await reader.read(-1)
            status = answer.split(b" ", 2)[1:2]
            if status == [b"200"]:
                counts["finish" if b"data: [DONE]" in answer else "broken"] += 1
            else:
                counts["refused" if status in ([b"503"], [b"429"]) else "broken"] += 1
            return
        patience = rng.choice((0, 0.01, 0.05, 0.2, 1, 2))
        if fate == "stall":
            await asyncio.sleep(patience)
        else:
            try:
                await asyncio.wait_for(reader.read(rng.choice((1, 1000, 100000))), patience)
                await asyncio.sleep(patience * rng.random())
            except asyncio.TimeoutError:
                pass
        if fate == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        counts[fate] += 1
    except (ConnectionError, asyncio.IncompleteReadError):
        counts["connection"] += 1
    finally:
        writer.close()


def get(a, path):
    req = urllib.request.Request(a.url + path, headers={"Authorization": f"Bearer {a.key}"} if a.key else {})
    with urllib.request.urlopen(req, timeout=30) as r:
        return r.read().decode()


def metric(text, name):
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
               if line.startswith(name) and line[len(name):len(name) + 1] in ("{", " "))


async def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--url", default="http://127.0.0.1:8000")
    p.add_argument("--seconds", type=float, default=60)
    p.add_argument("--clients", type=int, default=24)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--key")
    a = p.parse_args()
    a.url = a.url.rstrip("/")
    where = urllib.parse.urlsplit(a.url)
    a.host, a.port = where.hostname, where.port or 80
    if a.host not in ("127.0.0.1", "localhost", "::1"):
        p.error("loopback addresses only")
    counts = dict.fromkeys(("finish", "close", "reset", "half", "stall", "refused", "connection", "broken"), 0)
    end = time.monotonic() + a.seconds

    async def worker(i):
        rng = random.Random(a.seed * 1000 + i)
        while time.monotonic() < end:
            await client(a, rng, counts)
    await asyncio.gather(*(worker(i) for i in range(a.clients)))
    failures = []
    deadline = time.monotonic() + 30
    while True:
        text = get(a, "/metrics")
        busy = metric(text, "vllm:num_requests_running") + metric(text, "vllm:num_requests_waiting")
        if busy == 0:
            break
        if time.monotonic() > deadline:
            failures.append(f"{busy:.0f} requests are left 30 s after the last client")
            break
        await asyncio.sleep(0.2)
    check = json.loads(get(a, "/debug/selfcheck"))
    if not check["ok"]:
        failures.append(f"self-check: {check}")
    if counts["broken"]:
        failures.append(f"{counts['broken']} streams ended without [DONE] or with an unexpected status")
    if not counts["finish"]:
        failures.append("no client finished: the test showed nothing")
    print(json.dumps({"clients": counts, "selfcheck": check, "failures": failures}))
    sys.exit(1 if failures else 0)


asyncio.run(main())
