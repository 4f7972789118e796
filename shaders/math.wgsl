// Elementary functions in forms that are safe on every device: arguments are clamped so that no infinity or NaN arises, and
// nothing relies on how a driver treats them. Suffix 1 is for f32, 4 for vec4<f32>.
{% for T, I, U, S in [("f32", "i32", "u32", "1"), ("vec4<f32>", "vec4<i32>", "vec4<u32>", "4")] %}
// Clamped to the range where the result is a normal number.
fn m_exp_{{ S }}(x: {{ T }}) -> {{ T }} {
    return exp(clamp(x, {{ T }}(-87.0), {{ T }}(88.7)));
}

// The reduction e^x = 2^n e^r, |r| <= ln 2 / 2: n, the polynomial of Cephes for e^r - 1, and 2^n. Not the built-in, which may
// be wrong by 3 + 2|x| ulp.
fn m_exp_whole_{{ S }}(x: {{ T }}) -> {{ T }} {
    return floor(x * 1.4426950408889634 + 0.5);
}

fn m_exp_rest_{{ S }}(x: {{ T }}, n: {{ T }}) -> {{ T }} {
    // ln 2 in two parts: the first is exact when multiplied by an exponent.
    let r = (x - n * 0.693359375) + n * 2.12194440e-4;
    return r + r * r * (0.5 + r * (0.16666666 + r * (4.1665796e-2 + r * (8.333452e-3 + r * (1.3981999e-3 + r * 1.9875691e-4)))));
}

fn m_exp2i_{{ S }}(n: {{ T }}) -> {{ T }} {
    return bitcast<{{ T }}>(({{ I }}(n) + {{ I }}(127)) << {{ U }}(23u));
}

// e^x within 2 ulp; clamped to the range where the result is a normal number.
fn m_exp_own_{{ S }}(x: {{ T }}) -> {{ T }} {
    let c = clamp(x, {{ T }}(-87.0), {{ T }}(88.0));
    let n = m_exp_whole_{{ S }}(c);
    return (1.0 + m_exp_rest_{{ S }}(c, n)) * m_exp2i_{{ S }}(n);
}

// e^x - 1 within 4 ulp; clamped as above.
fn m_expm1_{{ S }}(x: {{ T }}) -> {{ T }} {
    let c = clamp(x, {{ T }}(-87.0), {{ T }}(88.0));
    let n = m_exp_whole_{{ S }}(c);
    let s = m_exp2i_{{ S }}(n);
    return m_exp_rest_{{ S }}(c, n) * s + (s - 1.0);
}

// ln(1 + u) for -1/2 <= u <= 1 by the atanh series: |error| < 2 ulp.
fn m_log1p_near_{{ S }}(u: {{ T }}) -> {{ T }} {
    let s = u / (2.0 + u);
    let q = s * s;
    return 2.0 * s * (1.0 + q * (1.0 / 3.0 + q * (0.2 + q * (1.0 / 7.0 + q * (1.0 / 9.0 + q * (1.0 / 11.0 + q * (1.0 / 13.0 + q * (1.0 / 15.0))))))));
}

// x = m * 2^e with m in [sqrt(1/2), sqrt(2)); ln m by the atanh series. Positive normal x.
fn m_log_{{ S }}(x: {{ T }}) -> {{ T }} {
    let e = (bitcast<{{ I }}>(x) - {{ I }}(0x3f3504f3)) >> {{ U }}(23u);
    let m = bitcast<{{ T }}>(bitcast<{{ I }}>(x) - (e << {{ U }}(23u)));
    let s = (m - 1.0) / (m + 1.0);
    let q = s * s;
    let series = 2.0 * s * (1.0 + q * (1.0 / 3.0 + q * (0.2 + q * (1.0 / 7.0 + q * (1.0 / 9.0 + q * (1.0 / 11.0))))));
    let k = {{ T }}(e);
    // ln 2 in two parts: the first is exact when multiplied by an exponent.
    return k * 0.693359375 + (series + k * -2.12194440e-4);
}

// ln(1 + u), u > -1.
fn m_log1p_{{ S }}(u: {{ T }}) -> {{ T }} {
    let near = abs(u - 0.25) <= {{ T }}(0.75);
    return select(m_log_{{ S }}(1.0 + u), m_log1p_near_{{ S }}(select({{ T }}(0.0), u, near)), near);
}

fn m_sigmoid_{{ S }}(x: {{ T }}) -> {{ T }} {
    let e = m_exp_{{ S }}(-abs(x));
    return select(e, {{ T }}(1.0), x >= {{ T }}(0.0)) / (1.0 + e);
}

fn m_softplus_{{ S }}(x: {{ T }}) -> {{ T }} {
    return max(x, {{ T }}(0.0)) + m_log1p_near_{{ S }}(m_exp_own_{{ S }}(-abs(x)));
}

