#!/usr/bin/env python3
"""How fast a server writes for k clients, as a part of what `moeray bench --sequences k` writes without one.

  streams.py --binary PATH/moeray -m MODEL.gguf [--clients 1,4,16] [--rounds 4] [--tokens 150] [--threads N]
  streams.py --binary PATH/moeray -m MODEL.gguf --mixed [--seconds 10] ...

k clients ask at once and read their streams; counted, by the server's own counters, are the tokens between the last stream's beginning and the
first one's end. Each round is bench, server, server, bench, so that what slows the machine meets both; the line of a k is the median of the
rounds' ratios.

With --mixed each client asks again as soon as its answer has ended, for so many seconds, with prompts of 20 to 60 words that nobody has asked
before: prompts are read while others are answered. Counted are all tokens that are read and written; the ratio is
to `bench --prompt-gen P,N --sequences k`, where P is the mean length of such prompts.
"""

import argparse
import json
import random
import re
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
    p.add_argument("--tokens", type=int, help="of each stream [150; 64 where --mixed]")
    p.add_argument("--threads", default="2")
    p.add_argument("--mixed", action="store_true", help="prompts among streams")
    p.add_argument("--seconds", type=float, default=10, help="of a mixed measurement [10]")
    return p.parse_args()


def prompt(words):
    """A prompt that nobody has asked before."""
    return f"{random.randrange(10**9)} " + " ".join(random.choice(WORDS) for _ in range(words))


def post(url, text, tokens, **more):
    body = {"model": "streams", "prompt": text, "temperature": 0, "max_tokens": tokens, **more}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    return urllib.request.urlopen(request)


def ask(url, words, tokens):
    """The lines of an answer's stream."""
    with post(url, prompt(words), tokens, stream=True) as answer:
        yield from answer


def counted(url):
    """Tokens of prompts that were read and tokens that were generated, by the server's counters."""
    page = urllib.request.urlopen(url + "/metrics").read().decode()
    total = lambda name: float(re.search(rf"^moeray_{name}_total(?:{{.*}})? (\S+)", page, re.M)[1])
    return total("prefill_tokens") + total("generated_tokens")


def at_once(url, clients, tokens):
    """Tokens a second while all clients read."""
    read = [0] * clients

    def client(i):
        for line in ask(url, 16, tokens):
            read[i] += line.startswith(b"data: {")

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    [t.start() for t in threads]
    marks = []
    for reached in (lambda: min(read) >= 4, lambda: max(read) >= 0.9 * tokens):
        while not reached() and any(t.is_alive() for t in threads):
            time.sleep(0.01)
        marks.append((counted(url), time.time()))
    [t.join() for t in threads]
    (first, begin), (last, end) = marks
    return (last - first) / (end - begin)


def mixed(url, clients, tokens, seconds):
    """Tokens read and written a second while clients ask again and again."""
    end = time.time() + seconds

    def client():
        while time.time() < end:
            for _ in ask(url, random.randint(20, 60), tokens):
                if time.time() > end:
                    break

    threads = [threading.Thread(target=client) for _ in range(clients)]
    before, begin = counted(url), time.time()
    [t.start() for t in threads]
    time.sleep(max(0, end - time.time()))
    after, took = counted(url), time.time() - begin
    [t.join() for t in threads]
    return (after - before) / took


def prompt_tokens(url):
    """The mean length of a mixed prompt."""
    lengths = [json.load(post(url, prompt(words), 1))["usage"]["prompt_tokens"] for words in range(20, 61, 4)]
    return round(statistics.mean(lengths))


def benched(args, clients, length):
    """Tokens a second of as many sequences without a server."""
    test = ["--prompt-gen", f"{length},{args.tokens}", "-n", "0"] if length else ["-n", str(args.tokens)]
    words = [args.binary, "bench", args.model, "-p", "0", *test, "--sequences", str(clients), "-r", "5"]
    words += ["--backend", "cpu", "-t", args.threads, "-q", "-o", "json"]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)[0]["avg_ts"]


def ratio(args, url, clients, length):
    """One round, with prompts of this mean length where they are mixed."""
    one = lambda: mixed(url, clients, args.tokens, args.seconds) if length else at_once(url, clients, args.tokens)
    before = benched(args, clients, length)
    rates = [one(), one()]
    return sum(rates) / (before + benched(args, clients, length))


def main():
    args = arguments()
    args.tokens = args.tokens or (64 if args.mixed else 150)
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
        length = prompt_tokens(url) if args.mixed else 0
        for clients in map(int, args.clients.split(",")):
            ratios = [ratio(args, url, clients, length) for _ in range(args.rounds)]
            each = ", ".join(f"{r:.2f}" for r in ratios)
            print(f"{clients} clients: {statistics.median(ratios):.2f} of bench ({each})", flush=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
