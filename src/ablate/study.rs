//! The file of a study: rows of variants that differ in a few settings.
//!
//! ```toml
//! name = "gates"
//! base = "coeus-v2.6-tiny"          # preset or file every run starts from
//! data = "tinyshakespeare.txt"      # optional: as `train --data`
//! set = ["train.steps=1000"]        # settings of every run
//! seeds = [1, 2, 3]                 # each sets train.seed and data.seed
//!
//! [[row]]
//! name = "bias"
//! title = "Where the bias of the gates starts"
//! baseline = "3"
//! match_parameters = true           # model.ff_width is changed until variants have the baseline's parameters
//!
//! [[row.variant]]
//! name = "3"
//!
//! [[row.variant]]
//! name = "0"
//! set = ["model.forget_bias_low=0", "model.forget_bias_high=0"]
//! ```

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

/// What is compared, and with what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    pub name: String,
    #[serde(default)]
    pub title: String,
    /// Preset or file.
    pub base: String,
    /// Text file or built-in corpus, in place of the base's.
    pub data: Option<String>,
    /// Settings (`path.to.key=value`) of every run.
    #[serde(default)]
    pub set: Vec<String>,
    pub seeds: Vec<u64>,
    #[serde(rename = "row", default)]
    pub rows: Vec<Row>,
    /// What messages call the file.
    #[serde(skip)]
    pub origin: String,
}

/// Variants that are compared with one of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub name: String,
    #[serde(default)]
    pub title: String,
    /// A sentence or two for the report.
    #[serde(default)]
    pub note: String,
    /// In place of the study's.
    pub base: Option<String>,
    #[serde(default)]
    pub set: Vec<String>,
    /// Name of the variant that the others are compared with.
    pub baseline: String,
    /// `model.ff_width` of the other variants is changed until they have the baseline's parameters.
    #[serde(default)]
    pub match_parameters: bool,
    /// ... until a training step has the baseline's FLOPs.
    #[serde(default)]
    pub match_flops: bool,
    #[serde(rename = "variant", default)]
    pub variants: Vec<Variant>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    pub name: String,
    #[serde(default)]
    pub set: Vec<String>,
}

/// The studies built into the program: name and TOML.
pub const STUDIES: &[(&str, &str)] = &[("coeus-tiny", include_str!("../../configs/ablations/coeus-tiny.toml"))];

impl Study {
    /// Reads `source`: the path of a TOML file or the name of a built-in study.
    pub fn load(source: &str) -> Result<Self> {
        let path = Path::new(source);
        if path.is_file() {
            return Self::parse(&crate::train::files::read_text(path)?, source);
        }
        let Some((name, text)) = STUDIES.iter().find(|(name, _)| *name == source) else {
            let names: Vec<&str> = STUDIES.iter().map(|(name, _)| *name).collect();
            let names = names.join(", ");
            return Err(Error::Config(format!("`{source}` is neither a file nor a study; built-in studies: {names}")));
        };
        Self::parse(text, &format!("configs/ablations/{name}.toml"))
    }

    /// Reads TOML text; `origin` is what messages call it.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let mut study: Study = toml::from_str(text).map_err(|e| {
            let at = e.span().map_or(0, |span| span.start.min(text.len()));
            let line = 1 + text.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count();
            Error::Config(format!("{origin}:{line}: {}", e.message()))
        })?;
        study.origin = origin.into();
        study.validate()?;
        Ok(study)
    }

    /// The same study with other seeds.
    pub fn with_seeds(mut self, seeds: Vec<u64>) -> Result<Self> {
        self.seeds = seeds;
        self.validate()?;
        Ok(self)
    }

    fn validate(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Config(format!("{}: {message}", self.origin)));
        if slug(&self.name).is_empty() {
            return fail(format!("name = {:?} has no letter or digit", self.name));
        }
        if self.seeds.is_empty() {
            return fail("seeds is empty; give at least one, and three or more for an interval".into());
        }
        if let Some(seed) = self.seeds.iter().find(|&&seed| seed > i64::MAX as u64) {
            return fail(format!("the seed {seed} is larger than {}", i64::MAX));
        }
        if let Some(seed) = repeated(self.seeds.iter()) {
            return fail(format!("the seed {seed} is given twice: the same run would count as two"));
        }
        if self.rows.is_empty() {
            return fail("there is no [[row]]".into());
        }
        if let Some(row) = self.rows.iter().find(|row| slug(&row.name).is_empty()) {
            return fail(format!("a row's name, {:?}, has no letter or digit", row.name));
        }
        if let Some(name) = repeated(self.rows.iter().map(|row| slug(&row.name))) {
            return fail(format!("two rows are named `{name}` (letters and digits are what counts)"));
        }
        for row in &self.rows {
            let fail = |message: String| fail(format!("row `{}`: {message}", row.name));
            if row.name.contains(',') {
                return fail("a comma in its name, which separates the names after --rows".into());
            }
            if row.variants.len() < 2 {
                return fail(format!("{} variant(s); a comparison needs two or more", row.variants.len()));
            }
            if row.variants.iter().any(|v| slug(&v.name).is_empty()) {
                return fail("a variant's name has no letter or digit".into());
            }
            if let Some(name) = repeated(row.variants.iter().map(|v| slug(&v.name))) {
                return fail(format!("two variants are named `{name}` (letters and digits are what counts)"));
            }
            let names: Vec<&str> = row.variants.iter().map(|v| v.name.as_str()).collect();
            if !names.contains(&row.baseline.as_str()) {
                let (baseline, names) = (&row.baseline, names.join("`, `"));
                return fail(format!("baseline = \"{baseline}\" is none of its variants, which are `{names}`"));
            }
            if row.match_parameters && row.match_flops {
                return fail("match_parameters and match_flops both change model.ff_width; use one of them".into());
            }
            let sets_width = |set: &&String| set.split('=').next().is_some_and(|key| key.trim() == "model.ff_width");
            for variant in row.variants.iter().filter(|v| v.name != row.baseline) {
                if (row.match_parameters || row.match_flops)
                    && let Some(set) = variant.set.iter().find(sets_width)
                {
                    let what = if row.match_flops { "match_flops" } else { "match_parameters" };
                    return fail(format!("variant `{}`: `{set}` is what {what} would change", variant.name));
                }
            }
        }
        Ok(())
    }

    /// Keeps the named rows only.
    pub fn selected(&self, names: &[String]) -> Result<Vec<usize>> {
        if names.is_empty() {
            return Ok((0..self.rows.len()).collect());
        }
        let all = || self.rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>().join(", ");
        let find = |name: &String| {
            let found = self.rows.iter().position(|row| slug(&row.name) == slug(name));
            found.ok_or_else(|| Error::Config(format!("{}: no row `{name}`; rows: {}", self.origin, all())))
        };
        let chosen: BTreeSet<usize> = names.iter().map(find).collect::<Result<_>>()?;
        Ok(chosen.into_iter().collect())
    }
}

