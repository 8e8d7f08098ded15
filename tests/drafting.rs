//! Drafting changes no token: models of several architectures, with each kind of drafting
//! that needs no second model, paged and not, through rewinds, shifts and wrong guesses.

use std::ffi::CString;
use std::sync::{Mutex, PoisonError};

use rpaged::device::{Budget, PagedDevice};
use rpaged::llama::{self, Decoded, Params, Session};
use rpaged::session::generator::Generator;
use rpaged::telemetry::drafts::Drafts;

use crate::equivalence::{Paging, config};
use crate::harness::{RunSpec, Step, stock};
use crate::models::{Model, VOCAB, prompt};

/// Each kind, eager enough for texts of a few hundred tokens.
const KINDS: [&str; 5] = [
    "--spec-type ngram-simple --spec-ngram-simple-size-n 2 --spec-ngram-simple-size-m 5",
    "--spec-type ngram-map-k --spec-ngram-map-k-size-n 2 --spec-ngram-map-k-size-m 5",
    "--spec-type ngram-map-k4v --spec-ngram-map-k4v-size-n 1 --spec-ngram-map-k4v-size-m 3",
    "--spec-type ngram-mod --spec-ngram-mod-n-match 2 --spec-ngram-mod-n-min 1",
    "--spec-type ngram-cache,ngram-simple --spec-ngram-simple-size-n 2",
];

/// Attention of all sorts; models whose memory can forget.
const MODELS: [Model; 6] = [
    Model::Dense,
    Model::DenseQ4K,
    Model::Experts,
    Model::SlidingWindow,
    Model::Biases,
    Model::FusedAttention,
];

/// Less than the models need, more than the least that works.
const BUDGET: u64 = 800 << 10;

/// llama.cpp's parser is for one thread.
static PARSER: Mutex<()> = Mutex::new(());

/// A session on `model` with the flags of `line`, paged within so many bytes if any.
fn session(model: Model, line: &str, budget_bytes: Option<u64>) -> rpaged::error::Result<Session> {
    llama::log::start();
    let path = model.file().path.to_string_lossy().into_owned();
    let fixed =
        "x -no-cnv -t 1 -c 512 -ub 16 --temp 0 --log-disable --no-repack --no-warmup -fit off -m";
    let words = fixed.split_whitespace().map(str::to_owned);
    let words = words.chain([path.clone()]);
    let words = words.chain(line.split_whitespace().map(str::to_owned));
    let words = words.map(|word| CString::new(word).unwrap()).collect();
    let params = {
        let _alone = PARSER.lock().unwrap_or_else(PoisonError::into_inner);
        Params::parse(words, &[]).unwrap()
    };
    let device = budget_bytes.map(|bytes| {
        let paging = config(model, Paging::Both, Budget::Bytes(bytes));
        PagedDevice::new(paging).unwrap()
    });
    Session::new(params, device, &path)
}

/// A prompt that repeats itself.
fn repeated(length: usize) -> Vec<i32> {
    let part = prompt(3, 24);
    part.iter().copied().cycle().take(length).collect()
}

fn feed(generator: &mut Generator, session: &mut Session, tokens: &[i32]) {
    let decoded = generator.feed(session, tokens).unwrap();
    assert_eq!(decoded, Decoded::Done);
}

/// What a run does between its tokens.
#[derive(Clone, Copy, Debug)]
struct Course {
    tokens: usize,
    /// Every so many tokens another one is fed than was sampled.
    stumble: usize,
    /// At this many positions half of the context is forgotten.
    shift_at: i32,
    /// Every so many tokens the last few are forgotten and written anew.
    rewind: usize,
}

const STRAIGHT: Course = Course {
    tokens: 90,
    stumble: usize::MAX,
    shift_at: i32::MAX,
    rewind: usize::MAX,
};

/// What a run sampled, token by token, what it was fed, and what drafting did.
#[derive(Default)]
struct Run {
    sampled: Vec<i32>,
    fed: Vec<i32>,
    drafts: Drafts,
}

