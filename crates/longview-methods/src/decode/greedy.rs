//! Greedy choice: the most likely token, and among equals the one with the lowest id.

use longview_engine::sampling::Finish;

use crate::method::{Build, Method, Stage};

/// `greedy`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Decode,
    name: "greedy",
    exact: true,
    paper: None,
    claim: None,
    doc: "chooses the most likely token; ends a chain",
    parameters: &[],
    build: Build::Finish(|_| Finish::Greedy),
};

#[cfg(test)]
mod tests {
    use crate::decode::Decode;

    #[test]
    fn the_lowest_id_wins_a_tie() {
        let mut chain = Decode::greedy().chain();
        assert_eq!(chain.pick(&[0.0, 4.0, 4.0], &[]).unwrap().id, 1);
    }
}
