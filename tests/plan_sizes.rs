//! The plan of models of real sizes, none of whose weights is made: what a token costs, and what few tokens share.

use moeray::{
    file::{Bytes, Checkpoint, Tensor, synth::Shape},
    graph,
    ir::{Graph, Op},
    model::{self, Definition},
    plan::{self, Caps, Grid, Options, Plan, Weights},
    quant::{DType, KvType},
};

/// Grouped queries with a shared expert and without, wide and narrow experts.
const SIZED: [&str; 4] = ["qwen3-30b-a3b", "mixtral-8x7b", "olmoe-1b-7b", "qwen1.5-moe-a2.7b"];

fn caps() -> Caps {
    Caps { max_binding: 1 << 30, max_buffer: 2 << 30, ..Caps::webgpu_defaults() }
}

/// A model of these sizes, none of whose weights is made, with a format for each name and shape of a matrix.
pub fn unmade(shape: &Shape, dtype: impl Fn(&str, &[usize]) -> DType) -> Definition {
    let tensor = |(name, dims): (String, Vec<usize>)| {
        let plain = name.contains("norm") || name.contains("ffn_gate_inp") || dims.len() == 1;
        let dtype = if plain { DType::F32 } else { dtype(&name, &dims) };
        let len = dtype.row_bytes(dims[dims.len() - 1]).unwrap() * dims[..dims.len() - 1].iter().product::<usize>();
        (name, Tensor::new(dtype, dims, vec![Bytes::from_fn(len, move || vec![0; len])]).unwrap())
    };
    let tensors = shape.tensors().into_iter().map(tensor).collect();
    let checkpoint = Checkpoint::from_parts(shape.metadata().unwrap(), tensors).unwrap();
    model::build(&checkpoint, &model::Options::default()).unwrap()
}

/// A preset in a mixture of formats as Q4_K_M files have it.
fn sized(name: &str) -> (Graph, Weights, Plan) {
    let d = unmade(&Shape::preset(name).unwrap(), |name, dims| match name {
        // 1408 columns are no whole number of blocks of 256: such files hold blocks of 32 there.
        _ if !dims[dims.len() - 1].is_multiple_of(256) => DType::Q8_0,
        _ if ["attn_v", "ffn_down", "output.weight"].iter().any(|s| name.contains(s)) => DType::Q6K,
        _ => DType::Q4K,
    });
    let g = graph::fuse(&d.program.graph);
    let dtypes: Vec<DType> = d.program.weights.iter().map(Tensor::dtype).collect();
    let weights = plan::weights(&g, &dtypes, &caps()).unwrap();
    let plan = plan::plan(&g, &weights, &caps(), &Options::new(8448, 64, KvType::F16)).unwrap();
    (g, weights, plan)
}

/// The file's bytes of the weights that a token uses: experts k of E, of embeddings one row, the rest whole.
fn used_bytes(g: &Graph, w: &Weights) -> f64 {
    let used = g.nodes.iter().find_map(|n| match &n.op {
        Op::NormRouter { router, .. } | Op::Router(router) => Some(router.used as f64 / router.experts as f64),
        _ => None,
    });
    let bytes = |i: usize| {
        let shape = &g.weights[i].shape;
        let (rows, cols) = (shape[..shape.len() - 1].iter().product::<usize>(), shape[shape.len() - 1]);
        let all = (w.dtypes[i].row_bytes(cols).unwrap() * rows) as f64;
        match (shape.len(), g.weights[i].name.contains("token_embd")) {
            (3, _) => all * used.unwrap(),
            (_, true) => all / rows as f64,
            _ => all,
        }
    };
    (0..g.weights.len()).map(bytes).sum()
}

/// What a token reads and writes is hardly more than its weights as the file has them: packing adds nothing, and activations
/// are little.
#[test]
fn a_token_costs_little_more_than_its_weights() {
    for name in SIZED {
        let (g, w, p) = sized(name);
        let (total, wanted) = (p.to_json()["decode"]["bytes_per_token"].as_f64().unwrap(), used_bytes(&g, &w));
        assert!(total > 0.99 * wanted && total < 1.06 * wanted, "{name}: {total} bytes, {wanted} of weights");
        assert!(p.dispatches_per_layer() <= 8.0, "{name}: {} dispatches a layer", p.dispatches_per_layer());
    }
}

