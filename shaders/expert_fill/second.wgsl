@group(0) @binding(6) var<storage, read> second_from: array<vec4<u32>>;      // of another matrix
@group(0) @binding(7) var<storage, read_write> second_to: array<vec4<u32>>;
