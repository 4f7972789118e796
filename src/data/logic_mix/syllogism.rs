//! Arguments of twelve forms, six of them valid, about everyday clauses and nouns.

use super::Document;
use super::draws::Draws;

pub const CLAUSES: [&str; 24] = [
    "it rains",
    "the ground is wet",
    "the lamp is on",
    "the door is open",
    "the alarm rings",
    "the engine runs",
    "the river rises",
    "the bell sounds",
    "the code compiles",
    "the test passes",
    "the cache is full",
    "the disk is slow",
    "the light is red",
    "the cars stop",
    "the sun sets",
    "the air cools",
    "the fire burns",
    "smoke appears",
    "the key turns",
    "the lock opens",
    "the wind blows",
    "the sail fills",
    "the ice melts",
    "the lake fills",
];

pub const NOUNS: [&str; 40] = [
    "cats", "poets", "stones", "rivers", "judges", "robots", "birds", "miners", "clocks", "planets", "doctors",
    "singers", "trees", "wolves", "bakers", "pilots", "coins", "ships", "writers", "farmers", "lamps", "horses",
    "keys", "monks", "players", "dancers", "tools", "guards", "bridges", "apples", "chairs", "sailors", "gems",
    "painters", "hens", "towers", "drums", "nurses", "foxes", "boxes",
];

/// Nouns that no training text has, for tests of what was learnt.
pub const HELD_OUT_NOUNS: [&str; 10] =
    ["kings", "rockets", "violins", "camels", "tailors", "lanterns", "otters", "barrels", "scribes", "tunnels"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    ModusPonens,
    ModusTollens,
    Hypothetical,
    AffirmingConsequent,
    DenyingAntecedent,
    Unrelated,
    Barbara,
    Celarent,
    Darii,
    UndistributedMiddle,
    IllicitMajor,
    ExistentialGap,
}

use Form::*;

impl Form {
    /// In the order of their numbers.
    pub const ALL: [Form; 12] = [
        ModusPonens,
        ModusTollens,
        Hypothetical,
        AffirmingConsequent,
        DenyingAntecedent,
        Unrelated,
        Barbara,
        Celarent,
        Darii,
        UndistributedMiddle,
        IllicitMajor,
        ExistentialGap,
    ];

    pub fn name(self) -> &'static str {
        match self {
            ModusPonens => "modus ponens",
            ModusTollens => "modus tollens",
            Hypothetical => "hypothetical syllogism",
            AffirmingConsequent => "affirming the consequent",
            DenyingAntecedent => "denying the antecedent",
            Unrelated => "unrelated premise",
            Barbara => "Barbara",
            Celarent => "Celarent",
            Darii => "Darii",
            UndistributedMiddle => "undistributed middle",
            IllicitMajor => "illicit major",
            ExistentialGap => "existential gap",
        }
    }

    pub fn valid(self) -> bool {
        matches!(self, ModusPonens | ModusTollens | Hypothetical | Barbara | Celarent | Darii)
    }

    /// Whether it speaks of clauses (if P then Q) rather than of nouns (all A are B).
    pub fn of_clauses(self) -> bool {
        self <= Unrelated
    }

    /// Whether it has a third term.
    pub fn three_terms(self) -> bool {
        !self.of_clauses() || matches!(self, Hypothetical | Unrelated)
    }
}

/// "the lamp is not on", "it is not the case that it rains".
pub fn negated(clause: &str) -> String {
    if clause.contains(" is ") {
        clause.replacen(" is ", " is not ", 1)
    } else if clause.contains(" are ") {
        clause.replacen(" are ", " are not ", 1)
    } else {
        format!("it is not the case that {clause}")
    }
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or(String::new(), |first| first.to_uppercase().chain(characters).collect())
}

/// An argument about three terms, the third of which forms of two do not use.
#[derive(Clone, Copy, Debug)]
pub struct Argument<'a> {
    pub form: Form,
    pub terms: [&'a str; 3],
}