/// Follows a course; `script` has other tokens fed than those that are sampled.
fn generate(session: &mut Session, prompt: &[i32], course: Course, script: Option<&[i32]>) -> Run {
    let mut generator = Generator::default();
    for batch in prompt.chunks(32) {
        feed(&mut generator, session, batch);
    }
    let mut run = Run::default();
    for index in 1..=course.tokens {
        let sampled = generator.next(session).unwrap();
        let mut token = sampled;
        if index % course.stumble == 0 {
            token = (token + 7) % i32::try_from(VOCAB).unwrap();
        }
        if let Some(script) = script {
            token = script[index - 1];
        }
        if generator.past() + 1 >= course.shift_at {
            let discard = (generator.past() - 4) / 2;
            generator.shift(session, 4, discard).unwrap();
        }
        if index % course.rewind == 0 {
            let to = generator.past() - 3;
            generator.rewind(session, to).unwrap();
            assert_eq!(generator.past(), to);
        }
        feed(&mut generator, session, &[token]);
        run.sampled.push(sampled);
        run.fed.push(token);
    }
    generator.settle(session).unwrap();
    let drafts = session.drafting().map(|drafting| drafting.tally().read());
    run.drafts = drafts.unwrap_or_default();
    run
}

/// By how much the likeliest token beats the next one, at each token that is sampled; and by
/// how much logits differ when a batch is computed and most of it forgotten: llama.cpp's
/// kernels for batches round differently, and rows that lie elsewhere are added up in
/// another order.
struct Margins {
    margins: Vec<f32>,
    noise: f32,
}

impl Margins {
    /// Of `model` after `prompt`, fed with `fed`.
    fn new(model: Model, text: &[i32], fed: &[i32]) -> Self {
        let rows = |extra: usize| {
            let mut steps = vec![Step::feed(0, 0, text)];
            for (position, token) in (i32::try_from(text.len()).unwrap()..).zip(fed) {
                let mut batch = vec![*token];
                batch.extend(prompt(u64::try_from(position).unwrap(), extra));
                steps.push(Step::feed(0, position, &batch));
                steps.push(Step::Remove {
                    sequence: 0,
                    first: position + 1,
                    end: -1,
                });
            }
            let logits = stock(&RunSpec {
                context: 512,
                ubatch: 16,
                steps,
                ..RunSpec::new(model, 1, 1)
            });
            let after = logits[text.len()..].iter().step_by(extra + 1);
            let rows: Vec<_> = logits[text.len() - 1..][..1].iter().chain(after).collect();
            rows.into_iter().cloned().collect::<Vec<Vec<f32>>>()
        };
        let single = rows(0);
        let margin = |row: &Vec<f32>| {
            let mut sorted = row.clone();
            sorted.sort_by(f32::total_cmp);
            sorted[sorted.len() - 1] - sorted[sorted.len() - 2]
        };
        let mut noise = 0.0_f32;
        for extra in [1, 15] {
            let pairs = single
                .iter()
                .flatten()
                .zip(rows(extra).into_iter().flatten());
            noise = pairs.map(|(a, b)| (a - b).abs()).fold(noise, f32::max);
        }
        Self {
            margins: single.iter().map(margin).collect(),
            noise,
        }
    }
}

/// Compares a course with and without drafting, for all kinds: each token that is sampled
/// is the same, unless the rounding of batches decides between two of them. The tokens fed
/// are the same in any case. How many drafted tokens were accepted.
fn compare(model: Model, course: Course, prompt: &[i32]) -> u64 {
    let plain = generate(&mut session(model, "", None).unwrap(), prompt, course, None);
    assert_eq!(plain.drafts, Drafts::default());
    let is_straight = course.shift_at == i32::MAX && course.rewind == usize::MAX;
    let margins = is_straight.then(|| Margins::new(model, prompt, &plain.fed));
    let mut accepted = 0;
    for kind in KINDS {
        // The second one streams what can be: it is a little above what works.
        for budget in [None, Some(BUDGET)] {
            let mut drafting = session(model, kind, budget).unwrap();
            let found = generate(&mut drafting, prompt, course, Some(&plain.fed));
            let about = format!("{model:?} {kind} {budget:?} {course:?}");
            let pairs = found.sampled.iter().zip(&plain.sampled).enumerate();
            for (index, (found, expected)) in pairs.filter(|(_, (a, b))| a != b) {
                let known = margins
                    .as_ref()
                    .map(|known| (known.margins[index], known.noise));
                let is_tie = known.is_some_and(|(margin, noise)| margin <= 2.0 * noise);
                assert!(
                    is_tie,
                    "token {index} is {found}, not {expected}; margin and noise {known:?}: {about}"
                );
            }
            let drafts = found.drafts;
            assert!(drafts.accepted <= drafts.drafted, "{drafts:?}");
            let passes = course.tokens as u64 - drafts.accepted;
            assert_eq!(drafts.passes, passes, "{about}: {drafts:?}");
            accepted += drafts.accepted;
        }
    }
    accepted
}

