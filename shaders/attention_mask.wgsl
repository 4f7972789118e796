// What attention shaders share: sizes, and which keys a query sees.
struct Params {
    // The workgroups of this dispatch are items first .. first + count of (batch row, head, tile of rows), tiles innermost.
    first: u32, count: u32, tiles: u32,
    queries: u32, keys: u32, heads: u32, kv_heads: u32,
    causal: u32, window: i32,
    // The first batch row of the bound parts.
    batch: u32,
    scale: f32,
    {% if slots %}
    // A key is a slot: see `kernels_cpu::attention::Slots`. `reach` is every * capacity; slots after `limit` start beyond 2^30,
    // as no position does.
    every: i32, capacity: i32, ready: i32, reach: i32, limit: i32,
    {% endif %}
}

{% if slots %}
// Position of query 0 and slot of row 0.
fn origin() -> vec2<i32> {
    return {% if ranged %}vec2<i32>(place[0], place[1]){% else %}vec2<i32>(0){% endif %};
}
{% endif %}

// First and one past the last key that query i of batch row b sees; both lie in 0 .. keys with slots.
fn visible(b: u32, i: u32) -> vec2<i32> {
    {% if slots %}
    let at = origin();
    let since = at.x + i32(i) - p.ready;
    let available = select(0, since / p.every + 1, since >= 0);
    let slots = vec2<i32>(max(available - p.capacity, 0), available);
    return clamp(slots - vec2<i32>(at.y), vec2<i32>(0), vec2<i32>(i32(p.keys)));
    {% else %}
    let position = i32(i) + i32(p.keys) - i32(p.queries);
    {% if ranged %}
    var low = clamp(key_range[2u * (p.batch + b)], 0, i32(p.keys));
    var high = clamp(key_range[2u * (p.batch + b) + 1u], 0, i32(p.keys));
    {% else %}
    var low = 0;
    var high = i32(p.keys);
    {% endif %}
    low = max(low, position - p.window + 1);
    high = min(high, position + select(p.window, 1, p.causal != 0u));
    return vec2<i32>(low, high);
    {% endif %}
}

{% if stage == "dkv" %}
// First and one past the last query that may see a key in first_key .. last_key + 1 (without the batch row's range).
fn seen_by(first_key: u32, last_key: u32) -> vec2<i32> {
    {% if slots %}
    let at = origin();
    let slots = clamp(vec2<i32>(i32(first_key), i32(last_key)) + at.y, vec2<i32>(-1), vec2<i32>(p.limit + 1));
    let first = slots * p.every + p.ready - at.x;
    let queries = i32(p.queries);
    return vec2<i32>(clamp(first.x, 0, queries), clamp(min(first.y, queries) + p.reach, 0, queries));
    {% else %}
    let shift = i32(p.keys) - i32(p.queries);
    let low = i32(first_key) - shift - select(p.window - 1, 0, p.causal != 0u);
    let high = i32(last_key) - shift + p.window;
    return vec2<i32>(max(low, 0), min(high, i32(p.queries)));
    {% endif %}
}
{% endif %}
