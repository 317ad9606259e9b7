"""Makes the small random-weight checkpoints of this folder that are not in it from elsewhere, with what transformers computes from
them: `python make.py [name ...]` (torch 2.15, transformers 5.23; float32, CPU, eager attention, seed 1).

Each folder gets config.json, model.safetensors (BF16; exactly these values are computed with) and expected.safetensors:
input_ids [T], logits [T, V] of one pass, greedy [N] the continuation, router_<i> [T, E] the raw router logits of the i-th layer with
experts. Only what the file holds is rounded to BF16: rotary frequencies stay exact.
"""
import pathlib, sys, torch, transformers as T
from safetensors.torch import save_file

COMMON = dict(vocab_size=96, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=256, rms_norm_eps=1e-5,
              initializer_range=0.2, bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=False)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=0.8,
            beta_fast=32, beta_slow=1)
MODELS = {
    # DeepSeek-V3's router on grouped-query attention with norms on the heads; two groups
    "dots1": ("Dots1", dict(num_key_value_heads=2, head_dim=12, intermediate_size=40, moe_intermediate_size=12, n_routed_experts=8,
              num_experts_per_tok=3, n_shared_experts=2, first_k_dense_replace=1, n_group=2, topk_group=1, norm_topk_prob=True,
              routed_scaling_factor=2.0, sliding_window=None)),
    # partial rotation, norms over whole projections, sigmoid with selection bias
    "minimax_m2": ("MiniMaxM2", dict(num_key_value_heads=2, head_dim=16, intermediate_size=12, num_local_experts=6,
              num_experts_per_tok=3, rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5))),
    # DeepSeek-V2 with groups (best expert), low-rank queries, YaRN with both of its factors
    "deepseek_v2_groups": ("DeepseekV2", dict(num_key_value_heads=4, intermediate_size=40, moe_intermediate_size=12, n_routed_experts=8,
              num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1, kv_lora_rank=20, q_lora_rank=24, qk_rope_head_dim=8,
              qk_nope_head_dim=12, v_head_dim=16, topk_method="group_limited_greedy", n_group=4, topk_group=2, routed_scaling_factor=3.0,
              rope_parameters=YARN)),
    # Kimi-K2's shape: one group
    "deepseek_v3_yarn": ("DeepseekV3", dict(num_key_value_heads=4, intermediate_size=40, moe_intermediate_size=12, n_routed_experts=6,
              num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1, kv_lora_rank=20, q_lora_rank=24, qk_rope_head_dim=8,
              qk_nope_head_dim=16, v_head_dim=12, n_group=1, topk_group=1, routed_scaling_factor=2.8, norm_topk_prob=True,
              rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=1.0))),
    # top-1 by sigmoid, the weight on the expert's input; chunks of 8 positions; every other layer without rotation, its queries scaled
    # by position; norms of queries and keys
    "llama4": ("Llama4", dict(num_key_value_heads=2, head_dim=12, intermediate_size=16, intermediate_size_mlp=32, num_local_experts=4,
              num_experts_per_tok=1, interleave_moe_layer_step=1, no_rope_layer_interval=2, attention_chunk_size=8, floor_scale=4,
              attn_scale=0.3, rope_parameters=dict(rope_type="default", rope_theta=10000.0))),
    # what a GGUF can say of it: the sizes of the released models' attention; experts in every other layer
    "llama4_interleaved": ("Llama4", dict(num_hidden_layers=4, num_key_value_heads=2, head_dim=12, intermediate_size=16,
              intermediate_size_mlp=32, num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=2, no_rope_layer_interval=4,
              max_position_embeddings=16384, rope_parameters=dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=64))),
    # norms of queries and keys after the rotation, a base stretched by alpha, a shared unit
    "hunyuan_moe": ("HunYuanMoEV1", dict(num_key_value_heads=2, head_dim=12, intermediate_size=16, num_experts=6, moe_topk=2,
              rope_parameters=dict(rope_type="dynamic", type="dynamic", rope_theta=10000.0, alpha=100.0, factor=1.0))),
    # a window in two layers of three; the third with other heads, values that are the keys, and a quarter of its pairs turning; a dense
    # network beside the experts, norms before and behind, a factor of each expert and of each layer, bounded logits.
    "gemma4": ("Gemma4", dict(hidden_size=64, num_key_value_heads=2, head_dim=12, global_head_dim=24, num_global_key_value_heads=1,
              attention_k_eq_v=True, intermediate_size=24, enable_moe_block=True, moe_intermediate_size=12, num_experts=6,
              top_k_experts=2, sliding_window=8, hidden_size_per_layer_input=0, final_logit_softcapping=6.0,
              layer_types=["sliding_attention", "sliding_attention", "full_attention"], tie_word_embeddings=True)),
    "granitemoeshared": ("GraniteMoeShared", dict(num_key_value_heads=2, intermediate_size=16, shared_intermediate_size=20,
              num_local_experts=6, num_experts_per_tok=2, embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.5,
              logits_scaling=2.0, rope_parameters=dict(rope_type="default", rope_theta=10000.0))),
}

# Families whose config of the text model has a name of its own.
TEXT = ["Llama4", "Gemma4"]
# Endings of the names of routers' matrices.
ROUTERS = (".gate", ".router", ".gate.wg", ".router.proj", ".router.layer")

def make(name):
    cls, sizes = MODELS[name]
    torch.manual_seed(1)
    config = getattr(T, cls + ("TextConfig" if cls in TEXT else "Config"))(**(COMMON | sizes))
    config._attn_implementation = "eager"
    model = getattr(T, cls + "ForCausalLM")(config).float().eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():  # norms and biases start at 1 or 0: make them count
        for n, p in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" not in n and (p.dim() == 1 or "correction_bias" in n):
                p.add_(torch.randn(p.shape, generator=g) * 0.1)
        for t in model.state_dict().values():
            if t.is_floating_point():
                t.copy_(t.to(torch.bfloat16).float())
    return model

def main():
    for name in sys.argv[1:] or MODELS:
        model = make(name)
        vocab = model.config.vocab_size
        for attempt in range(200):  # a prompt whose greedy choices are no near-ties
            ids = torch.randint(3, vocab, (1, 24), generator=torch.Generator().manual_seed(attempt))
            cur, margin = ids, 1e9
            with torch.no_grad():
                for _ in range(16):
                    top = model(input_ids=cur, use_cache=False).logits[0, -1].topk(2)
                    margin = min(margin, (top.values[0] - top.values[1]).item())
                    cur = torch.cat([cur, top.indices[:1].view(1, 1)], 1)
            if margin > 0.02: break
        routers = []
        for n, mod in model.named_modules():
            if n.endswith(ROUTERS) and hasattr(mod, "weight"):
                mod.register_forward_pre_hook(lambda s, x: routers.append(x[0].reshape(-1, x[0].shape[-1]).float() @ s.weight.float().T))
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0]
        folder = pathlib.Path(__file__).parent / name
        folder.mkdir(exist_ok=True)
        out = {"input_ids": ids[0].contiguous(), "logits": logits.float().contiguous(), "greedy": cur[0, 24:].contiguous()}
        out |= {f"router_{i}": r.contiguous() for i, r in enumerate(routers)}
        model.to(torch.bfloat16).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        save_file(out, folder / "expected.safetensors")
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, margin {margin:.3f}, {len(routers)} routers")

main()
