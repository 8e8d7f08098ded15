//! How many tokens of a prompt are computed at once when weights cross a link.
//!
//! Each ubatch is a pass over the model, and takes what is streamed over the link once. A
//! larger one means fewer passes; but its scratch takes room from weights that would stay,
//! and so each pass streams more, those of the tokens generated afterwards too: llama.cpp
//! keeps its scratch as long as the context.

/// What a size would mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Tokens that are computed at once, at least 1.
    pub ubatch_tokens: u32,
    /// Bytes that a pass takes over the link.
    pub streamed_bytes: u64,
}

impl Choice {
    /// Passes that a prompt of so many tokens takes.
    pub fn passes(&self, prompt_tokens: u32) -> u64 {
        u64::from(prompt_tokens.div_ceil(self.ubatch_tokens.max(1)))
    }

    /// Bytes that such a prompt takes over the link.
    pub fn prompt_bytes(&self, prompt_tokens: u32) -> u64 {
        self.passes(prompt_tokens)
            .saturating_mul(self.streamed_bytes)
    }

    /// Bytes that such a prompt takes over the link, and then so many tokens one by one.
    pub fn run_bytes(&self, prompt_tokens: u32, generated_tokens: u32) -> u64 {
        let generated = u64::from(generated_tokens).saturating_mul(self.streamed_bytes);
        self.prompt_bytes(prompt_tokens).saturating_add(generated)
    }
}

/// Tokens that a model may put around a prompt: one where it begins, one where it ends, and a
/// blank.
const AROUND_TOKENS: usize = 4;

/// Whether a text of so many bytes is one pass without a look at its tokens: each of them is
/// at least a byte.
pub fn is_one_pass(prompt_bytes: usize, ubatch_tokens: i32) -> bool {
    let most = usize::try_from(ubatch_tokens).unwrap_or(0);
    prompt_bytes.saturating_add(AROUND_TOKENS) <= most
}

/// The one of `others` with the fewest bytes over the link for a prompt of so many tokens and
/// those generated after it, the smallest of equals; None when none of them has fewer than
/// the `usual` one.
pub fn better(
    prompt_tokens: u32,
    generated_tokens: u32,
    usual: Choice,
    others: &[Choice],
) -> Option<Choice> {
    let bytes = |choice: &Choice| choice.run_bytes(prompt_tokens, generated_tokens);
    let best = others
        .iter()
        .min_by_key(|choice| (bytes(choice), choice.ubatch_tokens))?;
    (bytes(best) < bytes(&usual)).then_some(*best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(ubatch_tokens: u32, streamed_bytes: u64) -> Choice {
        Choice {
            ubatch_tokens,
            streamed_bytes,
        }
    }

    #[test]
    fn fewer_passes_are_worth_some_weights_and_not_all() {
        let usual = choice(512, 1000);
        let others = [choice(1024, 1100), choice(2048, 1500), choice(4096, 3500)];
        // Four, two and one passes.
        assert_eq!(better(2048, 0, usual, &others), Some(others[1]));
        assert_eq!(better(1024, 0, usual, &others), Some(others[0]));
        // One pass is the least there is.
        assert_eq!(better(512, 0, usual, &others), None);
        assert_eq!(better(0, 0, usual, &others), None);
        // Eight passes of 1000 are more than three of 1500, and one more token is a pass.
        assert_eq!(better(4097, 0, usual, &others), Some(others[1]));
        assert_eq!(better(40_000, 0, usual, &others), Some(others[1]));
        assert_eq!(better(4096, 0, usual, &[choice(1024, 2001)]), None);
    }

    #[test]
    fn tokens_generated_afterwards_pay_for_the_scratch() {
        let usual = choice(512, 1000);
        let others = [choice(1024, 1100), choice(2048, 1500)];
        // Of 4000, 2200 and 1500 for the prompt; each token after it takes a pass.
        assert_eq!(better(2048, 1, usual, &others), Some(others[1]));
        assert_eq!(better(2048, 2, usual, &others), Some(others[0]));
        assert_eq!(better(2048, 17, usual, &others), Some(others[0]));
        assert_eq!(better(2048, 18, usual, &others), None);
        // Scratch that takes nothing from the weights costs no token anything.
        let free = choice(1024, 1000);
        assert_eq!(better(2048, 100_000, usual, &[free]), Some(free));
        let huge = choice(1, u64::MAX);
        assert_eq!(huge.run_bytes(1, u32::MAX), u64::MAX);
    }

    #[test]
    fn a_short_text_is_one_pass() {
        assert!(is_one_pass(0, 4) && is_one_pass(508, 512));
        assert!(!is_one_pass(509, 512));
        assert!(!is_one_pass(0, -1) && !is_one_pass(usize::MAX, i32::MAX));
    }

    #[test]
    fn nothing_is_better_than_nothing_to_stream() {
        assert_eq!(better(8192, 0, choice(512, 0), &[choice(2048, 0)]), None);
        assert_eq!(better(8192, 0, choice(512, 0), &[choice(2048, 5)]), None);
        let equal = [choice(2048, 7), choice(1024, 7)];
        assert_eq!(better(1024, 0, choice(512, 7), &equal), Some(equal[1]));
    }
}
