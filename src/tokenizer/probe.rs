//! Texts that two tokenizers must agree on before one may stand for the other.

/// Blanks, numbers, code, contractions, scripts without blanks, cased scripts, signs.
const TEXTS: &[&str] = &[
    "",
    " ",
    "a",
    " a",
    "  a  b   c    d     e      f",
    "                                                                      x",
    "\n",
    "\t\t\n\r\n  \n x \n\n\n\ny\t z",
    "Hello, world! It's 3.14159 o'clock, isn't it? I'LL GO; We've, they'RE, 'tis.",
    "The quick brown fox jumps over the lazy dog. A model of mixtures routes tokens to experts, and the weights are sparse.",
    "fn main() {\n    let x: Vec<u8> = vec![0u8; 1 << 20];\n\tprintln!(\"{:?}\", &x[..10]);\n}\n\n\n",
    "def f(x):\n    return x ** 2  # square\n\n\nif __name__ == '__main__':\n    print(f(12345678901))\n",
    "<div class=\"a\"><p>Hi &amp; bye</p></div>\r\n\r\n",
    "1 12 123 1234 12345 123456 1234567 1,234,567.89 0x7fff 1e-9 12abc abc12 a1b2c3 ½ ¼",
    "2024-07-26T12:34:56Z v1.2.3-rc4 +49 (170) 123 45 67",
    "你好，世界！今天天气很好。我们去公园吧",
    "日本語のテキスト：カタカナとひらがな、漢字。",
    "한국어 텍스트입니다. 조선민주주의",
    "Привет, мир! Как дела? Ёлки-палки. Ελληνικά κείμενα",
    "مرحبا بالعالم! שלום עולם",
    "naïve façade Straße ñandú über coöperate",
    "😀 👍 🚀🚀 a😀b ☃ → ⇒ ∑ ∞ ≠ ± × ÷ € £ ¥ © ®",
    "camelCase PascalCase HTTPServer XMLHttpRequest iPhone McDonald's ALLCAPS'S lowerUPPER",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ~~ ~a ~~~a `` `a $$ $a ^^ ++ <= >= != -> => // /* */ #!/bin/sh",
    "foo/bar/baz.txt /usr/bin\n https://example.com/a?b=c&d=e#f user@example.org",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa hahahahahahaha ----------- ======= ........",
    "“quoted” ‘single’ „low“ «guillemets» … – — · •",
    "\u{1}\u{7f}\u{a0}x\u{2003}y\u{3000}z",
];

/// Combining marks, and upper case outside ASCII between other letters.
const MARKED: &[&str] =
    &["नमस्ते दुनिया। ภาษาไทยไม่มีช่องว่าง", "e\u{301} n\u{303} \u{301}x ♥\u{fe0f} 🏳\u{fe0f}", "ÀÉÎabc ABCéÀ ÀÀAB ΑΒΓ"];

/// The texts; without those that `exact` demands where it is off.
pub(super) fn texts(exact: bool) -> impl Iterator<Item = &'static str> {
    TEXTS.iter().chain(if exact { MARKED } else { &[] }).copied()
}
