#!/usr/bin/env python3
"""How fast a server writes for k clients, as a part of what `moeray bench --sequences k` writes without one.

  streams.py --binary PATH/moeray -m MODEL.gguf [--clients 1,4,16] [--rounds 4] [--tokens 150] [--threads N]

k clients ask at once and read their streams; counted are the tokens between the last stream's beginning and the first one's end. Each round
is bench, server, server, bench, so that what slows the machine meets both; the line of a k is the median of the rounds' ratios.
"""

import argparse
import json
import random
import socket
import statistics
import subprocess
import threading
import time
import urllib.request

WORDS = "the king is dead long live queen of men and all her sons who went to war".split()


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--binary", required=True)
    p.add_argument("-m", "--model", required=True)
    p.add_argument("--clients", default="1,4,16")
    p.add_argument("--rounds", type=int, default=4)
    p.add_argument("--tokens", type=int, default=150, help="of each stream [150]")
    p.add_argument("--threads", default="2")
    return p.parse_args()


def stream(url, tokens, times):
    """One client: when its tokens came."""
    prompt = f"{random.randrange(10**9)} " + " ".join(random.choice(WORDS) for _ in range(16))
    body = {"model": "streams", "prompt": prompt, "temperature": 0, "max_tokens": tokens, "stream": True}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        times.append([time.time() for line in answer if line.startswith(b"data: {")])


def served(url, clients, tokens):
    """Tokens a second while all clients read."""
    times = []
    threads = [threading.Thread(target=stream, args=(url, tokens, times)) for _ in range(clients)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    begin, end = max(t[3] for t in times), min(t[-3] for t in times)
    return sum(begin <= x <= end for t in times for x in t) / (end - begin)


def benched(args, clients):
    """Tokens a second of as many sequences without a server."""
    words = ["bench", args.model, "-p", "0", "-n", str(args.tokens), "--sequences", str(clients), "-r", "1"]
    words += ["--backend", "cpu", "-t", args.threads, "-q", "-o", "json"]
    return json.loads(subprocess.run([args.binary, *words], check=True, capture_output=True, text=True).stdout)[0]["avg_ts"]


def main():
    args = arguments()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    most = max(map(int, args.clients.split(",")))
    words = ["serve", args.model, "--port", str(port), "--sequences", str(most), "--ctx", "1024"]
    words += ["--backend", "cpu", "--threads", args.threads, "--name", "streams"]
    server = subprocess.Popen([args.binary, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            try:
                urllib.request.urlopen(url + "/health").close()
                break
            except OSError:
                time.sleep(0.2)
        for clients in map(int, args.clients.split(",")):
            ratios = []
            for _ in range(args.rounds):
                before = benched(args, clients)
                rates = [served(url, clients, args.tokens) for _ in range(2)]
                ratios.append(sum(rates) / (before + benched(args, clients)))
            each = ", ".join(f"{r:.2f}" for r in ratios)
            print(f"{clients} clients: {statistics.median(ratios):.2f} of bench ({each})", flush=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
