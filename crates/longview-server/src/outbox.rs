//! From the thread that computes to the tasks that write to clients, without either waiting for
//! the other.
//!
//! News of a request are queued until its client takes them. A client that reads slowly makes the
//! queue longer and nothing else: progress replaces older progress and text is joined, so that what
//! is queued is never more than the answer itself.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use longview::FinishReason;
use longview::schedule::{Ended, Listener, Scored, Token, Update};
use tokio::sync::Notify;

use crate::queue::Permit;

/// So many pieces of text are queued as they are; beyond, they are joined.
const JOIN_BEYOND: usize = 64;

/// So many tokens with their probabilities are queued for a client that does not read; then it counts
/// as gone.
pub(crate) const MOST_TOKENS: usize = 1 << 16;

/// What a client is to know.
pub(crate) enum News {
    /// A prompt is being read; of `total` tokens `reused` were taken over.
    Started { reused: usize },
    /// So many tokens of it are read.
    Read { done: usize, total: usize },
    /// How likely the tokens of a prompt are, whose texts count from `first_answer`.
    Scored {
        first_answer: usize,
        tokens: Vec<Scored>,
    },
    /// More of a text. `tokens` is empty unless they were asked for.
    Text {
        answer: usize,
        text: String,
        tokens: Vec<Token>,
    },
    /// A text is complete.
    Finished {
        answer: usize,
        reason: FinishReason,
        /// The stop string that ended it.
        stop: Option<String>,
    },
    /// A request is over.
    Ended(Box<Ended>),
}

/// Whether single tokens are wanted, or their text alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    Text,
    Tokens,
}

/// Where a client takes news of one or several requests.
pub(crate) struct Inbox {
    shared: Arc<Shared>,
}

/// What a request tells its news to.
pub(crate) struct Ear {
    shared: Arc<Shared>,
    detail: Detail,
    /// Added to the numbers of its answers.
    first_answer: usize,
    /// Its part in its request's place in the queue, until it is started.
    permit: Option<Arc<Permit>>,
}

struct Shared {
    queue: Mutex<Queue>,
    notify: Notify,
    gone: AtomicBool,
    /// Whether that is because too much waits.
    too_slow: AtomicBool,
}

#[derive(Default)]
struct Queue {
    news: VecDeque<News>,
    /// Requests that are not over.
    open: usize,
    tokens: usize,
}

impl Inbox {
    /// One that nothing tells yet.
    pub(crate) fn new() -> Inbox {
        Inbox {
            shared: Arc::new(Shared {
                queue: Mutex::default(),
                notify: Notify::new(),
                gone: AtomicBool::new(false),
                too_slow: AtomicBool::new(false),
            }),
        }
    }

    /// For a request whose answers count from `first_answer`.
    pub(crate) fn ear(&self, detail: Detail, first_answer: usize, permit: Arc<Permit>) -> Ear {
        self.shared.lock().open += 1;
        Ear {
            shared: Arc::clone(&self.shared),
            detail,
            first_answer,
            permit: Some(permit),
        }
    }

    /// Ends the requests, and still hears how they end.
    pub(crate) fn leave(&self) {
        self.shared.gone.store(true, Ordering::Relaxed);
    }

    /// Whether the requests were ended because too much waits here.
    pub(crate) fn is_too_slow(&self) -> bool {
        self.shared.too_slow.load(Ordering::Relaxed)
    }

