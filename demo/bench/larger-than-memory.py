#!/usr/bin/env python3
"""A model under a memory limit below its file's size: is its text that without a limit, and how much is read from the disk for it?

  larger-than-memory.py MODEL.gguf [--limit 45%|MIB] [--ram 50%|MIB] [--tokens 64] [--binary target/release/moeray]

The limit, of the file's size or in MiB, is a control group's (cgroups of version 2 or 1; it takes root, on Linux); `--ram`, of the limit, is
what moeray is told to keep weights in. What was in memory of the file is dropped first, so everything has to be read. What must be read is
counted from the record of routing: all but the experts that stay in the file once, and of these what a token uses and a least recently used
cache of the memory that is left would not have. Exit status 1 where tokens differ, the program fails or is killed, its memory was beyond the
limit, or reads of experts are more than 1.3 times what is missed. Both runs are told the same `--ram`: packed weights and those of the file
round differently.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict

MIB = 1 << 20


class Group:
    """A control group with a limit of memory, without swap."""

    def __init__(self, limit):
        name = f"moeray-{os.getpid()}"
        try:
            if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
                self.path = f"/sys/fs/cgroup/{name}"
                if "memory" not in open("/sys/fs/cgroup/cgroup.subtree_control").read().split():
                    self.put("/sys/fs/cgroup/cgroup.subtree_control", "+memory")
                os.mkdir(self.path)
                limit_file, self.events, self.most = "memory.max", "memory.events", "memory.peak"
                no_swap = ("memory.swap.max", 0)
            else:
                self.path = f"/sys/fs/cgroup/memory/{name}"
                os.mkdir(self.path)
                limit_file, self.events, self.most = "memory.limit_in_bytes", "memory.oom_control", "memory.max_usage_in_bytes"
                no_swap = ("memory.memsw.limit_in_bytes", limit)
            self.put(f"{self.path}/{limit_file}", limit)
        except OSError as e:
            sys.exit(f"no control group with a limit of memory ({e}): it takes root, and a memory controller under /sys/fs/cgroup")
        if os.path.exists(f"{self.path}/{no_swap[0]}"):
            self.put(f"{self.path}/{no_swap[0]}", no_swap[1])

    @staticmethod
    def put(path, value):
        with open(path, "w") as f:
            f.write(str(value))

    def enter(self):
        self.put(f"{self.path}/cgroup.procs", os.getpid())

    def peak(self):
        path = f"{self.path}/{self.most}"
        return int(open(path).read()) if os.path.exists(path) else 0

    def killed(self):
        found = re.search(r"^oom_kill (\d+)", open(f"{self.path}/{self.events}").read(), re.M)
        return int(found[1]) if found else 0

    def remove(self):
        # Processes leave a moment after they are waited for.
        for _ in range(50):
            try:
                return os.rmdir(self.path)
            except OSError:
                time.sleep(0.1)


def part(text, whole):
    """`60%` of a whole, or MiB."""
    return int(whole * float(text[:-1]) / 100) if text.endswith("%") else int(text) * MIB


def anonymous(pid):
    """Bytes of a process that are no file's."""
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB", open(f"/proc/{pid}/status").read(), re.M)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def missed(prompt, layers, size, room):
    """Bytes of experts that are not there when they are used, all that are used, and those that are used for the first time, where a cache of
    `room` bytes holds those used last. `layers`: of each its choices by token; `size`: bytes of its experts by layer; `prompt`: tokens of the
    first step."""
    held, used, miss, all_used, seen, first = OrderedDict(), 0, 0, 0, set(), 0
    tokens = len(layers[0]["ids"])
    steps = [range(prompt)] + [range(t, t + 1) for t in range(prompt, tokens)]
    for step in steps:
        for layer in layers:
            bytes_ = size[layer["layer"]] // layer["experts"]
            for expert in sorted({e for t in step for e in layer["ids"][t]}):
                key = (layer["layer"], expert)
                all_used += bytes_
                if key not in seen:
                    seen.add(key)
                    first += bytes_
                if key in held:
                    held.move_to_end(key)
                    continue
                miss += bytes_
                held[key] = bytes_
                used += bytes_
                while used > room and len(held) > 1:
                    used -= held.popitem(last=False)[1]
    return miss, all_used, first


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--limit", default="45%")
    p.add_argument("--ram", default="50%")
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--binary", default="target/release/moeray")
    p.add_argument("--prompt", default="Once upon a time")
    a = p.parse_args()
    file = os.path.getsize(a.model)
    limit = part(a.limit, file)
    ram = part(a.ram, limit)
    place = ["--backend", "cpu", "--ctx", "256"]

    def ask(*words):
        return json.loads(subprocess.run([a.binary, *words, "--json"], check=True, capture_output=True, text=True).stdout)

    group = Group(limit)
    scratch = tempfile.TemporaryDirectory()
    try:
        plan = ask("inspect", "--memory", a.model, *place, "--ram", str(ram))["cpu"]
        size = {}
        for t in ask("inspect", "--tensors", a.model)["tensors"]:
            if found := re.match(r"blk\.(\d+)\.ffn_\w+_exps\.", t["name"]):
                size[int(found[1])] = size.get(int(found[1]), 0) + t["bytes"]

        def run(name, within):
            record = f"{scratch.name}/{name}.json"
            words = [a.binary, "run", a.model, *place, "-n", str(a.tokens), "--temp", "0", "--ignore-eos", "-q", "-p", a.prompt]
            words += ["--routing-json", record] + ["--ram", str(ram)]
            before, begin, most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock, time.time(), 0
            child = subprocess.Popen(words, stdout=subprocess.PIPE, preexec_fn=group.enter if within else None)
            while child.poll() is None:
                most = max(most, anonymous(child.pid))
                time.sleep(0.01)
            text = child.stdout.read()
            read = 512 * (resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock - before)
            if child.returncode != 0:
                sys.exit(f"{name}: status {child.returncode}; {group.killed()} killed for want of memory")
            return text, json.load(open(record))["prompts"][0], read, most, time.time() - begin

        text, free, _, _, seconds = run("without a limit", False)
        f = os.open(a.model, os.O_RDONLY)
        os.fsync(f)
        os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(f)
        own, limited, read, most, slower = run("within the limit", True)
        peak, killed = group.peak(), group.killed()
    finally:
        group.remove()
        scratch.cleanup()

    # The experts of the last layers stay in the file.
    mapped, from_file = set(), plan["mapped"]["experts"]
    for layer in sorted(size, reverse=True):
        if sum(size[l] for l in mapped) < from_file:
            mapped.add(layer)
    layers = [l for l in limited["layers"] if l["layer"] in mapped]
    ids = [i["id"] for i in limited["ids"]]
    # The last token is chosen and not fed.
    prompt = len(ids) - (a.tokens - 1)
    once = file - from_file
    miss, used, first = missed(prompt, layers, size, limit - most - plan["mapped"]["total"] + from_file)
    same = own == text and [i["id"] for i in free["ids"]] == ids
    ratio = (read - once) / max(miss, 1)
    print("| | |\n|---|---|")
    for what, n in [
        ("file", file), ("limit", limit), ("weights that are kept (`--ram`)", ram), ("most memory of the group", peak),
        ("most memory that is no file's", most), ("experts that stay in the file", from_file), ("read", read),
        ("of it everything else, once", once), ("experts that were used", used), ("of them used for the first time", first),
        ("of them missed by a cache of what is left", miss),
    ]:
        print(f"| {what} | {n / MIB:.0f} MiB |")
    print(f"| reads of experts over those missed | {ratio:.2f} |")
    print(f"| {a.tokens} tokens, loading included | {slower:.1f} s, {seconds:.1f} s without a limit |")
    print(f"| the same tokens | {'yes' if same else 'NO'} |\n| killed | {killed} |")
    if not same or killed or ratio > 1.3 or peak > limit or not layers:
        sys.exit(1)


if __name__ == "__main__":
    main()
