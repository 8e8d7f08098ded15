//! What is asked for in the way of drafting, looked at before anything is loaded.

use std::path::Path;

use super::resolve::THREADS_MAX;
use crate::error::{Error, Result};
use crate::llama::{self, Params, Settings, log};

/// Says of `words`, the flags about drafting, that nothing is drafted, if that is so.
pub fn check_words<'a>(params: &Params, words: impl Iterator<Item = &'a str>) -> Result<()> {
    let asked = params.drafting()?;
    if asked.with_model || asked.without_model || asked.special {
        return Ok(());
    }
    for word in words {
        log::warn(format!(
            "'{word}' has no effect: nothing is drafted; see --spec-type and --spec-draft-model\n"
        ));
    }
    Ok(())
}

/// Refuses what cannot be done; `model` is the model's file.
pub fn check(params: &Params, settings: &Settings, model: &Path) -> Result<()> {
    let asked = params.drafting()?;
    if asked.special {
        return Err(Error::NotBuilt(format!(
            "drafting by '{}' is not built yet: it needs a draft model made for this model; use \
             draft-simple with any small model of the same vocabulary, or one of the ngram kinds",
            params.draft_kinds()?
        )));
    }
    if asked.synthetic {
        return Err(Error::NotBuilt(
            "drafts that are taken for right whatever they are give a wrong text: \
             --spec-synth-len and --spec-synth-rates are not built"
                .into(),
        ));
    }
    let drafts = asked.with_model || asked.without_model;
    if drafts && asked.backend_sampling {
        return Err(Error::NotBuilt(
            "'--backend-sampling' together with drafting is not built yet; leave out one of them"
                .into(),
        ));
    }
    if drafts && settings.grp_attn_n != 1 {
        return Err(Error::Usage(
            "drafting cannot be combined with --grp-attn-n: where positions are shared, no draft \
             can be forgotten"
                .into(),
        ));
    }
    if !asked.with_model {
        return Ok(());
    }
    if asked.probabilistic {
        return Err(Error::NotBuilt(
            "'--spec-draft-sampling probabilistic' is not built yet; with 'greedy' the text is \
             distributed in the same way"
                .into(),
        ));
    }
    for (flag, threads) in [
        ("--spec-draft-threads", asked.threads),
        ("--spec-draft-threads-batch", asked.threads_batch),
    ] {
        if !(1..=THREADS_MAX).contains(&threads) {
            return Err(Error::Usage(format!(
                "'{flag}' must be 1 to {THREADS_MAX}, got '{threads}'"
            )));
        }
    }
    let Some(draft) = params.draft_path()? else {
        return Err(Error::Usage(
            "'--spec-type draft-simple' drafts with a model, and none is given; name one with \
             --spec-draft-model"
                .into(),
        ));
    };
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    if real(&draft).is_some_and(|draft| Some(draft) == real(model)) {
        return Err(Error::Usage(format!(
            "the draft model '{}' is the model itself, which would take as long to draft as to \
             write; name a smaller one with --spec-draft-model",
            draft.display()
        )));
    }
    llama::inspect(&draft)?;
    Ok(())
}
