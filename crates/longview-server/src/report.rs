//! What was measured of a request, and how it is said.

use longview::keep::KeepReport;
use longview::pattern::PrefillReport;
use longview::read::ReadReport;
use longview::schedule::{Ended, Summary};
use longview::{AttentionPicture, Explanation, ReuseEnd};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::app::App;

/// What was measured of a request: the field `longview` of its answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Report {
    /// Tokens of the prompt taken over from work done before, moved ones included.
    reused_tokens: usize,
    /// Those of them whose keys and values were computed for another place, under reuse `shift`: with any, the
    /// answer is approximate.
    moved_tokens: usize,
    /// Tokens of the prompt computed.
    computed_tokens: usize,
    /// Tokens computed again because others needed the memory meanwhile.
    reread_tokens: usize,
    seconds_queued: f64,
    seconds_of_prefill: f64,
    /// From the request's arrival; nothing where no token was written.
    seconds_to_first_token: Option<f64>,
    /// The longest time between two tokens of one of its texts.
    longest_gap_seconds: f64,
    /// Bytes of keys and values it held at its end.
    kv_bytes: u64,
    /// The method of each stage.
    #[schema(value_type = Object)]
    methods: Map<String, Value>,
    /// What should be known of what was dropped, moved, estimated or refused.
    notices: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep: Option<Kept>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read: Option<Reading>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill: Option<Attending>,
    /// Where the attention of the text that was complete last has rested, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    attention: Option<AttentionPicture>,
    /// What the store had of the prompt, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<Value>,
}

/// What is said about a request beside its texts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meta {
    pub(crate) truncated: usize,
    pub(crate) explanation: Option<Value>,
    pub(crate) methods: Map<String, Value>,
    pub(crate) notices: Vec<String>,
}

/// Tokens of a request, as OpenAI counts them.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) total_tokens: usize,
    pub(crate) prompt_tokens_details: PromptTokens,
    /// Tokens that were taken out of the middle of the prompt, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) truncated_tokens: Option<usize>,
}

/// Where the tokens of a prompt came from.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct PromptTokens {
    /// Those taken over from work done before.
    pub(crate) cached_tokens: usize,
}

/// What a keep method has dropped.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(crate) struct Kept {
    pairs_seen: u64,
    pairs_kept: u64,
    pairs_dropped: u64,
    stream_bytes: u64,
    compactions: usize,
    seconds: f64,
}

impl Kept {
    /// What one method says.
    pub(crate) fn of(report: &KeepReport) -> Kept {
        let mut kept = Kept::default();
        kept.add(report);
        kept
    }

    fn add(&mut self, report: &KeepReport) {
        self.pairs_seen += report.pairs_seen;
        self.pairs_kept += report.pairs_kept;
        self.pairs_dropped += report.pairs_seen - report.pairs_kept;
        self.stream_bytes += report.stream_bytes;
        self.compactions += report.compactions;
        self.seconds += report.time.as_secs_f64();
    }
}

/// What a read method has read.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(crate) struct Reading {
    pages_read: u64,
    pages_present: u64,
    index_bytes: u64,
}

impl Reading {
    fn add(&mut self, report: &ReadReport) {
        self.pages_read += report.pages_read;
        self.pages_present += report.pages_present;
        self.index_bytes = self.index_bytes.max(report.index_bytes);
    }
}

/// What a prefill pattern has left out: pages of 64 tokens that the tokens of prompts have read, of all KV heads of
/// the layers with full attention, and those that reading everything would have read.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(crate) struct Attending {
    pages_read: u64,
    pages_present: u64,
}

impl Attending {
    fn add(&mut self, report: &PrefillReport) {
        self.pages_read += report.pages_read;
        self.pages_present += report.pages_present;
    }
}

/// What was measured of all prompts of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Total {
    pub(crate) sum: Summary,
    seconds_to_first_token: Option<f64>,
    keep: Option<Kept>,
    read: Option<Reading>,
    prefill: Option<Attending>,
    /// Of the text that was complete last.
    attention: Option<AttentionPicture>,
}

