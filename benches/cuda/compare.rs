//! A case: the fastest of ours and the fastest of stock, in turn.

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::bars::{Test, all_met, bar, prefill_seconds};
use super::rig::measure::median_and_mad;
use super::run::Runner;
use super::speed::Rig;
use super::stock::{Stock, more_than};
use super::work::{Case, Failure, ROUNDS, Row, Tried, Wanted, What, Why};

impl Rig<'_> {
    /// Measures a case; whether it is above its bars, null where that is not known. What was
    /// measured is in `record`, whatever comes.
    pub fn measure(&mut self, runner: &Runner, case: &Case, record: &mut Value) -> Result<Value> {
        for tried in &mut self.stock {
            tried.since = tried.runs.len();
        }
        let (mut ours, failures) = self.ours(runner, case, record)?;
        record["ours"] = ours.iter().map(Tried::json).collect();
        record["failed_of_ours"] = failures
            .iter()
            .map(|failure| failure.sentence.as_str())
            .collect();
        let limit = ours.iter().filter_map(Tried::vram_bytes).max();
        record["vram_limit_bytes"] = json!(limit);
        let mut stock = self.best_of_stock(runner, case, limit);
        let compared = self.compared(runner, case, (&mut ours, &mut stock), record);
        let fitting = stock.fitting.iter().map(|index| self.stock[*index].json());
        record["stock"] = fitting.collect();
        record["failed_of_stock"] = json!(stock.errors);
        record["stock_is_complete"] = json!(stock.is_complete);
        compared?;
        let broken = failures.iter().find(|failure| failure.why == Why::Other);
        if let Some(broken) = broken {
            bail!("{}", broken.sentence);
        }
        match (record["ok"] == true, stock.is_complete) {
            // Something faster may not have been tried.
            (true, false) => Ok(Value::Null),
            _ => Ok(record["ok"].clone()),
        }
    }

    /// All tests of a case, in `record`.
    fn compared(
        &mut self,
        runner: &Runner,
        case: &Case,
        (ours, stock): (&mut [Tried], &mut Stock),
        record: &mut Value,
    ) -> Result<()> {
        if stock.fitting.is_empty() {
            ensure!(
                !stock.is_complete,
                "no placement of stock takes so little memory"
            );
            record["error"] = json!("no placement of stock was measured; see failed_of_stock");
            return Ok(());
        }
        let wanted = self.work.wanted(case.what);
        let pair = |wanted: &Wanted| {
            let of_ours = fastest(wanted, ours.iter().enumerate());
            let fitting = stock.fitting.iter();
            let of_stock = fastest(wanted, fitting.map(|index| (*index, &self.stock[*index])));
            of_ours.zip(of_stock)
        };
        let pairs: Vec<Option<(usize, usize)>> = wanted.iter().map(pair).collect();
        let known: Vec<(usize, usize)> = pairs.iter().flatten().copied().collect();
        let failure = self.in_turn(runner, case.what, (ours, stock), &known).err();
        let mut lacking = None;
        let tests = wanted.iter().zip(pairs).map(|(wanted, pair)| {
            let test = pair.map(|(a, b)| self.test(case, wanted, &ours[a], &self.stock[b]));
            test.flatten().unwrap_or_else(|| {
                let sentence = lack(wanted, ours);
                lacking = Some(sentence.clone());
                let (prompt, depth) = (wanted.prompt, wanted.depth);
                json!({"n_prompt": prompt, "n_depth": depth, "ok": false, "error": sentence})
            })
        });
        let tests: Vec<Value> = tests.collect();
        let bars = tests
            .iter()
            .filter_map(|test| test["bars"].as_array().cloned());
        let bars: Vec<Value> = bars.flatten().collect();
        record["ok"] = all_met(&bars);
        record["tests"] = json!(tests);
        match failure.map(|failure| failure.sentence).or(lacking) {
            Some(sentence) => bail!("{sentence}"),
            None => ensure!(!record["ok"].is_null(), "no bar has a value"),
        }
        Ok(())
    }

    /// Runs the fastest of both in turn until each has its rounds in this case, as far as
    /// there is time.
    ///
    /// # Errors
    /// How a run of ours failed.
    fn in_turn(
        &mut self,
        runner: &Runner,
        what: What,
        (ours, stock): (&mut [Tried], &mut Stock),
        pairs: &[(usize, usize)],
    ) -> Result<(), Failure> {
        let is_short = |tried: &Tried| tried.runs_of_case() < ROUNDS;
        while let Some(&(a, b)) = pairs
            .iter()
            .filter(|(a, b)| is_short(&ours[*a]) || is_short(&self.stock[*b]))
            .min_by_key(|(a, b)| ours[*a].runs_of_case() + self.stock[*b].runs_of_case())
        {
            if ours[a].runs_of_case() <= self.stock[b].runs_of_case() && is_short(&ours[a]) {
                match self.bench(runner, what, &ours[a].flags) {
                    Ok(measured) => ours[a].runs.push(measured),
                    Err(failure) if failure.why == Why::Time => break,
                    Err(failure) => return Err(failure),
                }
            } else {
                let flags = self.stock[b].flags.clone();
                match self.bench(runner, what, &flags) {
                    Ok(measured) => self.stock[b].runs.push(measured),
                    Err(failure) if failure.why == Why::Time => break,
                    Err(failure) => {
                        stock.failed(&failure);
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// A test of ours beside stock's: speeds, ratio, and whether it is above its bars; None
    /// when one of them was not measured in this case.
    fn test(&self, case: &Case, wanted: &Wanted, ours: &Tried, stock: &Tried) -> Option<Value> {
        let row = ours.newest(wanted)?;
        let (a, b) = (ours.speeds(wanted), stock.speeds(wanted));
        let (ratio, spread) = ratio(&a, &b)?;
        let bound = self.bound(row);
        let of_bound = bound.map(|bound| median_and_mad(&a).0 / bound);
        let number = |name: &str| row.json[name].as_f64().unwrap_or(0.0);
        let test = Test {
            percent: case.percent,
            is_prefill: row.prompt > 0,
            ratio: Some(ratio),
            of_bound,
            link_bytes: number("bytes_per_token"),
            processor_bytes: number("host_bytes_per_token"),
        };
        let bars = match case.what {
            What::Beyond(_) => vec![bar("5x of -nkvo", 5.0, Some(ratio))],
            What::Prefill | What::Decode(_) => test.bars(),
        };
        let memories = (ours.vram_bytes(), stock.vram_bytes());
        let mut notes: Vec<String> = more_than(memories.0, memories.1).into_iter().collect();
        let rounds = a.len().min(b.len());
        if rounds < ROUNDS {
            notes.push(format!("there was time for {rounds} of {ROUNDS} rounds"));
        }
        Some(json!({
            "n_prompt": row.prompt, "n_depth": row.depth, "ours_ts": a, "stock_ts": b,
            "ratio": ratio, "ratio_mad": spread, "bound_ts": bound,
            "share_of_bound": of_bound, "shares_the_work": test.is_shared(), "bars": bars,
            "ok": all_met(&bars), "ours_flags": ours.flags.join(" "),
            "stock_flags": stock.flags.join(" "), "ours_vram_bytes": memories.0,
            "stock_vram_bytes": memories.1, "notes": notes, "ours": row.json,
        }))
    }

    /// What a prefill could be: tokens per second with link or computation busy all the time.
    fn bound(&self, row: &Row) -> Option<f64> {
        let streamed = row.json["streamed_bytes"].as_f64()?;
        let mut known = self.resident.iter();
        let resident = known.find(|known| {
            (known.prompt, known.ubatch) == (row.prompt, row.ubatch) && row.prompt > 0
        })?;
        let speed = resident.tokens_per_second;
        let seconds = prefill_seconds(row.prompt, row.ubatch, streamed, self.link?, speed);
        Some(f64::from(u32::try_from(row.prompt).ok()?) / seconds)
    }
}

/// Of those with a speed at the test, the fastest by all that is known of it.
fn fastest<'a>(wanted: &Wanted, of: impl Iterator<Item = (usize, &'a Tried)>) -> Option<usize> {
    let with_speed = of.filter_map(|(index, tried)| {
        let speed = median_and_mad(&tried.speeds_ever(wanted)).0;
        speed.is_finite().then_some((index, speed))
    });
    let fastest = with_speed.max_by(|a, b| a.1.total_cmp(&b.1));
    fastest.map(|(index, _)| index)
}

/// Median speed by median speed, and about the middle distance from it; None without both.
fn ratio(ours: &[f64], stock: &[f64]) -> Option<(f64, f64)> {
    let ((a, of_a), (b, of_b)) = (median_and_mad(ours), median_and_mad(stock));
    let ratio = a / b;
    let spread = ratio * (of_a / a).hypot(of_b / b);
    (ratio.is_finite() && spread.is_finite()).then_some((ratio, spread))
}

/// What a test without a measurement lacks.
fn lack(wanted: &Wanted, ours: &[Tried]) -> String {
    let is_ours = ours.iter().all(|tried| tried.speeds(wanted).is_empty());
    let who = if is_ours { "the paged run" } else { "stock" };
    let runs = ours.iter().flat_map(|tried| &tried.runs);
    let note = runs.flat_map(|run| &run.notes).next();
    let why = note.filter(|_| is_ours).map(|note| format!(": {note}"));
    format!(
        "{who} has no speed of {} tokens at {}{}",
        wanted.prompt,
        wanted.depth,
        why.unwrap_or_default()
    )
}

/// The choice and the ratio on known speeds.
pub fn check_arithmetic() {
    // The mean of the two ratios would be 1.25.
    assert_eq!(
        ratio(&[2.0, 1.0], &[1.0, 2.0]).map(|both| both.0),
        Some(1.0)
    );
    let (middle, spread) = ratio(&[100.0, 104.0, 96.0], &[50.0, 50.0, 51.0]).unwrap_or_default();
    assert!((middle - 2.0).abs() < 1e-9 && (spread - 0.08).abs() < 1e-9);
    assert_eq!(ratio(&[], &[1.0]), None);
    let [short, long] = [2048, 8192].map(|prompt| Wanted { prompt, depth: 0 });
    let tried = |speeds: &[(u64, f64)]| Tried::of_speeds(speeds);
    let all = [
        tried(&[(2048, 10.0)]),
        tried(&[(2048, 9.0), (8192, 5.0)]),
        tried(&[]),
        tried(&[(2048, 8.0), (8192, 6.0)]),
    ];
    assert_eq!(fastest(&short, all.iter().enumerate()), Some(0));
    assert_eq!(fastest(&long, all.iter().enumerate()), Some(3));
    assert_eq!(fastest(&long, all.iter().enumerate().take(1)), None);
    assert!(lack(&long, &all[..1]).starts_with("the paged run has no speed of 8192"));
    let mut again = tried(&[(2048, 7.0)]);
    again.since = 1;
    assert_eq!(
        (again.speeds(&short), again.speeds_ever(&short)),
        (vec![], vec![7.0])
    );
}
