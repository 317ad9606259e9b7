//! The catalogue of kernels without a device: every variant links, validates, and translates to the languages of the
//! other backends; structs lie in memory as their Rust descriptions; nothing needs more than WebGPU's default limits.

mod names;

use moeray::{
    ir::Activation,
    kernels::{
        Access, Linked, Reduction, Variant, catalogue,
        catalogue::{ALL, Kernel},
        link, numbers, params, reflect,
        tiles::{self, Tiles},
    },
    quant::{DType, KvType},
};
use naga::{
    back::{hlsl, msl, spv, wgsl},
    valid::{Capabilities, ModuleInfo, ValidationFlags, Validator},
};

/// The activations that need no gate, and the one that does.
const ACTIVATIONS: [Activation; 4] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];
const CLAMPED: Activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };

fn parse(variant: &Variant) -> (Linked, naga::Module, ModuleInfo) {
    let linked = link(variant).unwrap();
    let text = &linked.text;
    let module = naga::front::wgsl::parse_str(text)
        .unwrap_or_else(|e| panic!("{}: {}", variant.label(), e.emit_to_string(text)));
    let info = Validator::new(
        ValidationFlags::all(),
        Capabilities::SHADER_FLOAT16_IN_FLOAT32
            | Capabilities::SHADER_FLOAT16
            | Capabilities::COOPERATIVE_MATRIX
            | Capabilities::SUBGROUP,
    )
    .validate(&module)
    .unwrap_or_else(|e| panic!("{}: {}", variant.label(), e.emit_to_string(text)));
    (linked, module, info)
}

/// SPIR-V, MSL, HLSL and WGSL again: what Vulkan, Metal, DX12 and browsers would be given.
fn translate(variant: &Variant, module: &naga::Module, info: &ModuleInfo) {
    translate_where_known(variant, module, info, false);
}

/// Cooperative matrices exist on Vulkan and Metal only (`cooperative`).
fn translate_where_known(variant: &Variant, module: &naga::Module, info: &ModuleInfo, cooperative: bool) {
    let label = variant.label();
    let words = spv::write_vec(module, info, &spv::Options::default(), None).unwrap_or_else(|e| panic!("{label}: {e}"));
    assert_eq!(words[0], 0x0723_0203, "{label}");
    let options = msl::Options {
        lang_version: if cooperative { (2, 3) } else { (2, 0) },
        fake_missing_bindings: true,
        ..Default::default()
    };
    let (metal, _) = msl::write_string(module, info, &options, &msl::PipelineOptions::default())
        .unwrap_or_else(|e| panic!("{label}: {e}"));
    assert!(metal.contains("kernel void"), "{label}");
    if cooperative {
        return;
    }
    let mut text = String::new();
    let options = hlsl::Options { fake_missing_bindings: true, ..Default::default() };
    let pipeline = hlsl::PipelineOptions::default();
    hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(module, info, None)
        .unwrap_or_else(|e| panic!("{label}: {e}"));
    assert!(text.contains("numthreads"), "{label}");
    let again = wgsl::write_string(module, info, wgsl::WriterFlags::empty()).unwrap_or_else(|e| panic!("{label}: {e}"));
    assert!(again.contains("@compute"), "{label}");
}

/// Limits of WebGPU's base level.
fn within_limits(variant: &Variant, linked: &Linked) {
    let r = reflect(linked).unwrap();
    let label = variant.label();
    let storage = r.bindings.iter().filter(|b| b.access != Access::Uniform).count();
    assert!(storage <= 8, "{label}: {storage} storage buffers");
    assert!(r.workgroup_bytes <= 16384, "{label}: {} bytes of workgroup memory", r.workgroup_bytes);
    assert!(r.workgroup[0] <= 256 && r.workgroup[1] == 1 && r.workgroup[2] == 1, "{label}: {:?}", r.workgroup);
    assert_eq!(Some(r.workgroup[0]), variant.number("WG"), "{label}");
    let mut indices: Vec<u32> = r.bindings.iter().map(|b| b.index).collect();
    indices.dedup();
    assert_eq!(indices.len(), r.bindings.len(), "{label}: a binding number twice");
    assert_eq!(r.binding("frame").map(|b| (b.index, b.access)), Some((0, Access::Uniform)), "{label}");
    assert_eq!(r.binding("p").map(|b| (b.index, b.access)), Some((1, Access::Uniform)), "{label}");
}

