@group(0) @binding(4) var<storage, read> first_from: array<vec4<u32>>;       // experts of a matrix, as they are loaded
@group(0) @binding(5) var<storage, read_write> first_to: array<vec4<u32>>;   // its slots
