//! What can go wrong with a session as a whole; what one client does wrong is refused and counted instead.

use thiserror::Error;

/// Errors of a session's calls.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum SessionError {
    #[error("{0}")]
    Configuration(String),
    #[error("cannot listen at {host}: {reason}")]
    Listen { host: String, reason: String },
    #[error("cannot start the receiving thread: {0}")]
    Thread(String),
    /// A call about a simulation that makes no sense for it.
    #[error("{0}")]
    Simulation(String),
    /// The receiving thread cannot go on; every later call says so again.
    #[error("{0}")]
    Failed(String),
    #[error("the receiving session was closed")]
    Closed,
}

/// Why a connection is refused: the code of the `Refused` frame and its text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: one_line(message.into()) }
    }
}

/// Most characters of a refusal's text; what is said without a peer's words stays far below.
const MOST_CHARACTERS: usize = 2000;

/// A text that may quote a peer, made fit for a log and a terminal: no control characters, and no end of words.
fn one_line(text: String) -> String {
    if !text.chars().any(char::is_control) && text.chars().count() <= MOST_CHARACTERS {
        return text;
    }
    let printable = text.chars().flat_map(|character| {
        let escaped = character.is_control().then(|| character.escape_default());
        let plain = escaped.is_none().then_some(character);
        escaped.into_iter().flatten().chain(plain)
    });
    let mut line: String = printable.clone().take(MOST_CHARACTERS).collect();
    if printable.count() > MOST_CHARACTERS {
        line.push_str(&format!(" ... ({} bytes in all)", text.len()));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_with_control_characters_or_without_end_becomes_one_short_line() {
        assert_eq!(one_line("field \"température\"".into()), "field \"température\"");
        assert_eq!(one_line("a\r\n\u{1b}[2J\u{9b}".into()), "a\\r\\n\\u{1b}[2J\\u{9b}");
        let whole = "é".repeat(MOST_CHARACTERS);
        assert_eq!(one_line(whole.clone()), whole);
        assert_eq!(one_line(format!("{whole}é")), format!("{whole} ... (4002 bytes in all)"));
    }
}
