//! What AMD's compiler in Mesa (ACO) makes of the kernels of real models: no card is needed, for the driver compiles for a device
//! that is not there (`RADV_FORCE_FAMILY`). Nothing may spill, and registers, code and hot loops are held to `tests/data/isa.tsv`.
//!
//! The driver is Debian's `mesa-vulkan-drivers`. Its compiler changes with its version: where that is another than the table's, what
//! must never happen is checked and the figures are printed only. `MOERAY_BLESS=1` writes the table anew.

use crate::{plan_sizes::unmade, support::skip};
use ash::{khr::pipeline_executable_properties as executables, vk};
use moeray::{
    file::{Tensor, synth::Shape},
    graph,
    kernels::{self, Access, Tiles, Variant, tiles::DeviceFeatures},
    plan::{self, Caps, Options},
    quant::{DType, KvType, mix::Mix},
};
use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    fmt::Write as _,
    path::Path,
    process::Command,
};

/// RDNA 2: the youngest whose compiler is in the Mesa of Debian 12.
const FAMILY: &str = "navi21";

/// Presets, and what their matrices are quantised in.
const MODELS: [(&str, Mix); 3] =
    [("qwen3-30b-a3b", Mix::Q4_K_M), ("gpt-oss-20b", Mix::MXFP4_MOE), ("mixtral-8x7b", Mix::Q4_0)];

/// What the compiler says of a pipeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Figures {
    /// Vector registers of an invocation.
    registers: u64,
    /// Registers, of both kinds, that went to memory; and bytes of that memory.
    spilled: u64,
    scratch: u64,
    code_bytes: u64,
    /// Instructions of the longest loop without a loop in it.
    hot_loop: u64,
    /// Loads from memory in that loop before the first wait for one.
    in_flight: u64,
}

/// The variants of a preset on a card of AMD's.
fn variants(name: &str, mix: Mix) -> BTreeMap<String, Variant> {
    let shape = Shape::preset(name).unwrap().with_layers(2);
    let d = unmade(&shape, |name, dims| crate::proven::format(&shape, mix, name, dims));
    let features = DeviceFeatures { f16: true, subgroups: true, subgroup_size: Some(64), ..DeviceFeatures::default() };
    let caps = Caps {
        max_binding: (1 << 31) - 4,
        max_buffer: (1 << 31) - 4,
        max_invocations: 1024,
        workgroup_bytes: 48 << 10,
        tiles: Tiles::Int8,
        features,
        ..Caps::webgpu_defaults()
    };
    let g = graph::fuse(&d.program.graph);
    let dtypes: Vec<DType> = d.program.weights.iter().map(Tensor::dtype).collect();
    let weights = plan::weights(&g, &dtypes, &caps).unwrap();
    let p = plan::plan(&g, &weights, &caps, &Options::new(8192, 512, KvType::F16)).unwrap();
    let steps = p.schedules().into_iter().filter_map(|s| s.1).flat_map(|s| &s.steps);
    let picks = p.sampling.iter().flat_map(|s| &s.steps[0]);
    steps.chain(picks).map(|s| (s.variant.label(), s.variant.clone())).collect()
}

/// SPIR-V as wgpu has it made, without checks.
fn spirv(text: &str) -> Vec<u32> {
    use naga::{back::spv, proc::BoundsCheckPolicies, valid};
    let module = naga::front::wgsl::parse_str(text).unwrap();
    let info = valid::Validator::new(valid::ValidationFlags::all(), valid::Capabilities::all());
    let info = { info }.validate(&module).unwrap();
    let options = spv::Options {
        lang_version: (1, 4),
        flags: spv::WriterFlags::empty(),
        bounds_check_policies: BoundsCheckPolicies::default(),
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        ..spv::Options::default()
    };
    let entry = spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: "main".into() };
    spv::write_vec(&module, &info, &options, Some(&entry)).unwrap()
}

