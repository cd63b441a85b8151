//! Chat templates: conversations to prompts, as the models' authors wrote them for Python's Jinja.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde::{Deserialize, Serialize};

use crate::TextError;
use crate::moment::Moment;
use crate::python;

/// Longest template source, in bytes; real ones stay below a tenth of it.
const MAX_SOURCE: usize = 1 << 20;
/// What rendering may cost before it is stopped: steps, and one more for every 64 bytes created.
/// To this comes an allowance for what the conversation itself brings.
const BASE_FUEL: u64 = 2_000_000;
const FUEL_PER_MESSAGE: u64 = 20_000;

/// The name under which the error of `raise_exception` travels through the template engine.
const REFUSAL: &str = "refused by the template: ";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else a template knows.
    pub role: String,
    /// Text, or whatever the template takes (a list of parts); absent in some tool calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<serde_json::Value>,
    /// Further fields, such as `tool_calls` or `reasoning_content`.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// Whether the rendering ends with the opening of the model's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// It does: the model is to answer.
    Add,
    /// It ends with the last message.
    Omit,
}

/// What a template sees beside the messages.
#[derive(Debug, Clone)]
pub struct TemplateVars {
    /// The text of the begin-of-sequence token, or nothing.
    pub bos_token: String,
    /// The text of the end-of-sequence token, or nothing.
    pub eos_token: String,
    /// Whether the model is to answer.
    pub generation_prompt: GenerationPrompt,
    /// A list of tools in JSON schema, if the model is to have any.
    pub tools: Option<serde_json::Value>,
    /// The date and time for `strftime_now`.
    pub now: Moment,
    /// Further variables, such as `enable_thinking` or `date_string`.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
}

impl Message {
    /// A message with text and nothing else.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let content = Some(serde_json::Value::String(content.into()));
        Self {
            role: role.into(),
            content,
            extra: serde_json::Map::new(),
        }
    }
}

impl TemplateVars {
    /// The special tokens' texts, a prompt for an answer, no tools.
    pub fn new(bos_token: impl Into<String>, eos_token: impl Into<String>, now: Moment) -> Self {
        Self {
            bos_token: bos_token.into(),
            eos_token: eos_token.into(),
            generation_prompt: GenerationPrompt::Add,
            tools: None,
            now,
            extra: serde_json::Map::new(),
        }
    }
}

impl ChatTemplate {
    /// The template for models that bring none: every message under a line with its role.
    ///
    /// ```text
    /// ### User:
    /// Who wrote it?
    ///
    /// ### Assistant:
    /// ```
    pub const PLAIN: &str = "{{ bos_token }}{% for message in messages %}\
        {{ '### ' ~ message.role | capitalize ~ ':\n' ~ message.content ~ '\n\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}";

    /// Compiles a template, with the settings chat templates are written for.
    ///
    /// # Errors
    /// Syntax that does not parse, with its line; a source that is absurdly long.
    pub fn new(source: &str) -> Result<Self, TextError> {
        if source.len() > MAX_SOURCE {
            let length = source.len();
            return Err(TextError::TemplateSyntax(format!(
                "it is {length} bytes long; at most {MAX_SOURCE} are read"
            )));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(syntax_error)?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, _, value| {
            if value.is_undefined() {
                return Ok(());
            }
            match value.as_str() {
                Some(text) => out.write_str(text)?,
                None => out.write_str(&python::to_str(value)?)?,
            }
            Ok(())
        });
        environment.add_filter("tojson", python::tojson);
        environment.add_filter("string", |value: &Value| {
            python::to_str(value).map(Value::from)
        });
        environment.add_function(
            "raise_exception",
            |message: &Value| -> Result<Value, Error> {
                Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("{REFUSAL}{message}"),
                ))
            },
        );
        environment
            .add_template_owned("chat", without_generation_tags(source))
            .map_err(syntax_error)?;
        Ok(Self {
            source: source.to_owned(),
            environment,
        })
    }

    /// The template as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for `messages`.
    ///
    /// # Errors
    /// [`TextError::TemplateRefused`] when the template raises an exception of its own (roles that
    /// do not alternate, say), [`TextError::TemplateRender`] when it fails or runs past a budget of
    /// steps and memory that grows with the conversation.
    pub fn render(&self, messages: &[Message], vars: &TemplateVars) -> Result<String, TextError> {
        let mut environment = self.environment.clone();
        let now = vars.now;
        environment.add_function("strftime_now", move |format: &str| {
            now.strftime(format)
                .map_err(|error| Error::new(ErrorKind::InvalidOperation, error))
        });
        let mut context = serde_json::Map::new();
        // Templates ask whether these are none, not whether they are defined.
        context.insert("tools".into(), vars.tools.clone().unwrap_or_default());
        context.insert("documents".into(), serde_json::Value::Null);
        for (name, token) in [
            ("bos_token", &vars.bos_token),
            ("eos_token", &vars.eos_token),
        ] {
            context.insert(name.into(), token.as_str().into());
        }
        let add = vars.generation_prompt == GenerationPrompt::Add;
        context.insert("add_generation_prompt".into(), add.into());
        context.extend(vars.extra.clone());
        let messages_value = serde_json::to_value(messages)
            .map_err(|error| TextError::TemplateRender(error.to_string()))?;
        context.insert("messages".into(), messages_value);

        let bytes = text_bytes(&serde_json::Value::Object(context.clone()));
        let fuel = BASE_FUEL + messages.len() as u64 * FUEL_PER_MESSAGE + bytes as u64;
        environment.set_fuel(Some(fuel));
        let template = environment.get_template("chat").map_err(render_error)?;
        template
            .render(Value::from(Serde(&context)))
            .map_err(render_error)
    }
}

