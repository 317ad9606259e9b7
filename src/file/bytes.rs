//! Shared, immutable bytes: a range of a memory map, of a static array, or of memory that this process allocated.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

enum Owner {
    Map(memmap2::Mmap),
    Anonymous(memmap2::MmapMut),
    Static(&'static [u8]),
    Owned(Vec<u8>),
    F32(Vec<f32>),
    Made(Made),
}

/// Bytes that are made when they are first read.
struct Made {
    len: usize,
    make: Box<dyn Fn() -> Vec<u8> + Send + Sync>,
    cell: OnceLock<Vec<u8>>,
}

impl Made {
    fn bytes(&self) -> &[u8] {
        self.cell.get_or_init(|| {
            let mut bytes = (self.make)();
            bytes.resize(self.len, 0);
            bytes
        })
    }
}

/// A cheap-to-clone slice of bytes that keeps its owner alive. Weights stay in the memory map until a backend reads them.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<Owner>,
    range: Range<usize>,
}

impl Bytes {
    fn whole(owner: Owner) -> Self {
        let mut b = Bytes { owner: Arc::new(owner), range: 0..0 };
        b.range = 0..b.all().len();
        b
    }

    /// The whole of a memory-mapped file.
    pub fn from_map(map: memmap2::Mmap) -> Self {
        Self::whole(Owner::Map(map))
    }

    /// An anonymous memory map, for sizes that the system may not have: mapping fails with an error, where an allocation would
    /// end the program.
    pub(super) fn from_anonymous(map: memmap2::MmapMut) -> Self {
        Self::whole(Owner::Anonymous(map))
    }

    /// Bytes compiled into the program.
    pub fn from_static(bytes: &'static [u8]) -> Self {
        Self::whole(Owner::Static(bytes))
    }

    /// Bytes made in memory.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        Self::whole(Owner::Owned(bytes))
    }

    /// f32 values in memory, aligned for reading as such.
    pub fn from_f32(values: Vec<f32>) -> Self {
        Self::whole(Owner::F32(values))
    }

    /// `len` bytes that are made when they are first read, and kept from then on until the last slice of them is dropped: for
    /// weights that lie in their file in a form that has to be computed first, and that may never be read, or one after the
    /// other. What `make` gives is cut or filled with zeros to `len`.
    pub fn from_fn(len: usize, make: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Self {
        let made = Made { len, make: Box::new(make), cell: OnceLock::new() };
        Bytes { owner: Arc::new(Owner::Made(made)), range: 0..len }
    }

    fn all(&self) -> &[u8] {
        match &*self.owner {
            Owner::Map(m) => m,
            Owner::Anonymous(m) => m,
            Owner::Static(s) => s,
            Owner::Owned(v) => v,
            Owner::F32(v) => bytemuck::cast_slice(v),
            Owner::Made(m) => m.bytes(),
        }
    }

    /// The number of bytes; asking for it makes nothing.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether the number of bytes is 0.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// A part of these bytes; `None` where it is out of range.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        if range.start > range.end || range.end > self.range.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Bytes { owner: self.owner.clone(), range: start..start + range.len() })
    }

    /// Advises the system that these bytes are not needed in memory for now. They stay readable: bytes of a memory map are read
    /// again from the file, or from the system's cache of it. Does nothing for other bytes, and on systems without such advice.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Owner::Map(map) = &*self.owner {
            // Whole pages only, so that neighbours stay. 64 KiB is a multiple of every usual page size.
            const PAGE: usize = 1 << 16;
            let (start, end) = (self.range.start.next_multiple_of(PAGE), self.range.end / PAGE * PAGE);
            if start < end {
                // SAFETY: the map is of a file and read-only, so dropped pages come back with the same bytes.
                let done =
                    unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
                if let Err(e) = done {
                    tracing::debug!("pages of a map are not released: {e}");
                }
            }
        }
    }

    /// Advises the system that these bytes will be read soon: it begins to read what of a memory map is not in memory. Does nothing for
    /// other bytes, and on systems without such advice.
    pub fn will_need(&self) {
        #[cfg(unix)]
        self.advise(memmap2::Advice::WillNeed);
    }

    /// Advises the system to read of these bytes what is asked for and nothing around it.
    pub fn read_at_random(&self) {
        #[cfg(unix)]
        self.advise(memmap2::Advice::Random);
    }

    #[cfg(unix)]
    fn advise(&self, advice: memmap2::Advice) {
        if let Owner::Map(map) = &*self.owner
            && let Err(e) = map.advise_range(advice, self.range.start, self.range.len())
        {
            tracing::debug!("advice on a map is not taken: {e}");
        }
    }

    /// Whether these bytes are there already, and not still to be made (see [`Bytes::from_fn`]).
    pub fn is_made(&self) -> bool {
        !matches!(&*self.owner, Owner::Made(m) if m.cell.get().is_none())
    }

    /// Whether these bytes lie in a memory map (and can be dropped from memory and read again).
    pub fn is_mapped(&self) -> bool {
        matches!(&*self.owner, Owner::Map(_))
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.all()[self.range.clone()]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.range.len())
    }
}
