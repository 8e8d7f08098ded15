//! `rpaged-cli inspect`: what is in a model.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

use super::subcommand::{print, print_json, quieten, resolve, say, split};
use crate::error::{Error, Result};
use crate::forecast::Subject;
use crate::inspection::{inspect, table};
use crate::llama;

/// Says what is in a model: tensors by role and type, bytes of each layer, the KV cache of
/// a context, and what of it can be paged. Reads only the header.
#[derive(Clone, Debug, Parser)]
#[command(name = "rpaged-cli inspect", disable_help_flag = true)]
#[command(args_override_self = true)]
#[command(override_usage = "rpaged-cli inspect MODEL [-c N] [-ctk TYPE] [-ctv TYPE] [-ub N]")]
pub struct InspectFlags {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Does what `args` (behind the word `inspect`) ask for.
///
/// # Errors
/// Whatever stands in its way.
pub fn run(args: Vec<OsString>) -> Result<()> {
    let options = llama::options()?;
    let Some(found) = split::<InspectFlags>(args, &options)? else {
        return Ok(());
    };
    let mut rest = found.rest;
    let named = |arg: &OsString| !arg.as_encoded_bytes().starts_with(b"-");
    if rest.first().is_some_and(named) {
        rest.insert(0, "-m".into());
    }
    if rest.is_empty() {
        return Err(Error::Usage(
            "'inspect' wants a model: rpaged-cli inspect MODEL".to_owned(),
        ));
    }
    quieten(&mut rest);
    let (config, _headers) = resolve(rest, options, "inspect")?;
    let path = config.paging.as_ref().map(|paging| paging.model.clone());
    let path: PathBuf = path.ok_or_else(|| Error::Bug("nothing is paged here".to_owned()))?;
    let mut inspection = inspect(&path, config.model_name.clone())?;
    match Subject::new(config) {
        Ok(subject) => inspection.add_context(&subject),
        // What the header says is worth something without that.
        Err(error) => say(&format!("no context: {error}")),
    }
    match found.flags.json {
        true => print_json(&inspection),
        false => print(&table::text(&inspection)),
    }
}
