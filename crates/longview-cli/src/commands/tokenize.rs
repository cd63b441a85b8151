//! `longview tokenize`: a text as the model sees it.

use std::fmt::Write;

use longview::{Specials, open_tokenizer};
use serde::Serialize;

use super::read_text;
use crate::args::{Format, TokenizeArgs};
use crate::failure::Failure;
use crate::output;

/// What `--json` prints.
#[derive(Serialize)]
struct Ids {
    ids: Vec<u32>,
}

/// Prints the token ids of a text.
pub(crate) fn run(args: &TokenizeArgs, format: Format) -> Result<(), Failure> {
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => read_text(file)?,
        (None, None) => String::new(),
    };
    let tokenizer = open_tokenizer(&args.model.source()?)?;
    let specials = if args.special_tokens {
        Specials::Parse
    } else {
        Specials::AsText
    };
    let mut ids = tokenizer.encode(&text, specials)?;
    if args.surround {
        ids = [tokenizer.prefix_ids(), &ids, tokenizer.suffix_ids()].concat();
    }
    match format {
        Format::Json => output::print_json(&Ids { ids }),
        Format::Text => {
            let mut line = String::new();
            for (at, id) in ids.iter().enumerate() {
                let space = if at == 0 { "" } else { " " };
                let _ = write!(line, "{space}{id}");
            }
            line.push('\n');
            output::print(&line)
        }
    }
}
