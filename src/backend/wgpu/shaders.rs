//! Compiled shaders as bytes: what a program keeps between its runs, so that the driver need not compile again.
//!
//! The library neither knows nor chooses where the bytes lie. Drivers without pipeline caches (wgpu has them on Vulkan) give
//! none.

use super::device::lock;
use std::sync::{Arc, Mutex};

/// The first bytes of compiled shaders, and their version.
const MAGIC: &[u8; 8] = b"moerayS1";

/// Devices (and drivers) whose shaders are kept.
const MOST_DEVICES: usize = 8;

/// Compiled shaders: those of earlier runs, given with [`ShaderCache::from_bytes`], and those of the device that was opened
/// with it, for [`ShaderCache::bytes`]. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct ShaderCache(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// By wgpu's name of device and driver, the latest last.
    kept: Vec<(String, Vec<u8>)>,
    made: Option<(String, wgpu::PipelineCache)>,
}

/// Fowler, Noll and Vo's hash (FNV-1a, 64 bits): notices damage, no malice.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// A length and as many bytes.
fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (n, rest) = bytes.split_first_chunk::<8>()?;
    let (part, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*n)).ok()?)?;
    *bytes = rest;
    Some(part)
}

fn parse(bytes: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let (sum, mut body) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
    if u64::from_le_bytes(*sum) != hash(body) {
        return None;
    }
    let mut all = vec![];
    while !body.is_empty() {
        let key = std::str::from_utf8(take(&mut body)?).ok()?;
        all.push((key.to_string(), take(&mut body)?.to_vec()));
    }
    Some(all)
}

fn serialise(all: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![];
    for part in all.iter().flat_map(|(key, data)| [key.as_bytes(), data]) {
        body.extend_from_slice(&(part.len() as u64).to_le_bytes());
        body.extend_from_slice(part);
    }
    [&MAGIC[..], &hash(&body).to_le_bytes(), &body].concat()
}

impl ShaderCache {
    /// A cache with the bytes of an earlier run. Bytes that are damaged are ignored, and those of other devices and drivers
    /// are kept for these.
    ///
    /// # Safety
    /// The bytes must come from [`ShaderCache::bytes`]: drivers run what is in them.
    pub unsafe fn from_bytes(bytes: &[u8]) -> Self {
        let kept = parse(bytes);
        if kept.is_none() && !bytes.is_empty() {
            tracing::info!("compiled shaders of an earlier run are damaged: compiling again");
        }
        ShaderCache(Arc::new(Mutex::new(Inner { kept: kept.unwrap_or_default(), made: None })))
    }

    /// The compiled shaders so far, for a later run; `None` where no device was opened that gives them.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let inner = lock(&self.0);
        let (key, cache) = inner.made.as_ref()?;
        let mut all: Vec<_> = inner.kept.iter().filter(|(k, _)| k != key).cloned().collect();
        all.push((key.clone(), cache.get_data()?));
        all.drain(..all.len().saturating_sub(MOST_DEVICES));
        Some(serialise(&all))
    }

    /// The driver's side of it.
    pub(super) fn open(&self, device: &wgpu::Device, info: &wgpu::AdapterInfo) -> Option<wgpu::PipelineCache> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let key = wgpu::util::pipeline_cache_key(info)?;
        let mut inner = lock(&self.0);
        let data = inner.kept.iter().find(|(k, _)| *k == key).map(|(_, data)| data.as_slice());
        let descriptor = wgpu::PipelineCacheDescriptor { label: Some("shaders"), data, fallback: true };
        // SAFETY: the caller of `from_bytes` promised that the bytes come from `bytes`, that is from `get_data`; wgpu refuses
        // those of other devices and drivers.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        inner.made = Some((key, cache.clone()));
        Some(cache)
    }
}

#[cfg(test)]
mod tests {
    use super::{parse, serialise};

    #[test]
    fn bytes_come_back_and_damage_is_noticed() {
        let all = vec![("a device".to_string(), b"shaders".to_vec()), ("another".into(), vec![])];
        let mut bytes = serialise(&all);
        assert_eq!(parse(&bytes), Some(all));
        for i in 0..bytes.len() {
            bytes[i] ^= 4;
            assert_eq!(parse(&bytes), None, "byte {i}");
            bytes[i] ^= 4;
            assert_eq!(parse(&bytes[..i]), None, "{i} bytes");
        }
        assert_eq!(parse(&serialise(&[])), Some(vec![]));
    }
}