/// Loops in the text of ACO's assembly: the ranges of blocks that a branch goes back over. Gives instructions and loads in flight
/// of the longest that holds no other.
fn hot_loop(assembly: &str) -> (u64, u64) {
    let mut blocks: Vec<(u32, Vec<&str>)> = vec![];
    for line in assembly.lines() {
        let head = line.strip_prefix("BB").and_then(|l| l.split(':').next()).and_then(|n| n.trim().parse().ok());
        match (head, blocks.last_mut()) {
            (Some(n), _) => blocks.push((n, vec![])),
            (None, Some(block)) if line.starts_with(char::is_whitespace) && !line.trim().is_empty() => {
                block.1.push(line.trim());
            }
            _ => {}
        }
    }
    let at = |n: u32| blocks.iter().position(|b| b.0 == n);
    let target = |line: &str| {
        let to = line.starts_with("s_cbranch") || line.starts_with("s_branch");
        line.split("BB").nth(1).filter(|_| to).and_then(|n| n.split_whitespace().next()?.parse().ok()).and_then(at)
    };
    let mut loops = vec![];
    for (i, block) in blocks.iter().enumerate() {
        loops.extend(block.1.iter().filter_map(|l| target(l)).filter(|to| *to <= i).map(|to| (to, i)));
    }
    let holds = |a: &(usize, usize)| loops.iter().any(|b| b != a && b.0 >= a.0 && b.1 <= a.1);
    let inner = loops.iter().filter(|l| !holds(l));
    let body = |l: &(usize, usize)| blocks[l.0..=l.1].iter().flat_map(|b| b.1.iter().copied()).collect::<Vec<_>>();
    let best = inner.map(body).max_by_key(Vec::len).unwrap_or_default();
    let is_load = |l: &str| ["buffer_load", "global_load"].iter().any(|p| l.starts_with(p));
    let mut flights =
        best.iter().skip_while(|l| !is_load(l)).take_while(|l| !(l.contains("vmcnt"))).filter(|l| is_load(l));
    (best.len() as u64, flights.by_ref().count() as u64)
}

/// A device of RADV that is not there.
struct Null {
    instance: ash::Instance,
    device: ash::Device,
    executables: executables::Device,
    driver: String,
    // Last: it holds the library.
    _entry: ash::Entry,
}