impl Row {
    /// Index of the baseline.
    pub fn baseline_index(&self) -> usize {
        self.variants.iter().position(|v| v.name == self.baseline).expect("checked when the file was read")
    }

    /// What a person calls the row.
    pub fn heading(&self) -> &str {
        if self.title.is_empty() { &self.name } else { &self.title }
    }
}

fn repeated<T: Ord>(items: impl Iterator<Item = T>) -> Option<T> {
    let mut items: Vec<T> = items.collect();
    items.sort();
    let at = items.windows(2).position(|pair| pair[0] == pair[1])?;
    Some(items.swap_remove(at))
}

/// A name as part of a path: lower case, with a dash for what is neither letter nor digit.
pub fn slug(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_alphanumeric() {
            out.extend(c.to_lowercase());
        } else if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
    }
    out.trim_end_matches('-').into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = 'x'\nbase = 'minigpt'\nseeds = [1]\n[[row]]\nname = 'a'\nbaseline = 'one'\n\
                        [[row.variant]]\nname = 'one'\n[[row.variant]]\nname = 'two'\nset = ['model.width=32']\n";

    fn message(text: &str) -> String {
        let error = Study::parse(text, "my.toml").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn a_study_that_cannot_be_is_refused_with_its_file_line_and_key() {
        assert!(Study::parse(GOOD, "my.toml").is_ok());
        for (from, to, words) in [
            ("base = ", "bass = ", ["my.toml:2:", "unknown field `bass`"]),
            ("seeds = [1]", "seeds = 'one'", ["my.toml:3:", "invalid type"]),
            ("seeds = [1]", "seeds = [2, 1, 2]", ["seed 2", "twice"]),
            ("seeds = [1]", "seeds = []", ["seeds is empty", "interval"]),
            ("baseline = 'one'", "baseline = 'three'", ["row `a`", "`one`, `two`"]),
            ("name = 'two'", "name = 'One'", ["row `a`", "two variants are named `one`"]),
            ("baseline = 'one'", "baseline = 'one'\nmatch = 1", ["my.toml:7:", "unknown field `match`"]),
            ("[[row.variant]]\nname = 'one'\n", "", ["row `a`", "two or more"]),
            (
                "baseline = 'one'",
                "baseline = 'one'\nmatch_flops = true\nmatch_parameters = true",
                ["row `a`", "use one of them"],
            ),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let text = message(&GOOD.replacen(from, to, 1));
            assert!(words.iter().all(|word| text.contains(word)), "{to}: {text}");
        }
        let both = GOOD.replacen("baseline = 'one'", "baseline = 'one'\nmatch_parameters = true", 1);
        let text = message(&both.replacen("model.width=32", "model.ff_width=32", 1));
        assert!(text.contains("variant `two`") && text.contains("match_parameters"), "{text}");
        let text = Study::load("coeus-tinny").unwrap_err().to_string();
        assert!(text.contains("neither a file nor a study") && text.contains("coeus-tiny"), "{text}");
    }

    #[test]
    fn rows_are_chosen_by_name_in_the_files_order() {
        let two = format!("{GOOD}{}", &GOOD[GOOD.find("[[row]]").unwrap()..].replacen("'a'", "'b'", 1));
        let study = Study::parse(&two, "my.toml").unwrap();
        assert_eq!(study.selected(&[]).unwrap(), [0, 1]);
        assert_eq!(study.selected(&["b".into(), "a".into(), "b".into()]).unwrap(), [0, 1]);
        let text = study.selected(&["c".into()]).unwrap_err().to_string();
        assert!(text.contains("no row `c`; rows: a, b"), "{text}");
    }

    #[test]
    fn names_become_parts_of_paths() {
        assert_eq!(["R = 2, equal FLOPs", "../..", "MLP half"].map(slug), ["r-2-equal-flops", "", "mlp-half"]);
    }
}
