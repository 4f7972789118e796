//! WGSL templates. A shader file in `shaders/` is a Jinja template: `{{ NAME }}` is a constant of the variant, `{% if subgroups %}`
//! chooses code, `{% include "math.wgsl" %}` brings in shared functions. Rendering is pure and cached.

use crate::{Error, Result};
use minijinja::{Environment, UndefinedBehavior};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

/// Files that other shaders may include.
const SHARED: &[(&str, &str)] = &[
    ("matmul_common.wgsl", include_str!("../../../shaders/matmul_common.wgsl")),
    ("matmul_quads.wgsl", include_str!("../../../shaders/matmul_quads.wgsl")),
    ("attention_bindings.wgsl", include_str!("../../../shaders/attention_bindings.wgsl")),
    ("halves.wgsl", include_str!("../../../shaders/halves.wgsl")),
    ("math.wgsl", include_str!("../../../shaders/math.wgsl")),
    ("packed_values.wgsl", include_str!("../../../shaders/packed_values.wgsl")),
    ("philox.wgsl", include_str!("../../../shaders/philox.wgsl")),
    ("rows.wgsl", include_str!("../../../shaders/rows.wgsl")),
    ("sums.wgsl", include_str!("../../../shaders/sums.wgsl")),
];

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut env = Environment::new();
    // A misspelt variable is an error, not an empty string in the shader.
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    for (name, source) in SHARED {
        env.add_template(name, source).expect("a shared shader is a valid template");
    }
    env
});

/// Rendered sources by (address of the template, variables).
type Rendered = HashMap<(usize, String), Arc<str>>;

static CACHE: LazyLock<Mutex<Rendered>> = LazyLock::new(Default::default);

/// Renders `template` (the text of a shader file, `'static` so that its address identifies it) with `variables`.
pub fn render(template: &'static str, variables: &minijinja::Value) -> Result<Arc<str>> {
    let key = (template.as_ptr() as usize, variables.to_string());
    let mut cache = CACHE.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(source) = cache.get(&key) {
        return Ok(source.clone());
    }
    let source: Arc<str> = ENVIRONMENT
        .render_str(template, variables)
        .map_err(|e| Error::Device(format!("shader template: {e:#} (variables {variables})")))?
        .into();
    cache.insert(key, source.clone());
    Ok(source)
}
