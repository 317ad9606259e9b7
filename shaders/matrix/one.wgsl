
// One matrix a dispatch.
@group(0) @binding(3) var<storage, read> w_data: array<vec4<u32>>;  // rows row0 .. row0 + rows of [N, K]

// What a workgroup works on.
struct Matrix {
    block: u32,   // which of the matrix's workgroups this is
    rows: u32,    // rows of the segment
    column: u32,  // output column of the matrix's first row
    which: u32,
}

fn matrix_at(x: u32) -> Matrix {
    return Matrix(x, p.rows, 0u, 0u);
}