impl Null {
    fn open() -> Result<Null, String> {
        // SAFETY: the loader and its driver are the system's; nothing is used behind its end.
        unsafe {
            let entry = ash::Entry::load().map_err(|e| e.to_string())?;
            let app = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_2);
            let info = vk::InstanceCreateInfo::default().application_info(&app);
            let instance = entry.create_instance(&info, None).map_err(|e| e.to_string())?;
            let found = instance.enumerate_physical_devices().map_err(|e| e.to_string())?;
            let physical = *found.first().ok_or("no device")?;
            let mut driver = vk::PhysicalDeviceDriverProperties::default();
            let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut driver);
            instance.get_physical_device_properties2(physical, &mut properties);
            let name = properties.properties.device_name_as_c_str().unwrap_or_default().to_string_lossy().into_owned();
            let said = driver.driver_info_as_c_str().unwrap_or_default().to_string_lossy().into_owned();
            let mut wanted =
                vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
            let names = [executables::NAME.as_ptr()];
            let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(0).queue_priorities(&[1.0])];
            let info = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queues)
                .enabled_extension_names(&names)
                .push_next(&mut wanted);
            let device = instance.create_device(physical, &info, None).map_err(|e| format!("{name}: {e}"))?;
            let executables = executables::Device::new(&instance, &device);
            Ok(Null { instance, device, executables, driver: format!("{name}, {said}"), _entry: entry })
        }
    }

    fn compile(&self, variant: &Variant) -> Result<Figures, vk::Result> {
        let linked = kernels::link(variant).unwrap();
        let reflection = kernels::reflect(&linked).unwrap();
        let code = spirv(&linked.text);
        let binding = |b: &kernels::Binding| {
            let kind = match b.access {
                Access::Uniform => vk::DescriptorType::UNIFORM_BUFFER,
                Access::Read | Access::ReadWrite => vk::DescriptorType::STORAGE_BUFFER,
            };
            vk::DescriptorSetLayoutBinding::default()
                .binding(b.index)
                .descriptor_type(kind)
                .descriptor_count(1)
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
        };
        let bindings: Vec<_> = reflection.bindings.iter().map(binding).collect();
        let (d, main) = (&self.device, CString::new("main").unwrap());
        // SAFETY: everything is made of this device, lives until it is used, and is destroyed once.
        unsafe {
            let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let sets = [d.create_descriptor_set_layout(&info, None)?];
            let layout = d.create_pipeline_layout(&vk::PipelineLayoutCreateInfo::default().set_layouts(&sets), None)?;
            let module = d.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(&code), None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(&main);
            let flags = vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
            let info = [vk::ComputePipelineCreateInfo::default().flags(flags).layout(layout).stage(stage)];
            let made = d.create_compute_pipelines(vk::PipelineCache::null(), &info, None).map_err(|e| e.1)?[0];
            let figures = self.figures(made);
            d.destroy_pipeline(made, None);
            d.destroy_shader_module(module, None);
            d.destroy_pipeline_layout(layout, None);
            d.destroy_descriptor_set_layout(sets[0], None);
            figures
        }
    }

    fn figures(&self, pipeline: vk::Pipeline) -> Result<Figures, vk::Result> {
        let info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
        // SAFETY: the pipeline is alive and was made with these flags.
        let (statistics, texts) = unsafe {
            let statistics = self.executables.get_pipeline_executable_statistics(&info)?;
            let get = self.executables.fp().get_pipeline_executable_internal_representations_khr;
            let (device, mut count) = (self.device.handle(), 0);
            get(device, &info, &mut count, std::ptr::null_mut()).result()?;
            let mut list = vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
            get(device, &info, &mut count, list.as_mut_ptr()).result()?;
            let mut room: Vec<Vec<u8>> = list.iter().map(|r| vec![0; r.data_size]).collect();
            list.iter_mut().zip(&mut room).for_each(|(r, bytes)| r.p_data = bytes.as_mut_ptr().cast());
            get(device, &info, &mut count, list.as_mut_ptr()).result()?;
            let name = |r: &vk::PipelineExecutableInternalRepresentationKHR<'_>| {
                CStr::from_ptr(r.name.as_ptr()).to_string_lossy().into_owned()
            };
            (statistics, list.iter().map(name).zip(room).collect::<Vec<_>>())
        };
        let value = |name: &str| {
            let found = statistics.iter().find(|s| s.name_as_c_str().is_ok_and(|n| n.to_bytes() == name.as_bytes()));
            // SAFETY: RADV's statistics are all of this format.
            found.map_or(0, |s| unsafe { s.value.u64 })
        };
        let assembly = texts.iter().find(|t| t.0.contains("Assembly")).map_or(&[][..], |t| &t.1);
        if let Some(dir) = std::env::var_os("MOERAY_ISA_DUMP") {
            let at = Path::new(&dir).join(format!("{:?}.txt", pipeline));
            std::fs::write(at, assembly).unwrap();
        }
        let (hot_loop, in_flight) = hot_loop(&String::from_utf8_lossy(assembly));
        Ok(Figures {
            registers: value("VGPRs"),
            spilled: value("Spilled SGPRs") + value("Spilled VGPRs"),
            scratch: value("Scratch size"),
            code_bytes: value("Code size"),
            hot_loop,
            in_flight,
        })
    }
}

