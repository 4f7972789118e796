//! A file of prompts, continued side by side.

use super::show;
use crate::cli::report::emit;
use crate::infer::{self, NextToken, Options};
use crate::models::Session;
use crate::tokenizer::Tokenizer;
use crate::train::files::read_text;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::json;
use std::path::Path;
use std::time::Instant;

pub struct Prompt {
    text: String,
    ids: Vec<u32>,
}

/// Every line that is not blank; of a `.jsonl` file the `prompt` of its object (other keys are left alone).
pub fn read(path: &Path, tokenizer: &Tokenizer) -> Result<Vec<Prompt>> {
    let prompts = parse(&read_text(path)?, path)?;
    let prompt = |(line, text): (usize, String)| match infer::beginning(tokenizer, &text) {
        Ok(ids) => Ok(Prompt { text, ids }),
        Err(e) => Err(Error::Data(format!("{} line {line}: {e}", path.display()))),
    };
    prompts.into_iter().map(prompt).collect()
}

#[derive(Deserialize)]
struct Line {
    prompt: String,
}

/// Prompts and the numbers of their lines.
fn parse(text: &str, path: &Path) -> Result<Vec<(usize, String)>> {
    let objects = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl"));
    let mut prompts = vec![];
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let prompt = match objects {
            false => line.to_owned(),
            true => {
                let parsed: Line = serde_json::from_str(line).map_err(|e| {
                    Error::Data(format!("{} line {}: {e}; expected {{\"prompt\": \"..\"}}", path.display(), i + 1))
                })?;
                parsed.prompt
            }
        };
        prompts.push((i + 1, prompt));
    }
    match prompts.is_empty() {
        true => Err(Error::Data(format!("{}: no prompts, one a line are expected", path.display()))),
        false => Ok(prompts),
    }
}

/// Continues them all and prints the texts in the order of the file.
pub fn run(session: &mut Session, prompts: &[Prompt], options: &Options, batch: usize, json: bool) -> Result<()> {
    let (context, carries) = (session.context(), session.carries().is_ok());
    for prompt in prompts.iter().filter(|p| !carries && p.ids.len() > context) {
        eprintln!("[of a prompt of {} tokens the model sees the newest {context}]", prompt.ids.len());
    }
    let begun = Instant::now();
    let ids: Vec<Vec<u32>> = prompts.iter().map(|p| p.ids.clone()).collect();
    let made = infer::batch(session, &ids, options, batch, &mut |i, text| {
        if !json {
            println!("{}{}\n", prompts[i].text, text.text);
            show::logprobs(&text.logprobs);
        }
        Ok(())
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let tokens: usize = made.iter().map(|m| m.tokens.len()).sum();
    let rate = tokens as f64 / seconds.max(1e-9);
    let device = session.device().name();
    if json {
        let texts: Vec<_> = prompts
            .iter()
            .zip(&made)
            .map(|(p, m)| json!({ "prompt": p.text, "prompt_tokens": p.ids.len(), "generation": m }))
            .collect();
        return emit(&json!({
            "texts": texts, "sampling": options.sampling, "batch": batch, "seconds": seconds, "tokens": tokens,
            "tokens_per_second": rate, "device": device,
        }));
    }
    eprintln!("[{} prompts, {tokens} tokens, {rate:.1} tokens/s on {device}]", prompts.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_lines_or_objects_and_blank_lines_are_not_prompts() {
        let lines = parse("once\n\n  two {\n", Path::new("p.txt")).unwrap();
        assert_eq!(lines, [(1, "once".to_owned()), (3, "  two {".to_owned())]);
        let objects = parse("{\"prompt\": \"a\\nb\", \"id\": 7}\n", Path::new("p.jsonl")).unwrap();
        assert_eq!(objects, [(1, "a\nb".to_owned())]);
        let bad = parse("{\"prompt\": \"a\"}\n{\"text\": 1}\n", Path::new("p.jsonl")).unwrap_err().to_string();
        assert!(bad.contains("p.jsonl line 2") && bad.contains("prompt"), "{bad}");
        assert!(parse("\n \n", Path::new("p.txt")).unwrap_err().to_string().contains("no prompts"));
    }
}
