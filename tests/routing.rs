//! Looking at routing: what a session records, how load is counted, what the picture and the program show.

use crate::{
    goldens::{folder, golden},
    support::{Target, gpu},
};
use moeray::{
    backend, file,
    generate::{SamplerOptions, Sampling},
    model,
    routing::{LayerTrace, Load, Statistics},
    session::{BackendChoice, Budget, LoadOptions, Model, Session, SessionOptions, Status},
};
use std::fs;

fn choice(target: Target) -> Option<BackendChoice> {
    Some(match target {
        Target::Reference => BackendChoice::Reference,
        Target::Cpu => BackendChoice::Cpu(backend::cpu::Options {
            activations: moeray::ops::linear::Activations::Int16,
            ..Default::default()
        }),
        _ => {
            gpu()?;
            let device =
                backend::wgpu::DeviceInfo::all().into_iter().find(|d| d.name.to_lowercase().contains("llvmpipe"));
            BackendChoice::Wgpu(backend::wgpu::Options { device: device.map(|d| d.name), ..Default::default() })
        }
    })
}

fn load(name: &str, target: Target) -> Option<Model> {
    let model = model::Options { trace_router: true };
    let options = LoadOptions { backend: choice(target)?, model, ..Default::default() };
    Some(Model::load(&folder(name), &options, &mut |_| {}).unwrap())
}

/// The recorded experts are the k largest of the golden's router logits, for prompt and decoded tokens, in any chunks, on
/// every backend; a session that goes back forgets them.
#[test]
fn sessions_record_what_the_router_chose() {
    for target in [Target::Reference, Target::Cpu, Target::Wgpu] {
        let Some(model) = load("qwen2_moe", target) else { continue };
        let g = golden("qwen2_moe");
        let mut s = Session::new(&model, SessionOptions { ctx: 64, ubatch: 7, ..Default::default() }).unwrap();
        s.record_routing().unwrap();
        let (prompt, rest) = g.ids.split_at(20);
        s.prefill(prompt).unwrap();
        rest.iter().for_each(|id| _ = s.decode(*id).unwrap());
        let trace = s.routing().unwrap();
        assert_eq!(trace.tokens(), g.ids.len());
        assert_eq!(trace.layers().iter().map(|l| l.layer).collect::<Vec<_>>(), [0, 2], "layer 1 is dense");
        for (l, (logits, experts)) in trace.layers().iter().zip(g.routers()) {
            assert_eq!((l.experts, l.used), (*experts, 3));
            for (t, row) in logits.chunks(*experts).enumerate() {
                let mut order: Vec<u32> = (0..*experts as u32).collect();
                order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
                let got: Vec<(u32, f32)> = l.token(t).collect();
                assert_eq!(got.iter().map(|g| g.0).collect::<Vec<_>>(), order[..3], "{target:?}, token {t}");
                assert!(got.windows(2).all(|w| w[0].1 >= w[1].1) && got.iter().all(|g| g.1 > 0.0));
            }
        }
        s.truncate(5);
        assert_eq!(s.routing().unwrap().tokens(), 5);
        assert_eq!(s.routing().unwrap().loads()[0].total(), 15);
    }
}

/// Recording does not change who chooses tokens: the device's choices come with the same record as the host's.
#[test]
fn choices_on_the_device_are_recorded_too() {
    for (target, device_chooses) in [(Target::Cpu, false), (Target::Wgpu, true)] {
        let Some(model) = load("qwen2_moe", target) else { continue };
        let g = golden("qwen2_moe");
        let run = |on_host: bool| {
            let mut s = Session::new(&model, SessionOptions { ctx: 64, ubatch: 7, ..Default::default() }).unwrap();
            s.record_routing().unwrap();
            let sampling = Sampling { options: SamplerOptions::greedy(), on_host, ..Sampling::default() };
            assert_eq!(s.set_sampler(&sampling).unwrap(), device_chooses && !on_host, "{target:?}");
            s.begin_choice(&g.ids, 0).unwrap();
            let mut ids = vec![];
            while ids.len() < 6 {
                // One ahead of what was taken, as a generation does it.
                while s.choices_queued() < s.depth() && s.choices_queued() + ids.len() < 6 {
                    s.begin_next(0).unwrap();
                }
                loop {
                    match s.poll(Budget::UNLIMITED).unwrap() {
                        Status::Done => break,
                        Status::Waiting => s.wait().unwrap(),
                        Status::Pending => {}
                        Status::Idle => panic!("nothing is queued"),
                    }
                }
                ids.push(s.chosen().unwrap());
            }
            (ids, s.routing().unwrap().clone())
        };
        let (ids, trace) = run(false);
        assert_eq!(trace.tokens(), g.ids.len() + 5, "the last choice was not fed");
        assert!((ids, trace) == run(true), "{target:?}");
    }
}

