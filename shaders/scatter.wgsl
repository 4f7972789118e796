// Row scatter-add without atomics, in a fixed order: positions are sorted by id (stable: ranks in blocks of 256, then merges by
// binary search), so every row's terms are neighbours in the order of their positions.
const SEGMENT: u32 = 64u;
{% if stage == "sort" %}
struct Params { n: u32, first: u32, limit: u32 }
@group(0) @binding(0) var<storage, read> ids: array<i32>;
@group(0) @binding(1) var<storage, read_write> sorted: array<vec2<u32>>;
@group(0) @binding(2) var<uniform> p: Params;

// Ids are checked on the host; a wrong one must still not leave the table.
fn id_at(i: u32) -> u32 { return u32(clamp(ids[p.first + i], 0, i32(p.limit) - 1)); }
{% elif stage == "merge" %}
struct Params { n: u32, run: u32 }
@group(0) @binding(0) var<storage, read> pairs: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> sorted: array<vec2<u32>>;
@group(0) @binding(2) var<uniform> p: Params;
{% elif stage == "starts" %}
struct Params { n: u32, rows: u32 }
@group(0) @binding(0) var<storage, read> pairs: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> starts: array<u32>;
@group(0) @binding(2) var<uniform> p: Params;
{% elif stage == "segments" %}
struct Params { segments: u32, width: u32 }
@group(0) @binding(0) var<storage, read> pairs: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> g: array<{{ T }}>;
@group(0) @binding(2) var<storage, read_write> sums: array<{{ T }}>;
@group(0) @binding(3) var<uniform> p: Params;
{% else %}
struct Params { row0: u32, rows: u32, width: u32, accumulate: u32 }
@group(0) @binding(0) var<storage, read> pairs: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> starts: array<u32>;
@group(0) @binding(2) var<storage, read> g: array<{{ T }}>;
@group(0) @binding(3) var<storage, read> sums: array<{{ T }}>;
@group(0) @binding(4) var<storage, read_write> out: array<{{ T }}>;
@group(0) @binding(5) var<uniform> p: Params;
{% endif %}

{% if stage in ["merge", "starts"] %}
// First index in `start .. stop` whose id is not below `key`.
fn lower_bound(key: u32, start: u32, stop: u32) -> u32 {
    var low = start;
    var high = stop;
    while (low < high) {
        let middle = (low + high) / 2u;
        if (pairs[middle].x < key) { low = middle + 1u; } else { high = middle; }
    }
    return low;
}
{% endif %}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    {% if stage == "sort" %}
    if (i >= p.n) { return; }
    let id = id_at(i);
    let start = i & ~255u;
    var rank = start;
    for (var j = start; j < min(start + 256u, p.n); j += 1u) {
        let other = id_at(j);
        rank += select(0u, 1u, other < id || (other == id && j < i));
    }
    sorted[rank] = vec2<u32>(id, i);
    {% elif stage == "merge" %}
    if (i >= p.n) { return; }
    let pair = pairs[i];
    let run = i / p.run;
    let sibling = min((run ^ 1u) * p.run, p.n);
    let end = min(sibling + p.run, p.n);
    // Ties: the left run comes first.
    let key = pair.x + (run & 1u);
    let before = lower_bound(key, sibling, end) - sibling;
    sorted[(run & ~1u) * p.run + (i - run * p.run) + before] = pair;
    {% elif stage == "starts" %}
    if (i > p.rows) { return; }
    starts[i] = lower_bound(i, 0u, p.n);
    {% elif stage == "segments" %}
    // Sums of whole segments of one row: long rows are then short.
    if (i >= p.segments * p.width) { return; }
    let first = i / p.width * SEGMENT;
    let column = i % p.width;
    if (pairs[first].x != pairs[first + SEGMENT - 1u].x) { return; }
    var total = {{ T }}(0.0);
    for (var k = 0u; k < SEGMENT; k += 1u) {
        total += g[pairs[first + k].y * p.width + column];
    }
    sums[i] = total;
    {% else %}
    if (i >= p.rows * p.width) { return; }
    let row = p.row0 + i / p.width;
    let column = i % p.width;
    var total = {{ T }}(0.0);
    var k = starts[row];
    let end = starts[row + 1u];
    while (k < end) {
        if (k % SEGMENT == 0u && k + SEGMENT <= end) {
            total += sums[k / SEGMENT * p.width + column];
            k += SEGMENT;
        } else {
            total += g[pairs[k].y * p.width + column];
            k += 1u;
        }
    }
    if (p.accumulate != 0u) { total += out[i]; }
    out[i] = total;
    {% endif %}
}
