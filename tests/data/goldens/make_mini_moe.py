"""Goldens of the blocks that Mixture-of-Experts tutorials and surveys write, from their formulas, in PyTorch (float64).

    python make_mini_moe.py OUT_DIR

Writes OUT_DIR/mini_moe_a, mini_moe_b and mini_moe_c, each config.json (model_type "mini_mixtral" with more keys, see
src/model/mini_mixtral.rs), model.safetensors (float32) and expected.safetensors (input_ids [T], logits [T, V], and of each
layer router_ids_<l> [T, k] and router_weights_<l> [T, k]).

a: LayerNorm; a linear router with bias; softmax over all, top-k, a second softmax over the k scores; experts without gate,
   ReLU, biases; three shared experts, summed.
b: RMSNorm; a small MLP with GELU as router; noisy top-k (Shazeer et al. 2017: noise only in training, so none here, but the
   noise matrix is in the file); gated experts with GELU and biases; one shared expert.
c: LayerNorm; a small MLP with ReLU as router; softmax over all, then top-k, the scores as they are; experts without gate, GELU,
   biases; no shared expert.
"""
import json, math, pathlib, sys, torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

DIM, HEADS, KV, LAYERS, EXPERTS, TOP, WIDTH, VOCAB, TOKENS = 32, 4, 2, 2, 5, 2, 12, 48, 20
HEAD = DIM // HEADS


class RMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def norm(kind):
    return nn.LayerNorm(DIM, eps=1e-5) if kind == "layer" else RMSNorm()


class Expert(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.w1, self.w2 = nn.Linear(DIM, WIDTH), nn.Linear(WIDTH, DIM)
        self.w3 = nn.Linear(DIM, WIDTH) if c["expert_gated"] else None
        self.act = {"relu": F.relu, "gelu": F.gelu}[c["expert_activation"]]

    def forward(self, x):
        h = self.act(self.w1(x))
        return self.w2(h if self.w3 is None else h * self.w3(x))


class MoE(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        hidden = c.get("router_hidden")
        if hidden:
            self.gate_hidden = nn.Linear(DIM, hidden)
        self.gate = nn.Linear(hidden or DIM, EXPERTS, bias=True)
        if c["router"] == "noisy_top_k":
            self.noise = nn.Linear(DIM, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert(c) for _ in range(EXPERTS))
        self.shared_experts = nn.ModuleList(Expert(c) for _ in range(c["num_shared_experts"]))
        self.seen = None

    def forward(self, x):
        act = {"relu": F.relu, "gelu": F.gelu}[self.c.get("router_activation", "relu")]
        logits = self.gate(act(self.gate_hidden(x)) if hasattr(self, "gate_hidden") else x)
        if self.training and hasattr(self, "noise"):
            logits = logits + torch.randn_like(logits) * F.softplus(self.noise(x))
        if self.c["router"] == "softmax_top_k_softmax":
            top, ids = logits.softmax(-1).topk(TOP)
        elif self.c["router"] == "softmax_top_k":
            top, ids = logits.softmax(-1).topk(TOP)
        else:
            top, ids = logits.topk(TOP)
        weights = top if self.c["router"] == "softmax_top_k" else top.softmax(-1)
        self.seen = (ids, weights)
        y = torch.zeros_like(x)
        for t in range(x.shape[0]):
            for j in range(TOP):
                y[t] += weights[t, j] * self.experts[ids[t, j]](x[t])
        for e in self.shared_experts:
            y = y + e(x)
        return y


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.wq, self.wo = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.wk, self.wv = (nn.Linear(DIM, KV * HEAD, bias=False) for _ in range(2))

    def forward(self, x):
        n = x.shape[0]
        angle = torch.outer(torch.arange(n).double(), 10000.0 ** (-torch.arange(0, HEAD, 2).double() / HEAD))
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]

        def rotate(v):  # pairs are (2i, 2i + 1)
            a, b = v[..., 0::2], v[..., 1::2]
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)

        q = rotate(self.wq(x).view(n, HEADS, HEAD))
        k, v = rotate(self.wk(x).view(n, KV, HEAD)), self.wv(x).view(n, KV, HEAD)
        k, v = (t.repeat_interleave(HEADS // KV, 1) for t in (k, v))
        s = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(HEAD) + torch.full((n, n), float("-inf")).triu(1)
        return self.wo(torch.einsum("hqk,khd->qhd", s.softmax(-1), v).flatten(1))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.attention_norm, self.ffn_norm = norm(c["norm"]), norm(c["norm"])
        self.attention, self.feed_forward = Attention(), MoE(c)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCAB, DIM)
        self.layers = nn.ModuleList(Layer(c) for _ in range(LAYERS))
        self.norm, self.output = norm(c["norm"]), nn.Linear(DIM, VOCAB, bias=False)

    def forward(self, ids):
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


BLOCKS = {
    "mini_moe_a": dict(norm="layer", router="softmax_top_k_softmax", expert_activation="relu", expert_gated=False,
                       num_shared_experts=3),
    "mini_moe_b": dict(norm="rms", router="noisy_top_k", router_hidden=12, router_activation="gelu",
                       expert_activation="gelu", expert_gated=True, num_shared_experts=1),
    "mini_moe_c": dict(norm="layer", router="softmax_top_k", router_hidden=8, expert_activation="gelu", expert_gated=False,
                       num_shared_experts=0),
}

for seed, (name, c) in enumerate(BLOCKS.items()):
    torch.manual_seed(seed)
    model = Model(c).eval()
    with torch.no_grad():
        for p in model.parameters():  # one-dimensional ones start at 0 or 1: make them count
            p.add_(torch.randn(p.shape) * (0.2 if p.dim() == 1 else 0.1))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model = model.double()
    ids = torch.randint(0, VOCAB, (TOKENS,))
    with torch.no_grad():
        out = {"input_ids": ids, "logits": model(ids).float().contiguous()}
    for l, layer in enumerate(model.layers):
        chosen, weights = layer.feed_forward.seen
        out[f"router_ids_{l}"], out[f"router_weights_{l}"] = chosen.contiguous(), weights.float().contiguous()
    folder = pathlib.Path(sys.argv[1]) / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, str(folder / "model.safetensors"))
    save_file(out, str(folder / "expected.safetensors"))
    config = dict(model_type="mini_mixtral", vocab_size=VOCAB, dim=DIM, n_layers=LAYERS, n_heads=HEADS, n_kv_heads=KV,
                  hidden_dim=WIDTH, num_experts=EXPERTS, top_k=TOP, norm_eps=1e-5, rope_theta=10000.0, max_seq_len=256, **c)
    json.dump(config, open(folder / "config.json", "w"), indent=1)
    print(name, "logits std", out["logits"].std().item())
