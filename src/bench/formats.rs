//! The rows in llama-bench's formats: its fields and columns in its order, ours behind them.

use super::Paging;
use super::case::{Axes, Case};
use super::row::{Kind, OURS, Row, THEIRS, Value};
use super::statistics::{deviation, mean, spread};
use crate::cli::size::show_bytes;
use crate::device::Cold;
use crate::llama::bench::Build;

/// A format for results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A table in Markdown.
    Md,
    /// Comma-separated values.
    Csv,
    /// One array of objects.
    Json,
    /// One object per line.
    Jsonl,
    /// Statements for SQLite.
    Sql,
}

impl Format {
    /// All names, as the command line spells them.
    pub const NAMES: [(&str, Self); 5] = [
        ("csv", Self::Csv),
        ("json", Self::Json),
        ("jsonl", Self::Jsonl),
        ("md", Self::Md),
        ("sql", Self::Sql),
    ];

    /// The format that goes by `name`.
    pub fn named(name: &str) -> Option<Self> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, format)| *format)
    }
}

/// What the formats show beside the rows.
pub struct Frame<'a> {
    /// llama.cpp's build.
    pub build: &'a Build,
    /// How the paged rows are paged.
    pub paging: &'a Paging,
    /// What is measured by default: columns that differ from it are shown.
    pub defaults: &'a Axes,
    /// Whether our columns are shown in the table: llama-bench's own table has none.
    pub ours: bool,
}

/// All rows in one text.
pub fn write(format: Format, rows: &[Row], frame: &Frame<'_>) -> String {
    match format {
        Format::Md => markdown(rows, frame),
        Format::Csv => csv(rows, frame),
        Format::Json => json(rows, frame),
        Format::Jsonl => jsonl(rows, frame),
        Format::Sql => sql(rows, frame),
    }
}

fn names() -> impl Iterator<Item = &'static str> {
    THEIRS.iter().chain(&OURS).map(|(name, _)| *name)
}

fn values(row: &Row, frame: &Frame<'_>) -> Vec<Value> {
    let mut all = row.their_values(frame.build);
    all.extend(row.our_values(frame.paging));
    all
}

/// A value as it stands between quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::Text(text) => text.clone(),
        Value::Truth(truth) => u8::from(*truth).to_string(),
        Value::Whole(number) => number.to_string(),
        Value::Real(number) => format!("{number:.6}"),
        Value::Nothing => String::new(),
    }
}

fn csv(rows: &[Row], frame: &Frame<'_>) -> String {
    let mut text = names().collect::<Vec<_>>().join(",") + "\n";
    for row in rows {
        let quoted = |value: &Value| format!("\"{}\"", plain(value).replace('"', "\"\""));
        let line: Vec<_> = values(row, frame).iter().map(quoted).collect();
        text.push_str(&line.join(","));
        text.push('\n');
    }
    text
}

fn json_value(value: &Value) -> String {
    match value {
        Value::Text(text) => serde_json::Value::from(text.as_str()).to_string(),
        Value::Truth(truth) => truth.to_string(),
        Value::Real(number) if !number.is_finite() => "null".to_owned(),
        Value::Nothing => "null".to_owned(),
        number => plain(number),
    }
}

/// The members of a row's object: llama-bench's, its samples, then ours.
fn members(row: &Row, frame: &Frame<'_>) -> Vec<String> {
    let member = |name: &str, value: &str| format!("\"{name}\": {value}");
    let pairs = |fields: &[(&str, Kind)], values: Vec<Value>| -> Vec<String> {
        let pairs = fields.iter().zip(values);
        pairs
            .map(|((name, _), value)| member(name, &json_value(&value)))
            .collect()
    };
    let mut all = pairs(&THEIRS, row.their_values(frame.build));
    let times: Vec<_> = row
        .samples
        .iter()
        .map(|sample| sample.ns.to_string())
        .collect();
    let speeds: Vec<_> = row
        .speeds()
        .iter()
        .map(|speed| format!("{speed:.6}"))
        .collect();
    all.push(member("samples_ns", &format!("[ {} ]", times.join(", "))));
    all.push(member("samples_ts", &format!("[ {} ]", speeds.join(", "))));
    all.extend(pairs(&OURS, row.our_values(frame.paging)));
    all
}