impl Drop for Null {
    fn drop(&mut self) {
        // SAFETY: all that was made of them is gone.
        unsafe {
            self.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}

/// Runs in a process of its own, whose environment says which driver there is: writes a table to the file that it names.
#[test]
#[ignore = "run by `kernels_on_amds_compiler`"]
fn child() {
    let Some(to) = std::env::var_os("MOERAY_ISA_TABLE") else { return };
    let null = Null::open().unwrap();
    let mut all = BTreeMap::new();
    for (name, mix) in MODELS {
        all.extend(variants(name, mix));
    }
    let mut text = format!("# {}\n{HEAD}\n", null.driver);
    for (label, variant) in &all {
        let f = null.compile(variant).unwrap_or_else(|e| panic!("{label}: {e}"));
        let cells = [f.registers, f.spilled, f.scratch, f.code_bytes, f.hot_loop, f.in_flight];
        writeln!(text, "{label}\t{}", cells.map(|c| c.to_string()).join("\t")).unwrap();
    }
    std::fs::write(to, text).unwrap();
}

const HEAD: &str = "# kernel\tregisters\tspilled\tscratch\tcode bytes\tinstructions of the hot loop\tloads in flight";

/// The driver and each kernel's figures.
fn parse(text: &str) -> (String, BTreeMap<String, Figures>) {
    let row = |line: &str| {
        let mut cells = line.split('\t');
        let label = cells.next()?.to_string();
        let n: Vec<u64> = cells.map(|c| c.parse().unwrap()).collect();
        let [registers, spilled, scratch, code_bytes, hot_loop, in_flight] = n[..] else { panic!("{line}") };
        Some((label, Figures { registers, spilled, scratch, code_bytes, hot_loop, in_flight }))
    };
    let driver = text.lines().next().unwrap_or_default().trim_start_matches("# ").to_string();
    (driver, text.lines().filter(|l| !l.starts_with('#')).filter_map(row).collect())
}

/// Every pipeline of three models compiles, spills nothing and stays as good as it was.
#[test]
fn kernels_on_amds_compiler() {
    let manifests = ["radeon_icd.x86_64.json", "radeon_icd.json", "radeon_icd.aarch64.json"];
    let folder = Path::new("/usr/share/vulkan/icd.d");
    let Some(driver) = manifests.map(|m| folder.join(m)).into_iter().find(|m| m.exists()) else {
        return skip("no Vulkan driver for AMD (Debian: mesa-vulkan-drivers)");
    };
    let dir = tempfile::tempdir().unwrap();
    let table = dir.path().join("isa.tsv");
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["isa::child", "--exact", "--ignored", "--nocapture"])
        .env("VK_ICD_FILENAMES", &driver)
        .env("VK_DRIVER_FILES", &driver)
        .env("RADV_FORCE_FAMILY", FAMILY)
        .env("MESA_SHADER_CACHE_DISABLE", "true")
        .env("MOERAY_ISA_TABLE", &table)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned() + &String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}");
    let text = std::fs::read_to_string(&table).unwrap();
    let (driver, now) = parse(&text);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/isa.tsv");
    let (before_driver, before) = parse(&std::fs::read_to_string(&path).unwrap_or_default());
    println!("{} pipelines on {driver}", now.len());
    let mut wrong = vec![];
    for (label, f) in &now {
        if f.spilled + f.scratch > 0 {
            wrong.push(format!("{label} spills: {f:?}"));
        }
        if before.get(label) != Some(f) {
            println!("{label}: {f:?}, was {:?}", before.get(label));
        }
    }
    if std::env::var_os("MOERAY_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    } else if driver == before_driver {
        let changed = now.iter().filter(|(label, f)| before.get(*label) != Some(f)).map(|(l, _)| l.clone());
        wrong.extend(changed.map(|l| format!("{l} changed: see above; MOERAY_BLESS=1 writes the table")));
        let gone = before.keys().filter(|l| !now.contains_key(*l));
        wrong.extend(gone.map(|l| format!("{l} is not used any more; MOERAY_BLESS=1 writes the table")));
    } else {
        println!("the table is of {before_driver}: its figures are not held");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
