#pragma once
#include "shim.h"

#include "arg.h"
#include "common.h"

#include "gguf.h"
#include "ggml-cpu.h"

#include <exception>
#include <memory>
#include <string>
#include <vector>

// The parameters behind the opaque handle.
struct rpaged_params {
    common_params params;
};

// Whose options these are, and whose parser reads them.
static const llama_example RPAGED_EXAMPLE = LLAMA_EXAMPLE_COMPLETION;

struct rpaged_gguf_free {
    void operator()(gguf_context * context) const { gguf_free(context); }
};
// The header of a GGUF file, without its tensors' bytes; null when it cannot be read.
inline std::unique_ptr<gguf_context, rpaged_gguf_free> rpaged_read_header(const std::string & path) {
    const gguf_init_params header = {/*.no_alloc =*/true, /*.ctx =*/nullptr};
    return std::unique_ptr<gguf_context, rpaged_gguf_free>(gguf_init_from_file(path.c_str(), header));
}

// The threads of a context: those that decode, and others for batches where they differ.
struct rpaged_pools {
    struct free {
        void operator()(ggml_threadpool * pool) const { ggml_threadpool_free(pool); }
    };
    std::unique_ptr<ggml_threadpool, free> decode, batch;

    using params = decltype(common_params::cpuparams);
    void start(const params & of_decode, const params & of_batch) {
        auto one   = ggml_threadpool_params_from_cpu_params(of_decode);
        auto other = ggml_threadpool_params_from_cpu_params(of_batch);
        decode.reset(ggml_threadpool_new(&one));
        if (!ggml_threadpool_params_match(&one, &other)) {
            batch.reset(ggml_threadpool_new(&other));
        }
    }
    ggml_threadpool * for_batches() const { return batch ? batch.get() : decode.get(); }
};

// llama-completion's options, then those that only llama-cli has; sets the defaults of the
// former in `params`.
std::vector<common_arg> rpaged_all_options(common_params & params);
// Whether only llama-cli has the option: llama-completion's parser does not know it.
bool rpaged_is_extra(const common_arg & option);
// How many values follow the option's flag.
int32_t rpaged_values_of(const common_arg & option);

// What the session was made of.
const common_params & rpaged_session_params(const rpaged_session * session);
// The session samples from now on by a fresh sampler made of `sampling`.
void rpaged_session_use_sampling(rpaged_session * session, common_params_sampling sampling);

// Throws when the values of `option` are not what it takes, where its own handler would read
// them as something else.
void rpaged_check_value(const common_arg & option, const std::string & first,
                        const std::string & second);
// Throws what is wrong with a grammar.
void rpaged_check_grammar(const std::string & text);
// Remembers which option, with which value, is being read on this thread.
void rpaged_blame(const std::string & option, const std::string & value);

// Fetches the headers of a model that `params` name elsewhere, where that is asked for, and
// sets its path; false when the whole model is to be downloaded.
bool rpaged_get_headers(common_params & params);
// Downloads the models that `params` name elsewhere, and sets their paths; throws a sentence.
void rpaged_get_models(common_params & params);
bool rpaged_downloads_are_watched();

// Remembers `text` as this thread's last error: one line, trimmed, without "error: ".
void rpaged_fail(const std::string & text);
// The text as rpaged_fail would keep it.
std::string rpaged_one_line(const std::string & text);
// A copy that the caller owns; never NULL, so that NULL can mean failure.
struct rpaged_bytes rpaged_own(const std::string & text);
struct rpaged_tokens rpaged_own_tokens(const std::vector<int32_t> & tokens);
// Throws when the draft model's file is one that upstream's parser would trip over.
void rpaged_check_draft_file(const common_params & params);

// Throws with the name of a file of adapters that cannot be read.
void rpaged_check_adapter_files(const common_params & params);
// Throws when adapters are not in effect, `logged` being what llama.cpp said first.
void rpaged_check_adapters(const common_params & params, llama_model * model,
                           llama_context * context, const std::string & logged);

// Runs `body`; turns an exception into the last error and the result into `otherwise`.
template <typename T, typename F> T rpaged_guard(T otherwise, F && body) noexcept {
    try {
        return body();
    } catch (const std::exception & error) {
        try {
            rpaged_fail(error.what());
        } catch (...) {
        }
    } catch (...) {
        try {
            rpaged_fail("llama.cpp threw something that is no exception");
        } catch (...) {
        }
    }
    return otherwise;
}
