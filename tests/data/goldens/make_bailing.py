"""Makes a tiny random checkpoint of `bailing_moe_v2` (Ling 2.0, Ring 2.0) and what its definition computes from it.

transformers has no class of this family: the forward pass below was written with numpy after the published
`modeling_bailing_moe_v2.py` (inclusionAI/Ling-V2), in float64 from the BF16 weights that are stored. The files are as those of the
other goldens: config.json, model.safetensors (BF16), and expected.safetensors with `input_ids` [T], `logits` [T, V], `greedy` [N]
and `router_<i>` [T, E] (raw router logits of the i-th layer with experts).

    pip install numpy
    python make_bailing.py OUT_DIR
"""
import json, pathlib, struct, sys
import numpy as np

CONFIG = dict(architectures=["BailingMoeV2ForCausalLM"], model_type="bailing_moe_v2", vocab_size=96, hidden_size=48,
              intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
              hidden_act="silu", use_qkv_bias=False, use_bias=False, use_qk_norm=True, rms_norm_eps=1e-6,
              tie_word_embeddings=False, max_position_embeddings=256, rope_theta=600000.0, partial_rotary_factor=0.5,
              rope_scaling=None, num_experts=16, num_shared_experts=1, num_experts_per_tok=3, n_group=4, topk_group=2,
              moe_intermediate_size=24, moe_shared_expert_intermediate_size=24, first_k_dense_replace=1,
              score_function="sigmoid", norm_topk_prob=True, moe_router_enable_expert_bias=True,
              routed_scaling_factor=2.5, num_nextn_predict_layers=0, torch_dtype="bfloat16")


