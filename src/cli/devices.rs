//! `moeray devices`: what there is to run on, and which would be chosen.

use super::{args::DevicesArgs, facts, failure::Outcome, units};
use crate::{
    backend::{cpu, wgpu},
    memory,
};
use serde_json::json;
use std::io::{self, Write};

/// Runs the verb.
pub fn devices(args: &DevicesArgs) -> Outcome {
    let found = wgpu::DeviceInfo::all();
    let chosen = found.iter().find(|d| d.chosen_by_default);
    let simd_levels: Vec<&str> = cpu::SimdLevel::available().into_iter().map(cpu::SimdLevel::name).collect();
    let (processor, threads) = (facts::processor(), cpu::pool::default_threads());
    let mut out = io::stdout().lock();
    if args.json {
        let list: Vec<_> = found
            .iter()
            .map(|d| {
                json!({
                    "index": d.index, "name": d.name, "backend": d.backend, "type": d.device_type, "driver": d.driver,
                    "free_memory": d.free_memory,
                    "features": d.features, "chosen_by_default": d.chosen_by_default, "why": d.why,
                    "limits": {
                        "max_binding": d.limits.max_binding, "max_buffer": d.limits.max_buffer,
                        "max_workgroups": d.limits.max_workgroups, "max_invocations": d.limits.max_invocations,
                        "workgroup_bytes": d.limits.workgroup_bytes, "storage_bindings": d.limits.storage_bindings,
                    },
                })
            })
            .collect();
        let memory = json!({"total": memory::total(), "available": memory::available()});
        let cpu = json!({"name": processor, "threads": threads, "simd_levels": simd_levels, "memory": memory});
        let choice = chosen.map_or(json!({"backend": "cpu"}), |d| json!({"backend": "wgpu", "device": d.index}));
        writeln!(out, "{:#}", json!({"gpus": list, "cpu": cpu, "choice": choice}))?;
        return Ok(());
    }
    for d in &found {
        let mark = if d.chosen_by_default { '*' } else { ' ' };
        writeln!(out, "{mark} {}: {} ({}, {})", d.index, d.name, d.backend, d.device_type)?;
        writeln!(out, "     driver    {}", d.driver)?;
        let shared = if d.device_type == "discrete GPU" { "" } else { ", shared with the processor" };
        match d.free_memory {
            Some(free) => writeln!(out, "     memory    {} free{shared}", units::bytes(free))?,
            None => writeln!(out, "     memory    the driver does not say{shared}")?,
        }
        let l = &d.limits;
        writeln!(
            out,
            "     limits    binding {}, buffer {}, {} storage buffers, workgroups of {} invocations and {}",
            units::bytes(l.max_binding),
            units::bytes(l.max_buffer),
            l.storage_bindings,
            l.max_invocations,
            units::bytes(u64::from(l.workgroup_bytes))
        )?;
        let features = if d.features.is_empty() { "none".into() } else { d.features.join(", ") };
        writeln!(out, "     features  {features}")?;
        writeln!(out, "     choice    {}", d.why)?;
    }
    if found.is_empty() {
        writeln!(out, "  no GPU that wgpu reaches (Vulkan, Metal or DX12)")?;
    }
    let mark = if chosen.is_none() { '*' } else { ' ' };
    writeln!(out, "{mark} cpu: {processor} ({threads} threads, {})", simd_levels.join(", "))?;
    if let (Some(total), Some(free)) = (memory::total(), memory::available()) {
        writeln!(out, "     memory    {} free of {}", units::bytes(free), units::bytes(total))?;
    }
    let choice = chosen.map_or("cpu".to_string(), |d| format!("wgpu on {}", d.name));
    writeln!(out, "\nwithout --backend: {choice}")?;
    Ok(())
}
