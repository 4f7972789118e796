use super::*;

fn gpt(config: &Config) -> &GptConfig {
    match &config.model {
        ModelConfig::Gpt(gpt) => gpt,
        other => panic!("{other:?}"),
    }
}

fn shape(width: usize, heads: usize, layers: usize, ff_width: usize, vocab_size: usize) -> GptConfig {
    GptConfig { width, heads, layers, ff_width, vocab_size, ..GptConfig::default() }
}

fn message(text: &str, sets: &[&str]) -> String {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    match Config::parse(text, "my.toml", &sets) {
        Ok(_) => panic!("accepted {text:?} {sets:?}"),
        Err(error) => {
            assert_eq!(error.exit_code(), 2, "{error}");
            error.to_string()
        }
    }
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

/// Counts the tensors of the architecture one by one, as a model writes them.
fn count_by_listing(c: &GptConfig) -> u64 {
    let mut c = c.clone();
    c.resolve();
    let (d, f, head) = (c.width, c.ff_width, c.width / c.heads);
    let mut tensors: Vec<Vec<usize>> = vec![vec![c.vocab_size, d]];
    if c.positions == Positions::Learned {
        tensors.push(vec![c.context, d]);
    }
    let norm = |tensors: &mut Vec<Vec<usize>>| {
        tensors.push(vec![d]);
        if c.norm == Norm::Layernorm && c.norm_bias {
            tensors.push(vec![d]);
        }
    };
    for _ in 0..c.layers {
        norm(&mut tensors);
        for rows in [d, c.kv_heads * head, c.kv_heads * head, d] {
            tensors.push(vec![rows, d]);
            if c.attention_bias {
                tensors.push(vec![rows]);
            }
        }
        norm(&mut tensors);
        let mut linears = vec![(f, d)];
        if c.ff_kind == FeedForward::Swiglu {
            linears.push((f, d));
        }
        linears.push((d, f));
        for (rows, cols) in linears {
            tensors.push(vec![rows, cols]);
            if c.ff_bias {
                tensors.push(vec![rows]);
            }
        }
    }
    norm(&mut tensors);
    if !c.tied_head {
        tensors.push(vec![c.vocab_size, d]);
    }
    tensors.iter().map(|shape| shape.iter().product::<usize>() as u64).sum()
}

#[test]
fn parameter_counts_are_the_published_ones() {
    let mini = shape(64, 4, 2, 256, 64);
    assert_eq!(mini.parameter_count(), 103_680);
    assert_eq!(GptConfig { vocab_size: 512, ..mini.clone() }.parameter_count(), 132_352);
    assert_eq!(GptConfig { attention_bias: true, ..mini.clone() }.parameter_count(), 104_192);
    let rms = GptConfig { norm: Norm::Rmsnorm, ff_bias: false, vocab_size: 512, ..mini };
    assert_eq!(rms.parameter_count(), 131_392);
    assert_eq!(shape(128, 4, 4, 512, 64).parameter_count(), 799_488);
    assert_eq!(shape(256, 8, 6, 1024, 64).parameter_count(), 4_749_312);
    let gpt2 = shape(768, 12, 12, 3072, 50257);
    assert_eq!(gpt2.parameter_count(), 123_616_512);
    let gpt2 = GptConfig { positions: Positions::Learned, context: 1024, attention_bias: true, ..gpt2 };
    assert_eq!(gpt2.parameter_count(), 124_439_808);
}

#[test]
fn closed_form_count_equals_the_sum_over_tensors_for_every_option() {
    for bits in 0u32..256 {
        let on = |bit: u32| bits >> bit & 1 == 1;
        let config = GptConfig {
            layers: 3,
            heads: 6,
            kv_heads: if on(0) { 2 } else { 0 },
            width: 48,
            ff_width: if on(1) { 0 } else { 100 },
            ff_kind: if on(2) { FeedForward::Swiglu } else { FeedForward::Relu },
            norm: if on(3) { Norm::Rmsnorm } else { Norm::Layernorm },
            norm_bias: on(4),
            attention_bias: on(5),
            ff_bias: on(6),
            tied_head: on(7),
            positions: if on(0) { Positions::Learned } else { Positions::Sinusoidal },
            vocab_size: 77,
            ..GptConfig::default()
        };
        assert_eq!(config.parameter_count(), count_by_listing(&config), "{config:?}");
    }
}

#[test]
fn every_preset_loads_and_minigpt_is_the_default_recipe() {
    for preset in PRESETS {
        let (config, name) = Config::load(preset.name, &[]).unwrap_or_else(|e| panic!("{}: {e}", preset.name));
        assert_eq!(name, preset.name);
        assert_eq!(Config::parse(&config.to_toml(), "again", &[]).unwrap(), config, "{name} does not round-trip");
    }
    let (minigpt, _) = Config::load("minigpt", &[]).unwrap();
    let mut default = Config::default();
    default.resolve();
    // The preset fixes the vocabulary of its tokenizer; the default leaves both open.
    default.tokenizer.kind = TokenizerKind::Char;
    default.set_vocab_size(64).unwrap();
    assert_eq!(minigpt, default);
}

#[test]
fn preset_parameter_counts_at_64_and_512_tokens() {
    for (name, at_64, at_512) in
        [("minigpt", 103_680, 132_352), ("minigpt-medium", 799_488, 856_832), ("minigpt-large", 4_749_312, 4_864_000)]
    {
        for (vocab_size, expected) in [(64, at_64), (512, at_512)] {
            let (mut config, _) = Config::load(name, &["model.vocab_size=0".into()]).unwrap();
            config.set_vocab_size(vocab_size).unwrap();
            assert_eq!(config.model.parameter_count(), expected, "{name} at {vocab_size}");
        }
    }
}

#[test]
fn resolved_config_round_trips_and_keeps_its_hash() {
    let sets = [
        "model.kv_heads=2".to_string(),
        "train.sample_prompts=[\"a = b\", \"\"]".into(),
        "run.device=RTX 4070".into(),
        "schedule.lr=2".into(),
        "data.source=a=b.txt".into(),
        "data.batching=windows".into(),
    ];
    let config = Config::parse("", "x", &sets).unwrap();
    assert_eq!(gpt(&config).kv_heads, 2);
    assert_eq!(config.train.sample_prompts, ["a = b", ""]);
    assert_eq!(config.run.device, "RTX 4070");
    assert_eq!(config.schedule.lr, 2.0);
    assert_eq!(config.data.source, "a=b.txt");
    let again = Config::parse(&config.to_toml(), "y", &[]).unwrap();
    assert_eq!(again, config);
    assert_eq!(again.hash(), config.hash());
    let other = Config::parse(&config.to_toml(), "y", &["train.seed=43".into()]).unwrap();
    assert_ne!(other.hash(), config.hash());
    let elsewhere = Config::parse(&config.to_toml(), "y", &["run.name=elsewhere".into()]).unwrap();
    assert_eq!(elsewhere.hash(), config.hash());
}

#[test]
fn unknown_key_names_file_line_and_the_nearest_key() {
    let text = "[model]\nlayers = 2\n\n# a comment\nheds = 4\n";
    assert_says(&message(text, &[]), &["my.toml:5", "`model.heds`", "did you mean `model.heads`?"]);
    assert_says(&message("[optimiser]\nbeta1 = 0.9\n", &[]), &["my.toml:1", "`optimiser`", "`optimizer`"]);
    assert_says(&message("steps = 5\n", &[]), &["my.toml:1", "`steps`", "`train.steps`"]);
    assert_says(&message("[optimizer]\nlr = 0.1\n", &[]), &["my.toml:2", "`optimizer.lr`", "`schedule.lr`"]);
    assert_says(&message("model.dropuot = 0.1", &[]), &["my.toml:1", "`model.dropuot`", "`model.dropout`"]);
    assert_says(&message("[data]\nzzzzqqqq = 1", &[]), &["my.toml:2", "`data.zzzzqqqq`", "[data] has ", "heldout"]);
    assert_says(&message("", &["train.stpes=5"]), &["--set train.stpes=5", "`train.steps`"]);
    assert_says(&message("", &["train.steps.more=5"]), &["`train.steps` is a single value", "`more`"]);
    assert_says(&message("", &["train.steps"]), &["expected path.to.key=value"]);
    assert_says(&message("", &["=3"]), &["unknown key"]);
}

#[test]
fn wrong_type_names_key_expected_and_found() {
    let text = "[model]\nlayers = \"two\"\n";
    assert_says(&message(text, &[]), &["my.toml:2", "`model.layers`", "a whole number", "text (\"two\")"]);
    assert_says(&message("[train]\nsteps = 1.5", &[]), &["my.toml:2", "`train.steps`", "a whole number", "1.5"]);
    assert_says(&message("[model]\ntied_head = 1", &[]), &["`model.tied_head`", "true or false", "1"]);
    assert_says(&message("model = 3", &[]), &["`model`", "a section of keys", "3"]);
    assert_says(&message("[train.steps]\nx = 1", &[]), &["`train.steps`", "a whole number", "a section"]);
    assert_says(&message("", &["schedule.lr=fast"]), &["`schedule.lr`", "a number", "fast"]);
    assert_says(&message("", &["model=5"]), &["`model`", "a section of keys"]);
    assert_says(&message("[train]\nbatch_size = -4", &[]), &["my.toml:2", "`train.batch_size`", "-4 is negative"]);
    assert_says(&message("[train]\nsample_prompts = [1, 2]", &[]), &["`train.sample_prompts`"]);
}

#[test]
fn misspelled_choice_lists_the_choices_and_suggests_one() {
    let text = "[model]\nff_kind = \"swigul\"";
    assert_says(&message(text, &[]), &["my.toml:2", "`model.ff_kind`", "gelu_erf", "did you mean \"swiglu\"?"]);
    assert_says(&message("", &["model.positions=alibi"]), &["`model.positions`", "none, learned, sinusoidal, rope"]);
    assert_says(&message("[model]\nlayers = 1\nkind = \"gtp\"", &[]), &["my.toml:3", "\"gtp\"", "\"gpt\""]);
    assert_says(&message("[model]\nkind = 3", &[]), &["my.toml:2", "`model.kind` expects text"]);
}

#[test]
fn broken_toml_names_file_and_line() {
    assert_says(&message("[model]\nlayers = \n", &[]), &["my.toml:2"]);
    assert_says(&message("[model]\nlayers = 1\nlayers = 2\n", &[]), &["my.toml:3"]);
}

#[test]
fn impossible_shapes_and_ranges_are_refused_with_the_numbers() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["model.width=65"], &["model.width = 65", "model.heads = 4", "68"]),
        (&["model.kv_heads=3"], &["model.heads = 4", "model.kv_heads = 3"]),
        (&["model.kv_heads=8"], &["model.kv_heads = 8"]),
        (&["model.width=60"], &["rope", "15", "odd"]),
        (&["model.heads=0"], &["model.heads is 0"]),
        (&["model.context=0"], &["model.context is 0"]),
        (&["model.dropout=1.0"], &["model.dropout = 1"]),
        (&["model.dropout=nan"], &["model.dropout = NaN"]),
        (&["model.norm_eps=0"], &["model.norm_eps"]),
        (&["model.width=99999999999"], &["model.width"]),
        (&["train.steps=0"], &["train.steps is 0"]),
        (&["train.batch_size=0"], &["train.batch_size is 0"]),
        (&["optimizer.beta2=1"], &["optimizer.beta2"]),
        (&["schedule.lr=-1"], &["schedule.lr"]),
        (&["schedule.min_lr=1"], &["schedule.min_lr = 1", "schedule.lr"]),
        (&["tokenizer.vocab_size=100"], &["tokenizer.vocab_size = 100", "256"]),
        (&["tokenizer.kind=file"], &["tokenizer.path"]),
        (&["data.val_fraction=1"], &["data.val_fraction"]),
        (&["data.source=x.txt", "data.batching=packed"], &["data.batching", "x.txt"]),
        (&["data.heldout=person:9th"], &["data.heldout", "9th"]),
        (&["train.patience=3", "train.eval_interval=0"], &["train.patience", "train.eval_interval"]),
    ];
    for (sets, parts) in cases {
        assert_says(&message("", sets), parts);
    }
    let odd_without_rope = ["model.width=60".to_string(), "model.positions=learned".into()];
    assert!(Config::parse("", "x", &odd_without_rope).is_ok());
}

#[test]
fn a_vocabulary_smaller_than_the_tokenizer_is_refused() {
    let mut config = Config::parse("", "x", &["model.vocab_size=64".into()]).unwrap();
    config.set_vocab_size(60).unwrap();
    assert_eq!(config.model.vocab_size(), 64);
    let error = config.set_vocab_size(65).unwrap_err().to_string();
    assert_says(&error, &["model.vocab_size = 64", "65 tokens"]);
}

#[test]
fn a_name_that_is_neither_file_nor_preset_gets_a_suggestion() {
    let error = Config::load("minigtp", &[]).unwrap_err().to_string();
    assert_says(&error, &["`minigtp`", "did you mean `minigpt`?"]);
    let error = Config::load("/no/such/dir", &[]).unwrap_err().to_string();
    assert_says(&error, &["neither a file nor a preset"]);
}

#[test]
fn a_file_is_loaded_by_path_and_named_by_its_stem() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.toml");
    std::fs::write(&path, "[model]\nlayers = 1\n").unwrap();
    let (config, name) = Config::load(path.to_str().unwrap(), &["model.layers=5".into()]).unwrap();
    assert_eq!((gpt(&config).layers, name.as_str()), (5, "tiny"));
}
