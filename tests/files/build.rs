//! Makes GGUF bytes by hand, right or wrong, independently of the library's writer.

/// A GGUF file in the making. Remembers where its length fields are, so that mutations can aim at them.
#[derive(Clone, Default)]
pub struct Gguf {
    pub bytes: Vec<u8>,
    pub lengths: Vec<usize>,
}

impl Gguf {
    /// Magic, version and the two counts.
    pub fn new(version: u32, tensors: u64, entries: u64) -> Self {
        let mut g = Gguf::default();
        g.raw(b"GGUF");
        g.raw(&version.to_le_bytes());
        g.length(tensors);
        g.length(entries);
        g
    }

    pub fn raw(&mut self, b: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(b);
        self
    }

    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    pub fn length(&mut self, v: u64) -> &mut Self {
        self.lengths.push(self.bytes.len());
        self.raw(&v.to_le_bytes())
    }

    pub fn string(&mut self, s: &[u8]) -> &mut Self {
        self.length(s.len() as u64).raw(s)
    }

    /// A metadata entry: key, type number, value bytes.
    pub fn entry(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        self.string(key.as_bytes()).u32(kind).raw(value)
    }

    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.string(key.as_bytes()).u32(8).string(value.as_bytes())
    }

    /// The head of an array entry.
    pub fn array(&mut self, key: &str, kind: u32, len: u64) -> &mut Self {
        self.string(key.as_bytes()).u32(9).u32(kind).length(len)
    }

    /// A tensor's entry; `dims` innermost first, as in the file.
    pub fn tensor(&mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> &mut Self {
        self.string(name.as_bytes()).u32(dims.len() as u32);
        for d in dims {
            self.length(*d);
        }
        self.u32(kind).length(offset)
    }

    /// Pads to `alignment`, then appends data.
    pub fn data(&mut self, alignment: usize, data: &[u8]) -> Vec<u8> {
        let n = self.bytes.len().next_multiple_of(alignment);
        self.bytes.resize(n, 0);
        self.raw(data).bytes.clone()
    }
}

/// One of everything: all value types, arrays of fixed size, of strings and of arrays, three tensors.
pub fn sample() -> Gguf {
    let mut g = Gguf::new(3, 3, 17);
    g.text("general.architecture", "llama").text("general.name", "é ☃");
    g.entry("k.u8", 0, &[200]).entry("k.i8", 1, &[0x80]).entry("k.u16", 2, &[1, 2]).entry("k.i16", 3, &[0xff, 0xff]);
    g.entry("k.u32", 4, &7u32.to_le_bytes()).entry("k.i32", 5, &(-7i32).to_le_bytes());
    g.entry("k.f32", 6, &0.5f32.to_le_bytes()).entry("k.bool", 7, &[1]);
    g.entry("k.u64", 10, &u64::MAX.to_le_bytes()).entry("k.i64", 11, &i64::MIN.to_le_bytes());
    g.entry("k.f64", 12, &1e300f64.to_le_bytes());
    g.array("a.u32", 4, 3).raw(&[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
    g.array("a.strings", 8, 3).string(b"one").string(b"").string("drei ☃".as_bytes());
    g.array("a.nested", 9, 2).u32(7).length(2).raw(&[0, 1]).u32(8).length(1).string(b"deep");
    g.array("a.empty", 6, 0);
    g.tensor("one", &[4], 0, 0).tensor("two", &[32, 2, 3], 8, 32).tensor("three", &[256, 1], 12, 256);
    let data: Vec<u8> = (0..256 + 144).map(|i| i as u8).collect();
    g.data(32, &data);
    g
}
