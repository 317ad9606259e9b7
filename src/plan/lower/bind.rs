//! Bindings of the plan's buffers: their bytes, and operands by what they are.

use super::{
    super::{
        Access, Binding, Buffer, BufferView, CachePart, ExpertCache, PARAMS_STRIDE, ZERO_BYTES, nodes::VectorPart,
        sizes::span_bytes,
    },
    Lower,
};
use crate::{
    error::{Error, Result},
    ir::{CacheId, Rope, WeightId},
    kernels::params,
};

impl Lower<'_> {
    fn buffer_bytes(&self, buffer: Buffer) -> Result<u64> {
        let found = match buffer {
            Buffer::Frame => Some(size_of::<params::Frame>() as u64),
            Buffer::Params => Some(PARAMS_STRIDE),
            Buffer::Tokens => Some(4 * self.tokens as u64),
            Buffer::Rows => Some(8 * self.tokens as u64),
            Buffer::Spans => Some(span_bytes(self.target.options.sequences.unwrap_or(1), self.tokens)),
            Buffer::Zero => Some(ZERO_BYTES),
            Buffer::Vectors => Some(self.w.vector_bytes),
            Buffer::Matrix { matrix, segment } => {
                let m = self.w.matrices.get(matrix as usize);
                m.and_then(|m| m.segments.get(segment as usize)).map(|s| s.bytes)
            }
            Buffer::ExpertSlots { cache, part } => {
                let c = self.resident.expert_caches.get(cache as usize);
                c.and_then(|c| c.matrices.get(part as usize)).map(|m| m.segment.bytes)
            }
            Buffer::ExpertCache(c) => self.resident.expert_caches.get(c as usize).map(|c| c.bytes),
            Buffer::Rope(i) => self.resident.ropes.get(i as usize).map(|t| t.bytes),
            Buffer::Input(i) => self.resident.inputs.get(i as usize).map(|p| (4 * self.tokens * p.stride) as u64),
            Buffer::Host(_) => Some(4 * (self.tokens * self.resident.host_stride) as u64),
            Buffer::Keys { cache, part } => self.cache_part(cache, part).map(|p| p.keys),
            Buffer::Values { cache, part } => self.cache_part(cache, part).map(|p| p.values),
            Buffer::State(s) => self.resident.states.get(s as usize).copied(),
            Buffer::Scratch(c) => self.transients.get(c as usize).map(|c| c.bytes),
            Buffer::Sampling(part) => return Err(Error::Graph(format!("{part:?} is bound by the model"))),
        };
        found.ok_or_else(|| Error::Graph(format!("{buffer:?} does not exist")))
    }

    pub fn bind(&self, name: &'static str, buffer: Buffer, access: Access) -> Result<Binding> {
        let transient = match buffer {
            Buffer::Scratch(c) => Some(c),
            _ => None,
        };
        Ok(Binding { name, buffer, offset: 0, size: self.buffer_bytes(buffer)?, access, transient })
    }

    pub fn read(&self, name: &'static str, buffer: Buffer) -> Result<Binding> {
        self.bind(name, buffer, Access::Read)
    }

    pub fn write(&self, name: &'static str, buffer: Buffer) -> Result<Binding> {
        self.bind(name, buffer, Access::ReadWrite)
    }

    /// An operand that may be missing.
    pub fn maybe(&self, name: &'static str, place: Option<BufferView>) -> Result<Binding> {
        self.read(name, place.map_or(Buffer::Zero, |p| p.buffer))
    }

    /// A vector, which may be missing.
    pub fn vector(&self, name: &'static str, parts: Option<&[VectorPart]>) -> Result<Binding> {
        let Some(parts) = parts else { return self.read(name, Buffer::Zero) };
        let v = self.w.vector(parts)?;
        let size = 4 * v.len as u64;
        Ok(Binding { offset: v.offset, size, ..self.read(name, Buffer::Vectors)? })
    }

    pub fn weight_vector(&self, name: &'static str, w: Option<WeightId>) -> Result<Binding> {
        match w {
            Some(w) => self.vector(name, Some(&[VectorPart::Weight(w)])),
            None => self.vector(name, None),
        }
    }

    /// Biases of experts, which may be missing: of all, or those in the slots of a cache.
    pub fn expert_bias(&self, parts: Option<&[VectorPart]>, cache: Option<u32>) -> Result<Binding> {
        match (parts, cache) {
            (Some(parts), Some(c)) => {
                let (offset, size) = self.expert_cache(c)?.vector(parts)?;
                Ok(Binding { offset, size, ..self.read("bias", Buffer::ExpertCache(c))? })
            }
            (parts, _) => self.vector("bias", parts),
        }
    }

    /// A cache of experts.
    pub fn expert_cache(&self, number: u32) -> Result<&ExpertCache> {
        let found = self.resident.expert_caches.get(number as usize);
        found.ok_or_else(|| Error::Graph(format!("there is no cache {number} of experts")))
    }

    /// Where the rows of the step belong: for kernels with `BATCH`.
    pub fn row_places(&self) -> Result<Binding> {
        self.read("rows", if self.target.options.sequences.is_some() { Buffer::Rows } else { Buffer::Zero })
    }

    /// `BATCH` of those kernels.
    pub fn batch(&self) -> u32 {
        u32::from(self.target.options.sequences.is_some())
    }

    pub fn rope(&self, r: &Rope) -> Result<Binding> {
        self.read("rope_table", Buffer::Rope(self.resident.rope(r)?))
    }

    fn cache_part(&self, cache: u32, part: u32) -> Option<&CachePart> {
        self.resident.caches.get(cache as usize)?.parts.get(part as usize)
    }

    /// The parts of a cache, with their numbers.
    pub fn cache_parts(&self, c: CacheId) -> Vec<(u32, CachePart)> {
        let parts = self.resident.caches.get(c.0 as usize).map_or(&[][..], |c| &c.parts);
        (0..).zip(parts.iter().copied()).collect()
    }

    pub fn cache(&self, c: CacheId, part: u32, write: bool) -> Result<[Binding; 2]> {
        let access = if write { Access::ReadWrite } else { Access::Read };
        // A store writes no values where they are part of keys, and has a buffer of their own to write none to.
        let in_keys = !write && self.g.caches[c.0 as usize].v_in_k;
        let keys = Buffer::Keys { cache: c.0, part };
        let values = if in_keys { keys } else { Buffer::Values { cache: c.0, part } };
        Ok([self.bind("k_cache", keys, access)?, self.bind("v_cache", values, access)?])
    }
}
