//! Spaces and line breaks around an answer, which chat models open and close with and nobody wants.

/// Takes them off a text that comes in pieces.
#[derive(Debug, Default)]
pub(crate) struct Trimmer {
    begun: bool,
    /// Spaces that are part of the text if more of it comes.
    held: String,
}

impl Trimmer {
    /// Takes the next piece; returns what is certain.
    pub(crate) fn push(&mut self, text: &str) -> String {
        let text = match self.begun {
            true => text,
            false => text.trim_start(),
        };
        let solid = text.trim_end();
        if solid.is_empty() {
            if self.begun {
                self.held.push_str(text);
            }
            return String::new();
        }
        self.begun = true;
        let mut out = std::mem::take(&mut self.held);
        out.push_str(solid);
        self.held.push_str(&text[solid.len()..]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_edges_go() {
        let mut trimmer = Trimmer::default();
        let pieces = [" ", "\n a", " b ", "\n\n", "c", " ", "\n"];
        let out: String = pieces.iter().map(|piece| trimmer.push(piece)).collect();
        assert_eq!(out, "a b \n\nc");
    }
}
