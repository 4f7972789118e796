// Numbers of a packed matrix in the storage `{{ weights }}: array<u32>`. Needs: weights (the name), tiles (1: layout in tiles), format (its name, all
// groups of int4 as "int4"), group (terms that share a scale), terms (the name of the parameter that says how many there are).
// Parameters: p.b_at (the byte where the rows begin), p.ldb (bytes of a row, or of a tile).
{% set q4 = format in ["q4_0", "int4", "nf4"] %}
{% if format == "nf4" %}
// The levels of NF4 as private memory: an index that is known only at run time needs a variable.
var<private> nf4: array<f32, 16> = array<f32, 16>({% for level in levels %}{{ level }}{{ ", " if not loop.last else "" }}{% endfor %});
{% endif %}

fn packed_word(i: u32) -> u32 {
    return {{ weights }}[min(i, arrayLength(&{{ weights }}) - 1u)];
}

// Bytes i .. i + 3, which may lie in two words.
fn packed_bytes(i: u32) -> u32 {
    let shift = (i & 3u) * 8u;
    let first = packed_word(i >> 2u);
    return select((first >> shift) | (packed_word((i >> 2u) + 1u) << ((32u - shift) & 31u)), first, shift == 0u);
}

// The byte at i.
fn packed_byte(i: u32) -> u32 {
    return ({{ weights }}[i >> 2u] >> ((i & 3u) * 8u)) & 255u;
}

// The f16 at the even byte i.
fn packed_f16(i: u32) -> f32 {
    return unpack2x16float({{ weights }}[i >> 2u] >> ((i & 2u) * 8u)).x;
}

fn unsigned4(q: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8(q));
}

// Four 4-bit codes, one a byte, as what they stand for before the scale.
fn level4(q: u32) -> vec4<f32> {
    {% if format == "nf4" %}
    return vec4<f32>(nf4[q & 15u], nf4[(q >> 8u) & 15u], nf4[(q >> 16u) & 15u], nf4[q >> 24u]);
    {% else %}
    return unsigned4(q) - 8.0;
    {% endif %}
}
{% if format in ["q4_k", "q5_k"] %}
// Scale and minimum of block j, of 6 bits each, of the superblock whose twelve bytes of them are at i.
fn scale_and_minimum(i: u32, j: u32) -> vec2<f32> {
    if (j < 4u) { return vec2<f32>(f32(packed_byte(i + j) & 63u), f32(packed_byte(i + j + 4u) & 63u)); }
    let low = packed_byte(i + j + 4u);
    return vec2<f32>(f32((low & 15u) | ((packed_byte(i + j - 4u) >> 6u) << 4u)), f32((low >> 4u) | ((packed_byte(i + j) >> 6u) << 4u)));
}
{% endif %}
{% if format in ["q5_0", "q5_1", "q5_k"] %}
// Bit 4 of four bytes from the four lowest bits of h.
fn fifth_bits(h: u32) -> u32 {
    return ((h & 1u) << 4u) | ((h & 2u) << 11u) | ((h & 4u) << 18u) | ((h & 8u) << 25u);
}
{% endif %}

