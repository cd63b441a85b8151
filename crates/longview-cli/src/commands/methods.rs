//! `longview methods`: the registry.

use longview::methods::{Method, Parameter, Role, Stage, registry};
use serde_json::json;

use crate::args::{Format, MethodsArgs};
use crate::failure::Failure;
use crate::output;

/// Prints every method of every stage, or of one.
pub(crate) fn run(args: &MethodsArgs, format: Format) -> Result<(), Failure> {
    let only = args.stage.map(Stage::from);
    let methods: Vec<&Method> = registry::all()
        .filter(|method| only.is_none_or(|stage| method.stage == stage))
        .collect();
    match format {
        Format::Json => output::print_json(&json!({ "methods": methods })),
        Format::Text => output::print(&text(&methods)),
    }
}

fn text(methods: &[&Method]) -> String {
    let mut text = String::new();
    for stage in Stage::ALL {
        let of_stage: Vec<_> = methods
            .iter()
            .filter(|method| method.stage == stage)
            .collect();
        if of_stage.is_empty() {
            continue;
        }
        let flag = match stage {
            Stage::Reuse => String::new(),
            stage => format!("  ({} METHOD)", stage.flag()),
        };
        text.push_str(&format!("{stage}{flag}\n"));
        for (index, method) in of_stage.iter().enumerate() {
            let default = if index == 0 { " [default]" } else { "" };
            let kind = match (method.role(), method.exact) {
                (Role::Method, true) => String::new(),
                (Role::Method, false) => " [approximate]".to_owned(),
                (role, _) => format!(" [as {}=]", role.parameter()),
            };
            text.push_str(&format!("  {}{default}{kind}\n", method.name));
            text.push_str(&format!("      {}\n", method.doc));
            for parameter in method.parameters {
                text.push_str(&format!("      {}\n", describe(parameter)));
            }
            if let Some(paper) = method.paper {
                text.push_str(&format!("      {paper}\n"));
            }
            if let Some(claim) = method.claim {
                text.push_str(&format!("      claimed there: {claim}\n"));
            }
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn describe(parameter: &Parameter) -> String {
    let mut line = format!("{}: {}", parameter.name, parameter.doc);
    if !parameter.unit.is_empty() {
        line.push_str(&format!(" ({})", parameter.unit));
    }
    if !parameter.default.is_empty() {
        line.push_str(&format!(" [default: {}]", parameter.default));
    }
    line
}