fn json(rows: &[Row], frame: &Frame<'_>) -> String {
    let object = |row: &Row| {
        let members: Vec<_> = members(row, frame)
            .iter()
            .map(|m| format!("    {m}"))
            .collect();
        format!("  {{\n{}\n  }}", members.join(",\n"))
    };
    let objects: Vec<_> = rows.iter().map(object).collect();
    format!("[\n{}\n]\n", objects.join(",\n"))
}

fn jsonl(rows: &[Row], frame: &Frame<'_>) -> String {
    let object = |row: &Row| format!("{{{}}}\n", members(row, frame).join(", "));
    rows.iter().map(object).collect()
}

fn sql(rows: &[Row], frame: &Frame<'_>) -> String {
    let column = |(name, kind): &(&str, Kind)| {
        let kind = match kind {
            Kind::Text => "TEXT",
            Kind::Truth | Kind::Whole => "INTEGER",
            Kind::Real => "REAL",
        };
        format!("  {name} {kind}")
    };
    let columns: Vec<_> = THEIRS.iter().chain(&OURS).map(column).collect();
    let mut text = format!(
        "CREATE TABLE IF NOT EXISTS llama_bench (\n{}\n);\n\n",
        columns.join(",\n")
    );
    let list = names().collect::<Vec<_>>().join(", ");
    for row in rows {
        let quoted = |value: &Value| match value {
            Value::Nothing => "NULL".to_owned(),
            value => format!("'{}'", plain(value).replace('\'', "''")),
        };
        let row: Vec<_> = values(row, frame).iter().map(quoted).collect();
        let row = row.join(", ");
        text.push_str(&format!(
            "INSERT INTO llama_bench ({list}) VALUES ({row});\n"
        ));
    }
    text
}