// Terms k .. k + 3 of a row, k a multiple of 4. Beyond the row's end they are whatever lies there.
fn quant4(line: u32, k: u32) -> vec4<f32> {
    {% if tiles %}
    let tile = (p.b_at + (line >> 4u) * p.ldb) >> 2u;
    let lane = line & 15u;
    // Where the tile's scales begin.
    let scales_at = tile + {{ "((p." ~ terms ~ " + 7u) >> 3u)" if q4 else "((p." ~ terms ~ " + 3u) >> 2u)" }} * 16u;
    {% if format == "int8-row" %}
    let scale = bitcast<f32>({{ weights }}[scales_at + lane]);
    {% else %}
    let scale = packed_f16(scales_at * 4u + ((k / {{ group }}u) * 16u + lane) * 2u);
    {% endif %}
    {% if q4 %}
    return level4(({{ weights }}[tile + (k >> 3u) * 16u + lane] >> (k & 4u)) & 0x0f0f0f0fu) * scale;
    {% else %}
    return vec4<f32>(unpack4xI8({{ weights }}[tile + (k >> 2u) * 16u + lane] ^ 0x80808080u)) * scale;
    {% endif %}
    {% else %}
    let row = p.b_at + line * p.ldb;
    {% if format == "f32" %}
    let i = (row >> 2u) + k;
    return bitcast<vec4<f32>>(vec4<u32>(packed_word(i), packed_word(i + 1u), packed_word(i + 2u), packed_word(i + 3u)));
    {% elif format == "f16" %}
    return vec4<f32>(unpack2x16float(packed_bytes(row + k * 2u)), unpack2x16float(packed_bytes(row + k * 2u + 4u)));
    {% elif format == "bf16" %}
    let w = vec2<u32>(packed_bytes(row + k * 2u), packed_bytes(row + k * 2u + 4u));
    return bitcast<vec4<f32>>(vec4<u32>(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u));
    {% elif format == "int8-row" %}
    return vec4<f32>(unpack4xI8(packed_bytes(row + 4u + k))) * bitcast<f32>(packed_bytes(row));
    {% elif format == "q8_0" %}
    let block = row + (k >> 5u) * 34u;
    return vec4<f32>(unpack4xI8(packed_bytes(block + 2u + (k & 31u)))) * packed_f16(block);
    {% elif q4 %}
    let j = k % {{ group }}u;
    let block = row + k / {{ group }}u * {{ 2 + group // 2 }}u;
    let shift = select(0u, 4u, j >= {{ group // 2 }}u);
    return level4((packed_bytes(block + 2u + j % {{ group // 2 }}u) >> shift) & 0x0f0f0f0fu) * packed_f16(block);
    {% elif format == "q4_1" %}
    let block = row + (k >> 5u) * 20u;
    let q = (packed_bytes(block + 4u + (k & 15u)) >> ((k & 16u) >> 2u)) & 0x0f0f0f0fu;
    return unsigned4(q) * packed_f16(block) + packed_f16(block + 2u);
    {% elif format == "q5_0" %}
    let block = row + (k >> 5u) * 22u;
    let q = (packed_bytes(block + 6u + (k & 15u)) >> ((k & 16u) >> 2u)) & 0x0f0f0f0fu;
    return (unsigned4(q | fifth_bits(packed_bytes(block + 2u) >> (k & 31u))) - 16.0) * packed_f16(block);
    {% elif format == "q5_1" %}
    let block = row + (k >> 5u) * 24u;
    let q = (packed_bytes(block + 8u + (k & 15u)) >> ((k & 16u) >> 2u)) & 0x0f0f0f0fu;
    return unsigned4(q | fifth_bits(packed_bytes(block + 4u) >> (k & 31u))) * packed_f16(block) + packed_f16(block + 2u);
    {% else %}
    // Superblocks of 256: i is the place in one.
    let i = k & 255u;
    {% if format == "q2_k" %}
    let block = row + (k >> 8u) * 84u;
    let scale = packed_byte(block + (i >> 4u));
    let q = (packed_bytes(block + 16u + (i >> 7u) * 32u + (i & 31u)) >> (((i >> 5u) & 3u) * 2u)) & 0x03030303u;
    return unsigned4(q) * (packed_f16(block + 80u) * f32(scale & 15u)) - packed_f16(block + 82u) * f32(scale >> 4u);
    {% elif format == "q3_k" %}
    let block = row + (k >> 8u) * 110u;
    let j = i >> 4u;
    let low = (packed_byte(block + 96u + (j & 7u)) >> ((j >> 3u) * 4u)) & 15u;
    let high = (packed_byte(block + 104u + (j & 3u)) >> ((j >> 2u) * 2u)) & 3u;
    let scale = f32(low | (high << 4u)) - 32.0;
    let q = (packed_bytes(block + 32u + (i >> 7u) * 32u + (i & 31u)) >> (((i >> 5u) & 3u) * 2u)) & 0x03030303u;
    let third = (packed_bytes(block + (i & 31u)) >> (i >> 5u)) & 0x01010101u;
    return (unsigned4(q | (third << 2u)) - 4.0) * (packed_f16(block + 108u) * scale);
    {% elif format == "q4_k" %}
    let block = row + (k >> 8u) * 144u;
    let sm = scale_and_minimum(block + 4u, i >> 5u);
    let q = (packed_bytes(block + 16u + (i >> 6u) * 32u + (i & 31u)) >> ((i & 32u) >> 3u)) & 0x0f0f0f0fu;
    return unsigned4(q) * (packed_f16(block) * sm.x) - packed_f16(block + 2u) * sm.y;
    {% elif format == "q5_k" %}
    let block = row + (k >> 8u) * 176u;
    let sm = scale_and_minimum(block + 4u, i >> 5u);
    let q = (packed_bytes(block + 48u + (i >> 6u) * 32u + (i & 31u)) >> ((i & 32u) >> 3u)) & 0x0f0f0f0fu;
    let fifth = (packed_bytes(block + 16u + (i & 31u)) >> (i >> 5u)) & 0x01010101u;
    return unsigned4(q | (fifth << 4u)) * (packed_f16(block) * sm.x) - packed_f16(block + 2u) * sm.y;
    {% else %}
    let block = row + (k >> 8u) * 210u;
    let r = i & 127u;
    let low = (packed_bytes(block + (i >> 7u) * 64u + (r & 63u)) >> ((r >> 6u) * 4u)) & 0x0f0f0f0fu;
    let high = (packed_bytes(block + 128u + (i >> 7u) * 32u + (r & 31u)) >> ((r >> 5u) * 2u)) & 0x03030303u;
    let scale = f32(extractBits(bitcast<i32>(packed_byte(block + 192u + (i >> 4u))), 0u, 8u));
    return (unsigned4(low | (high << 4u)) - 32.0) * (packed_f16(block + 208u) * scale);
    {% endif %}
    {% endif %}
    {% endif %}
}

// Term k of a row.
fn quant1(line: u32, k: u32) -> f32 {
    let v = quant4(line, k & 0xfffffffcu);
    return v[k & 3u];
}
