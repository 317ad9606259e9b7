@group(0) @binding(8) var<storage, read> third_from: array<vec4<u32>>;       // and of a third one
@group(0) @binding(9) var<storage, read_write> third_to: array<vec4<u32>>;