// Odd series near zero (the exponential form cancels there), 1 - 2 / (e^2x + 1) elsewhere.
fn m_tanh_{{ S }}(x: {{ T }}) -> {{ T }} {
    let a = min(abs(x), {{ T }}(20.0));
    let q = a * a;
    let near = a * (1.0 + q * (-1.0 / 3.0 + q * (2.0 / 15.0 + q * (-17.0 / 315.0 + q * (62.0 / 2835.0 + q * (-1382.0 / 155925.0))))));
    let far = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
    return sign(x) * select(far, near, a < {{ T }}(0.35));
}

fn m_silu_grad_{{ S }}(x: {{ T }}) -> {{ T }} {
    let s = m_sigmoid_{{ S }}(x);
    return s * (1.0 + x * (1.0 - s));
}

fn m_gelu_tanh_{{ S }}(x: {{ T }}) -> {{ T }} {
    // Outside +-12 the result is x or 0; the clamp keeps the cube small.
    let c = clamp(x, {{ T }}(-12.0), {{ T }}(12.0));
    return x * m_sigmoid_{{ S }}(1.5957691216057308 * (c + 0.044715 * c * c * c));
}

fn m_gelu_tanh_grad_{{ S }}(x: {{ T }}) -> {{ T }} {
    let c = clamp(x, {{ T }}(-12.0), {{ T }}(12.0));
    let s = m_sigmoid_{{ S }}(1.5957691216057308 * (c + 0.044715 * c * c * c));
    return s + c * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * c * c);
}

// Phi(x) = erfc(-x / sqrt 2) / 2: erf by its series near zero, erfc in the tail by Chebyshev fitting of
// exp(-t^2 + P(1 / (1 + t / 2))) / (1 + t / 2) (Press et al., Numerical Recipes; relative error < 1.2e-7).
fn m_normal_cdf_{{ S }}(x: {{ T }}) -> {{ T }} {
    let t = min(abs(x) * 0.70710678118654752, {{ T }}(9.0));
    let q = t * t;
    let erf_near = t * 1.1283791670955126 * (1.0 + q * (-1.0 / 3.0 + q * (0.1 + q * (-1.0 / 42.0 + q * (1.0 / 216.0 + q * (-1.0 / 1320.0 + q * (1.0 / 9360.0 + q * (-1.0 / 75600.0))))))));
    let r = 1.0 / (1.0 + 0.5 * t);
    let poly = -1.26551223 + r * (1.00002368 + r * (0.37409196 + r * (0.09678418 + r * (-0.18628806 + r * (0.27886807 + r * (-1.13520398 + r * (1.48851587 + r * (-0.82215223 + r * 0.17087277))))))));
    let erfc_far = r * exp(max(-q + poly, {{ T }}(-87.0)));
    let tail = select(0.5 * erfc_far, 0.5 - 0.5 * erf_near, t < {{ T }}(0.7));
    return select(tail, 1.0 - tail, x >= {{ T }}(0.0));
}

fn m_gelu_erf_{{ S }}(x: {{ T }}) -> {{ T }} {
    return x * m_normal_cdf_{{ S }}(x);
}

fn m_gelu_erf_grad_{{ S }}(x: {{ T }}) -> {{ T }} {
    let c = clamp(x, {{ T }}(-13.0), {{ T }}(13.0));
    return m_normal_cdf_{{ S }}(c) + c * exp(-0.5 * c * c) * 0.3989422804014327;
}

// Cody-Waite reduction by multiples of pi/2 in three parts (good to |x| about 1e4), then minimax polynomials on [-pi/4, pi/4].
fn m_sin_shifted_{{ S }}(x: {{ T }}, quadrants: f32) -> {{ T }} {
    let k = round(x * 0.6366197723675814);
    let r = ((x - k * 1.5703125) - k * 4.837512969970703e-4) - k * 7.549789948768648e-8;
    let q = r * r;
    let s = r + r * q * (-1.6666654611e-1 + q * (8.3321608736e-3 + q * -1.9515295891e-4));
    let c = 1.0 - 0.5 * q + q * q * (4.166664568298827e-2 + q * (-1.388731625493765e-3 + q * 2.443315711809948e-5));
    let quadrant = k + quadrants;
    let half = floor(quadrant * 0.5);
    let odd = quadrant - 2.0 * half > {{ T }}(0.5);
    let negative = half - 2.0 * floor(half * 0.5) > {{ T }}(0.5);
    let value = select(s, c, odd);
    return select(value, -value, negative);
}

fn m_sin_{{ S }}(x: {{ T }}) -> {{ T }} {
    return m_sin_shifted_{{ S }}(x, 0.0);
}

fn m_cos_{{ S }}(x: {{ T }}) -> {{ T }} {
    return m_sin_shifted_{{ S }}(x, 1.0);
}

fn m_step_{{ S }}(x: {{ T }}) -> {{ T }} {
    return select({{ T }}(0.0), {{ T }}(1.0), x > {{ T }}(0.0));
}
{% endfor %}
