#!/usr/bin/env python3
"""Many short-lived clients for a long time: does a server keep its memory, its descriptors and its temper?

  churn.py --binary PATH/moeray [--minutes 30] [--clients 12] [-- further words of `moeray serve`]

Clients connect, ask and go: short answers and long ones, plain and streamed, cut off while they wait, read or write, shared and new
beginnings, wrong bodies, vectors, counts of tokens, schemas. Every ten seconds the server's resident memory and open descriptors are
noted. The first sixth of the time fills caches and does not count: from its end on memory may grow by 2 %, descriptors (of idle
moments) not at all, and no answer may have a status of 500 or above. Exit status 1 where one of these does not hold.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter

WORDS = "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not".split()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Client(threading.Thread):
    def __init__(self, port, seed, end, counts):
        super().__init__(daemon=True)
        self.port, self.rng, self.end, self.counts = port, random.Random(seed), end, counts

    def text(self, words):
        return " ".join(self.rng.choice(WORDS) for _ in range(words))

    def request(self):
        """A path and a body."""
        r = self.rng
        kind = r.randrange(12)
        tokens, stream = r.choice([1, 2, 4, 8, 40]), r.random() < 0.5
        chat = {"model": "demo", "max_tokens": tokens, "stream": stream,
                "messages": [{"role": "system", "content": "You are kind and brief."}, {"role": "user", "content": self.text(6)}]}
        if kind < 5:
            head = f"Scene {r.randrange(6)}. " + " ".join(WORDS) + ". " if r.random() < 0.5 else ""
            return "/v1/completions", {"model": "demo", "prompt": head + self.text(r.randrange(1, 40)), "max_tokens": tokens,
                                       "stream": stream, "n": r.choice([1, 1, 1, 2])}
        if kind < 8:
            return "/v1/chat/completions", chat
        if kind == 8:
            return "/v1/messages", {**chat, "messages": chat["messages"][1:], "system": self.text(5)}
        if kind == 9:
            return "/v1/embeddings", {"model": "demo", "input": [self.text(5), self.text(9)]}
        if kind == 10:
            schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            return "/v1/chat/completions", {**chat, "response_format": form}
        return r.choice([("/v1/completions", {"model": "demo", "prompt": 5}), ("/v1/responses", {"model": "none", "input": "x"}),
                         ("/tokenize", {"content": self.text(4)}), ("/v1/nothing", {}), ("/v1/messages/count_tokens", chat)])

    def one(self):
        path, body = self.request()
        data = json.dumps(body).encode()
        if self.rng.random() < 0.03:
            data = data[: len(data) // 2]
        with socket.create_connection(("127.0.0.1", self.port), timeout=120) as s:
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
            s.sendall((head + f"content-length: {len(data)}\r\n\r\n").encode() + data)
            if self.rng.random() < 0.2:
                # Gone while it waits, reads or writes.
                time.sleep(self.rng.random() * 0.5)
                self.counts["left"] += 1
                return
            answer = b""
            while piece := s.recv(65536):
                answer += piece
        status = int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
        self.counts[status] += 1

    def run(self):
        while time.time() < self.end:
            try:
                self.one()
            except (OSError, ValueError) as e:
                self.counts[f"failed: {type(e).__name__}"] += 1
                time.sleep(0.1)


def looked_at(pid):
    """Resident bytes and open descriptors."""
    with open(f"/proc/{pid}/status") as f:
        rss = next(int(line.split()[1]) for line in f if line.startswith("VmRSS:"))
    return rss * 1024, len(os.listdir(f"/proc/{pid}/fd"))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--binary", required=True)
    p.add_argument("--minutes", type=float, default=30)
    p.add_argument("--clients", type=int, default=12)
    p.add_argument("--cache-ram", type=int, default=8, help="MiB of the prefix cache: small, so that it is full soon [8]")
    p.add_argument("more", nargs="*")
    args = p.parse_args()
    port = free_port()
    words = ["serve", "--port", str(port), "--sequences", "4", "--ctx", "512", "--cache-ram", str(args.cache_ram), *args.more]
    server = subprocess.Popen([args.binary, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    samples, counts = [], Counter()
    try:
        # The port is there before the model and the runtime are, and with the runtime come its descriptors.
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        time.sleep(2)
        begin = time.time()
        end = begin + 60 * args.minutes
        idle = looked_at(server.pid)[1]
        clients = [Client(port, i, end, counts) for i in range(args.clients)]
        for c in clients:
            c.start()
        while time.time() < end and server.poll() is None:
            time.sleep(min(10, max(0.1, end - time.time())))
            samples.append((time.time() - begin, *looked_at(server.pid)))
            minutes, rss, fds = samples[-1][0] / 60, samples[-1][1] / 2**20, samples[-1][2]
            print(f"{minutes:6.1f} min {rss:9.1f} MiB {fds:4} descriptors {sum(counts.values()):7} requests", flush=True)
        for c in clients:
            c.join(150)
        time.sleep(2)
        if server.poll() is not None:
            sys.exit(f"the server has ended: {server.returncode}")
        last = looked_at(server.pid)[1]
    finally:
        server.terminate()
        server.wait()
    settled = [s for s in samples if s[0] >= 60 * args.minutes / 6] or samples
    part = max(1, len(settled) // 5)
    first, final = (sum(s[1] for s in some) / len(some) for some in (settled[:part], settled[-part:]))
    growth = final / first - 1
    print({str(k): n for k, n in sorted(counts.items(), key=str)})
    print(f"memory {first / 2**20:.1f} -> {final / 2**20:.1f} MiB ({100 * growth:+.2f} %), descriptors idle {idle} -> {last}")
    worse = [k for k in counts if isinstance(k, int) and (k >= 500 or k == 0) or str(k).startswith("failed")]
    sys.exit(1 if growth > 0.02 or last > idle or worse else 0)


if __name__ == "__main__":
    main()
