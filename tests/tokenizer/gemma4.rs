//! GGUF's `gemma4` vocabularies. The ids are llama.cpp's (llama-cpp-python 0.3.36, `llama_tokenize` with BOS) for the
//! vocabulary made here.

use moeray::tokenizer::{EncodeOptions, GgufVocab, Tokenizer};

fn vocab() -> GgufVocab {
    let words = ["▁", "a", "b", "c", "ab", "▁ab", "\n", "\n\n", "▁▁", "é", "ca", "<|turn>", "<turn|>", "<|tool_call>"];
    let mut tokens: Vec<String> = ["<pad>", "<eos>", "<bos>", "<unk>"].map(String::from).into();
    tokens.extend((0..256).map(|i| format!("<0x{i:02X}>")));
    tokens.extend(words.map(String::from));
    let types = [vec![3, 3, 3, 2], vec![6; 256], vec![1; 11], vec![3, 3, 4]].concat();
    GgufVocab {
        model: "gemma4".into(),
        tokens,
        token_types: Some(types),
        merges: Some(["a b", "▁ ab", "\n \n", "▁ ▁", "c a"].map(String::from).into()),
        bos: Some(2),
        eos: Some(1),
        unk: Some(3),
        pad: Some(0),
        add_bos: Some(true),
        add_space_prefix: Some(false),
        ..GgufVocab::default()
    }
}

#[test]
fn ids_are_those_of_llama_cpp() {
    let t = Tokenizer::from_vocab(vocab()).unwrap();
    let cases: [(&str, bool, &[u32]); 9] = [
        ("ab ab\n\nc", false, &[2, 264, 265, 267, 263]),
        ("abcab", false, &[2, 264, 263, 264]),
        (" ab", true, &[2, 265]),
        ("  ab   b\n\n\na", false, &[2, 260, 265, 268, 260, 262, 267, 266, 261]),
        ("é€x", false, &[2, 269, 230, 134, 176, 124]),
        ("a<|turn>b<|tool_call>c\n", false, &[2, 261, 64, 128, 120, 121, 118, 114, 66, 262, 273, 263, 266]),
        ("a<|turn>b<|tool_call>c\n", true, &[2, 261, 271, 262, 273, 263, 266]),
        ("", false, &[2]),
        ("\n ab\n", true, &[2, 266, 265, 266]),
    ];
    for (text, parse_special, want) in cases {
        let ids = t.encode(text, EncodeOptions { add_bos: true, parse_special }).unwrap();
        assert_eq!(ids, want, "{text:?}");
        if !parse_special {
            assert_eq!(t.decode(&ids), text);
        }
    }
    assert_eq!((t.bos(), t.eos()), (Some(2), Some(1)));
}

#[test]
fn what_is_missing_is_named() {
    let error = |v: GgufVocab| Tokenizer::from_vocab(v).unwrap_err().to_string();
    let e = error(GgufVocab { merges: None, ..vocab() });
    assert!(e.contains("merges"), "{e}");
    let e = error(GgufVocab { merges: Some(vec!["ab".into()]), ..vocab() });
    assert!(e.contains("\"ab\""), "{e}");
    let e = error(GgufVocab { merges: Some(vec!["x y".into()]), ..vocab() });
    assert!(e.contains("x"), "{e}");
    let e = error(GgufVocab { bos: Some(999), ..vocab() });
    assert!(e.contains("bos_token_id is 999"), "{e}");
    let e = error(GgufVocab { token_types: Some(vec![1, 2]), ..vocab() });
    assert!(e.contains("token types"), "{e}");
}
