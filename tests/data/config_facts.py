"""Writes config_facts.json: what the config classes of transformers take for absent keys, and which names mean the same.

    pip install transformers==5.24.0     (no torch: only the classes are needed)
    python config_facts.py > config_facts.json

Per `model_type`: `defaults` has the value of each field of the class where a config says nothing (null where that is none, or follows
from other keys), `rope_theta` and `partial_rotary_factor` among them, though the classes keep these elsewhere; `also` is the class's
`attribute_map`.
"""
import dataclasses, json
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

FAMILIES = """llama mistral mixtral llama4_text qwen2_moe qwen3_moe qwen3_next qwen3_5_moe_text lfm2_moe olmoe gpt_oss phimoe granitemoe
granitemoeshared deepseek_v2 deepseek_v3 ernie4_5_moe gemma4_text glm4_moe dots1 minimax_m2 hunyuan_v1_moe""".split()
# Fields of every class that say nothing of the numbers.
ASIDE = """transformers_version architectures output_hidden_states return_dict dtype chunk_size_feed_forward is_encoder_decoder id2label
label2id problem_type initializer_range use_cache pad_token_id bos_token_id eos_token_id eod_token_id sep_token_id attention_dropout
output_attentions pretraining_tp router_aux_loss_coef output_router_logits rope_parameters""".split()


def facts(name):
    cls = CONFIG_MAPPING[name]
    made = cls()
    fields = {f.name: None if f.default is dataclasses.MISSING else f.default for f in dataclasses.fields(cls)}
    named = {cls.attribute_map.get(k, k): v for k, v in fields.items()}
    defaults = {k: v for k, v in named.items() if k not in ASIDE and not k.startswith("_")}
    rope = made.rope_parameters or {}
    if "full_attention" not in rope:  # Gemma 4 has two
        defaults["rope_theta"] = rope["rope_theta"]
        defaults["partial_rotary_factor"] = rope.get("partial_rotary_factor")
    return {"also": cls.attribute_map, "defaults": dict(sorted(defaults.items()))}


table = {"transformers": transformers.__version__, "families": {n: facts(n) for n in FAMILIES}}
print(json.dumps(table, indent=1))