fn is_matrix(k: &Kernel) -> bool {
    k.varies("LANES")
}

/// The variants of a kernel with a reduction and with one format in all slots: one row of x at a time and several, with a tail and
/// without, with the norm and without.
fn matrix_variants(k: &'static Kernel, reduction: Reduction, dtype: DType) -> Vec<Variant> {
    let mut list = Vec::new();
    for cols in [256, 2048, 36] {
        if cols == 36 && !dtype.is_float() {
            continue;
        }
        for many in [false, true] {
            let v = reduction.matrix(k, cols, many).formats(&vec![dtype; k.slots.len()]);
            list.push(v.clone());
            if dtype == DType::F32 && k.varies("ACT") {
                list.extend(ACTIVATIONS.map(|act| v.clone().act(act)));
            }
            if dtype == DType::F32 && k.varies("ALPHA") {
                list.push(v.clone().act(CLAMPED));
            }
            if dtype == DType::Q8_0 && reduction == Reduction::Workgroup {
                list.push(v.clone().with("SUBGROUPS", 1));
            }
            if k.varies("NORM") {
                list.push(v.with("NORM", 1));
            }
        }
    }
    list
}

/// Everything but the product of matrix kernels and formats.
fn other_variants() -> Vec<Variant> {
    let mut list = Vec::new();
    for k in ALL {
        if is_matrix(k) || k.tiles || k.name == "embed" {
            continue;
        }
        let bases = match k.kv {
            true => [KvType::F32, KvType::F16, KvType::Q8_0].map(|kv| Variant::new(k).kv(kv)).to_vec(),
            false => vec![Variant::new(k)],
        };
        match k.name {
            "attend" => {
                for (k_dim, v_dim, group) in
                    [(64, 64, 1), (128, 128, 8), (80, 80, 4), (8, 8, 2), (192, 128, 1), (256, 256, 8), (576, 512, 16)]
                {
                    for kv in [KvType::F16, KvType::F32, KvType::Q8_0] {
                        for reduction in [Reduction::Invocation, Reduction::Workgroup] {
                            list.push(catalogue::attend_variant(k_dim, v_dim, group, kv, reduction));
                        }
                    }
                }
            }
            "router" => {
                list.push(bases[0].clone().with("EXPERTS", 1024).with("SPARSE", 1));
                for (e, by_score, groups) in [(64, 0, 1), (128, 0, 8), (256, 1, 8), (1024, 1, 1), (1024, 1, 1024)] {
                    let v = bases[0].clone().with("EXPERTS", e);
                    list.push(
                        v.with("BY_SCORE", by_score).with("GROUPED", u32::from(groups > 1)).with("GROUPS", groups),
                    );
                }
            }
            "router_cached" => {
                for (e, chosen, room, wg) in
                    [(64, 8, 64, 64), (256, 8, 64, 256), (512, 10, 512, 256), (1024, 22, 1024, 64)]
                {
                    let v = bases[0].clone().with("EXPERTS", e).with("KEEP_IDS", 1).with("CHOSEN", chosen);
                    let v = v.with("CACHE_ROOM", room).with("WG", wg);
                    list.extend([v.clone(), v.clone().with("SPARSE", 1), v.with("BY_SCORE", 1)]);
                }
            }
            "expert_places" => {
                let sizes = [(8, 64), (64, 128), (176, 1024)];
                list.extend(sizes.map(|(n, room)| bases[0].clone().with("CHOSEN", n).with("CACHE_ROOM", room)));
            }
            "expert_sort" => {
                list.extend([64, 128, 1024].map(|e| bases[0].clone().with("EXPERTS", e).with("WG", 64.min(e))));
            }
            "elementwise" => {
                for op in numbers::OP_ADD..=numbers::OP_SCALE_EXPERT_INPUTS {
                    list.extend(ACTIVATIONS.map(|act| bases[0].clone().with("OP", op).act(act)));
                }
                list.push(bases[0].clone().with("OP", 2).act(CLAMPED));
            }
            _ => list.extend(bases),
        }
    }
    list
}

