//! "Did you mean …?"

/// The known name nearest to `name`, when it is near enough to be a slip of the fingers.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = plain(name);
    known
        .into_iter()
        .map(|candidate| (distance(&name, &plain(candidate)), candidate))
        .filter(|&(distance, candidate)| distance <= (candidate.chars().count() / 3).max(1))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// A clause that names the nearest known name, or nothing.
pub(crate) fn hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, known).map_or_else(String::new, |near| format!(" (did you mean {near:?}?)"))
}

/// Lower case, and the separators people confuse made one.
fn plain(name: &str) -> Vec<char> {
    name.to_lowercase()
        .chars()
        .map(|c| if c == '_' { '-' } else { c })
        .take(64)
        .collect()
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`
/// (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let known = ["temperature", "top-k", "top-p", "min-p", "greedy"];
        assert_eq!(nearest("temprature", known), Some("temperature"));
        assert_eq!(nearest("top_k", known), Some("top-k"));
        assert_eq!(nearest("Top-P", known), Some("top-p"));
        assert_eq!(nearest("gredey", known), Some("greedy"));
        assert_eq!(nearest("snapkv", known), None);
        assert_eq!(nearest("", known), None);
    }

    #[test]
    fn distances_by_hand() {
        let distance = |a, b| distance(&plain(a), &plain(b));
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "acb"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
