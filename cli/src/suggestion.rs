//! Suggestions for misspelt words.

/// The lowest similarity of two words of which one may be meant by the other: between 0 and 1.
const MIN_SIMILARITY: f64 = 0.7;

/// Returns the word of `known` that `word` was probably meant to be.
pub(crate) fn suggest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

/// Returns `: did you mean "WORD"?` for a misspelt word, or nothing.
pub(crate) fn did_you_mean<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    suggest(word, known)
        .map(|candidate| format!(": did you mean {candidate:?}?"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_is_answered_with_the_nearest_one() {
        let known = ["handler", "image", "lang", "limits", "labels"];
        for (word, expected) in [
            ("hander", Some("handler")),
            ("imgae", Some("image")),
            ("xyz", None),
        ] {
            assert_eq!(suggest(word, known), expected, "{word}");
        }
    }
}
