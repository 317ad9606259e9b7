#!/usr/bin/env python3
"""Speed of training on the CPU: moeray's example `train_speed` and a PyTorch twin of the demo model's training, in turn.

    demo/bench/train.py [--rounds 5] [--threads 2] [--twin SCRIPT --python PYTHON]

Every round is a fresh process of each; the lines are medians of the rounds. SCRIPT is called as

    PYTHON SCRIPT OUT --time --repeat 3 --threads N

and prints a line for each of its modes that names its data type and its rate: `eager f32 median 5000 tok/s ...`. The same step is
meant: forwards, backwards, clipping and AdamW over 4096 tokens of a model of `demo/bard.toml`'s architecture.
"""
import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


def build():
    """The example, compiled; gives its path."""
    subprocess.run(['cargo', 'build', '--release', '--example', 'train_speed'], cwd=ROOT, check=True)
    target = pathlib.Path(os.environ.get('CARGO_TARGET_DIR', ROOT / 'target'))
    return target / 'release' / 'examples' / 'train_speed'


def ours(binary, threads):
    """What the example measures, by name."""
    text = subprocess.run([binary, '3', str(threads)], check=True, capture_output=True, text=True).stdout
    print(text, end='', flush=True)

    def one(pattern):
        found = re.search(pattern, text)
        if not found:
            sys.exit(f'no {pattern!r} in:\n{text}')
        return [float(x) for x in found.groups()]

    tokens, = one(r'step .*?, (\d+) tokens/s')
    share, = one(r'reach (\d+) % of it')
    small, skewed = one(r'8 experts, 2 used: ([\d.]+) of dense; with all tokens at two: ([\d.]+)')
    large, = one(r'64 experts, 8 used: ([\d.]+) of dense')
    optimizer, = one(r'optimizer +([\d.]+) %')
    return {'tokens/s': tokens, 'products': share, 'routed 8': small, 'skewed 8': skewed, 'routed 64': large,
            'optimizer': optimizer}


def theirs(python, script, threads):
    """The rates of the twin's modes, by data type the best one."""
    with tempfile.TemporaryDirectory() as out:
        command = [python, script, out, '--time', '--repeat', '3', '--threads', str(threads)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(text, end='', flush=True)
    best = {}
    for dtype, rate in re.findall(r'^\S+ +(f32|bf16) +median +(\d+) tok/s', text, re.M):
        best[dtype] = max(best.get(dtype, 0.0), float(rate))
    if not best:
        sys.exit(f'the twin printed no rate:\n{text}')
    return best


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--twin', help='a script that trains the same model with PyTorch')
    p.add_argument('--python', default=sys.executable)
    a = p.parse_args()
    binary = build()
    own, other = [], []
    for _ in range(a.rounds):
        own.append(ours(binary, a.threads))
        if a.twin:
            other.append(theirs(a.python, a.twin, a.threads))
    m = {k: statistics.median(r[k] for r in own) for k in own[0]}
    print(f'\nmedians of {a.rounds} rounds, {a.threads} threads')

    def line(name, value, limit, least):
        good = value >= limit if least else value <= limit
        print(f'{"ok  " if good else "MISS"} {name}: {value:.2f} ({"at least" if least else "at most"} {limit})')

    print(f'     tokens a second: {m["tokens/s"]:.0f}')
    for dtype, limit in [('f32', 1.5), ('bf16', 1.0)]:
        rates = [r[dtype] for r in other if dtype in r]
        if rates:
            line(f'step over PyTorch {dtype}', m['tokens/s'] / statistics.median(rates), limit, True)
    line('rate of gradients over that of products, %', m['products'], 50, True)
    line('8 experts, 2 used, over a dense layer', m['routed 8'], 1.3, False)
    line('64 experts, 8 used, over a dense layer', m['routed 64'], 1.3, False)
    line('all tokens at two experts, over a dense layer', m['skewed 8'], 1.3, False)
    line('optimizer and clipping, % of a step', m['optimizer'], 5, False)


if __name__ == '__main__':
    main()