def bf16(x):
    """Rounds to the nearest BF16, ties to even: the upper halves of the bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def value(h):
    return (h.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def weights(c, rng):
    h, d, e, i = c["hidden_size"], c["head_dim"], c["num_experts"], c["moe_intermediate_size"]
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    matrix = lambda out, inp, s=0.2: rng.normal(0, s, (out, inp))
    norm = lambda n: 1 + rng.normal(0, 0.1, n)
    w = {"model.word_embeddings.weight": matrix(c["vocab_size"], h, 1.0)}
    unit = lambda p, width: w.update({f"{p}.gate_proj.weight": matrix(width, h), f"{p}.up_proj.weight": matrix(width, h),
                                      f"{p}.down_proj.weight": matrix(h, width)})
    for l in range(c["num_hidden_layers"]):
        p = f"model.layers.{l}"
        w[f"{p}.input_layernorm.weight"] = norm(h)
        w[f"{p}.attention.query_key_value.weight"] = matrix((heads + 2 * kv) * d, h)
        w[f"{p}.attention.query_layernorm.weight"] = norm(d)
        w[f"{p}.attention.key_layernorm.weight"] = norm(d)
        w[f"{p}.attention.dense.weight"] = matrix(h, heads * d)
        w[f"{p}.post_attention_layernorm.weight"] = norm(h)
        if l < c["first_k_dense_replace"]:
            unit(f"{p}.mlp", c["intermediate_size"])
            continue
        w[f"{p}.mlp.gate.weight"] = matrix(e, h, 0.3)
        w[f"{p}.mlp.gate.expert_bias"] = rng.normal(0, 0.1, e)
        for x in range(e):
            unit(f"{p}.mlp.experts.{x}", i)
        unit(f"{p}.mlp.shared_experts", i * c["num_shared_experts"])
    w["model.norm.weight"] = norm(h)
    w["lm_head.weight"] = matrix(c["vocab_size"], h)
    return {k: bf16(v) for k, v in w.items()}


def forward(c, w, ids):
    """Logits [T, V], and the router's logits of each layer with experts."""
    get = lambda name: value(w[name])
    heads, kv, d, eps = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"], c["rms_norm_eps"]
    t = len(ids)
    norm = lambda x, name: x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * get(name)
    silu = lambda x: x / (1 + np.exp(-x))
    unit = lambda x, p: (silu(x @ get(p + ".gate_proj.weight").T) * (x @ get(p + ".up_proj.weight").T)) @ get(
        p + ".down_proj.weight").T
    turning = int(d * c["partial_rotary_factor"])
    freq = (1 / c["rope_theta"] ** (np.arange(0, turning, 2) / turning)).astype(np.float32).astype(np.float64)
    angle = np.concatenate([np.outer(np.arange(t), freq)] * 2, -1)[:, None]

    def rope(x):  # [T, heads, d]
        a, rest = x[..., :turning], x[..., turning:]
        half = np.concatenate([-a[..., turning // 2:], a[..., :turning // 2]], -1)
        return np.concatenate([a * np.cos(angle) + half * np.sin(angle), rest], -1)

    x, routers = get("model.word_embeddings.weight")[ids], []
    for l in range(c["num_hidden_layers"]):
        p = f"model.layers.{l}"
        n = norm(x, f"{p}.input_layernorm.weight")
        qkv = (n @ get(f"{p}.attention.query_key_value.weight").T).reshape(t, heads + 2 * kv, d)
        q = rope(norm(qkv[:, :heads], f"{p}.attention.query_layernorm.weight"))
        k = rope(norm(qkv[:, heads:heads + kv], f"{p}.attention.key_layernorm.weight"))
        k, v = (np.repeat(a, heads // kv, 1) for a in (k, qkv[:, heads + kv:]))
        s = np.einsum("thd,shd->hts", q, k) / np.sqrt(d)
        s = np.where(np.tril(np.ones((t, t), bool)), s, -np.inf)
        s = np.exp(s - s.max(-1, keepdims=True))
        y = np.einsum("hts,shd->thd", s / s.sum(-1, keepdims=True), v).reshape(t, heads * d)
        x = x + y @ get(f"{p}.attention.dense.weight").T
        n = norm(x, f"{p}.post_attention_layernorm.weight")
        if l < c["first_k_dense_replace"]:
            x = x + unit(n, f"{p}.mlp")
            continue
        logits = n @ get(f"{p}.mlp.gate.weight").T
        routers.append(logits)
        scores = 1 / (1 + np.exp(-logits))
        choice = scores + get(f"{p}.mlp.gate.expert_bias")
        y = unit(n, f"{p}.mlp.shared_experts")
        for r in range(t):
            groups = choice[r].reshape(c["n_group"], -1)
            best = np.argsort(-np.sort(groups, -1)[:, -2:].sum(-1), kind="stable")[:c["topk_group"]]
            masked = np.full_like(groups, -np.inf)
            masked[best] = groups[best]
            chosen = np.argsort(-masked.ravel(), kind="stable")[:c["num_experts_per_tok"]]
            weight = scores[r, chosen]
            if len(chosen) > 1:
                weight = weight / (weight.sum() + 1e-20)
            for e, g in zip(chosen, weight * c["routed_scaling_factor"]):
                y[r] += g * unit(n[r], f"{p}.mlp.experts.{e}")
        x = x + y
    return norm(x, "model.norm.weight") @ get("lm_head.weight").T, routers


def save(path, tensors):
    """A safetensors file of arrays; those of 16 unsigned bits are BF16."""
    names = {np.dtype(np.uint16): "BF16", np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}
    header, at = {}, 0
    for name, a in tensors.items():
        header[name] = dict(dtype=names[a.dtype], shape=list(a.shape), data_offsets=[at, at + a.nbytes])
        at += a.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in tensors.values()))


def main():
    out = pathlib.Path(sys.argv[1]) / "bailing_moe_v2"
    out.mkdir(parents=True, exist_ok=True)
    w = weights(CONFIG, np.random.default_rng(2))
    for seed in range(80):  # a prompt whose greedy choices are no near-ties
        ids = np.random.default_rng(seed).integers(3, CONFIG["vocab_size"], 24)
        cur, greedy, margin = list(ids), [], np.inf
        for _ in range(16):
            last = np.sort(forward(CONFIG, w, np.array(cur))[0][-1])
            margin = min(margin, last[-1] - last[-2])
            greedy.append(int(forward(CONFIG, w, np.array(cur))[0][-1].argmax()))
            cur.append(greedy[-1])
        if margin > 0.05:
            break
    logits, routers = forward(CONFIG, w, ids)
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    save(out / "model.safetensors", w)
    expected = dict(input_ids=ids.astype(np.int64), logits=logits.astype(np.float32), greedy=np.array(greedy, np.int64))
    expected.update({f"router_{i}": r.astype(np.float32) for i, r in enumerate(routers)})
    save(out / "expected.safetensors", expected)
    print(f"margin {margin:.4f}, logits' deviation {logits.std():.3f}, distinct greedy {len(set(greedy))}")


if __name__ == "__main__":
    main()
