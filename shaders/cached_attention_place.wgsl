// What shaders of attention to a cache share: sizes, and which positions a query sees.
struct Params {
    // Units of work of this dispatch.
    count: u32,
    // The first (batch row, key/value head) of the bound part of the cache, and how many there are; the first batch row of the bound
    // parts of q and o, and units before it.
    head: u32, head_count: u32, batch: u32, ahead: u32,
    tokens: u32, heads: u32, kv_heads: u32, slots: u32, window: i32,
    // Parts of a text and positions in each.
    parts: u32, part: u32,
    scale: f32, cap: f32,
}

// Start and count of a batch row, inside what is possible.
fn place_of(b: u32) -> vec2<i32> {
    return vec2<i32>(clamp(place[2u * b], 0, 1 << 30u), clamp(place[2u * b + 1u], 0, i32(p.tokens)));
}

// First and one past the last position that token t of a row at `at` sees.
fn visible(at: vec2<i32>, t: i32) -> vec2<i32> {
    let position = at.x + t;
    let low = max(max(at.x + at.y - i32(p.slots), position - p.window + 1), 0);
    return vec2<i32>(low, max(position + 1, low));
}

// Unit of q and o where a row of a key/value head starts: (local head, row of it).
fn row_at(own: u32, row: u32) -> u32 {
    let group = p.heads / p.kv_heads;
    let head = p.head + own;
    let b = head / p.kv_heads;
    let h = (head % p.kv_heads) * group + row % group;
    return p.ahead + (((b - p.batch) * p.tokens + row / group) * p.heads + h) * {{ NV }}u;
}