#[test]
fn recording_is_refused_where_there_is_nothing_to_record() {
    let refused = |name: &str, trace_router: bool| {
        let options = LoadOptions {
            backend: BackendChoice::Reference,
            model: model::Options { trace_router },
            ..Default::default()
        };
        let model = Model::load(&folder(name), &options, &mut |_| {}).unwrap();
        Session::new(&model, Default::default()).unwrap().record_routing().unwrap_err().to_string()
    };
    assert!(refused("llama", true).contains("no experts"));
    assert!(refused("mixtral", false).contains("trace_router"));
    let model = load("mixtral", Target::Reference).unwrap();
    let mut s = Session::new(&model, Default::default()).unwrap();
    s.prefill(&[3]).unwrap();
    assert!(s.record_routing().is_err());
}

fn of(experts: usize, ids: &[u32]) -> Load {
    let mut l = LayerTrace::default();
    (l.experts, l.used, l.ids, l.weights) = (experts, 1, ids.to_vec(), vec![0.5; ids.len()]);
    Load::of(&l)
}

#[test]
fn load_is_counted() {
    let even = of(4, &[0, 1, 2, 3, 0, 1, 2, 3]);
    assert_eq!((even.entropy(), even.evenness(), even.max_over_mean(), even.unused()), (2.0, 1.0, 1.0, 0));
    let one = of(4, &[2; 6]);
    assert_eq!((one.entropy(), one.evenness(), one.max_over_mean(), one.unused()), (0.0, 0.0, 4.0, 3));
    assert_eq!((one.weight_sums[2], one.relative()), (3.0, vec![0.0, 0.0, 4.0, 0.0]));
    let none = of(4, &[]);
    assert_eq!((none.entropy(), none.max_over_mean(), none.unused()), (0.0, 0.0, 4));
    assert_eq!(of(1, &[0]).evenness(), 1.0);
    let mut both = even;
    both.merge(&one);
    assert_eq!(both.counts, [2, 2, 8, 2]);
}

/// Every cell is drawn once, in the colour of its load, and says its numbers; the scale goes up to what occurs.
#[test]
fn the_picture_shows_every_cell() {
    let loads = [of(6, &[0, 0, 0, 1, 2, 5]), of(6, &[3, 3, 3, 3, 3, 3])];
    let svg = Load::heat_map(&loads, "a < b & \"c\"");
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains("a &lt; b &amp; &quot;c&quot;"));
    let cells: Vec<(&str, &str)> = svg
        .lines()
        .filter_map(|l| l.strip_prefix("<path fill=\"")?.split_once('"'))
        .filter_map(|(colour, rest)| Some((colour, rest.split_once("<title>")?.1)))
        .collect();
    assert_eq!(cells.len(), 12);
    assert_eq!(cells.iter().filter(|c| c.0 == "#d9d9d9").count(), 7, "two and five unused experts");
    // 1/6, 3/6 and 6/6 of the choices are 1, 3 and 6 times the mean: three colours, and the unused one.
    let colours: std::collections::BTreeSet<&str> = cells.iter().map(|c| c.0).collect();
    assert_eq!(colours.len(), 4);
    assert!(cells.iter().any(|c| c.1.starts_with("layer 0, expert 3: 6.00 x mean, 6 choices")), "{cells:?}");
    assert!(svg.contains(">8x<") && !svg.contains(">16x<"), "the scale ends above 6");
    assert!(svg.contains(">1.79<") && svg.contains(">0.00<"), "entropies of the layers");
    // A large model's picture stays small.
    let big: Vec<Load> = (0..48).map(|_| of(512, &(0..5120).map(|i| i * i % 512).collect::<Vec<_>>())).collect();
    assert!(Load::heat_map(&big, "").len() < 1 << 20);
    assert!(Load::heat_map(&[], "").contains("</svg>"));
}

