// out[n] = table[ids[n]] for the rows `row0 .. row0 + rows` of the table that are bound; other ids are left to other dispatches.
struct Params { n: u32, width: u32, first: u32, row0: u32, rows: u32, limit: u32 }
@group(0) @binding(0) var<storage, read> table: array<{{ T }}>;
@group(0) @binding(1) var<storage, read> ids: array<i32>;
@group(0) @binding(2) var<storage, read_write> out: array<{{ T }}>;
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (i >= p.n * p.width) { return; }
    let position = i / p.width;
    // Ids are checked on the host; a wrong one must still not leave the table.
    let id = u32(clamp(ids[p.first + position], 0, i32(p.limit) - 1));
    if (id < p.row0 || id >= p.row0 + p.rows) { return; }
    out[i] = table[(id - p.row0) * p.width + (i - position * p.width)];
}