/// A column of the table.
struct Column {
    title: &'static str,
    width: usize,
    left: bool,
    value: fn(&Row, &Frame<'_>) -> String,
}

/// Columns of llama-bench's that are shown when they differ from the default: title,
/// width, whether the text stands left, whether it differs, and what they show.
type Varying = (
    &'static str,
    usize,
    bool,
    fn(&Axes, &Case) -> bool,
    fn(&Case) -> String,
);

macro_rules! varying {
    ($title:literal, $width:literal, $left:literal, $field:ident, $show:expr) => {
        (
            $title,
            $width,
            $left,
            |axes: &Axes, case: &Case| axes.$field.as_slice() != [case.$field.clone()],
            $show,
        )
    };
}

fn truth(value: bool) -> String {
    u8::from(value).to_string()
}

const BEFORE_THREADS: [Varying; 1] = [varying!("n_cpu_moe", 10, false, n_cpu_moe, |case| case
    .n_cpu_moe
    .to_string())];

const AFTER_THREADS: [Varying; 19] = [
    varying!("cpu_mask", 10, true, cpu_mask, |case| case.cpu_mask.clone()),
    varying!("cpu_strict", 10, false, cpu_strict, |case| truth(
        case.cpu_strict
    )),
    varying!("poll", 10, false, poll, |case| case.poll.to_string()),
    varying!("n_batch", 7, false, n_batch, |case| case
        .n_batch
        .to_string()),
    varying!("n_ubatch", 8, false, n_ubatch, |case| case
        .n_ubatch
        .to_string()),
    varying!("type_k", 6, false, type_k, |case| case.type_k.clone()),
    varying!("type_v", 6, false, type_v, |case| case.type_v.clone()),
    varying!("main_gpu", 10, false, main_gpu, |case| case
        .main_gpu
        .to_string()),
    varying!("sm", 6, false, split_mode, |case| case.split_mode.clone()),
    varying!("nkvo", 13, false, no_kv_offload, |case| truth(
        case.no_kv_offload
    )),
    varying!("fa", 3, false, flash_attn, |case| case
        .flash_attn
        .to_string()),
    varying!("dev", 12, true, devices, |case| case.devices.clone()),
    varying!("ts", 12, true, tensor_split, |case| case
        .tensor_split
        .clone()),
    varying!("ot", 21, true, overrides, |case| case.overrides.clone()),
    varying!("lm", 10, false, load_mode, |case| case.load_mode.clone()),
    varying!("lazy_mode", 10, true, lazy_mode, |case| case
        .lazy_mode
        .clone()),
    varying!("embd", 10, false, embeddings, |case| truth(case.embeddings)),
    varying!("nopo", 4, false, no_op_offload, |case| truth(
        case.no_op_offload
    )),
    varying!("noh", 4, false, no_host, |case| truth(case.no_host)),
];

const LAST: [Varying; 1] = [varying!("rpk", 3, false, repack, |case| truth(case.repack))];

const ALWAYS: [Column; 4] = [
    Column {
        title: "model",
        width: 30,
        left: true,
        value: |row, _| row.model.clone().unwrap_or_default().model_type,
    },
    Column {
        title: "size",
        width: 10,
        left: false,
        value: |row, _| size(row.model.clone().unwrap_or_default().model_size),
    },
    Column {
        title: "params",
        width: 10,
        left: false,
        value: |row, _| parameters(row.model.clone().unwrap_or_default().model_n_params),
    },
    Column {
        title: "backend",
        width: 10,
        left: true,
        value: |_, frame| frame.build.backends.clone(),
    },
];

const RESULT: [Column; 2] = [
    Column {
        title: "test",
        width: 15,
        left: false,
        value: |row, _| row.case.test(),
    },
    Column {
        title: "t/s",
        width: 20,
        left: false,
        value: |row, _| match row.speeds() {
            speeds if speeds.is_empty() => "-".to_owned(),
            speeds => format!("{:.2} ± {:.2}", mean(&speeds), deviation(&speeds)),
        },
    },
];

const BUDGET: Column = Column {
    title: "budget",
    width: 18,
    left: true,
    value: |row, _| row.budget_text(),
};

/// Shown where somebody asked for it.
const COLD: Column = Column {
    title: "cold",
    width: 6,
    left: true,
    value: |row, _| row.case.variant.cold().map_or("-", Cold::word).to_owned(),
};

const OUR_COLUMNS: [Column; 5] = [
    Column {
        title: "median t/s",
        width: 18,
        left: false,
        value: |row, _| {
            let speeds = spread(&row.speeds());
            speeds.map_or("-".to_owned(), |s| {
                format!("{:.2} ± {:.2}", s.median, s.mad)
            })
        },
    },
    Column {
        title: "to stock",
        width: 15,
        left: false,
        value: |row, _| {
            let ratio = row.ratio;
            ratio.map_or("-".to_owned(), |r| {
                format!("{:.3} ± {:.3}", r.median, r.mad)
            })
        },
    },
    Column {
        title: "law t/s",
        width: 10,
        left: false,
        value: |row, _| row.law_ts.map_or("-".to_owned(), |law| format!("{law:.2}")),
    },
    Column {
        title: "copied/token",
        width: 12,
        left: false,
        value: |row, _| {
            let bytes = row.bytes_per_token().filter(|_| row.case.is_paged());
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count of bytes; a conversion from float saturates"
            )]
            bytes.map_or("-".to_owned(), |bytes| show_bytes(bytes as u64))
        },
    },
    NOTE,
];

const NOTE: Column = Column {
    title: "note",
    width: 4,
    left: true,
    value: |row, _| row.note().replace('|', "\\|"),
};

