"""Makes the tiny checkpoints of architectures with recurrent layers, and what `transformers` computes from them in float32
on the CPU (made with transformers 5.23, torch 2.15). The files are as those of the other goldens: config.json,
model.safetensors (BF16), and expected.safetensors with `input_ids` [T], `logits` [T, V], `greedy` [N] and `router_<i>` [T, E]
(raw router logits of the i-th layer with experts).

    pip install torch transformers safetensors
    python make_recurrent.py OUT_DIR [name ...]

The models are random: layers that start at one or zero (norms, biases, decays) are moved off it, so that they count.
"""
import argparse, pathlib, torch, transformers as T
from safetensors.torch import save_file

COMMON = dict(vocab_size=96, hidden_size=32, max_position_embeddings=256, initializer_range=0.15, bos_token_id=0,
              eos_token_id=1, pad_token_id=2, tie_word_embeddings=False)
QWEN = dict(COMMON, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, head_dim=16, rms_norm_eps=1e-5,
            linear_conv_kernel_dim=4, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
            linear_num_value_heads=4, moe_intermediate_size=16, shared_expert_intermediate_size=24, num_experts=8,
            num_experts_per_tok=3)
MODELS = {
    # three gated DeltaNet layers to one of gated attention, partial rotation, shared expert with a gate
    "qwen3_next": ("Qwen3NextForCausalLM", "Qwen3NextConfig", dict(QWEN, intermediate_size=32, norm_topk_prob=True)),
    # the same with the projections in four matrices
    "qwen3_5_moe": ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeTextConfig", QWEN),
    # short convolutions, sigmoid router with selection bias, first layer dense
    "lfm2_moe": ("Lfm2MoeForCausalLM", "Lfm2MoeConfig", dict(COMMON, tie_word_embeddings=True, num_hidden_layers=4,
                 num_attention_heads=4, num_key_value_heads=2, norm_eps=1e-5, intermediate_size=48, moe_intermediate_size=16,
                 num_experts=8, num_experts_per_tok=3, num_dense_layers=1, conv_L_cache=3, routed_scaling_factor=1.5,
                 layer_types=["conv", "conv", "full_attention", "conv"])),
}
FAMILIES = {"qwen3_5_moe": "qwen3_5_moe_text"}

def build(name):
    cls, cfg_cls, kw = MODELS[name]
    torch.manual_seed(sum(map(ord, name)))
    cfg = getattr(T, cfg_cls)(**kw)
    cfg._attn_implementation = "eager"
    m = getattr(T, cls)(cfg).float().eval()
    g = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for n, p in m.named_parameters():
            if p.dim() == 1 or n.endswith("bias"):
                p.add_(torch.randn(p.shape, generator=g) * 0.1)
        for n, b in m.named_buffers():
            if n.endswith("expert_bias"):
                b.add_(torch.randn(b.shape, generator=g) * 0.1)
            elif n.endswith("A_log"):
                b.add_(0)
        for n, p in m.named_parameters():
            if n.endswith("A_log"):  # memories of a few to some dozens of tokens
                p.copy_(torch.rand(p.shape, generator=g) * 3 - 3)
            if "conv" in n and p.dim() == 3:
                p.copy_(torch.randn(p.shape, generator=g) * 0.5)
        # What the file holds is what is computed with; the rotary frequencies, which it does not hold, stay exact.
        for t in m.state_dict().values():
            if t.is_floating_point():
                t.copy_(t.to(torch.bfloat16).float())
    return m

def greedy(m, ids, n):
    cur, out, margin = ids, [], 1e9
    with torch.no_grad():
        for _ in range(n):
            top = m(input_ids=cur, use_cache=False).logits[0, -1].topk(2)
            margin = min(margin, (top.values[0] - top.values[1]).item())
            out.append(top.indices[0].item())
            cur = torch.cat([cur, top.indices[0].view(1, 1)], 1)
    return out, margin

def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out")
    ap.add_argument("names", nargs="*")
    a = ap.parse_args()
    for name in a.names or MODELS:
        m = build(name)
        for attempt in range(80):  # a prompt whose greedy choices are no near-ties
            gen = torch.Generator().manual_seed(attempt)
            ids = torch.randint(3, m.config.vocab_size, (1, 24), generator=gen)
            tokens, margin = greedy(m, ids, 16)
            if margin > 0.02:
                break
        routers, hooks = [], []
        for n, mod in m.named_modules():
            if n.endswith(".gate") and getattr(getattr(mod, "weight", None), "dim", lambda: 0)() == 2:
                def keep(s, x):
                    routers.append(torch.nn.functional.linear(x[0].reshape(-1, x[0].shape[-1]), s.weight))
                hooks.append(mod.register_forward_pre_hook(keep))
        with torch.no_grad():
            logits = m(input_ids=ids, use_cache=False).logits[0]
        for h in hooks:
            h.remove()
        d = pathlib.Path(a.out) / name
        d.mkdir(parents=True, exist_ok=True)
        m.to(torch.bfloat16).save_pretrained(d)
        (d / "generation_config.json").unlink(missing_ok=True)
        out = {"input_ids": ids[0].contiguous(), "logits": logits.contiguous().float(), "greedy": torch.tensor(tokens)}
        out.update({f"router_{i}": r.contiguous() for i, r in enumerate(routers)})
        save_file(out, str(d / "expected.safetensors"))
        print(f"{name:12} parameters {sum(p.numel() for p in m.parameters())} logits std {logits.std():.3f} "
              f"margin {margin:.4f} routers {len(routers)} distinct greedy {len(set(tokens))}")

if __name__ == "__main__":
    main()
