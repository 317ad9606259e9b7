"""Makes mixes.json: the format that llama.cpp gives every tensor under every mix, for tests/quant_mix.rs.

    python make_mixes.py NAME=MODEL.gguf...

needs gguf and llama-cpp-python. llama.cpp's quantiser runs dry; its log names the formats. In the result a mix is one
letter a tensor, by `letters`; a dot stands for a tensor that keeps its type.
"""

import ctypes
import json
import pathlib
import re
import sys

import llama_cpp
from gguf import GGUFReader

MIXES = {
    "F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q2_K": 10, "Q3_K_S": 11,
    "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25,
    "IQ4_XS": 30, "MXFP4_MOE": 38,
}
TYPES = [
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
    "IQ4_XS", "MXFP4",
]
LETTERS = {t: chr(ord("a") + i) for i, t in enumerate(TYPES)}
LINE = re.compile(r"\]\s+(\S+)\s+- \[.*type =\s*(\S+), size = +\S+ MiB(?: -> .*\((\S+)\))?")


def dry_run(path, ftype):
    text = []
    keep = llama_cpp.llama_log_callback(lambda level, line, data: text.append(line.decode()))
    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    p = llama_cpp.llama_model_quantize_default_params()
    p.ftype, p.allow_requantize, p.dry_run, p.nthread = ftype, True, True, 1
    assert llama_cpp.llama_model_quantize(path.encode(), b"unused.gguf", ctypes.byref(p)) == 0
    found = LINE.finditer("".join(text))
    return {m[1]: (m[3] or m[2]).upper() for m in found}


def model(path):
    r = GGUFReader(path)
    arch = r.fields["general.architecture"].contents()
    get = lambda key, default: r.fields[f"{arch}.{key}"].contents() if f"{arch}.{key}" in r.fields else default
    names = [t.name for t in r.tensors]
    out = {
        "layers": get("block_count", 0),
        "experts": get("expert_count", 0),
        "heads_per_kv": get("attention.head_count", 1) // get("attention.head_count_kv", 1),
        "tied": "output.weight" not in names,
        "tensors": [[t.name, [int(n) for n in reversed(t.shape)]] for t in r.tensors],
        "mixes": {},
    }
    # What no mix changes is kept.
    runs = {m: dry_run(path, n) for m, n in MIXES.items()}
    kept = {n for n in names if len({run[n] for run in runs.values()}) == 1}
    for mix, run in runs.items():
        out["mixes"][mix] = "".join("." if n in kept else LETTERS[run[n]] for n in names)
    return out


if __name__ == "__main__":
    models = dict(a.split("=") for a in sys.argv[1:])
    out = {"letters": {c: t for t, c in LETTERS.items()}, "models": {n: model(p) for n, p in models.items()}}
    here = pathlib.Path(__file__).parent
    (here / "mixes.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")
