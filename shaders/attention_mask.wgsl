// What attention shaders share: sizes, and which keys a query sees.
struct Params {
    // The workgroups of this dispatch are items first .. first + count of (batch row, head, tile of rows), tiles innermost.
    first: u32, count: u32, tiles: u32,
    queries: u32, keys: u32, heads: u32, kv_heads: u32,
    causal: u32, window: i32,
    // The first batch row of the bound parts.
    batch: u32,
    scale: f32,
}

// First and one past the last key that query i of batch row b sees.
fn visible(b: u32, i: u32) -> vec2<i32> {
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
}

{% if stage == "dkv" %}
// First and one past the last query that may see a key in first_key .. last_key + 1 (without the batch row's range).
fn seen_by(first_key: u32, last_key: u32) -> vec2<i32> {
    let shift = i32(p.keys) - i32(p.queries);
    let low = i32(first_key) - shift - select(p.window - 1, 0, p.causal != 0u);
    let high = i32(last_key) - shift + p.window;
    return vec2<i32>(max(low, 0), min(high, i32(p.queries)));
}
{% endif %}
