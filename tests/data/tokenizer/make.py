"""Makes the tokenizer test data: small vocabularies and the ids that llama.cpp gives for them.

    python make.py SMOLLM2.gguf BARD.gguf BARD.json

needs the PyPI packages gguf, llama-cpp-python and sentencepiece. Writes, beside this script:

  bpe.gguf       a byte-level BPE whose merges cross all boundaries, with SmolLM2's special tokens and chat template
  spm.gguf       a SentencePiece vocabulary trained on the corpus below
  bard.json      tokenizer.json of the bard model, without its blanks
  expected.json  the texts, and llama.cpp's ids for them:
                   texts      written by hand
                   random     strings of characters that the patterns treat differently
                   bpe        for every group of pre-tokenizers that give equal ids: names, ids of `texts` (with special
                              tokens as text), a digest of the ids of each of `random`
                   special    ids of `texts` with special tokens parsed, pre-tokenizer smollm
                   ends       end-of-generation ids where the first tokens have these texts
                   spm, spm_special, spm_no_prefix, phi3: the same for spm.gguf
                   bard       for the vocabulary of the bard model (the same as bard.json)
"""

import io
import json
import random
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import sentencepiece

HERE = Path(__file__).parent
K = "tokenizer.ggml."

PRE = """gpt-2 phi-2 olmo mpt jais gigachat mellum a.x-4.0 modern-bert exaone4 trillion granite-docling jina-es jina-de
jina-v2-es jina-v2-de llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano qwen2
deepseek-r1-qwen kormo f2llmv2 megrez hunyuan solar-open grok-2 stablelm2 qwen35 smollm starcoder refact command-r
codeshell exaone minerva-7b mellum2 dbrx smaug-bpe glm4 chatglm-bpe gpt-4o llama4 kanana2 talkie minimax-m2 deepseek-v3
hunyuan-dense hy_v4 joyai-llm deepseek-llm deepseek-coder tekken kimi-k2 bailingmoe bailingmoe2 llada-moe seed-coder
exaone-moe afmoe laguna tiny_aya cohere2moe youtu minicpm5 spark2_5 falcon default""".split()

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\t\t\n\r\n  \n x",
    "Hello, world!",
    " leading and trailing ",
    "The quick brown fox jumps over the lazy dog. It's 3.14159 o'clock, isn't it? I'LL GO; We've, they'RE, 'tis.",
    "fn main() {\n    let x: Vec<u8> = vec![0u8; 1 << 20];\n\tprintln!(\"{:?}\", &x[..10]);\n}\n\n\n",
    "def f(x):\n    return x ** 2  # square\n\n\nif __name__ == '__main__':\n    print(f(12345678901))\n",
    "<div class=\"a\"><p>Hi &amp; bye</p></div>\r\n\r\n",
    "1 12 123 1234 12345 123456 1234567 1,234,567.89 0x7fff 1e-9 12abc abc12 a1b2c3 ½ ¼ Ⅻ ٣٤٥ १२३४",
    "2024-07-26T12:34:56Z v1.2.3-rc4 +49 (170) 123 45 67",
    "你好，世界！今天天气很好。我们去公园吧",
    "日本語のテキスト：カタカナとひらがな、漢字。ｶﾀｶﾅ　全角　スペース",
    "한국어 텍스트입니다. ㄱㄴㄷ 조선민주주의",
    "Привет, мир! Как дела? Ёлки-палки. Ελληνικά κείμενα ΑΒΓ",
    "مرحبا بالعالم! كيف حالك؟ שלום עולם",
    "नमस्ते दुनिया। ภาษาไทยไม่มีช่องว่าง ພາສາລາວ မြန်မာ ខ្មែរ",
    "é è ê ë — e\u0301 e\u0300 a\u030a n\u0303 \u0301x naïve façade Ångström ǅ ǈ ʰ ªº",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 a😀b ☃ ♥️ → ⇒ ∑ ∞ ≠ ± × ÷ € £ ¥ © ® ™",
    "camelCase PascalCase HTTPServer XMLHttpRequest iPhone McDonald's ALLCAPS'S lowerUPPER ÀÉÎabc ABCéÀ ÀÀAB",
    "a  b   c    d     e\t f \t g\n\n\nh \n \n i   ",
    "x\u00a0y\u2003z\u3000w\u2028v\u0085u\u200bt\ufeffs\u2060r",
    "".join(chr(i) for i in range(0x80)),
    "".join(chr(i) for i in range(0xa0, 0x180)),
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ~~ ~a ~~~a `` `a $$ $a ^^ ++ <= >= != -> => // /* */ #!/bin/sh",
    "foo/bar/baz.txt\n/usr/bin\n//\n C:\\Windows\\System32",
    "word/\nword /\r\n!!\n\n!!/\n",
    "https://example.com/a?b=c&d=e#f user@example.org",
    "a" * 300,
    " " * 70 + "x" + " " * 33,
    "\n" * 20 + "\t" * 7,
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "text <|endoftext|> text<|im_end|><|im_end|>  more <|im_end|> \n <repo_name>x<|im_start",
    "<s>[INST] Hi [/INST] there</s> <unk> <tool> </tool>end <0x41> <0x0A>",
    "“quoted” ‘single’ „low“ «guillemets» … – — ‐ · • † ‡ § ¶",
    "、。〃〄々〆〇〈〉《》「」『』【】〒〓〔〕〖〗〘〙〚〛〜〝〞〟〠 ︰︱﹏ ！？：；，",
    "ꀀꀁ ꓐ Ꭰ ა ა Ა Ⴀ ᏸ Ⰰ 𐐀𐐨 𝒜𝓑 𠀀𠀁 豈更 ⼀⼁ ㄅㄆ ꥠ ힰ 가나",
    "\u0300\u0301 \u0300a 1\u0301 \u20dd😀\u20e3 a\u0301b\u0301 c \u0301\u0301d",
    "\ue000\uf8ff\U000f0000\U0010ffff\u0378\u0600\u061c\u200e\u202e\u206f",
]


# First tokens of vocabularies, to see which of them end a generation.
END_SETS = [
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<|fim_pad|>"],
    ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|start_header_id|>", "<|finetune_pad|>"],
    ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|endoftext|>"],
    ["<|user|>", "<|assistant|>", "<|end|>", "</s>", "<s>", "<unk>", "<pad>"],
    ["<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<turn|>", "<|tool_response>", "</s>"],
    ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜fim▁hole｜>", "[EOS]", "[EOT]", "[PAD]"],
    ["<|file_sep|>", "<|repo_name|>", "<PRE>", "<EOT>", "[e~[", "<end_of_utterance>", "<|flush|>"],
]


def random_texts():
    rng = random.Random(20240726)
    groups = [
        "abcdefgstmdrevl", "ABCSTMDREVL", "'", " ", " ", "\n", "\r", "\t", "0123456789", "éßñü", "ÀÉÑ", "漢字中", "ひカ",
        "한글", "あー々", ".,!?;:-", "$+<=>^`|~", "/", "_", "\u0301\u0308", "😀→∑", "\u00a0\u3000\u2028", "٣½Ⅻ²",
        "\x00\x01\x1b\x1c\x1f\x7f", "\u200d\u200b\ufeff", "ǅʰª", "。、「！", "กะ", "ाक",
    ]
    out = []
    for i in range(400):
        few = rng.sample(groups, rng.randint(2, 6))
        out.append("".join(rng.choice(rng.choice(few)) for _ in range(rng.randint(4, 28))))
    return out


