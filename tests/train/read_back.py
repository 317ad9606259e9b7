"""Adapters and models that Moeray wrote, read by the programs that they are written for, with the same tokens.

    pip install llama-cpp-python safetensors
    python tests/train/read_back.py --moeray target/release/moeray --model base.gguf --adapter adapter.gguf --text text.txt
    pip install torch transformers peft safetensors
    python tests/train/read_back.py --moeray target/release/moeray --model folder --adapter adapter_folder --text text.txt

A GGUF is read by llama-cpp-python: the mean KL divergence of its distributions from Moeray's must be at most 1e-3 over 512 tokens. A folder is
read by transformers, its adapter by PEFT: the normalised mean squared error of the logits must be at most 1e-6. Both are said
without the adapter, too, as is how far the adapter moves the logits: an adapter that does nothing proves nothing. Exits with 1 where
a limit is passed.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import load_file

parser = argparse.ArgumentParser()
parser.add_argument("--moeray", required=True)
parser.add_argument("--model", required=True, type=pathlib.Path)
parser.add_argument("--adapter", type=pathlib.Path)
parser.add_argument("--text", required=True, type=pathlib.Path)
parser.add_argument("--tokens", type=int, default=512)
parser.add_argument("--backend", default="cpu")
args = parser.parse_args()


def ours(what):
    """Moeray's logits and ids."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "logits.safetensors"
        command = [args.moeray, "logits", str(args.model), "--backend", args.backend, "-o", str(out), "-q", *what]
        subprocess.run(command, check=True)
        made = load_file(out)
        return made["logits"].astype(np.float64), [int(i) for i in made["ids"]]


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def kl(a, b):
    """The mean over positions of KL(a || b)."""
    a, b = log_softmax(a), log_softmax(b)
    return float((np.exp(a) * (a - b)).sum(axis=-1).mean())


def nmse(a, b):
    return float(((a - b) ** 2).sum() / (b**2).sum())


def by_llama_cpp(ids, adapter):
    import llama_cpp

    model = llama_cpp.Llama(str(args.model), n_ctx=len(ids), n_batch=len(ids), n_ubatch=len(ids), logits_all=True, verbose=False,
                            lora_path=str(adapter) if adapter else None)
    model.eval(ids)
    return np.array(model.scores[: len(ids)], dtype=np.float64)


def by_transformers(ids, adapter):
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    if adapter:
        import peft

        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0].double().numpy()


folder = args.model.is_dir()
theirs, measure, limit, name = (by_transformers, nmse, 1e-6, "NMSE") if folder else (by_llama_cpp, kl, 1e-3, "KL")
text = args.text.read_text()[: 4 * args.tokens]
ids = ours(["-p", text])[1][: args.tokens]
assert len(ids) == args.tokens, f"the text has {len(ids)} tokens, and {args.tokens} are wanted"
said = ["--ids", ",".join(map(str, ids))]
plain = ours(said)[0]
wrong = False
cases = [("the model", plain, None)]
if args.adapter:
    adapted = ours([*said, "--lora", str(args.adapter)])[0]
    print(f"the adapter moves the logits by an NMSE of {nmse(adapted, plain):.2e}, a KL of {kl(adapted, plain):.2e}")
    wrong |= nmse(adapted, plain) < 1e-4
    cases.append(("with the adapter", adapted, args.adapter))
for words, own, adapter in cases:
    far = measure(theirs(ids, adapter), own)
    wrong |= not far <= limit
    print(f"{words}: {name} {far:.2e} over {len(ids)} tokens (limit {limit:.0e})")
sys.exit(wrong)
