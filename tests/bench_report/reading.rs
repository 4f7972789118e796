//! `roofline.json` against its committed schema and against its reader.

use super::synthetic;
use jsonschema::Validator;
use lynx_gpu::bench::schema;
use serde_json::{Value, json};
use std::path::Path;

fn validator() -> Validator {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/roofline.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    jsonschema::draft202012::meta::validate(&schema).unwrap_or_else(|e| panic!("no schema of draft 2020-12: {e}"));
    jsonschema::draft202012::new(&schema).unwrap()
}

fn produced() -> Value {
    serde_json::to_value(synthetic::report()).unwrap()
}

fn read(value: &Value) -> Result<lynx_gpu::bench::Report, String> {
    schema::parse(&value.to_string(), Path::new("old.json")).map_err(|e| e.to_string())
}

/// Paths of every value in the first element of every array.
fn paths(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| paths(value, format!("{at}/{key}"), out)),
        Value::Array(items) => items.iter().take(1).for_each(|value| paths(value, format!("{at}/0"), out)),
        _ => {}
    }
    if !at.is_empty() {
        out.push(at);
    }
}

#[test]
fn a_report_validates_and_survives_the_way_to_the_file_and_back() {
    let report = synthetic::report();
    let value = produced();
    let validator = validator();
    let errors: Vec<String> =
        validator.iter_errors(&value).map(|e| format!("{} at {}", e, e.instance_path())).collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    assert_eq!(read(&value).unwrap(), report);
}

/// The schema knows every key: a strange one is refused everywhere, and one of another type too.
#[test]
fn schema_and_reader_refuse_what_is_wrong_in_any_place() {
    let validator = validator();
    let mut all = Vec::new();
    paths(&produced(), String::new(), &mut all);
    assert!(all.len() > 90, "{} places", all.len());
    for path in &all {
        let mut wrong = produced();
        let place = wrong.pointer_mut(path).unwrap();
        if let Value::Object(map) = place {
            map.insert("strange".into(), json!(1));
            assert!(!validator.is_valid(&wrong), "{path}: the schema takes a strange key");
        }
        let mut wrong = produced();
        let place = wrong.pointer_mut(path).unwrap();
        *place = if place.is_boolean() { json!("yes") } else { json!(true) };
        assert!(!validator.is_valid(&wrong), "{path}: the schema takes another type");
        let message = read(&wrong).expect_err(path);
        // The reader names the key, as far down as it can.
        let key = path.rsplit('/').find(|part| part.parse::<usize>().is_err()).unwrap();
        assert!(message.starts_with("data: old.json: ") && message.contains(key), "{path}: {message}");
    }
}

#[test]
fn keys_that_the_schema_requires_the_reader_requires_too() {
    let validator = validator();
    let mut all = Vec::new();
    paths(&produced(), String::new(), &mut all);
    for path in all {
        let (parent, key) = path.rsplit_once('/').unwrap();
        let mut short = produced();
        let Some(Value::Object(map)) = short.pointer_mut(parent) else { continue };
        map.remove(key);
        let (schema, reader) = (validator.is_valid(&short), read(&short));
        assert_eq!(schema, reader.is_ok(), "without {path}: {reader:?}");
        if let Err(message) = reader {
            assert!(message.contains(key), "{path}: {message}");
        }
    }
}

#[test]
fn errors_name_the_file_the_key_and_what_to_do() {
    let edited = |path: &str, value: Value| {
        let mut report = produced();
        *report.pointer_mut(path).unwrap() = value;
        read(&report).unwrap_err()
    };
    let message = edited("/schema", json!("lynx-gpu/manifest"));
    assert!(message.contains("`schema`") && message.contains("bench --roofline"), "{message}");
    assert!(edited("/version", json!(0)).contains("older program"));
    assert!(edited("/version", json!(99)).contains("newer program"));
    assert!(edited("/version", json!("1")).contains("`version`"));
    let message = edited("/devices/2/dots/3/seconds/median", json!(-1.0));
    assert!(message.contains("`devices[2].dots[3].seconds.median` is -1"), "{message}");
    let message = edited("/devices/1/ceilings/compute/0/rate/low", json!(1e30));
    assert!(message.contains("devices[1].ceilings.compute[0].rate") && message.contains("quartiles"), "{message}");
    let message = edited("/devices/1/id", json!("cpu1"));
    assert!(message.contains("`devices[1].id`") && message.contains("twice"), "{message}");
    assert!(edited("/devices/0/dots/0/direction", json!("sideways")).contains("devices[0].dots[0].direction"));
    let mut twice = produced();
    let dot = twice["devices"][0]["dots"][0].clone();
    twice["devices"][0]["dots"].as_array_mut().unwrap().push(dot);
    assert!(read(&twice).unwrap_err().contains("twice"));
    assert!(read(&json!([])).unwrap_err().contains("`schema`"));
    let cut = &produced().to_string()[..1000];
    let message = schema::parse(cut, Path::new("cut.json")).unwrap_err();
    assert!(message.to_string().contains("cut.json: not JSON") && message.exit_code() == 3, "{message}");
    let missing = schema::read(Path::new("/nowhere/old.json")).unwrap_err();
    assert_eq!(missing.exit_code(), 7, "{missing}");
}
