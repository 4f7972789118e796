//! `lynx-gpu tokenizer`: train, use and describe tokenizers.

use crate::data::files::read_utf8;
use crate::data::verbs::DEFAULT_SEED;
use crate::data::verbs::split::Policy;
use crate::data::{CorpusSource, Layout, text};
use crate::models::files::load_tokenizer;
use crate::tokenizer::{BpeOptions, BpeTokenizer, Kind, PreSplit, SpecialTokens, Tokenizer, display};
use crate::{Error, Result};
use clap::Subcommand;
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build a tokenizer from a corpus and write it
    Train {
        /// `verbs` or a text file
        #[arg(long, default_value = "verbs")]
        data: String,
        /// char, byte or bpe
        #[arg(long, default_value = "bpe")]
        kind: String,
        /// Ids of a bpe tokenizer, special tokens and bytes included
        #[arg(long, default_value_t = 512)]
        vocab: usize,
        /// Where merges may not cross: none (lines only) or whitespace
        #[arg(long, default_value = "none")]
        pre_split: String,
        /// Special tokens with ids from 0 (byte: from 256); the default depends on the data and kind, `none` means none
        #[arg(long, value_delimiter = ',')]
        special: Option<Vec<String>>,
        /// Folder to write
        #[arg(long)]
        out: PathBuf,
    },
    /// Print the ids of a text (an argument, --file, or standard input)
    Encode {
        /// A tokenizer.json, a folder with one, a GGUF file, or llama2.c's tokenizer.bin
        #[arg(long)]
        tokenizer: PathBuf,
        /// Read the text from this file
        #[arg(long, conflicts_with = "text")]
        file: Option<PathBuf>,
        text: Option<String>,
    },
    /// Print the text of ids (arguments, or standard input separated by spaces)
    Decode {
        /// A tokenizer.json, a folder with one, a GGUF file, or llama2.c's tokenizer.bin
        #[arg(long)]
        tokenizer: PathBuf,
        /// Leave special tokens out
        #[arg(long)]
        skip_special: bool,
        ids: Vec<u32>,
    },
    /// Describe a tokenizer
    Info {
        /// A tokenizer.json, a folder with one, a GGUF file, or llama2.c's tokenizer.bin
        tokenizer: PathBuf,
        /// List every token
        #[arg(long)]
        tokens: bool,
    },
}

pub fn run(args: Args, json: bool) -> Result<()> {
    match args.command {
        Command::Train { data, kind, vocab, pre_split, special, out } => {
            let tokenizer = train(&data, &kind, vocab, &pre_split, special)?;
            tokenizer.save(&out)?;
            if json {
                println!("{}", describe(&tokenizer));
            } else {
                print_description(&tokenizer);
                println!("written to {}", out.display());
            }
            if kind == "bpe" && tokenizer.vocab_size() < vocab {
                eprintln!("note: the text ran out of pairs at {} of {vocab} ids", tokenizer.vocab_size());
            }
            Ok(())
        }
        Command::Encode { tokenizer, file, text } => {
            let text = match (text, file) {
                (Some(text), _) => text,
                (None, Some(path)) => read_utf8(&path)?,
                (None, None) => standard_input()?,
            };
            encode(&load_tokenizer(&tokenizer)?, &text, json)
        }
        Command::Decode { tokenizer, skip_special, ids } => {
            let ids = if ids.is_empty() { parse_ids(&standard_input()?)? } else { ids };
            let text = load_tokenizer(&tokenizer)?.decode_with(&ids, skip_special)?;
            if json {
                println!("{}", json!({ "ids": ids, "text": text }));
            } else {
                println!("{text}");
            }
            Ok(())
        }
        Command::Info { tokenizer, tokens } => info(&tokenizer, tokens, json),
    }
}

