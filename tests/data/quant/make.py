"""Makes blocks.safetensors and sample.safetensors, the independent truth of tests/quant.rs.

    python make.py MODEL.safetensors

needs numpy, safetensors, gguf and llama-cpp-python (for ggml's own quantisation). MODEL is a checkpoint with BF16
weights; some rows of a few of its matrices become the sample.

blocks.safetensors, for every format: <NAME>.blocks, u8 [blocks, bytes]: random blocks, the first ones with special
scales (0, denormal, largest, negative, infinite), the next with common scales, the last random throughout; and
<NAME>.f32, their weights by the numpy code of the package gguf.
sample.safetensors: `weights`, bf16 [rows, 256]; and for every format that Moeray makes <NAME>.mse, f64 [1]: the mean squared error of the
sample after ggml's quantisation (ggml_quantize_chunk without importance matrix) and the package's dequantisation.
"""

import ctypes
import pathlib
import sys

import gguf
import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors import safe_open
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
# name: (type, byte offsets of its f16 scales in a block)
FORMATS = {
    "F32": (T.F32, []), "F16": (T.F16, []), "BF16": (T.BF16, []),
    "Q4_0": (T.Q4_0, [0]), "Q4_1": (T.Q4_1, [0, 2]), "Q5_0": (T.Q5_0, [0]), "Q5_1": (T.Q5_1, [0, 2]),
    "Q8_0": (T.Q8_0, [0]), "Q2_K": (T.Q2_K, [80, 82]), "Q3_K": (T.Q3_K, [108]), "Q4_K": (T.Q4_K, [0, 2]),
    "Q5_K": (T.Q5_K, [0, 2]), "Q6_K": (T.Q6_K, [208]), "IQ4_NL": (T.IQ4_NL, [0]), "IQ4_XS": (T.IQ4_XS, [0]),
    "MXFP4": (T.MXFP4, []), "IQ1_S": (T.IQ1_S, [0]), "IQ1_M": (T.IQ1_M, []), "IQ2_XXS": (T.IQ2_XXS, [0]),
    "IQ2_XS": (T.IQ2_XS, [0]), "IQ2_S": (T.IQ2_S, [0]), "IQ3_XXS": (T.IQ3_XXS, [0]), "IQ3_S": (T.IQ3_S, [0]),
    "TQ1_0": (T.TQ1_0, [52]), "TQ2_0": (T.TQ2_0, [64]), "NVFP4": (T.NVFP4, []),
}
# Formats that Moeray makes, too.
MADE = [n for n in FORMATS if n not in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "NVFP4")]
SPECIAL = np.array([0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00], np.uint16)


def blocks(name, rng):
    qtype, scales = FORMATS[name]
    size, nbytes = gguf.GGML_QUANT_SIZES[qtype]
    n = {1: 256, 32: 32, 64: 32, 256: 16}[size]
    b = rng.integers(0, 256, (n, nbytes), np.uint8)
    if size == 1:  # whole numbers: some of common size, the rest random
        common = rng.standard_normal(n // 2).astype(np.float32)
        raw = common.astype(np.float16) if name == "F16" else common
        raw = (common.view(np.uint32) >> 16).astype(np.uint16) if name == "BF16" else raw
        b[: n // 2] = raw.view(np.uint8).reshape(n // 2, nbytes)
        if name == "F16":
            b[n // 2 : n // 2 + 8] = SPECIAL.view(np.uint8).reshape(8, 2)
    for i in range(n * 3 // 4):
        for at in scales:
            v = SPECIAL[(i + at) % 8] if i < 8 else np.float16(rng.standard_normal() * 0.05).view(np.uint16)
            b[i, at : at + 2] = np.array([v], np.uint16).view(np.uint8)
    if name == "IQ1_M":  # d is in the upper four bits of four words
        for i in range(n * 3 // 4):
            v = int(SPECIAL[i]) if i < 8 else int(np.float16(rng.standard_normal() * 0.05).view(np.uint16))
            for k in range(4):
                b[i, 49 + 2 * k] = b[i, 49 + 2 * k] & 15 | (v >> (4 * k) & 15) << 4
    if name == "NVFP4":
        b[:2, :4] = [[0, 1, 7, 8], [0x7E, 0x7F, 0x80, 0xFF]]
    if name == "MXFP4":
        b[:8, 0] = [0, 1, 2, 3, 126, 127, 254, 255]
        b[8 : n * 3 // 4, 0] = rng.integers(110, 130, n * 3 // 4 - 8)
    return b


def make_blocks():
    rng, out = np.random.default_rng(1), {}
    for name, (qtype, _) in FORMATS.items():
        b = blocks(name, rng)
        with np.errstate(all="ignore"):
            y = gguf.quants.dequantize(b.reshape(-1) if b.shape[1] <= 4 else b, qtype)
        out[name + ".blocks"] = b
        out[name + ".f32"] = np.ascontiguousarray(y, dtype=np.float32).reshape(-1)
    save_file(out, HERE / "blocks.safetensors")


def sample(model):
    parts = []
    with safe_open(model, "np") as f:
        names = sorted(n for n in f.keys() if n.endswith("weight") and "norm" not in n)
    # numpy has no bfloat16: read the raw bytes through the header.
    raw = pathlib.Path(model).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    import json
    header = json.loads(raw[8 : 8 + size])
    for name in names:
        t = header[name]
        if len(t["shape"]) < 2 or t["shape"][-1] != 256 or t["dtype"] != "BF16" or t["shape"][-2] < 128:
            continue
        a, b = t["data_offsets"]
        rows = np.frombuffer(raw[8 + size + a : 8 + size + b], np.uint16).reshape(-1, 256)
        parts.append((name, rows))
    pick = [parts[i] for i in np.linspace(0, len(parts) - 1, 12).astype(int)]
    return np.concatenate([rows[:: len(rows) // 16][:16] for _, rows in pick])


def ggml_mse(name, x, lib):
    qtype, _ = FORMATS[name]
    size, nbytes = gguf.GGML_QUANT_SIZES[qtype]
    b = np.zeros((x.shape[0], x.shape[1] // size * nbytes), np.uint8)
    x = np.ascontiguousarray(x)
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    got = lib.ggml_quantize_chunk(
        ctypes.c_int(qtype), x.ctypes.data_as(ctypes.c_void_p), b.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(0),
        ctypes.c_int64(x.shape[0]), ctypes.c_int64(x.shape[1]), None,
    )
    assert got == b.nbytes, (name, got, b.nbytes)
    y = gguf.quants.dequantize(b, qtype).reshape(x.shape)
    return np.array([np.mean((y.astype(np.float64) - x) ** 2)])


def make_sample(model):
    lib = ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    rows = sample(model)
    x = (rows.astype(np.uint32) << 16).view(np.float32)
    # The library builds the grids of some formats at its first use.
    lib.ggml_quantize_init.restype = None
    out = {"weights": rows}
    for name in MADE:
        lib.ggml_quantize_init(ctypes.c_int(FORMATS[name][0]))
        out[name + ".mse"] = ggml_mse(name, x, lib)
        print(name, out[name + ".mse"][0])
    save_file(out, HERE / "sample.safetensors")


if __name__ == "__main__":
    make_blocks()
    make_sample(sys.argv[1])