#[test]
fn the_likeliest_tokens_are_the_same_with_drafts_of_every_kind() {
    for model in MODELS {
        let accepted = compare(model, STRAIGHT, &repeated(60));
        assert!(accepted > 0, "{model:?}: nothing was ever accepted");
    }
}

#[test]
fn guesses_that_are_wrong_leave_nothing_behind() {
    let course = Course {
        stumble: 4,
        ..STRAIGHT
    };
    for model in MODELS {
        compare(model, course, &repeated(60));
    }
}

#[test]
fn a_context_that_is_shifted_and_rewound_holds_no_draft() {
    let course = Course {
        shift_at: 100,
        rewind: 11,
        ..STRAIGHT
    };
    for model in [Model::Dense, Model::Biases] {
        compare(model, course, &repeated(60));
    }
}

#[test]
fn a_window_that_slides_keeps_what_a_wrong_draft_needs_back() {
    // Longer than the cells that the window's cache has: they are used again.
    let course = Course {
        tokens: 300,
        stumble: 5,
        ..STRAIGHT
    };
    compare(Model::SlidingWindow, course, &repeated(150));
}

#[test]
fn paging_changes_no_token_that_was_drafted_for_and_drafts_the_same() {
    let line = KINDS[0];
    let mut plain = session(Model::Dense, line, None).unwrap();
    let expected = generate(&mut plain, &repeated(60), STRAIGHT, None);
    let mut paged = session(Model::Dense, line, Some(BUDGET)).unwrap();
    let found = generate(&mut paged, &repeated(60), STRAIGHT, None);
    assert_eq!(found.sampled, expected.sampled);
    let counts = |run: &Run| (run.drafts.passes, run.drafts.drafted, run.drafts.accepted);
    assert_eq!(counts(&found), counts(&expected));
    // A pass that checks a draft is one graph, as any other.
    let report = paged.device().unwrap().report();
    let prompt_graphs = 32_u64.div_ceil(16) + 28_u64.div_ceil(16);
    assert_eq!(report.graphs, prompt_graphs + found.drafts.passes);
    assert!(report.streamed_bytes > 0, "{report:?}");
}

#[test]
fn a_context_whose_tokens_came_from_elsewhere_can_be_drafted_for() {
    let text = repeated(70);
    let mut plain = session(Model::Dense, "", None).unwrap();
    let expected = generate(&mut plain, &text, STRAIGHT, None).fed;
    let mut session = session(Model::Dense, KINDS[1], None).unwrap();
    // As a prompt cache would have it: the context is full before anybody is told.
    for batch in text[..69].chunks(32) {
        session.decode(batch).unwrap();
    }
    let mut generator = Generator::default();
    generator.hold(&mut session, &text[..69]).unwrap();
    feed(&mut generator, &mut session, &text[69..]);
    for token in &expected {
        assert_eq!(generator.next(&mut session).unwrap(), *token);
        feed(&mut generator, &mut session, &[*token]);
    }
    assert_eq!(generator.past(), 70 + 90);
}

#[test]
fn a_model_that_cannot_forget_is_not_drafted_for() {
    for model in [Model::Recurrent, Model::Hybrid, Model::ShortConvolution] {
        let refused = session(model, KINDS[0], None).err().unwrap();
        assert_eq!(refused.exit_code(), 1);
        let sentence = refused.to_string();
        assert!(sentence.contains("cannot forget") && sentence.contains("--spec-type"));
    }
}
