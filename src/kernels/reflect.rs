//! What a shader's text says of itself: bindings, access, workgroup size.

use super::Linked;
use crate::error::{Error, Result};

/// How a shader uses a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<uniform>`.
    Uniform,
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    ReadWrite,
}

/// A binding of group 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The variable's name.
    pub name: String,
    /// `@binding(index)`.
    pub index: u32,
    /// Uniform, read, or read and write.
    pub access: Access,
}

/// What [`reflect`] finds.
#[derive(Clone, Debug)]
pub struct Reflection {
    /// Bindings by ascending index.
    pub bindings: Vec<Binding>,
    /// `@workgroup_size`.
    pub workgroup: [u32; 3],
    /// Bytes of `var<workgroup>`.
    pub workgroup_bytes: u32,
}

impl Reflection {
    /// The binding called `name`.
    pub fn binding(&self, name: &str) -> Option<&Binding> {
        self.bindings.iter().find(|b| b.name == name)
    }
}

/// Reads bindings and workgroup size of a linked kernel (entry point `main`).
///
/// # Errors
/// [`Error::Unsupported`] where the text is no WGSL: a fault of this library, with the fragment's file and line and the
/// compiler's message.
pub fn reflect(linked: &Linked) -> Result<Reflection> {
    let module = parse(linked)?;
    let mut bindings = Vec::new();
    let mut workgroup_bytes = 0;
    for (_, var) in module.global_variables.iter() {
        let access = match var.space {
            naga::AddressSpace::Uniform => Access::Uniform,
            naga::AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE) => Access::ReadWrite,
            naga::AddressSpace::Storage { .. } => Access::Read,
            naga::AddressSpace::WorkGroup => {
                workgroup_bytes += module.types[var.ty].inner.size(module.to_ctx());
                continue;
            }
            _ => continue,
        };
        if let Some(b) = &var.binding {
            bindings.push(Binding { name: var.name.clone().unwrap_or_default(), index: b.binding, access });
        }
    }
    bindings.sort_by_key(|b| b.index);
    let entry = module.entry_points.first().ok_or_else(|| Error::Unsupported("shader has no entry point".into()))?;
    Ok(Reflection { bindings, workgroup: entry.workgroup_size, workgroup_bytes })
}

fn parse(linked: &Linked) -> Result<naga::Module> {
    naga::front::wgsl::parse_str(&linked.text).map_err(|e| {
        let line = e.location(&linked.text).map(|l| l.line_number as usize);
        linked.complaint(line, e.emit_to_string(&linked.text).trim())
    })
}

/// Why a linked kernel is refused, with the fragment's file and line; `None` where naga finds nothing wrong. A device says
/// the same without the place: this is for its error.
pub fn diagnose(linked: &Linked) -> Option<Error> {
    use naga::valid::{Capabilities, ValidationFlags, Validator};
    let module = match parse(linked) {
        Ok(module) => module,
        Err(e) => return Some(e),
    };
    let e = Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module).err()?;
    let line = e.location(&linked.text).map(|l| l.line_number as usize);
    Some(linked.complaint(line, e.emit_to_string(&linked.text).trim()))
}
