#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
struct ggml_backend_device;
struct llama_context;
struct llama_model;

#ifdef __cplusplus
extern "C" {
#endif

// Sizes and offsets as the C++ compiler sees them, for the layout test.
struct rpaged_layout_entry {
    const char * name; // "struct" or "struct.field"
    size_t value;      // size of the struct, or offset of the field, in bytes
};
// The table, ended by an entry whose name is NULL.
const struct rpaged_layout_entry * rpaged_layout(void);
// GGML_BACKEND_API_VERSION of the headers the shim was compiled with.
int32_t rpaged_backend_api_version(void);

// ---- failures and owned bytes ------------------------------------------------------
// Every function below catches C++ exceptions. One that can fail says so by its result
// (NULL, or a status that is not RPAGED_OK); the sentence is then rpaged_last_error().

#define RPAGED_OK     0
#define RPAGED_USAGE  1 // the command line is at fault
#define RPAGED_FAILED 2 // the world is at fault

// What the last failing call on this thread said; valid until the next call.
const char * rpaged_last_error(void);

// Bytes owned by the caller, not terminated, not necessarily UTF-8.
struct rpaged_bytes {
    char * data; // NULL when the call failed
    size_t size;
};
void rpaged_bytes_free(struct rpaged_bytes bytes);

// Tokens owned by the caller.
struct rpaged_tokens {
    int32_t * data; // NULL when the call failed
    size_t count;
};
void rpaged_tokens_free(struct rpaged_tokens tokens);

// ---- logging (llama.cpp's own: a queue, written by a thread) ------------------------

enum rpaged_log_level {
    RPAGED_LOG_OUTPUT, // standard output, without a prefix
    RPAGED_LOG_ERROR,
    RPAGED_LOG_WARN,
    RPAGED_LOG_INFO,
    RPAGED_LOG_CONT, // continues an INFO line
    RPAGED_LOG_DEBUG,
};

// Starts llama.cpp's logging. Once, before all else.
int32_t rpaged_init(void);
void rpaged_log(enum rpaged_log_level level, const char * text);
// Returns when everything logged so far is written; what is logged later is discarded.
// (llama.cpp's own flush would switch a log on again that --log-disable has switched off.)
void rpaged_log_stop(void);
// While true, llama.cpp's errors and warnings are dropped: a computation stops because it was
// asked to. From any thread.
void rpaged_log_stopping(bool stopping);
int32_t rpaged_log_verbosity(void);
void rpaged_log_set_verbosity(int32_t verbosity);
// The last error that llama.cpp itself logged, trimmed; empty when there was none.
struct rpaged_bytes rpaged_log_last_error(void);
// Forgets it, so that the next error is remembered.
void rpaged_log_forget_error(void);
// Whether a write to C's stdout has failed.
bool rpaged_output_failed(void);

// ---- llama.cpp's options -------------------------------------------------------------

struct rpaged_option {
    const char * section; // as upstream's help groups it
    const char * const * args;     // ended by NULL
    const char * const * args_neg; // the --no-... forms, ended by NULL
    const char * value_hint;   // NULL: takes no value
    const char * value_hint_2; // of a second value, or NULL
    const char * env;          // environment variable, or NULL
    const char * help;
    int32_t values; // how many values follow the flag: 0, 1 or 2
};
struct rpaged_options;
// The options of llama-completion, from its parser, then those that only llama-cli has.
struct rpaged_options * rpaged_options_new(void);
size_t rpaged_options_count(const struct rpaged_options * options);
// Borrowed from `options`; `index` below the count.
struct rpaged_option rpaged_options_get(const struct rpaged_options * options, size_t index);
void rpaged_options_free(struct rpaged_options * options);

// ---- parameters ------------------------------------------------------------------------

struct rpaged_params;
// Parses with llama.cpp's own parser. `argv` holds only flags it knows, with all their
// values, and none that make it print and exit. Downloads the model where that is asked.
// `hidden`, ended by NULL, names environment variables that are taken not to be set; they
// are set again on return, so no other thread may read the environment meanwhile.
int32_t rpaged_params_parse(int32_t argc, char ** argv, const char * const * hidden,
                            struct rpaged_params ** out);

typedef enum {
    RPAGED_DOWNLOAD_GOES_ON,
    RPAGED_DOWNLOAD_DONE,
    RPAGED_DOWNLOAD_FAILED,
} rpaged_download_state;
// Told of each file that is downloaded: its address, and how many bytes of how many are
// here; several threads may call at once. NULL: nobody watches, and the log says it.
typedef void (*rpaged_download_watcher)(const char * address, uint64_t bytes, uint64_t total,
                                        rpaged_download_state state);
void rpaged_watch_downloads(rpaged_download_watcher watcher);
// From now on, of a model that lies elsewhere and not in the cache, only the header is
// fetched, into a file in this folder that is otherwise a hole, where its server gives parts
// of files.
void rpaged_fetch_headers_into(const char * folder);

// A spelling of the option that this thread's last refused parse was about, and its value;
// empty when it was about none.
struct rpaged_bytes rpaged_blamed_option(void);
struct rpaged_bytes rpaged_blamed_value(void);
void rpaged_params_free(struct rpaged_params * params);

// What a session needs of the parameters. Enums are llama.cpp's.
struct rpaged_settings {
    int32_t n_predict, n_ctx, n_batch, n_ubatch, n_keep, n_parallel, n_gpu_layers, n_print;
    int32_t mirostat, grp_attn_n, conversation_mode, numa, load_mode, lazy_mode, split_mode;
    int32_t verbosity, n_threads, n_threads_batch;
    int32_t antiprompts, loras, control_vectors, tensor_overrides, kv_overrides;
    int32_t devices;
    float rope_freq_base, rope_freq_scale;
    bool interactive, embedding, escape, special, display_prompt, verbose_prompt, use_color;
    bool use_jinja, ctx_shift, warmup, fit, kv_offload;
};
int32_t rpaged_params_settings(const struct rpaged_params * params, struct rpaged_settings * out);
void rpaged_params_set_n_ctx(struct rpaged_params * params, int32_t n_ctx);
void rpaged_params_set_batches(struct rpaged_params * params, int32_t n_batch, int32_t n_ubatch);
// Parameters of their own with the same values. NULL on failure.
struct rpaged_params * rpaged_params_copy(const struct rpaged_params * params);

enum rpaged_text {
    RPAGED_TEXT_MODEL_PATH,
    RPAGED_TEXT_PROMPT,
    RPAGED_TEXT_CHAT_TEMPLATE,
    RPAGED_TEXT_PROMPT_CACHE,
    RPAGED_TEXT_SAMPLING,    // the sampling parameters, printed
    RPAGED_TEXT_SYSTEM_INFO, // threads and the processor's features
};
struct rpaged_bytes rpaged_params_text(const struct rpaged_params * params, enum rpaged_text text);
// `index` below `antiprompts` of the settings.
struct rpaged_bytes rpaged_params_antiprompt(const struct rpaged_params * params, size_t index);

// The GPU of this machine that the parameters name (--device), which computes below the
// paged device; when they name no device and `automatic` is set, the one that llama.cpp
// would take first. NULL: the processor. RPAGED_USAGE when they name two, or none that can.
int32_t rpaged_params_inner_device(const struct rpaged_params * params, bool automatic,
                                   struct ggml_backend_device ** device);
// `device` becomes the model's last one, behind the RPC servers' devices that the parameters
// name or, when they name none, all of them: `others` is their number. All layers go to
// devices; nothing is fitted to free memory, nothing is warmed up. A `load_mode` that is not
// negative replaces the given one.
int32_t rpaged_params_use_device(struct rpaged_params * params,
                                 struct ggml_backend_device * device, int32_t load_mode,
                                 size_t * others);
// Called with 0.0 .. 1.0 while the model loads; returns whether to go on.
void rpaged_params_on_progress(struct rpaged_params * params,
                               bool (*callback)(float progress, void * data), void * data);

// ---- what a session would take --------------------------------------------------------

struct rpaged_rehearsal {
    uint64_t parameters;
    // By where it would be: in memory that the CPU can read, or on the params' device.
    uint64_t host_model_bytes, host_context_bytes, host_compute_bytes;
    uint64_t device_model_bytes, device_context_bytes, device_compute_bytes;
    uint32_t n_ctx, n_batch, n_ubatch, n_ctx_train, n_layer, n_embd, n_head, n_head_kv, n_vocab;
    int32_t kv_type_k, kv_type_v; // ggml_type
    bool flash_attention;         // asked for, or not refused
    uint32_t n_prompt;            // tokens of the prompt as it was given
};
// Loads the model and makes the context without memory: only the header is read, and each
// buffer type is asked what it would take (`get_alloc_size_n`).
int32_t rpaged_rehearse(struct rpaged_params * params, struct rpaged_rehearsal * out);

// ---- model, context and sampler --------------------------------------------------------

struct rpaged_session;
// Loads the model, makes the context and the sampler. NULL on failure. `params` must
// outlive the session.
struct rpaged_session * rpaged_session_new(struct rpaged_params * params);
// Frees the context, then the model.
void rpaged_session_free(struct rpaged_session * session);
struct llama_model * rpaged_session_model(struct rpaged_session * session);
struct llama_context * rpaged_session_context(struct rpaged_session * session);
// Thread pools as the command line asks for them (affinity, priority, polling): for
// decoding, and for batches; both may be the same. Made at the first call; they live as
// long as the session.
struct ggml_threadpool;
struct rpaged_threadpools {
    struct ggml_threadpool * decode; // NULL on failure
    struct ggml_threadpool * batch;
    int32_t decode_threads; // how many threads each pool has
    int32_t batch_threads;
};
struct rpaged_threadpools rpaged_session_threadpools(struct rpaged_session * session);
// Decodes a few tokens and forgets them, as upstream does before the first prompt.
int32_t rpaged_warm_up(struct rpaged_session * session);
// Whether the parameters or the model name a chat template.
bool rpaged_session_has_template(const struct rpaged_session * session);
// llama_process on one sequence, positions continuing from the memory: 0, 1 (no room in
// the memory), 2 (aborted), or negative.
int32_t rpaged_decode(struct rpaged_session * session, const int32_t * tokens, size_t count);
int32_t rpaged_encode(struct rpaged_session * session, const int32_t * tokens, size_t count);
// Removes positions [keep, keep + discard) of sequence 0 and moves the later ones, up to
// `past`, back by `discard`.
int32_t rpaged_shift(struct rpaged_session * session, int32_t keep, int32_t discard, int32_t past);
// Removes what the memory holds at position `from` and later, of all sequences; false when
// this model's memory cannot forget a part, which has then changed nothing.
bool rpaged_truncate(struct rpaged_session * session, int32_t from);
struct rpaged_tokens rpaged_tokenize(const struct rpaged_session * session, const char * text,
                                     size_t size, bool add_special, bool parse_special);
struct rpaged_bytes rpaged_token_piece(const struct rpaged_session * session, int32_t token,
                                       bool special);
// "[ 'a':1, 'b':2 ]", as upstream prints tokens.
struct rpaged_bytes rpaged_tokens_text(const struct rpaged_session * session,
                                       const int32_t * tokens, size_t count);
// Samples from the output of the batch's token `output`, from the last one when it is
// negative; LLAMA_TOKEN_NULL on failure.
int32_t rpaged_sample(struct rpaged_session * session, int32_t output);
int32_t rpaged_accept(struct rpaged_session * session, int32_t token, bool is_generated);
// The last accepted token, LLAMA_TOKEN_NULL when there is none.
int32_t rpaged_last_token(const struct rpaged_session * session);
// The text of the last `count` accepted tokens.
struct rpaged_bytes rpaged_last_text(struct rpaged_session * session, int32_t count);
uint32_t rpaged_seed(const struct rpaged_session * session);
struct rpaged_bytes rpaged_sampler_text(const struct rpaged_session * session);
// Logs the timings, as llama-completion does at its end.
void rpaged_perf_print(const struct rpaged_session * session);

// ---- chat ------------------------------------------------------------------------------------

// What the command line says about conversations.
struct rpaged_chat_settings {
    bool enable_template; // false with --in-prefix, --in-suffix and --in-prefix-bos
    bool single_turn, multiline_input, show_timings, simple_io, input_prefix_bos;
};
int32_t rpaged_chat_settings_of(const struct rpaged_params * params,
                                struct rpaged_chat_settings * out);
enum rpaged_chat_text_kind {
    RPAGED_CHAT_SYSTEM_PROMPT,
    RPAGED_CHAT_INPUT_PREFIX,
    RPAGED_CHAT_INPUT_SUFFIX,
};
void rpaged_params_set_jinja(struct rpaged_params * params, bool use_jinja);
struct rpaged_bytes rpaged_chat_text(const struct rpaged_params * params,
                                     enum rpaged_chat_text_kind kind);

// Text that the caller lends for the length of a call; `data` may not be NULL.
struct rpaged_view {
    const char * data;
    size_t size;
};
struct rpaged_message {
    struct rpaged_view role, content, reasoning;
};

struct rpaged_chat;
// The templates that command line and model name, with ChatML where there are none. Copies
// what it needs of both. NULL on failure.
struct rpaged_chat * rpaged_chat_new(const struct rpaged_params * params,
                                     const struct llama_model * model);
void rpaged_chat_free(struct rpaged_chat * chat);
// Whether command line or model name a template.
bool rpaged_chat_is_explicit(const struct rpaged_chat * chat);
// A short conversation as the template writes it.
struct rpaged_bytes rpaged_chat_example(const struct rpaged_chat * chat);
// What `message` adds to the text of the `count` messages before it, as llama-completion
// has it formatted.
struct rpaged_bytes rpaged_chat_format_single(const struct rpaged_chat * chat,
                                              const struct rpaged_message * past, size_t count,
                                              const struct rpaged_message * message,
                                              bool add_assistant);
// The text of all messages, as llama-completion has it formatted.
struct rpaged_bytes rpaged_chat_format_all(const struct rpaged_chat * chat,
                                           const struct rpaged_message * messages, size_t count,
                                           bool add_generation_prompt);

struct rpaged_turn;
// The conversation so far with the beginning of an answer, as llama-cli has it formatted:
// with the template's arguments and the settings on reasoning. NULL on failure.
struct rpaged_turn * rpaged_turn_new(const struct rpaged_chat * chat,
                                     const struct rpaged_message * messages, size_t count);
void rpaged_turn_free(struct rpaged_turn * turn);
enum rpaged_turn_text_kind {
    RPAGED_TURN_PROMPT,            // what the model is to read
    RPAGED_TURN_GENERATION_PROMPT, // its end: the beginning of the answer
    RPAGED_TURN_THINKING_START,    // the tag, empty when the template has none
    RPAGED_TURN_THINKING_END,      // the tags
    RPAGED_TURN_STOP,              // texts that end an answer
    RPAGED_TURN_PRESERVED,         // texts that belong to it even if they are special tokens
};
// How many texts of this kind there are.
size_t rpaged_turn_count(const struct rpaged_turn * turn, enum rpaged_turn_text_kind kind);
struct rpaged_bytes rpaged_turn_text(const struct rpaged_turn * turn,
                                     enum rpaged_turn_text_kind kind, size_t index);
struct rpaged_answer {
    struct rpaged_bytes content, reasoning;
};
// Splits what the model has answered so far, or at last. Fills nothing in on failure.
int32_t rpaged_turn_parse(const struct rpaged_turn * turn, const char * text, size_t size,
                          bool is_partial, struct rpaged_answer * out);
// The session samples this turn's answer by a fresh sampler: grammar from its beginning,
// the budget for reasoning anew. A seed that is given grows by `attempt`.
int32_t rpaged_turn_begin(const struct rpaged_turn * turn, struct rpaged_session * session,
                          uint32_t attempt);

// ---- drafting --------------------------------------------------------------------------

// What the parameters say of drafting.
struct rpaged_drafting_settings {
    bool with_model;    // a draft model of any kind is asked for
    bool without_model; // some kind that needs no model
    bool special;       // some kind that needs a model made for it
    bool has_model, probabilistic, synthetic, backend_sampling;
    int32_t draft_max, threads, threads_batch;
};
int32_t rpaged_params_drafting(const struct rpaged_params * params,
                               struct rpaged_drafting_settings * out);
// Path of the draft model's file; empty when there is none.
struct rpaged_bytes rpaged_params_draft_path(const struct rpaged_params * params);
// The names of the kinds that are asked for, with commas between.
struct rpaged_bytes rpaged_params_draft_kinds(const struct rpaged_params * params);

// What the draft model will take: weights, KV cache and scratch, in bytes; 0 on failure.
// `resident`: the CPU keeps and computes it, whatever the session's model uses.
uint64_t rpaged_draft_model_bytes(struct rpaged_session * session, bool resident);

// Proposes tokens; NULL on failure. The session must outlive it.
struct rpaged_drafter;
struct rpaged_drafter * rpaged_drafter_new(struct rpaged_session * session, bool resident);
void rpaged_drafter_free(struct rpaged_drafter * drafter);
// Has a draft model's computations ask, with NULL, whether to stop.
void rpaged_drafter_set_abort(struct rpaged_drafter * drafter, bool (*callback)(void * data));
// The session's context holds `tokens` from position `from` on, and nothing behind them.
int32_t rpaged_drafter_hold(struct rpaged_drafter * drafter, int32_t from, const int32_t * tokens,
                            size_t count);
// The session's context forgot `discard` tokens after the first `keep`.
int32_t rpaged_drafter_shift(struct rpaged_drafter * drafter, int32_t keep, int32_t discard);
// At most `most` tokens that may follow `last`, which follows what the context holds.
struct rpaged_tokens rpaged_drafter_draft(struct rpaged_drafter * drafter, int32_t last,
                                          int32_t most);
// Of the last draft that was not empty, so many tokens were right.
int32_t rpaged_drafter_judge(struct rpaged_drafter * drafter, int32_t accepted);
// Whether the model's memory can forget the end of what it holds.
bool rpaged_can_forget(const struct rpaged_session * session);
// As rpaged_decode, with an output for each token.
int32_t rpaged_decode_all(struct rpaged_session * session, const int32_t * tokens, size_t count);

// ---- input, console and saved states -----------------------------------------------------

// What a completion that takes turns and keeps states needs of the parameters.
struct rpaged_dialogue {
    int32_t grp_attn_w;
    bool interactive, interactive_first, prompt_cache_all, prompt_cache_ro;
    bool ctx_shift; // off, once there is a session whose memory cannot be shifted
};
int32_t rpaged_params_dialogue(const struct rpaged_params * params, struct rpaged_dialogue * out);
// The text with its escapes resolved, as -e has it.
struct rpaged_bytes rpaged_unescape(const char * text, size_t size);

// Returns when everything logged so far is written, and the log goes on. Switches a log on
// that was switched off.
void rpaged_log_drain(void);
// llama.cpp's console, of which there is one: it reads lines, and colours the output when
// `colours` is set. Unless `simple_io` is set it edits lines itself, for which it changes
// the terminal's state.
int32_t rpaged_console_open(bool simple_io, bool colours);
// Back to plain colours and to the terminal's own state.
void rpaged_console_close(void);
enum rpaged_display {
    RPAGED_DISPLAY_PLAIN,
    RPAGED_DISPLAY_PROMPT,
    RPAGED_DISPLAY_INPUT,
    RPAGED_DISPLAY_ERROR,
};
void rpaged_console_display(enum rpaged_display display);
// One line with its end, without it at the input's end; `more`: the text goes on in the next
// line. Returns early when a signal interrupts it.
struct rpaged_bytes rpaged_console_read_line(bool multiline, bool * more);

// Decodes one token at a position that the memory does not hold; as rpaged_decode.
int32_t rpaged_decode_at(struct rpaged_session * session, int32_t token, int32_t position);
// Has the sampler forget the tokens it was told of.
void rpaged_reset_sampler(struct rpaged_session * session);

// ---- the machine and the cache ------------------------------------------------------------

// What --list-devices, with the devices of these RPC servers (HOST:PORT, commas between), and
// --cache-list print; behind llama.cpp's list of devices, those that may compute under paging.
struct rpaged_bytes rpaged_device_list(const char * rpc_servers);
struct rpaged_bytes rpaged_cache_list(void);
// llama.cpp's version, commit and compiler.
struct rpaged_bytes rpaged_build_info(void);

// ---- measuring: a model and its contexts, without samplers ---------------------------------

enum rpaged_bench_fact {
    RPAGED_BENCH_COMMIT,   // llama.cpp's commit
    RPAGED_BENCH_CPUS,     // descriptions of the processors and accelerators
    RPAGED_BENCH_GPUS,     // descriptions of the GPUs
    RPAGED_BENCH_BACKENDS, // names of the backends beside the CPU's, or "CPU"
};
struct rpaged_bytes rpaged_bench_text(enum rpaged_bench_fact fact);
int32_t rpaged_bench_build_number(void);
// ggml's priorities, -1 to 3, for the process; false when the system refuses.
bool rpaged_bench_set_priority(int32_t priority);
// Loads the model; NULL on failure, the reason is then in the log. Freed by llama.cpp's own
// door.
struct llama_model * rpaged_bench_model_new(struct rpaged_params * params);
// A context for so many tokens, the rest as `params` say; NULL on failure.
struct llama_context * rpaged_bench_context_new(struct llama_model * model,
                                                const struct rpaged_params * params,
                                                int32_t n_ctx, bool embeddings);
// The threads that `params` ask for; NULL on failure. Freed by ggml's own door.
struct ggml_threadpool * rpaged_bench_threadpool_new(const struct rpaged_params * params);
// As rpaged_decode.
int32_t rpaged_bench_decode(struct llama_context * context, const int32_t * tokens, size_t count);

#ifdef __cplusplus
}
#endif