impl Total {
    /// Adds one prompt's.
    pub(crate) fn add(&mut self, app: &App, ended: &Ended) {
        let summary = &ended.summary;
        app.metrics().ended(summary);
        if let Some(report) = &ended.keep {
            self.keep.get_or_insert_default().add(report);
        }
        if let Some(report) = &ended.read {
            self.read.get_or_insert_default().add(report);
        }
        if let Some(report) = &ended.prefill {
            self.prefill.get_or_insert_default().add(report);
        }
        if let Some(picture) = &ended.attention {
            self.attention = Some(picture.clone());
        }
        let sum = &mut self.sum;
        sum.prompt_tokens += summary.prompt_tokens;
        sum.reused_tokens += summary.reused_tokens;
        sum.moved_tokens += summary.moved_tokens;
        sum.generated_tokens += summary.generated_tokens;
        sum.reread_tokens += summary.reread_tokens;
        sum.kv_bytes += summary.kv_bytes;
        sum.queued = sum.queued.max(summary.queued);
        sum.prefill = sum.prefill.max(summary.prefill);
        sum.longest_gap = sum.longest_gap.max(summary.longest_gap);
        let first = summary.to_first_token.map(|first| first.as_secs_f64());
        self.seconds_to_first_token = match (self.seconds_to_first_token, first) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    /// As OpenAI counts.
    pub(crate) fn usage(&self, meta: &Meta) -> Usage {
        let sum = &self.sum;
        Usage {
            prompt_tokens: sum.prompt_tokens,
            completion_tokens: sum.generated_tokens,
            total_tokens: sum.prompt_tokens + sum.generated_tokens,
            prompt_tokens_details: PromptTokens {
                cached_tokens: sum.reused_tokens,
            },
            truncated_tokens: (meta.truncated > 0).then_some(meta.truncated),
        }
    }

    /// What only this server says.
    pub(crate) fn report(&self, meta: &Meta) -> Report {
        let sum = &self.sum;
        Report {
            reused_tokens: sum.reused_tokens,
            moved_tokens: sum.moved_tokens,
            computed_tokens: sum.prompt_tokens.saturating_sub(sum.reused_tokens),
            reread_tokens: sum.reread_tokens,
            seconds_queued: sum.queued.as_secs_f64(),
            seconds_of_prefill: sum.prefill.as_secs_f64(),
            seconds_to_first_token: self.seconds_to_first_token,
            longest_gap_seconds: sum.longest_gap.as_secs_f64(),
            kv_bytes: sum.kv_bytes,
            methods: meta.methods.clone(),
            notices: meta.notices.clone(),
            keep: self.keep,
            read: self.read,
            prefill: self.prefill,
            attention: self.attention.clone(),
            explain: meta.explanation.clone(),
        }
    }
}

/// What the store has of a prompt, in words and numbers.
pub(crate) fn explained(app: &App, explanation: &Explanation) -> Value {
    let mut places = Map::new();
    for place in &explanation.places {
        let count = places.get(place).and_then(Value::as_u64).unwrap_or(0);
        places.insert(place.clone(), (count + 1).into());
    }
    let shown = |tokens: &[u32]| app.engine().tokenizer().decode(tokens).unwrap_or_default();
    let end = match &explanation.end {
        ReuseEnd::Tail => json!({
            "reason": "tail",
            "text": "what is left does not fill a block of 64 tokens",
        }),
        ReuseEnd::NothingBeyond => json!({
            "reason": "nothing_beyond",
            "text": "nothing that was read goes on from here",
        }),
        ReuseEnd::Differs { token, stored } => json!({
            "reason": "differs",
            "token": token,
            "stored": shown(&stored[..stored.len().min(16)]),
            "text": format!("what was read before goes on otherwise at token {token}"),
        }),
        ReuseEnd::OtherIdentity(origins) => json!({
            "reason": "other_identity",
            "identities": origins.iter().map(|origin| &origin.identity).collect::<Vec<_>>(),
            "text": "it was read under other settings only",
        }),
        ReuseEnd::NoCheckpoint { full_tokens } => json!({
            "reason": "no_checkpoint",
            "tokens": full_tokens,
            "text": "more was read, but window or recurrent layers kept nothing to go on from there",
        }),
        ReuseEnd::SlowToRead { stored_tokens } => json!({
            "reason": "slow_to_read",
            "tokens": stored_tokens,
            "text": "more is stored, but reading it takes longer than computing it",
        }),
        _ => json!({ "reason": "other" }),
    };
    json!({
        "reusable_tokens": explanation.reused_tokens,
        "blocks_by_place": places,
        "seconds_to_read": explanation.seconds_to_read,
        "seconds_to_compute": explanation.seconds_to_compute,
        "end": end,
    })
}
