//! Block formats without a GPU: dequantisation against the package gguf, repacking, shaders as naga sees them.

use moeray::quant::{self, DType, gpu};
use safetensors::SafeTensors;

/// What tests/data/quant/make.py made.
pub struct Truth {
    file: Vec<u8>,
}

impl Truth {
    /// Reads one of the two files.
    pub fn open(name: &str) -> Truth {
        let path = format!("{}/tests/data/quant/{name}", env!("CARGO_MANIFEST_DIR"));
        Truth { file: std::fs::read(path).unwrap() }
    }

    /// The bytes of a tensor.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.file).unwrap().tensor(name).unwrap().data().to_vec()
    }

    /// The random blocks of a format.
    pub fn blocks(&self, dtype: DType) -> Vec<u8> {
        self.bytes(&format!("{dtype}.blocks"))
    }

    /// Their weights.
    fn weights(&self, dtype: DType) -> Vec<f32> {
        self.bytes(&format!("{dtype}.f32")).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// The weights of whole blocks.
pub fn dequantized(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let l = dtype.layout();
    let mut y = vec![f32::NAN; bytes.len() / l.bytes * l.block];
    quant::dequantize(dtype, bytes, &mut y).unwrap();
    y
}

/// The first weight that differs in a bit (NaN equals NaN: its payload means nothing).
fn first_difference(a: &[f32], b: &[f32]) -> Option<usize> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan()))
}

#[test]
fn dequantisation_is_ggmls_bit_for_bit() {
    let truth = Truth::open("blocks.safetensors");
    for dtype in DType::ALL {
        let (got, want) = (dequantized(dtype, &truth.blocks(dtype)), truth.weights(dtype));
        let finite = want.iter().filter(|v| v.is_finite()).count();
        assert!(finite * 2 > want.len() && want.len() >= 256, "{dtype}: the data are too poor a test");
        if let Some(i) = first_difference(&got, &want) {
            panic!("{dtype}: weight {i} is {:?} instead of {:?}", got[i], want[i]);
        }
    }
}

#[test]
fn alarm_one_flipped_bit_is_seen() {
    let truth = Truth::open("blocks.safetensors");
    for dtype in DType::ALL {
        let l = dtype.layout();
        let want = truth.weights(dtype);
        let clean = truth.blocks(dtype);
        for byte in 0..l.bytes {
            // In several blocks of common scales, because a bit of a quant means nothing where its scale is zero.
            let mut blocks = clean.clone();
            for block in if l.block == 1 { 3..4 } else { 8..12 } {
                // A byte of TQ1_0 has more values than it has digits, so its lower bits may mean nothing.
                let bit = if dtype == DType::TQ1_0 && byte < 52 { 7 } else { byte % 8 };
                blocks[block * l.bytes + byte] ^= 1 << bit;
            }
            assert!(first_difference(&dequantized(dtype, &blocks), &want).is_some(), "{dtype}: byte {byte}");
        }
    }
}

#[test]
fn wrong_sizes_are_errors() {
    for dtype in DType::ALL {
        let l = dtype.layout();
        let bytes = vec![0; 3 * l.bytes];
        let mut y = vec![0.0; 3 * l.block];
        assert!(quant::dequantize(dtype, &bytes, &mut y).is_ok());
        assert!(quant::dequantize(dtype, &[], &mut []).is_ok());
        assert!(quant::dequantize(dtype, &bytes[1..], &mut y).is_err());
        assert!(quant::dequantize(dtype, &bytes[l.bytes..], &mut y).is_err());
        assert!(quant::dequantize(dtype, &bytes, &mut y[1..]).is_err());

        let cols = l.block.max(32);
        let bytes = vec![1; 3 * dtype.row_bytes(cols).unwrap()];
        let mut out = vec![0; gpu::words(dtype, 3, cols)];
        assert!(gpu::pack(dtype, 3, cols, &bytes, &mut out).is_ok());
        assert!(gpu::pack(dtype, 3, cols, &bytes[1..], &mut out).is_err());
        assert!(gpu::pack(dtype, 2, cols, &bytes, &mut out).is_err());
        assert!(gpu::pack(dtype, 3, cols + 1, &bytes, &mut out).is_err());
        assert!(gpu::pack(dtype, 3, cols, &bytes, &mut out[4..]).is_err());
        assert!(gpu::pack_rows(dtype, 3, cols, 1, &bytes, &mut out).is_err());
        assert!(gpu::pack_rows(dtype, 3, cols, usize::MAX, &bytes, &mut out).is_err());
        assert!(gpu::pack_rows(dtype, usize::MAX, cols, 0, &bytes, &mut out).is_err());
        assert_eq!(gpu::words(dtype, usize::MAX, cols), 0);
    }
}

