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
int32_t rpaged_log_verbosity(void);
void rpaged_log_set_verbosity(int32_t verbosity);
// The last error that llama.cpp itself logged, trimmed; empty when there was none.
struct rpaged_bytes rpaged_log_last_error(void);
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
void rpaged_params_free(struct rpaged_params * params);

// What a session needs of the parameters. Enums are llama.cpp's.
struct rpaged_settings {
    int32_t n_predict, n_ctx, n_batch, n_ubatch, n_keep, n_parallel, n_gpu_layers, n_print;
    int32_t mirostat, grp_attn_n, conversation_mode, numa, load_mode, split_mode, verbosity, n_threads, n_threads_batch;
    int32_t antiprompts, loras, control_vectors, tensor_overrides, devices;
    float rope_freq_base, rope_freq_scale;
    bool interactive, embedding, escape, special, display_prompt, verbose_prompt, use_color;
    bool use_jinja, ctx_shift, warmup, fit, kv_offload, has_draft_model;
};
int32_t rpaged_params_settings(const struct rpaged_params * params, struct rpaged_settings * out);
void rpaged_params_set_n_ctx(struct rpaged_params * params, int32_t n_ctx);

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

// `device` becomes the model's only one and gets all layers; nothing is fitted to free
// memory, nothing is warmed up. A `load_mode` that is not negative replaces the given one.
int32_t rpaged_params_use_device(struct rpaged_params * params,
                                 struct ggml_backend_device * device, int32_t load_mode);
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
// Samples from the last output; LLAMA_TOKEN_NULL on failure.
int32_t rpaged_sample(struct rpaged_session * session);
int32_t rpaged_accept(struct rpaged_session * session, int32_t token, bool is_generated);
// The last accepted token, LLAMA_TOKEN_NULL when there is none.
int32_t rpaged_last_token(const struct rpaged_session * session);
// The text of the last `count` accepted tokens.
struct rpaged_bytes rpaged_last_text(struct rpaged_session * session, int32_t count);
uint32_t rpaged_seed(const struct rpaged_session * session);
struct rpaged_bytes rpaged_sampler_text(const struct rpaged_session * session);
// Logs the timings, as llama-completion does at its end.
void rpaged_perf_print(const struct rpaged_session * session);

// ---- the machine and the cache ------------------------------------------------------------

// What --list-devices and --cache-list print.
struct rpaged_bytes rpaged_device_list(void);
struct rpaged_bytes rpaged_cache_list(void);
// llama.cpp's version, commit and compiler.
struct rpaged_bytes rpaged_build_info(void);

#ifdef __cplusplus
}
#endif