impl Argument<'_> {
    pub fn premises(&self) -> String {
        let [p, q, r] = self.terms;
        match self.form {
            ModusPonens => format!("If {p} then {q}. We know {p}."),
            ModusTollens => format!("If {p} then {q}. We know {}.", negated(q)),
            Hypothetical => format!("If {p} then {q}. If {q} then {r}. We know {p}."),
            AffirmingConsequent => format!("If {p} then {q}. We know {q}."),
            DenyingAntecedent => format!("If {p} then {q}. We know {}.", negated(p)),
            Unrelated => format!("If {p} then {q}. If {r} then {q}. We know {p}."),
            Barbara => format!("All {p} are {q}. All {q} are {r}."),
            Celarent => format!("All {p} are {q}. No {q} are {r}."),
            Darii => format!("Some {p} are {q}. All {q} are {r}."),
            UndistributedMiddle => format!("All {p} are {q}. All {r} are {q}."),
            IllicitMajor => format!("All {p} are {q}. No {r} are {p}."),
            ExistentialGap => format!("Some {p} are {q}. Some {q} are {r}."),
        }
    }

    pub fn conclusion(&self) -> String {
        let [p, q, r] = self.terms;
        match self.form {
            ModusPonens => q.to_owned(),
            ModusTollens => negated(p),
            Hypothetical | Unrelated => r.to_owned(),
            AffirmingConsequent => p.to_owned(),
            DenyingAntecedent => negated(q),
            Barbara | UndistributedMiddle => format!("all {p} are {r}"),
            Celarent => format!("no {p} are {r}"),
            Darii | ExistentialGap => format!("some {p} are {r}"),
            IllicitMajor => format!("no {r} are {q}"),
        }
    }

    pub fn reason(&self) -> String {
        let [p, q, r] = self.terms;
        capitalised(&match self.form {
            ModusPonens => format!("If {p} then {q}; {p} is true."),
            ModusTollens => format!("If {p} then {q}; the consequent is false."),
            Hypothetical => format!("{p} gives {q}, and {q} gives {r}."),
            AffirmingConsequent => format!("{q} may have another cause."),
            DenyingAntecedent => format!("{q} may still hold for another reason."),
            Unrelated => format!("nothing links {p} to {r}."),
            Barbara => format!("{p} lie inside {q}, and {q} lie inside {r}."),
            Celarent => format!("{p} lie inside {q}, and {q} never meet {r}."),
            Darii => format!("the {p} that are {q} are also {r}."),
            UndistributedMiddle => format!("{p} and {r} both lie in {q} but need not meet."),
            IllicitMajor => format!("{r} may be {q} without being {p}."),
            ExistentialGap => format!("the {q} in question may differ."),
        })
    }

    pub fn question(&self, wording: u64) -> String {
        let x = self.conclusion();
        let ask = match wording {
            0 => format!("Does it follow that {x}?"),
            1 => format!("Can we conclude that {x}?"),
            _ => format!("Is it certain that {x}?"),
        };
        format!("{} {ask}", self.premises())
    }

    pub fn verdict(&self) -> String {
        if self.form.valid() {
            format!("Thus {}. Valid.", self.conclusion())
        } else {
            "Thus nothing follows. Invalid.".to_owned()
        }
    }

    pub fn text(&self, wording: u64) -> String {
        let steps = [format!("This is {}.", self.form.name()), self.reason()];
        super::dialogue(&self.question(wording), &steps, &self.verdict())
    }
}

/// An argument drawn from `nouns` (clauses are always [`CLAUSES`]).
#[derive(Clone, Debug)]
pub struct Drawn {
    pub form: Form,
    /// Places in the list of clauses or nouns: two or three.
    pub places: Vec<u64>,
    pub wording: u64,
    pub bits: f64,
}

impl Drawn {
    /// What decides the split: form and terms.
    pub fn key(&self) -> String {
        let third = self.places.get(2).map_or(String::new(), u64::to_string);
        format!("s{}|{}|{}|{third}", self.form as usize, self.places[0], self.places[1])
    }

    pub fn argument<'a>(&self, nouns: &[&'a str]) -> Argument<'a> {
        let term = |i: usize| {
            let Some(&place) = self.places.get(i) else { return "" };
            if self.form.of_clauses() { CLAUSES[place as usize] } else { nouns[place as usize] }
        };
        Argument { form: self.form, terms: [term(0), term(1), term(2)] }
    }
}