fn syntax_error(error: Error) -> TextError {
    TextError::TemplateSyntax(describe(&error))
}

fn render_error(error: Error) -> TextError {
    // A refusal from inside a loop or macro may have become the source of another error.
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        let detail = current.downcast_ref::<Error>().and_then(Error::detail);
        if let Some(message) = detail.and_then(|detail| detail.strip_prefix(REFUSAL)) {
            return TextError::TemplateRefused(message.to_owned());
        }
        cause = current.source();
    }
    TextError::TemplateRender(describe(&error))
}

fn describe(error: &Error) -> String {
    let line = error
        .line()
        .map(|line| format!("line {line}: "))
        .unwrap_or_default();
    let detail = error
        .detail()
        .map(|detail| format!(": {detail}"))
        .unwrap_or_default();
    format!("{line}{}{detail}", error.kind())
}

/// Bytes of all texts in `value`.
fn text_bytes(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(text) => text.len(),
        serde_json::Value::Array(items) => items.iter().map(text_bytes).sum(),
        serde_json::Value::Object(map) => map.iter().map(|(k, v)| k.len() + text_bytes(v)).sum(),
        _ => 8,
    }
}

/// Templates made for training mark the answers with `{% generation %}`…`{% endgeneration %}`,
/// which prints nothing; blocks that always run take their place.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else {
            break;
        };
        let inner = &rest[start + 2..start + len];
        let word = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let replaced = match word {
            "generation" => inner.replace("generation", "if true"),
            "endgeneration" => inner.replace("endgeneration", "endif"),
            _ => inner.to_owned(),
        };
        out.push_str(&rest[..start + 2]);
        out.push_str(&replaced);
        out.push_str("%}");
        rest = &rest[start + len + 2..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[Message]) -> Result<String, TextError> {
        let vars = TemplateVars::new("<s>", "</s>", Moment::from_unix(1_722_816_305));
        ChatTemplate::new(source)?.render(messages, &vars)
    }

    #[test]
    fn the_plain_template_heads_every_message_with_its_role() {
        let messages = [
            Message::new("system", "Be brief."),
            Message::new("user", "Who?"),
        ];
        let text = render(ChatTemplate::PLAIN, &messages).unwrap();
        assert_eq!(
            text,
            "<s>### System:\nBe brief.\n\n### User:\nWho?\n\n### Assistant:\n"
        );
    }

    #[test]
    fn python_ways_of_templates_work() {
        let one = [Message::new("user", "a<think>b")];
        let cases = [
            ("{{ strftime_now('%d %b %Y') }}", "05 Aug 2024"),
            ("{{ messages[0].content.split('<think>')[-1] }}", "b"),
            (
                "{{ messages[::-1] | length }}{{ true }} {{ none }}",
                "1True None",
            ),
            (
                "{{ {'a': 1.0, 'b': 'é<'} | tojson }}",
                "{\"a\": 1.0, \"b\": \"é<\"}",
            ),
            (
                "{{ {'a': [1]} | tojson(indent=2) }}",
                "{\n  \"a\": [\n    1\n  ]\n}",
            ),
            (
                "{{ {'b': 'é', 'a': []} | tojson(true, sort_keys=true) }}",
                "{\"a\": [], \"b\": \"\\u00e9\"}",
            ),
            ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
            (
                "{% for x in [1,2,3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
                "1",
            ),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = 5 %}{% endfor %}{{ ns.n }}",
                "5",
            ),
            ("{%- generation -%} x {%- endgeneration -%} y", "xy"),
            ("  {% if true %}\nline\n  {% endif %}\n", "line\n"),
            ("{{ tools is none }}{{ nothing }}{{ bos_token }}", "True<s>"),
            (
                "{% for k, v in messages[0].items() %}{{ k }};{% endfor %}",
                "role;content;",
            ),
            (
                "{{ messages[0]['content'][1:-1] }}{{ ' x\n'.strip() }}",
                "<think>x",
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source, &one).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn hostile_templates_end_in_errors() {
        assert!(matches!(
            ChatTemplate::new("{% if %}"),
            Err(TextError::TemplateSyntax(_))
        ));
        assert!(ChatTemplate::new(&" ".repeat(MAX_SOURCE + 1)).is_err());
        let runaway = [
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
            "{{ 'x' * 99999999999 }}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% set ns = namespace(s='x') %}{% for a in range(200) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "{{ range(99999999) | list | tojson }}",
        ];
        for source in runaway {
            let result = render(source, &[]);
            assert!(
                matches!(result, Err(TextError::TemplateRender(_))),
                "{source}: {result:?}"
            );
        }
        let refused = render(
            "{% for i in [1] %}{{ raise_exception('No ' ~ i) }}{% endfor %}",
            &[],
        );
        assert!(matches!(refused, Err(TextError::TemplateRefused(text)) if text == "No 1"));
        assert!(render(&"{% if true %}".repeat(5_000), &[]).is_err());
        assert!(render("{{ messages[0].content.nothing.more }}", &[]).is_err());
    }
}