#[test]
fn every_variant_translates() {
    for v in other_variants() {
        let (text, module, info) = parse(&v);
        within_limits(&v, &text);
        translate(&v, &module, &info);
    }
}

#[test]
fn every_matrix_kernel_takes_every_format() {
    for k in ALL.into_iter().filter(|k| is_matrix(k)) {
        for dtype in DType::ALL {
            for reduction in [Reduction::Workgroup, Reduction::Invocation] {
                for v in matrix_variants(k, reduction, dtype) {
                    let (text, module, info) = parse(&v);
                    within_limits(&v, &text);
                    // The languages differ by format and by kernel, hardly by both: all of it for one reduction each.
                    if v.number("TAIL") == Some(u32::from(dtype.is_float())) || dtype == DType::Q4K {
                        translate(&v, &module, &info);
                    }
                }
            }
        }
    }
}

#[test]
fn embed_takes_every_format() {
    for dtype in DType::ALL {
        for tail in 0..=u32::from(dtype.is_float()) {
            let v = Variant::new(&catalogue::EMBED).formats(&[dtype]).with("TAIL", tail);
            let (text, module, info) = parse(&v);
            within_limits(&v, &text);
            translate(&v, &module, &info);
        }
    }
}

/// Every way to multiply tiles, for every format that it takes.
#[test]
fn tiles_translate() {
    for k in ALL.into_iter().filter(|k| k.tiles) {
        for row in &tiles::ROWS {
            for dtype in DType::ALL.into_iter().filter(|d| (row.takes)(*d)) {
                for subgroup in [None, Some(32), Some(64)] {
                    let v = Variant::new(k).formats(&vec![dtype; k.slots.len()]).tiles(row.tiles, subgroup);
                    if v.number("WG") == Some(64) || (dtype == DType::Q4K && subgroup == Some(64)) {
                        let (text, module, info) = parse(&v);
                        within_limits(&v, &text);
                        if subgroup == Some(32) {
                            translate_where_known(&v, &module, &info, row.name.starts_with("coop"));
                        }
                    }
                }
            }
        }
        // What a format does not take falls back to the base.
        assert_eq!(Tiles::Int8.for_formats(&[DType::Q4K, DType::F16]), Tiles::F32);
    }
}

#[test]
fn two_formats_in_one_kernel() {
    for a in DType::ALL {
        let b = if a == DType::Q6K { DType::Q8_0 } else { DType::Q6K };
        let v = Variant::new(&catalogue::LINEAR_GLU).formats(&[a, b]);
        let (linked, _, _) = parse(&v);
        let text = linked.text;
        assert!(text.contains("fn gate_dequant") && text.contains("fn up_dequant"));
    }
}

/// A representative of each kernel.
fn any_variant(k: &'static Kernel) -> Variant {
    let v = Variant::new(k).formats(&vec![DType::Q8_0; k.slots.len()]);
    let v = if k.tiles { v.tiles(Tiles::F32, None) } else { v };
    if k.kv { v.kv(KvType::F16) } else { v }
}

/// The structs that the linker writes lie in memory as Rust's: naga reads back the same names, offsets and sizes.
#[test]
fn structs_lie_as_in_rust() {
    let read_back = |module: &naga::Module, ty: naga::Handle<naga::Type>| -> Vec<(String, usize, usize)> {
        let naga::TypeInner::Struct { members, .. } = &module.types[ty].inner else { panic!("no struct") };
        let size = |m: &naga::StructMember| module.types[m.ty].inner.size(module.to_ctx()) as usize;
        members.iter().map(|m| (m.name.clone().unwrap(), m.offset as usize, size(m))).collect()
    };
    let in_rust = |fields: &[params::Field]| -> Vec<(String, usize, usize)> {
        fields.iter().map(|f| (f.name.to_string(), f.offset, f.size)).collect()
    };
    for k in ALL {
        let (_, module, _) = parse(&any_variant(k));
        let variable = |name: &str| {
            let found = module.global_variables.iter().find(|(_, g)| g.name.as_deref() == Some(name));
            found.unwrap_or_else(|| panic!("{}: no {name}", k.name)).1.ty
        };
        assert_eq!(read_back(&module, variable("frame")), in_rust(params::Frame::FIELDS), "{}", k.name);
        assert_eq!(read_back(&module, variable("p")), in_rust(k.params), "{}", k.name);
        for (name, fields, tail) in k.structs {
            let found = module.types.iter().find(|(_, t)| t.name.as_deref() == Some(*name)).unwrap().0;
            let mut found = read_back(&module, found);
            if !tail.is_empty() {
                let (list, at, _) = found.pop().unwrap();
                assert!(tail.starts_with(&format!("{list}: ")), "{tail}");
                assert_eq!(at, fields.last().map_or(0, |f| f.offset + f.size), "{}", k.name);
            }
            assert_eq!(found, in_rust(fields), "{}", k.name);
        }
    }
}

