// Transposes planes through workgroup memory, so that both sides are walked along their contiguous axis. Axis r is contiguous in the
// source, axis c in the destination; up to two outer axes count the planes.
struct Params {
    src_start: u32, dst_start: u32,
    columns: u32, column_stride: u32,
    rows: u32, row_stride: u32,
    tiles: u32, column_tiles: u32, row_tiles: u32,
    d0: u32, s0: u32, t0: u32, s1: u32, t1: u32,
}
@group(0) @binding(0) var<storage, read> src: array<u32>;
@group(0) @binding(1) var<storage, read_write> dst: array<u32>;
@group(0) @binding(2) var<uniform> p: Params;

// 32 x 32 words; rows of 33, so that a column touches every bank.
var<workgroup> tile: array<u32, 1056>;

@compute @workgroup_size(32, 8)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) nwg: vec3<u32>,
    @builtin(local_invocation_id) lid: vec3<u32>,
) {
    let index = wid.x + wid.y * nwg.x;
    if (index >= p.tiles) { return; }
    let column0 = (index % p.column_tiles) * 32u;
    let row0 = (index / p.column_tiles % p.row_tiles) * 32u;
    let plane = index / (p.column_tiles * p.row_tiles);
    let a = plane / p.d0;
    let b = plane % p.d0;
    let src_at = p.src_start + a * p.s1 + b * p.s0;
    let dst_at = p.dst_start + a * p.t1 + b * p.t0;
    // Source: consecutive in r.
    for (var k = lid.y; k < 32u; k += 8u) {
        let r = row0 + lid.x;
        let c = column0 + k;
        if (r < p.rows && c < p.columns) { tile[k * 33u + lid.x] = src[src_at + r + c * p.column_stride]; }
    }
    workgroupBarrier();
    // Destination: consecutive in c.
    for (var k = lid.y; k < 32u; k += 8u) {
        let r = row0 + k;
        let c = column0 + lid.x;
        if (r < p.rows && c < p.columns) { dst[dst_at + c + r * p.row_stride] = tile[lid.x * 33u + k]; }
    }
}
