//! English and Spanish conjugation for the twenty verbs: regular rules plus the exceptions, standard Castilian.

use super::{Person, Tense};

/// One verb: its English and Spanish lemmas and whether each conjugates by rule alone.
#[derive(Debug, PartialEq, Eq)]
pub struct Verb {
    pub english: &'static str,
    pub spanish: &'static str,
    pub english_irregular: bool,
    pub spanish_irregular: bool,
}

const fn verb(english: &'static str, spanish: &'static str, en_irregular: bool, es_irregular: bool) -> Verb {
    Verb { english, spanish, english_irregular: en_irregular, spanish_irregular: es_irregular }
}

/// The inventory, in corpus order: twelve regular English verbs, then eight irregular ones.
pub const VERBS: [Verb; 20] = [
    verb("work", "trabajar", false, false),
    verb("play", "jugar", false, true),
    verb("walk", "caminar", false, false),
    verb("talk", "hablar", false, false),
    verb("listen", "escuchar", false, false),
    verb("watch", "mirar", false, false),
    verb("study", "estudiar", false, false),
    verb("finish", "terminar", false, false),
    verb("start", "empezar", false, true),
    verb("look", "mirar", false, false),
    verb("want", "querer", false, true),
    verb("like", "gustar", false, false),
    verb("be", "ser", true, true),
    verb("have", "tener", true, true),
    verb("do", "hacer", true, true),
    verb("go", "ir", true, true),
    verb("come", "venir", true, true),
    verb("see", "ver", true, true),
    verb("eat", "comer", true, false),
    // Regular but for its participle, which does not make the verb irregular in the usual classification.
    verb("write", "escribir", true, false),
];

pub fn find(lemma: &str) -> Option<&'static Verb> {
    VERBS.iter().find(|v| v.english == lemma)
}

pub const ENGLISH_PRONOUNS: [&str; 3] = ["I", "you", "he"];
pub const PRESENT_BE: [&str; 3] = ["am", "are", "is"];
pub const PAST_BE: [&str; 3] = ["was", "were", "was"];
pub const PERFECT_HAVE: [&str; 3] = ["have", "have", "has"];
const SPANISH_PRONOUNS: [&str; 3] = ["yo", "tú", "él"];
/// Dative pronouns of `gustar`, whose grammatical subject is the thing liked.
const SPANISH_DATIVES: [&str; 3] = ["me", "te", "le"];
const PRESENT_IR: [&str; 3] = ["voy", "vas", "va"];

fn ends_in_consonant_y(base: &str) -> bool {
    let mut reversed = base.chars().rev();
    reversed.next() == Some('y') && reversed.next().is_some_and(|c| !"aeiou".contains(c))
}

/// The regular past: `-d` after e, `-ied` for consonant + y, otherwise `-ed`. Also what a learner overextends.
pub fn regular_past(base: &str) -> String {
    if base.ends_with('e') {
        format!("{base}d")
    } else if ends_in_consonant_y(base) {
        format!("{}ied", &base[..base.len() - 1])
    } else {
        format!("{base}ed")
    }
}

fn third_person(base: &str) -> String {
    if base == "have" {
        "has".into()
    } else if ["sh", "ch", "s", "x", "z", "o"].iter().any(|ending| base.ends_with(ending)) {
        format!("{base}es")
    } else if ends_in_consonant_y(base) {
        format!("{}ies", &base[..base.len() - 1])
    } else {
        format!("{base}s")
    }
}

fn present(base: &str, person: Person) -> String {
    match (base, person) {
        ("be", _) => PRESENT_BE[person.index()].into(),
        (_, Person::Third) => third_person(base),
        _ => base.into(),
    }
}

fn past(base: &str, person: Person) -> String {
    let irregular = match base {
        "be" => PAST_BE[person.index()],
        "have" => "had",
        "do" => "did",
        "go" => "went",
        "come" => "came",
        "see" => "saw",
        "eat" => "ate",
        "write" => "wrote",
        _ => return regular_past(base),
    };
    irregular.into()
}

/// The past participle without its auxiliary.
pub fn participle(base: &str) -> String {
    let irregular = match base {
        "be" => "been",
        "have" => "had",
        "do" => "done",
        "go" => "gone",
        "come" => "come",
        "see" => "seen",
        "eat" => "eaten",
        "write" => "written",
        _ => return regular_past(base),
    };
    irregular.into()
}

/// The English sentence of a cell. Infinitive and participle carry no pronoun, so they are the same for all persons.
pub fn english(verb: &Verb, tense: Tense, person: Person) -> String {
    let base = verb.english;
    let pronoun = ENGLISH_PRONOUNS[person.index()];
    match tense {
        Tense::Infinitive => format!("to {base}"),
        Tense::PresentSimple => format!("{pronoun} {}", present(base, person)),
        Tense::PastSimple => format!("{pronoun} {}", past(base, person)),
        Tense::PastParticiple => participle(base),
        Tense::FutureWill => format!("{pronoun} will {base}"),
        Tense::FutureGoingTo => format!("{pronoun} {} going to {base}", PRESENT_BE[person.index()]),
    }
}

