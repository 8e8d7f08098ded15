//! Room in the context for what is decoded next: old tokens are forgotten, or positions
//! are squeezed together.

use super::generator::Generator;
use crate::error::{Error, Result};
use crate::llama::{Session, log};

/// What happens when the context is full.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Room {
    /// The text ends; the reason, as it is logged.
    Stop(&'static str),
    /// Half of the tokens after the first `keep` are forgotten.
    Shift { keep: i32 },
    /// Self-extend: positions are grouped as the text grows.
    Extend(Groups),
}

/// Self-extend's state, in upstream's terms: in each window of `width` tokens, `factor`
/// neighbours share a position.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Groups {
    factor: i32,
    width: i32,
    /// Positions that are grouped already.
    grouped: i32,
}

impl Groups {
    /// Checks the numbers of `-gan` and `-gaw`.
    ///
    /// # Errors
    /// `Usage` for numbers that make no groups, `Failed` where positions cannot be moved.
    pub fn new(session: &Session, factor: i32, width: i32) -> Result<Self> {
        check(factor, width)?;
        if !session.can_move() {
            return Err(Error::Failed(
                "this model's memory cannot move positions, which --grp-attn-n needs".into(),
            ));
        }
        Ok(Self {
            factor,
            width,
            grouped: 0,
        })
    }

    /// Groups what has become a window, as often as there is one; whether there was.
    fn group(&mut self, context: &mut Generator, session: &mut Session) -> bool {
        let (factor, width) = (self.factor, self.width);
        let before = self.grouped;
        while context.past() >= self.grouped + width {
            let past = context.past();
            let windows = factor * self.grouped / width;
            let saved = (width / factor) * (factor - 1);
            let back = width / factor - windows * saved - width;
            let start = self.grouped + windows * saved;
            session.move_positions(self.grouped, past, windows * saved);
            session.divide_positions(start, start + width, factor);
            session.move_positions(start + width, past + windows * saved, back);
            context.moved_back(saved);
            self.grouped += width / factor;
        }
        self.grouped > before
    }
}

fn check(factor: i32, width: i32) -> Result<()> {
    if factor < 1 {
        return Err(Error::Usage(format!(
            "'--grp-attn-n' must be at least 1, got '{factor}'"
        )));
    }
    if width < factor || width % factor != 0 {
        return Err(Error::Usage(format!(
            "'--grp-attn-w' must be a multiple of --grp-attn-n, which is {factor}, got '{width}'"
        )));
    }
    Ok(())
}

impl Room {
    /// Makes room for `count` tokens. False: there is none, and the text ends. `shifted` is
    /// set when tokens were forgotten or moved.
    ///
    /// # Errors
    /// `Failed` when the model's memory cannot do that.
    pub fn make(
        &mut self,
        context: &mut Generator,
        session: &mut Session,
        count: usize,
        shifted: &mut bool,
    ) -> Result<bool> {
        if let Self::Extend(groups) = self {
            *shifted |= groups.group(context, session);
            return Ok(true);
        }
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        let size = i32::try_from(session.n_ctx()).unwrap_or(i32::MAX);
        if context.past().saturating_add(count) < size {
            return Ok(true);
        }
        match *self {
            Self::Shift { keep } => {
                let discard = (context.past() - keep) / 2;
                context.shift(session, keep, discard)?;
                *shifted = true;
                Ok(true)
            }
            Self::Stop(reason) => {
                log::warn(format!("\n\nllama_completion: context full and {reason}\n"));
                Ok(false)
            }
            Self::Extend(_) => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_make_no_groups_are_refused() {
        for (factor, width) in [(1, 512), (2, 2), (4, 16)] {
            assert!(check(factor, width).is_ok(), "{factor} {width}");
        }
        for (factor, width) in [(0, 512), (-1, 512), (2, 0), (2, 511), (4, 2), (2, -4)] {
            assert!(check(factor, width).is_err(), "{factor} {width}");
        }
    }
}