pub fn draw(draws: &mut Draws, nouns: usize) -> Drawn {
    let form = Form::ALL[draws.below(12) as usize];
    draw_of(draws, form, nouns)
}

/// Draws terms and wording of an argument of a given form.
pub fn draw_of(draws: &mut Draws, form: Form, nouns: usize) -> Drawn {
    let n = if form.of_clauses() { CLAUSES.len() } else { nouns };
    let terms = if form.three_terms() { 3 } else { 2 };
    let places = draws.distinct(terms, n as u64);
    let ways: f64 = (0..terms).map(|taken| (n - taken) as f64).product();
    Drawn { form, places, wording: draws.below(3), bits: (12.0 * ways * 3.0).log2() }
}

pub fn document(draws: &mut Draws) -> Document {
    let drawn = draw(draws, NOUNS.len());
    Document { key: drawn.key(), text: drawn.argument(&NOUNS).text(drawn.wording), bits: drawn.bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_read_as_described() {
        let text = |form, terms| Argument { form, terms }.text(0);
        assert_eq!(
            text(ModusTollens, ["it rains", "the ground is wet", ""]),
            "User: If it rains then the ground is wet. We know the ground is not wet. \
             Does it follow that it is not the case that it rains?\nCoeus: Step 1: This is modus tollens. \
             Step 2: If it rains then the ground is wet; the consequent is false. \
             Thus it is not the case that it rains. Valid.\n\n"
        );
        assert_eq!(
            text(IllicitMajor, ["cats", "poets", "stones"]),
            "User: All cats are poets. No stones are cats. Does it follow that no stones are poets?\n\
             Coeus: Step 1: This is illicit major. Step 2: Stones may be poets without being cats. \
             Thus nothing follows. Invalid.\n\n"
        );
    }

    /// Sets over three elements are models of an argument about nouns: it is valid exactly if no model has true premises and a
    /// false conclusion (with as many kinds of things as three terms can tell apart). Clauses likewise, by truth values.
    #[test]
    fn what_is_called_valid_is_valid_and_what_is_not_has_a_counterexample() {
        for form in Form::ALL {
            let mut counterexample = false;
            if form.of_clauses() {
                for world in 0..8u32 {
                    let [p, q, r] = [world & 1 != 0, world & 2 != 0, world & 4 != 0];
                    let implies = |x: bool, y: bool| !x || y;
                    let (premises, conclusion) = match form {
                        ModusPonens => (implies(p, q) && p, q),
                        ModusTollens => (implies(p, q) && !q, !p),
                        Hypothetical => (implies(p, q) && implies(q, r) && p, r),
                        AffirmingConsequent => (implies(p, q) && q, p),
                        DenyingAntecedent => (implies(p, q) && !p, !q),
                        _ => (implies(p, q) && implies(r, q) && p, r),
                    };
                    counterexample |= premises && !conclusion;
                }
            } else {
                // Which of the eight kinds of thing (in or out of A, B, C) exist.
                for world in 0..256u32 {
                    let there = |kind: u32| world >> kind & 1 != 0;
                    let all = |x: u32, y: u32| (0..8).all(|k| !there(k) || k >> x & 1 == 0 || k >> y & 1 == 1);
                    let some = |x: u32, y: u32| (0..8).any(|k| there(k) && k >> x & 1 == 1 && k >> y & 1 == 1);
                    let (a, b, c) = (0, 1, 2);
                    let (premises, conclusion) = match form {
                        Barbara => (all(a, b) && all(b, c), all(a, c)),
                        Celarent => (all(a, b) && !some(b, c), !some(a, c)),
                        Darii => (some(a, b) && all(b, c), some(a, c)),
                        UndistributedMiddle => (all(a, b) && all(c, b), all(a, c)),
                        IllicitMajor => (all(a, b) && !some(c, a), !some(c, b)),
                        _ => (some(a, b) && some(b, c), some(a, c)),
                    };
                    counterexample |= premises && !conclusion;
                }
            }
            assert_eq!(form.valid(), !counterexample, "{}", form.name());
        }
    }

    #[test]
    fn held_out_nouns_are_in_no_training_text() {
        for noun in HELD_OUT_NOUNS {
            assert!(!NOUNS.contains(&noun) && !CLAUSES.iter().any(|c| c.contains(noun)));
        }
    }
}