fn train(data: &str, kind: &str, vocab: usize, pre_split: &str, special: Option<Vec<String>>) -> Result<Tokenizer> {
    let pre_split = PreSplit::parse(pre_split)?;
    let source = CorpusSource::parse(data, DEFAULT_SEED, Policy::default(), text::DEFAULT_VAL_FRACTION);
    let corpus = source.load()?;
    let specials = match special {
        Some(names) if names == ["none"] => SpecialTokens::none(),
        Some(names) => SpecialTokens::new(names)?,
        None if kind == "byte" => SpecialTokens::of_bytes(),
        // Rows need a boundary. Running text needs none, but a bpe tokenizer is likely to be used for other text too.
        None if corpus.layout == Layout::Rows || kind == "bpe" => SpecialTokens::default(),
        None => SpecialTokens::none(),
    };
    match Kind::parse(kind)? {
        Kind::Char => Ok(Tokenizer::Char(crate::tokenizer::CharTokenizer::train(corpus.documents(), specials)?)),
        Kind::Byte => Ok(Tokenizer::Byte(crate::tokenizer::ByteTokenizer::new(specials.after_bytes()))),
        Kind::Bpe { vocab_size } => {
            let vocab_size = if kind == "bpe" { vocab } else { vocab_size };
            let options = BpeOptions { vocab_size, specials, pre_split };
            Ok(Tokenizer::Bpe(BpeTokenizer::train(corpus.documents(), &options)?))
        }
    }
}

fn standard_input() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(|e| Error::io("standard input", e))?;
    String::from_utf8(bytes)
        .map_err(|e| Error::Data(format!("standard input: not UTF-8 at byte offset {}", e.utf8_error().valid_up_to())))
}

fn parse_ids(text: &str) -> Result<Vec<u32>> {
    text.split(|c: char| c.is_whitespace() || c == ',')
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().map_err(|_| Error::Data(format!("'{part}' is not a token id (a whole number)"))))
        .collect()
}

fn encode(tokenizer: &Tokenizer, text: &str, json: bool) -> Result<()> {
    let ids = tokenizer.encode(text)?;
    if json {
        let tokens = ids.iter().map(|&id| token_text(tokenizer, id)).collect::<Result<Vec<_>>>()?;
        println!("{}", json!({ "ids": ids, "tokens": tokens, "bytes": text.len() }));
    } else {
        println!("{}", ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

fn token_text(tokenizer: &Tokenizer, id: u32) -> Result<String> {
    tokenizer.token_bytes(id).map(|bytes| display(&bytes))
}

fn describe(tokenizer: &Tokenizer) -> Value {
    let special: Vec<Value> = (0..tokenizer.vocab_size() as u32)
        .filter(|&id| tokenizer.is_special(id))
        .map(|id| json!({ "id": id, "token": token_text(tokenizer, id).unwrap_or_default() }))
        .collect();
    json!({
        "kind": tokenizer.kind(), "vocab_size": tokenizer.vocab_size(), "sha256": tokenizer.fingerprint(),
        "special_tokens": special, "boundary_id": tokenizer.boundary_id(), "pad_id": tokenizer.pad_id(),
    })
}

fn print_description(tokenizer: &Tokenizer) {
    let value = describe(tokenizer);
    println!("{} tokenizer, {} ids, sha256 {}", tokenizer.kind(), tokenizer.vocab_size(), tokenizer.fingerprint());
    for special in value["special_tokens"].as_array().into_iter().flatten() {
        println!("  {:>6} {}", special["id"].to_string(), special["token"].as_str().unwrap_or_default());
    }
}

fn info(path: &Path, tokens: bool, json: bool) -> Result<()> {
    let tokenizer = load_tokenizer(path)?;
    // An id between two used ones may be free in a foreign vocabulary.
    let all = || (0..tokenizer.vocab_size() as u32).filter_map(|id| Some((id, token_text(&tokenizer, id).ok()?)));
    if json {
        let mut value = describe(&tokenizer);
        if tokens {
            value["tokens"] = all().map(|(id, token)| json!({ "id": id, "token": token })).collect();
        }
        println!("{value}");
        return Ok(());
    }
    print_description(&tokenizer);
    if tokens {
        all().for_each(|(id, token)| println!("{id:>7} {token}"));
    }
    Ok(())
}