    /// The next news; `None` when all requests are over.
    pub(crate) async fn next(&mut self) -> Option<News> {
        loop {
            let notified = self.shared.notify.notified();
            {
                let mut queue = self.shared.lock();
                if let Some(news) = queue.news.pop_front() {
                    if let News::Text { tokens, .. } = &news {
                        queue.tokens -= tokens.len();
                    }
                    return Some(news);
                }
                if queue.open == 0 {
                    return None;
                }
            }
            notified.await;
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // The queue is whole at every unlock, so a panic elsewhere does not spoil it.
        self.queue
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Listener for Ear {
    fn is_gone(&self) -> bool {
        self.shared.gone.load(Ordering::Relaxed)
    }

    fn hear(&mut self, update: Update) {
        let news = match update {
            Update::Started { reused_tokens } => {
                self.permit = None;
                News::Started {
                    reused: reused_tokens,
                }
            }
            Update::Read { done, total } => News::Read { done, total },
            Update::Scored(tokens) => News::Scored {
                first_answer: self.first_answer,
                tokens,
            },
            Update::Token(mut token) => {
                token.answer += self.first_answer;
                News::Text {
                    answer: token.answer,
                    text: token.text.clone(),
                    tokens: match self.detail {
                        Detail::Tokens if !token.ends_text => vec![token],
                        Detail::Text | Detail::Tokens => Vec::new(),
                    },
                }
            }
            Update::Finished {
                answer,
                reason,
                stop,
                rest,
            } => {
                let answer = answer + self.first_answer;
                if !rest.is_empty() {
                    self.shared.lock().push(News::Text {
                        answer,
                        text: rest,
                        tokens: Vec::new(),
                    });
                }
                News::Finished {
                    answer,
                    reason,
                    stop,
                }
            }
            Update::Ended(ended) => News::Ended(ended),
        };
        let mut queue = self.shared.lock();
        queue.push(news);
        if queue.tokens > MOST_TOKENS {
            self.shared.too_slow.store(true, Ordering::Relaxed);
            self.shared.gone.store(true, Ordering::Relaxed);
        }
        drop(queue);
        self.shared.notify.notify_one();
    }
}

/// A request that ends without a word is over all the same.
impl Drop for Ear {
    fn drop(&mut self) {
        self.shared.lock().open -= 1;
        self.shared.notify.notify_one();
    }
}

impl Queue {
    fn push(&mut self, news: News) {
        if let News::Text { tokens, .. } = &news {
            self.tokens += tokens.len();
        }
        let long = self.news.len() > JOIN_BEYOND;
        match (self.news.back_mut(), news) {
            (Some(News::Read { done, .. }), News::Read { done: newest, .. }) => *done = newest,
            (
                Some(News::Text {
                    answer,
                    text,
                    tokens,
                }),
                News::Text {
                    answer: same,
                    text: more,
                    tokens: further,
                },
            ) if long && *answer == same => {
                text.push_str(&more);
                tokens.extend(further);
            }
            (_, news) => self.news.push_back(news),
        }
    }
}

/// What became of a text.
#[derive(Default)]
pub(crate) struct Text {
    /// Tokens of its prompt with their probabilities, where they were asked for and it is the first of its
    /// prompt.
    pub(crate) prompt: Vec<Scored>,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    pub(crate) reason: Option<FinishReason>,
    /// The stop string that ended it.
    pub(crate) stop: Option<String>,
}

/// Everything that became of the requests of an inbox.
pub(crate) struct Collected {
    pub(crate) texts: Vec<Text>,
    pub(crate) ended: Vec<Ended>,
}

impl Inbox {
    /// Waits for everything.
    pub(crate) async fn collect(mut self, answers: usize) -> Collected {
        let mut collected = Collected {
            texts: Vec::new(),
            ended: Vec::new(),
        };
        collected.texts.resize_with(answers, Text::default);
        while let Some(news) = self.next().await {
            match news {
                News::Started { .. } | News::Read { .. } => {}
                News::Scored {
                    first_answer,
                    tokens,
                } => {
                    if let Some(into) = collected.texts.get_mut(first_answer) {
                        into.prompt = tokens;
                    }
                }
                News::Text {
                    answer,
                    text,
                    tokens,
                } => {
                    if let Some(into) = collected.texts.get_mut(answer) {
                        into.text.push_str(&text);
                        into.tokens.extend(tokens);
                    }
                }
                News::Finished {
                    answer,
                    reason,
                    stop,
                } => {
                    if let Some(into) = collected.texts.get_mut(answer) {
                        into.reason = Some(reason);
                        into.stop = stop;
                    }
                }
                News::Ended(ended) => collected.ended.push(*ended),
            }
        }
        collected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Queue as Line;

    fn token(text: &str) -> Update {
        Update::Token(Token {
            answer: 0,
            id: 7,
            logprob: None,
            top: Vec::new(),
            text: text.to_owned(),
            ends_text: false,
        })
    }

    #[tokio::test]
    async fn a_slow_reader_makes_pieces_larger_and_loses_nothing() {
        let line = Arc::new(Line::new(1));
        let mut inbox = Inbox::new();
        let mut ear = inbox.ear(Detail::Text, 0, Arc::new(line.enter(10).unwrap()));
        for done in 1..100 {
            ear.hear(Update::Read { done, total: 99 });
        }
        for at in 0..1000 {
            ear.hear(token(&format!("{at},")));
        }
        drop(ear);
        assert!(matches!(
            inbox.next().await,
            Some(News::Read { done: 99, .. })
        ));
        let (mut pieces, mut all) = (0, String::new());
        while let Some(News::Text { text, .. }) = inbox.next().await {
            pieces += 1;
            all.push_str(&text);
        }
        assert!(pieces <= JOIN_BEYOND + 2, "{pieces}");
        let wanted: String = (0..1000).map(|at| format!("{at},")).collect();
        assert_eq!(all, wanted);
    }

    #[tokio::test]
    async fn whoever_reads_nothing_is_gone_and_told_why() {
        let line = Arc::new(Line::new(1));
        let mut inbox = Inbox::new();
        let mut ear = inbox.ear(Detail::Tokens, 0, Arc::new(line.enter(10).unwrap()));
        for _ in 0..MOST_TOKENS {
            ear.hear(token("x"));
        }
        assert!(!ear.is_gone() && !inbox.is_too_slow());
        ear.hear(token("x"));
        assert!(ear.is_gone() && inbox.is_too_slow());
        // What ends a text is no token of it.
        drop(ear);
        let mut ear = inbox.ear(Detail::Tokens, 0, Arc::new(line.enter(10).unwrap()));
        let Update::Token(mut end) = token("") else {
            unreachable!()
        };
        end.ends_text = true;
        ear.hear(Update::Token(end));
        drop(ear);
        let mut tokens = 0;
        while let Some(news) = inbox.next().await {
            if let News::Text { tokens: more, .. } = news {
                tokens += more.len();
            }
        }
        assert_eq!(tokens, MOST_TOKENS + 1);
    }

    #[tokio::test]
    async fn whoever_drops_the_inbox_is_gone_and_the_queue_is_left_when_started() {
        let line = Arc::new(Line::new(1));
        let inbox = Inbox::new();
        let mut ear = inbox.ear(Detail::Tokens, 0, Arc::new(line.enter(10).unwrap()));
        assert!(line.enter(1).is_none());
        ear.hear(Update::Started { reused_tokens: 0 });
        assert!(line.enter(1).is_some());
        assert!(!ear.is_gone());
        drop(inbox);
        assert!(ear.is_gone());
    }
}
