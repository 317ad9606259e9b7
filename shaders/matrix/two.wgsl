
// Two matrices a dispatch, on the same x and of any two formats: the first `p.blocks` workgroups take rows of the first, the
// others of the second, whose results start at column `p.column_1`.
@group(0) @binding(3) var<storage, read> w_data: array<vec4<u32>>;       // [rows, K]
@group(0) @binding(12) var<storage, read> second_data: array<vec4<u32>>;  // [rows_1, K]

// What a workgroup works on.
struct Matrix {
    block: u32,   // which of the matrix's workgroups this is
    rows: u32,    // rows of the matrix
    column: u32,  // output column of the matrix's first row
    which: u32,   // 0 or 1
}

fn matrix_at(x: u32) -> Matrix {
    if (x < p.blocks) {
        return Matrix(x, p.rows, 0u, 0u);
    }
    return Matrix(x - p.blocks, p.rows_1, p.column_1, 1u);
}