/// Numbers that both sides use have one value and one name.
#[test]
fn shared_numbers_are_declared_once() {
    let mut names: Vec<&str> = numbers::ALL.iter().map(|n| n.0).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), numbers::ALL.len());
    let mut used = std::collections::BTreeSet::new();
    for k in ALL {
        let text = link(&any_variant(k)).unwrap().text;
        for (name, value) in numbers::ALL {
            let declarations = text.matches(&format!("const {name}: u32 = ")).count();
            assert!(declarations <= 1, "{}: {name} {declarations} times", k.name);
            if text.contains(&format!("const {name}: u32 = {value}u;")) {
                used.insert(*name);
            }
        }
    }
    assert!(used.len() > 20, "{used:?}");
}

#[test]
fn reflection_tells_access_and_size() {
    let v = Variant::new(&catalogue::LINEAR_KERNEL).formats(&[DType::Q4K]);
    let r = reflect(&link(&v).unwrap()).unwrap();
    let access = |n: &str| r.binding(n).unwrap_or_else(|| panic!("no {n}")).access;
    for (name, wanted) in [
        ("frame", Access::Uniform),
        ("p", Access::Uniform),
        ("x", Access::Read),
        ("w_data", Access::Read),
        ("bias", Access::Read),
        ("residual", Access::Read),
        ("gate", Access::Read),
        ("norm", Access::Read),
        ("y", Access::ReadWrite),
    ] {
        assert_eq!(access(name), wanted, "{name}");
    }
    assert_eq!(r.bindings.len(), 9);
}

#[test]
fn one_invocation_a_row_needs_no_barrier() {
    // Those that choose the experts themselves are for lanes only.
    for k in ALL.into_iter().filter(|k| is_matrix(k) && k.fixed().all(|n| n != ("CHOOSE", 1))) {
        for v in matrix_variants(k, Reduction::Invocation, DType::Q4K) {
            assert!(!link(&v).unwrap().text.contains("workgroupBarrier()"), "{}", v.label());
        }
        for v in matrix_variants(k, Reduction::Workgroup, DType::Q4K) {
            assert!(link(&v).unwrap().text.contains("workgroupBarrier()"), "{}", v.label());
        }
    }
}

#[test]
fn no_placeholder_is_left() {
    for k in ALL {
        let text = link(&any_variant(k)).unwrap().text;
        assert!(!text.contains("// unroll") && !text.contains("// static"), "{}", k.name);
        assert!(!text.contains("W_dequant") && !text.contains("W_data"), "{}", k.name);
        assert!(!["A_", "B_"].iter().any(|p| text.contains(&format!("{p}products"))), "{}", k.name);
        let sized = ["COUNT", "HALF", "_to_COLS"].iter().any(|p| text.contains(p));
        assert!(k.products.is_empty() || !sized, "{}", k.name);
    }
}

#[test]
fn a_wrong_variant_is_an_error() {
    let linear = Variant::new(&catalogue::LINEAR_KERNEL);
    assert!(link(&linear).is_err(), "no format");
    assert!(link(&linear.clone().formats(&[DType::F32, DType::F32])).is_err(), "two formats for one slot");
    assert!(link(&linear.clone().formats(&[DType::F32]).with("HEIGHT", 3)).is_err(), "an unknown number");
    assert!(link(&linear.formats(&[DType::F32]).kv(KvType::F16)).is_err(), "a cache where there is none");
    assert!(link(&Variant::new(&catalogue::ATTEND)).is_err(), "no cache");
}

#[test]
fn names_are_distinct() {
    let mut names: Vec<&str> = ALL.iter().map(|k| k.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ALL.len());
}