/// Pictures and page from a real trace: a field for every layer, one title, and no picture is cut off at its right.
#[test]
fn the_page_shows_every_layer() {
    let model = load("qwen2_moe", Target::Reference).unwrap();
    let mut session = Session::new(&model, SessionOptions { ctx: 64, ..Default::default() }).unwrap();
    session.record_routing().unwrap();
    session.prefill(&golden("qwen2_moe").ids).unwrap();
    let trace = session.routing().unwrap();
    let mut statistics = Statistics::default();
    statistics.add(trace);
    statistics.add(trace);
    assert_eq!((statistics.tokens(), statistics.layers().len()), (2 * trace.tokens(), 2));
    for (layer, of) in statistics.layers().iter().zip(trace.layers()) {
        let taken = |e: u32| of.ids.iter().filter(|id| **id == e).count() as u32;
        let (a, b) = (of.ids[0], of.ids[1]);
        let both = of.ids.chunks(of.used).filter(|ids| ids.contains(&a) && ids.contains(&b)).count() as u32;
        assert_eq!(layer.together(a as usize, a as usize), 2 * taken(a));
        assert_eq!(layer.together(a as usize, b as usize), 2 * both);
        let chance = f64::from(taken(a)) * f64::from(taken(b)) / trace.tokens() as f64;
        assert!((layer.lift(a as usize, b as usize).unwrap() - f64::from(both) / chance).abs() < 1e-12);
        assert_eq!(layer.together(of.experts, 0), 0);
        assert_eq!((layer.bins(), layer.bin_width()), (trace.tokens(), 1));
        let first = layer.load_in_bin(0, a as usize);
        assert!((first - of.experts as f64 / of.used as f64).abs() < 1e-12, "one of {} choices", of.used);
    }
    let page = statistics.html("a title");
    assert_eq!(page.matches("<svg ").count(), 3);
    assert_eq!(page.matches(">layer 2<").count(), 2, "a field in each of two pictures");
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
}

/// Positions share bins once there are many, and every choice stays counted.
#[test]
fn long_texts_get_wider_bins() {
    let model = load("mixtral", Target::Reference).unwrap();
    let mut session = Session::new(&model, SessionOptions { ctx: 300, ..Default::default() }).unwrap();
    session.record_routing().unwrap();
    let mut statistics = Statistics::default();
    for n in [100, 300] {
        session.truncate(0);
        session.prefill(&(0..n).map(|i| i % 50).collect::<Vec<u32>>()).unwrap();
        statistics.add(session.routing().unwrap());
    }
    let layer = &statistics.layers()[0];
    assert_eq!((layer.bin_width(), layer.bins()), (4, 75));
    assert_eq!(layer.load.total(), 400 * 2);
    // Relative loads of a bin's experts have the mean 1.
    let experts = layer.load.counts.len();
    for bin in 0..75 {
        let sum: f64 = (0..experts).map(|e| layer.load_in_bin(bin, e)).sum();
        assert!((sum - experts as f64).abs() < 1e-9);
    }
}

/// Every family with experts says how it routes, and says what its goldens' routers do.
#[test]
fn every_family_says_how_it_routes() {
    let entry = |title: &str| model::REGISTRY.iter().find(|a| a.title == title).unwrap();
    for a in model::REGISTRY {
        assert!(a.routing.is_some() != ["Llama", "Mistral"].contains(&a.title), "{}", a.title);
    }
    for dir in fs::read_dir(folder("")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()) {
        let d = model::build(&file::open(&dir).unwrap(), &model::Options::default()).unwrap();
        let (said, moe) = (entry(d.title).routing, d.decoder.moe());
        assert_eq!(said.is_some(), moe.is_some(), "{}", dir.display());
        let (Some(said), Some(moe)) = (said, moe) else { continue };
        let does = moe.router.variant();
        assert!(said.score.contains(does.split(',').next().unwrap()), "{}: {does}", dir.display());
        assert_eq!(!said.selection_bias.is_empty(), moe.selection_bias, "{}", dir.display());
        assert!(!said.groups.is_empty() || moe.router.groups.is_none(), "{}: {does}", dir.display());
        assert!(said.scale != "1" || moe.router.scale == 1.0, "{}: {does}", dir.display());
        assert!(!said.source.is_empty() && !said.words().is_empty());
    }
}