def fnv(ids):
    """The lower half of FNV-1a over the ids as little-endian u32."""
    h = 0xCBF29CE484222325
    for i in ids:
        for b in int(i).to_bytes(4, "little"):
            h = (h ^ b) * 0x100000001B3 % 2**64
    return f"{h % 2**32:08x}"


def read(path):
    fields = gguf.GGUFReader(path).fields
    return {k: f.contents() for k, f in fields.items() if k.startswith("tokenizer")}


def write(path, meta, name):
    """A GGUF file with the tokenizer keys `meta` and no tensors."""
    w = gguf.GGUFWriter(path, "llama")
    w.add_name(name)
    for key, value in meta.items():
        if key == K + "token_type":
            w.add_array(key, [int(v) for v in value])
        elif isinstance(value, (list, tuple)):
            w.add_array(key, list(value))
        elif isinstance(value, bool):
            w.add_bool(key, value)
        elif isinstance(value, int):
            w.add_uint32(key, value)
        else:
            w.add_string(key, value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def encode(meta, texts, special=False, add=False, name="test"):
    with tempfile.TemporaryDirectory() as d:
        path = f"{d}/vocab.gguf"
        write(path, meta, name)
        model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
        return [model.tokenize(t.encode(), add_bos=add, special=special) for t in texts]


def alphabet():
    """GPT-2's printable character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = iter(range(0x100, 0x200))
    return [chr(b if b in printable else next(rest)) for b in range(256)]


def crossing_bpe(texts, n):
    """A byte-level BPE trained without any pre-tokenizer, so that its merges cross every boundary and the ids show where
    a pre-tokenizer splits; of the pairs that occur equally often the first in order, so that it comes out the same."""
    letters = alphabet()
    words = [[letters[b] for b in t.encode()] for t in texts if t]
    merges = []
    while len(merges) < n:
        counts = {}
        for w in words:
            for pair in zip(w, w[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        # Long tokens would hide boundaries again (and spell special tokens).
        pair = max((p for p in counts if len(p[0] + p[1]) <= 8), key=lambda p: (counts[p], p))
        merges.append(pair)
        for w in words:
            i = 0
            while i + 1 < len(w):
                if (w[i], w[i + 1]) == pair:
                    w[i:i + 2] = [w[i] + w[i + 1]]
                i += 1
    made = dict.fromkeys(l + r for l, r in merges)
    return [*letters, *made], [f"{l} {r}" for l, r in merges]


def ends(bpe, texts):
    """The ids that llama.cpp takes for the end of a generation, with `texts` as the first tokens and EOS = 1."""
    meta = {**bpe, K + "tokens": texts + bpe[K + "tokens"][len(texts):], K + "eos_token_id": 1}
    with tempfile.TemporaryDirectory() as d:
        write(f"{d}/vocab.gguf", meta, "test")
        model = llama_cpp.Llama(f"{d}/vocab.gguf", vocab_only=True, verbose=False)
        n = len(meta[K + "tokens"])
        return [i for i in range(n) if llama_cpp.llama_vocab_is_eog(model._model.vocab, i)]


def small_bpe(path, texts):
    full = read(path)
    special = full[K + "tokens"][:17]
    tokens, merges = crossing_bpe(texts, 2200)
    keep = ["model", "pre", "add_space_prefix", "add_bos_token", "bos_token_id", "eos_token_id", "unknown_token_id"]
    meta = {K + k: full[K + k] for k in keep}
    meta["tokenizer.chat_template"] = full["tokenizer.chat_template"]
    meta[K + "tokens"] = special + tokens
    meta[K + "token_type"] = [3] * len(special) + [1] * len(tokens)
    meta[K + "merges"] = merges
    return meta


def spm():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for t in TEXTS for line in t.replace("\0", "").split("\n")] * 2),
        model_writer=model, model_type="bpe", vocab_size=900, byte_fallback=True, character_coverage=0.98,
        split_digits=True, allow_whitespace_only_pieces=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, control_symbols=["<|endoftext|>"], user_defined_symbols=["<tool>", "</tool>", "[INST]", "[/INST]"],
        num_threads=1, minloglevel=2, hard_vocab_limit=False)
    p = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    n = p.get_piece_size()
    kind = lambda i: (2 if p.is_unknown(i) else 3 if p.is_control(i) else 6 if p.is_byte(i)
                      else 4 if p.id_to_piece(i) in ("<tool>", "</tool>", "[INST]", "[/INST]") else 1)
    return {
        K + "model": "llama", K + "tokens": [p.id_to_piece(i) for i in range(n)],
        K + "scores": [float(p.get_score(i)) for i in range(n)], K + "token_type": [kind(i) for i in range(n)],
        K + "bos_token_id": 1, K + "eos_token_id": 2, K + "unknown_token_id": 0,
    }


def main():
    smollm, bard, bard_json = sys.argv[1:]
    texts, rand = TEXTS, random_texts()
    bpe = small_bpe(smollm, texts + rand)
    write(HERE / "bpe.gguf", bpe, "bpe")
    groups = {}
    for pre in PRE:
        ids = encode({**bpe, K + "pre": pre}, texts + rand)
        groups.setdefault(json.dumps(ids), []).append(pre)
    out = {"texts": texts, "random": rand, "bpe": []}
    for ids, names in groups.items():
        ids = json.loads(ids)
        out["bpe"].append({"names": names, "ids": ids[:len(texts)], "digests": [fnv(i) for i in ids[len(texts):]]})
    both = lambda meta, **kw: {"ids": (e := encode(meta, texts + rand, **kw))[:len(texts)],
                               "digests": [fnv(i) for i in e[len(texts):]]}
    out["ends"] = [{"texts": t, "ids": ends(bpe, t)} for t in END_SETS]
    out["special"] = encode(bpe, texts, special=True)
    pieces = spm()
    write(HERE / "spm.gguf", pieces, "spm")
    out["spm"] = both(pieces)
    out["spm_special"] = encode(pieces, texts, special=True, add=True)
    out["spm_no_prefix"] = encode({**pieces, K + "add_space_prefix": False}, texts, special=True)
    out["phi3"] = encode(pieces, texts, special=True, name="Phi-3.5-MoE")
    out["bard"] = both(read(bard))
    bard_json = json.loads(Path(bard_json).read_text())
    (HERE / "bard.json").write_text(json.dumps(bard_json, ensure_ascii=False, separators=(",", ":")))
    text = json.dumps(out, ensure_ascii=True, separators=(",", ":"))
    (HERE / "expected.json").write_text(text.replace('],"digests"', '],\n"digests"').replace('},{', '},\n{') + "\n")


main()