/// What a Spanish verb does not get from its ending: present, preterite, participle and future stem.
struct Exceptions {
    present: Option<[&'static str; 3]>,
    preterite: Option<[&'static str; 3]>,
    participle: Option<&'static str>,
    future_stem: Option<&'static str>,
}

fn exceptions(lemma: &str) -> Exceptions {
    let (present, preterite, participle, future_stem) = match lemma {
        "jugar" => (Some(["juego", "juegas", "juega"]), Some(["jugué", "jugaste", "jugó"]), None, None),
        "empezar" => (Some(["empiezo", "empiezas", "empieza"]), Some(["empecé", "empezaste", "empezó"]), None, None),
        "querer" => (Some(["quiero", "quieres", "quiere"]), Some(["quise", "quisiste", "quiso"]), None, Some("querr")),
        "ser" => (Some(["soy", "eres", "es"]), Some(["fui", "fuiste", "fue"]), None, None),
        "tener" => (Some(["tengo", "tienes", "tiene"]), Some(["tuve", "tuviste", "tuvo"]), None, Some("tendr")),
        "hacer" => (Some(["hago", "haces", "hace"]), Some(["hice", "hiciste", "hizo"]), Some("hecho"), Some("har")),
        "ir" => (Some(PRESENT_IR), Some(["fui", "fuiste", "fue"]), None, None),
        "venir" => (Some(["vengo", "vienes", "viene"]), Some(["vine", "viniste", "vino"]), None, Some("vendr")),
        "ver" => (Some(["veo", "ves", "ve"]), Some(["vi", "viste", "vio"]), Some("visto"), None),
        "escribir" => (None, None, Some("escrito"), None),
        _ => (None, None, None, None),
    };
    Exceptions { present, preterite, participle, future_stem }
}

/// The Spanish sentence of a cell. `gustar` inverts: "me gusta", "me va a gustar".
pub fn spanish(verb: &Verb, tense: Tense, person: Person) -> String {
    let lemma = verb.spanish;
    let i = person.index();
    // Every lemma of the inventory ends in two ASCII letters: -ar, -er or -ir.
    let (stem, ending) = lemma.split_at(lemma.len() - 2);
    let is_ar = ending == "ar";
    let exceptions = exceptions(lemma);
    // `gustar` agrees with what is liked (third person), whoever likes it.
    let (subject, form) = if lemma == "gustar" { (SPANISH_DATIVES[i], 2) } else { (SPANISH_PRONOUNS[i], i) };
    let regular = |endings: [&str; 3]| format!("{stem}{}", endings[form]);
    match tense {
        Tense::Infinitive => lemma.into(),
        Tense::PastParticiple => {
            exceptions.participle.map_or_else(|| format!("{stem}{}", if is_ar { "ado" } else { "ido" }), str::to_owned)
        }
        Tense::PresentSimple => {
            let endings = if is_ar { ["o", "as", "a"] } else { ["o", "es", "e"] };
            let word = exceptions.present.map_or_else(|| regular(endings), |forms| forms[form].to_owned());
            format!("{subject} {word}")
        }
        Tense::PastSimple => {
            let endings = if is_ar { ["é", "aste", "ó"] } else { ["í", "iste", "ió"] };
            let word = exceptions.preterite.map_or_else(|| regular(endings), |forms| forms[form].to_owned());
            format!("{subject} {word}")
        }
        Tense::FutureWill => {
            format!("{subject} {}{}", exceptions.future_stem.unwrap_or(lemma), ["é", "ás", "á"][form])
        }
        Tense::FutureGoingTo => format!("{subject} {} a {lemma}", PRESENT_IR[form]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(lemma: &str, tense: Tense, person: Person) -> (String, String) {
        let verb = find(lemma).unwrap();
        (english(verb, tense, person), spanish(verb, tense, person))
    }

    #[test]
    fn exceptions_and_spelling_rules_give_the_standard_forms() {
        use Person::*;
        use Tense::*;
        for (lemma, tense, person, en, es) in [
            ("study", PresentSimple, Third, "he studies", "él estudia"),
            ("play", PastSimple, First, "I played", "yo jugué"),
            ("watch", PresentSimple, Third, "he watches", "él mira"),
            ("go", PresentSimple, Third, "he goes", "él va"),
            ("have", PresentSimple, Third, "he has", "él tiene"),
            ("be", PastSimple, Second, "you were", "tú fuiste"),
            ("like", FutureGoingTo, First, "I am going to like", "me va a gustar"),
            ("like", PastSimple, Second, "you liked", "te gustó"),
            ("do", FutureWill, Second, "you will do", "tú harás"),
            ("write", PastParticiple, First, "written", "escrito"),
            ("eat", PastSimple, Third, "he ate", "él comió"),
            ("come", FutureWill, First, "I will come", "yo vendré"),
        ] {
            assert_eq!(both(lemma, tense, person), (en.to_owned(), es.to_owned()));
        }
    }
}
