//! `longview models`: what is on this machine already.

use serde_json::json;

use crate::args::Format;
use crate::failure::Failure;
use crate::installed::Places;
use crate::output;
use longview::human_bytes;

/// Prints the models that `--model` takes by name.
pub(crate) fn run(format: Format) -> Result<(), Failure> {
    let places = Places::of_user();
    let models = places.list();
    if format == Format::Json {
        let searched: Vec<String> = places
            .folders()
            .map(|folder| folder.display().to_string())
            .collect();
        return output::print_json(&json!({ "models": models, "searched": searched }));
    }
    if models.is_empty() {
        let mut text = "no models on this machine; looked into:\n".to_owned();
        for folder in places.folders() {
            text.push_str(&format!("  {}\n", folder.display()));
        }
        text.push_str("without --model, the reference model inside the program is used\n");
        return output::print(&text);
    }
    let mut rows = vec![["NAME", "SIZE", "FROM", "PATH"].map(str::to_owned).to_vec()];
    for model in models {
        let from = match model.source {
            crate::installed::Source::HuggingFace => "Hugging Face",
            crate::installed::Source::Ollama => "Ollama",
            crate::installed::Source::LmStudio => "LM Studio",
        };
        let path = model.path.display().to_string();
        rows.push(vec![
            model.name,
            human_bytes(model.bytes),
            from.to_owned(),
            path,
        ]);
    }
    output::print(&output::table(&rows, &[1]))
}