/// With 8192 positions in the cache a token costs at most 1/0.7 of what it costs with 128, by bytes, and no dispatch more; no
/// workgroup goes through more than a few hundred positions.
#[test]
fn long_contexts_cost_bytes_only() {
    let mut got = vec![];
    for name in SIZED {
        let p = sized(name).2;
        let at = |past: u32| {
            let t = p.decode.totals(plan::Sizes { tokens: 1, outputs: 1, past });
            t.read + t.written
        };
        let ratio = at(127) as f64 / at(8191) as f64;
        let attend = p.decode.steps.iter().find(|s| s.variant.kernel.name == "attend").unwrap();
        let grid = |past: u32| attend.grid.eval(plan::Sizes { tokens: 1, outputs: 1, past }).unwrap();
        assert!(grid(8191)[2] >= 16 && grid(127)[2] == 1, "{name}: {:?}", grid(8191));
        // Every unit of a large device has work from a thousand positions on: for one token and for eight.
        let eight = p.small_batch.as_ref().unwrap().steps.iter().find(|s| s.variant.kernel.name == "attend").unwrap();
        for (step, tokens) in [(attend, 1), (eight, 8)] {
            for past in [1023, 1024, 1500, 2047, 4000, 8192 - tokens] {
                let g = step.grid.eval(plan::Sizes { tokens, outputs: 1, past }).unwrap();
                assert!(g.iter().product::<u32>() >= 256, "{name}: {g:?} for {tokens} tokens behind {past}");
            }
        }
        // A few tokens share the positions among as many workgroups, of no more positions each.
        let few = p.small_batch.as_ref().unwrap().steps.iter().find(|s| s.variant.kernel.name == "attend").unwrap();
        let few = |past: u32| few.grid.eval(plan::Sizes { tokens: 4, outputs: 1, past }).unwrap();
        let groups = few(8188).iter().product::<u32>();
        assert!(groups >= 256 && few(8188)[2] >= 8 && few(124)[2] == 1, "{name}: {:?}", few(8188));
        got.push((name, ratio));
    }
    println!("speed at 8192 positions against 128, by bytes: {got:?}");
    for (name, ratio) in got {
        // Without grouped queries (these two) a position costs four times as much.
        let least = if ["olmoe-1b-7b", "qwen1.5-moe-a2.7b"].contains(&name) { 0.2 } else { 0.7 };
        assert!(ratio >= least, "{name}: {ratio}");
    }
}

/// Few tokens share what is read, with no cliff between schedules: weights that are read for 2 to 64 tokens, tile by tile.
#[test]
fn small_batches_share_weights() {
    let p = sized("qwen3-30b-a3b").2;
    let read = |tokens: u32| -> f64 {
        let sizes = plan::Sizes { tokens, outputs: 1, past: 0 };
        let schedule = p.schedules()[p.choose(tokens as usize, 1)].1.unwrap();
        let bytes = |s: &plan::Step| {
            let weights = plan::Cost { token: 0, output: 0, position: 0, ..s.reads };
            // An expert's tokens fit one tile in either schedule; other matrices are read once a tile of rows.
            let tiles = match s.grid {
                Grid::Direct { .. } if weights.expert == 0 => s.grid.eval(sizes).unwrap()[1],
                _ => 1,
            };
            weights.eval(sizes) as f64 * f64::from(tiles)
        };
        schedule.steps.iter().map(bytes).sum()
    };
    for t in 2..=16 {
        // The experts of few tokens hardly overlap: they grow with the tokens until all are in use.
        let more = f64::from(t + 1) / f64::from(t);
        assert!(
            read(t + 1) <= more.max(1.1) * read(t),
            "{} bytes for {t} tokens, {} for {}",
            read(t),
            read(t + 1),
            t + 1
        );
        assert!(read(t) < 0.95 * f64::from(t) * read(1), "{t} tokens: {} bytes, {} for one", read(t), read(1));
    }
    // All experts are in use by then, and nothing is read more often than once for every 32 tokens.
    assert!(read(32) <= 1.1 * read(16) && read(64) <= 2.0 * read(32));
    // A tile is never taller than what its kernels share.
    for s in &p.prefill.steps {
        assert!(!s.variant.kernel.tiles || s.variant.tile().unwrap()[1] == 32, "{}", s.variant.label());
    }
}

/// Eight sequences give as many workgroups as one, in every phase.
#[test]
fn sequences_share_out_their_positions() {
    for name in SIZED {
        let (g, w, _) = sized(name);
        let options = Options { sequences: Some(8), ..Options::new(4096, 64, KvType::F16) };
        let p = plan::plan(&g, &w, &caps(), &options).unwrap();
        for tokens in [1, 8, 64] {
            let schedule = p.schedules()[p.choose(tokens as usize, 1)].1.unwrap();
            let attend = schedule.steps.iter().find(|s| s.variant.kernel.name == "attend").unwrap();
            let grid = attend.grid.eval(plan::Sizes { tokens, outputs: 1, past: 1024 - tokens }).unwrap();
            assert!(grid.iter().product::<u32>() >= 256, "{name}: {grid:?} for {tokens} rows");
        }
    }
}

/// No dispatch of a long prompt works longer than a submission may: attention is cut into parts that cover its rows.
#[test]
fn long_attention_is_cut() {
    let (g, w, _) = sized("qwen3-30b-a3b");
    let p = plan::plan(&g, &w, &caps(), &Options::new(65536, 512, KvType::F16)).unwrap();
    let most = 1u64 << 35;
    for past in [0, 8192, 65536 - 512] {
        let s = plan::Sizes { tokens: 512, outputs: 1, past };
        for step in p.prefill.steps.iter().filter(|s| s.variant.kernel.name == "attend") {
            let work = step.reads.work(s);
            let Some(grid) = step.grid.eval(s) else { continue };
            let (mut at, mut parts) = (0, 0);
            while let Some(part) = step.part(s, at, most) {
                assert!(part.start == at && part.end > at && part.end <= grid[1]);
                let share = work / u64::from(grid[1]) * u64::from(part.end - part.start);
                assert!(share <= most, "{}: {share} in one dispatch", step.variant.label());
                (at, parts) = (part.end, parts + 1);
                if at == grid[1] {
                    break;
                }
            }
            assert!(parts > 0 || work <= most, "{}: {work} at once", step.variant.label());
            assert!((parts > 4) == (past > 60_000), "{parts} parts behind {past}");
        }
    }
}