#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / 1024.0 / 1024.0;
    if mib < 1024.0 {
        format!("{mib:.2} MiB")
    } else {
        format!("{:.2} GiB", mib / 1024.0)
    }
}

#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
fn parameters(count: u64) -> String {
    let millions = count as f64 / 1e6;
    if millions < 1000.0 {
        format!("{millions:.2} M")
    } else {
        format!("{:.2} B", millions / 1e3)
    }
}

/// A title, a width, the side, and the cells.
type Cells = (&'static str, usize, bool, Vec<String>);

fn cells(columns: &[Column], rows: &[Row], frame: &Frame<'_>) -> Vec<Cells> {
    let of = |column: &Column| {
        let cells = rows.iter().map(|row| (column.value)(row, frame));
        (column.title, column.width, column.left, cells.collect())
    };
    columns.iter().map(of).collect()
}

fn varying_cells(columns: &[Varying], rows: &[Row], frame: &Frame<'_>) -> Vec<Cells> {
    let differs = |differs: &fn(&Axes, &Case) -> bool| {
        rows.iter().any(|row| differs(frame.defaults, &row.case))
    };
    let of = |(title, width, left, _, show): &Varying| {
        let cells = rows.iter().map(|row| show(&row.case));
        (*title, *width, *left, cells.collect())
    };
    columns
        .iter()
        .filter(|(_, _, _, with, _)| differs(with))
        .map(of)
        .collect()
}

fn markdown(rows: &[Row], frame: &Frame<'_>) -> String {
    let mut columns = cells(&ALWAYS, rows, frame);
    let on_cpu = ["CPU", "BLAS", "ZenDNN"]
        .iter()
        .any(|name| frame.build.backends.contains(name));
    let shown = |show: fn(&Case) -> String| rows.iter().map(|row| show(&row.case)).collect();
    if !on_cpu {
        columns.push(("ngl", 3, false, shown(|case| case.n_gpu_layers.to_string())));
    }
    columns.extend(varying_cells(&BEFORE_THREADS, rows, frame));
    let threads: Vec<String> = shown(|case| case.n_threads.to_string());
    let default = |row: &Row| frame.defaults.n_threads == [row.case.n_threads];
    if on_cpu || !rows.iter().all(default) {
        columns.push(("threads", 7, false, threads));
    }
    columns.extend(varying_cells(&AFTER_THREADS, rows, frame));
    columns.extend(varying_cells(&LAST, rows, frame));
    columns.extend(cells(&RESULT, rows, frame));
    if frame.ours {
        columns.extend(cells(&[BUDGET], rows, frame));
        let differs = |row: &Row| {
            row.case
                .variant
                .cold()
                .is_some_and(|cold| cold != Cold::Auto)
        };
        if rows.iter().any(differs) {
            columns.extend(cells(&[COLD], rows, frame));
        }
        columns.extend(cells(&OUR_COLUMNS, rows, frame));
    } else if rows.iter().any(|row| !row.note().is_empty()) {
        columns.extend(cells(&[NOTE], rows, frame));
    }
    let text = lay_out(&columns, rows.len());
    let build = frame.build;
    text + &format!("\nbuild: {} ({})\n", build.commit, build.number)
}

fn lay_out(columns: &[Cells], count: usize) -> String {
    let pad = |text: &str, width: usize, left: bool| {
        if left {
            format!(" {text:<width$} |")
        } else {
            format!(" {text:>width$} |")
        }
    };
    let mut text = String::from("|");
    for (title, width, left, _) in columns {
        text.push_str(&pad(title, *width, *left));
    }
    text.push_str("\n|");
    for (_, width, left, _) in columns {
        let side = if *left { "-" } else { ":" };
        text.push_str(&format!(" {}{side} |", "-".repeat(width - 1)));
    }
    text.push('\n');
    for index in 0..count {
        text.push('|');
        for (_, width, left, cells) in columns {
            text.push_str(&pad(&cells[index], *width, *left));
        }
        text.push('\n');
    }
    text
}
