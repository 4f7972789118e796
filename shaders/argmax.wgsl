// The index of the largest of the first `limit` numbers of each row, the smallest such index. A unit is a part of a row of x
// (stage parts: its largest number and index go to `found`), all of a row (whole), or what was found in a row's parts (merge).
{% set pairs = "vec2<u32>" %}
struct Params { n: u32, width: u32, part: u32, parts: u32, limit: u32, ahead: u32, y_ahead: u32 }
{% if stage == "merge" %}
@group(0) @binding(0) var<storage, read> found: array<{{ pairs }}>;
{% else %}
@group(0) @binding(0) var<storage, read> x: array<f32>;
{% endif %}
{% if stage == "parts" %}
@group(0) @binding(1) var<storage, read_write> y: array<{{ pairs }}>;
{% else %}
@group(0) @binding(1) var<storage, read_write> y: array<i32>;
{% endif %}
@group(0) @binding(2) var<uniform> p: Params;

struct Best { value: f32, index: u32 }
// Larger than any index: nothing was found yet, or a NaN, which nothing is better than.
const NONE = 0xffffffffu;
const NAN_FOUND = 0xfffffffeu;

fn better(a: Best, b: Best) -> Best {
    let larger = b.value > a.value || (b.value == a.value && b.index < a.index);
    let b_wins = a.index != NAN_FOUND && b.index != NONE && (a.index == NONE || b.index == NAN_FOUND || larger);
    return Best(select(a.value, b.value, b_wins), select(a.index, b.index, b_wins));
}

fn is_number(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7fffffffu) <= 0x7f800000u;
}

fn look(unit: u32, lane: u32) -> Best {
    var best = Best(0.0, NONE);
    {% if stage == "merge" %}
    for (var i = lane; i < p.parts; i += {{ lanes }}u) {
        let pair = found[unit * p.parts + i];
        best = better(best, Best(bitcast<f32>(pair.x), pair.y));
    }
    {% else %}
    let row = unit / p.parts;
    let start = (unit - row * p.parts) * p.part;
    let end = min(start + p.part, p.limit);
    let at = p.ahead + row * p.width;
    for (var i = start + lane; i < end; i += {{ lanes }}u) {
        let v = x[at + i];
        best = better(best, Best(v, select(NAN_FOUND, i, is_number(v))));
    }
    {% endif %}
    return best;
}

fn store(unit: u32, best: Best) {
    {% if stage == "parts" %}
    y[unit] = vec2<u32>(bitcast<u32>(best.value), best.index);
    {% else %}
    y[p.y_ahead + unit] = select(i32(best.index), -1, best.index >= NAN_FOUND);
    {% endif %}
}

{% if lanes > 1 %}
var<workgroup> values: array<f32, {{ lanes }}>;
var<workgroup> indices: array<u32, {{ lanes }}>;
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let unit = wid.x + wid.y * nwg.x;
    if (unit >= p.n) { return; }
    var best = look(unit, lane);
    values[lane] = best.value;
    indices[lane] = best.index;
    workgroupBarrier();
    for (var half = {{ lanes // 2 }}u; half > 0u; half >>= 1u) {
        if (lane < half) {
            best = better(best, Best(values[lane + half], indices[lane + half]));
            values[lane] = best.value;
            indices[lane] = best.index;
        }
        workgroupBarrier();
    }
    if (lane == 0u) { store(unit, best); }
}
{% else %}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let unit = gid.x + gid.y * nwg.x * 64u;
    if (unit >= p.n) { return; }
    store(unit, look(unit, 0u));
}
{% endif %}
