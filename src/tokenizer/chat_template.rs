//! Chat templates: the Jinja text in a GGUF file's `tokenizer.chat_template` or a folder's `tokenizer_config.json` by which a conversation
//! becomes the text that the model was trained on. Rendered as the `transformers` library does it.

use super::Tokenizer;
use crate::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use serde_json::Map;
use time::OffsetDateTime;

/// Bytes of the longest template; published ones have up to some 20 thousand.
const LONGEST: usize = 1 << 20;
/// Steps of a rendering, a step being an instruction or 64 bytes of text made, before what the messages' bytes add. A template that
/// loops without end, or doubles a text until memory is gone, ends here: 64 MiB at most.
const FUEL: u64 = 1_000_000;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant` in all templates; some know others.
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// What a template may ask for besides the messages.
#[derive(Clone, Debug, Default)]
pub struct ChatOptions {
    /// The text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// The texts of the tokens that begin and end a text; empty where there are none.
    pub bos_token: String,
    pub eos_token: String,
    /// Further variables: `tools`, `enable_thinking`, ...
    pub variables: Map<String, serde_json::Value>,
    /// What `strftime_now` shows; the clock (UTC) where it is `None`.
    pub now: Option<OffsetDateTime>,
}

impl ChatOptions {
    /// With the tokens of `tokenizer`.
    pub fn of(tokenizer: &Tokenizer, add_generation_prompt: bool) -> Self {
        let text = |id: Option<u32>| {
            id.and_then(|id| tokenizer.token_bytes(id).ok())
                .map_or(String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        Self {
            add_generation_prompt,
            bos_token: text(tokenizer.bos_id()),
            eos_token: text(tokenizer.eos_ids().first().copied()),
            ..Self::default()
        }
    }
}

/// A chat template that was read without an error.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
}

impl ChatTemplate {
    /// Refuses a template that is no Jinja, with its line.
    pub fn new(source: &str) -> Result<Self> {
        if source.len() > LONGEST {
            return Err(Error::Data(format!(
                "the chat template has {} bytes; {LONGEST} are the most that are read",
                source.len()
            )));
        }
        let template = Self { source: without_generation_tags(source) };
        environment(0, None).template_from_str(&template.source).map_err(explain)?;
        Ok(template)
    }

    /// The text of a conversation. What the template itself refuses (two messages of one role in a row, say) is an error with its words.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        let bytes: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        let environment = environment(FUEL + bytes as u64, options.now);
        let own = minijinja::context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => options.add_generation_prompt,
            bos_token => options.bos_token.as_str(),
            eos_token => options.eos_token.as_str(),
        };
        let variables = Value::from(Serde(&options.variables));
        let template = environment.template_from_str(&self.source).map_err(explain)?;
        template.render(minijinja::context! { ..own, ..variables }).map_err(explain)
    }

    /// The tokens of a conversation. Names of control tokens in the messages stay text: only the template makes control tokens. The text
    /// begins with the token before a text where the tokenizer says so, once.
    pub fn encode(&self, tokenizer: &Tokenizer, messages: &[Message], options: &ChatOptions) -> Result<Vec<u32>> {
        let names = tokenizer.control_names();
        let guarded: Vec<Message> =
            messages.iter().map(|m| Message::new(m.role.as_str(), guard(&m.content, &names))).collect();
        let text = self.render(&guarded, options)?;
        let mut ids = Vec::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once(OPEN) {
            let (name, beyond) = after.split_once(CLOSE).unwrap_or((after, ""));
            ids.extend(tokenizer.encode(before)?);
            ids.extend(tokenizer.encode_plain(name)?);
            rest = beyond;
        }
        ids.extend(tokenizer.encode(&rest.replace(CLOSE, ""))?);
        if let Some(bos) = tokenizer.bos_id().filter(|bos| tokenizer.add_bos() && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }
}

/// Around a control token's name in a message. Neither is a character: Unicode keeps both for uses like this one.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

/// `text` with marks around the names of control tokens.
fn guard(text: &str, names: &[String]) -> String {
    let mut marked = String::with_capacity(text.len());
    let text = text.replace([OPEN, CLOSE], "");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        // Of the names at the leftmost place the longest.
        let found = names.iter().filter(|name| !name.is_empty());
        let found =
            found.filter_map(|name| rest.find(name.as_str()).map(|at| (at, std::cmp::Reverse(name.len())))).min();
        let Some((at, std::cmp::Reverse(length))) = found else { break };
        marked.push_str(&rest[..at]);
        marked.push(OPEN);
        marked.push_str(&rest[at..at + length]);
        marked.push(CLOSE);
        rest = &rest[at + length..];
    }
    marked + rest
}

/// `{% generation %}` marks what a trainer learns from; for everyone else the tags are not there.
fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let end = rest[at..].find("%}").map_or(rest.len(), |end| at + end);
        let tag = &rest[at + 2..end];
        let replaced = match tag.trim_matches(['-', '+']).trim() {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_owned(),
        };
        result.push_str(&rest[..at + 2]);
        result.push_str(&replaced);
        rest = &rest[end..];
    }
    result + rest
}

fn explain(error: minijinja::Error) -> Error {
    let line = error.line().map_or(String::new(), |line| format!(" line {line}"));
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "it goes on without end, or makes more text than memory should hold".to_owned(),
        kind => error.detail().map_or_else(|| kind.to_string(), str::to_owned),
    };
    Error::Data(format!("chat template{line}: {what}"))
}

fn environment(fuel: u64, now: Option<OffsetDateTime>) -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the delimiters are Jinja's own"));
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel((fuel > 0).then_some(fuel));
    environment.set_formatter(|out, state, value| match value.kind() {
        // As Python prints them.
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Into::into),
        ValueKind::None => out.write_str("None").map_err(Into::into),
        _ => minijinja::escape_formatter(out, state, value),
    });
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: String| {
        strftime(&format, now.unwrap_or_else(OffsetDateTime::now_utc))
    });
    environment
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Python's other arguments change nothing that a template relies on.
    for name in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = options.get(name)?;
    }
    options.assert_all_used()?;
    let mut text = String::new();
    write_json(&value, indent.map(|indent| indent.min(16)), 0, &mut text)?;
    Ok(text.into())
}

/// Deepest nesting that is written.
const DEEPEST: usize = 64;

fn write_json(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), minijinja::Error> {
    let bad = |why: &str| minijinja::Error::new(ErrorKind::BadSerialization, format!("tojson: {why}"));
    if depth > DEEPEST {
        return Err(bad("the value is nested too deeply"));
    }
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let map = match value.kind() {
        ValueKind::Map => true,
        ValueKind::Seq | ValueKind::Iterable => false,
        ValueKind::Undefined | ValueKind::None => {
            out.push_str("null");
            return Ok(());
        }
        ValueKind::Bool | ValueKind::Number => {
            out.push_str(&value.to_string());
            return Ok(());
        }
        ValueKind::String => {
            out.push_str(&quoted(value.as_str().unwrap_or_default()));
            return Ok(());
        }
        kind => return Err(bad(&format!("a {kind} is no JSON"))),
    };
    let (open, close) = if map { ('{', '}') } else { ('[', ']') };
    out.push(open);
    let mut some = false;
    for item in value.try_iter()? {
        if some {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        some = true;
        line(out, depth + 1);
        if map {
            out.push_str(&quoted(&item.to_string()));
            out.push_str(": ");
            write_json(&value.get_item(&item)?, indent, depth + 1, out)?;
        } else {
            write_json(&item, indent, depth + 1, out)?;
        }
    }
    if some {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

/// The directives of `strftime` that dates in prompts are made of; others stay as they are.
fn strftime(format: &str, now: OffsetDateTime) -> String {
    let mut text = String::new();
    let mut rest = format.chars();
    let hour = match now.hour() % 12 {
        0 => 12,
        hour => hour,
    };
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match rest.next() {
            Some('Y') => text.push_str(&format!("{:04}", now.year())),
            Some('y') => text.push_str(&format!("{:02}", now.year().rem_euclid(100))),
            Some('m') => text.push_str(&format!("{:02}", u8::from(now.month()))),
            Some('d') => text.push_str(&format!("{:02}", now.day())),
            Some('e') => text.push_str(&format!("{:2}", now.day())),
            Some('B') => text.push_str(&now.month().to_string()),
            Some('b' | 'h') => text.push_str(&now.month().to_string()[..3]),
            Some('A') => text.push_str(&now.weekday().to_string()),
            Some('a') => text.push_str(&now.weekday().to_string()[..3]),
            Some('j') => text.push_str(&format!("{:03}", now.ordinal())),
            Some('H') => text.push_str(&format!("{:02}", now.hour())),
            Some('I') => text.push_str(&format!("{hour:02}")),
            Some('p') => text.push_str(if now.hour() < 12 { "AM" } else { "PM" }),
            Some('M') => text.push_str(&format!("{:02}", now.minute())),
            Some('S') => text.push_str(&format!("{:02}", now.second())),
            Some('F') => text.push_str(&strftime("%Y-%m-%d", now)),
            Some('T') => text.push_str(&strftime("%H:%M:%S", now)),
            Some('%') => text.push('%'),
            Some(other) => text.extend(['%', other]),
            None => text.push('%'),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn render(source: &str) -> Result<String> {
        let messages = [Message::new("user", "Hello"), Message::new("assistant", "Hi")];
        ChatTemplate::new(source)?.render(&messages, &ChatOptions { eos_token: "</s>".into(), ..Default::default() })
    }

    #[test]
    fn what_templates_use_of_python_is_there() {
        let cases = [
            (
                "{% for m in messages %}\n{{ m.role|upper }}: {{ m['content'].strip() }}\n{% endfor %}",
                "USER: Hello\nASSISTANT: Hi\n",
            ),
            ("{%- generation -%} {{ eos_token }} {%- endgeneration %}", "</s>"),
            ("{{ messages[-1]['content'].startswith('H') }} {{ none }}", "True None"),
            ("{{ {'a': [1, 'é<']}|tojson }}", "{\"a\": [1, \"é<\"]}"),
            ("{{ [1, {'a': 2}]|tojson(indent=2) }}", "[\n  1,\n  {\n    \"a\": 2\n  }\n]"),
            ("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ loop.index0 }}{% endfor %}", "0"),
            (
                "{% set ns = namespace(x=1) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{% endfor %}{{ ns.x }}",
                "3",
            ),
            ("{{ messages[1:]|length }}{{ undefined_thing }}", "1"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn errors_name_the_line_and_say_what_the_template_says() {
        let message = render("\n{% if true %}\n{{ raise_exception('roles must alternate') }}{% endif %}").unwrap_err();
        assert_eq!(message.to_string(), "data: chat template line 3: roles must alternate");
        assert!(render("a\n{% if %}").unwrap_err().to_string().starts_with("data: chat template line 2: "));
        assert!(ChatTemplate::new(&"x".repeat(LONGEST + 1)).is_err());
    }

    #[test]
    fn a_template_without_end_is_stopped() {
        for source in [
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
            "{% set ns = namespace(x='0123456789') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
            "{% set ns = namespace(x='0123456789') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{{ 'x' * 99999999999 }}",
            "{% set ns = namespace(x=[]) %}{% for a in range(500) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        ] {
            assert!(render(source).is_err(), "{source}");
        }
        assert!(ChatTemplate::new(&"{% if x %}".repeat(10_000)).is_err());
        assert!(ChatTemplate::new(&format!("{{{{ {}1 }}}}", "(".repeat(100_000))).is_err());
    }

    #[test]
    fn dates_are_written_as_strftime_writes_them() {
        let now = datetime!(2024-07-06 15:04:09 UTC);
        assert_eq!(
            strftime("%d %b %Y, %A %B %e %I:%M %p %F %T %j 100%% %q%", now),
            "06 Jul 2024, Saturday July  6 03:04 PM 2024-07-06 15:04:09 188 100% %q%"
        );
    }

    #[test]
    fn names_of_control_tokens_in_a_message_are_marked() {
        let names = ["<a>".to_owned(), "<a><b>".to_owned()];
        assert_eq!(guard("x<a><b>y<a>", &names), format!("x{OPEN}<a><b>{CLOSE}y{OPEN}<a>{CLOSE}"));
        assert_eq!(guard(&format!("{OPEN}z{CLOSE}"), &names), "z");
    }
}