#[test]
fn gpu_layout_costs_at_most_six_percent() {
    for dtype in DType::ALL {
        let (rows, cols) = (768, 2048);
        let (file, gpu) = (dtype.row_bytes(cols).unwrap() * rows, 4 * gpu::words(dtype, rows, cols));
        assert!(gpu >= file && gpu as f64 <= 1.06 * file as f64, "{dtype}: {gpu} bytes for {file}");
        assert_eq!(gpu % 16, 0);
    }
}

#[test]
fn packing_row_by_row_equals_packing_at_once() {
    let truth = Truth::open("blocks.safetensors");
    for dtype in DType::ALL {
        let cols = if dtype.is_float() { 36 } else { dtype.layout().block };
        let row = dtype.row_bytes(cols).unwrap();
        let blocks = truth.blocks(dtype);
        let rows = (blocks.len() / row).min(11);
        let bytes = &blocks[..rows * row];
        let mut whole = vec![0; gpu::words(dtype, rows, cols)];
        gpu::pack(dtype, rows, cols, bytes, &mut whole).unwrap();
        let mut parts = vec![0; whole.len()];
        for (first, n) in [(5, rows - 5), (0, 2), (2, 3)] {
            let bytes = &bytes[first * row..(first + n) * row];
            gpu::pack_rows(dtype, rows, cols, first, bytes, &mut parts).unwrap();
        }
        assert!(whole == parts, "{dtype}");
    }
}

/// A fragment in the smallest kernel: it writes every group's weights.
pub fn unpack_kernel(dtype: DType, groups: usize) -> String {
    let stores: String = (0..8).map(|i| format!("        out[g * 8u + {i}u] = y[{i}];\n")).collect();
    format!(
        "@group(0) @binding(0) var<storage, read> W_data: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>;

{}
@compute @workgroup_size(32)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
    let g = id.x;
    if g < {groups}u {{
        let y = W_dequant(g, {groups}u);
{stores}    }}
}}
",
        gpu::fragment(dtype)
    )
}

/// Parses and validates WGSL with no capability beyond WebGPU's base.
fn validated(source: &str) -> (naga::Module, naga::valid::ModuleInfo) {
    let module = naga::front::wgsl::parse_str(source).unwrap_or_else(|e| panic!("{}", e.emit_to_string(source)));
    // The flag behind unpack2x16float, which WebGPU guarantees.
    let base = naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let mut v = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), base);
    let info = v.validate(&module).unwrap_or_else(|e| panic!("{}", e.emit_to_string(source)));
    (module, info)
}

#[test]
fn fragments_translate_to_every_shading_language() {
    use naga::back::{hlsl, msl, spv, wgsl};
    for dtype in DType::ALL {
        let (module, info) = validated(&unpack_kernel(dtype, 24));
        spv::write_vec(&module, &info, &spv::Options::default(), None).unwrap();
        let options = msl::Options { fake_missing_bindings: true, ..Default::default() };
        msl::write_string(&module, &info, &options, &msl::PipelineOptions::default()).unwrap();
        let (options, pipeline) = (hlsl::Options::default(), hlsl::PipelineOptions::default());
        let mut text = String::new();
        hlsl::Writer::new(&mut text, &options, &pipeline).write(&module, &info, None).unwrap();
        wgsl::write_string(&module, &info, wgsl::WriterFlags::empty()).unwrap();
    }
}

#[test]
fn fragments_name_nothing_outside_their_prefix() {
    // Two formats linked into one kernel must not meet.
    for dtype in DType::ALL {
        let (module, _) = validated(&unpack_kernel(dtype, 8));
        let functions = module.functions.iter().filter_map(|(_, f)| f.name.clone());
        let constants = module.constants.iter().filter_map(|(_, c)| c.name.clone());
        let types = module.types.iter().filter_map(|(_, t)| t.name.clone());
        let names: Vec<_> = functions.chain(constants).chain(types).collect();
        assert!(names.contains(&"W_dequant".to_string()), "{dtype}: {names:?}");
        assert!(names.iter().all(|n| n.starts_with("W_")), "{dtype}: {names:?}");
    }
}
